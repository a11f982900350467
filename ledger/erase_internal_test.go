package ledger

import (
	"slices"
	"testing"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// Where two callers come together a subject has two keys, and what was sealed first may be committed last. Sessions go on
// under a key with older events than the one that they were opened under, and go after it, or stay with it.
func TestPlanGoesBySessionsAndNotByAge(t *testing.T) {
	const who = "spiffe://dev.bulla.test/workload"
	id := event.NewID(time.Unix(0, 0))
	for name, state := range map[string]session.State{"over": session.Revoked, "live": session.Issued} {
		one := func(key string, first int64) *volume {
			return &volume{
				erased: event.SubjectErased{Subject: who, Key: who + "#" + key, Indexes: []int64{first, first + 10}},
				own:    map[RowKey]int64{}, secrets: map[string]struct{}{},
			}
		}
		opens, uses := one("opens", 5), one("uses", 4)
		opens.opened, uses.uses = []event.ID{id}, []event.ID{id}
		p := planner{
			inUse:    func(string) bool { return false },
			volumes:  map[string]*volume{opens.erased.Key: opens, uses.erased.Key: uses},
			sessions: map[event.ID]*planned{id: {volume: opens, last: session.Session{ID: id, State: state, Secret: "demo/db"}}},
		}
		p.finish(&checker{rows: map[RowKey]Row{}})
		var order []string
		for _, e := range p.plan.Erasures {
			order = append(order, e.Body.Key)
		}
		if want := []string{opens.erased.Key, uses.erased.Key}; state.Ended() && (!slices.Equal(order, want) || len(p.plan.Kept) != 0) {
			t.Errorf("%s: %v, kept %q", name, order, p.plan.Kept)
		}
		if !state.Ended() && (len(order) != 0 || len(p.plan.Kept) != 2) {
			t.Errorf("%s: %v, kept %q", name, order, p.plan.Kept)
		}
	}
}
