// Package tdx verifies quotes (version 4, ECDSA on P-256) of trust domains under Intel TDX.
//
// Checked are, in this order: sizes and form; REPORTDATA (attest.Binding.ReportData, so challenge, channel,
// principal and instance key at once); that the domain can't be debugged by its host, and its module and quoting
// enclave are Intel's and not for debugging; the enrolled image (MRTD, and the platform where it is pinned); the
// certificates of the platform up to a root of the reference values; the signature over the report of the quoting
// enclave, that this report vouches for the attestation key, and the signature over the quote. Versions, migration and
// measurements (MRTD, RTMR 0 to 3, …) are for attest.Appraise to judge.
//
// It opens no connection. It reads neither Intel's TCB info and QE identity nor its revocation lists: what Intel
// says of a version (up to date, out of date, revoked) is unknown here. What is good enough is what the reference
// values name as minimum_tcb for the FMSPC, and where they name nothing, it stays unknown.
package tdx

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/google/go-tdx-guest/abi"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/chain"
)

const (
	// qeSigner is MRSIGNER of Intel's quoting enclaves, qeProduct the ISVPRODID of the one for trust domains.
	// Without this check any enclave of a genuine platform could certify a key of its own.
	qeSigner  = "dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5"
	qeProduct = 2

	enclaveDebug = 1 << 1 // in ATTRIBUTES of an enclave

	// Bits of TDATTRIBUTES. All of the first byte make a domain untrusted, debugging among them.
	attributeHardened   = 1 << 28 // SEPT_VE_DISABLE
	attributeMigratable = 1 << 29
)

// A Verifier verifies quotes. It is safe for concurrent use.
type Verifier struct {
	Now func() time.Time // nil: time.Now
}

// Kind implements attest.Verifier.
func (Verifier) Kind() attest.Kind { return attest.KindTDX }

// Locate implements attest.Locator: the image on its platform first, then the image anywhere.
func (Verifier) Locate(evidence []byte) ([]attest.DeviceID, error) {
	q, err := Parse(evidence)
	if err != nil {
		return nil, unauthentic("%w", err)
	}
	return attest.LocateImages(attest.KindTDX, q.Values())
}

// Verify implements attest.Verifier. All its errors, but for the end of ctx, wrap attest.ErrUnauthentic.
func (v Verifier) Verify(ctx context.Context, evidence []byte, b attest.Binding, dev attest.Device) (attest.Claims, error) {
	if err := ctx.Err(); err != nil {
		return attest.Claims{}, fmt.Errorf("verify a TDX quote: %w", err)
	}
	if err := b.For(attest.KindTDX, dev); err != nil {
		return attest.Claims{}, unauthentic("%w", err)
	}
	q, err := Parse(evidence)
	if err != nil {
		return attest.Claims{}, unauthentic("%w", err)
	}
	if err := q.check(b.ReportData(), dev); err != nil {
		return attest.Claims{}, unauthentic("%w", err)
	}
	now := time.Now()
	if v.Now != nil {
		now = v.Now()
	}
	if err := q.verify(dev, now); err != nil {
		return attest.Claims{}, unauthentic("%w", err)
	}
	return attest.Claims{
		Kind: attest.KindTDX, Device: dev, Binding: b, Measured: q.Values(), EvidenceDigest: sha256.Sum256(evidence),
		Machine: q.machine(),
	}, nil
}

// check holds what the quote says against what it has to be for.
func (q Quote) check(data [attest.ReportSize]byte, dev attest.Device) error {
	body, qe := q.fields.GetTdQuoteBody(), q.certification().GetQeReport()
	signer, err := hex.DecodeString(qeSigner)
	switch {
	case err != nil:
		return err
	case subtle.ConstantTimeCompare(body.GetReportData(), data[:]) != 1:
		return errors.New("REPORTDATA is not that of this challenge, channel, principal and key")
	case body.GetTdAttributes()[0] != 0:
		return errors.New("the domain was started for debugging: its host sees what it does")
	case !zero(body.GetMrSignerSeam()) || !zero(body.GetSeamAttributes()):
		return errors.New("the TDX module is not Intel's, or is one for debugging")
	case !bytes.Equal(qe.GetMrSigner(), signer) || qe.GetIsvProdId() != qeProduct:
		return errors.New("the quoting enclave is not Intel's")
	case qe.GetAttributes()[0]&enclaveDebug != 0:
		return errors.New("the quoting enclave was started for debugging")
	case !dev.Image.Shown(q.Values()):
		return errors.New("the quote is of another image or another platform than the enrolled one")
	}
	return nil
}

// verify follows the certificates to a root, and from the leaf by way of the quoting enclave to the quote.
func (q Quote) verify(dev attest.Device, now time.Time) error {
	leaf := q.certs[0]
	pck, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || pck.Curve != elliptic.P256() {
		return errors.New("the certification key is not on P-256")
	}
	if err := chain.Verify(leaf, q.certs[1:], dev.Roots, now); err != nil {
		return err
	}
	certification, signed := q.certification(), q.fields.GetSignedData()
	report, err := abi.EnclaveReportToAbiBytes(certification.GetQeReport())
	if err != nil {
		return err
	}
	if !verifies(pck, report, certification.GetQeReportSignature()) {
		return errors.New("the signature over the quoting enclave's report does not verify")
	}
	attestationKey := signed.GetEcdsaAttestationKey()
	vouched := sha256.Sum256(append(bytes.Clone(attestationKey), certification.GetQeAuthData().GetData()...))
	said := certification.GetQeReport().GetReportData()
	if subtle.ConstantTimeCompare(said[:sha256.Size], vouched[:]) != 1 || !zero(said[sha256.Size:]) {
		return errors.New("the quoting enclave vouches for another attestation key")
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, attestationKey...))
	if err != nil {
		return fmt.Errorf("attestation key: %w", err)
	}
	if !verifies(key, q.raw[:headerSize+bodySize], signed.GetSignature()) {
		return errors.New("the signature over the quote does not verify")
	}
	return nil
}

// verifies checks a signature in the form r, s of 32 bytes each.
func verifies(key *ecdsa.PublicKey, message, signature []byte) bool {
	digest := sha256.Sum256(message)
	half := len(signature) / 2
	return ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(signature[:half]), new(big.Int).SetBytes(signature[half:]))
}

// machine says what a verified quote says besides the measurements.
func (q Quote) machine() *attest.Machine {
	attributes := binary.LittleEndian.Uint64(q.fields.GetTdQuoteBody().GetTdAttributes())
	return &attest.Machine{
		Product: q.platform.FMSPC, Platform: q.platform.PPID, Endorser: "PCK", Debug: attest.TriOf(attributes&0xff != 0),
		Migratable: attest.TriOf(attributes&attributeMigratable != 0), Hardened: attest.TriOf(attributes&attributeHardened != 0),
		Encrypted: attest.True, TCB: q.tcb(),
	}
}

func zero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

func unauthentic(format string, args ...any) error {
	return fmt.Errorf("%w: %w", attest.ErrUnauthentic, fmt.Errorf(format, args...))
}
