package broker

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// Acknowledge takes the receipt of an envelope, or closes its session. The same receipt again is answered
// as before.
func (b *Broker) Acknowledge(ctx context.Context, in *bullav1.SignedRequest) (*bullav1.AcknowledgeReply, error) {
	now := b.now()
	who, err := b.request(ctx, now, bullav1.Broker_Acknowledge_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	state, err := b.acknowledge(ctx, now, who)
	if err != nil {
		return nil, b.answer(ctx, who.caller, err)
	}
	return &bullav1.AcknowledgeReply{State: string(state), NextNonce: who.conn.next()}, nil
}

func (b *Broker) acknowledge(ctx context.Context, now time.Time, who request) (session.State, error) {
	var asked bullav1.AcknowledgeRequest
	if err := strictProto(who.payload, &asked); err != nil {
		return "", b.invalid(ctx, now, who, "the payload is not an AcknowledgeRequest")
	}
	s, err := b.ownSession(ctx, now, who, asked.GetSessionId())
	if err != nil {
		return "", err
	}
	if asked.GetClose() && s.State == session.Closed {
		return session.Closed, nil
	}
	if state := s.StateAt(now); state.Ended() {
		return "", refuse(codes.FailedPrecondition, checkSession, "the session is %s", state)
	}
	if asked.GetClose() && s.State == session.Issued && !s.ReceiptBy.IsZero() {
		return "", b.rejectRequest(ctx, now, who, checkReceipt, s.ID.String(), "the policy demands a receipt: hand it in before the session is closed")
	}
	if asked.GetClose() {
		return b.move(ctx, now, who, s, event.SessionClosed{Session: s.ID}, session.Closed)
	}
	if len(asked.GetR()) != 32 || len(asked.GetEnvelopeDigest()) != 32 {
		return "", b.invalid(ctx, now, who, "r and the envelope digest are 32 bytes each")
	}
	err = envelope.VerifyReceipt(envelope.Receipt{
		Session: asked.GetSessionId(), EnvelopeDigest: envelope.Digest(asked.GetEnvelopeDigest()), R: [32]byte(asked.GetR()), Signature: asked.GetSignature(),
	}, envelope.ReceiptExpectation{
		Session: s.ID.String(), EnvelopeDigest: envelope.Digest(s.EnvelopeDigest), Lock: envelope.Digest(s.ReceiptLock), Instance: who.instance.public,
	})
	if err != nil {
		return "", b.rejectRequest(ctx, now, who, checkReceipt, s.ID.String(), "the receipt does not belong to this session's envelope")
	}
	if s.State == session.Confirmed {
		return session.Confirmed, nil
	}
	return b.move(ctx, now, who, s, event.SessionConfirmed{Session: s.ID, R: asked.GetR(), Signature: asked.GetSignature()}, session.Confirmed)
}

// move commits an event of the session's holder. One that came too late says how the session ended.
func (b *Broker) move(ctx context.Context, now time.Time, who request, s session.Session, body event.Body, to session.State) (session.State, error) {
	err := b.record(ctx, event.New(now, who.caller.id.String(), body))
	if !errors.Is(err, ledger.ErrTransition) {
		return to, err
	}
	again, _, err := b.ledger.Session(ctx, s.ID)
	if err != nil {
		return "", err
	}
	if again.State == to {
		return to, nil
	}
	return "", refuse(codes.FailedPrecondition, checkSession, "the session is %s", again.StateAt(now))
}

// Status tells an instance how its own session stands.
func (b *Broker) Status(ctx context.Context, in *bullav1.SignedRequest) (*bullav1.StatusReply, error) {
	now := b.now()
	who, err := b.request(ctx, now, bullav1.Broker_Status_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	var asked bullav1.StatusRequest
	if err := strictProto(who.payload, &asked); err != nil {
		return nil, b.invalid(ctx, now, who, "the payload is not a StatusRequest")
	}
	s, err := b.ownSession(ctx, now, who, asked.GetSessionId())
	if err != nil {
		return nil, b.answer(ctx, who.caller, err)
	}
	return &bullav1.StatusReply{
		State: string(s.StateAt(now)), Reason: s.Reason, ExpiresAt: timestamppb.New(s.Expires.Time()), NextNonce: who.conn.next(),
	}, nil
}

// ownSession returns a session of this very instance. A session of another instance, of another principal
// and one that does not exist get the same answer and the same event.
func (b *Broker) ownSession(ctx context.Context, now time.Time, who request, id string) (session.Session, error) {
	s, _, err := b.ownSessionAt(ctx, now, who, id)
	return s, err
}

// ownSessionAt is ownSession with the sequence number of the row.
func (b *Broker) ownSessionAt(ctx context.Context, now time.Time, who request, id string) (session.Session, int64, error) {
	parsed, err := event.ParseID(id)
	if err != nil {
		return session.Session{}, 0, b.invalid(ctx, now, who, "the session id is not a UUID of version 7")
	}
	s, seq, err := b.ledger.Session(ctx, parsed)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return session.Session{}, 0, err
	}
	if err != nil || s.Principal != who.caller.id.String() || s.Instance != who.instance.thumbprint {
		answer := refuse(codes.NotFound, checkSession, "this instance has no such session")
		body := event.RequestRefused{Method: who.method, Instance: who.instance.thumbprint, Check: checkSession, Target: parsed.String()}
		return session.Session{}, 0, b.rejectTarget(ctx, now, who.caller, body, answer)
	}
	return s, seq, nil
}
