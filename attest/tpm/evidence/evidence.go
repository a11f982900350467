// Package evidence is what travels between a TPM's client side (attest/tpm/device) and the verifier
// (attest/tpm): the evidence itself, and the three messages of enrolment, each with its strict encoding (see
// attest.Pack) and its limits, and the templates of the keys that both sides must agree on.
//
// It only frames bytes: TPM structures inside are looked at by the verifier, after it checked their signature.
package evidence

import (
	"crypto/sha256"
	"fmt"

	"github.com/bulla-project/bulla/attest"
)

const (
	evidenceLabel  = "bulla-tpm2-evidence/v1"
	requestLabel   = "bulla-tpm2-enrol-request/v1"
	challengeLabel = "bulla-tpm2-enrol-challenge/v1"
)

// Limits, in bytes or items.
const (
	MaxAttest       = 1 << 10   // a TPMS_ATTEST
	MaxSignature    = 1 << 10   // a TPMT_SIGNATURE; RSA 4096 needs 518
	MaxPublic       = 1 << 10   // a TPMT_PUBLIC
	MaxEventLog     = 512 << 10 // real ones have 15 to 200 KiB
	MaxCertificate  = 8 << 10
	MaxCertificates = 8
	MaxSecret       = 32
	NumPCRs         = 24

	pcrBytes = 1 + sha256.Size
)

// Label is how evidence of this kind begins (see attest.Label).
const Label = evidenceLabel

// Evidence is what a device shows of itself, all of it signed by its attestation key but the event log, which
// must explain the PCRs.
type Evidence struct {
	Quote     []byte // TPMS_ATTEST of TPM2_Quote over the SHA-256 bank
	Signature []byte // TPMT_SIGNATURE over it
	PCRs      map[int][sha256.Size]byte
	EventLog  []byte // TCG PC Client log, crypto agile; empty if the device can't read it
	Instance  Certified
	Recipient Certified
}

// Certified is a key that the attestation key certified with TPM2_Certify. The zero value says there is none.
type Certified struct {
	Public    []byte // TPMT_PUBLIC
	Attest    []byte // TPMS_ATTEST
	Signature []byte // TPMT_SIGNATURE
}

// IsZero says whether there is no key.
func (c Certified) IsZero() bool {
	return len(c.Public) == 0 && len(c.Attest) == 0 && len(c.Signature) == 0
}

// Marshal encodes e.
func (e Evidence) Marshal() []byte {
	var pcrs []byte
	for p := range NumPCRs {
		if v, ok := e.PCRs[p]; ok {
			pcrs = append(append(pcrs, byte(p)), v[:]...)
		}
	}
	return attest.Pack(evidenceLabel, e.Quote, e.Signature, pcrs, e.EventLog,
		e.Instance.Public, e.Instance.Attest, e.Instance.Signature,
		e.Recipient.Public, e.Recipient.Attest, e.Recipient.Signature)
}

// Parse decodes evidence. It checks sizes before it looks at anything.
func Parse(b []byte) (Evidence, error) {
	f, err := attest.Unpack(evidenceLabel, b, MaxAttest, MaxSignature, NumPCRs*pcrBytes, MaxEventLog,
		MaxPublic, MaxAttest, MaxSignature, MaxPublic, MaxAttest, MaxSignature)
	if err != nil {
		return Evidence{}, err
	}
	pcrs, err := parsePCRs(f[2])
	if err != nil {
		return Evidence{}, err
	}
	return Evidence{
		Quote: f[0], Signature: f[1], PCRs: pcrs, EventLog: f[3],
		Instance:  Certified{f[4], f[5], f[6]},
		Recipient: Certified{f[7], f[8], f[9]},
	}, nil
}

func parsePCRs(b []byte) (map[int][sha256.Size]byte, error) {
	if len(b)%pcrBytes != 0 {
		return nil, fmt.Errorf("%w: PCR values cut short", attest.ErrMalformed)
	}
	pcrs := make(map[int][sha256.Size]byte, len(b)/pcrBytes)
	for last := -1; len(b) > 0; b = b[pcrBytes:] {
		p := int(b[0])
		if p <= last || p >= NumPCRs {
			return nil, fmt.Errorf("%w: PCR %d after PCR %d", attest.ErrMalformed, p, last)
		}
		pcrs[p], last = [sha256.Size]byte(b[1:pcrBytes]), p
	}
	return pcrs, nil
}

// A Request starts the enrolment of a device.
type Request struct {
	EKPublic     []byte   // TPMT_PUBLIC of the endorsement key
	AKPublic     []byte   // TPMT_PUBLIC of the attestation key
	Certificates [][]byte // DER: of the endorsement key first (as stored in the TPM, padding and all), then intermediates; may be empty
}

// Marshal encodes r.
func (r Request) Marshal() []byte {
	return attest.Pack(requestLabel, r.EKPublic, r.AKPublic, attest.PackList(r.Certificates))
}

// ParseRequest decodes a request.
func ParseRequest(b []byte) (Request, error) {
	f, err := attest.Unpack(requestLabel, b, MaxPublic, MaxPublic, MaxCertificates*(4+MaxCertificate))
	if err != nil {
		return Request{}, err
	}
	certs, err := attest.UnpackList(f[2], MaxCertificates, MaxCertificate)
	if err != nil {
		return Request{}, fmt.Errorf("certificates: %w", err)
	}
	return Request{EKPublic: f[0], AKPublic: f[1], Certificates: certs}, nil
}

// A Challenge asks a TPM to show that it holds both keys of a request: only it can recover the secret
// (TPM2_ActivateCredential).
type Challenge struct {
	IDObject        []byte // contents of the TPM2B_ID_OBJECT
	EncryptedSecret []byte // contents of the TPM2B_ENCRYPTED_SECRET
}

// Marshal encodes c.
func (c Challenge) Marshal() []byte {
	return attest.Pack(challengeLabel, c.IDObject, c.EncryptedSecret)
}

// ParseChallenge decodes a challenge.
func ParseChallenge(b []byte) (Challenge, error) {
	f, err := attest.Unpack(challengeLabel, b, 256, 1<<10)
	if err != nil {
		return Challenge{}, err
	}
	return Challenge{IDObject: f[0], EncryptedSecret: f[1]}, nil
}
