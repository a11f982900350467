package ledger_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/ledger/storetest"
)

// A key is not in use for ever because its subject never came back: nothing is sealed under it once it is spent.
func TestSpentKeysCanGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := storetest.Founded(t, storetest.NewMemory(), storetest.Ring(t))
		const once = "spiffe://dev.bulla.test/once"
		storetest.Commit(t, l, storetest.Plain(once, event.DecisionDenied{Principal: once}))
		planned := func() bool {
			plan, err := l.PlanErasure(t.Context(), ledger.EraseQuery{Before: storetest.Start.Add(time.Hour)}, storetest.Start, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range plan.Erasures {
				if e.Body.Subject == once {
					return true
				}
			}
			return false
		}
		if planned() {
			t.Error("the key is in use, and would go")
		}
		time.Sleep(24 * time.Hour) // of the bubble
		if !planned() {
			t.Error("the key stays as long as the process lives")
		}
	})
}
