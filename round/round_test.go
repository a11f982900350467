package round_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/round"
)

const (
	app   = "spiffe://dev.bulla.test/workload"
	alice = "spiffe://dev.bulla.test/alice"
	bob   = "spiffe://dev.bulla.test/bob"
	carol = "spiffe://dev.bulla.test/carol"
)

var start = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func at(after time.Duration, body event.Body) event.Event {
	return event.New(start.Add(after), app, body)
}

// delivery is one whose reader needs two of three holders, within ten minutes.
func delivery(id event.ID) event.SessionIssued {
	return event.SessionIssued{
		Session: id, Principal: app, Instance: "instance", Secret: "demo/root", Version: 3, Class: "split",
		Custody: &event.Custody{
			Split:   event.Split{Manifest: event.Digest{1}, Threshold: 2, Holders: []string{alice, bob, carol}},
			Shares:  event.Digest{2},
			Expires: event.NewTime(start.Add(10 * time.Minute)), Request: event.SignedCall{RequestID: "request", Payload: []byte("payload")},
		},
	}
}

// opening is a round that wants two approvals.
func opening(id event.ID) event.RoundOpened {
	return event.RoundOpened{
		Round: id, Principal: app, Instance: "instance", Secret: "demo/root", Version: 3, Role: "custodian", Count: 2,
		Expires: event.NewTime(start.Add(10 * time.Minute)), Request: event.SignedCall{RequestID: id.String()},
	}
}

func open(t *testing.T, body event.Body) round.Round {
	t.Helper()
	r, err := round.Start(at(0, body))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func yes(id event.ID, holder string) event.Body {
	return event.RoundApproved{Round: id, Holder: holder}
}

func no(id event.ID, holder string) event.Body {
	return event.RoundRejected{Round: id, Holder: holder, Reason: "why not"}
}

// Each story is a list of events; those that begin with false are refused and leave the round as it was.
func TestRounds(t *testing.T) {
	id := event.NewID(start)
	consumed := event.SessionIssued{
		Session: event.NewID(start), Principal: app, Instance: "instance", Secret: "demo/root", Version: 3, Approval: id,
		Decision: event.Decision{RequestID: id.String()},
	}
	other := func(change func(*event.SessionIssued)) event.Body {
		b := consumed
		change(&b)
		return b
	}
	type step struct {
		fits bool
		e    event.Event
	}
	for name, c := range map[string]struct {
		first event.Body
		steps []step
		want  round.State
	}{
		"two of three": {delivery(id), []step{
			{true, at(1, event.ShareIssued{Round: id, Holder: alice})},
			{true, at(2, event.ShareIssued{Round: id, Holder: alice})},
			{true, at(3, yes(id, alice))},
			{false, at(4, event.ShareIssued{Round: id, Holder: alice})},
			{false, at(5, yes(id, alice))},
			{false, at(6, no(id, alice))},
			{false, at(7, event.RoundClosed{Round: id, Combined: true})},
			{true, at(8, yes(id, bob))},
			{true, at(9, yes(id, carol))},
			{false, at(10, event.RoundClosed{Round: id, Combined: true, Bad: []string{app}})},
			{true, at(11, event.RoundClosed{Round: id, Combined: true, Bad: []string{bob}})},
			{false, at(12, event.RoundClosed{Round: id})},
		}, round.Combined},
		"not a holder": {delivery(id), []step{
			{false, at(1, yes(id, app))},
			{false, at(2, yes(id, "spiffe://dev.bulla.test/mallory"))},
			{false, at(3, no(id, "spiffe://dev.bulla.test/mallory"))},
			{false, at(4, event.ShareIssued{Round: id, Holder: app})},
			{false, at(5, consumed)},
		}, round.Open},
		"one refuses": {delivery(id), []step{{true, at(1, no(id, alice))}, {true, at(2, yes(id, bob))}, {true, at(3, yes(id, carol))}}, round.Approved},
		"two refuse":  {delivery(id), []step{{true, at(1, yes(id, alice))}, {true, at(2, no(id, bob))}, {true, at(3, no(id, carol))}, {false, at(4, yes(id, carol))}}, round.Rejected},
		"cancelled":   {delivery(id), []step{{true, at(1, event.RoundClosed{Round: id})}, {false, at(2, yes(id, alice))}}, round.Cancelled},
		"expired": {delivery(id), []step{
			{false, at(time.Minute, event.RoundExpired{Round: id})},
			{false, at(10*time.Minute, yes(id, alice))},
			{true, at(10*time.Minute, event.RoundExpired{Round: id})},
			{false, at(11*time.Minute, event.RoundExpired{Round: id})},
		}, round.Expired},
		"approvals": {opening(id), []step{
			{false, at(1, event.ShareIssued{Round: id, Holder: alice})},
			{true, at(2, yes(id, alice))},
			{false, at(3, yes(id, app))},
			{true, at(4, yes(id, bob))},
			{false, at(5, event.RoundClosed{Round: id, Combined: true})},
			{false, at(6, other(func(b *event.SessionIssued) { b.Principal = alice }))},
			{false, at(6, other(func(b *event.SessionIssued) { b.Instance = "sibling" }))},
			{false, at(6, other(func(b *event.SessionIssued) { b.Secret = "demo/other" }))},
			{false, at(6, other(func(b *event.SessionIssued) { b.Version = 4 }))},
			{false, at(6, other(func(b *event.SessionIssued) { b.Decision.RequestID = "other" }))},
			{false, at(6, other(func(b *event.SessionIssued) { b.Approval = event.NewID(start) }))},
			{true, at(7, consumed)},
			{false, at(8, consumed)},
		}, round.Consumed},
		"one no": {opening(id), []step{{true, at(1, yes(id, alice))}, {true, at(2, no(id, bob))}, {false, at(3, yes(id, carol))}, {false, at(4, consumed)}}, round.Rejected},
		"too late": {opening(id), []step{
			{true, at(1, yes(id, alice))}, {true, at(2, yes(id, bob))}, {false, at(10*time.Minute, consumed)},
		}, round.Approved},
		"another kind of event": {opening(id), []step{{false, at(1, event.SessionClosed{})}}, round.Open},
	} {
		r := open(t, c.first)
		for i, s := range c.steps {
			before := r
			after, err := round.Apply(r, s.e)
			if (err == nil) != s.fits || err != nil && !errors.Is(err, round.ErrTransition) {
				t.Errorf("%s, step %d: %v", name, i+1, err)
			}
			if err != nil && (after.State != before.State || len(after.Answers) != len(before.Answers)) {
				t.Errorf("%s, step %d: refused, and the round is changed", name, i+1)
			}
			r = after
		}
		if r.State != c.want {
			t.Errorf("%s: %s, want %s", name, r.State, c.want)
		}
		if r.State.Ended() == r.EndedAt.IsZero() {
			t.Errorf("%s: it is %s, and ended at %s", name, r.State, r.EndedAt)
		}
	}
}

// A round is not changed by what comes of it later: rows are shared.
func TestApplyLeavesTheRound(t *testing.T) {
	id := event.NewID(start)
	r := open(t, delivery(id))
	one, err := round.Apply(r, at(1, yes(id, alice)))
	if err != nil {
		t.Fatal(err)
	}
	left, err := round.Apply(one, at(2, yes(id, bob)))
	if err != nil {
		t.Fatal(err)
	}
	right, err := round.Apply(one, at(3, no(id, carol)))
	if err != nil {
		t.Fatal(err)
	}
	if a, ok := left.Answered(bob); !ok || !a.Approved || right.Answers[1].Holder != carol || len(one.Answers) != 1 {
		t.Errorf("%+v, %+v, %+v", one.Answers, left.Answers, right.Answers)
	}
	if _, ok := right.Answered(bob); ok || right.Approvals() != 1 {
		t.Error("an answer of one future is in the other")
	}
}

func TestStartRefuses(t *testing.T) {
	id := event.NewID(start)
	custody := func(change func(*event.SessionIssued, *event.Custody)) event.Body {
		b := delivery(id)
		c := *b.Custody
		c.Holders = slices.Clone(c.Holders)
		change(&b, &c)
		b.Custody = &c
		return b
	}
	approval := func(change func(*event.RoundOpened)) event.Body {
		b := opening(id)
		change(&b)
		return b
	}
	for name, body := range map[string]event.Body{
		"no custody":       event.SessionIssued{Session: id, Principal: app},
		"threshold of one": custody(func(_ *event.SessionIssued, c *event.Custody) { c.Threshold = 1 }),
		"too few holders":  custody(func(_ *event.SessionIssued, c *event.Custody) { c.Holders = c.Holders[:1] }),
		"its own holder":   custody(func(b *event.SessionIssued, _ *event.Custody) { b.Principal = bob }),
		"over at once":     custody(func(_ *event.SessionIssued, c *event.Custody) { c.Expires = event.NewTime(start) }),
		"no id":            custody(func(b *event.SessionIssued, _ *event.Custody) { b.Session = event.ID{} }),
		"nobody's":         approval(func(b *event.RoundOpened) { b.Principal = "" }),
		"no role":          approval(func(b *event.RoundOpened) { b.Role = "" }),
		"nothing to do":    approval(func(b *event.RoundOpened) { b.Count = 0 }),
		"another event":    event.SessionClosed{},
	} {
		if r, err := round.Start(at(0, body)); !errors.Is(err, round.ErrTransition) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	if r := open(t, delivery(id)); r.StateAt(start.Add(10*time.Minute)) != round.Expired || r.StateAt(start.Add(9*time.Minute)) != round.Open {
		t.Error("StateAt does not follow the clock")
	}
}
