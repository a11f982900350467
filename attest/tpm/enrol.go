package tpm

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tpm/evidence"
)

// PendingLife is how long a device has to answer the challenge of its enrolment.
const PendingLife = 2 * time.Minute

const secretSize = 32

// A Pending is an enrolment that waits for the TPM's answer. It belongs to one caller, and is spent by the
// first answer, right or wrong.
type Pending struct {
	caller  string
	expires time.Time
	secret  [sha256.Size]byte // hash of what the TPM must recover
	device  attest.Device
	spent   atomic.Bool
}

// BeginEnrolment checks the endorsement key (by its certificate, sent along with the intermediates it needs, or
// by the allow-list), checks that the attestation key is one, and makes the challenge that only a TPM which
// holds both can answer. caller is whoever asks, by a name that can't be chosen freely (SPIFFE ID and instance).
// Its errors wrap attest.ErrUnauthentic when the request is at fault.
func BeginEnrolment(req evidence.Request, refs attest.References, caller string, now time.Time, rand io.Reader) (evidence.Challenge, *Pending, error) {
	if !refs.ValidAt(now) {
		from, until := refs.Window()
		return evidence.Challenge{}, nil, fmt.Errorf("enrol a device: reference values are only valid from %s to %s",
			from.Format(time.RFC3339), until.Format(time.RFC3339))
	}
	ek, err := checkEK(req.EKPublic)
	if err != nil {
		return evidence.Challenge{}, nil, unauthentic("endorsement key: %w", err)
	}
	device, err := vouchedDevice(req, ek, refs, now)
	if err != nil {
		return evidence.Challenge{}, nil, err
	}
	akPublic, err := parsePublic(req.AKPublic)
	if err != nil {
		return evidence.Challenge{}, nil, unauthentic("attestation key: %w", err)
	}
	ak, err := checkAK(akPublic)
	if err != nil {
		return evidence.Challenge{}, nil, unauthentic("%w", err)
	}
	device.AKPublic, device.AKName = bytes.Clone(req.AKPublic), ak.name

	secret := make([]byte, secretSize)
	if _, err := io.ReadFull(rand, secret); err != nil {
		return evidence.Challenge{}, nil, fmt.Errorf("enrol a device: random bytes: %w", err)
	}
	ch, err := makeCredential(ek, ak.name, secret, rand)
	if err != nil {
		return evidence.Challenge{}, nil, unauthentic("endorsement key: %w", err)
	}
	return ch, &Pending{caller: caller, expires: now.Add(PendingLife), secret: sha256.Sum256(secret), device: device}, nil
}

// Finish ends an enrolment: the caller of BeginEnrolment shows the secret that its TPM recovered. The record it
// returns allows no principals yet: that is for the broker to fill in.
func (p *Pending) Finish(caller string, secret []byte, now time.Time) (attest.Device, error) {
	if p.spent.Swap(true) {
		return attest.Device{}, unauthentic("this enrolment was answered already; begin again")
	}
	if now.After(p.expires) {
		return attest.Device{}, unauthentic("the challenge expired at %s; begin again", p.expires.Format(time.RFC3339))
	}
	if caller != p.caller {
		return attest.Device{}, unauthentic("the enrolment was begun by another caller")
	}
	got := sha256.Sum256(secret)
	if subtle.ConstantTimeCompare(got[:], p.secret[:]) != 1 {
		return attest.Device{}, unauthentic("wrong answer: the attestation key does not live in the TPM of the endorsement key")
	}
	d := p.device
	d.EnrolledAt = now.UTC().Truncate(time.Millisecond)
	return d, d.Validate()
}

// checkEK demands a storage key that was made in its TPM and can't leave it.
func checkEK(public []byte) (*tpm2.TPMTPublic, error) {
	p, err := parsePublic(public)
	if err != nil {
		return nil, err
	}
	a := p.ObjectAttributes
	if !a.Restricted || !a.Decrypt || a.SignEncrypt || !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin {
		return nil, errors.New("attributes are not those of an endorsement key (restricted, decrypt, fixedTPM, fixedParent, sensitiveDataOrigin)")
	}
	if err := strongName(p); err != nil {
		return nil, err
	}
	_, err = cryptoKey(p)
	return p, err
}

// vouchedDevice starts the record of a device whose endorsement key is vouched for. A certificate that was sent
// must hold even where the allow-list would do: a bad one is never ignored.
func vouchedDevice(req evidence.Request, ek *tpm2.TPMTPublic, refs attest.References, now time.Time) (attest.Device, error) {
	key, err := cryptoKey(ek)
	if err != nil {
		return attest.Device{}, unauthentic("endorsement key: %w", err)
	}
	der, err := spki(ek)
	if err != nil {
		return attest.Device{}, unauthentic("endorsement key: %w", err)
	}
	sum := sha256.Sum256(der)
	id, err := attest.NewDeviceID(attest.KindTPM2, sum)
	if err != nil {
		return attest.Device{}, err
	}
	d := attest.Device{
		ID: id, Kind: attest.KindTPM2, IdentityHash: hex.EncodeToString(sum[:]),
		Platform: attest.Platform{Type: string(attest.KindTPM2)},
	}
	if len(req.Certificates) > 0 {
		v, err := checkEKChain(req.Certificates, key, refs.EKRoots(), now)
		if err != nil {
			return attest.Device{}, unauthentic("%w", err)
		}
		d.Anchor, d.Platform = v.anchor, v.platform
		return d, nil
	}
	if !refs.AllowsEK(d.IdentityHash) {
		return attest.Device{}, unauthentic("the TPM has no endorsement certificate, and its endorsement key %s is not on the allow-list (tpm2.ek_hashes of the reference values)", d.IdentityHash)
	}
	return d, nil
}

// makeCredential is TPM2_MakeCredential, done here: only a TPM that holds ek and an object of this name can
// recover secret. The library's panics on keys from outside become errors.
func makeCredential(ek *tpm2.TPMTPublic, name, secret []byte, rand io.Reader) (ch evidence.Challenge, err error) {
	defer func() {
		if p := recover(); p != nil {
			ch, err = evidence.Challenge{}, fmt.Errorf("can't make a credential for it: %v", p)
		}
	}()
	to, err := tpm2.ImportEncapsulationKey(ek)
	if err != nil {
		return evidence.Challenge{}, err
	}
	ch.IDObject, ch.EncryptedSecret, err = tpm2.CreateCredential(rand, to, name, secret)
	return ch, err
}
