package broker

import (
	"context"
	"crypto/sha256"
	"errors"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/session"
)

// whyEnd is why a session would not be delivered now.
type whyEnd struct {
	text   string // "": it would
	unmet  bool   // the policy permits, but the session does not keep its limits
	judged bool   // result is that of a decision
	result event.Digest
}

// endings are sessions that end by decisions, together where the reason is the same.
type endings map[whyEnd]map[event.ID]event.Digest

func (e endings) add(id event.ID, why whyEnd) {
	result := why.result
	why.result = event.Digest{}
	if e[why] == nil {
		e[why] = map[event.ID]event.Digest{}
	}
	e[why][id] = result
}

// wouldEnd says why a revision would not deliver now what it finds delivered: the recorded signals are judged again,
// with another appraisal of the device where one is given. What can't be judged ends.
func (b *Broker) wouldEnd(ctx context.Context, active *active, s session.Session, fresh *device) (whyEnd, error) {
	signals, err := b.recorded(ctx, s)
	if errors.Is(err, ledger.ErrNotFound) {
		return whyEnd{text: "its recorded signals are not there"}, nil
	}
	if err != nil {
		return whyEnd{}, err
	}
	if fresh != nil {
		signals.Attestation, signals.Principal.Level = fresh.facts()
		if signals.Attestation != nil {
			signals.Attestation.IssuedAt = signals.Now // it was made just now
		}
	}
	v, err := b.judge(ctx, active, signals, external{})
	if err != nil {
		return whyEnd{}, err
	}
	if v.decision.TimedOut { // says nothing about the session
		return whyEnd{}, errors.New("the active policy ran into its time limit while live sessions were decided again")
	}
	why := whyEnd{judged: true, result: sha256.Sum256(v.decision.Canonical())}
	permit, denied := v.permit()
	switch {
	case denied == nil:
		why.text = permit.stillMet(b.now(), s, false)
		why.unmet = why.text != ""
	case len(v.decision.Reasons) == 0 || !v.decision.Covered:
		why.text = "no grant covers it"
	default:
		why.text = v.decision.Reasons[0]
	}
	return why, nil
}

// facts are what the policy sees of a fresh appraisal.
func (d device) facts() (a *policy.Attestation, level string) {
	if d.result.HardwareBound() {
		return attestationFacts(d), policy.LevelHighAssurance
	}
	return attestationFacts(d), policy.LevelBasic
}

// endRedecided ends sessions, and records by which decisions.
func (b *Broker) endRedecided(ctx context.Context, active *active, ends endings, because string, fresh *device) error {
	by := event.Redecided{Revision: active.digest, Sequence: active.sequence}
	if fresh != nil {
		facts, level := fresh.facts()
		by.Level = level
		if facts != nil {
			facts.IssuedAt = 0 // that of the signals takes its place
			encoded, err := event.Marshal(facts)
			if err != nil {
				return err
			}
			by.Attestation = encoded
		}
	}
	for why, results := range ends {
		ids := make([]event.ID, 0, len(results))
		for id := range results {
			ids = append(ids, id)
		}
		by := by
		by.Unmet = why.unmet
		_, err := b.ledger.RevokeAs(ctx, b.now(), ids, func(ids []event.ID) event.SessionsRevoked {
			out := event.SessionsRevoked{Sessions: ids, Reason: because + why.text}
			if !why.judged {
				return out
			}
			by := by
			for _, id := range ids {
				by.Results = append(by.Results, results[id])
			}
			out.Redecided = &by
			return out
		})
		if err != nil {
			return err
		}
	}
	return nil
}
