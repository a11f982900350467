package decisions

import (
	"fmt"

	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/policy/replay"
)

// redecided returns the decisions by which sessions ended: each is on the signals that the session was delivered on,
// which an earlier event has.
func (r *Reader) redecided(b event.SessionsRevoked) []replay.Recorded {
	by := b.Redecided
	if by == nil {
		return nil
	}
	out := make([]replay.Recorded, 0, len(b.Sessions))
	for i, id := range b.Sessions {
		d := replay.Recorded{
			Session: id.String(), Action: string(policy.ActionDeliver), Wants: refuses, Revision: by.Revision, Sequence: by.Sequence,
		}
		if by.Unmet {
			d.Wants = permits
		}
		signals, err := r.again(id, by)
		switch {
		case err != nil:
			d.Gap = err.Error()
		case i >= len(by.Results):
			d.Gap = "the event has no result for this session"
		default:
			d.Signals, d.Sum = signals, by.Results[i]
		}
		out = append(out, d)
	}
	for _, id := range b.Sessions {
		delete(r.signals, id)
	}
	return out
}

// again are the signals that a session was judged on again.
func (r *Reader) again(id event.ID, by *event.Redecided) ([]byte, error) {
	text, ok := r.signals[id]
	if !ok {
		return nil, fmt.Errorf("the delivery of session %s is not in the events before", id)
	}
	if by.Level == "" {
		return text, nil
	}
	s, err := policy.ParseSignals(text)
	if err != nil {
		return nil, err
	}
	s.Principal.Level, s.Attestation = by.Level, nil
	if len(by.Attestation) > 0 {
		s.Attestation = new(policy.Attestation)
		if err := event.Unmarshal(by.Attestation, s.Attestation); err != nil {
			return nil, fmt.Errorf("the new attestation of the device: %w", err)
		}
		s.Attestation.IssuedAt = s.Now
	}
	return s.Encode()
}
