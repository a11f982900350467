package broker

import (
	"context"
	"crypto/sha256"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/ledger/event"
)

// Challenge vouches for an instance key, if a binding comes with it, and gives a nonce of this connection.
func (b *Broker) Challenge(ctx context.Context, in *bullav1.ChallengeRequest) (*bullav1.ChallengeReply, error) {
	now := b.now()
	who, err := b.caller(ctx, now)
	if err != nil {
		return nil, err
	}
	if len(in.GetBinding()) > 0 {
		if err := b.bind(ctx, now, who, in.GetBinding()); err != nil {
			return nil, b.answer(ctx, who, err)
		}
	}
	return &bullav1.ChallengeReply{Nonce: who.conn.next(), Now: timestamppb.New(now), SigningKeys: b.jwks, LogOrigin: b.origin}, nil
}

// bind checks an SVID's word for an instance key and keeps it as evidence, once.
func (b *Broker) bind(ctx context.Context, now time.Time, who caller, encoded []byte) error {
	if len(encoded) > proof.MaxBinding {
		return b.reject(ctx, now, who, bullav1.Broker_Challenge_FullMethodName, "", checkInstance, "the binding is too large")
	}
	binding, err := proof.VerifyBinding(encoded, who.leaf, now)
	switch {
	case errors.Is(err, proof.ErrBindingExpired):
		return b.reject(ctx, now, who, bullav1.Broker_Challenge_FullMethodName, "", checkInstance, "the binding of the instance key has ended: make a new one, and compare the clocks of both machines")
	case err != nil:
		return b.reject(ctx, now, who, bullav1.Broker_Challenge_FullMethodName, "", checkInstance, "the binding of the instance key does not verify with this connection's SVID")
	}
	spki, err := proof.MarshalInstanceKey(binding.InstanceKey)
	if err != nil {
		return err
	}
	in := instance{thumbprint: proof.Thumbprint(binding.InstanceKey), public: binding.InstanceKey, spki: spki, notAfter: binding.NotAfter, binding: encoded}
	digest := sha256.Sum256(encoded)
	if !b.bindings.known(digest) {
		if !b.limits.bind(who.id.String(), now) {
			return refuse(codes.ResourceExhausted, checkLimit, "too many new instance keys of this principal: slow down and try again")
		}
		chain := make([][]byte, len(who.conn.chain))
		for i, c := range who.conn.chain {
			chain[i] = c.Raw
		}
		trust, err := b.noteTrust(ctx, now, who)
		if err != nil {
			return err
		}
		err = b.record(ctx, event.New(now, who.id.String(), event.InstanceBound{
			Principal: who.id.String(), Instance: in.thumbprint, Binding: encoded, Chain: chain, Trust: trust,
		}))
		if err != nil {
			return err
		}
		b.bindings.remember(digest)
	}
	who.conn.bind(in)
	return nil
}
