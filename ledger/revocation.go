package ledger

import (
	"context"
	"errors"
	"strings"

	"github.com/bulla-project/bulla/ledger/event"
)

// Order is the projection of the newest order to end what a selector names.
type Order struct {
	ID       event.ID   `json:"id"` // of the order's event
	Selector string     `json:"selector"`
	Value    string     `json:"value"`
	Reason   string     `json:"reason"`
	At       event.Time `json:"at"`
}

// RevocationEnd is the projection of the newest order of a selector that has been carried out. It stands apart from
// Order, whose row is a precondition of deliveries.
type RevocationEnd struct {
	Revocation event.ID   `json:"revocation"`
	Sessions   uint64     `json:"sessions"`
	At         event.Time `json:"at"`
}

// Wiped is the projection of an instance's word that it holds nothing of a session that ended. It stands apart from
// the session, which no event changes after its end.
type Wiped struct {
	Session event.ID   `json:"session"`
	At      event.Time `json:"at"`
}

// Demand is the projection of the newest demand that an instance attest its device afresh.
type Demand struct {
	Device string     `json:"device"`
	By     event.Time `json:"by"`
	At     event.Time `json:"at"`
	Reason string     `json:"reason"`
}

// Sweep is the projection of how far the newest revision's effect on earlier sessions is.
type Sweep struct {
	Digest   event.Digest `json:"digest"`
	Sequence uint64       `json:"sequence"`
	Outcome  string       `json:"outcome"`
	Examined uint64       `json:"examined"`
	Ending   uint64       `json:"ending"`
	At       event.Time   `json:"at"`
}

// RevocationKey is the key of KindRevocation rows.
func RevocationKey(selector, value string) string { return selector + "/" + value }

// TrustDomainOf is the trust domain of a SPIFFE ID.
func TrustDomainOf(principal string) string {
	td, _, _ := strings.Cut(strings.TrimPrefix(principal, "spiffe://"), "/")
	return td
}

func (p projection) revocationOrdered(b event.RevocationOrdered, id event.ID) error {
	switch b.Selector {
	case event.ByPrincipal, event.BySecret, event.ByDevice, event.ByRevision, event.ByTrustDomain:
	default:
		return refuse("revocation by %q: there is no such selector", b.Selector)
	}
	if b.Value == "" {
		return refuse("revocation by %s: it names nothing", b.Selector)
	}
	return put(p, KindRevocation, RevocationKey(b.Selector, b.Value), Order{id, b.Selector, b.Value, b.Reason, p.time})
}

func (p projection) revocationCompleted(b event.RevocationCompleted) error {
	key := RevocationKey(b.Selector, b.Value)
	ordered, ok, err := get[Order](p, KindRevocation, key)
	if err != nil {
		return err
	}
	if !ok || ordered.ID != b.Revocation {
		return refuse("revocation %s of %s is not the newest one", b.Revocation, key)
	}
	return put(p, KindRevocationEnd, key, RevocationEnd{b.Revocation, b.Sessions, p.time})
}

// sessionsWiped takes an instance's word about sessions that ended; whose they are is for the caller of Commit to
// check, since a session that has ended is not looked at again here.
func (p projection) sessionsWiped(b event.SessionsWiped) error {
	if len(b.Sessions) == 0 {
		return refuse("%s names no session", b.EventType())
	}
	for _, id := range b.Sessions {
		switch _, ok, err := get[Wiped](p, KindWiped, id.String()); {
		case err != nil:
			return err
		case ok:
			return refuse("session %s was wiped before", id)
		}
		if err := put(p, KindWiped, id.String(), Wiped{id, p.time}); err != nil {
			return err
		}
	}
	return nil
}

func (p projection) attestationDemanded(b event.AttestationDemanded) error {
	if b.Principal == "" || b.Instance == "" || b.Device == "" {
		return refuse("demand to instance %q of %q on device %q: all three are needed", b.Instance, b.Principal, b.Device)
	}
	return put(p, KindDemand, InstanceKey(b.Principal, b.Instance), Demand{b.Device, b.By, p.time, b.Reason})
}

func (p projection) revisionSwept(b event.RevisionSwept) error {
	active, _, err := get[Revision](p, KindRevision, ActiveRevision)
	if err != nil {
		return err
	}
	before, _, err := get[Sweep](p, KindSweep, ActiveRevision)
	if err != nil {
		return err
	}
	was := ""
	if before.Sequence == b.Sequence {
		was = before.Outcome
	}
	fits := map[string][]string{
		event.SweepHeld: {""}, event.SweepConfirmed: {event.SweepHeld}, event.SweepDropped: {event.SweepHeld},
		event.SweepDone: {"", event.SweepConfirmed},
	}
	for _, from := range fits[b.Outcome] {
		if from == was && b.Sequence == active.Sequence && b.Digest == active.Digest {
			return put(p, KindSweep, ActiveRevision, Sweep{b.Digest, b.Sequence, b.Outcome, b.Examined, b.Ending, p.time})
		}
	}
	return refuse("the sweep of revision %d can't be %q: it is %q, and revision %d is active", b.Sequence, b.Outcome, was, active.Sequence)
}

// Order returns the newest order to end what a selector names.
func (l *Ledger) Order(ctx context.Context, selector, value string) (Order, int64, error) {
	return read[Order](ctx, l, KindRevocation, RevocationKey(selector, value))
}

// OpenOrders lists the orders that have not been carried out to the end.
func (l *Ledger) OpenOrders(ctx context.Context) ([]Order, error) {
	ordered, err := all[Order](ctx, l, KindRevocation, func(string) bool { return true })
	if err != nil {
		return nil, err
	}
	var open []Order
	for _, r := range ordered {
		end, _, err := read[RevocationEnd](ctx, l, KindRevocationEnd, RevocationKey(r.Selector, r.Value))
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		if end.Revocation != r.ID {
			open = append(open, r)
		}
	}
	return open, nil
}

// Wiped returns what an instance said of a session that ended.
func (l *Ledger) Wiped(ctx context.Context, id event.ID) (Wiped, int64, error) {
	return read[Wiped](ctx, l, KindWiped, id.String())
}

// Demand returns the newest demand for an attestation, by the InstanceKey.
func (l *Ledger) Demand(ctx context.Context, key string) (Demand, int64, error) {
	return read[Demand](ctx, l, KindDemand, key)
}

// Sweep returns how far the newest swept revision's effect is; its Sequence says which one that is.
func (l *Ledger) Sweep(ctx context.Context) (Sweep, int64, error) {
	return read[Sweep](ctx, l, KindSweep, ActiveRevision)
}
