package certs_test

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/certs/xtest"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// fileSource returns a source of an SVID of ca, and the directory that it is read from.
func fileSource(t testing.TB, ca *xtest.CA) (*certs.Source, string) {
	t.Helper()
	dir := t.TempDir()
	xtest.WriteFiles(t, dir, ca.Issue(t, xtest.Leaf{ID: "spiffe://td.test/bulla/broker", NotAfter: time.Now().Add(12 * time.Hour)}), ca.Certificate)
	return open(t, fileConfig(dir)), dir
}

func writeBundle(t testing.TB, dir string, list ...*x509.Certificate) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "bundle.pem"), xtest.EncodeCertificates(list), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestPeerVerifierRefusesTwoURISANs(t *testing.T) {
	ca := xtest.NewCA(t, "td.test")
	src, _ := fileSource(t, ca)
	verifier := certs.NewPeerVerifier(src, 0)
	svid := misuse(t, ca)["two URI SANs"]
	for range 2 { // the second time from memory
		if id, err := verifier.Check(svid.Certificates, time.Now()); !errors.Is(err, certs.ErrUntrusted) || !strings.Contains(err.Error(), "2 URI SANs") || !id.IsZero() {
			t.Errorf("two URI SANs: %q, %v", id, err)
		}
	}
}

func TestPeerVerifierRefusesEveryMisuse(t *testing.T) {
	ca := xtest.NewCA(t, "td.test")
	src, _ := fileSource(t, ca)
	verifier := certs.NewPeerVerifier(src, 0)
	for name, svid := range misuse(t, ca) {
		for range 2 {
			if id, err := verifier.Check(svid.Certificates, time.Now()); !errors.Is(err, certs.ErrUntrusted) || !id.IsZero() {
				t.Errorf("%s: %q, %v; want ErrUntrusted", name, id, err)
			}
		}
	}
	for _, chain := range [][]*x509.Certificate{nil, {nil}, {{}}} {
		if _, err := verifier.Check(chain, time.Now()); !errors.Is(err, certs.ErrUntrusted) {
			t.Errorf("chain %v: %v; want ErrUntrusted", chain, err)
		}
	}
}

func TestPeerVerifierChecksTheTimeAtEachCall(t *testing.T) {
	ca := xtest.NewCA(t, "td.test")
	src, _ := fileSource(t, ca)
	verifier := certs.NewPeerVerifier(src, 0)
	now := time.Now()
	chain := ca.Issue(t, xtest.Leaf{ID: workload, NotAfter: now.Add(time.Minute)}).Certificates
	for _, tc := range []struct {
		after time.Duration
		want  error
		text  string
	}{
		{0, nil, ""},
		{59 * time.Second, nil, ""},
		{61 * time.Second, certs.ErrExpired, "the peer does not renew its own"},
		{-time.Minute, certs.ErrNotYetValid, "clock looks slow"},
		{24 * time.Hour, certs.ErrExpired, "this machine's clock looks fast"},
		{30 * time.Second, nil, ""}, // nothing of the refusals sticks
	} {
		id, err := verifier.Check(chain, now.Add(tc.after))
		if !errors.Is(err, tc.want) || (err == nil) != (id.String() == workload) {
			t.Errorf("after %s: %q, %v; want %v", tc.after, id, err, tc.want)
		}
		if err != nil && !strings.Contains(err.Error(), tc.text) {
			t.Errorf("after %s: %v does not say %q", tc.after, err, tc.text)
		}
	}
}

func TestPeerVerifierRefusesAPathThatEnded(t *testing.T) {
	ca := xtest.NewCA(t, "td.test")
	src, _ := fileSource(t, ca)
	verifier := certs.NewPeerVerifier(src, 0)
	now := time.Now()
	short := ca.Intermediate(t, func(c *x509.Certificate) { c.NotAfter = now.Add(time.Minute) })
	chain := short.Issue(t, xtest.Leaf{ID: workload}).Certificates // the leaf itself holds for an hour
	if _, err := verifier.Check(chain, now); err != nil {
		t.Fatal(err)
	}
	if _, err := verifier.Check(chain, now.Add(2*time.Minute)); !errors.Is(err, certs.ErrExpired) {
		t.Errorf("its intermediate ended: %v; want ErrExpired", err)
	}
}

func TestPeerVerifierFollowsTheBundle(t *testing.T) {
	ca, next := xtest.NewCA(t, "td.test"), xtest.NewCA(t, "td.test")
	src, dir := fileSource(t, ca)
	verifier := certs.NewPeerVerifier(src, 0)
	peer, newPeer := ca.Issue(t, xtest.Leaf{ID: workload}).Certificates, next.Issue(t, xtest.Leaf{ID: workload}).Certificates
	check := func(chain []*x509.Certificate) error {
		_, err := verifier.Check(chain, time.Now())
		return err
	}
	if err := check(peer); err != nil {
		t.Fatal(err)
	}
	if err := check(newPeer); !errors.Is(err, certs.ErrUntrusted) {
		t.Fatalf("an authority that is not in the bundle: %v", err)
	}
	writeBundle(t, dir, ca.Certificate, next.Certificate)
	eventually(t, src, "the new authority is trusted, the refusal forgotten", func() bool { return check(newPeer) == nil })
	if err := check(peer); err != nil {
		t.Errorf("the old authority is still in the bundle: %v", err)
	}
	writeBundle(t, dir, next.Certificate)
	eventually(t, src, "the old authority is out", func() bool { return errors.Is(check(peer), certs.ErrUntrusted) })
	if err := check(newPeer); err != nil {
		t.Errorf("the new authority: %v", err)
	}
}

func TestPeerVerifierRefusesOtherTrustDomains(t *testing.T) {
	ca, other := xtest.NewCA(t, "td.test"), xtest.NewCA(t, "other.test")
	src, _ := fileSource(t, ca)
	verifier := certs.NewPeerVerifier(src, 0)
	chain := other.Issue(t, xtest.Leaf{ID: "spiffe://other.test/workload"}).Certificates
	if _, err := verifier.Check(chain, time.Now()); !errors.Is(err, certs.ErrUntrusted) || !strings.Contains(err.Error(), "not allowed here") {
		t.Errorf("another trust domain: %v", err)
	}
}

// A chain that lacks its intermediate must not spoil the answer for the whole chain, nor the other way round.
func TestPeerVerifierJudgesTheChainThatWasSent(t *testing.T) {
	ca := xtest.NewCA(t, "td.test")
	src, _ := fileSource(t, ca)
	verifier := certs.NewPeerVerifier(src, 0)
	chain := ca.Intermediate(t, nil).Issue(t, xtest.Leaf{ID: workload}).Certificates
	for range 2 {
		if _, err := verifier.Check(chain[:1], time.Now()); !errors.Is(err, certs.ErrUntrusted) {
			t.Errorf("without the intermediate: %v; want ErrUntrusted", err)
		}
		if _, err := verifier.Check(chain, time.Now()); err != nil {
			t.Errorf("with it: %v", err)
		}
	}
}

func TestPeerVerifierStaysRightWhenFull(t *testing.T) {
	ca := xtest.NewCA(t, "td.test")
	src, _ := fileSource(t, ca)
	verifier := certs.NewPeerVerifier(src, 2)
	key := xtest.NewKey(t)
	var chains [][]*x509.Certificate
	for i := range 9 {
		chains = append(chains, ca.Issue(t, xtest.Leaf{ID: fmt.Sprintf("spiffe://td.test/w%d", i), Key: key}).Certificates)
	}
	for range 3 {
		for i, chain := range chains {
			want := spiffeid.RequireFromString(fmt.Sprintf("spiffe://td.test/w%d", i))
			if id, err := verifier.Check(chain, time.Now()); err != nil || id != want {
				t.Errorf("Check(w%d) = %q, %v", i, id, err)
			}
		}
	}
	if n := certs.Remembered(verifier); n > 4 {
		t.Errorf("%d verdicts are kept, the most is twice 2", n)
	}
}

func BenchmarkPeerVerifierCached(b *testing.B) {
	ca := xtest.NewCA(b, "td.test")
	src, _ := fileSource(b, ca)
	verifier := certs.NewPeerVerifier(src, 0)
	chain, now := ca.Issue(b, xtest.Leaf{ID: workload}).Certificates, time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := verifier.Check(chain, now); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPeerVerifierUncached(b *testing.B) {
	ca := xtest.NewCA(b, "td.test")
	chain, now := ca.Issue(b, xtest.Leaf{ID: workload}).Certificates, time.Now()
	bundle := ca.Bundle()
	for b.Loop() {
		if _, err := certs.Verify(chain, bundle, now); err != nil {
			b.Fatal(err)
		}
	}
}
