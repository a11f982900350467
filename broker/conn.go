package broker

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

const (
	// exporterLabel is RFC 9266's tls-exporter channel binding.
	exporterLabel = "EXPORTER-Channel-Binding"
	// maxNonces is how many nonces may be outstanding on one connection: the calls in flight.
	maxNonces = 256
	// maxInstances is how many instance keys one connection may speak for.
	maxInstances = 4
)

// instance is an instance key that an SVID of this connection vouched for.
type instance struct {
	thumbprint string
	public     *ecdsa.PublicKey
	spki       []byte
	notAfter   time.Time
	binding    []byte // the SVID's word, as evidence for others
}

// conn is what the broker knows about one TLS connection. It is the connection's gRPC AuthInfo, so that
// it lives and dies with it: a nonce is good on this connection and nowhere else.
type conn struct {
	credentials.TLSInfo
	chain    []*x509.Certificate
	peer     string // the URI of the leaf, as the handshake verified it: for limits only, never for identity
	exporter [32]byte

	mu        sync.Mutex // guards what follows
	nonces    map[[32]byte]struct{}
	instances map[string]instance
}

// next gives out a fresh nonce. When too many are outstanding, one of them makes room: a client that lets
// replies go by loses nonces, and nobody else does.
func (c *conn) next() []byte {
	var n [32]byte
	_, _ = rand.Read(n[:]) // never fails since Go 1.24
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.nonces) >= maxNonces {
		for old := range c.nonces {
			delete(c.nonces, old)
			break
		}
	}
	c.nonces[n] = struct{}{}
	return n[:]
}

// consume spends a nonce and reports whether it was outstanding.
func (c *conn) consume(n [32]byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.nonces[n]
	delete(c.nonces, n)
	return ok
}

// bind admits an instance key; the one that ends first makes room.
func (c *conn) bind(in instance) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.instances[in.thumbprint]; !known && len(c.instances) >= maxInstances {
		var oldest string
		for t, other := range c.instances {
			if oldest == "" || other.notAfter.Before(c.instances[oldest].notAfter) {
				oldest = t
			}
		}
		delete(c.instances, oldest)
	}
	c.instances[in.thumbprint] = in
}

func (c *conn) instance(thumbprint string) (instance, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	in, ok := c.instances[thumbprint]
	return in, ok
}

// transport is TLS server credentials that make a conn of each handshake, and let only so many
// handshakes run at once: they are the dearest thing that a stranger can ask for.
type transport struct {
	credentials.TransportCredentials
	handshakes chan struct{}
	wait       time.Duration
	strangers  *connSlots
}

var errBusy = errors.New("too many TLS handshakes at once")

// turn is a connection that holds a slot during its handshake only while there is something to compute: it
// gives it back while it waits for its peer. Otherwise a few strangers who connect and say nothing would keep
// everybody out.
type turn struct {
	net.Conn
	slots   chan struct{}
	shaking atomic.Bool
}

// Read implements net.Conn.
func (c *turn) Read(b []byte) (int, error) {
	if !c.shaking.Load() {
		return c.Conn.Read(b)
	}
	<-c.slots
	defer func() { c.slots <- struct{}{} }()
	return c.Conn.Read(b)
}

// ServerHandshake implements credentials.TransportCredentials.
func (t *transport) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	host := hostOf(raw.RemoteAddr())
	if !t.strangers.take(host) {
		return nil, nil, errBusy
	}
	defer t.strangers.free(host)
	timer := time.NewTimer(t.wait)
	defer timer.Stop()
	select {
	case t.handshakes <- struct{}{}:
		defer func() { <-t.handshakes }()
	case <-timer.C:
		return nil, nil, errBusy
	}
	working := &turn{Conn: raw, slots: t.handshakes}
	working.shaking.Store(true)
	secured, info, err := t.TransportCredentials.ServerHandshake(working)
	working.shaking.Store(false)
	if err != nil {
		return nil, nil, err
	}
	tlsInfo, ok := info.(credentials.TLSInfo)
	if !ok || len(tlsInfo.State.PeerCertificates) == 0 {
		_ = secured.Close()
		return nil, nil, errors.New("handshake without a client certificate")
	}
	exporter, err := tlsInfo.State.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		_ = secured.Close()
		return nil, nil, fmt.Errorf("channel binding: %w", err)
	}
	leaf := tlsInfo.State.PeerCertificates[0]
	peer := ""
	if len(leaf.URIs) > 0 {
		peer = leaf.URIs[0].String()
	}
	return secured, &conn{
		TLSInfo: tlsInfo, chain: tlsInfo.State.PeerCertificates, peer: peer, exporter: [32]byte(exporter),
		nonces: map[[32]byte]struct{}{}, instances: map[string]instance{},
	}, nil
}

// Clone implements credentials.TransportCredentials.
func (t *transport) Clone() credentials.TransportCredentials {
	return &transport{TransportCredentials: t.TransportCredentials.Clone(), handshakes: t.handshakes, wait: t.wait, strangers: t.strangers}
}

// connOf returns the connection that a call came over, and the peer's address.
func connOf(ctx context.Context) (*conn, net.Addr, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, nil, errors.New("call without a peer")
	}
	c, ok := p.AuthInfo.(*conn)
	if !ok {
		return nil, nil, errors.New("call without mutual TLS")
	}
	return c, p.Addr, nil
}
