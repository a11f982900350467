package xtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// A CA is a small authority: a root, one certificate between, and what it issues below that.
type CA struct {
	Root, Between *x509.Certificate
	curve         elliptic.Curve
	key           *ecdsa.PrivateKey // of Between
}

// NewCA makes an authority with keys on curve.
func NewCA(t testing.TB, curve elliptic.Curve, name string) *CA {
	t.Helper()
	rootKey, key := newKey(t, curve), newKey(t, curve)
	c := &CA{curve: curve, key: key}
	c.Root = issue(t, authority("ARK-"+name), nil, &rootKey.PublicKey, rootKey)
	c.Between = issue(t, authority("SEV-"+name), c.Root, &key.PublicKey, rootKey)
	return c
}

func authority(name string) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func issue(t testing.TB, template, parent *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	if parent == nil {
		parent = template
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// Leaf issues a certificate for a fresh key, after change made it odd.
func (c *CA) Leaf(t testing.TB, name string, change func(*x509.Certificate), extensions ...pkix.Extension) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key := newKey(t, c.curve)
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, SubjectKeyId: []byte("leaf"),
		CRLDistributionPoints: []string{"https://example.invalid/crl"}, ExtraExtensions: extensions,
	}
	if change != nil {
		change(template)
	}
	return issue(t, template, c.Between, &key.PublicKey, c.key), key
}

// BareLeaf is Leaf without any extension but those given.
func (c *CA) BareLeaf(t testing.TB, name string, change func(*x509.Certificate), extensions ...pkix.Extension) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, parent := newKey(t, c.curve), *c.Between
	parent.SubjectKeyId = nil // which would become an extension
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), ExtraExtensions: extensions,
	}
	if change != nil {
		change(template)
	}
	return issue(t, template, &parent, &key.PublicKey, c.key), key
}

// PEM writes certificates one after the other.
func PEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// expired makes a certificate that ended yesterday.
func expired(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-24*time.Hour)
}
