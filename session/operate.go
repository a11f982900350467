package session

import (
	"fmt"
	"math"

	"github.com/bulla-project/bulla/ledger/event"
)

// proxied is the grade whose sessions are operated.
const proxied = "proxied"

// operate counts an operation with the key of the session: at most as many as the session has, and as the decision
// behind this one permits; 0 is no limit. The signed request for it is a receipt as good as any; the last use ends the
// session.
func (s Session) operate(most uint32, at event.Time) (Session, error) {
	switch {
	case s.Grade != proxied || !at.Time().Before(s.Expires.Time()):
		return s, fmt.Errorf("session %s is %s, of grade %s: %w", s.ID, s.StateAt(at.Time()), s.Grade, ErrTransition)
	case most > 0 && s.Used >= most, s.Used == math.MaxUint32:
		return s, fmt.Errorf("session %s was used %d times, and no more is permitted: %w", s.ID, s.Used, ErrTransition)
	}
	s.Used, s.UsedAt = s.Used+1, at
	if s.State != Confirmed {
		s.State, s.ConfirmedAt = Confirmed, at
	}
	if s.Used == s.Uses {
		s.State, s.EndedAt = Exhausted, at
	}
	return s, nil
}
