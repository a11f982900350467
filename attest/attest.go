// Package attest holds what the broker knows about devices: the words of RFC 9334 as types, and the appraisal
// that turns verified claims into an attestation result.
//
// It does: name devices ([DeviceID], [Device]), say what a piece of evidence must be bound to ([Binding]),
// carry what a verifier found ([Claims]), read reference values ([References]), and derive from both a result
// in the shape of an EAT Attestation Result ([Result], draft-ietf-rats-ear, with the trustworthiness claims of
// draft-ietf-rats-ar4si): pure functions of their arguments, without clock, network or files.
//
// It does not verify signatures: each kind of evidence has its own package (attest/tpm, attest/dev) that
// implements [Verifier]. It keeps no nonces: they live with the connection, in the broker. It stores nothing.
//
// Two outcomes are kept apart everywhere. Evidence whose cryptography, structure or binding does not hold is
// an error that wraps [ErrUnauthentic]: it proves nothing about any device, so nobody may suffer from it.
// Authentic evidence that shows a device in a state it should not be in is a [Result] with the tier
// [Contraindicated]: that ends what relied on the device.
package attest

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrUnauthentic is wrapped by every error of a [Verifier] that is the fault of the evidence: forged, for
	// another nonce, channel, principal, key or device, malformed, or over a limit. The caller denies.
	ErrUnauthentic = errors.New("attestation evidence is not authentic")
	// ErrMalformed is wrapped when outside bytes (a record, a result, reference values) do not decode strictly.
	ErrMalformed = errors.New("malformed attestation data")
	// ErrBusy is returned by [Gate.Do] when too many verifications are waiting already.
	ErrBusy = errors.New("too many attestations at once")
)

// Kind names a kind of evidence.
type Kind string

// The kinds of evidence that there are.
const (
	KindTPM2        Kind = "tpm2"        // a TPM 2.0, enrolled by its endorsement key
	KindDevelopment Kind = "development" // a software device vouched for by the development authority
)

// Valid says whether k is one of the kinds above.
func (k Kind) Valid() bool { return k == KindTPM2 || k == KindDevelopment }

// A Verifier checks evidence of one kind. Verify is safe for concurrent use, opens no connection and reads no
// file. Its error wraps [ErrUnauthentic], unless ctx ended. The nonce in b must have been consumed before.
type Verifier interface {
	Kind() Kind
	Verify(ctx context.Context, evidence []byte, b Binding, dev Device) (Claims, error)
}

// A DeviceID names a device for good: it is derived from the key that can't be changed (the endorsement key of
// a TPM, the device key of a development device). The zero value is invalid.
type DeviceID struct{ s string }

const (
	tpmPrefix = "tpm-"
	devPrefix = "dev-"
	idDigits  = 52 // SHA-256 in base32 without padding
)

// idEncoding is base32 in lower case, without padding.
func idEncoding() *base32.Encoding {
	return base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
}

// NewDeviceID derives the ID of a device of kind k from the SHA-256 of the PKIX SubjectPublicKeyInfo of its
// identity key. (Not of the TPM public area: its attributes are the caller's to choose, the key is not.)
func NewDeviceID(k Kind, keyHash [sha256.Size]byte) (DeviceID, error) {
	digits := idEncoding().EncodeToString(keyHash[:])
	switch k {
	case KindTPM2:
		return DeviceID{tpmPrefix + digits}, nil
	case KindDevelopment:
		return DeviceID{devPrefix + digits}, nil
	}
	return DeviceID{}, fmt.Errorf("%w: device of unknown kind %q", ErrMalformed, string(k))
}

// ParseDeviceID accepts exactly what [DeviceID.String] prints.
func ParseDeviceID(s string) (DeviceID, error) {
	digits, ok := strings.CutPrefix(s, tpmPrefix)
	if !ok {
		digits, ok = strings.CutPrefix(s, devPrefix)
	}
	if ok && len(digits) == idDigits {
		raw, err := idEncoding().DecodeString(digits)
		if err == nil && len(raw) == sha256.Size && idEncoding().EncodeToString(raw) == digits {
			return DeviceID{s}, nil
		}
	}
	return DeviceID{}, fmt.Errorf("%w: %q is not a device id (tpm- or dev- and %d characters a-z2-7)", ErrMalformed, clip(s), idDigits)
}

// String gives the ID as text, "" for the zero value.
func (id DeviceID) String() string { return id.s }

// IsZero says whether id is the invalid zero value.
func (id DeviceID) IsZero() bool { return id.s == "" }

// Kind gives the kind of device that id names.
func (id DeviceID) Kind() Kind {
	switch {
	case strings.HasPrefix(id.s, tpmPrefix):
		return KindTPM2
	case strings.HasPrefix(id.s, devPrefix):
		return KindDevelopment
	}
	return ""
}

// MarshalText implements encoding.TextMarshaler; the zero value is an error.
func (id DeviceID) MarshalText() ([]byte, error) {
	if id.IsZero() {
		return nil, fmt.Errorf("%w: empty device id", ErrMalformed)
	}
	return []byte(id.s), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *DeviceID) UnmarshalText(b []byte) error {
	v, err := ParseDeviceID(string(b))
	if err != nil {
		return err
	}
	*id = v
	return nil
}

// clip shortens outside text for an error message.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
