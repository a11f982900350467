package keys

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/secret"
)

// LabelPublic is the version that stands first in each description of a key.
const LabelPublic = "bulla-proxied/v1"

// MaxPublic is the longest description of a key, in bytes.
const MaxPublic = 512

// Public is what everybody may know of a key: it is all that the envelope of a proxied session holds.
type Public struct {
	Type    secret.Type
	Version secret.Version
	Key     crypto.PublicKey // *ecdsa.PublicKey or ed25519.PublicKey; nil for a symmetric key
}

// jwk is a public key of RFC 7517, with its members in the order of RFC 7638.
type jwk struct {
	Curve string `json:"crv"`
	Type  string `json:"kty"`
	X     string `json:"x"`
	Y     string `json:"y,omitempty"`
}

type description struct {
	Label   string      `json:"v"`
	Type    secret.Type `json:"type"`
	Version uint32      `json:"version"`
	Key     *jwk        `json:"public_key,omitempty"`
}

var b64 = base64.RawURLEncoding.Strict()

func newJWK(key crypto.PublicKey) (*jwk, error) {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		point, err := key.Bytes() // 4 ‖ x ‖ y
		if err != nil || key.Curve != elliptic.P256() {
			return nil, fmt.Errorf("%w: not a point of P-256", ErrInvalid)
		}
		return &jwk{Curve: "P-256", Type: "EC", X: b64.EncodeToString(point[1:33]), Y: b64.EncodeToString(point[33:])}, nil
	case ed25519.PublicKey:
		return &jwk{Curve: "Ed25519", Type: "OKP", X: b64.EncodeToString(key)}, nil
	}
	return nil, fmt.Errorf("%w: no public key of a known type", ErrInvalid)
}

func (j *jwk) key(t secret.Type) (crypto.PublicKey, error) {
	x, errX := b64.DecodeString(j.X)
	y, errY := b64.DecodeString(j.Y)
	if errX != nil || errY != nil || len(x) != 32 {
		return nil, fmt.Errorf("%w: a coordinate has another size", ErrInvalid)
	}
	switch {
	case t == secret.TypeECDSAP256 && len(y) == 32:
		return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
	case t == secret.TypeEd25519 && len(y) == 0:
		return ed25519.PublicKey(x), nil
	}
	return nil, fmt.Errorf("%w: a key of another type", ErrInvalid)
}

// JWK returns the public key as a JWK (RFC 7517) without white space; nil for a symmetric key.
func (p Public) JWK() ([]byte, error) {
	if p.Key == nil {
		return nil, nil
	}
	j, err := newJWK(p.Key)
	if err != nil {
		return nil, err
	}
	return json.Marshal(j)
}

// Encode returns the one encoding of the description: JSON with its members in this order and no white space.
//
//	{"v":"bulla-proxied/v1","type":"ed25519","version":1,"public_key":{"crv":"Ed25519","kty":"OKP","x":"…"}}
func (p Public) Encode() ([]byte, error) {
	d := description{Label: LabelPublic, Type: p.Type, Version: uint32(p.Version)}
	if p.Key != nil {
		var err error
		if d.Key, err = newJWK(p.Key); err != nil {
			return nil, err
		}
	}
	return json.Marshal(d)
}

// ParsePublic reads a description and refuses every encoding but the one of [Public.Encode].
func ParsePublic(data []byte) (Public, error) {
	bad := fmt.Errorf("%w: not the description of a key", ErrInvalid)
	if len(data) > MaxPublic {
		return Public{}, bad
	}
	var d description
	if err := json.Unmarshal(data, &d); err != nil || d.Label != LabelPublic || d.Version == 0 {
		return Public{}, bad
	}
	p := Public{Type: d.Type, Version: secret.Version(d.Version)}
	asymmetric := d.Type == secret.TypeECDSAP256 || d.Type == secret.TypeEd25519
	if len(Operations(d.Type)) == 0 || asymmetric != (d.Key != nil) {
		return Public{}, bad
	}
	if d.Key != nil {
		var err error
		if p.Key, err = d.Key.key(d.Type); err != nil {
			return Public{}, bad
		}
	}
	if again, err := p.Encode(); err != nil || !bytes.Equal(again, data) {
		return Public{}, bad
	}
	return p, nil
}

// Verify checks a signature with the public key alone. Its only error is [ErrNotAuthentic].
func (p Public) Verify(message, signature []byte) error {
	ok := false
	switch key := p.Key.(type) {
	case *ecdsa.PublicKey:
		ok = proof.VerifyES256(key, message, signature) == nil
	case ed25519.PublicKey:
		ok = len(signature) == ed25519.SignatureSize && ed25519.Verify(key, message, signature)
	}
	if !ok {
		return ErrNotAuthentic
	}
	return nil
}
