package attest

import (
	"context"
	"fmt"
	"sync/atomic"
)

// A Gate lets a bounded number of verifications run at once and a bounded number wait, since public-key
// operations on what a peer sends are the dearest thing that an unauthorised peer can ask for.
type Gate struct {
	slots   chan struct{}
	inside  atomic.Int64 // running and waiting
	maximum int64
}

// NewGate lets running verifications run, and waiting more wait for them; each is at least one.
func NewGate(running, waiting int) *Gate {
	running, waiting = max(running, 1), max(waiting, 1)
	return &Gate{slots: make(chan struct{}, running), maximum: int64(running + waiting)}
}

// Do calls f when there is room. It returns [ErrBusy] at once when too many are waiting, and the context's
// error when ctx ends first.
func (g *Gate) Do(ctx context.Context, f func() error) error {
	if g.inside.Add(1) > g.maximum {
		g.inside.Add(-1)
		return fmt.Errorf("%w: %d running or waiting; try again in a moment", ErrBusy, g.maximum)
	}
	defer g.inside.Add(-1)
	select {
	case g.slots <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("waiting for room to verify evidence: %w", ctx.Err())
	}
	defer func() { <-g.slots }()
	return f()
}
