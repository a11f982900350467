package broker

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"net"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// maxPayload is the largest signed payload, in bytes: evidence with an event log is the largest.
const maxPayload = 1 << 20

// caller is a principal as this call proved it to be.
type caller struct {
	id   spiffeid.ID
	leaf *x509.Certificate
	conn *conn
	addr net.Addr
}

// request is a call that the caller's instance key signed.
type request struct {
	caller
	method   string
	instance instance
	id       string
	nonce    [32]byte
	payload  []byte
	// signature is the instance key's, over all of that.
	signature []byte
}

// caller says who is calling: the peer's certificate is judged against the bundle as it is now, at each
// call, since the handshake says nothing about what was revoked since.
func (b *Broker) caller(ctx context.Context, now time.Time) (caller, error) {
	c, addr, err := connOf(ctx)
	if err != nil {
		return caller{}, refuse(codes.Unauthenticated, checkIdentity, "%v", err)
	}
	id, err := b.peers.Check(c.chain, now)
	if err != nil {
		return caller{}, refuse(codes.Unauthenticated, checkIdentity, "the client certificate of this connection does not hold any more: %v; connect again with a current SVID", cause(err))
	}
	if !b.limits.admit(id.String(), now) {
		r := refuse(codes.ResourceExhausted, checkLimit, "too many calls or too many refused calls of this principal: slow down and try again")
		r.nonce = nil
		return caller{}, r
	}
	return caller{id: id, leaf: c.chain[0], conn: c, addr: addr}, nil
}

// cause names what is wrong with a certificate, in words that tell a peer nothing about other peers.
func cause(err error) error {
	for _, known := range []error{certs.ErrExpired, certs.ErrNotYetValid, certs.ErrUntrusted, certs.ErrInvalidID} {
		if errors.Is(err, known) {
			return known
		}
	}
	return certs.ErrUntrusted
}

// request checks that this very call was signed by an instance key that an SVID of the connection vouched
// for. The nonce is spent first, whatever comes of the rest. An unknown nonce is no event: it costs a map
// look-up, proves nothing, and is what every client meets whose connection was replaced.
func (b *Broker) request(ctx context.Context, now time.Time, method string, in *bullav1.SignedRequest) (request, error) {
	who, err := b.caller(ctx, now)
	if err != nil {
		return request{}, err
	}
	p := in.GetProof()
	if len(p.GetNonce()) != 32 || !who.conn.consume([32]byte(p.GetNonce())) {
		return request{}, refuse(codes.Unauthenticated, checkNonce, "the nonce was not given out on this connection, or was used before: ask for a challenge")
	}
	if len(in.GetPayload()) > maxPayload {
		return request{}, b.reject(ctx, now, who, method, p.GetInstance(), checkRequest, "the payload is too large")
	}
	if _, err := event.ParseID(p.GetRequestId()); err != nil {
		return request{}, b.reject(ctx, now, who, method, p.GetInstance(), checkRequest, "the request id is not a UUID of version 7")
	}
	inst, ok := who.conn.instance(p.GetInstance())
	if !ok || !now.Before(inst.notAfter) {
		return request{}, b.reject(ctx, now, who, method, p.GetInstance(), checkInstance, "no SVID of this connection vouches for the instance key now: send a binding with a challenge")
	}
	nonce := [32]byte(p.GetNonce())
	err = proof.VerifyRequest(inst.public, proof.Request{
		Method: method, Nonce: nonce, Exporter: who.conn.exporter, RequestID: p.GetRequestId(), PayloadSHA256: sha256.Sum256(in.GetPayload()),
	}, p.GetSignature())
	if err != nil {
		return request{}, b.reject(ctx, now, who, method, p.GetInstance(), checkProof, "the request's signature does not verify for this connection")
	}
	return request{caller: who, method: method, instance: inst, id: p.GetRequestId(), nonce: nonce, payload: in.GetPayload(), signature: p.GetSignature()}, nil
}

// reject records a call that failed before any policy was asked, and says so to the caller.
func (b *Broker) reject(ctx context.Context, now time.Time, who caller, method, instance, check, text string) error {
	return b.rejectTarget(ctx, now, who, event.RequestRefused{Method: method, Instance: bounded(instance), Check: check}, refuse(codes.Unauthenticated, check, "%s", text))
}

// rejectTarget is reject with a body and an answer of the caller's choice.
func (b *Broker) rejectTarget(ctx context.Context, now time.Time, who caller, body event.RequestRefused, answer *refusal) error {
	b.limits.denied(who.id.String(), now)
	body.Principal = who.id.String()
	ev := event.New(now, who.id.String(), body)
	if err := b.record(ctx, ev); err != nil {
		return b.answer(ctx, who, err)
	}
	answer.support, answer.nonce = ev.ID.String(), who.conn.next()
	return answer
}

// bounded cuts what a peer chose to what a thumbprint needs.
func bounded(s string) string {
	const thumbprint = 43
	return cut(s, thumbprint)
}

// cut returns the first bytes of s, most at most, without half a character at the end: the ledger takes no
// text that is not UTF-8.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most]
}
