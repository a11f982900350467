// Package chain reads the certificates that come with attestation evidence and follows them to a root that the
// reference values name.
//
// It does: bound number, size and keys of certificates before anything is verified with them, and verify one
// path at a given time. It does not: fetch anything (missing certificates, revocation lists), use the roots of the
// operating system, or take a certificate from the evidence for a root.
package chain

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// Limits of the certificates in one piece of evidence.
const (
	MaxCertificates = 8
	MaxCertificate  = 4 << 10 // bytes
	maxRSABits      = 4096
	minRSABits      = 2048
)

// Parse reads certificates in DER, the leaf first.
func Parse(ders [][]byte) ([]*x509.Certificate, error) {
	if len(ders) == 0 || len(ders) > MaxCertificates {
		return nil, fmt.Errorf("%d certificates, want 1 to %d", len(ders), MaxCertificates)
	}
	certs := make([]*x509.Certificate, len(ders))
	for i, der := range ders {
		if len(der) == 0 || len(der) > MaxCertificate {
			return nil, fmt.Errorf("certificate %d: %d bytes, want 1 to %d", i, len(der), MaxCertificate)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", i, err)
		}
		if err := checkKey(cert); err != nil {
			return nil, fmt.Errorf("certificate %d: %w", i, err)
		}
		certs[i] = cert
	}
	return certs, nil
}

// checkKey bounds what verifying a signature with the key can cost.
func checkKey(cert *x509.Certificate) error {
	switch key := cert.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return nil
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return fmt.Errorf("RSA key of %d bits, want %d to %d", bits, minRSABits, maxRSABits)
		}
		if key.E != 0x10001 {
			return errors.New("RSA key with an exponent other than 65537")
		}
		return nil
	}
	return fmt.Errorf("key of type %T, want ECDSA or RSA", cert.PublicKey)
}

// ParsePEM is [Parse] for PEM blocks with nothing between them but white space. A zero byte ends the text, as in
// a TDX quote.
func ParsePEM(text []byte) ([]*x509.Certificate, error) {
	if n := len(text); n > 0 && text[n-1] == 0 {
		text = text[:n-1]
	}
	if len(text) > 2*MaxCertificates*MaxCertificate {
		return nil, fmt.Errorf("%d bytes of certificates, want at most %d", len(text), 2*MaxCertificates*MaxCertificate)
	}
	var ders [][]byte
	for len(text) > 0 {
		block, rest := pem.Decode(text)
		if block == nil || block.Type != "CERTIFICATE" || len(block.Headers) > 0 {
			return nil, fmt.Errorf("PEM block %d is not a certificate", len(ders)+1)
		}
		if ders = append(ders, block.Bytes); len(ders) > MaxCertificates {
			return nil, fmt.Errorf("more than %d certificates", MaxCertificates)
		}
		text = rest
	}
	return Parse(ders)
}

// Verify follows leaf to one of roots, by way of between. The leaf must be no authority, and no root.
func Verify(leaf *x509.Certificate, between, roots []*x509.Certificate, now time.Time) error {
	if len(roots) == 0 {
		return errors.New("the reference values name no root for this kind of evidence")
	}
	if leaf.IsCA {
		return errors.New("the signing certificate is one of an authority")
	}
	trusted, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range roots {
		trusted.AddCert(c)
	}
	for _, c := range between {
		intermediates.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: trusted, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("no chain to a root of the reference values: %w", err)
	}
	if len(chains[0]) < 2 {
		return errors.New("the signing certificate is a root itself")
	}
	return nil
}
