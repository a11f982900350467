package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/bulla-project/bulla/ledger"
)

// Fault is what befalls one Append.
type Fault int

// The faults of a hostile store.
const (
	// FaultNone lets the batch through.
	FaultNone Fault = iota
	// FaultRefused fails before anything was written, and says so.
	FaultRefused
	// FaultLost fails before anything was written, and does not say so.
	FaultLost
	// FaultPersisted fails after the batch became durable: the answer was lost.
	FaultPersisted
	// FaultFsync fails after writing; until Recover nothing works, and then nothing of the batch is there.
	FaultFsync
	// FaultFsyncPersisted is the same, but the batch is found after Recover.
	FaultFsyncPersisted
	// FaultFull is a full disk: nothing works, not even Recover, until Heal.
	FaultFull
)

// Faults lists the faults that a store overcomes by itself.
func Faults() []Fault {
	return []Fault{FaultRefused, FaultLost, FaultPersisted, FaultFsync, FaultFsyncPersisted}
}

// String names the fault.
func (f Fault) String() string {
	return [...]string{"none", "refused", "lost", "persisted", "fsync", "fsync-persisted", "full"}[f]
}

var errHostile = errors.New("hostile store")

// Hostile wraps a store and fails as its plan says.
type Hostile struct {
	ledger.Store

	mu     sync.Mutex
	plan   func(batch []ledger.Record) Fault // guarded
	broken bool                              // guarded: until Recover
	full   bool                              // guarded: until Heal
	hold   chan struct{}                     // guarded: Append waits until it is closed
	count  int                               // guarded: Appends
}

// NewHostile wraps store; plan is asked before each Append.
func NewHostile(store ledger.Store, plan func(batch []ledger.Record) Fault) *Hostile {
	return &Hostile{Store: store, plan: plan}
}

// Plan replaces the plan.
func (h *Hostile) Plan(plan func(batch []ledger.Record) Fault) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.plan = plan
}

// Heal makes room on the disk.
func (h *Hostile) Heal() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.full = false
}

// Hold lets further Appends wait until release is called.
func (h *Hostile) Hold() (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	held := make(chan struct{})
	h.hold = held
	return func() { close(held) }
}

// Appends returns how often Append was called.
func (h *Hostile) Appends() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count
}

func (h *Hostile) next(batch []ledger.Record) (Fault, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count++
	if h.broken || h.full {
		return FaultNone, fmt.Errorf("append: %w: %w: %w", ledger.ErrNotApplied, ledger.ErrBroken, errHostile)
	}
	f := h.plan(batch)
	switch f {
	case FaultFsync, FaultFsyncPersisted:
		h.broken = true
	case FaultFull:
		h.broken, h.full = true, true
	}
	return f, nil
}

// Append implements ledger.Store.
func (h *Hostile) Append(ctx context.Context, batch []ledger.Record) ([]ledger.Outcome, error) {
	h.mu.Lock()
	hold := h.hold
	h.mu.Unlock()
	if hold != nil {
		<-hold
	}
	fault, err := h.next(batch)
	if err != nil {
		return nil, err
	}
	switch fault {
	case FaultRefused:
		return nil, fmt.Errorf("append: %w: %w", ledger.ErrNotApplied, errHostile)
	case FaultLost:
		return nil, fmt.Errorf("append: %w", errHostile)
	case FaultFsync:
		return nil, fmt.Errorf("append: %w: %w", ledger.ErrBroken, errHostile)
	case FaultFull:
		return nil, fmt.Errorf("append: %w: %w: disk full: %w", ledger.ErrNotApplied, ledger.ErrBroken, errHostile)
	}
	outcomes, err := h.Store.Append(ctx, batch)
	if err != nil || fault == FaultNone {
		return outcomes, err
	}
	return nil, fmt.Errorf("append: %w", errHostile)
}

// Recover implements ledger.Store.
func (h *Hostile) Recover(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.full {
		return fmt.Errorf("recover: disk full: %w", errHostile)
	}
	h.broken = false
	return h.Store.Recover(ctx)
}
