package ledger

import (
	"context"
	"sync"

	"github.com/bulla-project/bulla/ledger/event"
)

// maxRecent is how many of the newest events are kept readable in memory: some megabytes, and much more than whoever
// follows falls behind.
const maxRecent = 1024

// Committed is an event with its index. Its body is nil where it was erased.
type Committed struct {
	Index int64
	Event event.Event
}

// recent keeps the newest events that this process committed, each in the slot of its index. What is not there (it
// was found again after a fault, or is too old) is read from the store.
type recent struct {
	mu    sync.RWMutex
	slots [maxRecent]Committed // guarded
}

func (r *recent) add(index int64, e event.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slots[index%maxRecent] = Committed{index, e}
}

// drop forgets the events with these indexes.
func (r *recent) drop(indexes []int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, index := range indexes {
		if c := &r.slots[index%maxRecent]; c.Index == index {
			*c = Committed{}
		}
	}
}

// from returns up to max events from index on, as far as they are there without a gap.
func (r *recent) from(index int64, max int) (out []Committed) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for ; len(out) < max; index++ {
		c := r.slots[index%maxRecent]
		if c.Index != index || c.Event.Body == nil {
			return out
		}
		out = append(out, c)
	}
	return out
}

// Follow returns up to max events from index from, in order. Those that this process committed lately come out of
// memory as they went in, so that to follow costs no reading and opening; callers change nothing of them.
func (l *Ledger) Follow(ctx context.Context, from int64, max int) ([]Committed, error) {
	if out := l.recent.from(from, max); len(out) > 0 {
		return out, nil
	}
	entries, err := l.Events(ctx, from, max)
	out := make([]Committed, len(entries))
	for i, e := range entries {
		out[i] = Committed{e.Index, e.Event}
	}
	return out, err
}
