package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// RunLedger is what a ledger does on every store, also on one that fails.
func RunLedger(t *testing.T, open func(t testing.TB) ledger.Store) {
	for name, test := range map[string]func(*testing.T, ledger.Store){
		"ReadsWhatWasCommitted": readsBack, "Reopens": reopens, "EndsOfCallers": callers,
		"OtherSubjectKey": otherSubjectKey, "Sweeps": sweeps, "SweepsAroundLateReceipts": sweepsLate,
		"CommitsThatDoNotHold": invalid, "CacheFollows": cacheFollows, "Notifies": notifies,
		"TestAbuse_A27_faults": abuseA27, "TestAbuse_A27_disk_full": abuseA27Full,
		"TestAbuse_A33_many_expire": abuseA33, "TestAbuse_A46_moved_on": abuseA46, "TestAbuse_A47_limit": abuseA47,
		"TestAbuse_A51_no_event_lost": abuseA51,
		"Erases":                      erases, "ErasesAtRandom": erasesWalk, "ErasesUnderLoad": erasesUnderLoad,
		"ErasesNothingHeld": erasesHeld,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func readsBack(t *testing.T, store ledger.Store) {
	ring := Ring(t)
	l := Founded(t, store, ring)
	c := Issue(Start, time.Hour, time.Minute)
	res := Commit(t, l, c)
	ctx := t.Context()

	for range 2 { // from the commit, and decoded from memory
		s, seq, err := l.Session(ctx, SessionOf(c))
		if err != nil || s.State != session.Issued || seq != res.Index+1 {
			t.Fatalf("session %v at %d: %v", s.State, seq, err)
		}
	}
	secret, _, err := l.Secret(ctx, Secret)
	if err != nil || secret.Exposure != "open" || secret.Versions[0].Exposure != "open" {
		t.Errorf("secret %+v: %v", secret, err)
	}
	blob, err := l.Blob(ctx, ledger.SecretBlob(secret.Versions[0].RecordID), secret.Versions[0].CiphertextDigest)
	if err != nil || len(blob) == 0 {
		t.Errorf("blob: %v", err)
	}
	if _, err := l.Blob(ctx, ledger.SecretBlob(secret.Versions[0].RecordID), event.Digest{1}); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("blob under another digest: %v", err)
	}
	entries, err := l.Events(ctx, res.Index, 10)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%d entries: %v", len(entries), err)
	}
	e := entries[0]
	if e.Leaf != res.Leaf || e.ReplySalt != res.ReplySalt || e.Leaf != event.NewLeaf(e.Encoding, e.EventSalt, c.Reply, e.ReplySalt) || e.Reply != c.Reply || e.Event.ID != c.Event.ID {
		t.Error("the entry is not what was committed")
	}
	if again, err := l.Result(ctx, res.Index); err != nil || again != res {
		t.Errorf("result %v: %v", again, err)
	}
	if found, err := l.Find(ctx, c.Event.ID); err != nil || found.Index != res.Index {
		t.Errorf("find: %d, %v", found.Index, err)
	}
	leaves, err := l.Leaves(ctx, 0, 100)
	if err != nil || int64(len(leaves)) != res.Index+1 || leaves[res.Index] != res.Leaf {
		t.Errorf("%d leaves: %v", len(leaves), err)
	}
	if r, err := l.Request(ctx, c.Request.Key); err != nil || r.Index != res.Index {
		t.Errorf("request %d: %v", r.Index, err)
	}
	_, _, noSession := l.Session(ctx, event.NewID(Start))
	_, noEvent := l.Result(ctx, 999)
	_, noRequest := l.Request(ctx, "none")
	_, noBlob := l.Blob(ctx, "none", event.Digest{})
	for i, err := range []error{noSession, noEvent, noRequest, noBlob} {
		if !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("look-up %d: %v", i, err)
		}
	}
	if report := MustCheck(t, l); report.Events != res.Index+1 || report.Blobs != 2 {
		t.Errorf("report %+v", report)
	}
}

func reopens(t *testing.T, store ledger.Store) {
	ring := Ring(t)
	l := Founded(t, keepOpen{store}, ring)
	Commit(t, l, Issue(Start, time.Hour, 0))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Commit(t.Context(), Issue(Start, time.Hour, 0)); !errors.Is(err, ledger.ErrUnavailable) || !errors.Is(err, ledger.ErrNotApplied) {
		t.Errorf("commit after Close: %v", err)
	}
	if _, err := ledger.Open(t.Context(), ledger.Config{Store: store, Keys: Ring(t)}); !errors.Is(err, ledger.ErrTampered) {
		t.Errorf("open with another keyring: %v", err)
	}
	again := Open(t, store, ring)
	Commit(t, again, Issue(Start, time.Hour, 0)) // under the key that its subject has
	MustCheck(t, again)
}

// keepOpen keeps a store open when its ledger is closed.
type keepOpen struct{ ledger.Store }

func (keepOpen) Close() error { return nil }

func callers(t *testing.T, store ledger.Store) {
	h := NewHostile(store, func([]ledger.Record) Fault { return FaultNone })
	l := Founded(t, h, Ring(t))
	release := h.Hold()
	ctx, cancel := context.WithCancel(t.Context())
	first, second := Issue(Start, time.Hour, 0), Issue(Start, time.Hour, 0)
	begun := h.Appends()
	errs := make(chan error, 1)
	go func() {
		_, err := l.Commit(ctx, first)
		errs <- err
	}()
	// The first commit is with the store once a second one can wait without being taken.
	waiting := make(chan error, 1)
	for taken := false; !taken; {
		probe, stop := context.WithCancel(t.Context())
		go func() {
			_, err := l.Commit(probe, second)
			waiting <- err
		}()
		stop()
		err := <-waiting
		if !errors.Is(err, context.Canceled) || !errors.Is(err, ledger.ErrUnavailable) {
			t.Fatalf("cancelled commit: %v", err)
		}
		taken = errors.Is(err, ledger.ErrNotApplied)
		if !taken {
			break // it was taken together with, or instead of, the first one
		}
	}
	cancel()
	if err := <-errs; !errors.Is(err, ledger.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("commit whose caller went away: %v", err)
	}
	release()
	Commit(t, l, Issue(Start, time.Hour, 0))
	if h.Appends() == begun {
		t.Error("nothing was appended")
	}
	MustCheck(t, l)
}

func otherSubjectKey(t *testing.T, store ledger.Store) {
	ring := Ring(t)
	l := Open(t, store, ring)
	Commit(t, l, Genesis())
	const subject = "spiffe://dev.bulla.test/late"
	// The ledger makes a key for the subject, but another one gets into the store first.
	wrapped, key, err := ring.NewSubjectKey(subject)
	if err != nil {
		t.Fatal(err)
	}
	refused := Plain(subject, event.KeyRetired{KeyID: "unknown"})
	if _, err := l.Commit(t.Context(), refused); !errors.Is(err, ledger.ErrTransition) {
		t.Fatal(err)
	}
	r := record(Plain(subject, event.DecisionDenied{Principal: subject}))
	encoding, err := r.Event.Encode()
	if err != nil {
		t.Fatal(err)
	}
	salts := [2]event.Salt{event.NewSalt(), event.NewSalt()}
	plain := slices.Concat(salts[0][:], salts[1][:], make([]byte, 32), encoding)
	aad := append(append([]byte("bulla-ledger-body/v1\x00"), r.Event.ID[:]...), subject...)
	r.Leaf, r.Subject, r.NewSubject, r.Body = event.NewLeaf(encoding, salts[0], event.Digest{}, salts[1]), subject, wrapped, key.Seal(plain, aad)
	if out, err := store.Append(t.Context(), []ledger.Record{r}); err != nil || out[0].Err != nil {
		t.Fatal(err, out)
	}
	Commit(t, l, Plain(subject, event.DecisionDenied{Principal: subject}))
	MustCheck(t, l)
}

func sweeps(t *testing.T, store ledger.Store) {
	l := Founded(t, store, Ring(t))
	ctx := t.Context()
	for i := range 30 {
		Commit(t, l, Issue(Start, time.Duration(1+i%3)*time.Minute, 0))
		Commit(t, l, Issue(Start, time.Duration(1+i%3)*time.Minute, 30*time.Second))
	}
	late, err := l.EndUnreceipted(ctx, Start.Add(30*time.Second), 100, "no receipt")
	if len(late) != 30 || err != nil {
		t.Fatalf("%d ended without a receipt: %v", len(late), err)
	}
	if late, err = l.EndUnreceipted(ctx, Start.Add(31*time.Second), 100, "no receipt"); len(late) != 0 || err != nil {
		t.Fatalf("%d ended without a receipt again: %v", len(late), err)
	}
	ended, err := l.Sessions(ctx, ledger.SessionQuery{States: []string{"revoked"}})
	if len(ended) != 30 || err != nil || ended[0].Reason != "no receipt" {
		t.Errorf("%d revoked, %v", len(ended), err)
	}
	// All that live are gone through in pages while some of them end.
	seen, q := 0, ledger.SessionQuery{LiveFrom: time.UnixMicro(1), Max: 7}
	for {
		page, err := l.Sessions(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		seen += len(page)
		last := page[len(page)-1]
		q.LiveFrom, q.LiveAfter = last.Expires.Time(), last.ID.String()
		if len(page) < q.Max {
			continue // else one that comes instead would be found at the end, for ever
		}
		if gone, err := l.RevokeSessions(ctx, Start.Add(32*time.Second), []event.ID{last.ID, ended[0].ID}, "x", event.ID{}); err != nil || len(gone) != 1 || gone[0] != last.ID {
			t.Fatalf("of a live session and one that has ended, %v were revoked: %v", gone, err)
		}
		Commit(t, l, Issue(Start, last.Expires.Time().Sub(Start), 0)) // another one lives instead
	}
	if seen < 30 || seen > 35 {
		t.Errorf("%d sessions were gone through, want each of the 30 once, and perhaps those that came meanwhile", seen)
	}
	for _, step := range []struct{ minutes, limit, want int }{{1, 4, 4}, {1, 100, 6}, {2, 100, 10}, {2, 100, 0}, {3, 100, 10}, {9, 100, 0}} {
		n, err := l.ExpireSessions(ctx, Start.Add(time.Duration(step.minutes)*time.Minute), step.limit)
		if n != step.want || err != nil {
			t.Fatalf("%d expired at %d minutes (%v), want %d", n, step.minutes, err, step.want)
		}
	}
	expired, err := l.Sessions(ctx, ledger.SessionQuery{States: []string{"expired"}})
	if len(expired) != 30 || err != nil {
		t.Errorf("%d expired: %v", len(expired), err)
	}
	if _, err := l.Request(ctx, "deliver/"+late0(expired)); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("the request of an expired session: %v", err)
	}
	MustCheck(t, l)
}

func late0(s []session.Session) string {
	if len(s) == 0 {
		return ""
	}
	return s[0].ID.String()
}

func sweepsLate(t *testing.T, store ledger.Store) {
	// Receipts come in while the sweeper has its list already: they are in the batch before its own.
	var l *ledger.Ledger
	late := map[int]event.ID{}
	h := NewHostile(store, func([]ledger.Record) Fault { return FaultNone })
	l = Founded(t, h, Ring(t))
	for i := range 8 {
		c := Issue(Start, time.Hour, 30*time.Second)
		late[i] = SessionOf(c)
		Commit(t, l, c)
	}
	var once sync.Once
	h.Plan(func(batch []ledger.Record) Fault {
		if _, ok := batch[0].Event.Body.(event.SessionsRevoked); ok {
			once.Do(func() {
				var receipts []ledger.Record
				for _, i := range []int{2, 5} {
					receipts = append(receipts, record(Plain("", event.SessionConfirmed{Session: late[i], R: []byte("r")})))
				}
				if _, err := store.Append(context.Background(), receipts); err != nil {
					t.Error(err)
				}
			})
		}
		return FaultNone
	})
	swept, err := l.EndUnreceipted(t.Context(), Start.Add(time.Minute), 100, "no receipt")
	if len(swept) != 6 || err != nil {
		t.Fatalf("%d swept: %v", len(swept), err)
	}
	found, err := l.Sessions(t.Context(), ledger.SessionQuery{States: []string{"confirmed"}})
	if len(found) != 2 || err != nil {
		t.Errorf("%d confirmed: %v", len(found), err)
	}
}

func invalid(t *testing.T, store ledger.Store) {
	l := Founded(t, store, Ring(t))
	size, err := l.Size(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	noBlob := SecretVersion(Secret, 2)
	noBlob.Blob = nil
	otherBlob := SecretVersion(Secret, 2)
	otherBlob.Blob.Data = []byte("other")
	otherKey := SecretVersion(Secret, 2)
	otherKey.Blob.Key = "other"
	extraBlob := Issue(Start, time.Hour, 0)
	extraBlob.Blob = otherBlob.Blob
	noKey := Issue(Start, time.Hour, 0)
	noKey.Request.Key = ""
	endless := Issue(Start, time.Hour, 0)
	endless.Counters = []ledger.Counter{{Key: "a", Window: Start, Max: 1}}
	noText := Plain("", event.DecisionDenied{Principal: "\xff"})
	for i, c := range []ledger.Commit{{}, {Event: event.Event{Body: event.Genesis{}}}, noBlob, otherBlob, otherKey, extraBlob, noKey, endless, noText} {
		if _, err := l.Commit(t.Context(), c); err == nil || errors.Is(err, ledger.ErrUnavailable) {
			t.Errorf("commit %d: %v", i, err)
		}
	}
	if n, err := l.Size(t.Context()); n != size || err != nil {
		t.Errorf("size %d (%v), want %d", n, err, size)
	}
}

func cacheFollows(t *testing.T, store ledger.Store) {
	l := Founded(t, store, Ring(t))
	ctx := t.Context()
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			last := uint64(0)
			for {
				r, seq, err := l.ActiveRevision(ctx)
				if err != nil || seq == 0 || r.Sequence < last {
					t.Errorf("revision %d at %d after %d: %v", r.Sequence, seq, last, err)
					return
				}
				last = r.Sequence
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	active, _, err := l.ActiveRevision(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(2); i < 40; i++ {
		c := Revision(i, active.Digest, fmt.Appendf(nil, "policy %d", i))
		res := Commit(t, l, c)
		var seq int64
		if active, seq, err = l.ActiveRevision(ctx); err != nil || active.Sequence != i || seq != res.Index+1 {
			t.Fatalf("revision %d at %d after the commit of %d: %v", active.Sequence, seq, i, err)
		}
		if _, _, err := l.Secret(ctx, fmt.Sprintf("demo/new%d", i)); !errors.Is(err, ledger.ErrNotFound) {
			t.Fatal(err)
		}
		Commit(t, l, SecretVersion(fmt.Sprintf("demo/new%d", i), 1))
		if _, _, err := l.Secret(ctx, fmt.Sprintf("demo/new%d", i)); err != nil {
			t.Fatalf("a secret that was missing before it was put: %v", err)
		}
	}
	close(stop)
	readers.Wait()
	list, err := l.Revisions(ctx, 5)
	if err != nil || len(list) != 5 || list[0].Sequence != 39 || list[4].Sequence != 35 {
		t.Errorf("revisions %v: %v", list, err)
	}
}

func notifies(t *testing.T, store ledger.Store) {
	l := Founded(t, store, Ring(t))
	size, more := l.Committed()
	if n, err := l.Size(t.Context()); n != size || err != nil {
		t.Fatalf("size %d (%v), committed %d", n, err, size)
	}
	select {
	case <-more:
		t.Fatal("notified without a commit")
	default:
	}
	Commit(t, l, Issue(Start, time.Hour, 0))
	select {
	case <-more:
	default:
		t.Fatal("a commit returned before it was notified")
	}
	if now, _ := l.Committed(); now != size+1 {
		t.Errorf("%d committed, want %d", now, size+1)
	}
}
