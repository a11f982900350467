package timeline_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/audit/timeline"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
)

const (
	workload = "spiffe://dev.bulla.test/workload"
	security = "spiffe://dev.bulla.test/security"
)

var start = time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)

func decision(t *testing.T, who, instance, secret string, effect policy.Effect) event.Decision {
	t.Helper()
	s := policy.Signals{
		Now: start.UnixMicro(), Action: policy.ActionDeliver, Instance: instance, Principal: policy.Principal{ID: who, Level: policy.LevelBasic},
		Resource: policy.Resource{Kind: policy.KindSecret, Secret: &policy.Secret{Name: secret}}, Network: policy.Network{Peer: "192.0.2.1:7"},
	}
	signals, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	d := policy.Decision{Effect: effect, Reasons: []string{"a reason"}}
	return event.Decision{RequestID: "the-request", Effect: string(effect), Sequence: 3, Signals: signals, Result: d.Canonical()}
}

// TestStory: what belongs to the session is told, in order and with who and why, and what belongs to another one is not.
func TestStory(t *testing.T) {
	t.Parallel()
	id, other := event.NewID(start), event.NewID(start)
	issued := event.SessionIssued{
		Session: id, Principal: workload, Instance: "mine", Secret: "demo/a", Device: "dev-1", Expires: event.NewTime(start.Add(time.Hour)),
		Decision: decision(t, workload, "mine", "demo/a", policy.Permit),
	}
	by := decision(t, security, "", "", policy.Permit)
	delivery := event.New(start, workload, issued)
	order := event.New(start.Add(4*time.Second), security, event.RevocationOrdered{Selector: event.BySecret, Value: "demo/a", Reason: "leaked", By: &by})
	at := func(s int, b event.Body) event.Event {
		return event.New(start.Add(time.Duration(s)*time.Second), "", b)
	}
	events := []event.Event{
		at(-3600, event.DecisionDenied{Principal: workload, Decision: decision(t, workload, "mine", "demo/a", policy.StepUp)}), // long before
		at(-3, event.DecisionDenied{Principal: workload, Decision: decision(t, workload, "mine", "demo/a", policy.StepUp)}),
		at(-3, event.DecisionDenied{Principal: workload, Decision: decision(t, workload, "theirs", "demo/a", policy.StepUp)}),
		at(-3, event.DecisionDenied{Principal: workload, Decision: decision(t, workload, "mine", "demo/b", policy.StepUp)}),
		at(-2, event.Restored{Incarnation: 2}), // before the delivery
		at(-2, event.AttestationAppraised{Principal: workload, Instance: "mine", Device: "dev-1", Result: []byte(`{"status":"warning","trust_score":44}`)}),
		at(-2, event.AttestationAppraised{Principal: workload, Instance: "theirs", Device: "dev-1", Result: []byte(`{}`)}),
		delivery,
		at(1, event.SessionConfirmed{Session: id}),
		at(1, event.SessionConfirmed{Session: other}),
		at(2, event.SessionUsed{Session: id, Number: 1, Decision: decision(t, workload, "mine", "demo/a", policy.Permit)}),
		at(3, event.SessionUsed{Session: other, Number: 1}),
		at(3, event.RequestRefused{Principal: "spiffe://dev.bulla.test/thief", Target: id.String(), Check: "session"}),
		order,
		at(4, event.RevocationOrdered{Selector: event.BySecret, Value: "demo/b", Reason: "another"}),
		at(5, event.SessionsRevoked{Sessions: []event.ID{other, id}, Reason: "leaked", Revocation: order.ID}),
		at(5, event.SessionsRevoked{Sessions: []event.ID{other}, Reason: "not mine"}),
		at(5, event.Restored{Incarnation: 3}),
		at(6, event.RevocationCompleted{Revocation: order.ID, Sessions: 2}),
		at(7, event.SessionsWiped{Principal: workload, Instance: "mine", Sessions: []event.ID{id}}),
		at(2*3600, event.SessionsWiped{Principal: workload, Instance: "mine", Sessions: []event.ID{id}}), // long after
	}
	teller := timeline.New(timeline.SubjectOf(delivery, issued))
	var got []string
	for i, e := range events {
		entry, part := teller.Add(int64(i), e)
		if !part {
			continue
		}
		got = append(got, entry.What)
		if entry.Index != int64(i) || entry.Event != e.ID.String() || !entry.Time.Equal(e.Time.Time()) || entry.Kind != string(e.Body.EventType()) {
			t.Errorf("%+v is not event %d", entry, i)
		}
		if e.ID == order.ID && !slices.ContainsFunc(entry.Details, func(d string) bool { return strings.HasPrefix(d, "by "+security) }) {
			t.Errorf("the order does not say by whom: %q", entry.Details)
		}
	}
	want := []string{
		"asked for the secret, and asked for more", "its device was attested", "delivered", "the receipt came: the envelope was opened",
		"share 1 was given out", "a call about it was refused: session", "revocation ordered of secret demo/a: leaked", "ended: leaked",
		"the ledger was restored from a backup: incarnation 3", "the revocation has ended 2 sessions", "the client says that it holds nothing of it any more",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the story is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
