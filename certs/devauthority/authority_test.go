package devauthority_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/certs/devauthority"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var workloadID = spiffeid.RequireFromString("spiffe://td.test/workload")

func config(dir string) devauthority.Config {
	return devauthority.Config{DevelopmentOnly: true, Dir: dir, TrustDomain: "td.test", Log: slog.New(slog.DiscardHandler)}
}

func start(t testing.TB, cfg devauthority.Config) *devauthority.Authority {
	t.Helper()
	a, err := devauthority.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func serve(t testing.TB, a *devauthority.Authority) (addr string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s.sock")
	if err := a.Serve(workloadID, path); err != nil {
		t.Fatal(err)
	}
	return "unix://" + path
}

func TestNewIsForDevelopmentOnly(t *testing.T) {
	cfg := config(filepath.Join(t.TempDir(), "state"))
	cfg.DevelopmentOnly = false
	if a, err := devauthority.New(cfg); a != nil || !errors.Is(err, devauthority.ErrNotDevelopment) {
		t.Errorf("New without DevelopmentOnly: %v", err)
	}
	if _, err := os.Stat(cfg.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it made its directory before it refused: %v", err)
	}
	var log bytes.Buffer
	cfg.DevelopmentOnly, cfg.Log = true, slog.New(slog.NewTextHandler(&log, nil))
	start(t, cfg)
	if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "not for production") {
		t.Errorf("no warning at the start: %s", log.String())
	}
}

func TestNewRefusesBadConfiguration(t *testing.T) {
	for name, change := range map[string]func(*devauthority.Config){
		"no directory":               func(c *devauthority.Config) { c.Dir = "" },
		"no trust domain":            func(c *devauthority.Config) { c.TrustDomain = "" },
		"an upper-case trust domain": func(c *devauthority.Config) { c.TrustDomain = "TD.test" },
		"a trust domain as a URI":    func(c *devauthority.Config) { c.TrustDomain = "spiffe://td.test" },
		"a short lifetime":           func(c *devauthority.Config) { c.TTL = time.Second - 1 },
		"a negative lifetime":        func(c *devauthority.Config) { c.TTL = -time.Hour },
		"a lifetime of two years":    func(c *devauthority.Config) { c.TTL = 2 * 365 * 24 * time.Hour },
	} {
		cfg := config(t.TempDir())
		change(&cfg)
		if a, err := devauthority.New(cfg); a != nil || !errors.Is(err, devauthority.ErrConfig) {
			t.Errorf("%s: %v; want ErrConfig", name, err)
		}
	}
}

func TestKeysOutliveARestart(t *testing.T) {
	cfg := config(filepath.Join(t.TempDir(), "deep", "state"))
	first := start(t, cfg)
	if _, err := first.RotateAuthority(); err != nil {
		t.Fatal(err)
	}
	if err := first.TaintAuthority(first.Authorities()[0].ID); err != nil {
		t.Fatal(err)
	}
	bundle, device, infos := first.Bundle(), first.DeviceKey(), first.Authorities()
	minted, err := first.Mint(workloadID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := devauthority.New(cfg); !errors.Is(err, devauthority.ErrState) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second one on the same directory: %v; want ErrState", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := start(t, cfg)
	if !second.Bundle().Equal(bundle) || !second.DeviceKey().Equal(device) {
		t.Error("another bundle or device key after the restart")
	}
	if got := second.Authorities(); len(got) != 2 || got[0].ID != infos[0].ID || !got[0].Tainted || got[1].Tainted || !got[1].Signs {
		t.Errorf("authorities after the restart: %+v, before: %+v", got, infos)
	}
	if _, err := certs.Verify(minted.Certificates, second.Bundle(), time.Now()); err != nil {
		t.Errorf("an SVID from before the restart: %v", err)
	}
	for path, want := range map[string]fs.FileMode{cfg.Dir: 0o700 | fs.ModeDir, filepath.Join(cfg.Dir, "authority.json"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s has mode %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	other := cfg
	other.TrustDomain = "other.test"
	if _, err := devauthority.New(other); !errors.Is(err, devauthority.ErrState) || !strings.Contains(err.Error(), "td.test") {
		t.Errorf("another trust domain on the same directory: %v; want ErrState", err)
	}
}

func TestNewRefusesADamagedState(t *testing.T) {
	cfg := config(t.TempDir())
	path := filepath.Join(cfg.Dir, "authority.json")
	if err := start(t, cfg).Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"empty":            nil,
		"cut":              good[:len(good)/2],
		"text appended":    append(bytes.Clone(good), "{}"...),
		"an unknown field": bytes.Replace(good, []byte(`{`), []byte(`{"x": 1,`), 1),
		"another layout":   bytes.ReplaceAll(good, []byte("  "), []byte(" ")),
		"another version":  bytes.Replace(good, []byte(`"version": 1`), []byte(`"version": 2`), 1),
		"another name":     bytes.Replace(good, []byte(`"id": "`), []byte(`"id": "0`), 1),
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if a, err := devauthority.New(cfg); a != nil || !errors.Is(err, devauthority.ErrState) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v; want ErrState and the file's name", name, err)
		}
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := devauthority.New(cfg); !errors.Is(err, devauthority.ErrState) || !strings.Contains(err.Error(), "chmod 0600") {
		t.Errorf("a file open to others: %v; want ErrState", err)
	}
}

func TestMintedSVIDHasTheShapeOfSPIREs(t *testing.T) {
	a := start(t, config(t.TempDir()))
	before := time.Now()
	svid, err := a.Mint(workloadID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leaf := svid.Certificates[0]
	public, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	switch {
	case len(svid.Certificates) != 1 || !ok || public.Curve != elliptic.P256():
		t.Errorf("%d certificates, key %T", len(svid.Certificates), leaf.PublicKey)
	case len(leaf.URIs) != 1 || leaf.URIs[0].String() != workloadID.String():
		t.Errorf("URI SANs %v", leaf.URIs)
	case leaf.IsCA || !leaf.BasicConstraintsValid || leaf.KeyUsage != x509.KeyUsageDigitalSignature:
		t.Errorf("CA %t, key usage %b", leaf.IsCA, leaf.KeyUsage)
	case leaf.NotBefore.After(before.Add(-9*time.Second)) || leaf.NotBefore.Before(before.Add(-12*time.Second)):
		t.Errorf("begins at %s, issued at %s", leaf.NotBefore, before)
	case leaf.NotAfter.Before(before.Add(time.Hour)) || leaf.NotAfter.After(time.Now().Add(time.Hour+time.Second)):
		t.Errorf("ends at %s, issued at %s for an hour", leaf.NotAfter, before)
	}
	if _, _, err := svid.Marshal(); err != nil {
		t.Errorf("as PEM: %v", err)
	}
	if a.DeviceKeyPublic().Equal(a.Bundle().X509Authorities()[0].PublicKey) {
		t.Error("the device key is the CA's")
	}
	for name, id := range map[string]spiffeid.ID{
		"the zero ID":          {},
		"the trust domain":     a.TrustDomain().ID(),
		"another trust domain": spiffeid.RequireFromString("spiffe://other.test/workload"),
	} {
		if _, err := a.Mint(id, time.Hour); !errors.Is(err, devauthority.ErrConfig) {
			t.Errorf("Mint(%s): %v; want ErrConfig", name, err)
		}
		if err := a.Serve(id, filepath.Join(t.TempDir(), "s")); !errors.Is(err, devauthority.ErrConfig) {
			t.Errorf("Serve(%s): %v; want ErrConfig", name, err)
		}
	}
	if _, err := a.Mint(workloadID, 0); !errors.Is(err, devauthority.ErrConfig) {
		t.Errorf("Mint for no time: %v; want ErrConfig", err)
	}
}

func TestAuthorityLifecycle(t *testing.T) {
	a := start(t, config(t.TempDir()))
	first := a.Authorities()[0].ID
	old, err := a.Mint(workloadID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"revoke the only one": a.RevokeAuthority(first),
		"taint the only one":  a.TaintAuthority(first),
		"revoke an unknown":   a.RevokeAuthority("none"),
		"taint an unknown":    a.TaintAuthority("none"),
	} {
		if !errors.Is(err, devauthority.ErrUnknownAuthority) {
			t.Errorf("%s: %v; want ErrUnknownAuthority", name, err)
		}
	}
	second, err := a.RotateAuthority()
	if err != nil {
		t.Fatal(err)
	}
	if b := a.Bundle(); len(b.X509Authorities()) != 2 || len(b.JWTAuthorities()) != 2 {
		t.Errorf("bundle after the rotation: %d, %d", len(b.X509Authorities()), len(b.JWTAuthorities()))
	}
	if got := a.Authorities(); !got[0].Signs || got[1].Signs || got[1].ID != second {
		t.Errorf("the new one signs before it is known everywhere: %+v", got)
	}
	if err := a.RevokeAuthority(first); err != nil {
		t.Fatal(err)
	}
	if got := a.Authorities(); len(got) != 1 || !got[0].Signs || got[0].ID != second {
		t.Errorf("after the revocation: %+v", got)
	}
	if _, err := certs.Verify(old.Certificates, a.Bundle(), time.Now()); !errors.Is(err, certs.ErrUntrusted) {
		t.Errorf("an SVID of the revoked one: %v; want ErrUntrusted", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.RotateAuthority(); !errors.Is(err, devauthority.ErrClosed) {
		t.Errorf("rotate after Close: %v; want ErrClosed", err)
	}
	if err := a.Serve(workloadID, filepath.Join(t.TempDir(), "s")); !errors.Is(err, devauthority.ErrClosed) {
		t.Errorf("serve after Close: %v; want ErrClosed", err)
	}
}

func TestServeTakesCareOfItsSocket(t *testing.T) {
	a := start(t, config(t.TempDir()))
	dir := t.TempDir()
	long := filepath.Join(dir, strings.Repeat("x", 105-len(dir)-1))
	if err := a.Serve(workloadID, long); !errors.Is(err, devauthority.ErrConfig) || !strings.Contains(err.Error(), "105 bytes") {
		t.Errorf("a path of %d bytes: %v; want ErrConfig", len(long), err)
	}
	if err := a.Serve(workloadID, long[:104]); err != nil {
		t.Errorf("a path of 104 bytes: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.Serve(workloadID, file); !errors.Is(err, devauthority.ErrConfig) || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file in its place: %v; want ErrConfig", err)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "precious" {
		t.Errorf("the file is gone: %q, %v", data, err)
	}
	stale := filepath.Join(dir, "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := a.Serve(workloadID, stale); !errors.Is(err, devauthority.ErrConfig) || !strings.Contains(err.Error(), "serves") {
		t.Errorf("a living socket in its place: %v; want ErrConfig", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Serve(workloadID, stale); err != nil {
		t.Fatalf("a stale socket in its place: %v", err)
	}
	if info, err := os.Stat(stale); err != nil || info.Mode() != 0o600|fs.ModeSocket {
		t.Errorf("the socket has mode %v, %v", info.Mode(), err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestClockOfTheAuthority(t *testing.T) {
	cfg := config(t.TempDir())
	cfg.Now = func() time.Time { return time.Now().Add(time.Hour) }
	a := start(t, cfg)
	svid, err := a.Mint(workloadID, 30*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := certs.Verify(svid.Certificates, a.Bundle(), time.Now()); !errors.Is(err, certs.ErrNotYetValid) || !strings.Contains(err.Error(), "clock") {
		t.Errorf("issued an hour ahead: %v; want ErrNotYetValid", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Now = func() time.Time { return time.Now().Add(11 * 365 * 24 * time.Hour) }
	if _, err := devauthority.New(cfg); !errors.Is(err, devauthority.ErrState) || !strings.Contains(err.Error(), "ended at") {
		t.Errorf("eleven years on: %v; want ErrState", err)
	}
}

// wait waits until condition holds, which is asked again at every signal.
func wait(t testing.TB, signal <-chan struct{}, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !condition() {
		select {
		case <-signal:
		case <-ctx.Done():
			t.Fatalf("never happened: %s", what)
		}
	}
}
