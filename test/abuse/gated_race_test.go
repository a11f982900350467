package abuse

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tpm"
	attestx "github.com/bulla-project/bulla/attest/xtest"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// race asks for the shares from first on, all at once, and returns how many were given.
func (s *gatedSession) race(t *testing.T, w *rig.Raw, first, last uint32, ahead bool, beside func()) (given int64) {
	t.Helper()
	var n atomic.Int64
	var wg sync.WaitGroup
	for number := first; number <= last; number++ {
		w.Challenge(nil)
		ask := s.ask(number)
		ask.Ahead = ahead
		in := w.SignAs(bullav1.Broker_Use_FullMethodName, requestID(), ask)
		wg.Go(func() {
			reply, err := w.Broker.Use(t.Context(), in)
			switch c := status.Code(err); {
			case err == nil && s.opens(number, reply) == nil:
				n.Add(1)
			case c != codes.FailedPrecondition && c != codes.PermissionDenied && c != codes.Aborted:
				t.Errorf("share %d: %v", number, err)
			}
		})
		if number == (first+last)/2 {
			wg.Go(beside)
		}
	}
	wg.Wait()
	return n.Load()
}

// A revision that permits fewer uses than the session was issued with is kept exactly, however many race for them.
func TestAbuse_A20_fewer_uses_by_a_new_revision(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	r := rig.Start(t, rig.Config{SVIDTTL: 4 * time.Hour, Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	r.Put("demo/gated", "standard", "s3cret")
	w := r.Raw("workload")
	const total, fewer, used = 64, 5, 2
	s := deliverGated(t, w, "demo/gated", "s3cret", total)
	for number := uint32(1); number <= used; number++ {
		if _, err := s.use(t, w, requestID(), number); err != nil {
			t.Fatal(err)
		}
	}
	r.Push(func(files map[string]string) {
		files["data/classes.yaml"] = strings.Replace(files["data/classes.yaml"], "max_uses: 1000", "max_uses: 5", 1)
	})
	given := s.race(t, w, used+1, total, false, func() {})
	for number := uint32(total); number > total-10 && given < fewer-used; number-- { // one that was overtaken twice asks again
		ahead.Add(int64(10 * time.Second))
		if _, err := s.use(t, w, requestID(), number); err == nil {
			given++
		}
	}
	ahead.Add(int64(10 * time.Second))
	_, err := s.use(t, w, requestID(), total/2)
	if c := status.Code(err); given != fewer-used || c != codes.PermissionDenied && c != codes.FailedPrecondition {
		t.Errorf("%d more uses were given, then %v; the policy permits %d in all, and %d were used", given, err, fewer, used)
	}
	r.Check()
}

// The same for the shares that may be fetched ahead.
func TestAbuse_A20_fewer_ahead_by_a_new_revision(t *testing.T) {
	t.Parallel()
	limit := func(offline string) func(files map[string]string) {
		return func(files map[string]string) {
			files["data/classes.yaml"] = strings.Replace(files["data/classes.yaml"], "max_uses: 1000, grade: open", "max_uses: 1000, offline: "+offline+", grade: gated", 1)
		}
	}
	r := rig.Start(t, rig.Config{Policy: limit("64")})
	r.Put("demo/gated", "standard", "s3cret")
	w := r.Raw("workload")
	s := deliverGated(t, w, "demo/gated", "s3cret", 64)
	r.Push(limit("3"))
	if given := s.race(t, w, 1, 64, true, func() {}); given > 3 {
		t.Errorf("%d shares were given ahead, the policy permits 3", given)
	}
	r.Check()
}

// Once the device that a session relied on is revoked, no share of it leaves: also where the instance has no
// appraisal of that device any more, so that nothing else in the decision hangs on it.
func TestAbuse_A46_use_after_the_device(t *testing.T) {
	t.Parallel()
	f := attestx.NewForger(t)
	var ahead atomic.Int64
	base := rig.Start(t, rig.Config{
		SVIDTTL: 4 * time.Hour, Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
		Policy: func(files map[string]string) { files["references.yaml"] = listed(t, f) },
	})
	r := base.Assemble(rig.Parts{Verifiers: []attest.Verifier{tpm.Verifier{}}})
	id := f.Device(t).ID.String()
	r.Enrol(f.Device(t))
	r.Put("demo/gated", "standard", "s3cret")
	s := &stale{Assembled: r, between: new(between), f: f, w: r.Raw("workload"), t: t}
	s.attest()
	const total = 200
	g := deliverGated(t, s.w, "demo/gated", "s3cret", total)
	r.Push(func(files map[string]string) { // other reference values: the passport is void, and standard needs none
		files["references.yaml"] = listed(t, f) + "# again\n"
	})
	given := g.race(t, s.w, 1, total, false, func() {
		_, err := bullav1.NewDevicesClient(r.Client("operator").Conn()).RevokeDevice(t.Context(), &bullav1.RevokeDeviceRequest{Id: id, Reason: "lost"})
		if err != nil {
			t.Error(err)
		}
	})
	gone, late := false, 0
	for _, e := range r.Events() {
		switch b := e.Body.(type) {
		case event.DeviceRevoked:
			gone = gone || b.Device == id
		case event.SessionUsed:
			if gone {
				late++
			}
		}
	}
	if !gone || late > 0 {
		t.Errorf("of %d shares %d left after the device was revoked (%t)", given, late, gone)
	}
	r.Check()
}

// Revocation beats the memory of the last share too: an operator who revokes a session whose uses are all spent
// wants the answer to be given to nobody again.
func TestAbuse_A48_last_use_after_revocation(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/gated", "standard", "s3cret")
	w := r.Raw("workload")
	s := deliverGated(t, w, "demo/gated", "s3cret", 1)
	id := requestID()
	if _, err := s.use(t, w, id, 1); err != nil {
		t.Fatal(err)
	}
	revoke := func(reason string) *bullav1.Session {
		t.Helper()
		out, err := bullav1.NewSessionsClient(r.Client("security").Conn()).RevokeSession(t.Context(), &bullav1.RevokeSessionRequest{Id: s.reply.GetSessionId(), Reason: reason})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if got := revoke("test"); got.GetState() != "revoked" || got.GetReason() != "test" || got.GetRevokedAt() == nil {
		t.Errorf("the session is %s, %q", got.GetState(), got.GetReason())
	}
	reply, err := s.use(t, w, id, 1)
	wantCode(t, "a retry of the last use", err, codes.FailedPrecondition, "session")
	if len(reply.GetShare()) > 0 {
		t.Error("it got the share again")
	}
	if got := revoke("again"); got.GetReason() != "test" {
		t.Errorf("a second revocation changed the reason to %q", got.GetReason())
	}
	r.Check()
}

// failing is a store whose next batch with a use in it fails: before it is written, or after.
type failing struct {
	ledger.Store
	before, after atomic.Bool
}

func (s *failing) Append(ctx context.Context, records []ledger.Record) ([]ledger.Outcome, error) {
	uses := false
	for _, r := range records {
		if _, ok := r.Event.Body.(event.SessionUsed); ok {
			uses = true
		}
	}
	if uses && s.before.Load() {
		return nil, fmt.Errorf("no space left: %w", ledger.ErrNotApplied)
	}
	out, err := s.Store.Append(ctx, records)
	if uses && err == nil && s.after.CompareAndSwap(true, false) {
		return nil, errors.New("the connection was lost")
	}
	return out, err
}

// A use that the ledger could not take gives no share and is not counted; one whose commit was answered by an error
// although it took effect is found, and gives its share once.
func TestAbuse_A27_use_that_is_not_recorded(t *testing.T) {
	t.Parallel()
	base := rig.Start(t, rig.Config{})
	store := new(failing)
	r := base.Assemble(rig.Parts{Store: func(inner ledger.Store) ledger.Store { store.Store = inner; return store }})
	r.Put("demo/gated", "standard", "s3cret")
	w := r.Raw("workload")
	s := deliverGated(t, w, "demo/gated", "s3cret", 3)
	id := requestID()
	store.before.Store(true)
	for range 3 {
		reply, err := s.use(t, w, id, 1)
		wantCode(t, "while nothing can be written", err, codes.Unavailable, "ledger")
		if len(reply.GetShare()) > 0 {
			t.Fatal("a share left without a record")
		}
	}
	store.before.Store(false)
	reply, err := s.use(t, w, id, 1)
	if err != nil || s.opens(1, reply) != nil || reply.GetUsesLeft() != 2 {
		t.Fatalf("afterwards: %v, %d left", err, reply.GetUsesLeft())
	}
	store.after.Store(true)
	lost := requestID()
	reply, err = s.use(t, w, lost, 2)
	if err != nil || s.opens(2, reply) != nil || reply.GetUsesLeft() != 1 || store.after.Load() {
		t.Fatalf("a commit whose answer was lost: %v, %d left", err, reply.GetUsesLeft())
	}
	if again, err := s.use(t, w, lost, 2); err != nil || again.GetUsesLeft() != 1 || again.GetEventId() != reply.GetEventId() {
		t.Errorf("the same again: %v, %d left", err, again.GetUsesLeft())
	}
	if n := len(of[event.SessionUsed](r.Events())); n != 2 {
		t.Errorf("%d uses are recorded, want 2", n)
	}
	r.Check()
}
