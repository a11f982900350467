package ledger_test

import (
	"testing"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/ledger/storetest"
)

// An order is a row that deliveries can demand; that it was carried out stands apart, and only the newest one can be.
func TestProjectOrders(t *testing.T) {
	tab := newTable(t)
	tab.refuse(t, event.RevocationOrdered{Selector: "colour", Value: "red"})
	tab.refuse(t, event.RevocationOrdered{Selector: event.ByPrincipal})
	key := ledger.RevocationKey(event.ByPrincipal, storetest.Principal)
	first := now(event.RevocationOrdered{Selector: event.ByPrincipal, Value: storetest.Principal, Reason: "a"})
	tab.must(t, first)
	second := now(event.RevocationOrdered{Selector: event.ByPrincipal, Value: storetest.Principal, Reason: "b"})
	tab.must(t, second)
	order, seq := row[ledger.Order](t, tab, ledger.KindRevocation, key)
	if order.ID != second.ID || order.Reason != "b" {
		t.Errorf("the row says %+v", order)
	}
	tab.refuse(t, event.RevocationCompleted{Selector: event.ByPrincipal, Value: storetest.Principal, Revocation: first.ID})
	tab.refuse(t, event.RevocationCompleted{Selector: event.BySecret, Value: storetest.Principal, Revocation: second.ID})
	tab.must(t, now(event.RevocationCompleted{Selector: event.ByPrincipal, Value: storetest.Principal, Revocation: second.ID, Sessions: 3}))
	if _, again := row[ledger.Order](t, tab, ledger.KindRevocation, key); again != seq {
		t.Error("that an order was carried out disturbs deliveries")
	}
	if end, _ := row[ledger.RevocationEnd](t, tab, ledger.KindRevocationEnd, key); end.Revocation != second.ID || end.Sessions != 3 {
		t.Errorf("its end says %+v", end)
	}
}

func TestProjectWipedAndDemands(t *testing.T) {
	tab := newTable(t)
	id := event.NewID(storetest.Start)
	tab.refuse(t, event.SessionsWiped{})
	tab.must(t, now(event.SessionsWiped{Principal: storetest.Principal, Instance: "i", Sessions: []event.ID{id}}))
	tab.refuse(t, event.SessionsWiped{Principal: storetest.Principal, Instance: "i", Sessions: []event.ID{event.NewID(storetest.Start), id}})
	tab.refuse(t, event.AttestationDemanded{Principal: storetest.Principal, Instance: "i"})
	tab.must(t, now(event.AttestationDemanded{Principal: storetest.Principal, Instance: "i", Device: "d", By: event.NewTime(storetest.Start)}))
	if d, _ := row[ledger.Demand](t, tab, ledger.KindDemand, ledger.InstanceKey(storetest.Principal, "i")); d.Device != "d" || d.At.IsZero() {
		t.Errorf("the demand says %+v", d)
	}
}

// A sweep is held, then confirmed or dropped, then done; it is always that of the active revision.
func TestProjectSweep(t *testing.T) {
	tab := newTable(t)
	active, _ := row[ledger.Revision](t, tab, ledger.KindRevision, ledger.ActiveRevision)
	if active.Sequence == 0 {
		tab.must(t, now(event.RevisionActivated{Digest: event.Digest{1}, Sequence: 1}))
		active, _ = row[ledger.Revision](t, tab, ledger.KindRevision, ledger.ActiveRevision)
	}
	swept := func(outcome string) event.RevisionSwept {
		return event.RevisionSwept{Digest: active.Digest, Sequence: active.Sequence, Outcome: outcome, Examined: 9, Ending: 8}
	}
	other := swept(event.SweepHeld)
	other.Sequence++
	tab.refuse(t, other)
	for _, outcome := range []string{event.SweepConfirmed, event.SweepDropped, "", "maybe"} {
		tab.refuse(t, swept(outcome))
	}
	tab.must(t, now(swept(event.SweepHeld)))
	tab.refuse(t, swept(event.SweepHeld))
	tab.refuse(t, swept(event.SweepDone))
	tab.must(t, now(swept(event.SweepConfirmed)))
	tab.refuse(t, swept(event.SweepDropped))
	tab.must(t, now(swept(event.SweepDone)))
	for _, outcome := range []string{event.SweepHeld, event.SweepConfirmed, event.SweepDropped, event.SweepDone} {
		tab.refuse(t, swept(outcome))
	}
	tab.must(t, now(event.RevisionActivated{Digest: event.Digest{9}, Sequence: active.Sequence + 1, Previous: active.Digest}))
	tab.refuse(t, swept(event.SweepHeld))
	active.Digest, active.Sequence = event.Digest{9}, active.Sequence+1
	tab.must(t, now(swept(event.SweepDone)))
}
