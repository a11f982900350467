package session

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/bulla-project/bulla/ledger/event"
)

var start = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func opened(t interface{ Fatal(...any) }) Session {
	s, err := Open(event.New(start, "spiffe://example.org/a", event.SessionIssued{
		Session: event.NewID(start), Principal: "spiffe://example.org/a", Expires: event.NewTime(start.Add(time.Minute)),
	}))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func at(s Session, after time.Duration, b event.Body) event.Event {
	return event.New(start.Add(after), s.Principal, b)
}

func TestLife(t *testing.T) {
	s := opened(t)
	ack := event.SessionConfirmed{Session: s.ID}
	for _, c := range []struct {
		name  string
		steps []event.Event
		want  State
		bad   int // index of the step that is refused, -1: none
	}{
		{"confirmed", []event.Event{at(s, 1, ack)}, Confirmed, -1},
		{"confirmed twice", []event.Event{at(s, 1, ack), at(s, 2, ack)}, Confirmed, 1},
		{"late receipt", []event.Event{at(s, 1, event.SessionsUnconfirmed{}), at(s, 2, ack)}, Confirmed, -1},
		{"receipt at the end", []event.Event{at(s, time.Minute, ack)}, Issued, 0},
		{"receipt after revocation", []event.Event{at(s, 1, event.SessionRevoked{}), at(s, 2, ack)}, Revoked, 1},
		{"revoked twice", []event.Event{at(s, 1, event.SessionRevoked{}), at(s, 2, event.SessionRevoked{})}, Revoked, 1},
		{"expired too early", []event.Event{at(s, time.Minute-time.Microsecond, event.SessionsExpired{})}, Issued, 0},
		{"expired", []event.Event{at(s, time.Minute, event.SessionsExpired{})}, Expired, -1},
		{"closed", []event.Event{at(s, 1, ack), at(s, 2, event.SessionClosed{})}, Closed, -1},
		{"unconfirmed after receipt", []event.Event{at(s, 1, ack), at(s, 2, event.SessionsUnconfirmed{})}, Confirmed, 1},
		{"foreign event", []event.Event{at(s, 1, event.KeyRetired{})}, Issued, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := s
			for i, e := range c.steps {
				next, err := Apply(now, e)
				if errors.Is(err, ErrTransition) != (i == c.bad) {
					t.Fatalf("step %d: %v", i, err)
				}
				now = next
			}
			if now.State != c.want {
				t.Errorf("%s, want %s", now.State, c.want)
			}
		})
	}
}

func TestStateAtExpiresOnTheSecond(t *testing.T) {
	s := opened(t)
	if got := s.StateAt(start.Add(time.Minute - 1)); got != Issued {
		t.Error(got)
	}
	if got := s.StateAt(start.Add(time.Minute)); got != Expired {
		t.Error(got)
	}
}

// TestEndedStaysEnded: no sequence of events brings a session back, changes how it ended, or lets a refused
// event leave a trace.
func TestEndedStaysEnded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := opened(t)
		now := time.Duration(0)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			now += time.Duration(rapid.Int64Range(0, int64(20*time.Second)).Draw(t, "wait"))
			bodies := []event.Body{
				event.SessionConfirmed{Session: s.ID},
				event.SessionRevoked{Session: s.ID, Reason: "r"},
				event.SessionClosed{Session: s.ID},
				event.SessionsExpired{Sessions: []event.ID{s.ID}},
				event.SessionsUnconfirmed{Sessions: []event.ID{s.ID}},
			}
			next, err := Apply(s, at(s, now, rapid.SampledFrom(bodies).Draw(t, "event")))
			switch {
			case err != nil && !reflect.DeepEqual(next, s):
				t.Fatal("a refused event changed the session")
			case s.State.Ended() && err == nil:
				t.Fatalf("a session that was %s took an event", s.State)
			case err == nil && next.State.Ended() && next.EndedAt.IsZero():
				t.Fatal("ended without a time")
			case err == nil && next.State == Confirmed && now >= time.Minute:
				t.Fatal("confirmed after its end")
			}
			s = next
		}
	})
}

func TestParseState(t *testing.T) {
	for _, s := range []State{Issued, Confirmed, Unconfirmed, Exhausted, Expired, Revoked, Closed} {
		if got, err := ParseState(string(s)); err != nil || got != s {
			t.Errorf("%s: %v", s, err)
		}
	}
	if _, err := ParseState("Issued"); err == nil {
		t.Error("accepted another spelling")
	}
}

func TestUses(t *testing.T) {
	s, err := Open(event.New(start, "spiffe://example.org/a", event.SessionIssued{
		Session: event.NewID(start), Grade: "gated", Uses: 10, Epoch: "e", Expires: event.NewTime(start.Add(time.Minute)),
	}))
	if err != nil {
		t.Fatal(err)
	}
	use := func(s Session, number uint32, after time.Duration) (Session, error) {
		return Apply(s, at(s, after, event.SessionUsed{Session: s.ID, Number: number}))
	}
	for n, number := range []uint32{3, 10, 1, 2, 9, 8, 4, 5, 6} {
		before := s
		if s, err = use(s, number, 1); err != nil || s.Used != uint32(n+1) || s.State != Confirmed || !s.HasSpent(number) || before.HasSpent(number) {
			t.Fatalf("share %d: %v, %+v", number, err, s)
		}
		for _, wrong := range []uint32{number, 0, 11, 1 << 31} {
			if same, err := use(s, wrong, 1); !errors.Is(err, ErrTransition) || !reflect.DeepEqual(same, s) {
				t.Errorf("share %d after %d: %v", wrong, number, err)
			}
		}
	}
	if _, err := use(s, 7, time.Minute); !errors.Is(err, ErrTransition) {
		t.Errorf("at the end of its time: %v", err)
	}
	revoked, _ := Apply(s, at(s, 1, event.SessionRevoked{}))
	if _, err := use(revoked, 7, 2); !errors.Is(err, ErrTransition) {
		t.Errorf("after revocation: %v", err)
	}
	if s, err = use(s, 7, 1); err != nil || s.State != Exhausted || s.EndedAt.IsZero() {
		t.Errorf("the last share: %v, %+v", err, s)
	}
	if _, err := Apply(s, at(s, 2, event.SessionClosed{Session: s.ID})); !errors.Is(err, ErrTransition) {
		t.Errorf("closed after its last use: %v", err)
	}
	if _, err := Apply(s, at(s, time.Minute, event.SessionRevoked{Session: s.ID})); !errors.Is(err, ErrTransition) {
		t.Errorf("revoked when its time was over: %v", err)
	}
	revoked, err = Apply(s, at(s, 2, event.SessionRevoked{Session: s.ID, Reason: "r"}))
	if err != nil || revoked.State != Revoked || revoked.Reason != "r" || revoked.Used != 10 {
		t.Errorf("revoked after its last use: %v, %+v", err, revoked)
	}
	if _, err := Apply(revoked, at(s, 3, event.SessionRevoked{Session: s.ID, Reason: "again"})); !errors.Is(err, ErrTransition) {
		t.Errorf("revoked twice: %v", err)
	}
	if _, err := use(opened(t), 1, 1); !errors.Is(err, ErrTransition) {
		t.Errorf("a session that is not gated: %v", err)
	}
}
