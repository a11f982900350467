// Package nitro verifies attestation documents of AWS Nitro enclaves.
//
// A document is a COSE_Sign1 (ES384) of the hypervisor over the PCRs of the enclave and three fields that the
// enclave chose. Checked are, in this order: size and strict CBOR; nonce, user_data (attest.Binding.ReportData) and
// public_key (the instance key), so that it is for this challenge, channel, principal and key; its time; that the
// enclave was not started for debugging; the enrolled image; the certificates up to a root of the reference
// values; the signature. The device is the image (PCR 0, 1 and 2), since a module id lives no longer than its
// enclave. PCR 3 (role), 4 (instance) and 8 (signer) can be demanded by the profiles of the reference values.
//
// It opens no connection and reads no revocation lists: certificates of enclaves live for hours. It can't
// know the versions of hypervisor and firmware, which a document does not show.
package nitro

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509"
	"fmt"
	"math/big"
	"time"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/chain"
)

// How far the time of a document may be from the verifier's.
const (
	maxAge   = 5 * time.Minute
	maxAhead = time.Minute
)

// A Verifier verifies documents. It is safe for concurrent use.
type Verifier struct {
	Now func() time.Time // nil: time.Now
}

// Kind implements attest.Verifier.
func (Verifier) Kind() attest.Kind { return attest.KindNitro }

// Locate implements attest.Locator.
func (Verifier) Locate(evidence []byte) ([]attest.DeviceID, error) {
	d, err := Parse(evidence)
	if err != nil {
		return nil, unauthentic("%w", err)
	}
	return attest.LocateImages(attest.KindNitro, d.Values())
}

// Verify implements attest.Verifier. All its errors, but for the end of ctx, wrap attest.ErrUnauthentic.
func (v Verifier) Verify(ctx context.Context, evidence []byte, b attest.Binding, dev attest.Device) (attest.Claims, error) {
	if err := ctx.Err(); err != nil {
		return attest.Claims{}, fmt.Errorf("verify a Nitro document: %w", err)
	}
	if err := b.For(attest.KindNitro, dev); err != nil {
		return attest.Claims{}, unauthentic("%w", err)
	}
	d, err := Parse(evidence)
	if err != nil {
		return attest.Claims{}, unauthentic("%w", err)
	}
	now := time.Now()
	if v.Now != nil {
		now = v.Now()
	}
	if err := d.check(b, dev, now); err != nil {
		return attest.Claims{}, unauthentic("%w", err)
	}
	if err := d.verify(dev.Roots, now); err != nil {
		return attest.Claims{}, unauthentic("%w", err)
	}
	return attest.Claims{
		Kind: attest.KindNitro, Device: dev, Binding: b, Measured: d.Values(), EvidenceDigest: sha256.Sum256(evidence),
		Machine: &attest.Machine{Platform: d.Module, Endorser: "nitro", Debug: attest.False, TCB: []attest.SVN{}},
	}, nil
}

// check holds what the document says against what it has to be for.
func (d Document) check(b attest.Binding, dev attest.Device, now time.Time) error {
	data := b.ReportData()
	for _, field := range []struct {
		name      string
		got, want []byte
	}{{"nonce", d.Nonce, b.Nonce[:]}, {"user_data", d.UserData, data[:]}, {"public_key", d.PublicKey, b.InstanceKey}} {
		if subtle.ConstantTimeCompare(field.got, field.want) != 1 {
			return fmt.Errorf("%s is not that of this challenge, channel, principal and key", field.name)
		}
	}
	at := time.UnixMilli(int64(min(d.Timestamp, 1<<52)))
	if at.Before(now.Add(-maxAge)) || at.After(now.Add(maxAhead)) {
		return fmt.Errorf("made at %s, which is too far from now, %s", at.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if d.debug() {
		return fmt.Errorf("PCR 0, 1 and 2 are zero: the enclave was started for debugging, and its host sees what it does")
	}
	if !dev.Image.Shown(d.Values()) {
		return fmt.Errorf("the document is of another image than the enrolled one")
	}
	return nil
}

// debug says whether one of the first three PCRs is all zeros or missing, as they are in debug mode.
func (d Document) debug() bool {
	for n := range uint64(3) {
		if subtle.ConstantTimeCompare(d.PCRs[n], make([]byte, pcrSize)) == 1 || len(d.PCRs[n]) == 0 {
			return true
		}
	}
	return false
}

// verify follows the certificates to one of roots, and checks the signature.
func (d Document) verify(roots []*x509.Certificate, now time.Time) error {
	certs, err := chain.Parse(append([][]byte{d.Leaf}, d.Bundle...))
	if err != nil {
		return err
	}
	leaf := certs[0]
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P384() {
		return fmt.Errorf("the signing key is not on P-384")
	}
	if leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return fmt.Errorf("the signing certificate is not one for signatures")
	}
	if err := chain.Verify(leaf, certs[1:], roots, now); err != nil {
		return err
	}
	message, err := d.signed()
	if err != nil {
		return err
	}
	digest := sha512.Sum384(message)
	r, s := new(big.Int).SetBytes(d.signature[:sigSize/2]), new(big.Int).SetBytes(d.signature[sigSize/2:])
	if !ecdsa.Verify(key, digest[:], r, s) {
		return fmt.Errorf("the signature does not verify")
	}
	return nil
}

func unauthentic(format string, args ...any) error {
	return fmt.Errorf("%w: %w", attest.ErrUnauthentic, fmt.Errorf(format, args...))
}
