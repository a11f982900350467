package ledger

import (
	"context"
	"errors"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/round"
)

// RoundBlob is the key of the blob that holds the manifest and the sealed shares of a round. It goes with the event that
// ends the round.
func RoundBlob(id event.ID) string { return "round/" + id.String() }

// Round returns a round by its id.
func (l *Ledger) Round(ctx context.Context, id event.ID) (round.Round, int64, error) {
	return read[round.Round](ctx, l, KindRound, id.String())
}

// RoundsAfter lists up to max rounds whose id is greater than after, by id, which is by the time they were asked for.
func (l *Ledger) RoundsAfter(ctx context.Context, after string, max int) ([]round.Round, error) {
	return list[round.Round](ctx, l, KindRound, after, max)
}

// RoundsSince is the key after which RoundsAfter finds what was asked for at or after t.
func RoundsSince(t time.Time) string { return event.IDsFrom(t) }

// rounds applies what a delivery means for rounds: it opens the one of its custodians, and spends the approvals that
// it was permitted on.
func (p projection) rounds(b event.SessionIssued, ev event.Event) error {
	if b.Custody != nil {
		if err := p.roundOpened(ev); err != nil {
			return err
		}
	}
	if b.Approval.IsZero() {
		return nil
	}
	return p.round(b.Approval, ev)
}

func (p projection) roundOpened(ev event.Event) error {
	r, err := round.Start(ev)
	if err != nil {
		return refuse("%w", err)
	}
	switch _, err := p.tx.Get(RowKey{KindRound, r.ID.String()}); {
	case err == nil:
		return refuse("round %s exists already", r.ID)
	case !errors.Is(err, ErrNotFound):
		return err
	}
	return put(p, KindRound, r.ID.String(), r)
}

func (p projection) round(id event.ID, ev event.Event) error {
	r, ok, err := get[round.Round](p, KindRound, id.String())
	if err != nil {
		return err
	}
	if !ok {
		return refuse("there is no round %s", id)
	}
	if r, err = round.Apply(r, ev); err != nil {
		return refuse("%w", err)
	}
	// Nobody asks for the shares of a round that has ended. Where the holders have them there is only the manifest.
	if r.Kind == round.Split && r.State.Ended() && !r.Source {
		if err := p.tx.DropBlob(RoundBlob(r.ID)); err != nil {
			return err
		}
	}
	return put(p, KindRound, id.String(), r)
}
