// Package round says what a round is and how events change it: states, and the pure function Apply. It stores
// nothing, knows no clock and makes no decision.
//
// A round is other people's part in one delivery. It is of one of two kinds:
//
//	split     a delivery whose reader needs shares of Threshold holders; the round has the session's id
//	approval  a delivery that needs Count approvals by a role; the round has the id of the request that will ask for it
//
//	open → approved → (consumed | combined)        consumed: approval; combined: split, by the requester's word
//	open → (rejected | cancelled | expired)        approved → (cancelled | expired)
//
// A round in one of the states in parentheses has ended; it never lives again, and nobody answers it any more. While
// a split round is approved the other holders may still answer: a bad share is made up for by another one.
package round

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
)

// Kind is what a round is for.
type Kind string

// The kinds of rounds.
const (
	Split    Kind = "split"
	Approval Kind = "approval"
)

// State is a round's place in its life.
type State string

// The states of a round.
const (
	Open      State = "open"
	Approved  State = "approved"
	Consumed  State = "consumed"
	Combined  State = "combined"
	Rejected  State = "rejected"
	Cancelled State = "cancelled"
	Expired   State = "expired"
)

// Ended reports whether no event can bring the round back.
func (s State) Ended() bool { return s != Open && s != Approved }

// MaxAnswers bounds the answers of a round.
const MaxAnswers = 64

// ErrTransition says that an event does not fit the round's state, such as an approval after its end.
var ErrTransition = errors.New("the round's state does not allow this")

// Answer is what one holder or approver said. Event is where its words are.
type Answer struct {
	Holder   string     `json:"holder"`
	Event    event.ID   `json:"event"`
	At       event.Time `json:"at"`
	Approved bool       `json:"approved,omitempty"`
	Reason   string     `json:"reason,omitempty"`
}

// Round is the state of one round, as its events made it.
type Round struct {
	ID        event.ID     `json:"id"`
	Kind      Kind         `json:"kind"`
	State     State        `json:"state"`
	Principal string       `json:"principal"` // the requester
	Instance  string       `json:"instance"`
	RequestID string       `json:"request_id"`
	Payload   event.Digest `json:"payload"` // of the request that it is bound to
	Secret    string       `json:"secret"`
	Version   uint32       `json:"version"`
	Class     string       `json:"class"`
	Needed    uint32       `json:"needed"`            // approvals
	Role      string       `json:"role,omitempty"`    // of those who may approve
	Holders   []string     `json:"holders,omitempty"` // who has a share
	Manifest  event.Digest `json:"manifest,omitzero"`
	Shares    event.Digest `json:"shares,omitzero"`
	Source    bool         `json:"source,omitempty"`
	Issued    []string     `json:"issued,omitempty"` // holders that were given their share
	Answers   []Answer     `json:"answers,omitempty"`
	Bad       []string     `json:"bad,omitempty"`    // holders whose shares did not fit, as the requester says
	Event     event.ID     `json:"event"`            // that opened it, and holds the requester's signed call
	Session   event.ID     `json:"session,omitzero"` // that it was opened with, or that consumed it
	Opened    event.Time   `json:"opened_at"`
	Expires   event.Time   `json:"expires_at"`
	EndedAt   event.Time   `json:"ended_at,omitzero"`
}

// StateAt is the state as readers see it at now: a round past its end is expired at once.
func (r Round) StateAt(now time.Time) State {
	if !r.State.Ended() && !now.Before(r.Expires.Time()) {
		return Expired
	}
	return r.State
}

// Approvals counts those who said yes.
func (r Round) Approvals() (n uint32) {
	for _, a := range r.Answers {
		if a.Approved {
			n++
		}
	}
	return n
}

// Answered returns a holder's answer.
func (r Round) Answered(holder string) (Answer, bool) {
	i := slices.IndexFunc(r.Answers, func(a Answer) bool { return a.Holder == holder })
	if i < 0 {
		return Answer{}, false
	}
	return r.Answers[i], true
}

// Start opens the round that e describes: a round.opened event, or a delivery with custody.
func Start(e event.Event) (Round, error) {
	var r Round
	switch b := e.Body.(type) {
	case event.RoundOpened:
		r = Round{
			ID: b.Round, Kind: Approval, Principal: b.Principal, Instance: b.Instance, RequestID: b.Request.RequestID, Payload: b.Payload,
			Secret: b.Secret, Version: b.Version, Class: b.Class, Needed: b.Count, Role: b.Role, Expires: b.Expires,
		}
		if b.Role == "" || b.Count == 0 || b.Count > MaxAnswers {
			return Round{}, fmt.Errorf("round %s: %d approvals of role %q: %w", b.Round, b.Count, b.Role, ErrTransition)
		}
	case event.SessionIssued:
		c := b.Custody
		if c == nil || c.Threshold < 2 || int(c.Threshold) > len(c.Holders) || len(c.Holders) > MaxAnswers || slices.Contains(c.Holders, b.Principal) {
			return Round{}, fmt.Errorf("round %s: its holders can't be those of a delivery to %s: %w", b.Session, b.Principal, ErrTransition)
		}
		r = Round{
			ID: b.Session, Kind: Split, Principal: b.Principal, Instance: b.Instance, RequestID: c.Request.RequestID,
			Secret: b.Secret, Version: b.Version, Class: b.Class, Needed: c.Threshold, Holders: c.Holders, Manifest: c.Manifest, Shares: c.Shares,
			Source: c.Source, Payload: sha256.Sum256(c.Request.Payload), Session: b.Session, Expires: c.Expires,
		}
	default:
		return Round{}, fmt.Errorf("open round from %T: %w", e.Body, ErrTransition)
	}
	if r.ID.IsZero() || r.Principal == "" || !e.Time.Time().Before(r.Expires.Time()) {
		return Round{}, fmt.Errorf("round %s: it needs an id, a requester, and an end after its start: %w", r.ID, ErrTransition)
	}
	r.State, r.Event, r.Opened = Open, e.ID, e.Time
	return r, nil
}

// Apply returns what r becomes through e. An event that does not fit gives ErrTransition and leaves r.
func Apply(r Round, e event.Event) (Round, error) {
	past := !e.Time.Time().Before(r.Expires.Time())
	_, sweep := e.Body.(event.RoundExpired)
	if r.State.Ended() || past != sweep {
		return r, fmt.Errorf("round %s is %s: %w", r.ID, r.StateAt(e.Time.Time()), ErrTransition)
	}
	switch b := e.Body.(type) {
	case event.ShareIssued:
		return r.issue(b.Holder)
	case event.RoundApproved:
		return r.answer(Answer{Holder: b.Holder, Event: e.ID, At: e.Time, Approved: true})
	case event.RoundRejected:
		return r.answer(Answer{Holder: b.Holder, Event: e.ID, At: e.Time, Reason: b.Reason})
	case event.SessionIssued:
		return r.consume(b, e.Time)
	case event.RoundClosed:
		if b.Combined && (r.Kind != Split || r.State != Approved) {
			return r, fmt.Errorf("round %s of kind %s is %s: %w", r.ID, r.Kind, r.State, ErrTransition)
		}
		for _, holder := range b.Bad {
			if a, ok := r.Answered(holder); !ok || !a.Approved {
				return r, fmt.Errorf("round %s has no share of %s: %w", r.ID, holder, ErrTransition)
			}
		}
		r.State, r.EndedAt, r.Bad = Cancelled, e.Time, b.Bad
		if b.Combined {
			r.State = Combined
		}
	case event.RoundExpired:
		r.State, r.EndedAt = Expired, e.Time
	default:
		return r, fmt.Errorf("apply %T to round %s: %w", e.Body, r.ID, ErrTransition)
	}
	return r, nil
}

// issue notes that a holder has its share. It may be given again: a custodian that lost its answer asks once more.
func (r Round) issue(holder string) (Round, error) {
	if r.Kind != Split || r.Source || !slices.Contains(r.Holders, holder) {
		return r, fmt.Errorf("round %s has no share for %s: %w", r.ID, holder, ErrTransition)
	}
	if _, done := r.Answered(holder); done {
		return r, fmt.Errorf("%s has answered round %s: %w", holder, r.ID, ErrTransition)
	}
	if !slices.Contains(r.Issued, holder) {
		r.Issued = append(slices.Clip(r.Issued), holder)
	}
	return r, nil
}

// answer adds a yes or a no: one of each holder, and none of the requester.
func (r Round) answer(a Answer) (Round, error) {
	_, twice := r.Answered(a.Holder)
	switch {
	case a.Holder == r.Principal:
		return r, fmt.Errorf("%s asked for round %s itself: %w", a.Holder, r.ID, ErrTransition)
	case r.Kind == Split && !slices.Contains(r.Holders, a.Holder):
		return r, fmt.Errorf("%s holds no share of round %s: %w", a.Holder, r.ID, ErrTransition)
	case twice || len(r.Answers) >= MaxAnswers:
		return r, fmt.Errorf("%s has answered round %s before: %w", a.Holder, r.ID, ErrTransition)
	}
	r.Answers = append(slices.Clip(r.Answers), a)
	yes := r.Approvals()
	no := uint32(len(r.Answers)) - yes
	switch {
	case r.Kind == Approval && no > 0, r.Kind == Split && no > uint32(len(r.Holders))-r.Needed:
		r.State, r.EndedAt = Rejected, a.At
	case yes >= r.Needed:
		r.State = Approved
	}
	return r, nil
}

// consume spends the approvals on the one delivery that they were asked for.
func (r Round) consume(b event.SessionIssued, at event.Time) (Round, error) {
	if r.Kind != Approval || b.Approval != r.ID || b.Principal != r.Principal || b.Instance != r.Instance || b.Secret != r.Secret ||
		b.Version != r.Version || b.Decision.RequestID != r.ID.String() {
		return r, fmt.Errorf("the approvals of round %s are for another delivery: %w", r.ID, ErrTransition)
	}
	r.State, r.Session, r.EndedAt = Consumed, b.Session, at
	return r, nil
}
