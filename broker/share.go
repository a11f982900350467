package broker

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/envelope/split"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/round"
	"github.com/bulla-project/bulla/secret"
)

// maxResealed is the largest re-sealed share in bytes: a hybrid encapsulated key, the share and its tag, and room.
const maxResealed = 2 << 10

// part is a custodian's or an approver's permitted action on a round.
type part struct {
	round   round.Round
	permit  permit
	device  device
	require []ledger.Precondition
}

// part is the gate of those who answer: it finds the round and asks the policy, as for any release. A round that does
// not exist and one that waits for others are the same to it.
func (s rounds) part(ctx context.Context, now time.Time, who request, action policy.Action, id string, to *policy.Recipient) (part, error) {
	r, facts, err := s.find(ctx, id)
	var refused *refusal
	if errors.As(err, &refused) && refused.code == codes.InvalidArgument {
		return part{}, s.invalid(ctx, now, who, refused.text)
	}
	if err != nil {
		return part{}, err
	}
	active, err := s.current(ctx)
	if err != nil {
		return part{}, err
	}
	device, err := s.passport(ctx, active, who)
	if err != nil {
		return part{}, err
	}
	signals := s.adminSignals(device.notBefore(now), who.caller, action, facts)
	signals.Instance, signals.Attestation, signals.Recipient = who.instance.thumbprint, attestationFacts(device), to
	if device.id != "" && device.result.HardwareBound() {
		signals.Principal.Level = policy.LevelHighAssurance
	}
	said, err := s.external(ctx, now, who, device.id)
	if err != nil {
		return part{}, err
	}
	signals.External = said.signals
	verdict, err := s.decide(ctx, active, signals, said)
	if err != nil {
		return part{}, err
	}
	permit, denied := verdict.permit()
	if denied != nil {
		return part{}, s.deny(ctx, now, who, denied, target{exists: true})
	}
	if r.ID.IsZero() {
		return part{}, s.rejectRequest(ctx, now, who, checkRound, id, "there is no such round")
	}
	state, lives, err := s.stateOf(ctx, now, r)
	if err != nil {
		return part{}, err
	}
	p := part{round: r, permit: permit, device: device, require: slices.Concat([]ledger.Precondition{active.unchanged()}, device.unchanged(), said.unchanged(), lives)}
	if state.Ended() {
		return part{}, s.rejectRequest(ctx, now, who, checkRound, r.ID.String(), "the round is "+string(state))
	}
	return p, nil
}

// FetchShare gives a holder its share: a release of its own, with a decision, an event and an envelope that opens for
// this instance alone.
func (s rounds) FetchShare(ctx context.Context, in *bullav1.SignedRequest) (*bullav1.FetchShareReply, error) {
	now := s.now()
	who, err := s.request(ctx, now, bullav1.Rounds_FetchShare_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	reply, err := twice(func() (*bullav1.FetchShareReply, error) { return s.fetch(ctx, now, who) })
	if err != nil {
		return nil, s.answer(ctx, who.caller, err)
	}
	reply.NextNonce = who.conn.next()
	return reply, nil
}

func (s rounds) fetch(ctx context.Context, now time.Time, who request) (*bullav1.FetchShareReply, error) {
	if err := s.tree.Stopped(); err != nil {
		return nil, err
	}
	var in bullav1.FetchShareRequest
	if err := strictProto(who.payload, &in); err != nil {
		return nil, s.invalid(ctx, now, who, "the payload is not a FetchShareRequest")
	}
	suite, err := envelope.ParseSuite(in.GetSuite())
	if err != nil {
		return nil, s.invalid(ctx, now, who, "unknown suite: use HPKE-9-KE, HPKE-8-KE or HPKE-7-KE")
	}
	key, err := envelope.ParseRecipientKey(suite, in.GetRecipientKey())
	if err != nil {
		return nil, s.invalid(ctx, now, who, "the recipient key does not belong to the suite")
	}
	p, err := s.part(ctx, now, who, policy.ActionShareFetch, in.GetRoundId(), &policy.Recipient{Suite: int64(suite.Number())})
	if err != nil {
		return nil, err
	}
	if p.round.Kind != round.Split || p.round.Source {
		return nil, s.rejectRequest(ctx, now, who, checkRound, p.round.ID.String(), "the broker has no share for this round")
	}
	k, err := s.kept(ctx, p.round)
	if errors.Is(err, ledger.ErrNotFound) { // it has ended since
		return nil, s.rejectRequest(ctx, now, who, checkRound, p.round.ID.String(), "the round is over")
	}
	if err != nil {
		return nil, err
	}
	share, err := k.share(s.Broker, p.round, who.caller.id.String())
	if err != nil {
		return nil, err
	}
	defer share.Zero()
	sealed, err := s.sealShare(now, who, p, key, share)
	if err != nil {
		return nil, err
	}
	issued := event.New(now, who.caller.id.String(), event.ShareIssued{
		Round: p.round.ID, Holder: who.caller.id.String(), Instance: who.instance.thumbprint, Suite: suite.String(), KeyID: s.signer.Key().ID,
		EnvelopeDigest: event.Digest(sealed.Digest), ReceiptLock: event.Digest(sealed.Context.ReceiptLock), Decision: p.permit.record(who.id),
	})
	_, err = s.ledger.Commit(ctx, ledger.Commit{Event: issued, Reply: event.Digest(sealed.Digest), Require: p.require})
	if errors.Is(err, ledger.ErrTransition) {
		return nil, s.rejectRequest(ctx, now, who, checkRound, p.round.ID.String(), "the round is over, or you have answered it")
	}
	if err != nil {
		return nil, err
	}
	return &bullav1.FetchShareReply{Envelope: sealed.Bytes, EventId: issued.ID.String()}, nil
}

// sealShare makes the envelope of a share. It takes a part, which only a permit gives.
func (s rounds) sealShare(now time.Time, who request, p part, key envelope.RecipientKey, share secret.Bytes) (envelope.Sealed, error) {
	model, err := parseDigest(p.permit.decision.ModelDigest)
	if err != nil {
		return envelope.Sealed{}, err
	}
	var attestation envelope.Digest
	if len(p.device.encoded) > 0 {
		attestation = envelope.DigestOf(p.device.encoded)
	}
	return envelope.Seal(envelope.SealInput{
		Recipient: key, Secret: share,
		Context: envelope.Context{
			Session: event.NewID(now).String(), Request: who.id, Issuer: s.id.String(), Subject: who.caller.id.String(),
			Instance: who.instance.thumbprint, Audience: who.caller.id.String(), Secret: s.ring.NameHash(p.round.Secret),
			SecretVersion: uint64(p.round.Version), IssuedAt: now.Unix(), NotBefore: now.Unix(), Expires: p.round.Expires.Time().Unix() + 1,
			Grade: envelope.GradeOpen, Uses: 1, UsesEnforcedBy: envelope.UsesByClient, Places: []string{},
			Revision: envelope.Digest(p.permit.active.digest), RiskScore: p.permit.decision.Risk.Score, RiskModel: model,
			Attestation: attestation, Channel: who.conn.exporter, LogOrigin: s.origin, Split: envelope.Digest(p.round.Manifest),
		},
	}, s.signer)
}

// AnswerRound takes a holder's or approver's yes or no.
func (s rounds) AnswerRound(ctx context.Context, in *bullav1.SignedRequest) (*bullav1.AnswerRoundReply, error) {
	now := s.now()
	who, err := s.request(ctx, now, bullav1.Rounds_AnswerRound_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	reply, err := twice(func() (*bullav1.AnswerRoundReply, error) { return s.take(ctx, now, who) })
	if err != nil {
		return nil, s.answer(ctx, who.caller, err)
	}
	reply.NextNonce = who.conn.next()
	return reply, nil
}

func (s rounds) take(ctx context.Context, now time.Time, who request) (*bullav1.AnswerRoundReply, error) {
	var in bullav1.AnswerRoundRequest
	if err := strictProto(who.payload, &in); err != nil {
		return nil, s.invalid(ctx, now, who, "the payload is not an AnswerRoundRequest")
	}
	yes := in.GetReject() == ""
	if len(in.GetReject()) > maxReason || len(in.GetShare()) > maxResealed || !yes && len(in.GetApproval())+len(in.GetShare()) > 0 {
		return nil, s.invalid(ctx, now, who, "an answer is an approval with its share, or a reason why not")
	}
	action := policy.ActionShareReject
	if yes {
		action = policy.ActionShareApprove
	}
	p, err := s.part(ctx, now, who, action, in.GetRoundId(), nil)
	if err != nil {
		return nil, err
	}
	holder := who.caller.id.String()
	var body event.Body = event.RoundRejected{Round: p.round.ID, Holder: holder, Reason: in.GetReject(), Decision: p.permit.record(who.id)}
	if yes {
		if (p.round.Kind == round.Split) != (len(in.GetShare()) > 0) {
			return nil, s.invalid(ctx, now, who, "a split wants a share with the approval, and an approval alone wants none")
		}
		word := approvalOf(p.round, holder)
		if len(in.GetShare()) > 0 {
			word.Share = envelope.DigestOf(in.GetShare())
		}
		if err := word.Verify(who.instance.public, in.GetApproval()); err != nil {
			return nil, s.rejectRequest(ctx, now, who, checkRound, p.round.ID.String(), "the approval's signature does not verify for this round")
		}
		signed := who.signed()
		body = event.RoundApproved{
			Round: p.round.ID, Holder: holder, Instance: who.instance.thumbprint, Share: in.GetShare(), Approval: in.GetApproval(),
			Binding: signed.Binding, Chain: signed.Chain, Decision: p.permit.record(who.id),
		}
	}
	answered := event.New(now, holder, body)
	_, err = s.ledger.Commit(ctx, ledger.Commit{Event: answered, Require: p.require})
	if errors.Is(err, ledger.ErrTransition) {
		return nil, s.rejectRequest(ctx, now, who, checkRound, p.round.ID.String(), "the round is over, you have answered it, or you asked for it yourself")
	}
	if err != nil {
		return nil, err
	}
	if err := s.abandoned(ctx, now, p.round.ID); err != nil { // where it was the last no
		return nil, err
	}
	r, _, err := s.ledger.Round(ctx, p.round.ID)
	if err != nil {
		return nil, err
	}
	return &bullav1.AnswerRoundReply{State: string(r.StateAt(now)), EventId: answered.ID.String()}, nil
}

// approvalOf is what a holder or approver has to have signed.
func approvalOf(r round.Round, holder string) split.Approval {
	return split.Approval{
		Round: r.ID.String(), Manifest: envelope.Digest(r.Manifest), Secret: r.Secret, Version: r.Version, Requester: r.Principal,
		Instance: r.Instance, Request: r.RequestID, Payload: envelope.Digest(r.Payload), Holder: holder, Expires: r.Expires.Time().UnixMicro(),
	}
}
