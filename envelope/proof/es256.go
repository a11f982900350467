package proof

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
)

// SignatureSize is the size of an ES256 signature in bytes: r and s, 32 bytes each, big endian (RFC 7518, 3.4).
const SignatureSize = 64

// ErrSignature is the one answer for a signature that does not verify, whatever the cause.
var ErrSignature = errors.New("signature does not verify")

// SignES256 signs SHA-256(message) with a P-256 key and returns r‖s with s in the lower half of its range.
//
// Of the two values of s that verify (s and n-s) only the lower is ever produced or accepted here, so that
// nobody but the signer can make a second valid signature of the same message: a digest over signed bytes
// names exactly one document. Other ES256 verifiers accept the lower half like any other.
//
// The key may live in hardware: only crypto.Signer is used, and its answer is expected in ASN.1 (as crypto.Signer says).
func SignES256(key crypto.Signer, message []byte) ([]byte, error) {
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("sign ES256: need a P-256 key, got %T", key.Public())
	}
	digest := sha256.Sum256(message)
	der, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign ES256: %w", err)
	}
	return rawLowS(der)
}

// rawLowS turns an ASN.1 signature into r‖s with the lower s.
func rawLowS(der []byte) ([]byte, error) {
	var sig struct{ R, S *big.Int }
	rest, err := asn1.Unmarshal(der, &sig)
	if err != nil {
		return nil, fmt.Errorf("sign ES256: the key's answer is no ASN.1 signature: %w", err)
	}
	n := elliptic.P256().Params().N
	if len(rest) != 0 || sig.R.Sign() <= 0 || sig.S.Sign() <= 0 || sig.R.Cmp(n) >= 0 || sig.S.Cmp(n) >= 0 {
		return nil, errors.New("sign ES256: the key's answer is no P-256 signature")
	}
	if other := new(big.Int).Sub(n, sig.S); other.Cmp(sig.S) < 0 {
		sig.S = other
	}
	raw := make([]byte, SignatureSize)
	sig.R.FillBytes(raw[:32])
	sig.S.FillBytes(raw[32:])
	return raw, nil
}

// halfOrder is (n-1)/2 of P-256, the largest s that is accepted (SEC 2, 2.4.2 gives n).
var halfOrder = [32]byte{
	0x7f, 0xff, 0xff, 0xff, 0x80, 0x00, 0x00, 0x00, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
	0xde, 0x73, 0x7d, 0x56, 0xd3, 0x8b, 0xcf, 0x42, 0x79, 0xdc, 0xe5, 0x61, 0x7e, 0x31, 0x92, 0xa8,
}

// VerifyES256 checks a signature made by [SignES256]. Any other length, an s in the upper half, another curve and
// a wrong signature are all [ErrSignature].
func VerifyES256(pub *ecdsa.PublicKey, message, sig []byte) error {
	if pub == nil || pub.Curve != elliptic.P256() || len(sig) != SignatureSize ||
		bytes.Compare(sig[32:], halfOrder[:]) > 0 {
		return ErrSignature
	}
	digest := sha256.Sum256(message)
	r, s := new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])
	if !ecdsa.Verify(pub, digest[:], r, s) {
		return ErrSignature
	}
	return nil
}
