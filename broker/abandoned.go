package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/round"
	"github.com/bulla-project/bulla/session"
)

// expireRound records that a round is past its end, and ends its session.
func (b *Broker) expireRound(ctx context.Context, now time.Time, r round.Round) error {
	err := b.record(ctx, event.New(now, r.Principal, event.RoundExpired{Round: r.ID}))
	if errors.Is(err, ledger.ErrTransition) { // it ended in another way
		return nil
	}
	if err != nil {
		return err
	}
	return b.abandoned(ctx, now, r.ID)
}

// abandoned ends the session of a split round that has ended without its shares being combined: nothing that it
// delivered will be read. One whose receipt is demanded and did not come is left to the sweeper, which notes that: a
// requester that has its shares must not get around the receipt by giving up. A stop in between leaves the session to
// its end.
func (b *Broker) abandoned(ctx context.Context, now time.Time, id event.ID) error {
	ctx = context.WithoutCancel(ctx)
	r, _, err := b.ledger.Round(ctx, id)
	if err != nil || r.Kind != round.Split || !r.State.Ended() || r.State == round.Combined {
		return err
	}
	s, _, err := b.ledger.Session(ctx, r.Session)
	if err != nil || s.StateAt(now).Ended() || s.State == session.Issued && !s.ReceiptBy.IsZero() {
		return err
	}
	reason := fmt.Sprintf("its round was %s before the shares were combined", r.State)
	err = b.record(ctx, event.New(now, s.Principal, event.SessionRevoked{Session: s.ID, Reason: reason}))
	if errors.Is(err, ledger.ErrTransition) { // it ended in another way
		return nil
	}
	return err
}
