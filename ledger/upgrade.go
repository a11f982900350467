package ledger

import (
	"context"
	"errors"
	"fmt"

	"github.com/bulla-project/bulla/keyring"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// Upgrade hands put each row that a store of format 1 lacks or has in an older form: where the denials and the activations
// are, and sessions with the time of their last use. Both are made of the events, as Check makes them. Whatever else is
// not what the events make stays as it is, for Check to find. Events that can't be read or do not fit, or blobs that are
// missing, give ErrTampered.
//
// progress, if it is not nil, is called now and then with the number of events that were looked at, and of all.
func Upgrade(ctx context.Context, snap Snapshot, keys *keyring.Ring, progress func(done, total int64), put func(Row) error) error {
	c, used := newChecker(snap, keys, progress), map[event.ID]event.Time{}
	var failed error
	c.watch = func(_ Stored, _ Entry, tx *checkTx) {
		for key, row := range tx.puts {
			if (key.Kind == KindDenial || key.Kind == KindActivation) && failed == nil {
				failed = put(row)
			}
			if at := tx.sessions[key].UsedAt; !at.IsZero() {
				used[tx.sessions[key].ID] = at
			}
		}
	}
	for _, step := range []func(context.Context) error{c.erasures, c.events} {
		if err := errors.Join(step(ctx), failed); err != nil {
			return fmt.Errorf("upgrade ledger: %w", err)
		}
	}
	if !c.report.OK() {
		d := c.report.Differences[0]
		return fmt.Errorf("upgrade ledger: %w: %s: %s (%d differences)", ErrTampered, d.Where, d.What, c.report.Faults)
	}
	if err := putUsedAt(ctx, snap, used, put); err != nil {
		return fmt.Errorf("upgrade ledger: %w", err)
	}
	return nil
}

// putUsedAt hands over the sessions that lack the time of their last use.
func putUsedAt(ctx context.Context, snap Snapshot, used map[event.ID]event.Time, put func(Row) error) error {
	for after := ""; ; {
		rows, err := snap.Rows(ctx, KindSession, after, MaxPage)
		if err != nil || len(rows) == 0 {
			return err
		}
		for _, r := range rows {
			after = r.Key
			s, err := decode[session.Session](r)
			if err != nil || used[s.ID].IsZero() || !s.UsedAt.IsZero() {
				continue
			}
			s.UsedAt = used[s.ID]
			value, err := event.Marshal(s)
			if err != nil {
				return err
			}
			if err := put(NewRow(r.RowKey, value, r.Seq)); err != nil {
				return err
			}
		}
	}
}
