package certs_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/certs/xtest"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func fileConfig(dir string) certs.Config {
	return certs.Config{
		CertFile: filepath.Join(dir, "svid.pem"), KeyFile: filepath.Join(dir, "key.pem"), BundleFile: filepath.Join(dir, "bundle.pem"),
		PollInterval: 2 * time.Millisecond,
	}
}

func open(t testing.TB, cfg certs.Config) *certs.Source {
	t.Helper()
	src, err := certs.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := src.Close(); err != nil {
			t.Error(err)
		}
	})
	return src
}

// eventually waits for condition, which is asked again after each update and now and then.
func eventually(t testing.TB, src *certs.Source, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		updated := src.Updated()
		if condition() {
			return
		}
		select {
		case <-updated:
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("never happened: %s (health: %v)", what, src.Health())
		}
	}
}

func TestFilesOfAMintedSVIDWork(t *testing.T) {
	dir, ca := t.TempDir(), xtest.NewCA(t, "td.test")
	svid := ca.Intermediate(t, nil).Issue(t, xtest.Leaf{ID: workload})
	xtest.WriteFiles(t, dir, svid, ca.Certificate)
	src := open(t, fileConfig(dir))
	got, err := src.GetX509SVID()
	if err != nil || got.ID.String() != workload || len(got.Certificates) != 2 {
		t.Fatalf("GetX509SVID: %v, %v", got, err)
	}
	if src.TrustDomain() != ca.TrustDomain || src.ID() != got.ID || src.Health() != nil {
		t.Errorf("trust domain %q, ID %q, health %v", src.TrustDomain(), src.ID(), src.Health())
	}
	bundle, err := src.GetX509BundleForTrustDomain(ca.TrustDomain)
	if err != nil || !bundle.Equal(ca.Bundle()) {
		t.Errorf("bundle: %v, %v", bundle, err)
	}
	bundle.RemoveX509Authority(ca.Certificate)
	if again, err := src.GetX509BundleForTrustDomain(ca.TrustDomain); err != nil || again.Empty() {
		t.Errorf("a caller changed the bundle of the source: %v", err)
	}
	if _, err := src.FetchJWTSVID(t.Context(), "aud"); !errors.Is(err, certs.ErrNoJWT) {
		t.Errorf("FetchJWTSVID: %v; want ErrNoJWT", err)
	}
	if _, err := src.GetJWTBundleForTrustDomain(ca.TrustDomain); !errors.Is(err, certs.ErrNoJWT) {
		t.Errorf("GetJWTBundleForTrustDomain: %v; want ErrNoJWT", err)
	}
	if _, err := src.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString("other.test")); !errors.Is(err, certs.ErrUntrusted) {
		t.Errorf("bundle of another trust domain: %v; want ErrUntrusted", err)
	}
}

func TestFilesRotate(t *testing.T) {
	dir, ca := t.TempDir(), xtest.NewCA(t, "td.test")
	first := ca.Issue(t, xtest.Leaf{ID: workload})
	xtest.WriteFiles(t, dir, first, ca.Certificate)
	src := open(t, fileConfig(dir))
	version := src.BundleVersion()

	second := ca.Issue(t, xtest.Leaf{ID: workload})
	staging := t.TempDir()
	xtest.WriteFiles(t, staging, second, ca.Certificate)
	move := func(name string) {
		t.Helper()
		if err := os.Rename(filepath.Join(staging, name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	move("svid.pem") // its key is not there yet
	eventually(t, src, "the half-written pair is noticed", func() bool { return src.Health() != nil })
	if err := src.Health(); !errors.Is(err, certs.ErrConfig) || !strings.Contains(err.Error(), "key.pem is not that of the certificate") {
		t.Errorf("half-written pair: %v", err)
	}
	if got, err := src.GetX509SVID(); err != nil || !got.Certificates[0].Equal(first.Certificates[0]) {
		t.Errorf("the last good pair does not go on: %v", err)
	}
	move("key.pem")
	eventually(t, src, "the new pair is served", func() bool {
		got, err := src.GetX509SVID()
		return err == nil && got.Certificates[0].Equal(second.Certificates[0]) && second.PrivateKey.(*ecdsa.PrivateKey).Equal(got.PrivateKey)
	})
	eventually(t, src, "it is healthy again", func() bool { return src.Health() == nil })
	if src.BundleVersion() != version {
		t.Error("the bundle version changed with the SVID alone")
	}
}

func TestFilesBundleChangeCountsAtOnce(t *testing.T) {
	dir, ca, next := t.TempDir(), xtest.NewCA(t, "td.test"), xtest.NewCA(t, "td.test")
	svid := ca.Issue(t, xtest.Leaf{ID: workload})
	xtest.WriteFiles(t, dir, svid, ca.Certificate)
	src := open(t, fileConfig(dir))
	version := src.BundleVersion()
	if err := os.WriteFile(filepath.Join(dir, "bundle.pem"), xtest.EncodeCertificates([]*x509.Certificate{next.Certificate}), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, src, "the new bundle is in force although the SVID does not fit it", func() bool {
		bundle, err := src.GetX509BundleForTrustDomain(ca.TrustDomain)
		return err == nil && bundle.Equal(next.Bundle()) && src.BundleVersion() > version
	})
	eventually(t, src, "the misfit is reported", func() bool { return errors.Is(src.Health(), certs.ErrUntrusted) })
	if err := os.Remove(filepath.Join(dir, "bundle.pem")); err != nil {
		t.Fatal(err)
	}
	eventually(t, src, "a missing file is reported", func() bool { return errors.Is(src.Health(), os.ErrNotExist) })
}

func TestFilesTrustDomainCantChange(t *testing.T) {
	dir, ca, other := t.TempDir(), xtest.NewCA(t, "td.test"), xtest.NewCA(t, "other.test")
	xtest.WriteFiles(t, dir, ca.Issue(t, xtest.Leaf{ID: workload}), ca.Certificate)
	src := open(t, fileConfig(dir))
	xtest.WriteFiles(t, dir, other.Issue(t, xtest.Leaf{ID: "spiffe://other.test/workload"}), ca.Certificate)
	eventually(t, src, "the change of trust domain is refused", func() bool { return errors.Is(src.Health(), certs.ErrUntrusted) })
	if src.ID().String() != workload {
		t.Errorf("the SVID of another trust domain was taken: %s", src.ID())
	}
}

func TestOpenSaysWhatIsWrongWithTheFiles(t *testing.T) {
	ca := xtest.NewCA(t, "td.test")
	good := ca.Issue(t, xtest.Leaf{ID: workload})
	pemKey := func(t *testing.T, kind string, der []byte) []byte {
		t.Helper()
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	for name, tc := range map[string]struct {
		file string
		data []byte
		want error
		text string
	}{
		"empty certificate":   {"svid.pem", nil, certs.ErrConfig, "no PEM certificate"},
		"damaged certificate": {"svid.pem", []byte("-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n"), certs.ErrConfig, "damaged PEM"},
		"key for certificate": {"svid.pem", pemKey(t, "PRIVATE KEY", []byte{1}), certs.ErrConfig, "expected a CERTIFICATE"},
		"two URI SANs":        {"svid.pem", xtest.EncodeCertificates(ca.Issue(t, xtest.Leaf{URIs: []string{workload, workload}, Key: good.PrivateKey.(*ecdsa.PrivateKey)}).Certificates), certs.ErrConfig, "2 URI SANs"},
		"encrypted key":       {"key.pem", pemKey(t, "ENCRYPTED PRIVATE KEY", []byte{1}), certs.ErrConfig, "unencrypted"},
		"damaged key":         {"key.pem", pemKey(t, "PRIVATE KEY", []byte{1}), certs.ErrConfig, "can't be read"},
		"no key":              {"key.pem", []byte("hello"), certs.ErrConfig, "expected one private key"},
		"leaf in the bundle":  {"bundle.pem", xtest.EncodeCertificates(good.Certificates), certs.ErrConfig, "not that of an authority"},
		"foreign bundle":      {"bundle.pem", xtest.EncodeCertificates([]*x509.Certificate{xtest.NewCA(t, "td.test").Certificate}), certs.ErrUntrusted, "no path to an authority"},
		"one authority lost":  {"bundle.pem", append(xtest.EncodeCertificates([]*x509.Certificate{ca.Certificate}), "-----BEGIN CERTIFICATE-----\nMII\n"...), certs.ErrConfig, "damaged PEM"},
		"oversized bundle":    {"bundle.pem", make([]byte, 1<<20+1), certs.ErrConfig, "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			xtest.WriteFiles(t, dir, good, ca.Certificate)
			if err := os.WriteFile(filepath.Join(dir, tc.file), tc.data, 0o600); err != nil {
				t.Fatal(err)
			}
			src, err := certs.Open(t.Context(), fileConfig(dir))
			if src != nil || !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) || !strings.Contains(err.Error(), tc.file) {
				t.Errorf("%v; want %v with %q and the file's name", err, tc.want, tc.text)
			}
		})
	}
}

func TestOpenTakesSEC1Keys(t *testing.T) {
	dir, ca := t.TempDir(), xtest.NewCA(t, "td.test")
	svid := ca.Issue(t, xtest.Leaf{ID: workload})
	xtest.WriteFiles(t, dir, svid, ca.Certificate)
	der, err := x509.MarshalECPrivateKey(svid.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, fileConfig(dir))
}

func TestOpenRefusesBadConfiguration(t *testing.T) {
	files := certs.Config{CertFile: "a", KeyFile: "b", BundleFile: "c"}
	both := files
	both.EndpointSocket = "unix:///a"
	for name, tc := range map[string]struct {
		cfg  certs.Config
		text string
	}{
		"nothing":              {certs.Config{}, "SPIFFE_ENDPOINT_SOCKET"},
		"both":                 {both, "not both"},
		"two of three files":   {certs.Config{CertFile: "a", KeyFile: "b"}, "one is missing"},
		"a bare path":          {certs.Config{EndpointSocket: "/run/agent.sock"}, "unix:///path"},
		"a relative path":      {certs.Config{EndpointSocket: "unix://run/agent.sock"}, "must be absolute"},
		"TCP over the network": {certs.Config{EndpointSocket: "tcp://192.0.2.1:8081"}, "loopback only"},
		"a trust domain URI":   {certs.Config{EndpointSocket: "unix:///a", TrustDomains: []string{"spiffe://td"}}, "trust_domains"},
		"a negative time-out":  {certs.Config{EndpointSocket: "unix:///a", ConnectTimeout: -1}, "negative"},
	} {
		src, err := certs.Open(t.Context(), tc.cfg)
		if src != nil || !errors.Is(err, certs.ErrConfig) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v; want ErrConfig with %q", name, err, tc.text)
		}
	}
}

func TestFilesCantFederate(t *testing.T) {
	dir, ca := t.TempDir(), xtest.NewCA(t, "td.test")
	xtest.WriteFiles(t, dir, ca.Issue(t, xtest.Leaf{ID: workload}), ca.Certificate)
	cfg := fileConfig(dir)
	cfg.TrustDomains = []string{"td.test"}
	open(t, cfg)
	cfg.TrustDomains = []string{"other.test"}
	if _, err := certs.Open(t.Context(), cfg); !errors.Is(err, certs.ErrConfig) || !strings.Contains(err.Error(), "other.test") {
		t.Errorf("a federated trust domain with files: %v", err)
	}
}

func TestClosedSourceRefusesEverything(t *testing.T) {
	dir, ca := t.TempDir(), xtest.NewCA(t, "td.test")
	svid := ca.Issue(t, xtest.Leaf{ID: workload})
	xtest.WriteFiles(t, dir, svid, ca.Certificate)
	src := open(t, fileConfig(dir))
	verifier, updated := certs.NewPeerVerifier(src, 0), src.Updated()
	if err := errors.Join(src.Close(), src.Close()); err != nil {
		t.Fatal(err)
	}
	<-updated
	_, svidErr := src.GetX509SVID()
	_, bundleErr := src.GetX509BundleForTrustDomain(ca.TrustDomain)
	_, jwtErr := src.FetchJWTSVID(t.Context(), "aud")
	_, peerErr := verifier.Check(svid.Certificates, time.Now())
	for _, err := range []error{svidErr, bundleErr, jwtErr, peerErr, src.Health()} {
		if !errors.Is(err, certs.ErrClosed) {
			t.Errorf("after Close: %v; want ErrClosed", err)
		}
	}
}
