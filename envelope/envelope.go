// Package envelope is what broker and client both speak: it seals a secret into a signed envelope, opens it, and
// makes and checks the receipt that proves an opening.
//
// # The wire
//
// An envelope is a compact JWS (RFC 7515), ES256, with exactly this protected header:
//
//	{"alg":"ES256","kid":"…","typ":"bulla-envelope+jws"}
//
// Its payload is a JWE in flattened JSON serialization (RFC 7516, 7.2.2), HPKE key encryption
// (draft-ietf-jose-hpke-encrypt, draft-ietf-jose-hpke-pq-pqt), with exactly these members in this order:
//
//		{"protected":"…","header":{"ek":"…"},"encrypted_key":"…","aad":"…","iv":"…","ciphertext":"…","tag":"…"}
//
//	  - protected is {"alg":"HPKE-9-KE","enc":"A256GCM"}, or HPKE-8-KE, or HPKE-7-KE: see [Suite].
//	  - aad is the [Context], and travels as the bytes that were sealed: nothing is ever re-canonicalised.
//	  - The HPKE info is the draft's Recipient_structure,
//	    "JOSE-HPKE rcpt" 0xFF "A256GCM" 0xFF recipient_extra_info, with SHA-256(context) as recipient_extra_info.
//	    So the context is bound twice: to the key (info) and to the content (aad).
//	  - The plaintext is the 14 bytes "bulla-data/v1\n", then r (32 bytes), then the secret; at grade gated the
//	    gated body of [Gate], at grade proxied the public description of a key (package secret/keys).
//
// r is random, is made for this one envelope and is not kept by the broker. The context carries SHA-256(r), the
// receipt lock: whoever shows r has opened the envelope. A [Receipt] is r with the envelope's digest, signed by
// the instance key.
//
// There is one encoding of each envelope. Whatever differs from it by a byte (white space, member order, unused
// base64 bits, a doubled or unknown header member, the other half of an ECDSA signature) is refused, so the digest
// that stands in the log names one document.
//
// # What it does not do
//
// It makes no decisions, keeps no keys and reads no clock. It does not know whether a session is still alive. It
// can't stop a client from keeping what it opened. It does not hide the context: that is signed, not encrypted.
package envelope

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
)

// Labels and limits of the format.
const (
	// Type is the "typ" of the JWS.
	Type = "bulla-envelope+jws"
	// LabelContext is the version that stands first in each context.
	LabelContext = "bulla-envelope/v1"
	// LabelReceipt is the first part of what a receipt signs.
	LabelReceipt = "bulla-receipt/v1"

	labelData = "bulla-data/v1\n"

	// MaxSecret is the largest secret in bytes.
	MaxSecret = 64 << 10
	// MaxContext is the largest encoded context in bytes.
	MaxContext = 8 << 10
	// MaxEnvelope is the largest envelope in bytes; anything larger is refused before it is looked at.
	MaxEnvelope = 224 << 10
)

// What can come out of opening or verifying an envelope or a receipt. Test with errors.Is.
var (
	// ErrMalformed: not an envelope in its one encoding.
	ErrMalformed = errors.New("envelope is malformed")
	// ErrUnknownKey: signed under a key id that the caller's key set does not hold. Fetch the key set again.
	ErrUnknownKey = errors.New("envelope is signed by an unknown key")
	// ErrCrypto is the one answer of every cryptographic check: signature, decapsulation, decryption, receipt.
	ErrCrypto = errors.New("envelope does not verify")
	// ErrMismatch: genuine, but for another request, instance, channel or party.
	ErrMismatch = errors.New("envelope is not for this request")
	// ErrSuite: sealed with a suite below the demanded one, or not the recipient key's.
	ErrSuite = errors.New("envelope has the wrong suite")
	// ErrExpired: genuine, but its time is over.
	ErrExpired = errors.New("envelope has expired")
	// ErrNotYetValid: genuine, but its time has not come; usually a wrong clock.
	ErrNotYetValid = errors.New("envelope is not yet valid")
	// ErrInvalid: the caller's own input (context, key, secret, expectation) breaks a rule. Nothing was sealed or opened.
	ErrInvalid = errors.New("invalid input")
)

// Digest is 32 bytes: a SHA-256, or a TLS exporter value. All zero means absent; its text form is then empty, else
// 43 characters of base64url.
type Digest [32]byte

// IsZero reports whether the digest is absent.
func (d Digest) IsZero() bool { return d == Digest{} }

// String returns the text form.
func (d Digest) String() string {
	if d.IsZero() {
		return ""
	}
	return b64.EncodeToString(d[:])
}

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. It takes the text form alone.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*d = Digest{}
		return nil
	}
	raw, ok := decode64(text)
	if !ok || len(raw) != len(d) || Digest(raw).IsZero() {
		return fmt.Errorf("digest %q: need 43 characters of base64url", clip(text))
	}
	*d = Digest(raw)
	return nil
}

// DigestOf returns the SHA-256 of b.
func DigestOf(b []byte) Digest { return sha256.Sum256(b) }

// b64 is base64url without padding, refusing unused bits. It still skips line breaks: decode through decode64.
var b64 = base64.RawURLEncoding.Strict()

// decode64 decodes base64url of which exactly one spelling exists.
func decode64(text []byte) ([]byte, bool) {
	for _, c := range text {
		if c == '\n' || c == '\r' {
			return nil, false
		}
	}
	raw, err := b64.AppendDecode(make([]byte, 0, b64.DecodedLen(len(text))), text)
	return raw, err == nil
}

// clip keeps foreign text in errors short.
func clip(b []byte) []byte { return b[:min(len(b), 48)] }
