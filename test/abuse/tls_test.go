package abuse

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/certs/xtest"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/test/rig"
)

// resuming is a configuration that would resume a session if the server let it.
func resuming(cfg *tls.Config) *tls.Config {
	cfg.SessionTicketsDisabled, cfg.ClientSessionCache = false, tls.NewLRUClientSessionCache(8)
	cfg.ServerName, cfg.NextProtos = "broker", []string{"h2"}
	return cfg
}

// handshake connects and reads the server's first bytes, before which any session ticket would have come.
func handshake(t *testing.T, r *rig.Rig, cfg *tls.Config) (*tls.Conn, error) {
	t.Helper()
	raw, err := net.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
	conn := tls.Client(raw, cfg)
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.HandshakeContext(t.Context()); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(conn, make([]byte, 9)); err != nil {
		return nil, err
	}
	return conn, nil
}

func TestAbuse_A03_resumption(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	svid, err := r.Source("workload").GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	cfg := resuming(r.Showing(svid))
	for range 3 {
		conn, err := handshake(t, r, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if conn.ConnectionState().DidResume {
			t.Error("the session was resumed, so the certificate was not looked at")
		}
		_ = conn.Close()
	}
	old := r.Authority.Authorities()[0].ID
	if _, err := r.Authority.RotateAuthority(); err != nil {
		t.Fatal(err)
	}
	if err := r.Authority.RevokeAuthority(old); err != nil {
		t.Fatal(err)
	}
	r.Reach(certs.ClientTLS(r.Source("workload"), rig.ID("bulla/broker"))) // the broker knows of it
	// The broker's own certificate is a new one; this client would still take the old one, and it takes anything.
	cfg.VerifyConnection = func(tls.ConnectionState) error { return nil }
	if _, err := handshake(t, r, cfg); err == nil {
		t.Error("after its authority was revoked the old certificate came in again")
	}
}

// A connection was opened in good order and is held. What the handshake saw is worth nothing later.
func TestAbuse_A41_held_connection(t *testing.T) {
	t.Parallel()
	t.Run("expired SVID", func(t *testing.T) {
		t.Parallel()
		var ahead atomic.Int64
		r := rig.Start(t, rig.Config{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
		r.Put("demo/a", "standard", "a")
		w := r.Raw("workload")
		prepared := signed(w, "demo/a", 2)
		if _, err := w.Broker.Deliver(t.Context(), prepared[0]); err != nil {
			t.Fatal(err)
		}
		ahead.Store(int64(time.Until(w.Leaf.NotAfter) + time.Second))
		reply, err := w.Broker.Deliver(t.Context(), prepared[1])
		wantCode(t, "a delivery after the SVID's end", err, codes.Unauthenticated, "identity")
		if reply != nil {
			t.Error("there is a reply")
		}
		_, err = w.Broker.Challenge(t.Context(), &bullav1.ChallengeRequest{})
		wantCode(t, "a challenge after the SVID's end", err, codes.Unauthenticated, "identity")
		_, err = bullav1.NewAuditClient(w.Conn).Prove(t.Context(), &bullav1.ProveRequest{})
		wantCode(t, "a proof after the SVID's end", err, codes.Unauthenticated, "identity")
	})
	t.Run("revoked authority", func(t *testing.T) {
		t.Parallel()
		r := rig.Start(t, rig.Config{})
		r.Put("demo/a", "standard", "a")
		w := r.Raw("workload")
		prepared := signed(w, "demo/a", 200)
		if _, err := w.Broker.Deliver(t.Context(), prepared[0]); err != nil {
			t.Fatal(err)
		}
		revoke(t, r)
		next := 1
		eventually(t, "a held connection is refused", func() bool { // once the broker has the new bundle
			_, err := w.Broker.Deliver(t.Context(), prepared[next])
			next++
			return status.Code(err) == codes.Unauthenticated && rig.Refusal(err).GetCheck() == "identity"
		})
		_, err := w.Broker.Deliver(t.Context(), prepared[next])
		wantCode(t, "a call after that", err, codes.Unauthenticated, "identity")
	})
	t.Run("stream, its permit taken", func(t *testing.T) {
		t.Parallel()
		r := rig.Start(t, rig.Config{})
		ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
		defer cancel()
		stream, err := bullav1.NewAuditClient(r.Client("auditor").Conn()).Tail(ctx, &bullav1.TailRequest{Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		r.Push(func(files map[string]string) {
			replaceIn(t, files, "data/members.yaml", "spiffe://dev.bulla.test/auditor: [auditor]", "spiffe://dev.bulla.test/auditor: []")
		})
		for err == nil {
			_, err = stream.Recv()
		}
		wantCode(t, "the stream ended", err, codes.PermissionDenied, "policy")
	})
	for name, busy := range map[string]bool{"stream, nothing to send": false, "stream, always more to send": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			heldStream(t, busy)
		})
	}
}

// revoke replaces the authority: SVIDs are renewed at once, and what it signed before is good for nothing.
func revoke(t *testing.T, r *rig.Rig) {
	t.Helper()
	old := r.Authority.Authorities()[0].ID
	if _, err := r.Authority.RotateAuthority(); err != nil {
		t.Fatal(err)
	}
	if err := r.Authority.RevokeAuthority(old); err != nil {
		t.Fatal(err)
	}
}

// heldStream follows the ledger with a certificate that stops to hold meanwhile.
func heldStream(t *testing.T, busy bool) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	svid, err := r.Source("auditor").GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
	defer cancel()
	stream, err := bullav1.NewAuditClient(r.Reach(r.Showing(svid))).Tail(ctx, &bullav1.TailRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	revoke(t, r)
	w := r.Client("workload")
	if busy {
		stop := make(chan struct{})
		done := make(chan struct{})
		defer func() { close(stop); <-done }()
		go func() {
			defer close(done)
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = w.Get(ctx, "demo/a") // each makes events; whether it succeeds is shown elsewhere
				}
			}
		}()
	}
	for err == nil {
		_, err = stream.Recv()
	}
	wantCode(t, "the stream ended", err, codes.Unauthenticated, "identity")
}

// An impostor has a good SVID of the trust domain, and the address that the client is told.
func TestAbuse_A43_impostor_broker(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	foreign := xtest.NewCA(t, rig.TrustDomain)
	for name, identity := range map[string]func() (*tls.Certificate, error){
		"another workload": func() (*tls.Certificate, error) { return shownBy(r.Source("stranger")) },
		"itself":           func() (*tls.Certificate, error) { return shownBy(r.Source("workload")) },
		"a path below": func() (*tls.Certificate, error) {
			return shown(r.CA().Issue(t, xtest.Leaf{ID: rig.ID("bulla/broker/x").String()})), nil
		},
		"the name by a foreign authority": func() (*tls.Certificate, error) {
			return shown(foreign.Issue(t, xtest.Leaf{ID: rig.ID("bulla/broker").String()})), nil
		},
		"the name, expired": func() (*tls.Certificate, error) {
			return shown(r.CA().Issue(t, xtest.Leaf{ID: rig.ID("bulla/broker").String(), From: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(-time.Second)})), nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			cert, err := identity()
			if err != nil {
				t.Fatal(err)
			}
			addr, calls := impostor(t, cert)
			c := r.Client("workload", func(c *client.Config) { c.Address = addr })
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if _, err := c.Get(ctx, "demo/a"); !errors.Is(err, client.ErrUnavailable) {
				t.Errorf("%v; want ErrUnavailable", err)
			}
			if _, err := bullav1.NewSecretsClient(c.Conn()).PutSecret(ctx, &bullav1.PutSecretRequest{Name: "demo/b", Value: []byte("canary")}); err == nil {
				t.Error("an operator's call was answered")
			}
			if n := calls.Load(); n != 0 {
				t.Errorf("%d calls were sent to the impostor", n)
			}
		})
	}
	// The same listener with the broker's own name gets calls: the test sees them.
	cert, err := shownBy(r.Source("bulla/broker"))
	if err != nil {
		t.Fatal(err)
	}
	addr, calls := impostor(t, cert)
	if _, err := r.Client("workload", func(c *client.Config) { c.Address = addr }).Get(t.Context(), "demo/a"); err == nil || calls.Load() == 0 {
		t.Errorf("with the broker's identity: %v, %d calls", err, calls.Load())
	}
}

func shownBy(src *certs.Source) (*tls.Certificate, error) {
	svid, err := src.GetX509SVID()
	if err != nil {
		return nil, err
	}
	return shown(svid), nil
}

// impostor is a gRPC server that counts the calls that reach it.
func impostor(t *testing.T, cert *tls.Certificate) (addr string, calls *atomic.Int64) {
	t.Helper()
	calls = new(atomic.Int64)
	s := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13})),
		grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
			calls.Add(1)
			return status.Error(codes.Internal, "caught")
		}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return l.Addr().String(), calls
}

// Clocks are an hour off, with SVIDs that end before and with SVIDs that outlast it: then only the envelope's own
// times are left to judge by.
func TestAbuse_A37_clocks(t *testing.T) {
	t.Parallel()
	const off = 61 * time.Minute
	shift := func(by time.Duration) func(*client.Config) {
		return func(c *client.Config) { c.Now = func() time.Time { return time.Now().Add(by) } }
	}
	t.Run("client", func(t *testing.T) {
		t.Parallel()
		r := rig.Start(t, rig.Config{})
		r.Put("demo/a", "standard", "a")
		refusedFor(t, r.Client("workload", shift(off)), client.ErrUnavailable, "this machine's clock looks fast")
		refusedFor(t, r.Client("workload", shift(-off)), client.ErrUnavailable, "this machine's clock looks slow")
		s := get(t, r.Client("workload", shift(-5*time.Second)), "demo/a", "a")
		if left := time.Until(s.Expires); left > time.Hour {
			t.Errorf("a client that is 5 s slow has a session for %s; the policy's bound is an hour", left)
		}
	})
	t.Run("client, long SVIDs", func(t *testing.T) {
		t.Parallel()
		r := rig.Start(t, rig.Config{SVIDTTL: 4 * time.Hour})
		r.Put("demo/a", "standard", "a")
		refusedFor(t, r.Client("workload", shift(off)), client.ErrVerification, "envelope has expired")
	})
	t.Run("broker fast", func(t *testing.T) {
		t.Parallel()
		brokerClock(t, off, client.ErrVerification, "")
	})
	t.Run("broker slow", func(t *testing.T) {
		t.Parallel()
		brokerClock(t, -off, client.ErrUnavailable, "this machine's clock looks slow")
	})
}

// brokerClock sets the broker's clock off after a delivery in good order; health is what the broker says of itself.
func brokerClock(t *testing.T, by time.Duration, want error, health string) {
	t.Helper()
	var now atomic.Int64
	r := rig.Start(t, rig.Config{SVIDTTL: 4 * time.Hour, Now: func() time.Time { return time.Now().Add(time.Duration(now.Load())) }})
	r.Put("demo/a", "standard", "a")
	c := r.Client("workload")
	get(t, c, "demo/a", "a")
	now.Store(int64(by))
	refusedFor(t, c, want, "")
	said := ""
	for _, check := range r.Server.Broker.Health(t.Context()) {
		if check.Err != nil {
			said += check.Err.Error()
		}
	}
	if !strings.Contains(said, health) {
		t.Errorf("the broker says of itself %q; want %q", said, health)
	}
	now.Store(0)
	for _, e := range r.Events() {
		if issued, ok := body(e); ok && issued.Expires.Time().Sub(e.Time.Time()) > time.Hour {
			t.Errorf("a session for %s; the policy's bound is an hour", issued.Expires.Time().Sub(e.Time.Time()))
		}
	}
}

// refusedFor wants a clear error.
func refusedFor(t *testing.T, c *client.Client, want error, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	s, err := c.Get(ctx, "demo/a")
	if s != nil || !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
		t.Errorf("%v, %v; want %v and %q", s, err, want, text)
	}
}
