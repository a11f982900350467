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

// What the erased events did to large rows has to fit into the event that erases them: the key is changed before it is
// too much. A secret that changes each hour has a long row, and its first delivery of each version writes it.
func TestKeysAreChangedBeforeTheirRowsAreTooMany(t *testing.T) {
	l := storetest.Founded(t, storetest.NewMemory(), storetest.Ring(t))
	const who = "spiffe://dev.bulla.test/hourly"
	for v := uint32(2); v <= 280; v++ {
		storetest.Commit(t, l, storetest.SecretVersion(storetest.Secret, v))
		if v <= 256 {
			continue
		}
		c := storetest.Issue(storetest.Start, time.Hour, 0)
		body := c.Event.Body.(event.SessionIssued)
		body.Principal, body.Version = who, v
		c.Event.Subject, c.Event.Body = who, body
		storetest.Commit(t, l, c)
		storetest.Commit(t, l, storetest.Plain(who, event.SessionRevoked{Session: body.Session, Reason: "test"}))
	}
	plan, err := l.PlanErasure(t.Context(), ledger.EraseQuery{Subject: who}, storetest.Start, nil)
	if err != nil || len(plan.Kept) != 0 || plan.Events != 48 {
		t.Fatalf("%d events would go, kept %q: %v", plan.Events, plan.Kept, err)
	}
	for _, e := range plan.Erasures {
		storetest.Commit(t, l, storetest.Erasure(e, "test", storetest.Start))
	}
	storetest.MustCheck(t, l)
}
