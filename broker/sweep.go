package broker

import (
	"context"
	"sync"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// sweepChunk is how many sessions one event ends: small enough that deliveries get in between.
const sweepChunk = 250

// Sweep records what time alone brought about: sessions past their end, or whose receipt did not come, refusals
// that were counted. Run calls it once a second; it is exported for tests with a clock of their own.
func (b *Broker) Sweep(ctx context.Context) error {
	now := b.now()
	b.epochs.Sweep(now)
	for {
		due, err := b.ledger.Sessions(ctx, ledger.SessionQuery{ExpiresBefore: now, Max: sweepChunk})
		if err != nil {
			return err
		}
		n, err := b.ledger.ExpireSessions(ctx, now, sweepChunk)
		if err != nil {
			return err
		}
		for _, s := range due { // a session that ends before its receipt is due is no way around the receipt
			if s.State == session.Issued && !s.ReceiptBy.IsZero() {
				b.history.unconfirmed(s.Principal, now)
			}
		}
		b.metrics.sweptDone.Add(float64(n))
		if n < sweepChunk {
			break
		}
	}
	for {
		late, err := b.ledger.EndUnreceipted(ctx, now, sweepChunk, "the policy demands a receipt, and none came in time")
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
	if b.senders.behind.CompareAndSwap(true, false) {
		if err := b.endSignals(ctx); err != nil {
			b.senders.behind.Store(true)
			return err
		}
	}
	if err := b.sweepRounds(ctx, now); err != nil {
		return err
	}
	return b.recordRefusals(ctx, now, false)
}

// recordRefusals writes one event per principal for what its limiter refused.
func (b *Broker) recordRefusals(ctx context.Context, now time.Time, flush bool) error {
	var failed error
	for _, t := range b.limits.due(now, flush) {
		err := b.record(ctx, event.New(now, t.principal, event.RefusalsCounted{
			Principal: t.principal, Limit: checkLimit, Count: t.count, From: event.NewTime(t.from), To: event.NewTime(now),
		}))
		if err != nil { // they are counted on until the ledger takes them
			b.limits.refused(t.principal, t.from, t.count)
			failed = err
			continue
		}
		b.metrics.refusals.Add(float64(t.count))
	}
	return failed
}

// endDevices finishes what a stop may have cut short: the sessions of devices that were revoked.
func (b *Broker) endDevices(ctx context.Context) error {
	for after := ""; ; {
		rows, err := b.ledger.Devices(ctx, after, maxPage)
		if err != nil || len(rows) == 0 {
			return err
		}
		for _, d := range rows {
			after = d.ID
			if d.Revoked.IsZero() {
				continue
			}
			if err := b.endDevice(ctx, d.ID, "its device was revoked: "+d.Reason); err != nil {
				return err
			}
		}
	}
}

// Run does the broker's background work until ctx ends: telling those who watch, sweeping, and what tend does.
func (b *Broker) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer b.pauseShadow() // when nobody is left who could start it again
	defer wg.Wait()
	wg.Go(func() { b.hub.run(ctx, b.reattests.saw) })
	if err := b.endDevices(ctx); err != nil && ctx.Err() == nil {
		b.logger.Error("sessions of revoked devices could not be ended", "error", err)
	}
	if err := b.endEpochs(ctx); err != nil && ctx.Err() == nil {
		b.logger.Error("gated sessions from before the start could not be ended", "error", err)
	}
	if err := b.endSignals(ctx); err != nil && ctx.Err() == nil {
		b.logger.Error("sessions that signals ended could not be ended", "error", err)
	}
	wg.Go(func() { b.tend(ctx) })
	if b.retention.Age > 0 {
		wg.Go(func() { b.retain(ctx) })
	}
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
