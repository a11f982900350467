package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// sweepChunk is how many sessions one event ends. A chunk keeps the committer for a few milliseconds, and
// commits that came meanwhile go before the next one.
const sweepChunk = 100

// sweepTogether is how many chunks of a revocation may go into one batch: somebody waits for it.
const sweepTogether = 4

// ExpireSessions records the end of up to max sessions that are past it at now, and returns how many it
// found; less than max says that there are no more. It also drops request rows and counters that are over.
func (l *Ledger) ExpireSessions(ctx context.Context, now time.Time, max int) (int, error) {
	q := SessionQuery{ExpiresBefore: now}
	ended, err := l.sweep(ctx, now, max, q, func(ids []event.ID) event.Body { return event.SessionsExpired{Sessions: ids} })
	if err != nil {
		return len(ended), fmt.Errorf("expire sessions: %w", err)
	}
	// All that is over goes, a chunk at a time: most of it may belong to sessions that ended before their time.
	for dropped := page(max); dropped >= page(max); {
		if dropped, err = l.store.Sweep(ctx, now, page(max)); err != nil {
			return len(ended), fmt.Errorf("drop old requests: %w: %w", ErrUnavailable, err)
		}
	}
	return len(ended), nil
}

// sweep finds sessions by q and commits body for them in chunks, until max or none is left.
func (l *Ledger) sweep(ctx context.Context, now time.Time, max int, q SessionQuery, body func([]event.ID) event.Body) ([]session.Session, error) {
	var swept []session.Session
	for len(swept) < max {
		q.Max = min(sweepChunk, max-len(swept))
		due, err := l.Sessions(ctx, q)
		if err != nil {
			return swept, err
		}
		done, err := l.sweepThese(ctx, now, due, body)
		swept = append(swept, done...)
		if err != nil || len(due) < q.Max || len(done) == 0 {
			return swept, err // without progress the next round would find the same ones
		}
	}
	return swept, nil
}

// sweepThese commits body for due. A session that moved on since it was found (a late receipt, a
// revocation) spoils the whole event, so it is looked for by halves and left out.
func (l *Ledger) sweepThese(ctx context.Context, now time.Time, due []session.Session, body func([]event.ID) event.Body) ([]session.Session, error) {
	if len(due) == 0 {
		return nil, nil
	}
	ids := make([]event.ID, len(due))
	for i, s := range due {
		ids[i] = s.ID
	}
	_, err := l.Commit(ctx, Commit{Event: event.New(now, "", body(ids))})
	if err == nil {
		return due, nil
	}
	if !errors.Is(err, ErrTransition) {
		return nil, err
	}
	if len(due) == 1 {
		return nil, nil
	}
	first, err := l.sweepThese(ctx, now, due[:len(due)/2], body)
	if err != nil {
		return first, err
	}
	second, err := l.sweepThese(ctx, now, due[len(due)/2:], body)
	return append(first, second...), err
}

// EndUnreceipted ends up to max sessions whose receipt the policy demanded and that was not handed in in time, and
// returns them as they were before; less than max says that there are no more. Sessions that are past their end are
// left to ExpireSessions, which comes first.
func (l *Ledger) EndUnreceipted(ctx context.Context, now time.Time, max int, reason string) ([]session.Session, error) {
	q := SessionQuery{ReceiptBefore: now}
	late, err := l.sweep(ctx, now, max, q, func(ids []event.ID) event.Body {
		return event.SessionsRevoked{Sessions: ids, Reason: reason, Unreceipted: true}
	})
	if err != nil {
		return late, fmt.Errorf("end sessions without a receipt: %w", err)
	}
	return late, nil
}

// RevokeSessions ends those of the sessions that have not ended yet, in chunks, and returns them.
func (l *Ledger) RevokeSessions(ctx context.Context, now time.Time, ids []event.ID, reason string, order event.ID) (ended []event.ID, err error) {
	return l.RevokeAs(ctx, now, ids, func(ids []event.ID) event.SessionsRevoked {
		return event.SessionsRevoked{Sessions: ids, Reason: reason, Revocation: order}
	})
}

// RevokeAs is RevokeSessions with events of the caller's making; body is called for each chunk, by several goroutines.
func (l *Ledger) RevokeAs(
	ctx context.Context, now time.Time, ids []event.ID, body func([]event.ID) event.SessionsRevoked,
) (ended []event.ID, err error) {
	for together := range slices.Chunk(ids, sweepTogether*sweepChunk) {
		var wg sync.WaitGroup
		var mu sync.Mutex // guards ended and err
		for chunk := range slices.Chunk(together, sweepChunk) {
			wg.Go(func() {
				done, failure := l.revokeThese(ctx, now, chunk, body)
				mu.Lock()
				defer mu.Unlock()
				ended, err = append(ended, done...), errors.Join(err, failure)
			})
		}
		wg.Wait()
		if err != nil {
			return ended, fmt.Errorf("revoke sessions: %w", err)
		}
	}
	return ended, nil
}

// revokeThese commits one event. A session that has ended spoils it, so it is looked for by halves and left out.
func (l *Ledger) revokeThese(ctx context.Context, now time.Time, ids []event.ID, body func([]event.ID) event.SessionsRevoked) ([]event.ID, error) {
	_, err := l.Commit(ctx, Commit{Event: event.New(now, "", body(ids))})
	switch {
	case err == nil:
		return ids, nil
	case !errors.Is(err, ErrTransition):
		return nil, err
	case len(ids) == 1:
		return nil, nil
	}
	first, err := l.revokeThese(ctx, now, ids[:len(ids)/2], body)
	if err != nil {
		return first, err
	}
	second, err := l.revokeThese(ctx, now, ids[len(ids)/2:], body)
	return append(slices.Clip(first), second...), err
}
