package certs_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/certs/xtest"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const workload = "spiffe://td.test/workload"

// misuse are certificates which a trusted authority signed, and which are nobody's X.509-SVID all the same.
func misuse(t testing.TB, ca *xtest.CA) map[string]*x509svid.SVID {
	t.Helper()
	leaf := func(change func(*x509.Certificate)) *x509svid.SVID {
		return ca.Issue(t, xtest.Leaf{ID: workload, Change: change})
	}
	list := map[string]*x509svid.SVID{
		"two URI SANs":           ca.Issue(t, xtest.Leaf{URIs: []string{workload, "spiffe://td.test/operator"}}),
		"the same URI SAN twice": ca.Issue(t, xtest.Leaf{URIs: []string{workload, workload}}),
		"a second, web URI SAN":  ca.Issue(t, xtest.Leaf{URIs: []string{workload, "https://td.test/"}}),
		"no URI SAN, ID as CN":   leaf(func(c *x509.Certificate) { c.URIs, c.Subject.CommonName = nil, workload }),
		"no URI SAN, ID as DNS":  leaf(func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"td.test"} }),
		"CA flag":                leaf(func(c *x509.Certificate) { c.IsCA = true }),
		"keyCertSign":            leaf(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }),
		"cRLSign":                leaf(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }),
		"no digitalSignature":    leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }),
		"no key usage at all":    leaf(func(c *x509.Certificate) { c.KeyUsage = 0 }),
		"the authority itself":   {Certificates: []*x509.Certificate{ca.Certificate}, PrivateKey: ca.Key},
	}
	for name, id := range map[string]string{
		"no path":                 "spiffe://td.test",
		"root path":               "spiffe://td.test/",
		"upper-case scheme":       "SPIFFE://td.test/workload",
		"upper-case trust domain": "spiffe://TD.test/workload",
		"dot-dot":                 "spiffe://td.test/a/../workload",
		"encoded dot":             "spiffe://td.test/%2e/workload",
		"encoded letter":          "spiffe://td.test/%77orkload",
		"empty fragment":          "spiffe://td.test/workload#",
		"empty query":             "spiffe://td.test/workload?",
		"port":                    "spiffe://td.test:443/workload",
		"trailing slash":          "spiffe://td.test/workload/",
		"web address":             "https://td.test/workload",
	} {
		list["ID with "+name] = ca.Issue(t, xtest.Leaf{URIs: []string{id}})
	}
	return list
}

func TestVerifyRefusesMisuseOfATrustedAuthority(t *testing.T) {
	ca := xtest.NewCA(t, "td.test")
	if id, err := certs.Verify(ca.Issue(t, xtest.Leaf{ID: workload}).Certificates, ca.Bundle(), time.Now()); err != nil || id.String() != workload {
		t.Fatalf("a good certificate: %v, %v", id, err)
	}
	for name, svid := range misuse(t, ca) {
		if id, err := certs.Verify(svid.Certificates, ca.Bundle(), time.Now()); !errors.Is(err, certs.ErrUntrusted) || !id.IsZero() {
			t.Errorf("%s: %q, %v; want ErrUntrusted", name, id, err)
		}
	}
}

func TestVerifyRefusesWeakRSAKey(t *testing.T) {
	ca := xtest.NewCA(t, "td.test")
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skipf("this toolchain makes no weak keys: %v", err)
	}
	template := ca.Issue(t, xtest.Leaf{ID: workload}).Certificates[0]
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Certificate, weak.Public(), ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := certs.Verify([]*x509.Certificate{cert}, ca.Bundle(), time.Now()); !errors.Is(err, certs.ErrUntrusted) || !strings.Contains(err.Error(), "1024 bits") {
		t.Errorf("RSA of 1024 bits: %v", err)
	}
}

func TestVerifyRefusesForeignSigners(t *testing.T) {
	ca, namesake := xtest.NewCA(t, "td.test"), xtest.NewCA(t, "td.test")
	good := ca.Issue(t, xtest.Leaf{ID: workload})
	signer := &xtest.CA{TrustDomain: ca.TrustDomain, Certificate: good.Certificates[0], Key: xtest.NewKey(t)}
	leafAsSigner := ca.Issue(t, xtest.Leaf{ID: workload, Key: signer.Key})
	signer.Certificate = leafAsSigner.Certificates[0]
	below := signer.Issue(t, xtest.Leaf{ID: "spiffe://td.test/operator"})
	below.Certificates = append(below.Certificates, leafAsSigner.Certificates[0])
	for name, chain := range map[string][]*x509.Certificate{
		"an authority of the same name":       namesake.Issue(t, xtest.Leaf{ID: workload}).Certificates,
		"a leaf that signs":                   below.Certificates,
		"an ID of another trust domain":       ca.Issue(t, xtest.Leaf{ID: "spiffe://other.test/workload"}).Certificates,
		"the foreign authority sent along":    append(namesake.Issue(t, xtest.Leaf{ID: workload}).Certificates, namesake.Certificate),
		"a missing intermediate":              ca.Intermediate(t, nil).Issue(t, xtest.Leaf{ID: workload}).Certificates[:1],
		"no certificate":                      nil,
		"a certificate that was never parsed": {{}},
		"nine certificates":                   append(good.Certificates, make([]*x509.Certificate, 8)...),
	} {
		if id, err := certs.Verify(chain, ca.Bundle(), time.Now()); !errors.Is(err, certs.ErrUntrusted) || !id.IsZero() {
			t.Errorf("%s: %q, %v; want ErrUntrusted", name, id, err)
		}
	}
	// A peer chooses what it sends along, and whoever verified it keeps all of that.
	junk := namesake.Intermediate(t, func(c *x509.Certificate) { c.DNSNames = []string{strings.Repeat("a", 5<<10)} })
	heavy := good.Certificates[:1:1]
	for len(heavy) < 8 {
		heavy = append(heavy, junk.Certificate)
	}
	if _, err := certs.Verify(heavy, ca.Bundle(), time.Now()); !errors.Is(err, certs.ErrUntrusted) || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("a chain of 35 KiB: %v; want ErrUntrusted", err)
	}
	if _, err := certs.Verify(heavy[:6], ca.Bundle(), time.Now()); err != nil {
		t.Errorf("a chain of 26 KiB: %v", err)
	}
	nested := ca.Intermediate(t, nil).Intermediate(t, nil).Issue(t, xtest.Leaf{ID: workload})
	if _, err := certs.Verify(nested.Certificates, ca.Bundle(), time.Now()); err != nil {
		t.Errorf("a nested chain: %v", err)
	}
	if _, err := certs.Verify(good.Certificates, x509bundle.New(ca.TrustDomain), time.Now()); !errors.Is(err, certs.ErrUntrusted) {
		t.Errorf("an empty bundle: %v", err)
	}
}

func TestVerifySaysWhichClockLooksWrong(t *testing.T) {
	ca := xtest.NewCA(t, "td.test")
	now := time.Now()
	leaf := ca.Issue(t, xtest.Leaf{ID: workload, From: now.Add(-10 * time.Second), NotAfter: now.Add(30 * time.Minute)}).Certificates
	for _, tc := range []struct {
		at   time.Time
		want error
		text string
	}{
		{now.Add(-30 * time.Minute), certs.ErrNotYetValid, "this machine's clock looks slow"},
		{now.Add(time.Hour), certs.ErrExpired, "this machine's clock looks fast"},
	} {
		_, err := certs.Verify(leaf, ca.Bundle(), tc.at)
		if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) || !strings.Contains(err.Error(), tc.at.UTC().Format(time.RFC3339)) {
			t.Errorf("at %s: %v", tc.at, err)
		}
	}
	short := ca.Intermediate(t, func(c *x509.Certificate) { c.NotAfter = now.Add(time.Minute) })
	if _, err := certs.Verify(short.Issue(t, xtest.Leaf{ID: workload}).Certificates, ca.Bundle(), now.Add(2*time.Minute)); !errors.Is(err, certs.ErrExpired) {
		t.Errorf("an intermediate that ended: %v; want ErrExpired", err)
	}
}
