package session

import (
	"errors"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
)

func proxiedOf(t *testing.T, uses uint32) Session {
	t.Helper()
	s, err := Open(event.New(start, "spiffe://example.org/a", event.SessionIssued{
		Session: event.NewID(start), Grade: "proxied", Uses: uses, Expires: event.NewTime(start.Add(time.Minute)),
	}))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func operate(s Session, most uint32, after time.Duration) (Session, error) {
	return Apply(s, at(s, after, event.SessionOperated{Session: s.ID, Most: most}))
}

func TestOperations(t *testing.T) {
	s := proxiedOf(t, 3)
	var err error
	for n := uint32(1); n <= 2; n++ {
		if s, err = operate(s, 0, 1); err != nil || s.Used != n || s.State != Confirmed || s.ConfirmedAt.IsZero() {
			t.Fatalf("operation %d: %v, %+v", n, err, s)
		}
	}
	for most, permitted := range map[uint32]bool{0: true, 1: false, 2: false, 3: true, 100: true} {
		if next, err := operate(s, most, 1); (err == nil) != permitted || err != nil && (!errors.Is(err, ErrTransition) || !reflect.DeepEqual(next, s)) {
			t.Errorf("a third one where %d are permitted: %v", most, err)
		}
	}
	if same, err := operate(s, 0, time.Minute); !errors.Is(err, ErrTransition) || !reflect.DeepEqual(same, s) {
		t.Errorf("at the end of its time: %v", err)
	}
	revoked, _ := Apply(s, at(s, 1, event.SessionRevoked{}))
	if _, err := operate(revoked, 0, 2); !errors.Is(err, ErrTransition) {
		t.Errorf("after revocation: %v", err)
	}
	if s, err = operate(s, 0, 1); err != nil || s.State != Exhausted || s.EndedAt.IsZero() {
		t.Fatalf("the last one: %v, %+v", err, s)
	}
	if _, err := operate(s, 0, 1); !errors.Is(err, ErrTransition) {
		t.Errorf("one more: %v", err)
	}
}

func TestUncountedOperations(t *testing.T) {
	s := proxiedOf(t, 0)
	s.Used = math.MaxUint32 - 1
	s, err := operate(s, 0, 1)
	if err != nil || s.State != Confirmed {
		t.Fatalf("%v, %+v", err, s)
	}
	if same, err := operate(s, 0, 1); !errors.Is(err, ErrTransition) || !reflect.DeepEqual(same, s) {
		t.Errorf("the count began again: %v", err)
	}
	for _, grade := range []string{"open", "gated", "leased", ""} {
		s := proxiedOf(t, 3)
		s.Grade = grade
		if _, err := operate(s, 0, 1); !errors.Is(err, ErrTransition) {
			t.Errorf("a session of grade %q: %v", grade, err)
		}
	}
	if _, err := Apply(proxiedOf(t, 3), at(s, 1, event.SessionUsed{Session: s.ID, Number: 1})); !errors.Is(err, ErrTransition) {
		t.Errorf("a share of a proxied session: %v", err)
	}
}
