package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/certs/xtest"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const broker = "spiffe://td.test/bulla/broker"

// handshake runs one connection over loopback and returns what both ends say of it. After the handshake one byte goes each
// way, since in TLS 1.3 a client learns of its refusal at the first read.
func handshake(t testing.TB, server, client *tls.Config) (state tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer func() { _ = conn.Close() }()
		c := tls.Server(conn, server)
		if err := c.Handshake(); err != nil {
			done <- err
			return
		}
		_, err = io.Copy(c, io.LimitReader(c, 1))
		done <- err
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	c := tls.Client(conn, client)
	clientErr = c.Handshake()
	if clientErr == nil {
		_, clientErr = c.Write([]byte{1})
		if clientErr == nil {
			_, clientErr = io.ReadFull(c, make([]byte, 1))
		}
	}
	state = c.ConnectionState()
	_ = conn.Close()
	return state, <-done, clientErr
}

// rawClient is a client that keeps no rule: it presents svid (nil: nothing) to anybody.
func rawClient(svid *x509svid.SVID) *tls.Config {
	cfg := &tls.Config{InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(8), ServerName: "broker"}
	if svid != nil {
		c := tls.Certificate{PrivateKey: svid.PrivateKey}
		for _, cert := range svid.Certificates {
			c.Certificate = append(c.Certificate, cert.Raw)
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }
	}
	return cfg
}

func TestTLSBothSidesAgree(t *testing.T) {
	a := newAuthority(t, "td.test", time.Hour)
	server := open(t, certs.Config{EndpointSocket: a.socket(t, "bulla/broker")})
	client := open(t, certs.Config{EndpointSocket: a.socket(t, "workload")})
	state, serverErr, clientErr := handshake(t, certs.ServerTLS(server), certs.ClientTLS(client, spiffeid.RequireFromString(broker)))
	if serverErr != nil || clientErr != nil {
		t.Fatal(serverErr, clientErr)
	}
	if state.Version != tls.VersionTLS13 || state.CurveID != tls.X25519MLKEM768 || state.DidResume {
		t.Errorf("version %x, group %s, resumed %t", state.Version, state.CurveID, state.DidResume)
	}
}

func TestServerTLSRefusesStrangers(t *testing.T) {
	ca, other := xtest.NewCA(t, "td.test"), xtest.NewCA(t, "other.test")
	server, _ := fileSource(t, ca)
	cfg := certs.ServerTLS(server)
	clients := misuse(t, ca)
	clients["no certificate"] = nil
	clients["a foreign trust domain"] = other.Issue(t, xtest.Leaf{ID: "spiffe://other.test/workload"})
	clients["a namesake's authority"] = xtest.NewCA(t, "td.test").Issue(t, xtest.Leaf{ID: workload})
	clients["an expired certificate"] = ca.Issue(t, xtest.Leaf{ID: workload, NotAfter: time.Now().Add(-time.Second)})
	clients["a certificate of tomorrow"] = ca.Issue(t, xtest.Leaf{ID: workload, From: time.Now().Add(time.Hour), NotAfter: time.Now().Add(2 * time.Hour)})
	for name, svid := range clients {
		if _, serverErr, clientErr := handshake(t, cfg, rawClient(svid)); serverErr == nil || clientErr == nil {
			t.Errorf("%s: was let in (server %v, client %v)", name, serverErr, clientErr)
		}
	}
	if _, serverErr, clientErr := handshake(t, cfg, rawClient(ca.Issue(t, xtest.Leaf{ID: workload}))); serverErr != nil || clientErr != nil {
		t.Errorf("a good one: server %v, client %v", serverErr, clientErr)
	}
	old := rawClient(ca.Issue(t, xtest.Leaf{ID: workload}))
	old.MaxVersion = tls.VersionTLS12
	if _, serverErr, _ := handshake(t, cfg, old); serverErr == nil {
		t.Error("TLS 1.2 was taken")
	}
}

// A client that resumes would show no certificate again. The server gives no tickets; and even where another
// configuration gave one under the same keys, VerifyConnection asks the current bundle.
func TestServerTLSNeverResumes(t *testing.T) {
	ca, next := xtest.NewCA(t, "td.test"), xtest.NewCA(t, "td.test")
	server, dir := fileSource(t, ca)
	client := rawClient(ca.Issue(t, xtest.Leaf{ID: workload}))
	cfg := certs.ServerTLS(server)
	for range 2 {
		if state, serverErr, clientErr := handshake(t, cfg, client); serverErr != nil || clientErr != nil || state.DidResume {
			t.Fatalf("server %v, client %v, resumed %t", serverErr, clientErr, state.DidResume)
		}
	}
	generous := certs.ServerTLS(server)
	generous.SessionTicketsDisabled = false
	if state, _, _ := handshake(t, generous, client); state.DidResume {
		t.Fatal("resumed without a ticket")
	}
	if state, serverErr, _ := handshake(t, generous, client); serverErr != nil || !state.DidResume {
		t.Fatalf("this test needs a resumption to judge: %v, resumed %t", serverErr, state.DidResume)
	}
	writeBundle(t, dir, next.Certificate)
	eventually(t, server, "the authority is revoked", func() bool {
		bundle, err := server.GetX509BundleForTrustDomain(ca.TrustDomain)
		return err == nil && !bundle.HasX509Authority(ca.Certificate)
	})
	if _, serverErr, _ := handshake(t, generous, client); serverErr == nil || !strings.Contains(serverErr.Error(), "no path to an authority") {
		t.Errorf("resumption after a revocation: %v", serverErr)
	}
}

func TestClientTLSTalksToOneServerOnly(t *testing.T) {
	ca := xtest.NewCA(t, "td.test")
	client, _ := fileSource(t, ca)
	serve := func(svid *x509svid.SVID) *tls.Config {
		cfg := &tls.Config{ClientAuth: tls.RequestClientCert}
		c := tls.Certificate{PrivateKey: svid.PrivateKey}
		for _, cert := range svid.Certificates {
			c.Certificate = append(c.Certificate, cert.Raw)
		}
		cfg.Certificates = []tls.Certificate{c}
		return cfg
	}
	pinned := certs.ClientTLS(client, spiffeid.RequireFromString(broker))
	if _, serverErr, clientErr := handshake(t, serve(ca.Issue(t, xtest.Leaf{ID: broker})), pinned); serverErr != nil || clientErr != nil {
		t.Fatal(serverErr, clientErr)
	}
	for name, tc := range map[string]struct {
		svid *x509svid.SVID
		want error
	}{
		"another workload of the trust domain": {ca.Issue(t, xtest.Leaf{ID: workload}), certs.ErrUnexpectedID},
		"an ID below the broker's":             {ca.Issue(t, xtest.Leaf{ID: broker + "/x"}), certs.ErrUnexpectedID},
		"two URI SANs, one of them right":      {ca.Issue(t, xtest.Leaf{URIs: []string{broker, workload}}), certs.ErrUntrusted},
		"a namesake's authority":               {xtest.NewCA(t, "td.test").Issue(t, xtest.Leaf{ID: broker}), certs.ErrUntrusted},
		"the broker of a foreign trust domain": {xtest.NewCA(t, "other.test").Issue(t, xtest.Leaf{ID: "spiffe://other.test/bulla/broker"}), certs.ErrUntrusted},
		"an expired certificate":               {ca.Issue(t, xtest.Leaf{ID: broker, NotAfter: time.Now().Add(-time.Second)}), certs.ErrExpired},
	} {
		if _, _, clientErr := handshake(t, serve(tc.svid), pinned); !errors.Is(clientErr, tc.want) {
			t.Errorf("%s: %v; want %v", name, clientErr, tc.want)
		}
	}
	if _, _, clientErr := handshake(t, serve(ca.Issue(t, xtest.Leaf{ID: broker})), certs.ClientTLS(client, spiffeid.ID{})); !errors.Is(clientErr, certs.ErrUnexpectedID) {
		t.Errorf("without a pin: %v; want ErrUnexpectedID", clientErr)
	}
}

// healthServer serves gRPC's health service, and judges the peer's certificate at each call.
func healthServer(t testing.TB, src *certs.Source) (addr string) {
	t.Helper()
	verifier := certs.NewPeerVerifier(src, 0)
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(certs.ServerTLS(src))),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			if _, err := verifier.Check(peerChain(ctx), time.Now()); err != nil {
				return nil, status.Error(codes.Unauthenticated, err.Error())
			}
			return handle(ctx, req)
		}))
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func peerChain(ctx context.Context) []*x509.Certificate {
	p, _ := peer.FromContext(ctx)
	info, _ := p.AuthInfo.(credentials.TLSInfo)
	return info.State.PeerCertificates
}

func dial(t testing.TB, addr string, src *certs.Source) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(certs.ClientTLS(src, spiffeid.RequireFromString(broker)))))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func call(ctx context.Context, conn *grpc.ClientConn) error {
	_, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	return err
}

func TestHeldConnectionEndsWithItsAuthority(t *testing.T) {
	a := newAuthority(t, "td.test", time.Hour)
	old := a.Authorities()[0].ID
	server := open(t, certs.Config{EndpointSocket: a.socket(t, "bulla/broker")})
	addr := healthServer(t, server)
	client := open(t, certs.Config{EndpointSocket: a.socket(t, "workload")})
	held := dial(t, addr, client)
	defer func() { _ = held.Close() }()
	if err := call(t.Context(), held); err != nil {
		t.Fatal(err)
	}
	if _, err := a.RotateAuthority(); err != nil {
		t.Fatal(err)
	}
	if err := call(t.Context(), held); err != nil {
		t.Errorf("after the rotation: %v", err)
	}
	if err := a.RevokeAuthority(old); err != nil {
		t.Fatal(err)
	}
	eventually(t, server, "the held connection is refused", func() bool { return status.Code(call(t.Context(), held)) == codes.Unauthenticated })
	eventually(t, client, "a new connection with the renewed SVID works", func() bool {
		fresh := dial(t, addr, client)
		defer func() { _ = fresh.Close() }()
		return call(t.Context(), fresh) == nil
	})
}

func TestHeldConnectionEndsWithItsCertificate(t *testing.T) {
	ca := xtest.NewCA(t, "td.test")
	server, _ := fileSource(t, ca)
	dir := t.TempDir()
	xtest.WriteFiles(t, dir, ca.Issue(t, xtest.Leaf{ID: workload, NotAfter: time.Now().Add(2 * time.Second)}), ca.Certificate)
	client := open(t, fileConfig(dir))
	conn := dial(t, healthServer(t, server), client)
	defer func() { _ = conn.Close() }()
	if err := call(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	eventually(t, client, "the call is refused once the certificate ended", func() bool {
		err := call(t.Context(), conn)
		return status.Code(err) == codes.Unauthenticated && strings.Contains(err.Error(), "expired")
	})
}

// Both ends renew every second and the authority rotates and revokes, while connections come and go and calls
// run on held ones: not one of them may fail.
func TestRotationUnderLoadLosesNoRequest(t *testing.T) {
	a := newAuthority(t, "td.test", 2*time.Second)
	server := open(t, certs.Config{EndpointSocket: a.socket(t, "bulla/broker")})
	addr := healthServer(t, server)
	client := open(t, certs.Config{EndpointSocket: a.socket(t, "workload")})

	ctx, stop := context.WithCancel(t.Context())
	var calls atomic.Int64
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil {
				conn := dial(t, addr, client)
				for range 20 { // far less than a lifetime
					if err := call(t.Context(), conn); err != nil {
						t.Errorf("after %d calls: %v", calls.Load(), err)
						stop()
						break
					}
					calls.Add(1)
				}
				_ = conn.Close()
			}
		})
	}
	defer load.Wait()
	defer stop()
	for range 2 {
		old := a.Authorities()[0].ID
		next, err := a.RotateAuthority()
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, client, "both ends use the new authority", func() bool {
			return ctx.Err() != nil || signedBy(t, server, next) && signedBy(t, client, next)
		})
		seen := calls.Load()
		eventually(t, client, "connections of the old SVIDs have ended", func() bool { return ctx.Err() != nil || calls.Load() > seen+200 })
		if err := a.RevokeAuthority(old); err != nil {
			t.Fatal(err)
		}
	}
	if calls.Load() < 400 {
		t.Errorf("only %d calls: no load", calls.Load())
	}
}

func signedBy(t testing.TB, src *certs.Source, authority string) bool {
	t.Helper()
	svid, err := src.GetX509SVID()
	if err != nil {
		t.Error(err)
		return false
	}
	return svid.Certificates[0].Issuer.SerialNumber == authority
}
