package proof

import (
	"crypto"
	"crypto/ecdsa"
	"errors"
	"fmt"
)

// LabelRequest is the first part of what a request proof signs.
const LabelRequest = "bulla-request/v1"

// Sizes that keep a request statement small, in bytes.
const (
	MaxMethod    = 128
	MaxRequestID = 128
)

// Request is what an instance key signs for one call: which method, over which connection, answering which nonce,
// under which request id, with which body. Nonce and Exporter are opaque here; that the nonce was given out on this
// connection and is now spent, and that Exporter is this connection's value, is for the caller to see to.
type Request struct {
	Method        string   // full gRPC method, "/package.Service/Method"
	Nonce         [32]byte // the connection's current nonce
	Exporter      [32]byte // "EXPORTER-Channel-Binding" of the TLS connection (RFC 9266)
	RequestID     string   // chosen by the client, may be empty where a method has none
	PayloadSHA256 [32]byte // over the request as it was sent, without the proof
}

func (r *Request) statement() ([]byte, error) {
	if r.Method == "" || len(r.Method) > MaxMethod || len(r.RequestID) > MaxRequestID {
		return nil, fmt.Errorf("method must have 1 to %d bytes and the request id at most %d", MaxMethod, MaxRequestID)
	}
	if r.Nonce == ([32]byte{}) || r.Exporter == ([32]byte{}) {
		return nil, errors.New("nonce and exporter value must be set")
	}
	return Statement(LabelRequest, []byte(r.Method), r.Nonce[:], r.Exporter[:], []byte(r.RequestID), r.PayloadSHA256[:]), nil
}

// SignRequest signs r with the instance key. The signature is r‖s with low s, see [SignES256].
func SignRequest(key crypto.Signer, r Request) ([]byte, error) {
	msg, err := r.statement()
	if err != nil {
		return nil, fmt.Errorf("sign request: %w", err)
	}
	return SignES256(key, msg)
}

// VerifyRequest checks the signature of a request against an instance key that a verified [Binding] named.
// Each failure is [ErrSignature].
func VerifyRequest(pub *ecdsa.PublicKey, r Request, sig []byte) error {
	msg, err := r.statement()
	if err != nil {
		return ErrSignature
	}
	return VerifyES256(pub, msg, sig)
}
