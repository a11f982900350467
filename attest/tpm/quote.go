package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/bulla-project/bulla/attest/tpm/evidence"
)

// firmwarePCRs are those that the firmware measures into (0 to 7): a quote must cover them, a log explain them.
const firmwarePCRs = 8

// checkQuote checks the quote and that the PCR values are exactly those it covers.
func checkQuote(ak *signer, ev evidence.Evidence, extra []byte) (*tpm2.TPMSAttest, error) {
	a, err := ak.attested(ev.Quote, ev.Signature, tpm2.TPMSTAttestQuote, extra)
	if err != nil {
		return nil, unauthentic("quote: %w", err)
	}
	q, err := a.Attested.Quote()
	if err != nil {
		return nil, unauthentic("quote: %w", err)
	}
	if n := len(q.PCRSelect.PCRSelections); n != 1 {
		return nil, unauthentic("quote over %d PCR banks, want one", n)
	}
	bank := q.PCRSelect.PCRSelections[0]
	if bank.Hash != tpm2.TPMAlgSHA256 {
		return nil, unauthentic("quote over PCR bank %#x, want SHA-256", uint16(bank.Hash))
	}
	h := ak.hash.New()
	selected := 0
	for p := range len(bank.PCRSelect) * 8 {
		if bank.PCRSelect[p/8]&(1<<(p%8)) == 0 {
			continue
		}
		value, ok := ev.PCRs[p]
		if !ok {
			return nil, unauthentic("quote covers PCR %d, whose value is missing", p)
		}
		h.Write(value[:])
		selected++
	}
	if selected != len(ev.PCRs) {
		return nil, unauthentic("%d PCR values, but the quote covers %d", len(ev.PCRs), selected)
	}
	for p := range firmwarePCRs {
		if _, ok := ev.PCRs[p]; !ok {
			return nil, unauthentic("quote leaves out PCR %d", p)
		}
	}
	if !bytes.Equal(h.Sum(nil), q.PCRDigest.Buffer) {
		return nil, unauthentic("PCR values are not those that were quoted")
	}
	return a, nil
}

// checkInstance checks that the instance key is a signing key in the same TPM as ak.
func checkInstance(ak *signer, c evidence.Certified, public, extra []byte) error {
	p, key, err := certified(ak, c, extra)
	if err != nil {
		return err
	}
	if a := p.ObjectAttributes; !a.SignEncrypt || a.Decrypt || a.Restricted {
		return errors.New("not an unrestricted signing key")
	}
	der, err := spki(p)
	if err != nil || key.Curve != elliptic.P256() || !bytes.Equal(der, public) {
		return errors.New("the certified key is not the instance key of the binding")
	}
	return nil
}

// checkRecipient checks that the classical half of the recipient key is a key for ECDH in the same TPM as ak. A
// P-256 HPKE public key is the uncompressed point; in the hybrid of ML-KEM-768 and P-256 the point comes last.
func checkRecipient(ak *signer, c evidence.Certified, public, extra []byte) error {
	p, key, err := certified(ak, c, extra)
	if err != nil {
		return err
	}
	if a := p.ObjectAttributes; !a.Decrypt || a.SignEncrypt || a.Restricted {
		return errors.New("not an unrestricted decryption key")
	}
	point, err := key.ECDH()
	if err != nil || key.Curve != elliptic.P256() {
		return errors.New("the certified key is not on P-256")
	}
	const (
		pointSize = 65
		mlkem768  = 1184
	)
	switch len(public) {
	case pointSize, mlkem768 + pointSize:
	default:
		return fmt.Errorf("recipient key of %d bytes, want %d (P-256) or %d (ML-KEM-768 and P-256)", len(public), pointSize, mlkem768+pointSize)
	}
	if !bytes.Equal(point.Bytes(), public[len(public)-pointSize:]) {
		return errors.New("the certified key is not the recipient key of the binding")
	}
	return nil
}

// certified checks TPM2_Certify by ak over the elliptic curve key in c, which must have been made in that TPM
// and be unable to leave it.
func certified(ak *signer, c evidence.Certified, extra []byte) (*tpm2.TPMTPublic, *ecdsa.PublicKey, error) {
	a, err := ak.attested(c.Attest, c.Signature, tpm2.TPMSTAttestCertify, extra)
	if err != nil {
		return nil, nil, err
	}
	info, err := a.Attested.Certify()
	if err != nil {
		return nil, nil, err
	}
	p, err := parsePublic(c.Public)
	if err != nil {
		return nil, nil, err
	}
	if err := strongName(p); err != nil {
		return nil, nil, err
	}
	name, err := tpm2.ObjectName(p)
	if err != nil {
		return nil, nil, err
	}
	if !bytes.Equal(name.Buffer, info.Name.Buffer) {
		return nil, nil, errors.New("another key was certified")
	}
	if at := p.ObjectAttributes; !at.FixedTPM || !at.FixedParent || !at.SensitiveDataOrigin {
		return nil, nil, errors.New("the key was not made in the TPM or may leave it (fixedTPM, fixedParent, sensitiveDataOrigin)")
	}
	key, err := cryptoKey(p)
	if err != nil {
		return nil, nil, err
	}
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, nil, errors.New("not an elliptic curve key")
	}
	return p, ec, nil
}

// pcrZero is a PCR that nothing was measured into.
func pcrZero(v [sha256.Size]byte) bool { return v == [sha256.Size]byte{} }
