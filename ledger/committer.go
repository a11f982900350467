package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Pauses between attempts to recover a store.
const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// commitLoop is the one goroutine that appends. It ends when the queue is closed and empty.
func (l *Ledger) commitLoop(ctx context.Context) {
	defer close(l.done)
	for {
		batch := l.queue.take()
		if batch == nil {
			if l.queue.isClosed() {
				return
			}
			continue // all of it was withdrawn
		}
		if err := l.append(ctx, batch); err != nil && !l.heal(ctx, err) {
			return
		}
	}
}

// append brings a batch to an end: each waiter is finished when it returns. The error says that the store
// is broken and could not be recovered.
func (l *Ledger) append(ctx context.Context, batch []*waiter) error {
	records := make([]Record, len(batch))
	for i, w := range batch {
		records[i] = w.record
	}
	outcomes, err := l.store.Append(ctx, records)
	switch {
	case err == nil && len(outcomes) == len(batch):
		return l.publish(ctx, batch, outcomes)
	case err == nil:
		err = fmt.Errorf("store answered %d of %d commits", len(outcomes), len(batch))
	}
	if errors.Is(err, ErrNotApplied) && !errors.Is(err, ErrBroken) {
		return l.bisect(ctx, batch, err)
	}
	return l.resolve(ctx, batch, err)
}

// publish hands out the outcomes of a batch that is durable.
func (l *Ledger) publish(ctx context.Context, batch []*waiter, outcomes []Outcome) error {
	var again []*waiter
	size := int64(0)
	for i, o := range outcomes {
		if o.Err == nil {
			size = max(size, o.Index+1)
			l.cache.update(o.Changed)
			l.recent.add(o.Index, batch[i].record.Event)
			l.subjects.stored(batch[i].record.Subject, o.Changed)
			l.forgetErased(batch[i].record)
		}
	}
	l.grow(size)
	for i, o := range outcomes {
		w := batch[i]
		if errors.Is(o.Err, ErrSubjectKey) {
			if o.Err = l.reseal(w); o.Err == nil {
				again = append(again, w)
				continue
			}
		}
		w.finish(o.Index, o.Err)
	}
	if len(again) > 0 {
		return l.append(ctx, again)
	}
	return nil
}

// reseal seals w under a new key, since the store does not take its own any more; once is enough.
func (l *Ledger) reseal(w *waiter) error {
	if w.resealed {
		return fmt.Errorf("%w: %w: %w", ErrUnavailable, ErrNotApplied, ErrSubjectKey)
	}
	w.resealed = true
	l.subjects.forget(w.record.Subject)
	return l.seal(w)
}

// bisect appends the halves of a batch that left nothing, so that a commit that the store can't take fails
// alone.
func (l *Ledger) bisect(ctx context.Context, batch []*waiter, cause error) error {
	if len(batch) == 1 {
		batch[0].finish(0, fmt.Errorf("%w: %w: %w", ErrUnavailable, ErrNotApplied, cause))
		return nil
	}
	half := len(batch) / 2
	if err := l.append(ctx, batch[:half]); err != nil {
		for _, w := range batch[half:] {
			w.finish(0, fmt.Errorf("%w: %w: %w", ErrUnavailable, ErrNotApplied, err))
		}
		return err
	}
	return l.append(ctx, batch[half:])
}

// resolve finds out what became of a batch whose Append erred: the store is opened anew, and what it holds
// is the answer. What it does not hold is tried again, in halves, and at last alone.
func (l *Ledger) resolve(ctx context.Context, batch []*waiter, cause error) error {
	lost, err := l.lookUp(ctx, batch)
	if err != nil {
		l.setSick(err) // before anybody hears of it
		answer := fmt.Errorf("%w: %w", ErrUnavailable, cause)
		if errors.Is(cause, ErrNotApplied) {
			answer = fmt.Errorf("%w: %w: %w", ErrUnavailable, ErrNotApplied, cause)
		}
		for _, w := range lost {
			w.finish(0, answer)
		}
		return fmt.Errorf("%w (after: %w)", err, cause)
	}
	switch {
	case len(lost) == 0:
		return nil
	case len(lost) == 1 && !lost[0].again:
		lost[0].again = true
		return l.append(ctx, lost)
	}
	return l.bisect(ctx, lost, fmt.Errorf("the store failed: %v", cause))
}

// lookUp recovers the store, finishes those of the batch that it holds, and returns the others.
func (l *Ledger) lookUp(ctx context.Context, batch []*waiter) (lost []*waiter, err error) {
	if err := l.recoverStore(ctx); err != nil {
		return batch, err
	}
	snap, err := l.store.Snapshot(ctx)
	if err != nil {
		return batch, err
	}
	defer snap.Close()
	for i, w := range batch {
		found, err := snap.Find(ctx, w.record.Event.ID)
		switch {
		case err == nil && found.Leaf == w.record.Leaf:
			l.forgetErased(w.record)
			w.finish(found.Index, nil)
		case err == nil || errors.Is(err, ErrNotFound):
			lost = append(lost, w)
		default:
			return append(lost, batch[i:]...), err
		}
	}
	return lost, nil
}

// recoverStore opens the store anew and forgets everything that was known of it.
func (l *Ledger) recoverStore(ctx context.Context) error {
	if err := l.store.Recover(ctx); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	l.cache.clear()
	l.subjects.clear()
	snap, err := l.store.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	defer snap.Close()
	size, err := snap.Size(ctx)
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	l.grow(size)
	return nil
}

// heal refuses commits until the store has recovered, and reports whether it has; false means closed.
func (l *Ledger) heal(ctx context.Context, err error) bool {
	l.setSick(err)
	l.log.Error("ledger_unavailable", "error", err.Error())
	l.queue.refuse(err)
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		timer := time.NewTimer(pause)
		for waiting := true; waiting; {
			select {
			case <-timer.C:
				waiting = false
			case <-l.queue.wake:
				if l.queue.isClosed() {
					timer.Stop()
					return false
				}
			}
		}
		if err = l.recoverStore(ctx); err == nil {
			break
		}
		l.setSick(err)
		l.queue.refuse(err)
	}
	l.queue.accept()
	l.setSick(nil)
	l.log.Info("ledger_recovered")
	return true
}
