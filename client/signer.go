package client

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"

	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/secret/keys"
)

// Signer is a proxied signature key as Go's standard library takes one: crypto/x509 and crypto/tls sign with it, and
// the private key stays at the broker. It is a crypto.MessageSigner: the broker hashes what it signs, so a message is
// needed and a digest will not do.
type Signer struct {
	ctx    context.Context
	secret *Secret
}

var _ crypto.MessageSigner = (*Signer)(nil)

// Signer returns a signer whose calls run under ctx, since the interface has no place for one.
func (s *Secret) Signer(ctx context.Context) (*Signer, error) {
	if s.public.Key == nil {
		return nil, fmt.Errorf("%w: %s is no signature key of grade proxied", ErrInvalid, s.Name)
	}
	return &Signer{ctx: ctx, secret: s}, nil
}

// Public implements crypto.Signer.
func (s *Signer) Public() crypto.PublicKey { return s.secret.PublicKey() }

// SignMessage implements crypto.MessageSigner, with SHA-256 for an ECDSA key and no hash for Ed25519. As the standard
// library wants it, an ECDSA signature is ASN.1 here.
func (s *Signer) SignMessage(_ io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	hash := crypto.Hash(0)
	if opts != nil {
		hash = opts.HashFunc()
	}
	ec := s.secret.KeyType() == secret.TypeECDSAP256
	if ec && hash != crypto.SHA256 || !ec && hash != 0 {
		return nil, fmt.Errorf("%w: a key of type %s does not sign with %s", ErrInvalid, s.secret.KeyType(), hash)
	}
	signature, err := s.secret.Sign(s.ctx, message)
	if err != nil || !ec {
		return signature, err
	}
	return keys.EncodeDER(signature)
}

// Sign implements crypto.Signer for Ed25519, where the digest is the message. An ECDSA key signs no digest: use
// crypto.SignMessage.
func (s *Signer) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if _, ec := s.Public().(*ecdsa.PublicKey); ec {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, errors.New("the broker signs messages and no digests: use crypto.SignMessage"))
	}
	return s.SignMessage(random, digest, opts)
}
