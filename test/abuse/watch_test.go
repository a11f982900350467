package abuse

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// watcher is a watch by hand.
type watcher struct {
	t      *testing.T
	stream grpc.ServerStreamingClient[bullav1.WatchReply]
}

// watch opens the stream, with the sessions that are said to be held.
func watch(t *testing.T, ctx context.Context, w *rig.Raw, after int64, held ...string) watcher {
	t.Helper()
	w.Challenge(nil)
	in := &bullav1.WatchRequest{After: after}
	for _, id := range held {
		in.Held = append(in.Held, &bullav1.HeldSession{SessionId: id})
	}
	stream, err := w.Broker.Watch(ctx, w.Sign(bullav1.Broker_Watch_FullMethodName, in))
	if err != nil {
		t.Fatal(err)
	}
	return watcher{t, stream}
}

// ready takes what was missed, up to the word that everything was told.
func (w watcher) ready() (missed []*bullav1.WatchReply, at int64) {
	w.t.Helper()
	first := w.next()
	if len(first.GetNextNonce()) != 32 || first.GetWhat() != nil {
		w.t.Fatalf("the first message is %v; want a nonce and nothing else", first)
	}
	for {
		m := w.next()
		if m.GetReady() != nil {
			return missed, m.GetSequence()
		}
		missed = append(missed, m)
	}
}

func (w watcher) next() *bullav1.WatchReply {
	w.t.Helper()
	m, err := w.stream.Recv()
	if err != nil {
		w.t.Fatalf("the watch ended: %v", err)
	}
	return m
}

// revokeAll ends what a request names, and returns the summary.
func revokeAll(t *testing.T, r *rig.Rig, in *bullav1.RevokeRequest) (*bullav1.RevokeSummary, error) {
	t.Helper()
	in.Reason = "a test"
	stream, err := bullav1.NewRevocationsClient(r.Client("security").Conn()).Revoke(t.Context(), in)
	if err != nil {
		return nil, err
	}
	for {
		m, err := stream.Recv()
		if err != nil || m.GetSummary() != nil {
			return m.GetSummary(), err
		}
	}
}

func bySession(id string) *bullav1.RevokeRequest {
	return &bullav1.RevokeRequest{Selector: &bullav1.RevokeRequest_Session{Session: id}}
}

func byPrincipal(id string) *bullav1.RevokeRequest {
	return &bullav1.RevokeRequest{Selector: &bullav1.RevokeRequest_Principal{Principal: id}}
}

// A stream tells of one instance's sessions: a sibling replica and another principal learn nothing of them, neither
// live nor by naming them, and can't confirm for them.
func TestAbuse_A02_watch(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	owner, sibling, stranger := r.Raw("workload"), r.Raw("workload"), r.Raw("stranger")
	delivered, _ := opened(t, owner, "demo/a")
	foreign, unknown := delivered.GetSessionId(), event.NewID(time.Now()).String()

	for name, thief := range map[string]*rig.Raw{"sibling": sibling, "stranger": stranger} {
		for _, id := range []string{foreign, unknown} {
			ctx, end := context.WithCancel(t.Context())
			missed, _ := watch(t, ctx, thief, 0, id).ready()
			if len(missed) != 1 || missed[0].GetEnded().GetState() != "unknown" || missed[0].GetEnded().GetReason() != "this instance has no such session" {
				t.Errorf("%s names %s and is told %v", name, id, missed)
			}
			end()
		}
		alike(t, r, name+" confirms", func() error { return confirmEnd(t, thief, foreign) }, func() error { return confirmEnd(t, thief, unknown) })
	}
	own, others := watch(t, t.Context(), owner, 0, foreign), []watcher{watch(t, t.Context(), sibling, 0), watch(t, t.Context(), stranger, 0)}
	for _, w := range append(others, own) {
		if missed, _ := w.ready(); len(missed) != 0 {
			t.Errorf("told of %v", missed)
		}
	}
	wantCode(t, "confirmed while it lives", confirmEnd(t, owner, foreign), codes.FailedPrecondition, "session")
	mine, _ := opened(t, sibling, "demo/a")
	if _, err := revokeAll(t, r, bySession(foreign)); err != nil {
		t.Fatal(err)
	}
	if m := own.next().GetEnded(); len(m.GetSessionIds()) != 1 || m.GetSessionIds()[0] != foreign || m.GetReason() != "a test" {
		t.Errorf("the owner is told %v", m)
	}
	// The next thing that the sibling hears of is its own session.
	if _, err := revokeAll(t, r, bySession(mine.GetSessionId())); err != nil {
		t.Fatal(err)
	}
	if m := others[0].next().GetEnded(); len(m.GetSessionIds()) != 1 || m.GetSessionIds()[0] != mine.GetSessionId() {
		t.Errorf("the sibling is told %v", m)
	}
	// People: who may not list sessions gets no live view of them, and ends none.
	view, err := bullav1.NewRevocationsClient(stranger.Conn).WatchSessions(t.Context(), &bullav1.WatchSessionsRequest{Principal: stranger.ID})
	if err == nil {
		_, err = view.Recv()
	}
	wantCode(t, "a live view", err, codes.PermissionDenied, "policy")
	for _, dry := range []bool{false, true} {
		stream, err := bullav1.NewRevocationsClient(stranger.Conn).Revoke(t.Context(), &bullav1.RevokeRequest{
			Selector: &bullav1.RevokeRequest_Principal{Principal: owner.ID}, Reason: "x", DryRun: dry,
		})
		if err == nil {
			_, err = stream.Recv()
		}
		wantCode(t, "a revocation", err, codes.PermissionDenied, "policy")
	}
	_, err = bullav1.NewRevocationsClient(r.Client("operator").Conn()).DecideSweep(t.Context(), &bullav1.DecideSweepRequest{Confirm: true, Reason: "x"})
	wantCode(t, "an operator decides on a sweep", err, codes.PermissionDenied, "policy")
}

func confirmEnd(t *testing.T, w *rig.Raw, ids ...string) error {
	t.Helper()
	w.Challenge(nil)
	_, err := w.Broker.ConfirmEnd(t.Context(), w.Sign(bullav1.Broker_ConfirmEnd_FullMethodName, &bullav1.ConfirmEndRequest{SessionIds: ids}))
	return err
}

// Between two streams nothing is lost and nothing told twice.
func TestAbuse_A28_watch_resumes(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	w := r.Raw("workload")
	var ids []string
	for range 4 {
		d, _ := opened(t, w, "demo/a")
		ids = append(ids, d.GetSessionId())
	}
	ctx, end := context.WithCancel(t.Context())
	first := watch(t, ctx, w, 0, ids...)
	if missed, _ := first.ready(); len(missed) != 0 {
		t.Errorf("told of %v", missed)
	}
	if _, err := revokeAll(t, r, bySession(ids[0])); err != nil {
		t.Fatal(err)
	}
	live := first.next()
	if live.GetEnded().GetSessionIds()[0] != ids[0] {
		t.Errorf("told %v", live)
	}
	end()
	for _, id := range ids[1:3] { // while nobody reads
		if _, err := revokeAll(t, r, bySession(id)); err != nil {
			t.Fatal(err)
		}
	}
	r.Put("demo/a", "standard", "b")
	r.Stop()
	r.Run()
	w = r.RawWith("workload", w.Key)
	second := watch(t, t.Context(), w, live.GetSequence(), ids[1:]...)
	missed, at := second.ready()
	var ended []string
	var rotated uint32
	last := live.GetSequence()
	for _, m := range missed {
		if m.GetSequence() < last || m.GetSequence() > at {
			t.Errorf("%v is out of order: after %d, up to %d", m, last, at)
		}
		last = m.GetSequence()
		ended, rotated = append(ended, m.GetEnded().GetSessionIds()...), max(rotated, m.GetRotated().GetVersion())
	}
	if len(ended) != 2 || ended[0] != ids[1] || ended[1] != ids[2] || rotated != 2 {
		t.Errorf("missed %v; want the end of two sessions and version 2", missed)
	}
	// A third one, of an instance that knows all of that, is told nothing; it replaces the second.
	w.Challenge(nil)
	stream, err := w.Broker.Watch(t.Context(), w.Sign(bullav1.Broker_Watch_FullMethodName, &bullav1.WatchRequest{
		After: at, Held: []*bullav1.HeldSession{{SessionId: ids[3], Newest: 2}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	if missed, _ := (watcher{t, stream}).ready(); len(missed) != 0 {
		t.Errorf("told again of %v", missed)
	}
	if _, err := second.stream.Recv(); rig.Refusal(err) == nil || !strings.Contains(err.Error(), "another stream") {
		t.Errorf("the stream that was replaced: %v", err)
	}
	if err := confirmEnd(t, w, ids[:3]...); err != nil {
		t.Fatal(err)
	}
	if err := confirmEnd(t, w, ids[:3]...); err != nil { // again is no error, and no event
		t.Fatal(err)
	}
	if n := len(of[event.SessionsWiped](r.Events())); n != 1 {
		t.Errorf("%d events of one confirmation", n)
	}
	r.Check()
}

// A stream ends with the SVID that it was opened with.
func TestAbuse_A41_watch(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{SVIDTTL: 6 * time.Second})
	w := r.Raw("workload")
	stream := watch(t, t.Context(), w, 0)
	stream.ready()
	_, err := stream.stream.Recv()
	wantCode(t, "the stream of an SVID that has ended", err, codes.Unauthenticated, "identity")
	if time.Now().Before(w.Leaf.NotAfter) {
		t.Errorf("it ended before the SVID")
	}
}

// One principal can't hold more streams than its share, however many instances it makes up; others go on.
func TestAbuse_A42_watchers(t *testing.T) {
	t.Parallel()
	a := rig.Start(t, rig.Config{}).Assemble(rig.Parts{Watchers: 3})
	for range 3 {
		watch(t, t.Context(), a.Raw("workload"), 0).ready()
	}
	extra := watch(t, t.Context(), a.Raw("workload"), 0)
	_, err := extra.stream.Recv()
	wantCode(t, "one more", err, codes.ResourceExhausted, "limit")
	watch(t, t.Context(), a.Raw("stranger"), 0).ready()
	// Too many sessions named at once are refused before any is looked up.
	w := a.Raw("stranger")
	w.Challenge(nil)
	in := new(bullav1.WatchRequest)
	for range 1025 {
		in.Held = append(in.Held, &bullav1.HeldSession{SessionId: event.NewID(time.Now()).String()})
	}
	stream, err := w.Broker.Watch(t.Context(), w.Sign(bullav1.Broker_Watch_FullMethodName, in))
	if err == nil {
		_, err = stream.Recv()
	}
	wantCode(t, "1025 sessions", err, codes.InvalidArgument, "request")
}

// Streams that wait use up nothing of what their principal may have under way.
func TestAbuse_A42_waiting_streams(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	w := r.Raw("workload")
	for range 600 { // more than may be under way
		watch(t, t.Context(), r.Raw("workload"), 0).ready()
	}
	if _, _, err := w.Deliver(t.Context(), "demo/a"); err != nil {
		t.Errorf("a delivery beside 600 streams that wait: %v", err)
	}
}

// A delivery that was decided before a revocation of its principal does not leave after it unseen: it is decided again,
// and what was delivered before is over at once, also for a gated use.
func TestAbuse_A46_revocation_by_selector(t *testing.T) {
	t.Parallel()
	for name, in := range map[string]func(w *rig.Raw) *bullav1.RevokeRequest{
		"principal": func(w *rig.Raw) *bullav1.RevokeRequest { return byPrincipal(w.ID) },
		"secret": func(*rig.Raw) *bullav1.RevokeRequest {
			return &bullav1.RevokeRequest{Selector: &bullav1.RevokeRequest_Secret{Secret: "demo/a"}}
		},
		"trust domain": func(*rig.Raw) *bullav1.RevokeRequest {
			return &bullav1.RevokeRequest{Selector: &bullav1.RevokeRequest_TrustDomain{TrustDomain: rig.TrustDomain}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStale(t)
			s.put("demo/a", "standard")
			w := s.Raw("workload")
			before, _ := opened(t, w, "demo/a")
			s.put("demo/a", "standard") // which is read from the store
			s.between.set(once(func() {
				if _, err := revokeAll(t, s.Rig, in(w)); err != nil {
					t.Error(err)
				}
			}))
			after, _, err := w.Deliver(t.Context(), "demo/a")
			if err != nil {
				t.Fatal(err)
			}
			if got := sessionState(t, s.Rig, before.GetSessionId()); got != "revoked" {
				t.Errorf("the session from before is %s", got)
			}
			if got := sessionState(t, s.Rig, after.GetSessionId()); got != "issued" {
				t.Errorf("the session that was decided after the revocation is %s", got)
			}
			var ordered event.Time
			for _, e := range s.Events() {
				switch b := e.Body.(type) {
				case event.RevocationOrdered:
					ordered = e.Time
				case event.SessionIssued: // decided again: what was decided before the revocation would be older
					if b.Session.String() == after.GetSessionId() && !e.Time.Time().After(ordered.Time()) {
						t.Errorf("the delivery was decided at %s, before the revocation of %s, and left after it", e.Time, ordered)
					}
				}
			}
			if ordered.IsZero() {
				t.Error("no revocation overtook the delivery")
			}
			s.Check()
		})
	}
}

// 15,000 sessions expire in one second: health answers, and deliveries go on.
func TestAbuse_A33_expiry_storm(t *testing.T) {
	t.Parallel()
	sessions := 3000
	if long() {
		sessions = 15_000
	}
	var ahead atomic.Int64
	clock := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	r := rig.Start(t, rig.Config{Now: clock})
	r.Put("demo/a", "standard", "a")
	a := r.Assemble(rig.Parts{})
	w := a.Raw("workload")
	issued, _ := opened(t, w, "demo/a")
	expires := time.Now().Add(15 * time.Minute)
	seed(t, a.Ledger, issued.GetSessionId(), sessions, expires)

	c := a.Client("workload", func(c *client.Config) { c.Now = clock })
	ahead.Store(int64(15 * time.Minute))
	stop, done := context.WithCancel(t.Context())
	worst := make(chan time.Duration, 1)
	go func() {
		var most time.Duration
		for stop.Err() == nil {
			start := time.Now()
			s, err := c.Get(t.Context(), "demo/a")
			if err != nil {
				t.Errorf("a delivery while sessions expire: %v", err)
				break
			}
			s.Close()
			for _, check := range a.Broker.Health(t.Context()) {
				if check.Err != nil {
					t.Errorf("health while sessions expire: %s: %v", check.Name, check.Err)
				}
			}
			most = max(most, time.Since(start))
		}
		worst <- most
	}()
	began := time.Now()
	if err := a.Broker.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	took := time.Since(began)
	done()
	if most := <-worst; most > 5*time.Second {
		t.Errorf("a delivery took %s while %d sessions expired", most, sessions)
	} else {
		t.Logf("%d sessions swept in %s; the slowest delivery took %s", sessions, took, most)
	}
	left, err := a.Ledger.Sessions(t.Context(), ledger.SessionQuery{ExpiresBefore: expires, Max: 1})
	if err != nil || len(left) != 0 {
		t.Errorf("%d sessions are left, %v", len(left), err)
	}
	a.Check()
}

// seed issues copies of a session that all end at the same time.
func seed(t *testing.T, l *ledger.Ledger, like string, n int, expires time.Time) {
	t.Helper()
	id, err := event.ParseID(like)
	if err != nil {
		t.Fatal(err)
	}
	var body event.SessionIssued
	for from := int64(0); body.Session != id; from++ {
		page, err := l.Events(t.Context(), from, 1)
		if err != nil || len(page) == 0 {
			t.Fatalf("session %s was never issued: %v", like, err)
		}
		if b, ok := page[0].Event.Body.(event.SessionIssued); ok {
			body = b
		}
	}
	work := make(chan struct{})
	failed := make(chan error, 64)
	for range cap(failed) {
		go func() {
			var failure error
			for range work {
				next := body
				next.Session, next.Expires, next.ReceiptBy = event.NewID(time.Now()), event.NewTime(expires), event.Time{}
				if _, err := l.Commit(t.Context(), ledger.Commit{Event: event.New(time.Now(), body.Principal, next)}); err != nil {
					failure = err
				}
			}
			failed <- failure
		}()
	}
	for range n {
		work <- struct{}{}
	}
	close(work)
	for range cap(failed) {
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
	}
}
