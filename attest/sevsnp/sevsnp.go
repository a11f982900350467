// Package sevsnp verifies attestation reports of virtual machines under AMD SEV-SNP.
//
// Checked are, in this order: sizes and form; REPORT_DATA (attest.Binding.ReportData, so challenge, channel,
// principal and instance key at once); that the guest asked for it itself (VMPL 0 to 3), and can't be debugged by
// its host; the enrolled image (launch digest, and the chip where it is pinned); the certificates of VCEK or VLEK
// up to a root of the reference values; that the certificate is of this chip and of the versions which the report
// names; the signature. Versions, VMPL, migration and measurements are for attest.Appraise to judge.
//
// It opens no connection: certificates come with the evidence or from the reference values, none is fetched, and
// revocation lists are not read (AMD retires versions, not VCEKs). It takes reports of version 2 to 5 of Milan and
// Genoa: the versions of Turin are laid out in another way. It does not verify ID blocks: their digests
// can be demanded by profiles.
package sevsnp

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/chain"
)

const maxVMPL = 3

// A Verifier verifies reports. It is safe for concurrent use.
type Verifier struct {
	Now func() time.Time // nil: time.Now
}

// Kind implements attest.Verifier.
func (Verifier) Kind() attest.Kind { return attest.KindSEVSNP }

// Locate implements attest.Locator: the image on its chip first, then the image anywhere.
func (Verifier) Locate(evidence []byte) ([]attest.DeviceID, error) {
	r, err := Parse(evidence)
	if err != nil {
		return nil, unauthentic("%w", err)
	}
	return attest.LocateImages(attest.KindSEVSNP, r.Values())
}

// Verify implements attest.Verifier. All its errors, but for the end of ctx, wrap attest.ErrUnauthentic.
func (v Verifier) Verify(ctx context.Context, evidence []byte, b attest.Binding, dev attest.Device) (attest.Claims, error) {
	if err := ctx.Err(); err != nil {
		return attest.Claims{}, fmt.Errorf("verify an SEV-SNP report: %w", err)
	}
	if err := b.For(attest.KindSEVSNP, dev); err != nil {
		return attest.Claims{}, unauthentic("%w", err)
	}
	r, err := Parse(evidence)
	if err != nil {
		return attest.Claims{}, unauthentic("%w", err)
	}
	if err := r.check(b.ReportData(), dev); err != nil {
		return attest.Claims{}, unauthentic("%w", err)
	}
	now := time.Now()
	if v.Now != nil {
		now = v.Now()
	}
	product, err := r.verify(dev, now)
	if err != nil {
		return attest.Claims{}, unauthentic("%w", err)
	}
	return attest.Claims{
		Kind: attest.KindSEVSNP, Device: dev, Binding: b, Measured: r.Values(), EvidenceDigest: sha256.Sum256(evidence),
		Machine: r.machine(product),
	}, nil
}

// check holds what the report says against what it has to be for.
func (r Report) check(data [attest.ReportSize]byte, dev attest.Device) error {
	switch {
	case subtle.ConstantTimeCompare(r.fields.GetReportData(), data[:]) != 1:
		return errors.New("REPORT_DATA is not that of this challenge, channel, principal and key")
	case r.fields.GetVmpl() > maxVMPL:
		return errors.New("the report was not asked for by the guest")
	case r.policy.Debug:
		return errors.New("the policy of the guest allows debugging: its host sees what it does")
	case !dev.Image.Shown(r.Values()):
		return errors.New("the report is of another image or another chip than the enrolled one")
	}
	return nil
}

// verify follows the certificates to a root, holds the signing one against the report, and checks the signature.
func (r Report) verify(dev attest.Device, now time.Time) (product string, err error) {
	leaf, others, err := r.leaf()
	if err != nil {
		return "", err
	}
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P384() {
		return "", errors.New("the signing key is not on P-384")
	}
	between := append(append([]*x509.Certificate{}, others...), dev.Intermediates...)
	if err := chain.Verify(leaf, between, dev.Roots, now); err != nil {
		return "", err
	}
	if product, err = r.certified(leaf); err != nil {
		return "", err
	}
	der, err := abi.ReportToSignatureDER(r.raw)
	if err != nil {
		return "", err
	}
	if err := leaf.CheckSignature(x509.ECDSAWithSHA384, abi.SignedComponent(r.raw), der); err != nil {
		return "", fmt.Errorf("the signature does not verify: %w", err)
	}
	return product, nil
}

// certified says whether the certificate is for the key of this chip at these versions: a key of another chip or of
// other versions signs for them only.
func (r Report) certified(leaf *x509.Certificate) (product string, err error) {
	defer func() {
		if p := recover(); p != nil {
			product, err = "", fmt.Errorf("extensions of the signing certificate: %v", p)
		}
	}()
	ext, err := kds.CertificateExtensions(leaf, r.signer.SigningKey)
	if err != nil {
		return "", fmt.Errorf("extensions of the signing certificate: %w", err)
	}
	if product, err = r.product(ext); err != nil {
		return "", err
	}
	if ext.TCBVersion != kds.TCBVersion(r.fields.GetReportedTcb()) {
		return "", errors.New("the signing certificate is for other TCB versions than the report names")
	}
	if r.signer.SigningKey == abi.VcekReportSigner && !bytes.Equal(ext.HWID, r.fields.GetChipId()) {
		return "", errors.New("the signing certificate is for another chip")
	}
	return product, nil
}

// machine says what a verified report says besides the measurements.
func (r Report) machine(product string) *attest.Machine {
	info, err := abi.ParseSnpPlatformInfo(r.fields.GetPlatformInfo())
	smt := attest.Unknown
	switch {
	case !r.policy.SMT:
		smt = attest.False
	case err == nil:
		smt = attest.TriOf(info.SMTEnabled)
	}
	m := &attest.Machine{
		Product: product, Endorser: r.signer.SigningKey.String(), Debug: attest.TriOf(r.policy.Debug), Migratable: attest.TriOf(r.policy.MigrateMA),
		SMT: smt, Encrypted: attest.True, VMPL: int(r.fields.GetVmpl()), TCB: r.tcb(),
	}
	if r.hasChip() {
		m.Platform = hex.EncodeToString(r.fields.GetChipId())
	}
	return m
}

func unauthentic(format string, args ...any) error {
	return fmt.Errorf("%w: %w", attest.ErrUnauthentic, fmt.Errorf(format, args...))
}
