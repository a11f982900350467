package broker

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/session"
)

// revocations is the service that ends many sessions, and shows who has noticed.
type revocations struct {
	bullav1.UnimplementedRevocationsServer
	*Broker
}

// maxWait is how long a revocation stays to hear who confirms it.
const maxWait = 60 * time.Second

// The standings of a session that was revoked: how much its client knows of it.
const (
	standingConfirmed = "confirmed" // it says that it has wiped what it held
	standingWaiting   = "not yet"   // it watches, and has not said so
	standingOffline   = "offline"   // it does not watch: it learns of it at its next call
)

// standing says who has noticed the end of a session; "" for one that was not revoked.
func (b *Broker) standing(ctx context.Context, s session.Session) (string, event.Time, error) {
	if s.State != session.Revoked {
		return "", event.Time{}, nil
	}
	wiped, _, err := b.ledger.Wiped(ctx, s.ID)
	switch {
	case err == nil:
		return standingConfirmed, wiped.At, nil
	case !errors.Is(err, ledger.ErrNotFound):
		return "", event.Time{}, err
	case b.hub.connected(s.Principal, s.Instance):
		return standingWaiting, event.Time{}, nil
	}
	return standingOffline, event.Time{}, nil
}

// shown is a session as operators see it, with its standing.
func (b *Broker) shown(ctx context.Context, s session.Session, now time.Time) (*bullav1.Session, error) {
	out := sessionReply(s, now)
	standing, wiped, err := b.standing(ctx, s)
	out.Standing, out.WipedAt = standing, stamp(wiped)
	return out, err
}

// selected is what a RevokeRequest names, as policy and ledger see it.
type selected struct {
	selection // empty selector: one session
	session   string
	facts     policy.Resource
}

func selectedBy(in *bullav1.RevokeRequest) (selected, error) {
	facts := func(p policy.Session) policy.Resource { return policy.Resource{Kind: policy.KindSession, Session: &p} }
	switch by := in.GetSelector().(type) {
	case *bullav1.RevokeRequest_Session:
		return selected{session: by.Session}, nil
	case *bullav1.RevokeRequest_Principal:
		id, err := certs.ParseID(by.Principal)
		if err != nil {
			return selected{}, wrong("%v", err)
		}
		return selected{selection: selection{event.ByPrincipal, id.String()}, facts: facts(policy.Session{Principal: id.String()})}, nil
	case *bullav1.RevokeRequest_Secret:
		name, err := secret.ParseName(by.Secret)
		if err != nil {
			return selected{}, wrong("%v", err)
		}
		return selected{selection: selection{event.BySecret, name.String()}, facts: facts(policy.Session{Secret: name.String()})}, nil
	case *bullav1.RevokeRequest_Device:
		id, err := attest.ParseDeviceID(by.Device)
		if err != nil {
			return selected{}, wrong("%v", err)
		}
		device := &policy.Device{ID: id.String(), Kind: string(id.Kind())}
		return selected{selection: selection{event.ByDevice, id.String()}, facts: policy.Resource{Kind: policy.KindDevice, Device: device}}, nil
	case *bullav1.RevokeRequest_Revision:
		var d event.Digest
		if err := d.UnmarshalText([]byte(by.Revision)); err != nil || d.IsZero() {
			return selected{}, wrong("a digest has 64 hexadecimal digits")
		}
		return selected{selection: selection{event.ByRevision, d.String()}, facts: policy.Resource{Kind: policy.KindRevision, Revision: &policy.NewRules{Digest: d.String()}}}, nil
	case *bullav1.RevokeRequest_TrustDomain:
		td, err := certs.ParseTrustDomain(by.TrustDomain)
		if err != nil {
			return selected{}, wrong("%v", err)
		}
		return selected{selection: selection{event.ByTrustDomain, td.Name()}, facts: facts(policy.Session{Principal: td.IDString()})}, nil
	}
	return selected{}, wrong("name a session, principal, secret, device, revision or trust domain")
}

// Revoke ends one session, or all that a selector names, tells of each, and stays to hear who confirms.
func (s revocations) Revoke(in *bullav1.RevokeRequest, out grpc.ServerStreamingServer[bullav1.RevokeReply]) error {
	if len(in.GetReason()) > maxReason || in.GetReason() == "" && !in.GetDryRun() {
		return wrong("a revocation needs a reason of 1 to %d bytes", maxReason)
	}
	what, err := selectedBy(in)
	if err != nil {
		return err
	}
	if in.GetDryRun() {
		return s.foretell(what, out)
	}
	t := &toll{Broker: s.Broker, out: out, open: map[event.ID]session.Session{}, wiped: map[event.ID]struct{}{}, woken: make(chan struct{}, 1)}
	audience, err := s.hub.listen(t.hear) // before anything ends, so that no confirmation is missed
	if err != nil {
		return err
	}
	defer s.hub.silence(audience)
	if what.selector == "" {
		err = s.one(out.Context(), what.session, in.GetReason(), t)
	} else {
		err = s.order(out.Context(), what, in.GetReason(), t)
	}
	if err != nil {
		return err
	}
	wait := min(time.Duration(in.GetWaitSeconds())*time.Second, maxWait)
	if err := t.await(out.Context(), wait, audience.gone); err != nil {
		return err
	}
	return t.conclude()
}

// one ends one session, as RevokeSession does.
func (s revocations) one(ctx context.Context, id, reason string, t *toll) error {
	service := sessions{Broker: s.Broker}
	reply, err := service.RevokeSession(ctx, &bullav1.RevokeSessionRequest{Id: id, Reason: reason})
	if err != nil {
		return err
	}
	parsed, err := event.ParseID(reply.GetId())
	if err != nil {
		return err
	}
	found, _, err := s.ledger.Session(ctx, parsed)
	if err != nil {
		return s.unavailable(err)
	}
	return t.ended([]session.Session{found})
}

// order commits the order and carries it out.
func (s revocations) order(ctx context.Context, what selected, reason string, t *toll) error {
	ordered, op, err := s.ordered(ctx, what, reason)
	if err != nil {
		return err
	}
	var all []event.ID
	if err := s.carryOut(ctx, ordered, s.now(), func(ended []event.ID) { all = append(all, ended...) }); err != nil {
		return s.answer(ctx, op.caller, err)
	}
	for page := range slices.Chunk(all, sweepChunk) { // only now: the clients are told first
		if err := t.ended(s.reread(ctx, page)); err != nil {
			return err
		}
	}
	return nil
}

func (s revocations) ordered(ctx context.Context, what selected, reason string) (ledger.Order, operation, error) {
	type result struct {
		order ledger.Order
		op    operation
	}
	r, err := twice(func() (result, error) {
		op, err := s.authorise(ctx, policy.ActionSessionRevoke, what.facts)
		if err != nil {
			return result{}, err
		}
		ev := event.New(op.now, op.id.String(), event.RevocationOrdered{Selector: what.selector, Value: what.value, Reason: reason, By: op.by()})
		commit := ledgerCommit(ev)
		commit.Require = []ledger.Precondition{op.permit.active.unchanged()}
		if _, err := s.ledger.Commit(ctx, commit); err != nil {
			return result{}, s.answer(ctx, op.caller, err)
		}
		return result{ledger.Order{ID: ev.ID, Selector: what.selector, Value: what.value, Reason: reason, At: ev.Time}, op}, nil
	})
	return r.order, r.op, err
}

// foretell lists what would end, as far as the caller may see it.
func (s revocations) foretell(what selected, out grpc.ServerStreamingServer[bullav1.RevokeReply]) error {
	ctx := out.Context()
	var found session.Session
	if what.selector == "" {
		var err error
		if found, what.facts, err = (sessions{Broker: s.Broker}).find(ctx, what.session); err != nil {
			return err
		}
	}
	op, err := s.read(ctx, policy.ActionSessionRevoke, what.facts)
	if err != nil {
		return err
	}
	total := uint64(0)
	tell := func(page []session.Session) error {
		for _, f := range page {
			total++
			if !s.shows(ctx, op, policy.ActionSessionShow, sessionFacts(f)) {
				continue
			}
			if err := out.Send(&bullav1.RevokeReply{Session: sessionReply(f, op.now)}); err != nil {
				return err
			}
		}
		return nil
	}
	switch {
	case what.selector != "":
		err = s.named(ctx, what.selection, tell)
	case found.ID.IsZero():
		return missing("there is no session %s", what.session)
	case !found.StateAt(op.now).Ended():
		err = tell([]session.Session{found})
	}
	if err != nil {
		return s.answer(ctx, op.caller, err)
	}
	return out.Send(&bullav1.RevokeReply{Summary: &bullav1.RevokeSummary{Sessions: total}})
}

// toll is what one revocation has ended, and who has confirmed it.
type toll struct {
	*Broker
	out     grpc.ServerStreamingServer[bullav1.RevokeReply]
	summary bullav1.RevokeSummary
	open    map[event.ID]session.Session // not confirmed yet

	mu    sync.Mutex            // guards wiped
	wiped map[event.ID]struct{} // sessions that instances confirmed since it began; those of others too
	woken chan struct{}         // one slot: something came into wiped
}

// maxToll bounds how many confirmations of others are kept while a revocation goes on.
const maxToll = 1 << 18

// hear takes confirmations as they are committed; the hub calls it.
func (t *toll) hear(e ledger.Committed) {
	b, ok := e.Event.Body.(event.SessionsWiped)
	if !ok {
		return
	}
	t.mu.Lock()
	for _, id := range b.Sessions {
		if len(t.wiped) < maxToll {
			t.wiped[id] = struct{}{}
		}
	}
	t.mu.Unlock()
	select {
	case t.woken <- struct{}{}:
	default:
	}
}

// ended tells of sessions that the revocation ended.
func (t *toll) ended(page []session.Session) error {
	for _, s := range page {
		t.summary.Sessions++
		shown, err := t.shown(t.out.Context(), s, t.now())
		if err != nil {
			return t.unavailable(err)
		}
		switch shown.GetStanding() {
		case standingConfirmed:
			t.summary.Confirmed++
		case standingWaiting, standingOffline:
			t.open[s.ID] = s
		}
		if err := t.out.Send(&bullav1.RevokeReply{Session: shown}); err != nil {
			return err
		}
	}
	return nil
}

// await tells who confirms, until everybody has who is connected, or for d.
func (t *toll) await(ctx context.Context, d time.Duration, gone <-chan struct{}) error {
	over := time.NewTimer(d)
	defer over.Stop()
	look := time.NewTicker(time.Second) // for those who went offline
	defer look.Stop()
	for {
		if err := t.settle(ctx); err != nil {
			return err
		}
		if d == 0 || !t.waiting() {
			return nil
		}
		select {
		case <-t.woken:
		case <-look.C:
		case <-over.C:
			return nil
		case <-gone:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// settle tells of the sessions that were confirmed since the last time.
func (t *toll) settle(ctx context.Context) error {
	t.mu.Lock()
	wiped := t.wiped
	t.wiped = map[event.ID]struct{}{}
	t.mu.Unlock()
	for id := range wiped {
		s, ours := t.open[id]
		if !ours {
			continue
		}
		delete(t.open, id)
		t.summary.Confirmed++
		shown, err := t.shown(ctx, s, t.now())
		if err != nil {
			return t.unavailable(err)
		}
		if err := t.out.Send(&bullav1.RevokeReply{Session: shown}); err != nil {
			return err
		}
	}
	return nil
}

// waiting says whether somebody who is connected has not confirmed yet.
func (t *toll) waiting() bool {
	for _, s := range t.open {
		if t.hub.connected(s.Principal, s.Instance) {
			return true
		}
	}
	return false
}

func (t *toll) conclude() error {
	for _, s := range t.open {
		if t.hub.connected(s.Principal, s.Instance) {
			t.summary.Waiting++
		} else {
			t.summary.Offline++
		}
	}
	return t.out.Send(&bullav1.RevokeReply{Summary: &t.summary})
}
