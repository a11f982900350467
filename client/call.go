package client

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/envelope"
	reqproof "github.com/bulla-project/bulla/envelope/proof"
)

const (
	// maxTries is how often one request is sent. The broker answers the same request id in the same way, so
	// that sending it again is safe.
	maxTries = 5
	// bindingLife is how long a binding of the instance key holds at most; the SVID usually ends before.
	bindingLife = 24 * time.Hour
)

// sent is a request id with the channels that it was sent over.
type sent struct {
	id       string
	channels []envelope.Digest
	keys     *envelope.KeySet
}

// build makes the payload for a channel: evidence is bound to its nonce and its exporter value.
type build func(ch *channel, nonce [32]byte) (proto.Message, error)

// fixed is a payload that is the same on each channel.
func fixed(m proto.Message) build {
	return func(*channel, [32]byte) (proto.Message, error) { return m, nil }
}

// call signs and sends one request, and again from the challenge where the connection was replaced or the
// broker could not be reached. R is the reply's type.
func call[R interface{ GetNextNonce() []byte }](
	ctx context.Context, c *Client, method string, req *sent, payload build,
	do func(context.Context, *bullav1.SignedRequest, ...grpc.CallOption) (R, error),
) (reply R, err error) {
	for try := 1; ; try++ {
		reply, err = attempt(ctx, c, method, req, payload, do)
		if err == nil {
			return reply, nil
		}
		var refused *Refusal
		if !errors.As(err, &refused) || !again(refused) || try == maxTries {
			return reply, c.explain(err)
		}
		if !c.pause(ctx, try, refused.Code == codes.Unavailable) {
			return reply, c.explain(err)
		}
	}
}

// attempt sends a request once.
func attempt[R interface{ GetNextNonce() []byte }](
	ctx context.Context, c *Client, method string, req *sent, payload build,
	do func(context.Context, *bullav1.SignedRequest, ...grpc.CallOption) (R, error),
) (reply R, err error) {
	ch, nonce, err := c.ready(ctx, req)
	if err != nil {
		return reply, err
	}
	message, err := payload(ch, nonce)
	if err != nil {
		return reply, err
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(message)
	if err != nil {
		return reply, err
	}
	signature, err := reqproof.SignRequest(c.instance, reqproof.Request{
		Method: method, Nonce: nonce, Exporter: ch.exporter, RequestID: req.id, PayloadSHA256: sha256.Sum256(body),
	})
	if err != nil {
		return reply, fmt.Errorf("sign the request with the instance key: %w", err)
	}
	if exporter := envelope.Digest(ch.exporter); len(req.channels) == 0 || req.channels[len(req.channels)-1] != exporter {
		req.channels = append(req.channels, exporter)
	}
	reply, err = do(ctx, &bullav1.SignedRequest{
		Payload: body, Proof: &bullav1.Proof{Nonce: nonce[:], RequestId: req.id, Instance: c.thumbprint, Signature: signature},
	})
	if err != nil {
		ch.keep(nextNonce(err))
		refused := FromStatus(err)
		if stale(refused) {
			c.wire.drop(ch)
		}
		return reply, refused
	}
	ch.keep(reply.GetNextNonce())
	return reply, nil
}

// ready returns a channel that knows the instance key, and an unspent nonce of it.
func (c *Client) ready(ctx context.Context, req *sent) (*channel, [32]byte, error) {
	if ch := c.wire.channel(); ch != nil && req.keys == nil {
		req.keys = c.keys()
	}
	if ch := c.wire.channel(); ch != nil {
		if nonce, ok := ch.take(); ok {
			return ch, nonce, nil
		}
	}
	return c.challenge(ctx, req)
}

// challenge binds the instance key to the connection, if that has not been done, and gets a nonce. The
// binding is signed with the very SVID that the connection was made with.
func (c *Client) challenge(ctx context.Context, req *sent) (*channel, [32]byte, error) {
	in := new(bullav1.ChallengeRequest)
	known := c.wire.channel()
	if known != nil && !known.isBound() {
		binding, err := c.binding(known)
		if err != nil {
			return nil, [32]byte{}, err
		}
		in.Binding = binding
	}
	var p peer.Peer
	reply, err := c.broker.Challenge(ctx, in, grpc.Peer(&p))
	if err != nil {
		if known != nil {
			c.wire.drop(known)
		}
		return nil, [32]byte{}, FromStatus(err)
	}
	ch, ok := p.AuthInfo.(*channel)
	if !ok {
		return nil, [32]byte{}, fmt.Errorf("%w: the connection has no channel binding", ErrVerification)
	}
	if err := c.learn(reply, req); err != nil {
		return nil, [32]byte{}, err
	}
	if ch == known && len(in.GetBinding()) > 0 {
		ch.setBound()
	}
	if !ch.isBound() { // a new connection, whose SVID and exporter are known only now
		ch.keep(reply.GetNonce())
		return c.bindNew(ctx, ch)
	}
	return ch, [32]byte(reply.GetNonce()), nil
}

// bindNew sends the binding over a connection that was made by the call before.
func (c *Client) bindNew(ctx context.Context, ch *channel) (*channel, [32]byte, error) {
	binding, err := c.binding(ch)
	if err != nil {
		return nil, [32]byte{}, err
	}
	var p peer.Peer
	reply, err := c.broker.Challenge(ctx, &bullav1.ChallengeRequest{Binding: binding}, grpc.Peer(&p))
	if err != nil {
		c.wire.drop(ch)
		return nil, [32]byte{}, FromStatus(err)
	}
	if p.AuthInfo != ch || len(reply.GetNonce()) != 32 {
		c.wire.drop(ch)
		return nil, [32]byte{}, &Refusal{Code: codes.Unavailable, Text: "the connection was replaced while it was set up"}
	}
	ch.setBound()
	return ch, [32]byte(reply.GetNonce()), nil
}

// binding is the word of the channel's SVID for the instance key: the same on each connection that the SVID
// makes, so that the broker records it once.
func (c *Client) binding(ch *channel) ([]byte, error) {
	c.bindingMu.Lock()
	defer c.bindingMu.Unlock()
	if c.bindingOf != nil && c.bindingOf.Equal(ch.leaf) && c.cfg.Now().Before(c.bindingEnds) {
		return c.bound, nil
	}
	public, err := reqproof.InstancePublic(c.instance)
	if err != nil {
		return nil, err
	}
	now := c.cfg.Now()
	b, err := reqproof.SignBinding(ch.key, ch.leaf, public, now.Add(bindingLife))
	if err != nil {
		return nil, fmt.Errorf("bind the instance key to the SVID: %w", err)
	}
	c.bound, c.bindingOf, c.bindingEnds = b, ch.leaf, now.Add(bindingLife/2)
	return b, nil
}

// learn keeps the broker's signing keys.
func (c *Client) learn(reply *bullav1.ChallengeReply, req *sent) error {
	if len(reply.GetNonce()) != 32 {
		return fmt.Errorf("%w: the broker's nonce has %d bytes", ErrVerification, len(reply.GetNonce()))
	}
	keys, err := envelope.ParseKeySet(reply.GetSigningKeys())
	if err != nil {
		return fmt.Errorf("%w: the broker's key set: %w", ErrVerification, err)
	}
	c.seenMu.Lock()
	c.keySet = keys
	c.seenMu.Unlock()
	req.keys = keys
	return nil
}

func (c *Client) keys() *envelope.KeySet {
	c.seenMu.Lock()
	defer c.seenMu.Unlock()
	return c.keySet
}

// again says whether the same request may be answered better if it is sent once more.
func again(r *Refusal) bool {
	return stale(r) || r.Code == codes.Aborted || r.Code == codes.ResourceExhausted && r.Check == "attestation"
}

// stale says whether the refusal is about the connection and not about the request.
func stale(err error) bool {
	var r *Refusal
	if !errors.As(err, &r) {
		return false
	}
	if r.Check == checkFactor { // the broker has to ask somebody else: another connection is no help
		return false
	}
	return r.Code == codes.Unavailable || r.Code == codes.Unauthenticated && (r.Check == "nonce" || r.Check == "instance" || r.Check == "identity" || r.Check == "proof")
}

// pause waits a little longer each time, with chance in it, and no longer than it takes to connect again where that is what
// it is for: gRPC would try again at a time of its own, up to two seconds later, and refuse every call until then.
func (c *Client) pause(ctx context.Context, try int, connect bool) bool {
	limit := 20 * time.Millisecond << try
	n, err := rand.Int(rand.Reader, big.NewInt(int64(limit)))
	if err != nil {
		return false
	}
	over, cancel := context.WithTimeout(ctx, limit/2+time.Duration(n.Int64())/2)
	defer cancel()
	if !connect || c.conn.GetState() == connectivity.Ready { // then it was the broker who said so
		<-over.Done()
		return ctx.Err() == nil
	}
	c.conn.ResetConnectBackoff()
	for state := c.conn.GetState(); state != connectivity.Ready; state = c.conn.GetState() {
		if state == connectivity.Idle {
			c.conn.Connect()
		}
		if !c.conn.WaitForStateChange(over, state) {
			break
		}
	}
	return ctx.Err() == nil
}

// explain adds to UNAVAILABLE why the connection could not be made: gRPC alone says little.
func (c *Client) explain(err error) error {
	var r *Refusal
	if !errors.As(err, &r) || r.Code != codes.Unavailable && r.Code != codes.DeadlineExceeded {
		return err
	}
	if cause := c.wire.cause(); cause != nil {
		return fmt.Errorf("%w: connect to the broker at %s as %s: %w", ErrUnavailable, c.cfg.Address, c.ID(), cause)
	}
	if svid, e := c.source.GetX509SVID(); e != nil {
		return fmt.Errorf("%w: own identity: %w", ErrUnavailable, e)
	} else if svid == nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, certs.ErrNoIdentity)
	}
	return fmt.Errorf("%w: broker at %s: %w", ErrUnavailable, c.cfg.Address, r)
}
