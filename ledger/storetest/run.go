package storetest

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// Run is what every implementation of ledger.Store passes; open returns an empty one that lasts as long as
// the test.
func Run(t *testing.T, open func(t testing.TB) ledger.Store) {
	for name, test := range map[string]func(*suite){
		"Empty": (*suite).empty, "IndexesWithoutGaps": (*suite).indexes, "Preconditions": (*suite).preconditions,
		"Counters": (*suite).counters, "Requests": (*suite).requests, "Blobs": (*suite).blobs, "RoundBlobs": (*suite).roundBlobs, "SubjectKeys": (*suite).subjects,
		"RefusedLeavesNothing": (*suite).refused, "SessionQueries": (*suite).queries, "SnapshotStays": (*suite).snapshot,
		"EventIDsOnce": (*suite).eventIDs, "RecoverKeepsAll": (*suite).recovers, "Listing": (*suite).listing, "Closed": (*suite).closed,
		"Questions": (*suite).questions,
		"Erasures":  (*suite).erasures,
	} {
		t.Run(name, func(t *testing.T) {
			test(&suite{t, open(t)})
		})
	}
}

type suite struct {
	*testing.T
	store ledger.Store
}

// record makes a store's record of a commit; a store never looks into bodies.
func record(c ledger.Commit) ledger.Record {
	body := make([]byte, 64)
	_, _ = rand.Read(body)
	return ledger.Record{Commit: c, Leaf: event.NewLeaf(body, event.NewSalt(), c.Reply, event.NewSalt()), Body: body}
}

func records(commits ...ledger.Commit) []ledger.Record {
	out := make([]ledger.Record, len(commits))
	for i, c := range commits {
		out[i] = record(c)
	}
	return out
}

func (s *suite) append(batch ...ledger.Record) []ledger.Outcome {
	s.Helper()
	out, err := s.store.Append(s.Context(), batch)
	if err != nil {
		s.Fatal(err)
	}
	if len(out) != len(batch) {
		s.Fatalf("%d outcomes for %d records", len(out), len(batch))
	}
	return out
}

// done appends commits, all of which have to succeed.
func (s *suite) done(commits ...ledger.Commit) []ledger.Outcome {
	s.Helper()
	out := s.append(records(commits...)...)
	for i, o := range out {
		if o.Err != nil {
			s.Fatalf("commit %d, %s: %v", i, commits[i].Event.Body.EventType(), o.Err)
		}
	}
	return out
}

// want appends one commit and compares its outcome's error.
func (s *suite) want(c ledger.Commit, err error) {
	s.Helper()
	if out := s.append(record(c)); !errors.Is(out[0].Err, err) {
		s.Fatalf("%s: %v, want %v", c.Event.Body.EventType(), out[0].Err, err)
	}
}

func (s *suite) view(f func(v ledger.Snapshot)) {
	s.Helper()
	v, err := s.store.Snapshot(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	f(v)
	if err := v.Close(); err != nil {
		s.Fatal(err)
	}
}

func (s *suite) size() (n int64) {
	s.Helper()
	s.view(func(v ledger.Snapshot) {
		var err error
		if n, err = v.Size(s.Context()); err != nil {
			s.Fatal(err)
		}
	})
	return n
}

func (s *suite) row(key ledger.RowKey) (row ledger.Row) {
	s.Helper()
	s.view(func(v ledger.Snapshot) {
		var err error
		if row, err = v.Row(s.Context(), key); err != nil && !errors.Is(err, ledger.ErrNotFound) {
			s.Fatal(err)
		}
	})
	return row
}

func (s *suite) empty() {
	ctx := s.Context()
	s.view(func(v ledger.Snapshot) {
		_, row := v.Row(ctx, ledger.RowKey{Kind: ledger.KindSecret, Key: "x"})
		_, session := v.Row(ctx, ledger.RowKey{Kind: ledger.KindSession, Key: "x"})
		_, request := v.Request(ctx, "x")
		_, blob := v.Blob(ctx, "x")
		_, subject := v.SubjectKey(ctx, "x")
		_, find := v.Find(ctx, event.NewID(Start))
		for i, err := range []error{row, session, request, blob, subject, find} {
			if !errors.Is(err, ledger.ErrNotFound) {
				s.Errorf("look-up %d: %v, want ErrNotFound", i, err)
			}
		}
		events, err := v.Events(ctx, 0, 10)
		if n, sizeErr := v.Size(ctx); n != 0 || len(events) != 0 || err != nil || sizeErr != nil {
			s.Errorf("size %d, events %v: %v, %v", n, events, err, sizeErr)
		}
	})
}

func (s *suite) indexes() {
	s.done(Foundation()...)
	next := s.size()
	var all []ledger.Record
	for i := range 20 {
		batch := records(Issue(Start, time.Hour, 0), Genesis(), Issue(Start, time.Hour, 0)) // the second one is refused
		if i%3 == 0 {
			batch = append(batch, record(Plain("", event.KeyRetired{KeyID: "unknown"})), record(Issue(Start, time.Hour, 0)))
		}
		for j, o := range s.append(batch...) {
			if j == 1 || j == 3 {
				if !errors.Is(o.Err, ledger.ErrTransition) {
					s.Fatalf("record %d: %v", j, o.Err)
				}
				continue
			}
			if o.Err != nil || o.Index != next {
				s.Fatalf("record %d has index %d and error %v, want index %d", j, o.Index, o.Err, next)
			}
			next++
			all = append(all, batch[j])
		}
	}
	s.view(func(v ledger.Snapshot) {
		got, err := v.Events(s.Context(), next-int64(len(all)), ledger.MaxPage)
		if err != nil || len(got) != len(all) {
			s.Fatalf("%d events: %v", len(got), err)
		}
		leaves, err := v.Leaves(s.Context(), next-int64(len(all)), ledger.MaxPage)
		if err != nil || len(leaves) != len(all) {
			s.Fatalf("%d leaves: %v", len(leaves), err)
		}
		for i, e := range got {
			if r := all[i]; e.Index != next-int64(len(all))+int64(i) || e.ID != r.Event.ID || e.Leaf != r.Leaf || string(e.Body) != string(r.Body) || e.Subject != r.Subject {
				s.Fatalf("event %d is not the one that was appended", e.Index)
			}
			if l := leaves[i]; l.Index != e.Index || l.Leaf != e.Leaf {
				s.Fatalf("leaf %d is not that of event %d", l.Index, e.Index)
			}
			found, err := v.Find(s.Context(), e.ID)
			if err != nil || found.Index != e.Index || found.Leaf != e.Leaf {
				s.Fatalf("find event %d: %d, %v", e.Index, found.Index, err)
			}
		}
	})
}

func (s *suite) preconditions() {
	s.done(Foundation()...)
	secret := ledger.RowKey{Kind: ledger.KindSecret, Key: Secret}
	none := ledger.RowKey{Kind: ledger.KindSecret, Key: "demo/none"}
	at := s.row(secret).Seq
	need := func(c ledger.Commit, p ...ledger.Precondition) ledger.Commit {
		c.Require = p
		return c
	}
	denied := func() ledger.Commit { return Plain("", event.DecisionDenied{Principal: Principal}) }
	s.want(need(denied(), ledger.Precondition{RowKey: secret, Seq: at}, ledger.Precondition{RowKey: none, Seq: 0}), nil)
	s.want(need(denied(), ledger.Precondition{RowKey: secret, Seq: at + 1}), ledger.ErrPrecondition)
	s.want(need(denied(), ledger.Precondition{RowKey: secret, Seq: 0}), ledger.ErrPrecondition)
	s.want(need(denied(), ledger.Precondition{RowKey: none, Seq: 1}), ledger.ErrPrecondition)
	// Within a batch, a record sees what those before it changed.
	out := s.append(
		record(need(SecretVersion(Secret, 2), ledger.Precondition{RowKey: secret, Seq: at})),
		record(need(denied(), ledger.Precondition{RowKey: secret, Seq: at})),
		record(need(SecretVersion("demo/none", 1), ledger.Precondition{RowKey: none})),
		record(need(denied(), ledger.Precondition{RowKey: none})),
	)
	for i, want := range []error{nil, ledger.ErrPrecondition, nil, ledger.ErrPrecondition} {
		if !errors.Is(out[i].Err, want) {
			s.Errorf("record %d: %v, want %v", i, out[i].Err, want)
		}
	}
	if got := s.row(secret).Seq; got != out[0].Index+1 {
		s.Errorf("the row is at %d, want %d", got, out[0].Index+1)
	}
	if len(out[0].Changed) != 1 || out[0].Changed[0].RowKey != secret || out[0].Changed[0].Seq != out[0].Index+1 {
		s.Errorf("changed rows: %v", out[0].Changed)
	}
}

func (s *suite) counters() {
	s.done(Foundation()...)
	counted := func(key string, window time.Time, limit uint32) ledger.Commit {
		c := Issue(Start, time.Hour, 0)
		c.Counters = []ledger.Counter{{Key: key, Window: window, Length: time.Minute, Max: limit}}
		return c
	}
	s.done(counted("a", Start, 3), counted("a", Start, 3))
	refused := counted("a", Start, 3)
	refused.Require = []ledger.Precondition{{RowKey: ledger.RowKey{Kind: ledger.KindSecret, Key: Secret}, Seq: 999}}
	s.want(refused, ledger.ErrPrecondition)
	out := s.append(record(counted("a", Start, 3)), record(counted("a", Start, 3)), record(counted("a", Start.Add(time.Minute), 1)), record(counted("b", Start, 1)))
	for i, want := range []error{nil, ledger.ErrLimit, nil, nil} {
		if !errors.Is(out[i].Err, want) {
			s.Errorf("record %d: %v, want %v", i, out[i].Err, want)
		}
	}
	s.want(counted("a", Start, 0), ledger.ErrLimit)
	twice := counted("c", Start, 1)
	twice.Counters = append(twice.Counters, twice.Counters[0])
	s.want(twice, ledger.ErrLimit)
	// A window that is over is swept, one that lasts is not.
	if n, err := s.store.Sweep(s.Context(), Start.Add(90*time.Second), 100); n != 2 || err != nil {
		s.Errorf("swept %d: %v", n, err)
	}
	s.want(counted("a", Start.Add(time.Minute), 1), ledger.ErrLimit)
	s.want(counted("a", Start, 1), nil)
}

func (s *suite) requests() {
	s.done(Foundation()...)
	first := Issue(Start, time.Minute, 0)
	first.Counters = []ledger.Counter{{Key: "a", Window: Start, Length: time.Minute, Max: 1}}
	out := s.done(first)
	s.view(func(v ledger.Snapshot) {
		got, err := v.Request(s.Context(), first.Request.Key)
		if err != nil || got.Owner != first.Request.Owner || string(got.Reply) != string(first.Request.Reply) ||
			!got.Expires.Equal(first.Request.Expires) || got.Session != first.Request.Session || got.Index != out[0].Index {
			s.Errorf("request: %v, %v", got, err)
		}
	})
	again := Issue(Start, time.Minute, 0)
	again.Request.Key = first.Request.Key
	s.want(again, ledger.ErrDuplicateRequest)
	// That it was answered before goes before whatever else there is to say.
	again.Counters = first.Counters
	s.want(again, ledger.ErrDuplicateRequest)
	again.Require = []ledger.Precondition{{RowKey: ledger.RowKey{Kind: ledger.KindSecret, Key: Secret}, Seq: 999}}
	s.want(again, ledger.ErrDuplicateRequest)
	s.want(ledger.Commit{Event: Genesis().Event, Request: again.Request}, ledger.ErrDuplicateRequest)

	refused := Issue(Start, time.Hour, 0)
	refused.Require = again.Require
	s.want(refused, ledger.ErrPrecondition)
	refused.Require = nil
	twin := Issue(Start, time.Hour, 0)
	twin.Request.Key = refused.Request.Key
	empty := Issue(Start, time.Hour, 0)
	empty.Request.Reply = nil
	both := s.append(record(refused), record(twin), record(empty))
	if both[0].Err != nil || !errors.Is(both[1].Err, ledger.ErrDuplicateRequest) || both[2].Err != nil {
		s.Errorf("twins: %v, %v, %v", both[0].Err, both[1].Err, both[2].Err)
	}
	if n, err := s.store.Sweep(s.Context(), Start.Add(2*time.Minute), 100); n != 2 || err != nil { // the request and its counter
		s.Errorf("swept %d: %v", n, err)
	}
	again.Require, again.Counters = nil, nil
	s.want(again, nil)
	s.want(twin, ledger.ErrDuplicateRequest)
}

func (s *suite) blobs() {
	s.done(Foundation()...)
	c := SecretVersion(Secret, 2)
	refused := c
	refused.Require = []ledger.Precondition{{RowKey: ledger.RowKey{Kind: ledger.KindSecret, Key: Secret}, Seq: 999}}
	s.want(refused, ledger.ErrPrecondition)
	s.view(func(v ledger.Snapshot) {
		if _, err := v.Blob(s.Context(), c.Blob.Key); !errors.Is(err, ledger.ErrNotFound) {
			s.Errorf("blob of a refused record: %v", err)
		}
	})
	s.done(c)
	s.view(func(v ledger.Snapshot) {
		if got, err := v.Blob(s.Context(), c.Blob.Key); string(got) != string(c.Blob.Data) || err != nil {
			s.Errorf("blob %q: %v", got, err)
		}
	})
	other := SecretVersion(Secret, 3)
	other.Blob.Key = c.Blob.Key
	s.want(other, ledger.ErrTransition)
	first := event.Digest(Revision(1, event.Digest{}, []byte("policy 1")).Blob.Digest)
	second := Revision(2, first, []byte("policy 2"))
	s.done(second, Revision(3, second.Blob.Digest, []byte("policy 1"))) // its archive is there already
}

func (s *suite) subjects() {
	s.done(Foundation()...)
	under := func(wrapped string) ledger.Record {
		r := record(Plain("", event.DecisionDenied{Principal: Principal}))
		r.Event.Subject, r.Subject = Principal, Principal
		if wrapped != "" {
			r.NewSubject = []byte(wrapped)
		}
		return r
	}
	lacking := under("")
	refused := under("key 0")
	refused.Require = []ledger.Precondition{{RowKey: ledger.RowKey{Kind: ledger.KindSecret, Key: Secret}, Seq: 999}}
	out := s.append(lacking, refused, under("key 1"), under("key 1"), under("key 2"), under(""))
	for i, want := range []error{ledger.ErrSubjectKey, ledger.ErrPrecondition, nil, nil, ledger.ErrSubjectKey, nil} {
		if !errors.Is(out[i].Err, want) {
			s.Errorf("record %d: %v, want %v", i, out[i].Err, want)
		}
	}
	out = s.append(under("key 3"), under("key 1"), under(""))
	for i, want := range []error{ledger.ErrSubjectKey, nil, nil} {
		if !errors.Is(out[i].Err, want) {
			s.Errorf("record %d: %v, want %v", i, out[i].Err, want)
		}
	}
	s.view(func(v ledger.Snapshot) {
		if got, err := v.SubjectKey(s.Context(), Principal); string(got) != "key 1" || err != nil {
			s.Errorf("key %q: %v", got, err)
		}
	})
}

func (s *suite) refused() {
	s.done(Foundation()...)
	short, long := Issue(Start, time.Minute, 0), Issue(Start, time.Hour, 0)
	s.done(short, long)
	ids := []event.ID{SessionOf(short), SessionOf(long)}
	before := s.row(ledger.RowKey{Kind: ledger.KindSession, Key: ids[0].String()})
	size := s.size()
	c := ledger.Commit{Event: event.New(Start.Add(time.Minute), "", event.SessionsExpired{Sessions: ids})}
	c.Request = &ledger.Request{Key: "r", Expires: Start}
	s.want(c, ledger.ErrTransition) // the second one lives on
	if after := s.row(before.RowKey); after.Seq != before.Seq || string(after.Value) != string(before.Value) || s.size() != size {
		s.Error("a refused event changed something")
	}
	s.view(func(v ledger.Snapshot) {
		if _, err := v.Request(s.Context(), "r"); !errors.Is(err, ledger.ErrNotFound) {
			s.Errorf("request of a refused record: %v", err)
		}
	})
	s.done(ledger.Commit{Event: event.New(Start.Add(time.Minute), "", event.SessionsExpired{Sessions: ids[:1]})})
}

func (s *suite) queries() {
	s.done(Foundation()...)
	s.done(SecretVersion("demo/other", 1))
	var ids []event.ID
	for i := range 12 {
		c := Issue(Start, time.Duration(i+1)*time.Minute, time.Duration(12-i)*time.Minute/2)
		body := c.Event.Body.(event.SessionIssued)
		body.Principal = fmt.Sprintf("spiffe://dev.bulla.test/p%d", i%2)
		body.Secret = []string{Secret, Secret, "demo/other"}[i%3]
		body.Device = []string{"", "device-1", "", "device-2"}[i%4]
		c.Event.Body = body
		ids = append(ids, body.Session)
		s.done(c)
	}
	late := func(body event.Body, at time.Duration) ledger.Commit {
		return ledger.Commit{Event: event.New(Start.Add(at), "", body)}
	}
	s.done(late(event.SessionConfirmed{Session: ids[11], R: []byte("r")}, 0), late(event.SessionRevoked{Session: ids[10], Reason: "test"}, 0),
		late(event.SessionsExpired{Sessions: ids[:1]}, time.Minute))
	live := []string{string(session.Issued), string(session.Confirmed), string(session.Unconfirmed)}
	for _, c := range []struct {
		name string
		q    ledger.SessionQuery
		want []int
	}{
		{"all", ledger.SessionQuery{}, []int{11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0}},
		{"page", ledger.SessionQuery{Max: 3}, []int{11, 10, 9}},
		{"next page", ledger.SessionQuery{Max: 3, Before: ids[9].String()}, []int{8, 7, 6}},
		{"after the end", ledger.SessionQuery{Before: ids[0].String()}, nil},
		{"principal", ledger.SessionQuery{Principal: "spiffe://dev.bulla.test/p1"}, []int{11, 9, 7, 5, 3, 1}},
		{"secret", ledger.SessionQuery{Secret: "demo/other"}, []int{11, 8, 5, 2}},
		{"pair", ledger.SessionQuery{Secret: "demo/other", Principal: "spiffe://dev.bulla.test/p0"}, []int{8, 2}},
		{"device", ledger.SessionQuery{Device: "device-1"}, []int{9, 5, 1}},
		{"unknown", ledger.SessionQuery{Device: "device-3"}, nil},
		{"live of device", ledger.SessionQuery{Device: "device-2", States: live}, []int{11, 7, 3}},
		{"state", ledger.SessionQuery{States: []string{"revoked", "expired"}}, []int{10, 0}},
		{"due", ledger.SessionQuery{ExpiresBefore: Start.Add(3 * time.Minute)}, []int{1, 2}},
		{"due, one", ledger.SessionQuery{ExpiresBefore: Start.Add(3 * time.Minute), Max: 1}, []int{1}},
		{"all due", ledger.SessionQuery{ExpiresBefore: Start.Add(time.Hour)}, []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 11}},
		{"receipt", ledger.SessionQuery{ReceiptBefore: Start.Add(4 * time.Minute)}, []int{9, 8, 7, 6, 5, 4}},
		{"injection", ledger.SessionQuery{Principal: "' OR 1=1 --"}, nil},
	} {
		s.view(func(v ledger.Snapshot) {
			rows, err := v.Sessions(s.Context(), c.q)
			var got []int
			for _, r := range rows {
				id, _ := event.ParseID(r.Key)
				got = append(got, slices.Index(ids, id))
			}
			if err != nil || !slices.Equal(got, c.want) {
				s.Errorf("%s: %v (%v), want %v", c.name, got, err, c.want)
			}
		})
	}
}

func (s *suite) snapshot() {
	s.done(Foundation()...)
	before, ctx := s.size(), s.Context()
	v, err := s.store.Snapshot(ctx)
	if err != nil {
		s.Fatal(err)
	}
	defer v.Close() //nolint:errcheck // only read from
	if n, err := v.Size(ctx); n != before || err != nil {
		s.Fatal(n, err)
	}
	c := Issue(Start, time.Hour, 0)
	s.done(c)
	if n, err := v.Size(ctx); n != before || err != nil {
		s.Errorf("the snapshot sees %d events (%v), want %d", n, err, before)
	}
	if _, err := v.Row(ctx, ledger.RowKey{Kind: ledger.KindSession, Key: SessionOf(c).String()}); !errors.Is(err, ledger.ErrNotFound) {
		s.Errorf("the snapshot sees a later session: %v", err)
	}
	if s.size() != before+1 {
		s.Error("a new snapshot does not see the event")
	}
}

func (s *suite) eventIDs() {
	s.done(Foundation()...)
	size := s.size()
	c := Plain("", event.DecisionDenied{Principal: Principal})
	if out := s.append(record(c), record(c)); out[0].Err != nil || out[1].Err == nil {
		s.Errorf("one event twice in a batch: %v, %v", out[0].Err, out[1].Err)
	}
	// A later batch may fail as a whole, as long as it says that nothing was applied.
	out, err := s.store.Append(s.Context(), []ledger.Record{record(c)})
	if err == nil && out[0].Err == nil || err != nil && !errors.Is(err, ledger.ErrNotApplied) {
		s.Errorf("one event in two batches: %v", err)
	}
	if s.size() != size+1 {
		s.Errorf("%d events, want %d", s.size(), size+1)
	}
	s.done(Issue(Start, time.Hour, 0))
}

func (s *suite) recovers() {
	s.done(Foundation()...)
	c := Issue(Start, time.Hour, 0)
	s.done(c)
	size := s.size()
	twin := c
	twin.Event.ID, twin.Request = event.NewID(Start), nil
	s.want(twin, ledger.ErrTransition) // its session exists
	for range 3 {
		if err := s.store.Recover(s.Context()); err != nil {
			s.Fatal(err)
		}
		if s.size() != size || s.row(ledger.RowKey{Kind: ledger.KindSession, Key: SessionOf(c).String()}).Seq == 0 {
			s.Fatal("Recover lost something")
		}
	}
	s.want(c, ledger.ErrDuplicateRequest)
	s.want(twin, ledger.ErrTransition)
	if out := s.done(Issue(Start, time.Hour, 0)); out[0].Index != size {
		s.Errorf("index %d after Recover, want %d", out[0].Index, size)
	}
}

func (s *suite) listing() {
	s.done(Genesis())
	var want []string
	for i := range 25 {
		want = append(want, fmt.Sprintf("demo/s%02d", i))
		s.done(SecretVersion(want[i], 1))
	}
	s.view(func(v ledger.Snapshot) {
		var got []string
		for after := ""; ; after = got[len(got)-1] {
			rows, err := v.Rows(s.Context(), ledger.KindSecret, after, 7)
			if err != nil {
				s.Fatal(err)
			}
			for _, r := range rows {
				if r.Fault != "" || r.Kind != ledger.KindSecret || len(r.Value) == 0 || r.Seq == 0 {
					s.Errorf("row %v", r)
				}
				got = append(got, r.Key)
			}
			if len(rows) == 0 {
				break
			}
		}
		if !slices.Equal(got, want) {
			s.Errorf("listed %v", got)
		}
	})
}

func (s *suite) closed() {
	s.done(Foundation()...)
	if err := s.store.Close(); err != nil {
		s.Fatal(err)
	}
	if _, err := s.store.Append(s.Context(), records(Issue(Start, time.Hour, 0))); !errors.Is(err, ledger.ErrNotApplied) {
		s.Errorf("append after Close: %v", err)
	}
	if _, err := s.store.Snapshot(s.Context()); err == nil {
		s.Error("snapshot after Close")
	}
}
