package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tpm/evidence"
)

// A vouching is what an endorsement certificate establishes.
type vouching struct {
	anchor   string // hex SHA-256 of the root
	platform attest.Platform
}

// checkEKChain checks that certs[0], with the others as intermediates, is an endorsement certificate for key
// below one of roots. Nothing is fetched: what the device did not send is not there.
func checkEKChain(certs [][]byte, key crypto.PublicKey, roots []*x509.Certificate, now time.Time) (vouching, error) {
	if len(certs) > evidence.MaxCertificates {
		return vouching{}, fmt.Errorf("%d certificates, want at most %d", len(certs), evidence.MaxCertificates)
	}
	intermediates, rootPool := x509.NewCertPool(), x509.NewCertPool()
	var leaf *x509.Certificate
	for i, der := range certs {
		cert, err := parseCertificate(der)
		if err != nil {
			return vouching{}, fmt.Errorf("certificate %d: %w", i, err)
		}
		if i == 0 {
			leaf = cert
			continue
		}
		intermediates.AddCert(cert)
	}
	for _, r := range roots {
		rootPool.AddCert(r)
	}
	platform, err := checkEKLeaf(leaf, key)
	if err != nil {
		return vouching{}, err
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: rootPool, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return vouching{}, fmt.Errorf("no chain from the endorsement certificate to a trusted root: %w", err)
	}
	chain := chains[0]
	if len(chain) < 2 {
		return vouching{}, errors.New("the endorsement certificate is a trusted root itself")
	}
	sum := sha256.Sum256(chain[len(chain)-1].Raw)
	return vouching{hex.EncodeToString(sum[:]), platform}, nil
}

// parseCertificate reads DER that may be padded, as in the non-volatile memory of a TPM, or wrapped as in a
// TPM 1.2 (TCG_PCCLIENT_STORED_CERT). Its key is bounded before anything is verified with it.
func parseCertificate(b []byte) (*x509.Certificate, error) {
	if len(b) == 0 || len(b) > evidence.MaxCertificate {
		return nil, fmt.Errorf("%d bytes, want 1 to %d", len(b), evidence.MaxCertificate)
	}
	const wrapper = 5
	if len(b) > wrapper && b[0] == 0x10 && b[1] == 0x01 && b[2] == 0x00 {
		n := int(b[3])<<8 | int(b[4])
		if n > len(b)-wrapper {
			return nil, errors.New("wrapped certificate is cut short")
		}
		b = b[wrapper : wrapper+n]
	}
	var raw asn1.RawValue
	rest, err := asn1.Unmarshal(b, &raw)
	if err != nil {
		return nil, fmt.Errorf("not DER: %w", err)
	}
	if slices.ContainsFunc(rest, func(c byte) bool { return c != 0x00 && c != 0xff }) {
		return nil, errors.New("followed by something that is no padding")
	}
	cert, err := x509.ParseCertificate(raw.FullBytes)
	if err != nil {
		return nil, err
	}
	if key, ok := cert.PublicKey.(*rsa.PublicKey); ok {
		if err := checkRSA(key); err != nil {
			return nil, err
		}
	}
	return cert, nil
}

// checkEKLeaf checks that cert is an endorsement certificate, and for key. It takes the subject alternative
// name off the list of unhandled critical extensions, after it read it: the standard library leaves a
// directoryName alone.
func checkEKLeaf(cert *x509.Certificate, key crypto.PublicKey) (attest.Platform, error) {
	san, ekUsage := asn1.ObjectIdentifier{2, 5, 29, 17}, asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	if cert.IsCA {
		return attest.Platform{}, errors.New("the endorsement certificate is one of an authority")
	}
	if len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) > 0 &&
		!slices.ContainsFunc(cert.UnknownExtKeyUsage, ekUsage.Equal) {
		return attest.Platform{}, errors.New("the certificate is not one for endorsement keys (extended key usage)")
	}
	if cert.KeyUsage != 0 && cert.KeyUsage&(x509.KeyUsageKeyEncipherment|x509.KeyUsageKeyAgreement) == 0 {
		return attest.Platform{}, errors.New("the certificate is not one for a decryption key (key usage)")
	}
	if !sameKey(cert.PublicKey, key) {
		return attest.Platform{}, errors.New("the endorsement certificate is for another key")
	}
	platform := attest.Platform{Type: string(attest.KindTPM2)}
	for _, e := range cert.Extensions {
		if !e.Id.Equal(san) {
			continue
		}
		if err := readSAN(e.Value, &platform); err != nil {
			return attest.Platform{}, fmt.Errorf("subject alternative name of the endorsement certificate: %w", err)
		}
		cert.UnhandledCriticalExtensions = slices.DeleteFunc(cert.UnhandledCriticalExtensions, san.Equal)
	}
	return platform, nil
}

func sameKey(a, b crypto.PublicKey) bool {
	switch a := a.(type) {
	case *rsa.PublicKey:
		return a.Equal(b)
	case *ecdsa.PublicKey:
		return a.Equal(b)
	}
	return false
}

// readSAN reads maker, model and version of a TPM from the directoryName of a subject alternative name. They
// stand in one relative distinguished name or in several.
func readSAN(der []byte, p *attest.Platform) error {
	return each(der, func(name asn1.RawValue) error {
		const directoryName = 4
		if name.Class != asn1.ClassContextSpecific || name.Tag != directoryName {
			return nil
		}
		return each(name.Bytes, func(rdn asn1.RawValue) error {
			return each(rdn.FullBytes, func(attribute asn1.RawValue) error {
				return readAttribute(attribute.FullBytes, p)
			})
		})
	})
}

func readAttribute(der []byte, p *attest.Platform) error {
	var a struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	if rest, err := asn1.Unmarshal(der, &a); err != nil || len(rest) != 0 {
		return errors.New("malformed attribute")
	}
	field, ok := map[string]*string{
		"2.23.133.2.1": &p.Manufacturer,
		"2.23.133.2.2": &p.Model,
		"2.23.133.2.3": &p.Version,
	}[a.Type.String()]
	if !ok {
		return nil
	}
	const maxText = 64
	if len(a.Value.Bytes) > maxText || slices.ContainsFunc(a.Value.Bytes, func(c byte) bool { return c < 0x20 || c > 0x7e }) {
		return fmt.Errorf("attribute %s is not plain text of up to %d characters", a.Type, maxText)
	}
	*field = string(a.Value.Bytes)
	return nil
}

// each calls f for the elements of one constructed DER value.
func each(der []byte, f func(asn1.RawValue) error) error {
	var outer asn1.RawValue
	rest, err := asn1.Unmarshal(der, &outer)
	if err != nil || len(rest) != 0 || !outer.IsCompound {
		return errors.New("malformed DER")
	}
	for rest = outer.Bytes; len(rest) > 0; {
		var inner asn1.RawValue
		if rest, err = asn1.Unmarshal(rest, &inner); err != nil {
			return errors.New("malformed DER")
		}
		if err := f(inner); err != nil {
			return err
		}
	}
	return nil
}
