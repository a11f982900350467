// Package session says what a session is and how events change it: identifiers, states, and the pure
// function Apply. It stores nothing, knows no clock and makes no decision.
//
// A session is one delivery of one version of one secret to one instance:
//
//	issued → confirmed → (exhausted | expired | revoked | closed)        exhausted: at grades gated and proxied
//	issued → unconfirmed → confirmed | (expired | revoked | closed)      unconfirmed: noticed that no receipt came
//	exhausted → revoked
//
// A session in one of the states in parentheses has ended; it never lives again. One whose uses are spent can still
// be revoked before its time is over: the answer to its last use is given again for a while, and a revocation ends
// that too.
package session

import (
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
)

// State is a session's place in its life.
type State string

// The states of a session.
const (
	Issued      State = "issued"
	Confirmed   State = "confirmed"
	Unconfirmed State = "unconfirmed"
	Exhausted   State = "exhausted"
	Expired     State = "expired"
	Revoked     State = "revoked"
	Closed      State = "closed"
)

// Ended reports whether no event can bring the session back.
func (s State) Ended() bool {
	switch s {
	case Exhausted, Expired, Revoked, Closed:
		return true
	}
	return false
}

// ParseState reads a state's name.
func ParseState(s string) (State, error) {
	switch st := State(s); st {
	case Issued, Confirmed, Unconfirmed, Exhausted, Expired, Revoked, Closed:
		return st, nil
	}
	return "", fmt.Errorf("unknown session state %q: use issued, confirmed, unconfirmed, exhausted, expired, revoked or closed", s)
}

// ErrTransition says that an event does not fit the session's state, such as a receipt after revocation.
var ErrTransition = errors.New("session state does not allow this")

// Session is the state of one session, as its events made it.
type Session struct {
	ID             event.ID     `json:"id"`
	State          State        `json:"state"`
	RequestID      string       `json:"request_id"`
	Principal      string       `json:"principal"`
	Instance       string       `json:"instance"`
	Device         string       `json:"device,omitempty"`
	Secret         string       `json:"secret"`
	Version        uint32       `json:"version"`
	Class          string       `json:"class"`
	Grade          string       `json:"grade"`
	Suite          string       `json:"suite"`
	KeyID          string       `json:"key_id"`
	EnvelopeDigest event.Digest `json:"envelope_digest"`
	ReceiptLock    event.Digest `json:"receipt_lock"`
	Uses           uint32       `json:"uses,omitempty"`
	Used           uint32       `json:"used,omitempty"`    // uses that the broker counted, at grades gated and proxied
	Spent          string       `json:"spent,omitempty"`   // hexadecimal: a bit for each share that was given out, from the lowest of the first byte
	UsedAt         event.Time   `json:"used_at,omitzero"`  // the newest of them
	Epoch          string       `json:"epoch,omitempty"`   // of the use shares
	Offline        uint32       `json:"offline,omitempty"` // of the uses, those that may be fetched ahead
	Ahead          uint32       `json:"ahead,omitempty"`   // and those that were
	InHardware     bool         `json:"in_hardware,omitempty"`
	Place          *event.Place `json:"place,omitempty"`  // where it was delivered to; nil: not known
	Places         []string     `json:"places,omitempty"` // countries that it is bound to; none: not bound
	Issued         event.Time   `json:"issued_at"`
	Expires        event.Time   `json:"expires_at"`
	ReceiptBy      event.Time   `json:"receipt_by,omitzero"`
	ConfirmedAt    event.Time   `json:"confirmed_at,omitzero"`
	RevokedAt      event.Time   `json:"revoked_at,omitzero"`
	EndedAt        event.Time   `json:"ended_at,omitzero"`
	Reason         string       `json:"reason,omitempty"`
	Revision       event.Digest `json:"revision"`
	Reattest       uint32       `json:"reattest,omitempty"`  // seconds: how old the device's attestation may become
	Revocation     event.ID     `json:"revocation,omitzero"` // the order that ended it

	Split    *event.Split `json:"split,omitempty"` // who has to take part before it can be read; shared, never changed
	Approval event.ID     `json:"approval,omitzero"`

	// Erased is the index of the event that erased the session: nothing but ID and State is left of it. 0: it was not.
	Erased int64 `json:"erased,omitempty"`
}

// StateAt is the state as readers see it at now: a session past its end is expired at once, whether or
// not the sweeper has said so.
func (s Session) StateAt(now time.Time) State {
	if !s.State.Ended() && !now.Before(s.Expires.Time()) {
		return Expired
	}
	return s.State
}

// Open starts the session that e, a session.issued event, describes.
func Open(e event.Event) (Session, error) {
	b, ok := e.Body.(event.SessionIssued)
	if !ok {
		return Session{}, fmt.Errorf("open session from %T: %w", e.Body, ErrTransition)
	}
	s := Session{
		ID: b.Session, State: Issued, RequestID: b.Decision.RequestID, Principal: b.Principal, Instance: b.Instance,
		Device: b.Device, Secret: b.Secret, Version: b.Version, Class: b.Class, Grade: b.Grade, Suite: b.Suite,
		KeyID: b.KeyID, EnvelopeDigest: b.EnvelopeDigest, ReceiptLock: b.ReceiptLock, Uses: b.Uses, Epoch: b.Epoch, Offline: b.Offline, InHardware: b.InHardware, Place: b.Place, Places: b.Places, Issued: e.Time,
		Expires: b.Expires, ReceiptBy: b.ReceiptBy, Revision: b.Decision.Revision, Reattest: b.Reattest, Approval: b.Approval,
	}
	if b.Custody != nil {
		s.Split = &b.Custody.Split
	}
	return s, nil
}

// Apply returns what s becomes through e. An event that does not fit gives ErrTransition and leaves s.
// Time enters through e alone: what comes at or after the end is refused, but for the sweeper's word.
func Apply(s Session, e event.Event) (Session, error) {
	if s.Erased != 0 {
		return s, fmt.Errorf("session %s is %s, and was erased: %w", s.ID, s.State, ErrTransition)
	}
	past := !e.Time.Time().Before(s.Expires.Time())
	if s.State.Ended() && (s.State != Exhausted || !revokes(e.Body) || past) {
		return s, fmt.Errorf("session %s is %s: %w", s.ID, s.State, ErrTransition)
	}
	switch b := e.Body.(type) {
	case event.SessionConfirmed:
		if past || s.State == Confirmed {
			return s, fmt.Errorf("session %s is %s: %w", s.ID, s.StateAt(e.Time.Time()), ErrTransition)
		}
		s.State, s.ConfirmedAt = Confirmed, e.Time
	case event.SessionsUnconfirmed:
		if s.State != Issued || past {
			return s, fmt.Errorf("session %s is %s: %w", s.ID, s.StateAt(e.Time.Time()), ErrTransition)
		}
		s.State = Unconfirmed
	case event.SessionUsed:
		return s.use(b.Number, b.Ahead, e.Time)
	case event.SessionOperated:
		return s.operate(b.Most, e.Time)
	case event.SessionRevoked:
		s.State, s.RevokedAt, s.EndedAt, s.Reason = Revoked, e.Time, e.Time, b.Reason
	case event.SessionsRevoked:
		if b.Unreceipted && (s.State != Issued || past) {
			return s, fmt.Errorf("session %s is %s: %w", s.ID, s.StateAt(e.Time.Time()), ErrTransition)
		}
		s.State, s.RevokedAt, s.EndedAt, s.Reason, s.Revocation = Revoked, e.Time, e.Time, b.Reason, b.Revocation
	case event.SessionClosed:
		s.State, s.EndedAt = Closed, e.Time
	case event.SessionsExpired:
		if !past {
			return s, fmt.Errorf("session %s lives until %s: %w", s.ID, s.Expires, ErrTransition)
		}
		s.State, s.EndedAt = Expired, e.Time
	default:
		return s, fmt.Errorf("apply %T to session %s: %w", e.Body, s.ID, ErrTransition)
	}
	return s, nil
}

// revokes says whether an event ends a session by somebody's will.
func revokes(body event.Body) bool {
	switch b := body.(type) {
	case event.SessionRevoked:
		return true
	case event.SessionsRevoked:
		return !b.Unreceipted
	}
	return false
}

// use spends a share. The signed request for it is a receipt as good as any; the last use ends the session.
// One that is fetched ahead is a use like any other, and there are only so many.
func (s Session) use(number uint32, ahead bool, at event.Time) (Session, error) {
	switch {
	case s.Epoch == "" || !at.Time().Before(s.Expires.Time()):
		return s, fmt.Errorf("session %s is %s, of grade %s: %w", s.ID, s.StateAt(at.Time()), s.Grade, ErrTransition)
	case number == 0 || number > s.Uses || s.HasSpent(number):
		return s, fmt.Errorf("session %s has no share %d, or gave it out before: %w", s.ID, number, ErrTransition)
	case ahead && s.Ahead >= s.Offline:
		return s, fmt.Errorf("session %s gives %d shares ahead of their use, and did: %w", s.ID, s.Offline, ErrTransition)
	}
	if ahead {
		s.Ahead++
	}
	spent := make([]byte, (s.Uses+7)/8)
	_, _ = hex.Decode(spent, []byte(s.Spent)) // which is what this wrote
	spent[(number-1)/8] |= 1 << ((number - 1) % 8)
	s.Spent, s.Used, s.UsedAt = hex.EncodeToString(spent), s.Used+1, at
	if s.State != Confirmed {
		s.State, s.ConfirmedAt = Confirmed, at
	}
	if s.Used == s.Uses {
		s.State, s.EndedAt = Exhausted, at
	}
	return s, nil
}

// HasSpent says whether the share of this number was given out.
func (s Session) HasSpent(number uint32) bool {
	spent, err := hex.DecodeString(s.Spent)
	i := int(number-1) / 8
	return err == nil && number > 0 && i < len(spent) && spent[i]&(1<<((number-1)%8)) != 0
}
