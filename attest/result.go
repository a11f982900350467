package attest

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

// A TrustValue is one claim of a trustworthiness vector, as in AR4SI: -1..1 says nothing about the attester,
// 2..31 affirms, 32..95 warns, 96..127 contraindicates (and the same below zero, mirrored).
type TrustValue int8

// The values that this package gives.
const (
	ValueMalfunction  TrustValue = -1 // the verifier could not judge: its reference values are out of date
	ValueNone         TrustValue = 0  // no claim
	ValueApproved     TrustValue = 2  // recognised and approved, the best there is
	ValueApprovedWeak TrustValue = 3  // approved, on weaker grounds
	ValueUnsafe       TrustValue = 32 // recognised, and less than it should be
	ValueUnrecognised TrustValue = 33 // not recognised
	ValueWithheld     TrustValue = 36 // not shown: no better than the worst that is tolerated
	ValueRefused      TrustValue = 96 // recognised as what must not be
	ValueUntrusted    TrustValue = 97 // nobody trusted vouches for it
)

// A Tier groups trust values.
type Tier string

// The tiers.
const (
	None            Tier = "none"
	Affirming       Tier = "affirming"
	Warning         Tier = "warning"
	Contraindicated Tier = "contraindicated"
)

// Tier gives the tier of a value.
func (v TrustValue) Tier() Tier {
	switch {
	case v >= -1 && v <= 1:
		return None
	case v >= 2 && v <= 31, v <= -2 && v >= -32:
		return Affirming
	case v >= 32 && v <= 95, v <= -33 && v >= -96:
		return Warning
	}
	return Contraindicated
}

// A Vector holds the eight trustworthiness claims of AR4SI.
type Vector struct {
	InstanceIdentity TrustValue `json:"instance-identity"`
	Configuration    TrustValue `json:"configuration"`
	Executables      TrustValue `json:"executables"`
	FileSystem       TrustValue `json:"file-system"`
	Hardware         TrustValue `json:"hardware"`
	RuntimeOpaque    TrustValue `json:"runtime-opaque"`
	StorageOpaque    TrustValue `json:"storage-opaque"`
	SourcedData      TrustValue `json:"sourced-data"`
}

func (v Vector) values() [8]TrustValue {
	return [8]TrustValue{
		v.InstanceIdentity, v.Configuration, v.Executables, v.FileSystem,
		v.Hardware, v.RuntimeOpaque, v.StorageOpaque, v.SourcedData,
	}
}

// ResultVersion is the version of the JSON form of [Result].
const ResultVersion = 1

// A Result is an attestation result: a passport of one instance of one principal on one device. How long it
// may be used is for policy to say, by its IssuedAt.
type Result struct {
	Version         int           `json:"version"`
	Kind            Kind          `json:"kind"`
	DeviceID        DeviceID      `json:"device_id"`
	Principal       string        `json:"principal"`
	Platform        Platform      `json:"platform"`
	Firmware        string        `json:"firmware"`      // TPM firmware, 16 hexadecimal digits; "" = unknown
	BootFirmware    string        `json:"boot_firmware"` // as the platform measured it; "" = unknown
	Features        Features      `json:"features"`
	Measurements    []Measurement `json:"measurements"`
	Profile         string        `json:"profile"` // the reference profile that matched; "" = none
	Vector          Vector        `json:"trust_vector"`
	Status          Tier          `json:"status"`
	TrustScore      int           `json:"trust_score"` // 0 to 100, derived from the vector
	Reasons         []Reason      `json:"reasons"`
	Keys            Keys          `json:"keys"`
	Counters        Counters      `json:"counters"`
	EvidenceDigest  string        `json:"evidence_digest"`  // hex SHA-256
	ReferenceDigest string        `json:"reference_digest"` // hex SHA-256
	IssuedAt        time.Time     `json:"issued_at"`
	// Measured and Machine are of confidential kinds only; Measured is sorted by name.
	Measured []Named  `json:"measured,omitempty"`
	Machine  *Machine `json:"machine,omitempty"`
}

// A Measurement is a quoted PCR.
type Measurement struct {
	PCR    int    `json:"pcr"`
	SHA256 string `json:"sha256"`
}

// A Reason says why a claim of the vector has its value.
type Reason struct {
	Claim string     `json:"claim"` // name as in the vector
	Value TrustValue `json:"value"`
	Text  string     `json:"text"`
}

// Keys are those that the evidence was bound to, by the hex SHA-256 of their public form; "" = none.
type Keys struct {
	Instance            string `json:"instance"`
	InstanceInHardware  bool   `json:"instance_in_hardware"`
	Recipient           string `json:"recipient"`
	RecipientInHardware bool   `json:"recipient_in_hardware"`
	// Enclosed says that the instance key was named by a confidential machine itself. It lives in the memory of
	// that machine as far as the measured image keeps it there, and in no chip.
	Enclosed bool `json:"enclosed,omitempty"`
}

// For says whether r is the passport of this instance of this principal.
func (r Result) For(principal string, instanceKey []byte) bool {
	return r.Principal != "" && r.Principal == principal &&
		r.Keys.Instance != "" && r.Keys.Instance == Thumbprint(instanceKey)
}

// HardwareBound says whether the keys of the instance are bound to the hardware of an affirmed device: what a
// high level of assurance rests on. In a TPM both keys are certified to live in it. A confidential machine names the
// instance key in what its hardware signs; the recipient keys that this key signs for live beside it.
func (r Result) HardwareBound() bool {
	if r.Kind.Confidential() {
		return r.Status == Affirming && r.Keys.Enclosed
	}
	return r.Kind == KindTPM2 && r.Status == Affirming && r.Keys.InstanceInHardware && r.Keys.RecipientInHardware
}

// Age is the time since the result was issued, never negative.
func (r Result) Age(now time.Time) time.Duration { return max(0, now.Sub(r.IssuedAt)) }

// Validate joins all faults of a result.
func (r Result) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if r.Version != ResultVersion {
		fault("version %d, want %d", r.Version, ResultVersion)
	}
	if !r.Kind.Valid() || r.DeviceID.Kind() != r.Kind {
		fault("device %q is not of kind %q", r.DeviceID, clip(string(r.Kind)))
	}
	if score, status := judge(r.Vector); score != r.TrustScore || status != r.Status {
		fault("status %s and score %d do not follow from the vector, which gives %s and %d", clip(string(r.Status)), r.TrustScore, status, score)
	}
	if err := checkMeasured(r.Kind, r.Measured, r.Machine); err != nil {
		fault("%w", err)
	}
	if r.Principal == "" || r.Keys.Instance == "" {
		fault("not bound to a principal and an instance key")
	}
	for _, d := range []string{r.EvidenceDigest, r.ReferenceDigest} {
		if !isDigest(d) {
			fault("%q is not a SHA-256 in lower-case hexadecimal", clip(d))
		}
	}
	for i, m := range r.Measurements {
		if m.PCR < 0 || m.PCR >= numPCRs || !isDigest(m.SHA256) || (i > 0 && r.Measurements[i-1].PCR >= m.PCR) {
			fault("measurement %d is out of order or malformed", i)
		}
	}
	if r.IssuedAt.IsZero() || r.IssuedAt.Location() != time.UTC {
		fault("issued_at is not a time in UTC")
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("%w: attestation result: %w", ErrMalformed, err)
	}
	return nil
}

// Encode gives the canonical JSON of a valid result.
func (r Result) Encode() ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	if r.Measurements == nil {
		r.Measurements = []Measurement{}
	}
	if r.Reasons == nil {
		r.Reasons = []Reason{}
	}
	return encode(r)
}

// DecodeResult reads what [Result.Encode] wrote, and nothing else.
func DecodeResult(b []byte) (Result, error) {
	r, err := decode[Result](b, "attestation result")
	if err != nil {
		return Result{}, err
	}
	again, err := r.Encode()
	if err != nil {
		return Result{}, err
	}
	if !bytes.Equal(again, b) {
		return Result{}, fmt.Errorf("%w: attestation result is not in canonical form", ErrMalformed)
	}
	return r, nil
}
