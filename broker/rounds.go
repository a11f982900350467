package broker

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/round"
)

const (
	// maxRounds is how many rounds one principal may open in an hour: each is kept for good, and read by custodians.
	maxRounds = 256
	// requestSkew is how far the time in a request id may be off, where rounds are found by it.
	requestSkew = 5 * time.Minute
)

// rounds is the service of custodians, approvers, and those who wait for them.
type rounds struct {
	bullav1.UnimplementedRoundsServer
	*Broker
}

// roundCounter limits the rounds that a principal opens.
func roundCounter(principal string, now time.Time) ledger.Counter {
	return ledger.Counter{Key: "rounds/" + principal, Window: now.Truncate(time.Hour), Length: time.Hour, Max: maxRounds}
}

// OpenRound asks for the approvals that a delivery needs. It is the same question as the delivery, of which the
// policy has to say that approvals are all that is missing.
func (s rounds) OpenRound(ctx context.Context, in *bullav1.SignedRequest) (*bullav1.OpenRoundReply, error) {
	now := s.now()
	who, err := s.request(ctx, now, bullav1.Rounds_OpenRound_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	r, err := twice(func() (round.Round, error) { return s.open(ctx, now, who) })
	if err != nil {
		return nil, s.answer(ctx, who.caller, err)
	}
	return &bullav1.OpenRoundReply{
		RoundId: r.ID.String(), ExpiresAt: stamp(r.Expires), Needed: r.Needed, Role: r.Role, NextNonce: who.conn.next(),
	}, nil
}

func (s rounds) open(ctx context.Context, now time.Time, who request) (round.Round, error) {
	var in bullav1.OpenRoundRequest
	if err := strictProto(who.payload, &in); err != nil || len(who.payload) > 2*maxAsk {
		return round.Round{}, s.invalid(ctx, now, who, "the payload is not an OpenRoundRequest, or larger than one can be")
	}
	id, err := event.ParseID(who.id)
	if err != nil {
		return round.Round{}, err
	}
	if off := id.Time().Sub(now); off.Abs() > requestSkew {
		return round.Round{}, s.invalid(ctx, now, who, "the request id was not made now: compare the clocks of both machines")
	}
	wanted := who
	wanted.payload = in.GetDeliver()
	asked, err := s.ask(ctx, now, wanted)
	if err != nil {
		return round.Round{}, err
	}
	if len(asked.shown) > 0 { // a bearer token must not be on the record, nor with approvers
		return round.Round{}, s.rejectRequest(ctx, now, who, checkRound, asked.name.String(), "approvers would see the token that the delivery shows: ask without one")
	}
	active, err := s.current(ctx)
	if err != nil {
		return round.Round{}, err
	}
	device, err := s.passport(ctx, active, who)
	if err != nil {
		return round.Round{}, err
	}
	now = device.notBefore(now)
	target, err := s.target(ctx, asked)
	if err != nil {
		return round.Round{}, err
	}
	said, err := s.external(ctx, now, who, device.id)
	if err != nil {
		return round.Round{}, err
	}
	verdict, err := s.decide(ctx, active, s.signals(ctx, now, who, asked, recipient(device, asked), device, target, said), said)
	if err != nil {
		return round.Round{}, err
	}
	need := verdict.decision.Requires
	switch {
	case verdict.decision.Effect == policy.Permit:
		return round.Round{}, s.rejectRequest(ctx, now, who, checkRound, asked.name.String(), "no approval is needed: ask for the secret")
	case verdict.decision.Effect != policy.StepUp || need.Approval == nil || need.Attestation != nil || need.Factor != nil:
		return round.Round{}, s.deny(ctx, now, who, &verdict, target)
	}
	opened := event.New(now, who.caller.id.String(), event.RoundOpened{
		Round: id, Principal: who.caller.id.String(), Instance: who.instance.thumbprint, Secret: target.name, Version: target.version.Version,
		Class: target.secret.Class, Role: need.Approval.Role, Count: uint32(need.Approval.Count), Payload: sha256.Sum256(in.GetDeliver()),
		Expires: event.NewTime(now.Add(roundLife)), Request: who.signed(), Decision: verdict.record(who.id),
	})
	_, err = s.ledger.Commit(ctx, ledger.Commit{
		Event: opened, Require: []ledger.Precondition{active.unchanged(), target.unchanged()},
		Counters: []ledger.Counter{roundCounter(who.caller.id.String(), now)},
	})
	if err != nil && !errors.Is(err, ledger.ErrTransition) {
		return round.Round{}, err
	}
	r, _, err := s.ledger.Round(ctx, id) // the new one, or the one that the same request opened before
	if err != nil {
		return round.Round{}, err
	}
	if r.Principal != who.caller.id.String() || r.Instance != who.instance.thumbprint || r.Payload != sha256.Sum256(in.GetDeliver()) || r.StateAt(now).Ended() {
		return round.Round{}, s.rejectRequest(ctx, now, who, checkRound, id.String(), "this request id was used for another round: choose a new one")
	}
	s.expireAt(r.Expires.Time())
	return r, nil
}

// RoundStatus tells the requester how its round stands, and hands over what was answered: shares that were sealed to
// the requester's key, and the words of those who gave them.
func (s rounds) RoundStatus(ctx context.Context, in *bullav1.SignedRequest) (*bullav1.RoundStatusReply, error) {
	now := s.now()
	who, err := s.request(ctx, now, bullav1.Rounds_RoundStatus_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	reply, err := s.status(ctx, now, who)
	if err != nil {
		return nil, s.answer(ctx, who.caller, err)
	}
	reply.NextNonce = who.conn.next()
	return reply, nil
}

func (s rounds) status(ctx context.Context, now time.Time, who request) (*bullav1.RoundStatusReply, error) {
	var in bullav1.RoundStatusRequest
	if err := strictProto(who.payload, &in); err != nil {
		return nil, s.invalid(ctx, now, who, "the payload is not a RoundStatusRequest")
	}
	r, err := s.ownRound(ctx, now, who, in.GetRoundId())
	if err != nil {
		return nil, err
	}
	state, _, err := s.stateOf(ctx, now, r)
	if err != nil {
		return nil, err
	}
	out := &bullav1.RoundStatusReply{State: string(state), Needed: r.Needed, Approvals: r.Approvals(), ExpiresAt: stamp(r.Expires)}
	for _, a := range r.Answers {
		got := &bullav1.RoundAnswer{Holder: a.Holder, Approved: a.Approved, Reason: a.Reason, At: stamp(a.At)}
		if a.Approved && r.Kind == round.Split && !state.Ended() {
			said, err := s.approval(ctx, r, a)
			if err != nil {
				return nil, err
			}
			got.Instance, got.Approval, got.Share, got.Binding, got.Chain = said.Instance, said.Approval, said.Share, said.Binding, said.Chain
		}
		out.Answers = append(out.Answers, got)
	}
	if r.Kind == round.Split && !state.Ended() {
		k, err := s.kept(ctx, r)
		if err != nil {
			return nil, err
		}
		out.Manifest = &bullav1.SignedManifest{Manifest: k.Manifest, Key: k.Key, Signature: k.Signature}
	}
	return out, nil
}

// CloseRound ends a round by its requester's word.
func (s rounds) CloseRound(ctx context.Context, in *bullav1.SignedRequest) (*bullav1.CloseRoundReply, error) {
	now := s.now()
	who, err := s.request(ctx, now, bullav1.Rounds_CloseRound_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	state, err := s.close(ctx, now, who)
	if err != nil {
		return nil, s.answer(ctx, who.caller, err)
	}
	return &bullav1.CloseRoundReply{State: string(state), NextNonce: who.conn.next()}, nil
}

func (s rounds) close(ctx context.Context, now time.Time, who request) (round.State, error) {
	var in bullav1.CloseRoundRequest
	if err := strictProto(who.payload, &in); err != nil {
		return "", s.invalid(ctx, now, who, "the payload is not a CloseRoundRequest")
	}
	r, err := s.ownRound(ctx, now, who, in.GetRoundId())
	if err != nil {
		return "", err
	}
	to := round.Cancelled
	if in.GetCombined() {
		to = round.Combined
	}
	bad := slices.Clone(in.GetBad())
	slices.Sort(bad)
	err = s.record(ctx, event.New(now, r.Principal, event.RoundClosed{Round: r.ID, Combined: in.GetCombined(), Bad: slices.Compact(bad)}))
	if err == nil {
		return to, s.abandoned(ctx, now, r.ID)
	}
	if !errors.Is(err, ledger.ErrTransition) {
		return to, err
	}
	again, _, err := s.ledger.Round(ctx, r.ID)
	if err != nil {
		return "", err
	}
	if again.State == to {
		return to, s.abandoned(ctx, now, r.ID)
	}
	return "", refuse(codes.FailedPrecondition, checkRound, "the round is %s", again.StateAt(now))
}

// ownRound returns a round of this very instance. Another's and one that does not exist get the same answer.
func (s rounds) ownRound(ctx context.Context, now time.Time, who request, text string) (round.Round, error) {
	id, err := event.ParseID(text)
	if err != nil {
		return round.Round{}, s.invalid(ctx, now, who, "the round id is not a UUID of version 7")
	}
	r, _, err := s.ledger.Round(ctx, id)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return round.Round{}, err
	}
	if err != nil || r.Principal != who.caller.id.String() || r.Instance != who.instance.thumbprint {
		answer := refuse(codes.NotFound, checkRound, "this instance has no such round")
		body := event.RequestRefused{Method: who.method, Instance: who.instance.thumbprint, Check: checkRound, Target: id.String()}
		return round.Round{}, s.rejectTarget(ctx, now, who.caller, body, answer)
	}
	return r, nil
}

// stateOf is the round's state, which ends with its session: a delivery that was revoked needs no custodians any more.
// It holds as long as the rows stay.
func (b *Broker) stateOf(ctx context.Context, now time.Time, r round.Round) (state round.State, rows []ledger.Precondition, err error) {
	state = r.StateAt(now)
	if r.Kind != round.Split || state.Ended() {
		return state, nil, nil
	}
	session, seq, err := b.ledger.Session(ctx, r.Session)
	if err != nil {
		return "", nil, err
	}
	ended, rows, err := b.overtaken(ctx, session)
	if err != nil {
		return "", nil, err
	}
	if ended || session.StateAt(now).Ended() {
		state = round.Cancelled
	}
	return state, append(rows, ledger.Precondition{RowKey: ledger.RowKey{Kind: ledger.KindSession, Key: r.Session.String()}, Seq: seq}), nil
}

// ListRounds shows the rounds that wait for the caller, the newest first.
func (s rounds) ListRounds(ctx context.Context, in *bullav1.ListRoundsRequest) (*bullav1.ListRoundsReply, error) {
	op, err := s.read(ctx, policy.ActionShareList, policy.Resource{Kind: policy.KindRound})
	if err != nil {
		return nil, err
	}
	out := new(bullav1.ListRoundsReply)
	after := ledger.RoundsSince(op.now.Add(-roundLife - requestSkew))
	for {
		page, err := s.ledger.RoundsAfter(ctx, after, maxPage)
		if err != nil {
			return nil, s.answer(ctx, op.caller, err)
		}
		for _, r := range page {
			after = r.ID.String()
			state, _, err := s.stateOf(ctx, op.now, r)
			if err != nil {
				return nil, s.answer(ctx, op.caller, err)
			}
			if !state.Ended() && s.shows(ctx, op, policy.ActionShareShow, roundFacts(r)) {
				out.Rounds = append(out.Rounds, roundReply(r, state, op.id.String()))
			}
		}
		if len(page) < maxPage {
			break
		}
	}
	slices.Reverse(out.Rounds)
	out.Rounds = out.Rounds[:min(len(out.Rounds), page(in.GetLimit()))]
	return out, nil
}

// GetRound shows one round with what its requester signed.
func (s rounds) GetRound(ctx context.Context, in *bullav1.GetRoundRequest) (*bullav1.Round, error) {
	r, facts, err := s.find(ctx, in.GetId())
	if err != nil {
		return nil, err
	}
	op, err := s.read(ctx, policy.ActionShareShow, facts)
	if err != nil {
		return nil, err
	}
	if r.ID.IsZero() {
		return nil, missing("there is no round %s", in.GetId())
	}
	out, err := s.whole(ctx, op.now, r, op.id.String())
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	return out, nil
}

// find looks a round up; one that does not exist has the zero id, and policy decides who is told.
func (s rounds) find(ctx context.Context, text string) (round.Round, policy.Resource, error) {
	id, err := event.ParseID(text)
	if err != nil {
		return round.Round{}, policy.Resource{}, wrong("the round id is not a UUID of version 7")
	}
	r, _, err := s.ledger.Round(ctx, id)
	if errors.Is(err, ledger.ErrNotFound) {
		return round.Round{}, policy.Resource{Kind: policy.KindRound, Round: &policy.Round{ID: id.String()}}, nil
	}
	if err != nil {
		return round.Round{}, policy.Resource{}, s.unavailable(err)
	}
	return r, roundFacts(r), nil
}

// whole is a round with all that a holder or approver has to check.
func (s rounds) whole(ctx context.Context, now time.Time, r round.Round, reader string) (*bullav1.Round, error) {
	state, _, err := s.stateOf(ctx, now, r)
	if err != nil {
		return nil, err
	}
	out := roundReply(r, state, reader)
	at, err := s.ledger.Find(ctx, r.Event)
	if err != nil {
		return nil, err
	}
	switch b := at.Event.Body.(type) {
	case event.RoundOpened:
		out.Request = callReply(b.Request)
	case event.SessionIssued:
		if b.Custody == nil {
			return nil, fmt.Errorf("event %s: %w: it opened no round", r.Event, ledger.ErrTampered)
		}
		out.Request = callReply(b.Custody.Request)
		if state.Ended() { // what lay beside the ledger for it is gone
			return out, nil
		}
		k, err := s.kept(ctx, r)
		if err != nil {
			return nil, err
		}
		out.Manifest = &bullav1.SignedManifest{Manifest: k.Manifest, Key: k.Key, Signature: k.Signature}
	}
	return out, nil
}

func callReply(c event.SignedCall) *bullav1.SignedCall {
	return &bullav1.SignedCall{
		Method: c.Method, RequestId: c.RequestID, Nonce: c.Nonce, Exporter: c.Exporter, Payload: c.Payload, Signature: c.Signature,
		Binding: c.Binding, Chain: c.Chain,
	}
}

// roundFacts is a round as policy sees it.
func roundFacts(r round.Round) policy.Resource {
	return policy.Resource{Kind: policy.KindRound, Round: &policy.Round{
		ID: r.ID.String(), Kind: string(r.Kind), Principal: r.Principal, Secret: r.Secret, Version: int64(r.Version), Role: r.Role, Holders: r.Holders,
	}}
}

func roundReply(r round.Round, state round.State, reader string) *bullav1.Round {
	out := &bullav1.Round{
		Id: r.ID.String(), Kind: string(r.Kind), State: string(state), Principal: r.Principal, Secret: r.Secret, Version: r.Version,
		Needed: r.Needed, Approvals: r.Approvals(), Role: r.Role, Holders: r.Holders, OpenedAt: timestamppb.New(r.Opened.Time()),
		ExpiresAt: timestamppb.New(r.Expires.Time()), Source: r.Source,
	}
	if a, ok := r.Answered(reader); ok {
		out.Answered = "rejected"
		if a.Approved {
			out.Answered = "approved"
		}
	}
	return out
}

// expireAt makes the sweeper look for rounds that are over by then.
func (b *Broker) expireAt(t time.Time) {
	b.roundsMu.Lock()
	defer b.roundsMu.Unlock()
	if t.Before(b.roundsDue) {
		b.roundsDue = t
	}
}

// sweepRounds records the end of rounds that are past it. It looks only when one is due, and at those alone that were
// asked for since the oldest that lived when it last looked.
func (b *Broker) sweepRounds(ctx context.Context, now time.Time) error {
	b.roundsMu.Lock()
	due, after := b.roundsDue, b.roundsAfter
	if !now.Before(due) {
		b.roundsDue = now.Add(roundLife) // expireAt brings it forward
	}
	b.roundsMu.Unlock()
	if now.Before(due) {
		return nil
	}
	oldest := ""
	for at := after; ; {
		page, err := b.ledger.RoundsAfter(ctx, at, maxPage)
		if err != nil {
			b.expireAt(now)
			return err
		}
		for _, r := range page {
			if r.State.Ended() {
				at = r.ID.String()
				continue
			}
			if now.Before(r.Expires.Time()) {
				if oldest == "" {
					oldest = at
				}
				b.expireAt(r.Expires.Time())
			} else if err := b.expireRound(ctx, now, r); err != nil {
				b.expireAt(now)
				return err
			}
			at = r.ID.String()
		}
		if len(page) < maxPage {
			break
		}
	}
	// Ids of requests are made elsewhere, so that a later one may sort a little before an earlier one.
	if begin := ledger.RoundsSince(now.Add(-roundLife - 2*requestSkew)); oldest == "" || begin < oldest {
		oldest = begin
	}
	b.roundsMu.Lock()
	defer b.roundsMu.Unlock()
	b.roundsAfter = max(after, oldest)
	return nil
}
