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
	KindNitro       Kind = "nitro"       // an AWS Nitro enclave, by its image
	KindSEVSNP      Kind = "sev-snp"     // a virtual machine under AMD SEV-SNP, by its image
	KindTDX         Kind = "tdx"         // a trust domain under Intel TDX, by its image
)

// Valid says whether k is one of the kinds above.
func (k Kind) Valid() bool { return k.prefix() != "" }

// prefix starts the ids of devices of a kind; "" for what is no kind.
func (k Kind) prefix() string {
	switch k {
	case KindTPM2:
		return "tpm-"
	case KindDevelopment:
		return "dev-"
	case KindNitro:
		return "nitro-"
	case KindSEVSNP:
		return "snp-"
	case KindTDX:
		return "tdx-"
	}
	return ""
}

// Kinds are all kinds, in the order above.
func Kinds() []Kind { return []Kind{KindTPM2, KindDevelopment, KindNitro, KindSEVSNP, KindTDX} }

// A Verifier checks evidence of one kind. Verify is safe for concurrent use, opens no connection and reads no
// file. Its error wraps [ErrUnauthentic], unless ctx ended. The nonce in b must have been consumed before.
type Verifier interface {
	Kind() Kind
	Verify(ctx context.Context, evidence []byte, b Binding, dev Device) (Claims, error)
}

// A Locator is a [Verifier] whose evidence says by itself which devices it could be of, in the order in which
// they are to be looked for: clients of such a kind need not know the id. Nothing is verified by that.
type Locator interface {
	Locate(evidence []byte) ([]DeviceID, error)
}

// A DeviceID names a device for good: it is derived from what can't be changed (the endorsement key of a TPM,
// the device key of a development device, the image of a confidential machine). The zero value is invalid.
type DeviceID struct{ s string }

const idDigits = 52 // SHA-256 in base32 without padding

// idEncoding is base32 in lower case, without padding.
func idEncoding() *base32.Encoding {
	return base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
}

// NewDeviceID derives the ID of a device of kind k from the SHA-256 of the PKIX SubjectPublicKeyInfo of its
// identity key (not of the TPM public area: its attributes are the caller's to choose, the key is not), or from
// [Image.Digest].
func NewDeviceID(k Kind, keyHash [sha256.Size]byte) (DeviceID, error) {
	if !k.Valid() {
		return DeviceID{}, fmt.Errorf("%w: device of unknown kind %q", ErrMalformed, string(k))
	}
	return DeviceID{k.prefix() + idEncoding().EncodeToString(keyHash[:])}, nil
}

// ParseDeviceID accepts exactly what [DeviceID.String] prints.
func ParseDeviceID(s string) (DeviceID, error) {
	digits := strings.TrimPrefix(s, DeviceID{s}.Kind().prefix())
	if len(digits) == idDigits && len(digits) < len(s) {
		raw, err := idEncoding().DecodeString(digits)
		if err == nil && len(raw) == sha256.Size && idEncoding().EncodeToString(raw) == digits {
			return DeviceID{s}, nil
		}
	}
	return DeviceID{}, fmt.Errorf("%w: %q is not a device id (tpm-, dev-, nitro-, snp- or tdx- and %d characters a-z2-7)", ErrMalformed, clip(s), idDigits)
}

// String gives the ID as text, "" for the zero value.
func (id DeviceID) String() string { return id.s }

// IsZero says whether id is the invalid zero value.
func (id DeviceID) IsZero() bool { return id.s == "" }

// Kind gives the kind of device that id names.
func (id DeviceID) Kind() Kind {
	for _, k := range Kinds() {
		if strings.HasPrefix(id.s, k.prefix()) {
			return k
		}
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
