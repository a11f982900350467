package broker

import (
	"context"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
)

// sweepChunk is how many sessions one event ends: small enough that deliveries get in between.
const sweepChunk = 250

// Sweep records what time alone brought about: sessions past their end, receipts that did not come, refusals
// that were counted. Run calls it once a second; it is exported for tests with a clock of their own.
func (b *Broker) Sweep(ctx context.Context) error {
	now := b.now()
	for {
		n, err := b.ledger.ExpireSessions(ctx, now, sweepChunk)
		if err != nil {
			return err
		}
		b.metrics.sweptDone.Add(float64(n))
		if n < sweepChunk {
			break
		}
	}
	for {
		late, err := b.ledger.MarkUnconfirmed(ctx, now, sweepChunk)
		if err != nil {
			return err
		}
		for _, s := range late {
			b.history.unconfirmed(s.Principal, now)
		}
		b.metrics.sweptDone.Add(float64(len(late)))
		if len(late) < sweepChunk {
			break
		}
	}
	return b.recordRefusals(ctx, now, false)
}

// recordRefusals writes one event per principal for what its limiter refused.
func (b *Broker) recordRefusals(ctx context.Context, now time.Time, flush bool) error {
	for _, t := range b.limits.due(now, flush) {
		b.metrics.refusals.Add(float64(t.count))
		err := b.record(ctx, event.New(now, t.principal, event.RefusalsCounted{
			Principal: t.principal, Limit: checkLimit, Count: t.count, From: event.NewTime(t.from), To: event.NewTime(now),
		}))
		if err != nil {
			return err
		}
	}
	return nil
}

// Run does the broker's background work until ctx ends: sweeping, and keeping the log's tree up to date.
func (b *Broker) Run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			if err := b.recordRefusals(last, b.now(), true); err != nil {
				b.logger.Error("refusals could not be recorded", "error", err)
			}
			return
		case <-tick.C:
			if err := b.Sweep(ctx); err != nil && ctx.Err() == nil {
				b.logger.Error("sweep failed", "error", err)
			}
		}
	}
}
