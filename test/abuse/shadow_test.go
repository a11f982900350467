package abuse

import (
	"runtime"
	"testing"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// A shadow that would deny and one that would permit: neither decides, the differences are counted and told, it goes on
// after a restart, and it ends when another revision is activated.
func TestShadowNeverDecides(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	r.Put("other/a", "standard", "a")
	archive := r.Archive(func(f map[string]string) {
		f["data/grants.yaml"] = "spiffe://dev.bulla.test/workload:\n  read:\n    demo/standard: true\n    demo/high: true\n    other/: true\n  devices: [\"*\"]\n"
	})
	security := revisionsOf(r, "security")
	staged, err := security.Stage(t.Context(), &bullav1.StageRequest{Archive: archive, Only: true})
	if err != nil || staged.GetOutcome() != "staged" {
		t.Fatalf("%v, %v", staged, err)
	}
	digest := staged.GetRevision().GetDigest()
	_, err = revisionsOf(r, "operator").StartShadow(t.Context(), &bullav1.StartShadowRequest{Digest: digest})
	code(t, err, codes.PermissionDenied, "")
	if _, err := security.StartShadow(t.Context(), &bullav1.StartShadowRequest{Digest: digest, CpuMilli: 500}); err != nil {
		t.Fatal(err)
	}
	ask := func() {
		t.Helper()
		w := r.Raw("workload")
		if _, _, err := w.Deliver(t.Context(), "demo/a"); err != nil {
			t.Errorf("the shadow denies: %v", err)
		}
		if _, _, err := w.Deliver(t.Context(), "other/a"); err == nil {
			t.Error("the shadow permits")
		}
	}
	follows := func() *bullav1.Shadow {
		t.Helper()
		for {
			s, err := revisionsOf(r, "security").GetShadow(t.Context(), &bullav1.GetShadowRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if len(s.GetRows()) >= 2 {
				return s
			}
			ask()
			runtime.Gosched()
		}
	}
	ask()
	told := map[string]string{}
	for _, row := range follows().GetRows() {
		told[row.GetSecret()] = row.GetFrom() + " " + row.GetTo()
	}
	if told["demo/a"] != "PERMIT DENY" || told["other/a"] != "DENY PERMIT" {
		t.Errorf("%v", told)
	}
	r.Stop()
	r.Run()
	follows() // after a restart
	differed := of[event.ShadowDiffered](r.Events())
	if len(differed) < 2 || differed[0].Effect == differed[0].Decision.Effect || len(differed[0].Result) == 0 {
		t.Errorf("%d examples", len(differed))
	}
	r.Push(func(f map[string]string) { f["manifest.yaml"] += "# another\n" })
	if err := r.Server.Broker.TendShadow(t.Context()); err != nil {
		t.Fatal(err)
	}
	ended := of[event.ShadowEnded](r.Events())
	if len(ended) != 1 || ended[0].Reason != "another revision was activated" || len(ended[0].Transitions) == 0 {
		t.Errorf("%+v", ended)
	}
	r.Check()
}
