// Package xtest makes certificates for tests: good ones, and those that must be refused although a trusted authority
// signed them. It is imported by tests only, and it never serves anything.
package xtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// CA is an authority of a trust domain, or an intermediate below one.
type CA struct {
	TrustDomain spiffeid.TrustDomain
	Certificate *x509.Certificate
	Key         *ecdsa.PrivateKey
	above       []*x509.Certificate // intermediates from this CA (included) up to below the root
}

// Leaf is what Issue makes. The zero value of each field is the right one for a good SVID that is valid for an hour.
type Leaf struct {
	ID       string                  // the only URI SAN; "" together with no URIs means none
	URIs     []string                // in place of ID: as many as you like, byte for byte
	NotAfter time.Time               // zero: in an hour
	From     time.Time               // zero: 10 s ago
	Key      *ecdsa.PrivateKey       // nil: a fresh one
	Change   func(*x509.Certificate) // the last word on the template
}

// NewCA makes a root for the trust domain.
func NewCA(t testing.TB, trustDomain string) *CA {
	t.Helper()
	key := NewKey(t)
	template := caTemplate(trustDomain + " root")
	return &CA{
		TrustDomain: spiffeid.RequireTrustDomainFromString(trustDomain),
		Certificate: sign(t, template, template, key, key),
		Key:         key,
	}
}

// LoadDevCA returns the signing CA of a development authority from its state directory, so that a test can have it
// sign what the authority itself never would.
func LoadDevCA(t testing.TB, dir string) *CA {
	t.Helper()
	newest := loadDevState(t, dir)
	key, err := x509.ParsePKCS8PrivateKey(newest.CAKey)
	if err != nil {
		t.Fatalf("read the key of the development authority: %v", err)
	}
	cert, err := x509.ParseCertificate(newest.CACertificate)
	if err != nil {
		t.Fatalf("read the certificate of the development authority: %v", err)
	}
	return &CA{TrustDomain: spiffeid.RequireTrustDomainFromString(newest.trustDomain), Certificate: cert, Key: key.(*ecdsa.PrivateKey)}
}

// Intermediate makes a CA below ca; change may be nil.
func (ca *CA) Intermediate(t testing.TB, change func(*x509.Certificate)) *CA {
	t.Helper()
	key := NewKey(t)
	template := caTemplate(ca.TrustDomain.Name() + " intermediate")
	if change != nil {
		change(template)
	}
	cert := sign(t, template, ca.Certificate, key, ca.Key)
	return &CA{TrustDomain: ca.TrustDomain, Certificate: cert, Key: key, above: append([]*x509.Certificate{cert}, ca.above...)}
}

// Issue signs a leaf and returns it with the intermediates above it. Nothing is checked: the value may be no SVID at all.
func (ca *CA) Issue(t testing.TB, leaf Leaf) *x509svid.SVID {
	t.Helper()
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial(t),
		Subject:               pkix.Name{Organization: []string{"test"}},
		NotBefore:             leaf.From,
		NotAfter:              leaf.NotAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if leaf.From.IsZero() {
		template.NotBefore = now.Add(-10 * time.Second)
	}
	if leaf.NotAfter.IsZero() {
		template.NotAfter = now.Add(time.Hour)
	}
	uris := leaf.URIs
	if uris == nil && leaf.ID != "" {
		uris = []string{leaf.ID}
	}
	for _, uri := range uris {
		// Opaque keeps the text byte for byte; a parsed URL would be normalised.
		template.URIs = append(template.URIs, &url.URL{Opaque: uri})
	}
	if leaf.Change != nil {
		leaf.Change(template)
	}
	key := leaf.Key
	if key == nil {
		key = NewKey(t)
	}
	cert := sign(t, template, ca.Certificate, key, ca.Key)
	id, _ := spiffeid.FromString(leaf.ID) // the zero ID for what is none
	return &x509svid.SVID{ID: id, Certificates: append([]*x509.Certificate{cert}, ca.above...), PrivateKey: key}
}

// Bundle holds the root of ca, or ca itself if it is one.
func (ca *CA) Bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(ca.TrustDomain, []*x509.Certificate{ca.Certificate})
}

// WriteFiles writes svid.pem, key.pem and bundle.pem below dir, named and formed as by "spire-server x509 mint -write".
func WriteFiles(t testing.TB, dir string, svid *x509svid.SVID, authorities ...*x509.Certificate) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(svid.PrivateKey)
	if err != nil {
		t.Fatalf("encode a key: %v", err)
	}
	for name, data := range map[string][]byte{
		"svid.pem":   EncodeCertificates(svid.Certificates),
		"key.pem":    pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		"bundle.pem": EncodeCertificates(authorities),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// EncodeCertificates returns certificates as PEM.
func EncodeCertificates(list []*x509.Certificate) []byte {
	var out []byte
	for _, c := range list {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// NewKey makes a P-256 key.
func NewKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("make a key: %v", err)
	}
	return key
}

func caTemplate(name string) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		t.Fatalf("make a serial number: %v", err)
	}
	return n.Add(n, big.NewInt(1))
}

func sign(t testing.TB, template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	if template.SerialNumber == nil {
		template.SerialNumber = serial(t)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatalf("sign a certificate: %v", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("parse a certificate: %v", err)
	}
	return cert
}

// LoadDevJWTKey returns the newest JWT key of a development authority, and its kid.
func LoadDevJWTKey(t testing.TB, dir string) (key *ecdsa.PrivateKey, kid string) {
	t.Helper()
	newest := loadDevState(t, dir)
	parsed, err := x509.ParsePKCS8PrivateKey(newest.JWTKey)
	if err != nil {
		t.Fatalf("read the JWT key of the development authority: %v", err)
	}
	return parsed.(*ecdsa.PrivateKey), newest.ID
}

type devState struct {
	ID            string `json:"id"`
	CACertificate []byte `json:"ca_certificate"`
	CAKey         []byte `json:"ca_key"`
	JWTKey        []byte `json:"jwt_key"`
	trustDomain   string
}

// loadDevState reads the newest generation.
func loadDevState(t testing.TB, dir string) devState {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "authority.json"))
	if err != nil {
		t.Fatalf("read the state of the development authority: %v", err)
	}
	var state struct {
		TrustDomain string     `json:"trust_domain"`
		Generations []devState `json:"generations"`
	}
	if err := json.Unmarshal(data, &state); err != nil || len(state.Generations) == 0 {
		t.Fatalf("read the state of the development authority: %v", err)
	}
	newest := state.Generations[len(state.Generations)-1]
	newest.trustDomain = state.TrustDomain
	return newest
}
