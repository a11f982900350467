package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// erasedKey is the key that the records of the erasure suite lie under.
const erasedKey = Principal + "#1"

// erasures is what a store does with an event that erases others.
func (s *suite) erasures() {
	s.done(Foundation()...)
	c := Issue(Start, time.Hour, 0)
	id := SessionOf(c)
	under := func(c ledger.Commit) ledger.Record {
		r := record(c)
		r.Subject, r.NewSubject = erasedKey, []byte("wrapped")
		return r
	}
	issued := s.append(under(c))[0]
	revoked := s.append(under(Plain(Principal, event.SessionRevoked{Session: id, Reason: "test"})))[0]
	if issued.Err != nil || revoked.Err != nil {
		s.Fatal(issued.Err, revoked.Err)
	}
	body := event.SubjectErased{
		Subject: Principal, Key: erasedKey, Seen: s.size(), Indexes: []int64{issued.Index, revoked.Index}, Reason: "test",
		Sessions: []event.ErasedSession{{Session: id, State: "revoked"}},
	}
	early, other, live := body, body, body
	early.Seen = revoked.Index // what lies under the key came later
	early.Indexes = []int64{issued.Index}
	other.Key = Principal + "#2"
	live.Sessions = []event.ErasedSession{{Session: id, State: "expired"}}
	s.want(Plain("", early), ledger.ErrPrecondition)
	s.want(Plain("", other), ledger.ErrPrecondition)
	s.want(Plain("", live), ledger.ErrTransition)
	late := s.append(under(Plain(Principal, event.DecisionDenied{Principal: Principal})), record(Plain("", body)))
	if late[0].Err != nil || !errors.Is(late[1].Err, ledger.ErrPrecondition) {
		s.Fatalf("an event of the same batch lies under the key: %v, %v", late[0].Err, late[1].Err)
	}
	body.Seen, body.Indexes = s.size(), append(body.Indexes, late[0].Index)

	// In one batch: erase, erase again, seal under the key as if it were new, and as if it were there.
	again, there := under(Plain(Principal, event.DecisionDenied{Principal: Principal})), under(Plain(Principal, event.DecisionDenied{Principal: Principal}))
	there.NewSubject = nil
	out := s.append(record(Plain("", body)), record(Plain("", body)), again, there)
	for i, want := range []error{nil, ledger.ErrPrecondition, ledger.ErrSubjectKey, ledger.ErrSubjectKey} {
		if !errors.Is(out[i].Err, want) {
			s.Errorf("record %d: %v, want %v", i, out[i].Err, want)
		}
	}
	out = s.append(again, there) // and later
	for i := range out {
		if !errors.Is(out[i].Err, ledger.ErrSubjectKey) {
			s.Errorf("record %d after the erasure: %v", i, out[i].Err)
		}
	}
	s.erased(c, id)
	s.want(Plain("", event.SessionRevoked{Session: id, Reason: "again"}), ledger.ErrTransition)
}

// erased looks at what is left.
func (s *suite) erased(c ledger.Commit, id event.ID) {
	s.view(func(v ledger.Snapshot) {
		ctx := s.Context()
		if _, err := v.SubjectKey(ctx, erasedKey); !errors.Is(err, ledger.ErrNotFound) {
			s.Errorf("the key is there: %v", err)
		}
		if _, err := v.Request(ctx, c.Request.Key); !errors.Is(err, ledger.ErrNotFound) {
			s.Errorf("the reply is there: %v", err)
		}
		for _, q := range []ledger.SessionQuery{{Principal: Principal}, {Secret: Secret}, {Device: Device}} {
			if found, err := v.Sessions(ctx, q); len(found) != 0 || err != nil {
				s.Errorf("sessions by %+v: %d, %v", q, len(found), err)
			}
		}
		rows, err := v.Rows(ctx, ledger.KindDenial, "", 10)
		if err != nil || len(rows) != 0 {
			s.Errorf("rows of denials: %v, %v", rows, err)
		}
		rows, err = v.Rows(ctx, ledger.KindSession, "", 10)
		if err != nil || len(rows) != 1 || rows[0].Fault != "" {
			s.Fatalf("session rows: %v, %v", rows, err)
		}
		var left session.Session
		if err := event.Unmarshal(rows[0].Value, &left); err != nil || left.Erased == 0 || left.Principal != "" || left.ID != id {
			s.Errorf("session %+v: %v", left, err)
		}
	})
}

// Erasure is the commit of an erasure that was planned.
func Erasure(e ledger.PlannedErasure, reason string, now time.Time) ledger.Commit {
	e.Body.Reason = reason
	return ledger.Commit{Event: event.New(now, "", e.Body), Require: e.Require}
}

// eraseAll erases what is over of a subject, and returns how many events that were.
func eraseAll(t *testing.T, l *ledger.Ledger, subject string, now time.Time) int64 {
	t.Helper()
	for try := range 10 {
		plan, err := l.PlanErasure(t.Context(), ledger.EraseQuery{Subject: subject, Again: try > 0}, now, nil)
		if err != nil {
			t.Fatal(err)
		}
		done := int64(0)
		for _, e := range plan.Erasures {
			if _, err = l.Commit(t.Context(), Erasure(e, fmt.Sprint("try ", try), now)); err != nil {
				break
			}
			done += int64(len(e.Body.Indexes))
		}
		if err == nil {
			return done
		}
		if !errors.Is(err, ledger.ErrPrecondition) && !errors.Is(err, ledger.ErrTransition) {
			t.Fatal(err)
		}
	}
	t.Fatal("the erasure was overtaken each time")
	return 0
}

// erases is the story of one subject: live, held, erased, back again.
func erases(t *testing.T, store ledger.Store) {
	ring := Ring(t)
	l := Founded(t, keepOpen{store}, ring)
	ctx := t.Context()
	c := Issue(Start, time.Hour, time.Minute)
	res, id := Commit(t, l, c), SessionOf(c)
	Commit(t, l, Plain(Principal, event.SessionConfirmed{Session: id, R: []byte("r")}))
	if n := eraseAll(t, l, Principal, Start); n != 0 {
		t.Fatalf("%d events went while the session lives", n)
	}
	other := Issue(Start, time.Hour, 0)
	Commit(t, l, other)
	if _, err := l.RevokeSessions(ctx, Start, []event.ID{id, SessionOf(other)}, "test", event.ID{}); err != nil {
		t.Fatal(err)
	}
	for _, h := range []event.HoldPlaced{
		{Selector: event.ByPrincipal, Value: Principal, Reason: "case"}, {Selector: event.BySecret, Value: Secret, Reason: "case"}, {Selector: event.HoldEverything, Reason: "case"},
	} {
		plan, err := l.PlanErasure(ctx, ledger.EraseQuery{Subject: Principal}, Start, nil)
		if err != nil || len(plan.Erasures) == 0 {
			t.Fatalf("%+v: %v", plan, err)
		}
		Commit(t, l, Plain(Operator, h)) // after the plan: the commit refuses
		for _, e := range plan.Erasures {
			want := ledger.ErrHeld
			if h.Selector == event.BySecret {
				want = ledger.ErrPrecondition
			}
			if _, err := l.Commit(ctx, Erasure(e, "test", Start)); !errors.Is(err, want) {
				t.Errorf("hold on %s: %v", h.Selector, err)
			}
			if _, err := l.Commit(ctx, Plain("", Erasure(e, "test", Start).Event.Body)); !errors.Is(err, ledger.ErrHeld) {
				t.Errorf("hold on %s, by the sessions that go: %v", h.Selector, err)
			}
		}
		if _, err := l.Commit(ctx, Plain(Operator, h)); !errors.Is(err, ledger.ErrTransition) {
			t.Errorf("a second hold: %v", err)
		}
		Commit(t, l, Plain(Operator, event.HoldReleased{Selector: h.Selector, Value: h.Value, Reason: "over"}))
	}
	if n := eraseAll(t, l, Principal, Start); n == 0 {
		t.Fatal("nothing went")
	}
	MustCheck(t, l)
	afterErasure(t, l, c, res)
	fresh := Commit(t, l, Issue(Start, time.Hour, 0)) // the subject comes back, under a new key
	if e, err := l.Events(ctx, fresh.Index, 1); err != nil || e[0].Erased != 0 {
		t.Errorf("what came after: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	reopened := Open(t, store, ring)
	MustCheck(t, reopened)
	afterErasure(t, reopened, c, res)
}

// afterErasure is what each way to read says of a delivery that was erased.
func afterErasure(t *testing.T, l *ledger.Ledger, c ledger.Commit, res ledger.Result) {
	t.Helper()
	ctx := t.Context()
	entries, err := l.Events(ctx, res.Index, 1)
	if err != nil || entries[0].Erased <= res.Index || entries[0].Leaf != res.Leaf || entries[0].Encoding != nil || entries[0].Event.Body != nil {
		t.Errorf("entry %+v: %v", entries, err)
	}
	followed, err := l.Follow(ctx, res.Index, 1)
	if err != nil || followed[0].Event.Body != nil {
		t.Errorf("followed %+v: %v", followed, err)
	}
	_, find := l.Find(ctx, c.Event.ID)
	_, result := l.Result(ctx, res.Index)
	_, request := l.Request(ctx, c.Request.Key)
	if !errors.Is(find, ledger.ErrErased) || !errors.Is(result, ledger.ErrErased) || !errors.Is(request, ledger.ErrNotFound) {
		t.Errorf("find: %v, result: %v, request: %v", find, result, request)
	}
	s, _, err := l.Session(ctx, SessionOf(c))
	if left := (session.Session{ID: SessionOf(c), State: session.Revoked, Erased: s.Erased}); err != nil || !reflect.DeepEqual(s, left) || s.Erased == 0 {
		t.Errorf("session %+v: %v", s, err)
	}
}

// erasesWalk lets several subjects come, go and be erased at random, on a store that fails now and then. At each stop
// the state is what the events make, those that are erased among them.
func erasesWalk(t *testing.T, store ledger.Store) {
	random := rand.New(rand.NewPCG(8, 8))
	h := NewHostile(store, func([]ledger.Record) Fault { return FaultNone })
	l := Founded(t, h, Ring(t))
	subjects := []string{Principal, Principal + "/2", Principal + "/3"}
	live := map[string][]event.ID{} // that wait for a receipt
	erased := int64(0)
	for step := range 120 {
		who := subjects[random.IntN(len(subjects))]
		switch pick := random.IntN(10); {
		case pick < 5:
			c := issueFor(who)
			Commit(t, l, c)
			live[who] = append(live[who], SessionOf(c))
		case pick < 7 && len(live[who]) > 0:
			Commit(t, l, Plain(who, event.SessionConfirmed{Session: live[who][0], R: []byte("r")}))
			live[who] = live[who][1:]
		case pick < 9:
			if _, err := l.ExpireSessions(t.Context(), Start.Add(2*time.Hour), 100); err != nil {
				t.Fatal(err)
			}
			clear(live)
		default:
			faults := Faults()
			h.Plan(func([]ledger.Record) Fault {
				if random.IntN(3) == 0 {
					return faults[random.IntN(len(faults))]
				}
				return FaultNone
			})
			erased += eraseAll(t, l, who, Start.Add(2*time.Hour))
			h.Plan(func([]ledger.Record) Fault { return FaultNone })
		}
		if step%20 == 19 {
			MustCheck(t, l)
		}
	}
	if erased == 0 {
		t.Error("nothing was erased")
	}
}

// erasesHeld looks at what a hold on a secret keeps: not only sessions, and not only what lies under the key of one.
func erasesHeld(t *testing.T, store ledger.Store) {
	l := Founded(t, store, Ring(t))
	denied := func(name string) event.Decision {
		return event.Decision{Signals: []byte(`{"resource":{"secret":{"name":"` + name + `"}}}`)}
	}
	c, held := issueFor(Principal+"/wipes"), "demo/held"
	Commit(t, l, c)
	Commit(t, l, Plain(Principal+"/wipes", event.SessionRevoked{Session: SessionOf(c), Reason: "test"}))
	plans := map[string]ledger.ErasePlan{}
	for who, body := range map[string]event.Body{
		"/denied":  event.DecisionDenied{Principal: Principal, Decision: denied(held)},
		"/differs": event.ShadowDiffered{Decision: denied(held)},
		"/other":   event.DecisionDenied{Principal: Principal, Decision: denied("demo/other")},
		"/wipes":   event.SessionsWiped{Principal: Principal, Instance: Instance, Sessions: []event.ID{SessionOf(c)}},
	} {
		plan, err := l.PlanErasure(t.Context(), ledger.EraseQuery{Subject: Principal + who}, Start, nil) // and a new key
		if err != nil {
			t.Fatal(err)
		}
		Commit(t, l, Plain(Principal+who, body))
		if plan, err = l.PlanErasure(t.Context(), ledger.EraseQuery{Subject: Principal + who}, Start, nil); err != nil || len(plan.Erasures) == 0 || len(plan.Kept) != 0 {
			t.Fatalf("%s: %+v, %v", who, plan, err)
		}
		plans[who] = plan
	}
	for _, name := range []string{held, Secret} {
		Commit(t, l, Plain(Operator, event.HoldPlaced{Selector: event.BySecret, Value: name, Reason: "case"}))
	}
	for who, plan := range plans {
		again, err := l.PlanErasure(t.Context(), ledger.EraseQuery{Subject: Principal + who}, Start, nil)
		if err != nil || len(again.Erasures) == 0 != (who != "/other") {
			t.Errorf("%s, planned under the hold: %+v, %v", who, again, err)
		}
		for _, e := range plan.Erasures {
			_, err := l.Commit(t.Context(), Erasure(e, "test", Start))
			if errors.Is(err, ledger.ErrPrecondition) != (who != "/other") {
				t.Errorf("%s, planned before the hold: %v", who, err)
			}
		}
	}
	MustCheck(t, l)
}

// issueFor is Issue for another principal.
func issueFor(who string) ledger.Commit {
	c := Issue(Start, time.Hour, 0)
	body := c.Event.Body.(event.SessionIssued)
	body.Principal = who
	c.Event.Subject, c.Event.Body = who, body
	return c
}

// erasesUnderLoad erases a subject while it goes on: nothing that was acknowledged is lost unless an event names it.
func erasesUnderLoad(t *testing.T, store ledger.Store) {
	l := Founded(t, store, Ring(t))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 25 {
				if _, err := l.Commit(t.Context(), Plain(Principal, event.DecisionDenied{Principal: Principal})); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 5 {
		eraseAll(t, l, Principal, Start)
	}
	wg.Wait()
	if r := MustCheck(t, l); r.Events < 100 {
		t.Errorf("%d events", r.Events)
	}
}
