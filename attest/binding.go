package attest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// bindingLabel starts the digest that evidence is made over.
const bindingLabel = "bulla-attestation-binding/v1"

// reportLabel starts the digest that fills the 64 bytes of a report.
const reportLabel = "bulla-attestation-report-data/v1"

// Limits of the fields of a [Binding], in bytes.
const (
	MaxPrincipal    = 2048 // the longest SPIFFE ID
	MaxInstanceKey  = 256
	MaxRecipientKey = 4096
)

// A Binding is what a piece of evidence must have been made for: this challenge, on this channel, by this
// principal, for this instance and, where it is certified, this recipient key. Anything else is another's.
type Binding struct {
	Nonce        [32]byte // the challenge, used once
	Channel      [32]byte // TLS exporter value of the connection (RFC 9266)
	Principal    string   // SPIFFE ID of the caller
	InstanceKey  []byte   // PKIX SubjectPublicKeyInfo of the instance's P-256 key
	RecipientKey []byte   // HPKE public key that envelopes are to be sealed to; may be empty
}

// Digest is SHA-256 over the label and each field with its length as 4 bytes before it. A TPM puts it into the
// qualifyingData of what it signs.
func (b Binding) Digest() [sha256.Size]byte {
	h := sha256.New()
	var n [4]byte
	for _, field := range [][]byte{[]byte(bindingLabel), b.Nonce[:], b.Channel[:], []byte(b.Principal), b.InstanceKey, b.RecipientKey} {
		binary.BigEndian.PutUint32(n[:], uint32(len(field)))
		h.Write(n[:])
		h.Write(field)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// ReportSize is the size of [Binding.ReportData] in bytes.
const ReportSize = sha512.Size

// ReportData is SHA-512 over the label and [Binding.Digest]: what goes into the REPORT_DATA of SEV-SNP and TDX and
// into the user_data of a Nitro document.
func (b Binding) ReportData() [ReportSize]byte {
	digest := b.Digest()
	return sha512.Sum512(Pack(reportLabel, digest[:]))
}

// Validate says what a verifier demands of a binding before it looks at evidence: a principal, an instance key
// on P-256 in its one DER form, and sizes within limits.
func (b Binding) Validate() error {
	if b.Principal == "" || len(b.Principal) > MaxPrincipal {
		return fmt.Errorf("binding: principal of %d bytes, want 1 to %d", len(b.Principal), MaxPrincipal)
	}
	if len(b.RecipientKey) > MaxRecipientKey {
		return fmt.Errorf("binding: recipient key of %d bytes, want at most %d", len(b.RecipientKey), MaxRecipientKey)
	}
	if _, err := ParseP256(b.InstanceKey); err != nil {
		return fmt.Errorf("binding: instance key: %w", err)
	}
	return nil
}

// For says what speaks against taking evidence of a kind, made for b, as that of dev: the binding is not whole, the device is
// of another kind, or it is not enrolled for the principal. Every Verifier asks it first.
func (b Binding) For(kind Kind, dev Device) error {
	if err := b.Validate(); err != nil {
		return err
	}
	switch {
	case dev.Kind != kind:
		return fmt.Errorf("device %s is of kind %q, and this is evidence of kind %q", dev.ID, dev.Kind, kind)
	case !dev.Allows(b.Principal):
		return fmt.Errorf("device %s is not enrolled for this principal", dev.ID)
	}
	return nil
}

// ParseP256 reads a P-256 public key in PKIX form and refuses any encoding but the one that DER allows.
func ParseP256(spki []byte) (*ecdsa.PublicKey, error) {
	if len(spki) == 0 || len(spki) > MaxInstanceKey {
		return nil, fmt.Errorf("public key of %d bytes, want 1 to %d", len(spki), MaxInstanceKey)
	}
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, fmt.Errorf("not a public key in PKIX form: %w", err)
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("public key is not on P-256")
	}
	again, err := x509.MarshalPKIXPublicKey(key)
	if err != nil || string(again) != string(spki) {
		return nil, errors.New("public key is not in canonical DER")
	}
	return key, nil
}

// Thumbprint is the SHA-256 of a public key's bytes in hexadecimal: the short name of a key in results.
func Thumbprint(public []byte) string {
	if len(public) == 0 {
		return ""
	}
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:])
}
