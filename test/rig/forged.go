package rig

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"path/filepath"
	"testing/fstest"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/certs/xtest"
	reqproof "github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/policy"
)

// CA is the signing authority of the rig's trust domain, to sign what the authority itself never would.
func (r *Rig) CA() *xtest.CA {
	r.t.Helper()
	return xtest.LoadDevCA(r.t, filepath.Join(r.Dir, "authority"))
}

// Showing is the TLS configuration of a client of the rig's broker that shows svid, whatever it is; nil: none.
func (r *Rig) Showing(svid *x509svid.SVID) *tls.Config {
	r.t.Helper()
	cfg := certs.ClientTLS(r.Source("workload"), ID("bulla/broker"))
	shown := &tls.Certificate{}
	if svid != nil {
		shown.PrivateKey = svid.PrivateKey
		for _, c := range svid.Certificates {
			shown.Certificate = append(shown.Certificate, c.Raw)
		}
	}
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return shown, nil }
	return cfg
}

// Reach is Dial, and waits until the broker has taken the connection: it may have to learn of an authority.
func (r *Rig) Reach(cfg *tls.Config) *grpc.ClientConn {
	r.t.Helper()
	conn := r.Dial(cfg)
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	for {
		state := conn.GetState()
		if state == connectivity.Ready {
			return conn
		}
		conn.Connect()
		if !conn.WaitForStateChange(ctx, state) {
			r.t.Fatalf("the broker did not take the connection: %s", state)
		}
	}
}

// RawSVID is RawWith with an SVID of the test's own.
func (r *Rig) RawSVID(svid *x509svid.SVID, key *ecdsa.PrivateKey) *Raw {
	r.t.Helper()
	conn := r.Reach(r.Showing(svid))
	w := &Raw{
		Conn: conn, Broker: bullav1.NewBrokerClient(conn), Key: key, Name: reqproof.Thumbprint(&key.PublicKey),
		Leaf: svid.Certificates[0], SVIDKey: svid.PrivateKey, ID: svid.ID.String(), t: r.t, now: time.Now,
	}
	w.Challenge(nil)
	if err := w.Bind(); err != nil {
		r.t.Fatal(err)
	}
	return w
}

// Credentials are those that w connected with, for another server.
func (w *Raw) Credentials() credentials.TransportCredentials {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true} // whom it talks to is for the test to know
	cfg.Certificates = []tls.Certificate{{Certificate: [][]byte{w.Leaf.Raw}, PrivateKey: w.SVIDKey}}
	return credentials.NewTLS(cfg)
}

// Archive is the development policy as edit leaves it, packed.
func (r *Rig) Archive(edit func(files map[string]string)) []byte {
	r.t.Helper()
	files := PolicyFiles(r.t)
	edit(files)
	m := fstest.MapFS{}
	for name, text := range files {
		m[name] = &fstest.MapFile{Data: []byte(text), Mode: 0o600}
	}
	archive, err := policy.Pack(m)
	if err != nil {
		r.t.Fatal(err)
	}
	return archive
}

// Push activates the development policy as edit leaves it.
func (r *Rig) Push(edit func(files map[string]string)) *bullav1.Revision {
	r.t.Helper()
	rev, err := bullav1.NewPoliciesClient(r.Client("security").Conn()).PushRevision(r.t.Context(), &bullav1.PushRevisionRequest{Archive: r.Archive(edit)})
	if err != nil {
		r.t.Fatal(err)
	}
	return rev
}
