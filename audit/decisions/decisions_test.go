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
