package attest

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// maxRecord limits the JSON of a device record or a result, in bytes.
const maxRecord = 64 << 10

// A Device is the enrolment record of a device: what the broker trusts about it, whatever evidence may say.
type Device struct {
	ID           DeviceID  `json:"id"`
	Kind         Kind      `json:"kind"`
	IdentityHash string    `json:"identity_hash"` // hex SHA-256 of the PKIX form of the endorsement (or development device) key, or Image.Digest
	Anchor       string    `json:"anchor"`        // hex SHA-256 of the root certificate that vouched for that key; "" = allow-listed
	AKPublic     []byte    `json:"ak_public"`     // attestation key: TPMT_PUBLIC for tpm2, PKIX for development; else empty
	AKName       []byte    `json:"ak_name"`       // TPM name of the attestation key; empty for development
	Platform     Platform  `json:"platform"`
	Profile      string    `json:"profile"`    // named profile of the reference values it must match; "" = any
	Principals   []string  `json:"principals"` // who may run on it; empty = policy data decides
	EnrolledAt   time.Time `json:"enrolled_at"`
	Seen         Counters  `json:"seen"`            // highest counters that authentic evidence has shown
	Image        Image     `json:"image,omitempty"` // of confidential kinds; nil of the others

	// Roots are the certificates that may vouch for evidence of a confidential kind, Intermediates what may
	// stand between. They are no part of the record: the broker fills them in from its reference values.
	Roots         []*x509.Certificate `json:"-"`
	Intermediates []*x509.Certificate `json:"-"`
}

// Platform says what a device is, as its endorsement certificate puts it. Text from outside: escape it to show.
type Platform struct {
	Type         string `json:"type"` // "tpm2", "software", or the name of a confidential kind
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`
	Version      string `json:"version"`
}

// Counters are the TPM's own notion of time. They only grow, but for a TPM that was cleared or rolled back.
type Counters struct {
	ResetCount   uint32 `json:"reset_count"`   // TPM resets (boots)
	RestartCount uint32 `json:"restart_count"` // resumes since the last reset
	Clock        uint64 `json:"clock"`         // milliseconds the TPM has been powered
}

// ClockTolerance is how far a TPM's clock may lie behind the last one seen: two processes of a device may be
// verified in another order than they quoted, within the life of a challenge.
const ClockTolerance = 2 * time.Minute

// RolledBack says whether next can't follow c: fewer resets, or a clock that fell without a reset.
func (c Counters) RolledBack(next Counters) bool {
	if next.ResetCount != c.ResetCount {
		return next.ResetCount < c.ResetCount
	}
	tolerance := uint64(ClockTolerance / time.Millisecond)
	return next.Clock < c.Clock && c.Clock-next.Clock > tolerance
}

// Allows says whether the record itself lets principal run on the device. An empty list leaves it to policy.
func (d Device) Allows(principal string) bool {
	return len(d.Principals) == 0 || slices.Contains(d.Principals, principal)
}

// Shared says whether several machines may be this device: then the failure of one says nothing about the others.
func (d Device) Shared() bool { return d.Kind.Confidential() && !d.Image.Pinned(d.Kind) }

// Validate joins all faults of a record.
func (d Device) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if !d.Kind.Valid() {
		fault("unknown kind %q", clip(string(d.Kind)))
	}
	hash, err := hex.DecodeString(d.IdentityHash)
	if err != nil || len(hash) != sha256.Size || hex.EncodeToString(hash) != d.IdentityHash {
		fault("identity_hash is not a SHA-256 in lower-case hexadecimal")
	} else if id, err := NewDeviceID(d.Kind, [sha256.Size]byte(hash)); err == nil && id != d.ID {
		fault("id %s does not belong to the identity_hash, which gives %s", d.ID, id)
	}
	if d.Anchor != "" && !isDigest(d.Anchor) {
		fault("anchor is not a SHA-256 in lower-case hexadecimal")
	}
	switch {
	case !d.Kind.Confidential() && len(d.Image) > 0:
		fault("an image, with kind %s", clip(string(d.Kind)))
	case !d.Kind.Confidential() && len(d.AKPublic) == 0:
		fault("no attestation key")
	case d.Kind.Confidential():
		if err := d.Image.Validate(d.Kind); err != nil {
			fault("%w", err)
		} else if sum := d.Image.Digest(d.Kind); hex.EncodeToString(sum[:]) != d.IdentityHash {
			fault("identity_hash is not that of the image")
		}
	}
	if d.EnrolledAt.IsZero() || d.EnrolledAt.Location() != time.UTC {
		fault("enrolled_at is not a time in UTC")
	}
	if !slices.IsSorted(d.Principals) || len(slices.Compact(slices.Clone(d.Principals))) != len(d.Principals) {
		fault("principals are not sorted or not unique")
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("%w: device record: %w", ErrMalformed, err)
	}
	return nil
}

// Encode gives the canonical JSON of a valid record.
func (d Device) Encode() ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	if d.AKPublic == nil {
		d.AKPublic = []byte{}
	}
	if d.AKName == nil {
		d.AKName = []byte{}
	}
	if d.Principals == nil {
		d.Principals = []string{}
	}
	return encode(d)
}

// DecodeDevice reads what [Device.Encode] wrote, and nothing else.
func DecodeDevice(b []byte) (Device, error) {
	d, err := decode[Device](b, "device record")
	if err != nil {
		return Device{}, err
	}
	again, err := d.Encode()
	if err != nil {
		return Device{}, err
	}
	if !bytes.Equal(again, b) {
		return Device{}, fmt.Errorf("%w: device record is not in canonical form", ErrMalformed)
	}
	return d, nil
}

func isDigest(s string) bool {
	raw, err := hex.DecodeString(s)
	return err == nil && len(raw) == sha256.Size && hex.EncodeToString(raw) == s
}

// encode is JSON without HTML escapes and without a final newline.
func encode(v any) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

// decode is strict: one value, known fields only. Callers compare the bytes with what encoding gives back.
func decode[T any](b []byte, what string) (T, error) {
	var v, none T
	if len(b) > maxRecord {
		return none, fmt.Errorf("%w: %s of %d bytes, want at most %d", ErrMalformed, what, len(b), maxRecord)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		return none, fmt.Errorf("%w: %s: %w", ErrMalformed, what, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return none, fmt.Errorf("%w: %s: more than one JSON value", ErrMalformed, what)
	}
	return v, nil
}
