package ledger

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
)

// fewCallers is up to how many commits at a time a batch goes off without delay: below it, waiting costs
// the callers more than the shared fsync saves.
const fewCallers = 16

// waiter is a commit on its way. The queue owns it until it is taken, the committer until done is closed,
// and the caller afterwards.
type waiter struct {
	record    Record
	replySalt event.Salt
	plain     []byte // of the body, in case it has to be sealed under another key
	resealed  bool
	again     bool // it was lost once, and is tried once more
	done      chan struct{}

	index int64
	err   error
}

func (w *waiter) finish(index int64, err error) {
	w.index, w.err = index, err
	close(w.done)
}

// queue gathers commits into batches.
//
// The committer takes whatever waits, so that a lone caller is not delayed. Under load that degenerates to
// tiny batches, because an fsync is quicker than a request: so when many calls are under way, or the commits that wait and
// those of the last batch (whose callers are about to come back) are many together, take waits until half of them are
// there, or for the delay. The calls count because a single commit after a single one says nothing of those to come:
// of 64 callers' batches half had one commit in them.
type queue struct {
	maxDelay           time.Duration
	maxBatch, maxQueue int
	wake               chan struct{} // one slot: what take waits for may be there
	last               int           // owned by take: size of the last batch
	expected           atomic.Int64  // calls under way

	mu      sync.Mutex
	waiting []*waiter // guarded
	target  int       // guarded: how many take waits for
	closed  bool      // guarded
	refusal error     // guarded: nothing is accepted, and why
}

func newQueue(maxDelay time.Duration, maxBatch, maxQueue int) queue {
	return queue{maxDelay: maxDelay, maxBatch: maxBatch, maxQueue: maxQueue, wake: make(chan struct{}, 1), target: 1}
}

// put adds w, or says why not; nothing of w took effect then.
func (q *queue) put(w *waiter) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return fmt.Errorf("%w: %w: it is closed", ErrUnavailable, ErrNotApplied)
	case q.refusal != nil:
		return fmt.Errorf("%w: %w: %w", ErrUnavailable, ErrNotApplied, q.refusal)
	case len(q.waiting) >= q.maxQueue:
		return fmt.Errorf("%w: %w: %d commits wait already", ErrUnavailable, ErrNotApplied, len(q.waiting))
	}
	q.waiting = append(q.waiting, w)
	if len(q.waiting) >= q.target {
		q.signal()
	}
	return nil
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// withdraw takes w back, and reports whether it still waited.
func (q *queue) withdraw(w *waiter) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.waiting, w)
	if i < 0 {
		return false
	}
	q.waiting = slices.Delete(q.waiting, i, i+1)
	return true
}

// close refuses further commits; take returns what waits, then nil.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.signal()
}

// refuse refuses all commits with err, those that wait included, until accept.
func (q *queue) refuse(err error) {
	q.mu.Lock()
	q.refusal = err
	waiting := q.waiting
	q.waiting = nil
	q.mu.Unlock()
	for _, w := range waiting {
		w.finish(0, fmt.Errorf("%w: %w: %w", ErrUnavailable, ErrNotApplied, err))
	}
}

func (q *queue) accept() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.refusal = nil
}

// isClosed reports whether close was called. The channel of a wake-up may be used up by asking.
func (q *queue) isClosed() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed
}

// await sets how many commits take waits for, and reports whether they are there, or the queue is closed.
func (q *queue) await(target int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.target = target
	return q.closed || len(q.waiting) >= target
}

func (q *queue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

// take returns the next batch, or nil when the queue is closed and empty. Only the committer calls it.
func (q *queue) take() []*waiter {
	for !q.await(1) {
		<-q.wake
	}
	if load := max(q.length()+q.last, int(q.expected.Load())); load > fewCallers && q.maxDelay > 0 {
		q.linger(min(load/2, q.maxBatch))
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(q.waiting), q.maxBatch)
	q.last = n
	if n == 0 {
		return nil
	}
	batch := slices.Clone(q.waiting[:n])
	q.waiting = slices.Delete(q.waiting, 0, n)
	return batch
}

func (q *queue) linger(target int) {
	timer := time.NewTimer(q.maxDelay)
	defer timer.Stop()
	for !q.await(target) {
		select {
		case <-q.wake:
		case <-timer.C:
			return
		}
	}
}
