package broker

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// orderPage is how many sessions are read at once where somebody waits for their end.
const orderPage = 400

// orders says which revocations are being carried out by this process.
type orders struct {
	open *atomic.Bool // some may be left over from a stop or a fault

	mu      *sync.Mutex           // guards running
	running map[event.ID]struct{} // by the order's event
}

func newOrders() orders {
	o := orders{open: new(atomic.Bool), mu: new(sync.Mutex), running: map[event.ID]struct{}{}}
	o.open.Store(true)
	return o
}

// begin reports whether the caller is the one to carry the order out.
func (o orders) begin(id event.ID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, already := o.running[id]
	o.running[id] = struct{}{}
	return !already
}

func (o orders) end(id event.ID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.running, id)
}

// barrier is what a delivery's decision saw of the revocations that touch it.
type barrier struct {
	rows   []ledger.Precondition
	newest time.Time // when the newest of them was ordered; zero: never
}

// selection is one thing that sessions are revoked by.
type selection struct{ selector, value string }

// touching lists what a session can be revoked by, other than itself.
func touching(principal, secret, device string, revision event.Digest) []selection {
	out := []selection{
		{event.ByPrincipal, principal},
		{event.BySecret, secret},
		{event.ByRevision, revision.String()},
		{event.ByTrustDomain, ledger.TrustDomainOf(principal)},
	}
	if device != "" {
		out = append(out, selection{event.ByDevice, device})
	}
	return out
}

// barrier reads the newest revocations that touch principal, secret, device and revision. A commit that demands its
// rows can't slip through beside one of them: it is decided again after it.
func (b *Broker) barrier(ctx context.Context, touched []selection) (barrier, error) {
	var out barrier
	for _, t := range touched {
		order, seq, err := b.ledger.Order(ctx, t.selector, t.value)
		if err != nil && !errors.Is(err, ledger.ErrNotFound) {
			return barrier{}, err
		}
		if order.At.Time().After(out.newest) {
			out.newest = order.At.Time()
		}
		out.rows = append(out.rows, ledger.Precondition{
			RowKey: ledger.RowKey{Kind: ledger.KindRevocation, Key: ledger.RevocationKey(t.selector, t.value)}, Seq: seq,
		})
	}
	return out, nil
}

// after is now, or a moment after the newest revocation where that is a little later: what is decided after a
// revocation must not look as if it had been delivered before it. A clock that went back by more stays as it is, and
// what is delivered under it is over at once.
func (t barrier) after(now time.Time) time.Time {
	if ahead := t.newest.Sub(now); ahead >= 0 && ahead <= sideBySide {
		return t.newest.Add(time.Microsecond)
	}
	return now
}

// covers says whether a revocation ended the session, be it that no event of the session says so yet.
func (t barrier) covers(s session.Session) bool {
	return !t.newest.IsZero() && !t.newest.Before(s.Issued.Time())
}

// foregoing says whether a session counts as delivered before what a revocation took effect at, as far as that is known:
// no later than until. The times of events say little of their order: one is that of the call which asked for it, and
// another call that began later may be committed before it. So until is a moment after the revocation's commit, and a
// session that says to be of after now, from a clock that went back since, is taken as well.
func foregoing(s session.Session, until, now time.Time) bool {
	return !s.Issued.Time().After(until) || s.Issued.Time().After(now)
}

// carryOut ends the sessions that an order names and that were delivered until then, a moment after its commit. It goes
// chunk by chunk, so that deliveries get in between, and says when it has. What it ended is passed to each. A caller who goes away does not stop it, and a broker that stops goes on with
// it when it runs again.
func (b *Broker) carryOut(ctx context.Context, order ledger.Order, until time.Time, each func([]event.ID)) error {
	ctx = context.WithoutCancel(ctx)
	if !b.orders.begin(order.ID) {
		return nil
	}
	defer b.orders.end(order.ID)
	total := uint64(0)
	err := b.named(ctx, selection{order.Selector, order.Value}, func(page []session.Session) error {
		var ids []event.ID
		now := b.now()
		for _, s := range page {
			if foregoing(s, until, now) {
				ids = append(ids, s.ID)
			}
		}
		ended, err := b.ledger.RevokeSessions(ctx, b.now(), ids, order.Reason, order.ID)
		total += uint64(len(ended))
		if each != nil {
			each(ended)
		}
		return err
	})
	if err == nil {
		err = b.record(ctx, event.New(b.now(), "", event.RevocationCompleted{
			Selector: order.Selector, Value: order.Value, Revocation: order.ID, Sessions: total,
		}))
		if errors.Is(err, ledger.ErrTransition) { // a newer order took its place, and covers what this one does
			err = nil
		}
	}
	if err != nil {
		b.orders.open.Store(true) // the sweeper goes on with it
	}
	return err
}

// reread returns sessions as they are now, without those that can't be read.
func (b *Broker) reread(ctx context.Context, ids []event.ID) []session.Session {
	out := make([]session.Session, 0, len(ids))
	for _, id := range ids {
		if s, _, err := b.ledger.Session(ctx, id); err == nil {
			out = append(out, s)
		}
	}
	return out
}

// named goes through the live sessions that a selection names, a page at a time. What f does to them does not
// disturb it.
func (b *Broker) named(ctx context.Context, sel selection, f func([]session.Session) error) error {
	q := ledger.SessionQuery{States: liveStates(), Max: orderPage}
	switch sel.selector {
	case event.ByPrincipal:
		q.Principal = sel.value
	case event.BySecret:
		q.Secret = sel.value
	case event.ByDevice:
		q.Device = sel.value
	default:
		return b.live(ctx, func(page []session.Session) error {
			var found []session.Session
			for _, s := range page {
				if sel.selector == event.ByRevision && s.Revision.String() == sel.value || sel.selector == event.ByTrustDomain && ledger.TrustDomainOf(s.Principal) == sel.value {
					found = append(found, s)
				}
			}
			if len(found) == 0 {
				return nil
			}
			return f(found)
		})
	}
	for {
		page, err := b.ledger.Sessions(ctx, q)
		if err != nil || len(page) == 0 {
			return err
		}
		if err := f(page); err != nil {
			return err
		}
		q.Before = page[len(page)-1].ID.String()
	}
}

// live goes through all sessions that have not ended, by their end.
func (b *Broker) live(ctx context.Context, f func([]session.Session) error) error {
	q := ledger.SessionQuery{LiveFrom: time.UnixMicro(1), Max: sweepChunk}
	for {
		page, err := b.ledger.Sessions(ctx, q)
		if err != nil || len(page) == 0 {
			return err
		}
		if err := f(page); err != nil {
			return err
		}
		last := page[len(page)-1]
		q.LiveFrom, q.LiveAfter = last.Expires.Time(), last.ID.String()
	}
}

// finishOrders goes on with orders that a stop or a fault cut short.
func (b *Broker) finishOrders(ctx context.Context) error {
	if !b.orders.open.Swap(false) {
		return nil
	}
	left, err := b.ledger.OpenOrders(ctx)
	for _, order := range left {
		if err = b.carryOut(ctx, order, order.At.Time().Add(sideBySide), nil); err != nil {
			break
		}
	}
	if err != nil {
		b.orders.open.Store(true)
	}
	return err
}
