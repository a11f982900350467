package proof

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
)

// spkiSize is the size in bytes of the DER SubjectPublicKeyInfo of an uncompressed P-256 point: there is no other.
const spkiSize = 91

// ErrKey is the answer for a public key that is not a P-256 key in its one encoding.
var ErrKey = errors.New("not a P-256 public key in canonical form")

// GenerateInstanceKey makes an instance key in memory. Where there is a TPM its key is used instead;
// everything here takes a crypto.Signer.
func GenerateInstanceKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate instance key: %w", err)
	}
	return key, nil
}

// InstancePublic returns the public half of a signer, or an error if it is no P-256 key.
func InstancePublic(key crypto.Signer) (*ecdsa.PublicKey, error) {
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("instance key is %T: %w", key.Public(), ErrKey)
	}
	return pub, nil
}

// MarshalInstanceKey returns the DER SubjectPublicKeyInfo, 91 bytes.
func MarshalInstanceKey(pub *ecdsa.PublicKey) ([]byte, error) {
	if pub == nil || pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("marshal instance key: %w", ErrKey)
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("marshal instance key: %w", err)
	}
	return der, nil
}

// ParseInstanceKey reads a DER SubjectPublicKeyInfo. It takes P-256 points on the curve, uncompressed, in the one
// encoding that [MarshalInstanceKey] gives, and nothing else.
func ParseInstanceKey(spki []byte) (*ecdsa.PublicKey, error) {
	if len(spki) != spkiSize {
		return nil, fmt.Errorf("parse instance key of %d bytes: %w", len(spki), ErrKey)
	}
	key, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, fmt.Errorf("parse instance key: %w", ErrKey)
	}
	pub, ok := key.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("parse instance key: %w", ErrKey)
	}
	again, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil || !bytes.Equal(again, spki) {
		return nil, fmt.Errorf("parse instance key: %w", ErrKey)
	}
	return pub, nil
}

// Thumbprint returns the JWK thumbprint of RFC 7638 with SHA-256, 43 characters of base64url. It is the name of an
// instance. It returns "" for a key that is not P-256, and no valid name equals that.
func Thumbprint(pub *ecdsa.PublicKey) string {
	if pub == nil || pub.Curve != elliptic.P256() {
		return ""
	}
	point, err := pub.Bytes() // 0x04 ‖ x ‖ y
	if err != nil || len(point) != 65 {
		return ""
	}
	enc := base64.RawURLEncoding
	jwk := make([]byte, 0, 160)
	jwk = append(jwk, `{"crv":"P-256","kty":"EC","x":"`...)
	jwk = enc.AppendEncode(jwk, point[1:33])
	jwk = append(jwk, `","y":"`...)
	jwk = enc.AppendEncode(jwk, point[33:])
	jwk = append(jwk, `"}`...)
	sum := sha256.Sum256(jwk)
	return enc.EncodeToString(sum[:])
}
