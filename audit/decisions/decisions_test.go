package decisions_test

import (
	"strings"
	"testing"

	"github.com/bulla-project/bulla/audit/decisions"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy/replay"
)

// TestReader: what the events around a decision say of it.
func TestReader(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rec, _ := w.decide(t, w.signals("deliver"))
	var r decisions.Reader
	next := int64(0)
	add := func(b event.Body) []replay.Recorded {
		next++
		return r.Add(next, event.New(w.now, "", b))
	}
	add(event.RevisionActivated{Digest: w.rev.Digest(), Sequence: 1})
	add(event.SecretPut{Name: "demo/a", Class: "high", Version: 2})
	if got := r.Secrets()["demo/a"]; got.Class != "high" || got.Version != 2 || r.Active().Digest != w.rev.Digest() {
		t.Errorf("%+v, %+v", got, r.Active())
	}
	if got := add(event.OperationPermitted{Decision: rec}); len(got) != 1 || got[0].Wrong != "" || got[0].Kind != "operation.permitted" || got[0].Index != next {
		t.Errorf("%+v", got)
	}
	other := rec
	other.Revision[0]++
	if got := add(event.OperationPermitted{Decision: other}); len(got) != 1 || !strings.Contains(got[0].Wrong, "as revision 1") {
		t.Errorf("another revision under the same number: %+v", got)
	}
	next7 := rec
	next7.Sequence = 7
	if got := add(event.DecisionDenied{Decision: next7}); len(got) != 1 || !strings.Contains(got[0].Wrong, "activated none as that before") {
		t.Errorf("a revision that was never activated: %+v", got)
	}
	next2 := rec
	next2.Sequence = 2
	if got := add(event.RevisionActivated{Digest: w.rev.Digest(), Sequence: 2, By: &next2}); len(got) != 1 || !strings.Contains(got[0].Wrong, "activated none as that before") {
		t.Errorf("an activation that permitted itself: %+v", got)
	}
	if got := add(event.SessionIssued{Decision: rec}); len(got) != 1 || !strings.Contains(got[0].Wrong, "permitted under revision 1, and revision 2 decided by then") {
		t.Errorf("a delivery under a revision that was over: %+v", got)
	}
	if got := add(event.DecisionDenied{Decision: rec}); len(got) != 1 || got[0].Wrong != "" { // denials wait for nobody
		t.Errorf("a denial under a revision that was over: %+v", got)
	}
	if got := add(event.RevisionActivated{Digest: w.rev.Digest(), Sequence: 3, By: &next2}); len(got) != 1 || got[0].Wrong != "" {
		t.Errorf("an activation: %+v", got)
	}
	if got := add(event.RefusalsCounted{Principal: "p", Limit: "calls", Count: 7}); len(got) != 1 || got[0].Count != 7 || !strings.Contains(got[0].Gap, "7 refusals") {
		t.Errorf("%+v", got)
	}
	lost := event.SessionsRevoked{Sessions: []event.ID{event.NewID(w.now)}, Redecided: &event.Redecided{Revision: w.rev.Digest(), Sequence: 1, Results: []event.Digest{{}}}}
	if got := add(lost); len(got) != 1 || !strings.Contains(got[0].Gap, "not in the events") {
		t.Errorf("%+v", got)
	}
	if got := add(event.SessionsRevoked{Sessions: lost.Sessions, Reason: "by hand"}); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}
