package client

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/bulla-project/bulla/certs"
)

// exporterLabel is RFC 9266's tls-exporter channel binding.
const exporterLabel = "EXPORTER-Channel-Binding"

// maxKept is how many unspent nonces of a connection are kept.
const maxKept = 256

// channel is one TLS connection as the client sees it. Nonces and the binding of the instance key belong to
// it and end with it.
type channel struct {
	credentials.TLSInfo
	conn     net.Conn
	exporter [32]byte
	leaf     *x509.Certificate
	key      crypto.Signer // of leaf

	mu     sync.Mutex // guards what follows
	nonces [][32]byte
	bound  bool
}

// take returns an unspent nonce.
func (ch *channel) take() ([32]byte, bool) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if len(ch.nonces) == 0 || !ch.bound {
		return [32]byte{}, false
	}
	n := ch.nonces[len(ch.nonces)-1]
	ch.nonces = ch.nonces[:len(ch.nonces)-1]
	return n, true
}

// keep stores a nonce that came with a reply.
func (ch *channel) keep(nonce []byte) {
	if len(nonce) != 32 {
		return
	}
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if len(ch.nonces) < maxKept {
		ch.nonces = append(ch.nonces, [32]byte(nonce))
	}
}

func (ch *channel) setBound() {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.bound = true
}

func (ch *channel) isBound() bool {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.bound
}

// wire is TLS client credentials that make a channel of each handshake and remember the newest one and the
// newest failure.
type wire struct {
	source   *certs.Source
	serverID spiffeid.ID

	mu      sync.Mutex // guards what follows
	current *channel
	failure error
}

func newWire(source *certs.Source, serverID spiffeid.ID) *wire {
	return &wire{source: source, serverID: serverID}
}

// ClientHandshake implements credentials.TransportCredentials.
func (w *wire) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cfg := certs.ClientTLS(w.source, w.serverID)
	var shown *tls.Certificate
	get := cfg.GetClientCertificate
	cfg.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		c, err := get(r)
		shown = c
		return c, err
	}
	secured, info, err := credentials.NewTLS(cfg).ClientHandshake(ctx, authority, raw)
	if err == nil {
		var ch *channel
		if ch, err = newChannel(secured, info, shown); err == nil {
			w.set(ch, nil)
			return secured, ch, nil
		}
		_ = secured.Close()
	}
	w.set(nil, err)
	return nil, nil, err
}

func newChannel(conn net.Conn, info credentials.AuthInfo, shown *tls.Certificate) (*channel, error) {
	tlsInfo, ok := info.(credentials.TLSInfo)
	if !ok || shown == nil {
		return nil, errors.New("the broker did not ask for a client certificate")
	}
	key, ok := shown.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("the SVID's key can't sign")
	}
	leaf, err := x509.ParseCertificate(shown.Certificate[0])
	if err != nil {
		return nil, err
	}
	exporter, err := tlsInfo.State.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		return nil, fmt.Errorf("channel binding: %w", err)
	}
	return &channel{TLSInfo: tlsInfo, conn: conn, exporter: [32]byte(exporter), leaf: leaf, key: key}, nil
}

func (w *wire) set(ch *channel, failure error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.current, w.failure = ch, failure
}

func (w *wire) channel() *channel {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.current
}

// drop forgets a channel that turned out to be gone.
func (w *wire) drop(ch *channel) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.current == ch {
		w.current = nil
	}
}

// unary ends a connection whose certificate the broker does not take any more: the SVID has ended or its
// authority is gone. gRPC would go on using the connection, and each call on it would be refused; the next one
// connects with the SVID of then.
func (w *wire) unary(ctx context.Context, method string, in, out any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	var p peer.Peer
	err := invoke(ctx, method, in, out, cc, append(opts[:len(opts):len(opts)], grpc.Peer(&p))...)
	w.giveUp(&p, err)
	return err
}

// giveUp closes the connection that a call went over if its answer says that the certificate is not taken any more.
func (w *wire) giveUp(p *peer.Peer, err error) {
	var refused *Refusal
	if ch, ok := p.AuthInfo.(*channel); ok && errors.As(FromStatus(err), &refused) && refused.Code == codes.Unauthenticated && refused.Check == "identity" {
		w.drop(ch)
		_ = ch.conn.Close() // it is given up either way
	}
}

// cause is why the last handshake failed, if it did.
func (w *wire) cause() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failure
}

// ServerHandshake implements credentials.TransportCredentials; a client has none.
func (w *wire) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("client: internal error: a client accepts no connections")
}

// Info implements credentials.TransportCredentials.
func (w *wire) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials. The copy is the same: gRPC clones what it is given, and
// the client has to see the channels.
func (w *wire) Clone() credentials.TransportCredentials { return w }

// OverrideServerName implements credentials.TransportCredentials; SPIFFE knows no server names.
func (w *wire) OverrideServerName(string) error { return nil }

func connectParams(timeout time.Duration) grpc.ConnectParams {
	return grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
		MinConnectTimeout: timeout,
	}
}
