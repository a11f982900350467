package broker

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/session"
)

const (
	// watchRecheck is how often a stream on which nothing happens looks at its caller's certificate.
	watchRecheck = 2 * time.Second
	// maxConfirmed is how many sessions one ConfirmEnd names.
	maxConfirmed = 256
)

// Watch tells an instance what becomes of its sessions and of its rounds, for as long as its certificate holds, its connection lives
// and it reads what it is told. It is told nothing of any other instance.
//
// Nothing is lost between two streams, and nothing told twice: what the instance missed is read from the state of the
// sessions that it names, as far as the hub had come when it joined, and what comes after that is told by the hub. Only
// of its rounds it is not told what it missed: whoever waits for one asks how it stands once it is told that the stream
// is ready, and now and then besides, which costs less than naming them here.
func (b *Broker) Watch(in *bullav1.SignedRequest, out grpc.ServerStreamingServer[bullav1.WatchReply]) error {
	ctx, now := out.Context(), b.now()
	who, err := b.request(ctx, now, bullav1.Broker_Watch_FullMethodName, in)
	if err != nil {
		return err
	}
	var asked bullav1.WatchRequest
	if err := strictProto(who.payload, &asked); err != nil || len(asked.GetHeld()) > maxHeldSessions || asked.GetAfter() < 0 {
		return b.invalid(ctx, now, who, "the payload is not a WatchRequest that names at most 1024 sessions")
	}
	if !b.limits.watch(who.caller.id.String(), now) {
		return tooManyWatchers(who)
	}
	w, from, err := b.hub.join(who.caller.id.String(), who.instance.thumbprint)
	if errors.Is(err, errTooManyWatchers) {
		b.limits.refused(who.caller.id.String(), now, 1)
		return tooManyWatchers(who)
	}
	if err != nil {
		return err
	}
	defer b.hub.leave(w)
	uncount(ctx) // the hub counts it
	missed, err := b.missed(ctx, now, who, w, &asked, from)
	if err != nil {
		return b.answer(ctx, who.caller, err)
	}
	opening := []*bullav1.WatchReply{{NextNonce: who.conn.next()}}
	opening = append(append(opening, missed...), &bullav1.WatchReply{Sequence: from - 1, What: &bullav1.WatchReply_Ready{Ready: &bullav1.WatchReady{}}})
	for _, m := range opening {
		if err := b.stillWatches(who); err != nil {
			return err
		}
		if err := out.Send(m); err != nil {
			return err
		}
	}
	return b.pass(who, w, out)
}

// pass sends what the hub queues, until the stream may not go on.
func (b *Broker) pass(who request, w *watcher, out grpc.ServerStreamingServer[bullav1.WatchReply]) error {
	tick := time.NewTicker(watchRecheck)
	defer tick.Stop()
	for {
		var m *bullav1.WatchReply
		select {
		case m = <-w.queue:
		case <-w.gone:
			return refuse(codes.Unavailable, checkLimit, "%s", w.why)
		case <-out.Context().Done():
			return out.Context().Err()
		case <-tick.C:
		}
		if err := b.stillWatches(who); err != nil {
			return err
		}
		if m == nil {
			continue
		}
		if err := out.Send(m); err != nil {
			return err
		}
	}
}

// stillWatches says why the caller may not be told anything more, if so: its certificate is judged against the
// bundle as it is now, and so is the SVID's word for the instance key.
func (b *Broker) stillWatches(who request) error {
	now := b.now()
	if _, err := b.peers.Check(who.conn.chain, now); err != nil {
		return refuse(codes.Unauthenticated, checkIdentity, "the client certificate of this stream does not hold any more: %v; connect again", cause(err))
	}
	if !now.Before(who.instance.notAfter) {
		return refuse(codes.Unauthenticated, checkInstance, "the SVID's word for the instance key has ended: send a binding with a challenge")
	}
	return nil
}

func tooManyWatchers(who request) error {
	r := refuse(codes.ResourceExhausted, checkLimit, "too many instances of this principal watch, or begin to: try again later")
	r.nonce = who.conn.next()
	return r
}

// missed is what the instance was not told of the sessions that it holds, up to the event before from. It also tells
// the hub which secrets they are of.
func (b *Broker) missed(ctx context.Context, now time.Time, who request, w *watcher, asked *bullav1.WatchRequest, from int64) ([]*bullav1.WatchReply, error) {
	ended := map[int64]*bullav1.WatchReply{}
	var out []*bullav1.WatchReply
	rotations := map[string]*bullav1.WatchReply{}
	var unknown []string
	for _, h := range asked.GetHeld() {
		id, err := event.ParseID(h.GetSessionId())
		if err != nil {
			return nil, b.invalid(ctx, now, who, "a session id is not a UUID of version 7")
		}
		s, seq, err := b.ledger.Session(ctx, id)
		if err != nil && !errors.Is(err, ledger.ErrNotFound) {
			return nil, err
		}
		if err != nil || s.Principal != who.caller.id.String() || s.Instance != who.instance.thumbprint {
			unknown = append(unknown, id.String())
			continue
		}
		if state := s.StateAt(now); state.Ended() {
			if state == session.Revoked && seq-1 >= from {
				continue // the hub tells of it
			}
			missedEnd(ended, min(seq-1, from-1), s, state)
			continue
		}
		if err := b.missedVersion(ctx, w, s, h.GetNewest(), from, rotations); err != nil {
			return nil, err
		}
	}
	for _, m := range ended {
		out = append(out, m)
	}
	for _, m := range rotations {
		out = append(out, m)
	}
	demand, err := b.missedDemand(ctx, now, w.key, asked.GetAfter(), from)
	if err != nil {
		return nil, err
	}
	if demand != nil {
		out = append(out, demand)
	}
	slices.SortFunc(out, func(x, y *bullav1.WatchReply) int { return cmp.Compare(x.GetSequence(), y.GetSequence()) })
	if len(unknown) == 0 {
		return out, nil
	}
	// Another's session and none at all look the same, here and in the record, as at every other call.
	body := event.RequestRefused{Method: who.method, Instance: who.instance.thumbprint, Check: checkSession, Target: unknown[0]}
	refused := refuse(codes.NotFound, checkSession, "this instance has no such session")
	var answer *refusal
	if err := b.rejectTarget(ctx, now, who.caller, body, refused); !errors.As(err, &answer) || answer != refused {
		return nil, err
	}
	none := &bullav1.SessionsEnd{SessionIds: unknown, State: "unknown", Reason: refused.text}
	return append(out, &bullav1.WatchReply{Sequence: from - 1, What: &bullav1.WatchReply_Ended{Ended: none}}), nil
}

// missedEnd puts a session to those that the same event ended.
func missedEnd(ended map[int64]*bullav1.WatchReply, index int64, s session.Session, state session.State) {
	m := ended[index]
	if m == nil || m.GetEnded().GetState() != string(state) || m.GetEnded().GetReason() != s.Reason {
		m = &bullav1.WatchReply{Sequence: index, What: &bullav1.WatchReply_Ended{Ended: &bullav1.SessionsEnd{State: string(state), Reason: s.Reason}}}
		for ended[index] != nil { // another cause under this number: it only orders what is told here
			index--
		}
		ended[index] = m
	}
	m.GetEnded().SessionIds = append(m.GetEnded().SessionIds, s.ID.String())
}

// missedVersion notes a newer version of a session's secret than the instance knows of.
func (b *Broker) missedVersion(ctx context.Context, w *watcher, s session.Session, known uint32, from int64, rotations map[string]*bullav1.WatchReply) error {
	b.hub.mu.Lock()
	b.hub.holds(w, s.Secret, s.Expires.Time(), max(known, s.Version))
	newest := w.secrets[s.Secret].newest
	b.hub.mu.Unlock()
	row, seq, err := b.ledger.Secret(ctx, s.Secret)
	if err != nil {
		return err
	}
	current := uint32(0)
	for _, v := range row.Versions {
		if v.Stage == secret.StageCurrent {
			current = v.Version
		}
	}
	if current <= newest {
		return nil
	}
	b.hub.mu.Lock()
	defer b.hub.mu.Unlock()
	if now := w.secrets[s.Secret]; now.newest < current { // else the hub has just told of it
		w.secrets[s.Secret] = held{now.until, current}
		rotations[s.Secret] = &bullav1.WatchReply{Sequence: min(seq-1, from-1), What: rotationReply(s.Secret, current)}
	}
	return nil
}

// missedDemand is the demand for an attestation that the instance has not met, and that it was not told of.
func (b *Broker) missedDemand(ctx context.Context, now time.Time, key string, after, from int64) (*bullav1.WatchReply, error) {
	d, seq, err := b.ledger.Demand(ctx, key)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	pass, _, err := b.ledger.Passport(ctx, key)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return nil, err
	}
	if index := seq - 1; index <= after || index >= from || !now.Before(d.By.Time()) || pass.At.Time().After(d.At.Time()) {
		return nil, nil
	}
	return &bullav1.WatchReply{Sequence: seq - 1, What: demandReply(d.By, d.Reason)}, nil
}

func rotationReply(name string, version uint32) *bullav1.WatchReply_Rotated {
	return &bullav1.WatchReply_Rotated{Rotated: &bullav1.Rotation{Secret: name, Version: version}}
}

func demandReply(by event.Time, reason string) *bullav1.WatchReply_Attest {
	return &bullav1.WatchReply_Attest{Attest: &bullav1.AttestationDemand{By: timestamppb.New(by.Time()), Reason: reason}}
}

// ConfirmEnd takes an instance's word that it has wiped what it held of sessions that ended. It proves nothing about
// a hostile client; what it says is who has not answered. Saying it again is no error.
func (b *Broker) ConfirmEnd(ctx context.Context, in *bullav1.SignedRequest) (*bullav1.ConfirmEndReply, error) {
	now := b.now()
	who, err := b.request(ctx, now, bullav1.Broker_ConfirmEnd_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	var asked bullav1.ConfirmEndRequest
	if err := strictProto(who.payload, &asked); err != nil || len(asked.GetSessionIds()) == 0 || len(asked.GetSessionIds()) > maxConfirmed {
		return nil, b.invalid(ctx, now, who, "the payload is not a ConfirmEndRequest of 1 to 256 sessions")
	}
	if err := b.confirmEnd(ctx, now, who, asked.GetSessionIds()); err != nil {
		return nil, b.answer(ctx, who.caller, err)
	}
	return &bullav1.ConfirmEndReply{NextNonce: who.conn.next()}, nil
}

func (b *Broker) confirmEnd(ctx context.Context, now time.Time, who request, texts []string) error {
	var wiped []event.ID
	for _, text := range slices.Compact(slices.Sorted(slices.Values(texts))) {
		s, err := b.ownSession(ctx, now, who, text)
		if err != nil {
			return err
		}
		if !s.StateAt(now).Ended() {
			return b.rejectRequest(ctx, now, who, checkSession, s.ID.String(), "the session lives")
		}
		switch _, _, err := b.ledger.Wiped(ctx, s.ID); {
		case errors.Is(err, ledger.ErrNotFound):
			wiped = append(wiped, s.ID)
		case err != nil:
			return err
		}
	}
	if len(wiped) == 0 {
		return nil
	}
	err := b.record(ctx, event.New(now, who.caller.id.String(), event.SessionsWiped{
		Principal: who.caller.id.String(), Instance: who.instance.thumbprint, Sessions: wiped,
	}))
	if errors.Is(err, ledger.ErrTransition) { // the same word came twice at once
		return nil
	}
	return err
}
