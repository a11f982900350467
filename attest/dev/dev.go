// Package dev is the development kind of attestation: a software device, vouched for by the development
// authority, so that every machine can go through the whole story without a TPM.
//
// A device is a P-256 key in a file. The authority signs a voucher for its public half; evidence is the voucher
// with the device's signature over attest.Binding.Digest. That proves which file signed, and nothing about the
// machine: attest.Appraise never lets the tier of such a device rise above warning, and keys are never said to
// be in hardware. [New] refuses to make a verifier unless it is told that this is a development server.
package dev

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/bulla-project/bulla/attest"
)

const (
	evidenceLabel  = "bulla-development-evidence/v1"
	statementLabel = "bulla-development-statement/v1"
	voucherLabel   = "bulla-development-voucher/v1"

	maxSignature = 128 // an ECDSA signature on P-256 in DER has at most 72 bytes
)

// Label is how evidence of this kind begins (see attest.Label).
const Label = evidenceLabel

// ErrNotDevelopment is returned by [New] unless it is told that this is a development server.
var ErrNotDevelopment = errors.New("development attestation is refused: the server was not started as dev or demo")

// Config configures a [Verifier].
type Config struct {
	Authority       *ecdsa.PublicKey // the development authority's device key, on P-256
	DevelopmentOnly bool             // must be true: says that this server is for development
}

// A Verifier verifies evidence of development devices. It is safe for concurrent use.
type Verifier struct{ authority *ecdsa.PublicKey }

// New makes a verifier.
func New(c Config) (*Verifier, error) {
	if !c.DevelopmentOnly {
		return nil, ErrNotDevelopment
	}
	if c.Authority == nil || c.Authority.Curve != elliptic.P256() {
		return nil, errors.New("development attestation: the authority's key is not on P-256")
	}
	return &Verifier{c.Authority}, nil
}

// Kind implements attest.Verifier.
func (*Verifier) Kind() attest.Kind { return attest.KindDevelopment }

// Vouch signs the voucher for a device key in PKIX form. authority holds a P-256 key.
func Vouch(authority crypto.Signer, devicePublic []byte) ([]byte, error) {
	if _, err := attest.ParseP256(devicePublic); err != nil {
		return nil, fmt.Errorf("vouch for a development device: %w", err)
	}
	digest := sha256.Sum256(attest.Pack(voucherLabel, devicePublic))
	voucher, err := authority.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("vouch for a development device: %w", err)
	}
	return voucher, nil
}

// Enrol makes the record of a device whose voucher holds. It allows no principals yet.
func (v *Verifier) Enrol(devicePublic, voucher []byte, now time.Time) (attest.Device, error) {
	if _, err := v.vouched(devicePublic, voucher); err != nil {
		return attest.Device{}, err
	}
	sum := sha256.Sum256(devicePublic)
	id, err := attest.NewDeviceID(attest.KindDevelopment, sum)
	if err != nil {
		return attest.Device{}, err
	}
	d := attest.Device{
		ID: id, Kind: attest.KindDevelopment, IdentityHash: hex.EncodeToString(sum[:]),
		AKPublic: append([]byte(nil), devicePublic...), Platform: attest.Platform{Type: "software"},
		EnrolledAt: now.UTC().Truncate(time.Millisecond),
	}
	return d, d.Validate()
}

func (v *Verifier) vouched(devicePublic, voucher []byte) (*ecdsa.PublicKey, error) {
	key, err := attest.ParseP256(devicePublic)
	if err != nil {
		return nil, unauthentic("device key: %w", err)
	}
	digest := sha256.Sum256(attest.Pack(voucherLabel, devicePublic))
	if len(voucher) > maxSignature || !ecdsa.VerifyASN1(v.authority, digest[:], voucher) {
		return nil, unauthentic("the development authority does not vouch for the device key")
	}
	return key, nil
}

// Verify implements attest.Verifier. All its errors, but for the end of ctx, wrap attest.ErrUnauthentic.
func (v *Verifier) Verify(ctx context.Context, evidence []byte, b attest.Binding, dev attest.Device) (attest.Claims, error) {
	if err := ctx.Err(); err != nil {
		return attest.Claims{}, fmt.Errorf("verify development evidence: %w", err)
	}
	if err := b.For(attest.KindDevelopment, dev); err != nil {
		return attest.Claims{}, unauthentic("%w", err)
	}
	f, err := attest.Unpack(evidenceLabel, evidence, maxSignature, maxSignature)
	if err != nil {
		return attest.Claims{}, unauthentic("%w", err)
	}
	key, err := v.vouched(dev.AKPublic, f[0])
	if err != nil {
		return attest.Claims{}, err
	}
	digest := statement(b)
	if !ecdsa.VerifyASN1(key, digest[:], f[1]) {
		return attest.Claims{}, unauthentic("not signed by this device for this challenge, channel, principal and key")
	}
	return attest.Claims{
		Kind: attest.KindDevelopment, Device: dev, Binding: b, EvidenceDigest: sha256.Sum256(evidence),
	}, nil
}

// statement is what a device signs.
func statement(b attest.Binding) [sha256.Size]byte {
	digest := b.Digest()
	return sha256.Sum256(attest.Pack(statementLabel, digest[:]))
}

func unauthentic(format string, args ...any) error {
	return fmt.Errorf("%w: %w", attest.ErrUnauthentic, fmt.Errorf(format, args...))
}

// A Device is the client side: a device key and the voucher for it.
type Device struct {
	key     *ecdsa.PrivateKey
	public  []byte
	voucher []byte
}

// Public is the device key in PKIX form: what the authority vouches for.
func (d *Device) Public() []byte { return append([]byte(nil), d.public...) }

// ID is the device's id.
func (d *Device) ID() (attest.DeviceID, error) {
	return attest.NewDeviceID(attest.KindDevelopment, sha256.Sum256(d.public))
}

// Attest makes evidence for b.
func (d *Device) Attest(_ context.Context, b attest.Binding) ([]byte, error) {
	if len(d.voucher) == 0 {
		return nil, errors.New("attest with the development device: the development authority has not vouched for it")
	}
	digest := statement(b)
	signature, err := ecdsa.SignASN1(rand.Reader, d.key, digest[:])
	if err != nil {
		return nil, fmt.Errorf("attest with the development device: %w", err)
	}
	return attest.Pack(evidenceLabel, d.voucher, signature), nil
}

// newDevice derives the public form.
func newDevice(key *ecdsa.PrivateKey, voucher []byte) (*Device, error) {
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	return &Device{key, public, voucher}, nil
}
