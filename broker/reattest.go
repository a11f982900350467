package broker

import (
	"context"
	"encoding/hex"
	"errors"
	"sync"
	"time"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

const (
	// longestNotice is how long before the end an attestation is demanded at most: a third of the time where that
	// is less.
	longestNotice = time.Minute
	// referenceGrace is how long an instance has to attest afresh when the reference values changed.
	referenceGrace = 2 * time.Minute
)

// reattests says which instances have sessions that rely on a device, and when to look at each again. It is made
// from the live sessions at the start, and kept up to date by the events.
type reattests struct {
	mu     *sync.Mutex          // guards what follows
	all    map[string]*reliance // by ledger.InstanceKey
	loaded *bool                // the sessions from before the start are in it
	digest *[32]byte            // of the reference values that were looked at last
}

// reliance is one instance whose sessions rely on a device.
type reliance struct {
	principal, instance, device string
	next                        time.Time // when to look again; zero: now
	fresh                       bool      // the device was appraised since
	until                       time.Time // end of its last session
}

func newReattests() reattests {
	return reattests{mu: new(sync.Mutex), all: map[string]*reliance{}, loaded: new(bool), digest: new([32]byte)}
}

func (r reattests) add(principal, instance, device string, until time.Time) {
	if device == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	key := ledger.InstanceKey(principal, instance)
	e := r.all[key]
	if e == nil || e.device != device {
		e = &reliance{principal: principal, instance: instance, device: device}
		r.all[key] = e
	}
	e.next = time.Time{}
	if until.After(e.until) {
		e.until = until
	}
}

// saw keeps it up to date; the hub calls it with each event.
func (r reattests) saw(e ledger.Committed) {
	switch b := e.Event.Body.(type) {
	case event.SessionIssued:
		r.add(b.Principal, b.Instance, b.Device, b.Expires.Time())
	case event.AttestationAppraised:
		r.mu.Lock()
		defer r.mu.Unlock()
		if e := r.all[ledger.InstanceKey(b.Principal, b.Instance)]; e != nil {
			e.next, e.fresh = time.Time{}, true
		}
	}
}

// due takes out who has to be looked at now. Where other reference values hold by now, that is everybody.
func (r reattests) due(now time.Time, references [32]byte) []reliance {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed := *r.digest != references
	*r.digest = references
	var out []reliance
	for key, e := range r.all {
		switch {
		case !now.Before(e.until):
			delete(r.all, key)
		case changed || !now.Before(e.next):
			out = append(out, *e)
			e.next, e.fresh = now.Add(time.Hour), false
		}
	}
	return out
}

// again sets when to look at an instance the next time, unless something has happened meanwhile. What was due before
// it failed is due then.
func (r reattests) again(e reliance, at time.Time, failed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.all[ledger.InstanceKey(e.principal, e.instance)]
	if now == nil {
		return
	}
	now.fresh = now.fresh || failed && e.fresh
	if !now.next.IsZero() {
		now.next = at
	}
}

// Reattest demands attestations that are about to be overdue, and ends the sessions that rely on one that is. Run
// calls it once a second; it is exported for tests.
func (b *Broker) Reattest(ctx context.Context) error {
	if err := b.loadReattests(ctx); err != nil {
		return err
	}
	active, err := b.current(ctx)
	if err != nil {
		return err
	}
	var failed error
	for _, e := range b.reattests.due(b.now(), active.references.Digest()) {
		next, err := b.relies(ctx, active, e)
		if err != nil {
			failed, next = err, b.now().Add(time.Second)
		}
		b.reattests.again(e, next, err != nil)
	}
	return failed
}

func (b *Broker) loadReattests(ctx context.Context) error {
	if *b.reattests.loaded {
		return nil
	}
	err := b.live(ctx, func(page []session.Session) error {
		for _, s := range page {
			b.reattests.add(s.Principal, s.Instance, s.Device, s.Expires.Time())
		}
		return nil
	})
	*b.reattests.loaded = err == nil
	return err
}

// relies looks at the sessions of one instance that rely on its device, and says when to look again.
func (b *Broker) relies(ctx context.Context, active *active, e reliance) (next time.Time, err error) {
	now := b.now()
	next = now.Add(time.Hour)
	at, known, err := b.appraised(ctx, active, e)
	if err != nil {
		return next, err
	}
	if e.fresh && known.id != "" {
		if err := b.reappraised(ctx, active, e, known); err != nil {
			return next, err
		}
	}
	var overdue []event.ID
	var deadline time.Time // the nearest one that is not over
	notice := time.Duration(0)
	err = b.relying(ctx, e, func(s session.Session) {
		end, ahead := due(s, at, known.id != "", active)
		switch {
		case end.IsZero():
		case !now.Before(end):
			overdue = append(overdue, s.ID)
		case deadline.IsZero() || end.Before(deadline):
			deadline, notice = end, ahead
		}
	})
	if err != nil {
		return next, err
	}
	if _, err := b.ledger.RevokeSessions(ctx, now, overdue, "its device was not attested again in time", event.ID{}); err != nil || deadline.IsZero() {
		return next, err
	}
	if asked := deadline.Add(-notice); now.Before(asked) {
		return asked, nil
	}
	return deadline, b.demand(ctx, now, e, deadline)
}

// due is when a session ends unless its device is attested again, and how long before that it is demanded: where the
// policy lets an attestation become only so old, or where the reference values that it was appraised by are not the
// active ones. Zero: never.
func due(s session.Session, at time.Time, holds bool, active *active) (end time.Time, notice time.Duration) {
	if s.Reattest > 0 {
		within := time.Duration(s.Reattest) * time.Second
		end, notice = at.Add(within), min(within/3, longestNotice)
	}
	if !holds {
		if void := active.activated.Add(referenceGrace); end.IsZero() || void.Before(end) {
			end, notice = void, referenceGrace
		}
	}
	return end, notice
}

// appraised is the newest appraisal of the instance on the device: when, and what it says if it holds under the active
// reference values.
func (b *Broker) appraised(ctx context.Context, active *active, e reliance) (at time.Time, d device, err error) {
	pass, _, err := b.ledger.Passport(ctx, ledger.InstanceKey(e.principal, e.instance))
	if errors.Is(err, ledger.ErrNotFound) {
		return time.Time{}, device{}, nil
	}
	if err != nil || pass.Device != e.device {
		return time.Time{}, device{}, err // it is another device's: that of the sessions was not attested
	}
	result, err := attest.DecodeResult(pass.Result)
	if err != nil {
		return time.Time{}, device{}, err
	}
	references := active.references.Digest()
	if result.ReferenceDigest != hex.EncodeToString(references[:]) {
		return pass.At.Time(), device{}, nil
	}
	return pass.At.Time(), device{id: pass.Device, result: result, encoded: pass.Result}, nil
}

// relying goes through the live sessions of an instance that rely on its device.
func (b *Broker) relying(ctx context.Context, e reliance, f func(session.Session)) error {
	return b.named(ctx, selection{event.ByDevice, e.device}, func(page []session.Session) error {
		for _, s := range page {
			if s.Principal == e.principal && s.Instance == e.instance {
				f(s)
			}
		}
		return nil
	})
}

// reappraised decides the sessions of an instance again with a new appraisal of its device. One that is
// contraindicated has ended them already.
func (b *Broker) reappraised(ctx context.Context, active *active, e reliance, known device) error {
	var failed error
	ends := endings{}
	err := b.relying(ctx, e, func(s session.Session) {
		if !s.Issued.Time().Before(known.result.IssuedAt) || failed != nil { // it was delivered on it
			return
		}
		why, err := b.wouldEnd(ctx, active, s, &known)
		if err != nil {
			failed = err
		} else if why.text != "" {
			ends.add(s.ID, why)
		}
	})
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	return b.endRedecided(ctx, active, ends, "with the new attestation of its device, the policy would not permit it: ", &known)
}

// demand records that an instance has to attest its device by the deadline; the hub tells it. Once is enough.
func (b *Broker) demand(ctx context.Context, now time.Time, e reliance, deadline time.Time) error {
	before, _, err := b.ledger.Demand(ctx, ledger.InstanceKey(e.principal, e.instance))
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return err
	}
	if by := event.NewTime(deadline); before.By == by && before.Device == e.device {
		return nil
	}
	return b.record(ctx, event.New(now, e.principal, event.AttestationDemanded{
		Principal: e.principal, Instance: e.instance, Device: e.device, By: event.NewTime(deadline),
		Reason: "sessions rely on an attestation that is about to be too old",
	}))
}
