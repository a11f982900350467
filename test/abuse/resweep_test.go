package abuse

import (
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// narrowed takes the workload's grant for demo/ away, and leaves it demo/kept, and what the canaries want.
func narrowed(t *testing.T) func(files map[string]string) {
	return func(files map[string]string) {
		replaceIn(t, files, "data/grants.yaml", "    demo/: true", "    demo/kept: true\n    demo/standard: true\n    demo/high: true")
	}
}

// sweeping is a broker that holds sweeps as one does that nobody configured.
func sweeping(t *testing.T) *rig.Rig {
	t.Helper()
	return rig.Start(t, rig.Config{Edit: func(c *config.Config) { c.Policy.HoldSharePercent, c.Policy.HoldMinimum = 0, 0 }})
}

// sweepOf is what `policy list` says of the active revision.
func sweepOf(t *testing.T, r *rig.Rig) string {
	t.Helper()
	list, err := bullav1.NewPoliciesClient(r.Client("security").Conn()).ListRevisions(t.Context(), &bullav1.ListRevisionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, rev := range list.GetRevisions() {
		if rev.GetActive() {
			return rev.GetSweep()
		}
	}
	t.Fatal("no revision is active")
	return ""
}

// A new revision ends the sessions that it would not permit, and no others.
func TestAbuse_A46_revision_ends_sessions(t *testing.T) {
	t.Parallel()
	r := sweeping(t)
	r.Put("demo/gone", "standard", "a")
	r.Put("demo/kept", "standard", "b")
	c := r.Client("workload")
	gone, kept := get(t, c, "demo/gone", "a"), get(t, c, "demo/kept", "b")
	gone.Done()
	kept.Done()
	r.Push(narrowed(t))
	select {
	case <-gone.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the session that the new revision denies lives on")
	}
	if cause := gone.Cause(); cause == nil || !strings.Contains(cause.Error(), "revision 2 would not permit it") {
		t.Errorf("it ended with %v", cause)
	}
	eventually(t, "the sweep is done", func() bool { return strings.HasPrefix(sweepOf(t, r), "done: it ended 1 of 2") })
	if got := sessionState(t, r, kept.SessionID); got != "confirmed" {
		t.Errorf("the session that the new revision permits is %s", got)
	}
	decided := 0
	for _, e := range r.Events() {
		if b, ok := e.Body.(event.SessionsRevoked); ok && b.Redecided != nil && len(b.Redecided.Results) == 1 && b.Redecided.Sequence == 2 {
			decided++
		}
	}
	if decided != 1 {
		t.Errorf("%d events say by which decision the session ended, want 1", decided)
	}
	r.Check() // which replays that decision
}

// A revision that would end many sessions waits for somebody who may push policies; it does so through a restart.
func TestAbuse_A52_sweep_is_held(t *testing.T) {
	t.Parallel()
	for _, confirm := range []bool{true, false} {
		r := sweeping(t)
		r.Put("demo/gone", "standard", "a")
		w := r.Raw("workload")
		var ids []string
		for range 12 {
			d, _ := opened(t, w, "demo/gone")
			ids = append(ids, d.GetSessionId())
		}
		r.Push(narrowed(t))
		eventually(t, "the sweep is held", func() bool { return strings.HasPrefix(sweepOf(t, r), "held: it would end 12 of 12") })
		r.Stop()
		r.Run()
		service := bullav1.NewRevocationsClient(r.Client("security").Conn())
		doctor, err := bullav1.NewAuditClient(r.Client("security").Conn()).Doctor(t.Context(), &bullav1.DoctorRequest{})
		if err != nil {
			t.Fatal(err)
		}
		said := false
		for _, check := range doctor.GetChecks() {
			said = said || check.GetName() == "live sessions" && !check.GetOk()
		}
		if !said {
			t.Errorf("doctor says nothing of the sweep that is held: %v", doctor.GetChecks())
		}
		for _, id := range ids {
			if got := sessionState(t, r, id); got != "issued" {
				t.Fatalf("while it is held a session is %s", got)
			}
		}
		status, err := service.DecideSweep(t.Context(), &bullav1.DecideSweepRequest{Confirm: confirm, Reason: "a test"})
		if err != nil {
			t.Fatal(err)
		}
		want, outcome := "issued", "dropped"
		if confirm {
			want, outcome = "revoked", "done"
		}
		eventually(t, "the sweep is "+outcome, func() bool { return strings.HasPrefix(sweepOf(t, r), outcome) })
		for _, id := range ids {
			if got := sessionState(t, r, id); string(got) != want {
				t.Errorf("confirm %t (%v): a session is %s, want %s", confirm, status, got, want)
			}
		}
		_, err = service.DecideSweep(t.Context(), &bullav1.DecideSweepRequest{Confirm: true, Reason: "again"})
		wantCode(t, "nothing is held", err, codes.NotFound, "request")
		r.Check()
	}
}

// Sessions that rely on a device end when it is not attested again in time. Who watches is asked before, and answers.
func TestAbuse_A44_overdue_attestation(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{Policy: func(files map[string]string) {
		replaceIn(t, files, "data/classes.yaml", "    usage_limit: {max_uses: 1000, grade: open}\ncritical", "    usage_limit: {max_uses: 1000, grade: open}\n    reattest: {within_seconds: 6, grade: open}\ncritical")
	}})
	r.Put("demo/high", "high", "top")
	file, _ := r.Device(rig.ID("workload").String())
	withDevice := func(c *client.Config) { c.DeviceFile = file }
	watched, silent := get(t, r.Client("workload", withDevice), "demo/high", "top"), get(t, r.Client("workload", withDevice), "demo/high", "top")
	watched.Done()
	eventually(t, "the one that nobody attests for ends", func() bool { return sessionState(t, r, silent.SessionID) == "revoked" })
	eventually(t, "the other one was attested again, twice", func() bool {
		demands := 0
		for _, d := range of[event.AttestationDemanded](r.Events()) {
			if d.Principal == rig.ID("workload").String() {
				demands++
			}
		}
		return demands >= 4 && len(of[event.AttestationAppraised](r.Events())) >= 4
	})
	if got := sessionState(t, r, watched.SessionID); got != "confirmed" {
		t.Errorf("the session whose client answers is %s", got)
	}
	r.Check()
}

// Where the reference values change, what relied on the old ones is attested afresh or ends.
func TestAbuse_A44_new_reference_values(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	clock := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	r := rig.Start(t, rig.Config{Now: clock})
	r.Put("demo/high", "high", "top")
	file, _ := r.Device(rig.ID("workload").String())
	withDevice := func(c *client.Config) { c.DeviceFile, c.Now = file, clock }
	watched, silent := get(t, r.Client("workload", withDevice), "demo/high", "top"), get(t, r.Client("workload", withDevice), "demo/high", "top")
	watched.Done()
	before := len(of[event.AttestationAppraised](r.Events()))
	r.Push(func(files map[string]string) {
		replaceIn(t, files, "references.yaml", "version: development-1", "version: development-2")
	})
	eventually(t, "the client is asked, and attests", func() bool { return len(of[event.AttestationAppraised](r.Events())) > before })
	ahead.Store(int64(3 * time.Minute))
	eventually(t, "who did not ends", func() bool { return sessionState(t, r, silent.SessionID) == "revoked" })
	if got := sessionState(t, r, watched.SessionID); got != "confirmed" {
		t.Errorf("the session whose client answered is %s", got)
	}
	r.Check()
}

// A receipt that the policy demands and that does not come ends the session; one that comes late changes nothing.
func TestAbuse_A21_missing_receipt(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	clock := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	r := rig.Start(t, rig.Config{Now: clock, Policy: func(files map[string]string) {
		replaceIn(t, files, "data/classes.yaml", "    usage_limit: {max_uses: 1000, grade: open}\nhigh", "    usage_limit: {max_uses: 1000, grade: open}\n    receipt_required: {within_seconds: 60, grade: open}\nhigh")
	}})
	r.Put("demo/a", "standard", "a")
	w := r.Raw("workload")
	late, envelope := opened(t, w, "demo/a")
	_, confirmed := opened(t, w, "demo/a")
	if _, err := acknowledge(t, w, receipt(t, w, confirmed)); err != nil {
		t.Fatal(err)
	}
	stream := watch(t, t.Context(), w, 0, late.GetSessionId())
	stream.ready()
	ahead.Store(int64(61 * time.Second))
	if m := stream.next().GetEnded(); len(m.GetSessionIds()) != 1 || m.GetSessionIds()[0] != late.GetSessionId() || !strings.Contains(m.GetReason(), "receipt") {
		t.Errorf("told %v", m)
	}
	_, err := acknowledge(t, w, receipt(t, w, envelope))
	wantCode(t, "the receipt that came late", err, codes.FailedPrecondition, "session")
	if got := sessionState(t, r, confirmed.Context.Session); got != "confirmed" {
		t.Errorf("the session whose receipt came is %s", got)
	}
}

// A live view shows each step, and a dry run changes nothing.
func TestAbuse_A09_live_view(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	service := bullav1.NewRevocationsClient(r.Client("operator").Conn())
	view, err := service.WatchSessions(t.Context(), &bullav1.WatchSessionsRequest{Secret: "demo/a"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := view.Header(); err != nil {
		t.Fatal(err)
	}
	s := get(t, r.Client("workload"), "demo/a", "a")
	for _, want := range []string{"session.issued", "session.confirmed"} {
		if m, err := view.Recv(); err != nil || m.GetType() != want || m.GetSession().GetId() != s.SessionID {
			t.Fatalf("the view shows %v (%v), want %s", m, err, want)
		}
	}
	dry, err := service.Revoke(t.Context(), &bullav1.RevokeRequest{Selector: &bullav1.RevokeRequest_Secret{Secret: "demo/a"}, DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	listed := 0
	for {
		m, err := dry.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if m.GetSession() != nil {
			listed++
		}
	}
	if got := sessionState(t, r, s.SessionID); listed != 1 || got != "confirmed" {
		t.Errorf("a dry run listed %d sessions, and the session is %s", listed, got)
	}
}
