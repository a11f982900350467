package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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
	if err != nil || secret.Exposure != "open" || !secret.Versions[0].Exposed {
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
	if e.Leaf != res.Leaf || e.ReplySalt != res.ReplySalt || e.Leaf != event.NewLeaf(e.Encoding, e.EventSalt, c.Reply, e.ReplySalt) || e.Event.ID != c.Event.ID {
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
	release := make(chan struct{})
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
	close(release)
	r := record(Plain(subject, event.DecisionDenied{Principal: subject}))
	encoding, err := r.Event.Encode()
	if err != nil {
		t.Fatal(err)
	}
	salts := [2]event.Salt{event.NewSalt(), event.NewSalt()}
	plain := append(append(append([]byte{}, salts[0][:]...), salts[1][:]...), encoding...)
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
		Commit(t, l, Issue(Start, time.Duration(1+i%3)*time.Minute, 30*time.Second))
	}
	late, err := l.MarkUnconfirmed(ctx, Start.Add(30*time.Second), 100)
	if len(late) != 30 || err != nil {
		t.Fatalf("%d unconfirmed: %v", len(late), err)
	}
	if late, err = l.MarkUnconfirmed(ctx, Start.Add(31*time.Second), 100); len(late) != 0 || err != nil {
		t.Fatalf("%d unconfirmed again: %v", len(late), err)
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
		if _, ok := batch[0].Event.Body.(event.SessionsUnconfirmed); ok {
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
	swept, err := l.MarkUnconfirmed(t.Context(), Start.Add(time.Minute), 100)
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
	for i := uint64(2); i < 100; i++ {
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
	if err != nil || len(list) != 5 || list[0].Sequence != 99 || list[4].Sequence != 95 {
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

// verdict compares what a caller was told with what the ledger holds.
func verdict(ctx context.Context, l *ledger.Ledger, c ledger.Commit, res ledger.Result, told error) error {
	found, err := l.Find(ctx, c.Event.ID)
	there := err == nil
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return err
	}
	switch {
	case told == nil && (!there || found.Index != res.Index || found.Leaf != res.Leaf || found.ReplySalt != res.ReplySalt):
		return fmt.Errorf("acknowledged as event %d, but it is not there", res.Index)
	case told != nil && there && (errors.Is(told, ledger.ErrNotApplied) || !errors.Is(told, ledger.ErrUnavailable)):
		return fmt.Errorf("said not to be applied, but it is event %d: %w", found.Index, told)
	}
	if c.Request != nil && told == nil {
		if r, err := l.Request(ctx, c.Request.Key); err != nil || r.Index != res.Index {
			return fmt.Errorf("its request is not there: %w", err)
		}
	}
	return nil
}

// load lets n callers issue sessions and confirm them, and returns how many answers of each sort there were.
func load(t *testing.T, l *ledger.Ledger, n, each int, change func(*ledger.Commit)) (done, refused, unknown int) {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex // guards the counts
	for range n {
		wg.Go(func() {
			for range each {
				c := Issue(Start, time.Hour, time.Minute)
				if change != nil {
					change(&c)
				}
				told := commitAndJudge(t, l, c)
				if told == nil {
					told = commitAndJudge(t, l, Plain(Principal, event.SessionConfirmed{Session: SessionOf(c), R: []byte("r")}))
				}
				mu.Lock()
				switch {
				case told == nil:
					done++
				case errors.Is(told, ledger.ErrUnavailable) && !errors.Is(told, ledger.ErrNotApplied):
					unknown++
				default:
					refused++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return done, refused, unknown
}

func commitAndJudge(t *testing.T, l *ledger.Ledger, c ledger.Commit) error {
	res, told := l.Commit(t.Context(), c)
	if err := verdict(t.Context(), l, c, res, told); err != nil {
		t.Errorf("%s: %v", c.Event.Body.EventType(), err)
	}
	return told
}

// Each fault, met at random by half of the batches of 8 callers.
func abuseA27(t *testing.T, store ledger.Store) {
	h := NewHostile(store, func([]ledger.Record) Fault { return FaultNone })
	l := Founded(t, h, Ring(t))
	for _, fault := range Faults() {
		source := rand.New(rand.NewPCG(1, uint64(fault)))
		h.Plan(func([]ledger.Record) Fault {
			if source.IntN(2) == 0 {
				return fault
			}
			return FaultNone
		})
		done, refused, unknown := load(t, l, 8, 10, nil)
		t.Logf("%v: %d done, %d refused, %d unknown, %d appends so far", fault, done, refused, unknown, h.Appends())
		if unknown != 0 {
			t.Errorf("%v: %d outcomes were not found out, although the store recovered", fault, unknown)
		}
		if done == 0 {
			t.Errorf("%v: nothing was done", fault)
		}
	}
	h.Plan(func([]ledger.Record) Fault { return FaultNone })
	MustCheck(t, l)
	if err := l.Health(t.Context()); err != nil {
		t.Error(err)
	}
}

// A disk that is full stops everything, and health says so; when there is room again the ledger goes on by
// itself.
func abuseA27Full(t *testing.T, store ledger.Store) {
	h := NewHostile(store, func([]ledger.Record) Fault { return FaultFull })
	ring := Ring(t)
	h.Plan(func([]ledger.Record) Fault { return FaultNone })
	l := Founded(t, h, ring)
	h.Plan(func([]ledger.Record) Fault { return FaultFull })
	c := Issue(Start, time.Hour, 0)
	if told := commitAndJudge(t, l, c); !errors.Is(told, ledger.ErrUnavailable) || !errors.Is(told, ledger.ErrNotApplied) {
		t.Fatalf("commit on a full disk: %v", told)
	}
	appends := h.Appends()
	done, _, unknown := load(t, l, 8, 3, nil)
	if done != 0 || unknown != 0 || h.Appends() != appends {
		t.Errorf("%d done, %d unknown, %d appends on a full disk", done, unknown, h.Appends()-appends)
	}
	if err := l.Health(t.Context()); !errors.Is(err, ledger.ErrUnavailable) {
		t.Errorf("health: %v", err)
	}
	if _, err := l.Size(t.Context()); err != nil {
		t.Errorf("reading on a full disk: %v", err)
	}
	h.Plan(func([]ledger.Record) Fault { return FaultNone })
	h.Heal()
	retry := time.NewTicker(10 * time.Millisecond)
	defer retry.Stop()
	for l.Health(t.Context()) != nil {
		select {
		case <-t.Context().Done():
			t.Fatal("it did not recover")
		case <-retry.C:
		}
	}
	c.Event.ID = event.NewID(Start)
	Commit(t, l, c)
	MustCheck(t, l)
}

// 15,000 sessions that end together are recorded in chunks, and commits get in between.
func abuseA33(t *testing.T, store ledger.Store) {
	n := 15000
	if _, memory := store.(*Memory); memory || testing.Short() {
		n = 1500
	}
	l := Founded(t, store, Ring(t))
	for begun := 0; begun < n; begun += 500 {
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				for range 10 {
					if _, err := l.Commit(t.Context(), Issue(Start, time.Minute, 0)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
	now := Start.Add(time.Minute)
	swept := make(chan int, 1)
	go func() {
		total := 0
		for {
			n, err := l.ExpireSessions(t.Context(), now, 250)
			if err != nil {
				t.Error(err)
			}
			if total += n; n < 250 {
				swept <- total
				return
			}
		}
	}()
	delivered, slowest := 0, time.Duration(0)
	for {
		select {
		case total := <-swept:
			if total != n {
				t.Errorf("%d of %d sessions expired", total, n)
			}
			if delivered < n/1000 {
				t.Errorf("only %d deliveries got in between", delivered)
			}
			t.Logf("%d deliveries meanwhile, the slowest took %v", delivered, slowest)
			MustCheck(t, l)
			return
		default:
		}
		begin := time.Now()
		Commit(t, l, Issue(now, time.Hour, 0))
		slowest = max(slowest, time.Since(begin))
		delivered++
		if err := l.Health(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// What a decision relied on changes between decision and commit.
func abuseA46(t *testing.T, store ledger.Store) {
	l := Founded(t, store, Ring(t))
	ctx := t.Context()
	Commit(t, l, Issue(Start, time.Hour, 0)) // marks the exposure
	basis := func() []ledger.Precondition {
		_, secret, err1 := l.Secret(ctx, Secret)
		_, active, err2 := l.ActiveRevision(ctx)
		_, device, err3 := l.Device(ctx, Device)
		_, pass, err4 := l.Passport(ctx, ledger.InstanceKey(Principal, Instance))
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			t.Fatal(err)
		}
		return []ledger.Precondition{
			{RowKey: ledger.RowKey{Kind: ledger.KindSecret, Key: Secret}, Seq: secret},
			{RowKey: ledger.RowKey{Kind: ledger.KindRevision, Key: ledger.ActiveRevision}, Seq: active},
			{RowKey: ledger.RowKey{Kind: ledger.KindDevice, Key: Device}, Seq: device},
			{RowKey: ledger.RowKey{Kind: ledger.KindPassport, Key: ledger.InstanceKey(Principal, Instance)}, Seq: pass},
		}
	}
	active, _, err := l.ActiveRevision(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]ledger.Commit{
		"rotation": SecretVersion(Secret, 2), "promotion": Revision(2, active.Digest, []byte("policy 2")), "appraisal": Appraisal(2),
		"device revoked": Plain(Operator, event.DeviceRevoked{Device: Device, Reason: "test"}),
	} {
		c := Issue(Start, time.Hour, 0)
		c.Require = basis()
		Commit(t, l, change)
		if told := commitAndJudge(t, l, c); !errors.Is(told, ledger.ErrPrecondition) {
			t.Errorf("%s between decision and commit: %v", name, told)
		}
		c.Require = basis()
		Commit(t, l, c)
		c = Issue(Start, time.Hour, 0)
		c.Require = basis()
		Commit(t, l, Issue(Start, time.Hour, 0)) // another delivery changes nothing that this one relies on
		Commit(t, l, c)
	}
	MustCheck(t, l)
}

// 64 deliveries at once past a limit of 20, also when answers are lost.
func abuseA47(t *testing.T, store ledger.Store) {
	h := NewHostile(store, func([]ledger.Record) Fault { return FaultNone })
	l := Founded(t, h, Ring(t))
	for i, fault := range append(Faults(), FaultNone) {
		source := rand.New(rand.NewPCG(2, uint64(fault)))
		h.Plan(func([]ledger.Record) Fault {
			if source.IntN(3) == 0 {
				return fault
			}
			return FaultNone
		})
		key := fmt.Sprintf("limit %d", i)
		before, err := l.Sessions(t.Context(), ledger.SessionQuery{})
		if err != nil {
			t.Fatal(err)
		}
		done, refused, unknown := load(t, l, 64, 1, func(c *ledger.Commit) {
			c.Counters = []ledger.Counter{{Key: key, Window: Start, Length: time.Hour, Max: 20}}
		})
		after, err := l.Sessions(t.Context(), ledger.SessionQuery{})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(after) - len(before); n > 20 || fault == FaultNone && (n != 20 || done != 20 || refused != 44) {
			t.Errorf("%v: %d sessions at a limit of 20 (%d done, %d refused, %d unknown)", fault, n, done, refused, unknown)
		}
	}
	h.Plan(func([]ledger.Record) Fault { return FaultNone })
	MustCheck(t, l)
}

// Whoever follows the indexes sees every event, in order, while 16 callers commit.
func abuseA51(t *testing.T, store ledger.Store) {
	l := Founded(t, store, Ring(t))
	stop, result := make(chan struct{}), make(chan []event.Leaf, 1)
	go func() {
		var leaves []event.Leaf
		for {
			_, more := l.Committed()
			got, err := l.Leaves(t.Context(), int64(len(leaves)), 7)
			if err != nil {
				t.Error(err)
			}
			if leaves = append(leaves, got...); len(got) > 0 {
				continue
			}
			select {
			case <-more:
			case <-stop:
				if size, err := l.Size(t.Context()); err != nil || int64(len(leaves)) >= size {
					result <- leaves
					return
				}
			}
		}
	}()
	load(t, l, 16, 10, nil)
	close(stop)
	leaves := <-result
	if report := MustCheck(t, l); report.Events != int64(len(leaves)) {
		t.Errorf("%d of %d events were seen", len(leaves), report.Events)
	}
	entries, err := l.Events(t.Context(), 0, ledger.MaxPage)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range entries {
		if e.Leaf != leaves[i] {
			t.Fatalf("leaf %d is another one", i)
		}
	}
}
