package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/session"
)

// The share of live sessions, and the number, above which the end of sessions by a new revision is held.
const (
	defaultHoldShare   = 20
	defaultHoldMinimum = 10
)

// resweep is the re-evaluation of live sessions after a revision was activated.
type resweep struct {
	share, minimum uint64

	mu   *sync.Mutex // guards what it does: one at a time
	done *uint64     // guarded: sequence of the revision for which nothing is left to do
}

func newResweep(share, minimum int) resweep {
	if share <= 0 {
		share = defaultHoldShare
	}
	if minimum <= 0 {
		minimum = defaultHoldMinimum
	}
	return resweep{share: uint64(share), minimum: uint64(minimum), mu: new(sync.Mutex), done: new(uint64)}
}

// holds says whether so many of so many sessions are too many to end without somebody's word.
func (r resweep) holds(ending, live uint64) bool {
	return ending >= r.minimum && ending*100 > r.share*live
}

var errOvertaken = errors.New("another revision is active by now")

// Reconsider decides the live sessions again that were delivered under an earlier revision than the active one, with
// the signals that were recorded then, and ends those that it would not permit. Where these are too many, it waits
// for somebody's word. What a stop cuts short begins anew. Run calls it once a second; it is exported for tests.
func (b *Broker) Reconsider(ctx context.Context) error {
	b.resweep.mu.Lock()
	defer b.resweep.mu.Unlock()
	active, err := b.current(ctx)
	if err != nil || *b.resweep.done == active.sequence {
		return err
	}
	state, _, err := b.ledger.Sweep(ctx)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return err
	}
	confirmed := false
	if state.Sequence == active.sequence {
		if state.Outcome == event.SweepHeld {
			return nil
		}
		if confirmed = state.Outcome == event.SweepConfirmed; !confirmed {
			*b.resweep.done = active.sequence
			return nil
		}
	}
	err = b.reconsider(ctx, active, confirmed)
	if errors.Is(err, errOvertaken) || errors.Is(err, ledger.ErrTransition) {
		return nil // the next round begins with the revision of then
	}
	return err
}

func (b *Broker) reconsider(ctx context.Context, active *active, confirmed bool) error {
	var live, examined uint64
	ends := endings{}
	ending := uint64(0)
	err := b.live(ctx, func(page []session.Session) error {
		if now, err := b.current(ctx); err != nil || now.seq != active.seq {
			return errors.Join(err, errOvertaken)
		}
		for _, s := range page {
			live++
			if s.Revision == active.digest {
				continue
			}
			examined++
			why, err := b.wouldEnd(ctx, active, s, nil)
			if err != nil {
				return err
			}
			if why.text != "" {
				ends.add(s.ID, why)
				ending++
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	swept := event.RevisionSwept{Digest: active.digest, Sequence: active.sequence, Outcome: event.SweepDone, Examined: examined, Ending: ending}
	if !confirmed && b.resweep.holds(ending, live) {
		swept.Outcome = event.SweepHeld
		b.logger.Warn("a new policy revision would end many sessions: confirm it with `bulla session revoke --sweep confirm`", "sequence", active.sequence, "ending", ending, "live", live)
		return b.sweptBy(ctx, active, swept)
	}
	if err := b.endRedecided(ctx, active, ends, fmt.Sprintf("revision %d would not permit it: ", active.sequence), nil); err != nil {
		return err
	}
	if examined > 0 { // else there is nothing to tell
		if err := b.sweptBy(ctx, active, swept); err != nil {
			return err
		}
	}
	*b.resweep.done = active.sequence
	return nil
}

func (b *Broker) sweptBy(ctx context.Context, active *active, swept event.RevisionSwept) error {
	commit := ledgerCommit(event.New(b.now(), "", swept))
	commit.Require = []ledger.Precondition{active.unchanged()}
	_, err := b.ledger.Commit(ctx, commit)
	if errors.Is(err, ledger.ErrPrecondition) {
		return errOvertaken
	}
	return err
}

// recorded are the signals that a session was delivered on.
func (b *Broker) recorded(ctx context.Context, s session.Session) (policy.Signals, error) {
	request, err := b.ledger.Request(ctx, deliveryKey(s.Principal, s.RequestID))
	if err != nil {
		return policy.Signals{}, err
	}
	entries, err := b.ledger.Events(ctx, request.Index, 1)
	if err != nil {
		return policy.Signals{}, err
	}
	if len(entries) == 0 {
		return policy.Signals{}, ledger.ErrNotFound
	}
	if entries[0].Erased != 0 {
		return policy.Signals{}, ledger.ErrNotFound
	}
	body, ok := entries[0].Event.Body.(event.SessionIssued)
	if !ok || body.Session != s.ID {
		return policy.Signals{}, fmt.Errorf("event %d: %w: it does not open session %s", request.Index, ledger.ErrTampered, s.ID)
	}
	return policy.ParseSignals(body.Decision.Signals)
}

// DecideSweep confirms or drops what is held. It is part of activating a revision, and decided as that.
func (s revocations) DecideSweep(ctx context.Context, in *bullav1.DecideSweepRequest) (*bullav1.SweepStatus, error) {
	if in.GetReason() == "" || len(in.GetReason()) > maxReason {
		return nil, wrong("the decision needs a reason of 1 to %d bytes", maxReason)
	}
	return twice(func() (*bullav1.SweepStatus, error) { return s.decideSweep(ctx, in) })
}

func (s revocations) decideSweep(ctx context.Context, in *bullav1.DecideSweepRequest) (*bullav1.SweepStatus, error) {
	active, err := s.current(ctx)
	if err != nil {
		return nil, s.unavailable(err)
	}
	facts := policy.Resource{Kind: policy.KindRevision, Revision: &policy.NewRules{Digest: active.digest.String(), Name: active.revision.Name()}}
	op, err := s.authorise(ctx, policy.ActionPolicyPush, facts)
	if err != nil {
		return nil, err
	}
	held, _, err := s.ledger.Sweep(ctx)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return nil, s.answer(ctx, op.caller, err)
	}
	if held.Outcome != event.SweepHeld || held.Sequence != op.permit.active.sequence {
		if err := s.permitted(ctx, op); err != nil {
			return nil, err
		}
		return nil, missing("no sessions are held: see `bulla policy list`")
	}
	outcome := event.SweepDropped
	if in.GetConfirm() {
		outcome = event.SweepConfirmed
	}
	commit := ledgerCommit(event.New(op.now, op.id.String(), event.RevisionSwept{
		Digest: held.Digest, Sequence: held.Sequence, Outcome: outcome, Examined: held.Examined, Ending: held.Ending, Reason: in.GetReason(), By: op.by(),
	}))
	commit.Require = []ledger.Precondition{op.permit.active.unchanged()}
	if _, err := s.ledger.Commit(ctx, commit); err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	return &bullav1.SweepStatus{Digest: held.Digest.String(), Sequence: held.Sequence, Outcome: outcome, Examined: held.Examined, Ending: held.Ending}, nil
}

// sweepText says how far the effect of the active revision is; "" where there is nothing to say.
func (b *Broker) sweepText(ctx context.Context, sequence uint64) (text string, held bool) {
	s, _, err := b.ledger.Sweep(ctx)
	if err != nil || s.Sequence != sequence {
		return "", false
	}
	switch s.Outcome {
	case event.SweepHeld:
		return fmt.Sprintf("held: it would end %d of %d sessions", s.Ending, s.Examined), true
	case event.SweepConfirmed:
		return fmt.Sprintf("confirmed: it is ending %d of %d sessions", s.Ending, s.Examined), false
	case event.SweepDropped:
		return fmt.Sprintf("dropped: %d sessions live on until they end", s.Ending), false
	}
	return fmt.Sprintf("done: it ended %d of %d sessions", s.Ending, s.Examined), false
}

// tend does once a second what takes its time: orders that are left over, sessions under a new revision,
// attestations that are due.
func (b *Broker) tend(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if err := b.finishOrders(ctx); err != nil && ctx.Err() == nil {
			b.logger.Error("revocations could not be carried out", "error", err)
		}
		if err := b.Reconsider(ctx); err != nil && ctx.Err() == nil {
			b.logger.Error("sessions could not be decided again under the active revision", "error", err)
		}
		if err := b.TendShadow(ctx); err != nil && ctx.Err() == nil {
			b.logger.Error("the shadow could not be looked after", "error", err)
		}
		if err := b.Reattest(ctx); err != nil && ctx.Err() == nil {
			b.logger.Error("attestations that are due could not be looked after", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// sweepCheck is what Doctor says where the effect of the active revision is held.
func (b *Broker) sweepCheck(ctx context.Context) []Check {
	active, err := b.current(ctx)
	if err != nil {
		return nil // which another check says
	}
	text, held := b.sweepText(ctx, active.sequence)
	if text == "" {
		return nil
	}
	c := Check{Name: "live sessions", Fine: text, Hint: "decide with `bulla session revoke --sweep confirm` or `--sweep drop`, as security"}
	if held {
		c.Err = fmt.Errorf("the sweep of revision %d is %s", active.sequence, text)
	}
	return []Check{c}
}
