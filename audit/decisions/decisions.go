// Package decisions finds the recorded decisions in the events of a ledger, for package policy/replay.
//
// It reads events in the order of their indexes, wherever they come from, and judges nothing: whether they are those that
// the log has signed is for package audit to say.
package decisions

import (
	"fmt"
	"slices"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/policy/replay"
)

var (
	permits = []policy.Effect{policy.Permit}
	refuses = []policy.Effect{policy.Deny, policy.StepUp}
	stepsUp = []policy.Effect{policy.StepUp}
	unmets  = []policy.Effect{policy.Permit, policy.StepUp}

	anyEffect = []policy.Effect{policy.Permit, policy.Deny, policy.StepUp}
)

// Secret is what the record knows of a secret.
type Secret struct {
	Name, Class, Type string
	Version           uint32
}

// Revision is an activation, as the record has it.
type Revision struct {
	Digest   event.Digest
	Sequence uint64
	At       time.Time
}

// KindErased is the kind of what stands for an event that was erased.
const KindErased = "erased"

// Reader follows the events of a ledger from its first one on. The zero value is ready.
type Reader struct {
	secrets  map[string]Secret
	last     Revision
	sequence map[uint64]event.Digest
	signals  map[event.ID][]byte // those that live sessions were delivered on
}

// Secrets are all that were put so far, by name.
func (r *Reader) Secrets() map[string]Secret { return r.secrets }

// Active is the revision that was activated last.
func (r *Reader) Active() Revision { return r.last }

// Add takes the next event, and returns the decisions that it records. One without a body was erased: whether it held a
// decision is not known, and it counts as one that can't be judged.
func (r *Reader) Add(index int64, e event.Event) []replay.Recorded {
	if r.secrets == nil {
		r.secrets, r.sequence, r.signals = map[string]Secret{}, map[uint64]event.Digest{}, map[event.ID][]byte{}
	}
	if e.Body == nil {
		return []replay.Recorded{{Index: index, Kind: KindErased, Gap: "it was erased: the log proves only that there was an event"}}
	}
	before := r.last
	r.follow(e)
	out := r.of(e)
	for i := range out {
		d := &out[i]
		d.Index, d.Event, d.Time, d.Kind = index, e.ID.String(), e.Time.Time(), string(e.Body.EventType())
		if d.Gap == "" {
			d.Wrong = r.contradiction(*d, before)
		}
	}
	return out
}

// contradiction says what is wrong with the revision that a decision names: it has to be one that was activated before,
// and for what was permitted the one that decided when the event was committed.
func (r *Reader) contradiction(d replay.Recorded, before Revision) string {
	digest, known := r.sequence[d.Sequence]
	switch {
	case !known || d.Sequence > before.Sequence:
		return fmt.Sprintf("the event names %x as revision %d, and the record activated none as that before", d.Revision, d.Sequence)
	case digest != d.Revision:
		return fmt.Sprintf("the event names %x as revision %d, and the record activated %s as that", d.Revision, d.Sequence, digest)
	case d.Sequence != before.Sequence && d.Kind != string(event.TypeSessionsRevoked) && slices.Equal(d.Wants, permits):
		return fmt.Sprintf("it was permitted under revision %d, and revision %d decided by then", d.Sequence, before.Sequence)
	}
	return ""
}

// follow keeps what later events refer to.
func (r *Reader) follow(e event.Event) {
	switch b := e.Body.(type) {
	case event.RevisionActivated:
		r.last = Revision{b.Digest, b.Sequence, e.Time.Time()}
		r.sequence[b.Sequence] = b.Digest
	case event.SecretPut:
		r.secrets[b.Name] = Secret{b.Name, b.Class, b.Type, b.Version}
	case event.SessionIssued:
		r.signals[b.Session] = b.Decision.Signals
	case event.SessionClosed:
		delete(r.signals, b.Session)
	case event.SessionRevoked:
		delete(r.signals, b.Session)
	case event.SessionsExpired:
		for _, id := range b.Sessions {
			delete(r.signals, id)
		}
	}
}

// of returns the decisions of an event.
func (r *Reader) of(e event.Event) []replay.Recorded {
	switch b := e.Body.(type) {
	case event.SessionIssued:
		d := recorded(b.Decision, b.Principal, permits)
		d.Secret, d.Session = b.Secret, b.Session.String()
		return []replay.Recorded{d}
	case event.SessionUsed:
		return ofSession(b.Decision, e.Subject, b.Session)
	case event.SessionOperated:
		return ofSession(b.Decision, e.Subject, b.Session)
	case event.DecisionDenied:
		wants := refuses
		if b.Unmet != "" { // it was not the policy that refused: what it permitted, or left to a second person, can't be done
			wants = unmets
		}
		return []replay.Recorded{recorded(b.Decision, b.Principal, wants)}
	case event.OperationPermitted:
		return []replay.Recorded{recorded(b.Decision, b.Principal, permits)}
	case event.RoundOpened:
		d := recorded(b.Decision, b.Principal, stepsUp)
		d.Secret = b.Secret
		return []replay.Recorded{d}
	case event.ShareIssued:
		return []replay.Recorded{recorded(b.Decision, b.Holder, permits)}
	case event.RoundApproved:
		return []replay.Recorded{recorded(b.Decision, b.Holder, permits)}
	case event.RoundRejected:
		return []replay.Recorded{recorded(b.Decision, b.Holder, permits)}
	case event.RefusalsCounted:
		return []replay.Recorded{{
			Principal: b.Principal, Count: b.Count,
			Gap: fmt.Sprintf("%d refusals of the limiter (%s) were counted and not recorded one by one", b.Count, b.Limit),
		}}
	case event.SessionsRevoked:
		return r.redecided(b)
	}
	return administrative(e)
}

func ofSession(d event.Decision, principal string, session event.ID) []replay.Recorded {
	out := recorded(d, principal, permits)
	out.Session = session.String()
	return []replay.Recorded{out}
}

// administrative returns the decision behind a change. What the broker does by itself has none.
func administrative(e event.Event) []replay.Recorded {
	var by *event.Decision
	session, wants := "", permits
	switch b := e.Body.(type) {
	case event.RevisionActivated:
		by = b.By
	case event.SecretPut:
		by = b.By
	case event.DeviceEnrolled:
		by = b.By
	case event.DeviceRevoked:
		by = b.By
	case event.SessionRevoked:
		by, session = b.By, b.Session.String()
	case event.RevocationOrdered:
		by = b.By
	case event.RevisionSwept:
		by = b.By
	default:
		by, wants = others(b)
	}
	if by == nil {
		return nil
	}
	out := recorded(*by, "", wants)
	out.Session = session
	return []replay.Recorded{out}
}

// others are the decisions about revisions that are not active, and about erasures.
func others(body event.Body) (by *event.Decision, wants []policy.Effect) {
	switch b := body.(type) {
	case event.RevisionStaged:
		return b.By, permits
	case event.RevisionProposed: // it asks for a second person
		return b.By, stepsUp
	case event.ShadowStarted:
		return b.By, permits
	case event.ShadowDiffered: // what held, whatever it was
		return &b.Decision, anyEffect
	case event.ShadowEnded:
		return b.By, permits
	case event.SubjectErased:
		return b.By, permits
	case event.HoldPlaced:
		return b.By, permits
	case event.HoldReleased:
		return b.By, permits
	}
	return nil, nil
}

func recorded(d event.Decision, principal string, wants []policy.Effect) replay.Recorded {
	return replay.Recorded{
		Principal: principal, RequestID: d.RequestID, Action: d.Action, Effect: policy.Effect(d.Effect), Wants: wants,
		Revision: d.Revision, Sequence: d.Sequence, Signals: d.Signals, Result: d.Result,
	}
}
