package certs_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/certs/devauthority"
	"github.com/bulla-project/bulla/certs/xtest"
	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// authority is a development authority for td.test with sockets in a short directory.
type authority struct {
	*devauthority.Authority
	dir string
}

func newAuthority(t testing.TB, td string, ttl time.Duration) *authority {
	t.Helper()
	return startAuthority(t, t.TempDir(), td, ttl)
}

func startAuthority(t testing.TB, dir, td string, ttl time.Duration) *authority {
	t.Helper()
	a, err := devauthority.New(devauthority.Config{DevelopmentOnly: true, Dir: dir, TrustDomain: td, TTL: ttl, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return &authority{a, dir}
}

// socket serves the identity td/path and returns its address.
func (a *authority) socket(t testing.TB, path string) string {
	t.Helper()
	file := filepath.Join(a.dir, strings.ReplaceAll(path, "/", "-")+".sock")
	if err := a.Serve(spiffeid.RequireFromSegments(a.TrustDomain(), strings.Split(path, "/")...), file); err != nil {
		t.Fatal(err)
	}
	return "unix://" + file
}

func TestWorkloadAPISourceHasEverything(t *testing.T) {
	a := newAuthority(t, "td.test", time.Hour)
	src := open(t, certs.Config{EndpointSocket: a.socket(t, "workload")})
	svid, err := src.GetX509SVID()
	if err != nil || svid.ID.String() != workload || src.TrustDomain() != a.TrustDomain() || src.Health() != nil {
		t.Fatalf("SVID %v, %v; trust domain %q; health %v", svid, err, src.TrustDomain(), src.Health())
	}
	if id, err := certs.Verify(svid.Certificates, src, time.Now()); err != nil || id != svid.ID {
		t.Errorf("the own SVID does not verify: %v, %v", id, err)
	}
	token, err := src.FetchJWTSVID(t.Context(), "bulla")
	if err != nil {
		t.Fatal(err)
	}
	got, err := src.ValidateJWTSVID(token.Marshal(), "bulla")
	if err != nil || got.ID != svid.ID {
		t.Errorf("ValidateJWTSVID: %v, %v", got, err)
	}
	if _, err := src.FetchJWTSVID(t.Context(), ""); !errors.Is(err, certs.ErrConfig) {
		t.Errorf("no audience: %v; want ErrConfig", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := src.FetchJWTSVID(ctx, "bulla"); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v; want context.Canceled", err)
	}
}

func TestWorkloadAPISourceFollowsRotation(t *testing.T) {
	a := newAuthority(t, "td.test", 2*time.Second)
	src := open(t, certs.Config{EndpointSocket: a.socket(t, "workload")})
	first, err := src.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	version := src.BundleVersion()
	eventually(t, src, "a renewed SVID arrives before the first has ended", func() bool {
		svid, err := src.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		return !svid.Certificates[0].Equal(first.Certificates[0])
	})
	if src.BundleVersion() != version {
		t.Error("the bundle version changed with the SVID")
	}
	if _, err := a.RotateAuthority(); err != nil {
		t.Fatal(err)
	}
	eventually(t, src, "the new bundle arrives", func() bool {
		bundle, err := src.GetX509BundleForTrustDomain(a.TrustDomain())
		return err == nil && len(bundle.X509Authorities()) == 2 && src.BundleVersion() > version
	})
}

func TestWorkloadAPISourceTakesOnlyNamedTrustDomains(t *testing.T) {
	a, named, unnamed := newAuthority(t, "td.test", time.Hour), newAuthority(t, "named.test", time.Hour), newAuthority(t, "unnamed.test", time.Hour)
	addr := a.socket(t, "workload")
	src := open(t, certs.Config{EndpointSocket: addr, TrustDomains: []string{"named.test"}})
	if _, err := src.GetX509BundleForTrustDomain(named.TrustDomain()); !errors.Is(err, certs.ErrUntrusted) || !strings.Contains(err.Error(), "has arrived") {
		t.Errorf("allowed, but not federated yet: %v", err)
	}
	if err := errors.Join(a.AddFederatedBundle(named.Bundle()), a.AddFederatedBundle(unnamed.Bundle())); err != nil {
		t.Fatal(err)
	}
	verifier := certs.NewPeerVerifier(src, 0)
	check := func(of *authority) error {
		svid, err := of.Mint(spiffeid.RequireFromPath(of.TrustDomain(), "/x"), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		_, err = verifier.Check(svid.Certificates, time.Now())
		return err
	}
	eventually(t, src, "members of the named trust domain are admitted", func() bool { return check(named) == nil })
	if err := check(unnamed); !errors.Is(err, certs.ErrUntrusted) || !strings.Contains(err.Error(), "not allowed here") {
		t.Errorf("federated, but not named: %v", err)
	}
	if _, err := src.GetX509BundleForTrustDomain(unnamed.TrustDomain()); !errors.Is(err, certs.ErrUntrusted) {
		t.Errorf("bundle of a trust domain that is not named: %v", err)
	}
	if _, err := src.GetJWTBundleForTrustDomain(unnamed.TrustDomain()); !errors.Is(err, certs.ErrUntrusted) {
		t.Errorf("JWT bundle of a trust domain that is not named: %v", err)
	}
	eventually(t, src, "the JWT bundle of the named one arrives", func() bool {
		_, err := src.GetJWTBundleForTrustDomain(named.TrustDomain())
		return err == nil
	})
	if err := a.RemoveFederatedBundle(named.TrustDomain()); err != nil {
		t.Fatal(err)
	}
	eventually(t, src, "the end of the federation is noticed", func() bool { return errors.Is(check(named), certs.ErrUntrusted) })
}

func TestWorkloadAPISourceOutlivesTheAuthority(t *testing.T) {
	dir := t.TempDir()
	a := startAuthority(t, dir, "td.test", time.Hour)
	addr := a.socket(t, "workload")
	src := open(t, certs.Config{EndpointSocket: addr})
	first, err := src.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	version := src.BundleVersion()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, src, "the loss is reported", func() bool { return errors.Is(src.Health(), certs.ErrUnavailable) })
	if svid, err := src.GetX509SVID(); err != nil || svid != first {
		t.Errorf("the last good SVID does not go on: %v", err)
	}
	startAuthority(t, dir, "td.test", time.Hour).socket(t, "workload")
	eventually(t, src, "it is renewed after the restart", func() bool {
		svid, err := src.GetX509SVID()
		return err == nil && svid != first && src.Health() == nil
	})
	if src.BundleVersion() != version {
		t.Error("the restart changed the bundle: the authority was not kept")
	}
}

func TestOpenSaysThatNobodyAnswers(t *testing.T) {
	addr := "unix://" + filepath.Join(t.TempDir(), "none.sock")
	src, err := certs.Open(t.Context(), certs.Config{EndpointSocket: addr, ConnectTimeout: 100 * time.Millisecond})
	if src != nil || !errors.Is(err, certs.ErrUnavailable) || !strings.Contains(err.Error(), "none.sock") {
		t.Errorf("no agent: %v; want ErrUnavailable and the address", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := certs.Open(ctx, certs.Config{EndpointSocket: addr}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("context ended: %v; want DeadlineExceeded", err)
	}
}

// denier is an agent that knows nobody.
type denier struct {
	workloadpb.UnimplementedSpiffeWorkloadAPIServer
}

func (denier) FetchX509SVID(*workloadpb.X509SVIDRequest, grpc.ServerStreamingServer[workloadpb.X509SVIDResponse]) error {
	return status.Error(codes.PermissionDenied, "no identity issued")
}

func TestOpenSaysThatThereIsNoIdentity(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	workloadpb.RegisterSpiffeWorkloadAPIServer(server, denier{})
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	_, err = certs.Open(t.Context(), certs.Config{EndpointSocket: "unix://" + path, ConnectTimeout: 200 * time.Millisecond})
	if !errors.Is(err, certs.ErrNoIdentity) || !strings.Contains(err.Error(), "register this workload") {
		t.Errorf("unregistered: %v; want ErrNoIdentity", err)
	}
	server.Stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSourceSaysWhenItsOwnCertificateIsNotValid(t *testing.T) {
	dir, ca := t.TempDir(), xtest.NewCA(t, "td.test")
	xtest.WriteFiles(t, dir, ca.Issue(t, xtest.Leaf{ID: workload}), ca.Certificate)
	for _, tc := range []struct {
		off  time.Duration
		want error
		text string
	}{
		{-time.Hour, certs.ErrNotYetValid, "this machine's clock looks slow"},
		{2 * time.Hour, certs.ErrExpired, "this machine's clock looks fast"},
	} {
		cfg := fileConfig(dir)
		cfg.Now = func() time.Time { return time.Now().Add(tc.off) }
		_, err := certs.Open(t.Context(), cfg)
		if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("files, clock off by %s: %v", tc.off, err)
		}
	}
	a := newAuthority(t, "td.test", time.Hour)
	src := open(t, certs.Config{EndpointSocket: a.socket(t, "workload"), Now: func() time.Time { return time.Now().Add(2 * time.Hour) }})
	for _, err := range []error{src.Health(), func() error { _, err := src.GetX509SVID(); return err }()} {
		if !errors.Is(err, certs.ErrExpired) || !strings.Contains(err.Error(), "clock looks fast") {
			t.Errorf("Workload API, clock two hours fast: %v", err)
		}
	}
}
