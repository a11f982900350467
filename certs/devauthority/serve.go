package devauthority

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	maxSocketPath = 104      // bytes; 108 on Linux, 104 elsewhere
	maxRequest    = 64 << 10 // bytes
	maxStreams    = 256      // on one connection

	securityHeader = "workload.spiffe.io" // Workload API: without it, a request may come from a browser or proxy that was tricked
)

// endpoint is one socket and the identity behind it.
type endpoint struct {
	id     spiffeid.ID
	path   string
	server *grpc.Server

	current *issued // guarded by Authority.mu
}

// Serve gives identity to whoever opens socketPath, and returns once the socket takes connections. The address for
// SPIFFE_ENDPOINT_SOCKET is "unix://" + socketPath. A stale socket in its place is removed; a living one, or anything else,
// is an error. It goes on until Close.
func (a *Authority) Serve(identity spiffeid.ID, socketPath string) error {
	if err := a.checkMember(identity); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrClosed
	}
	now := a.cfg.Now()
	first, err := a.keys.signer(now).issueX509(identity, now, a.cfg.TTL)
	if err != nil {
		return err
	}
	listener, err := a.listen(socketPath)
	if err != nil {
		return err
	}
	ep := &endpoint{id: identity, path: socketPath, current: first}
	ep.server = grpc.NewServer(
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.WaitForHandlers(true),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			if err := checkHeader(ctx); err != nil {
				return nil, err
			}
			return handle(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			if err := checkHeader(stream.Context()); err != nil {
				return err
			}
			return handle(srv, stream)
		}))
	workload.RegisterSpiffeWorkloadAPIServer(ep.server, &service{authority: a, endpoint: ep})
	a.endpoints = append(a.endpoints, ep)
	a.tasks.Go(func() {
		if err := ep.server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			a.cfg.Log.Error("Workload API socket failed", "path", socketPath, "error", err)
		}
	})
	a.tasks.Go(func() { a.renew(ep) })
	a.cfg.Log.Info("Workload API is served", "spiffe_id", identity.String(), "path", socketPath)
	return nil
}

// stop ends the server with all its streams, and waits for their handlers.
func (ep *endpoint) stop() error {
	ep.server.Stop()
	if err := os.Remove(ep.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("devauthority: remove the socket: %w", err)
	}
	return nil
}

// listen opens a socket that only this user can use. Between its creation and chmod the umask decides who may connect;
// ownOnly turns away whoever slipped in.
func (a *Authority) listen(path string) (net.Listener, error) {
	if path == "" || len(path) > maxSocketPath {
		return nil, fmt.Errorf("%w: socket path of %d bytes, the most is %d: choose a shorter directory (%s)", ErrConfig, len(path), maxSocketPath, path)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrConfig, err), l.Close())
	}
	return &ownOnly{UnixListener: l, log: a.cfg.Log}, nil
}

// removeStale removes a socket that nobody listens on.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("%w: %w", ErrConfig, err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%w: %s exists and is no socket: it is left alone, choose another path", ErrConfig, path)
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = conn.Close()
		return fmt.Errorf("%w: somebody serves %s already", ErrConfig, path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return nil
}

// checkHeader wants the security header, with exactly the value true (SPIFFE Workload Endpoint, section 3).
func checkHeader(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if values := md.Get(securityHeader); len(values) != 1 || values[0] != "true" {
		return status.Error(codes.InvalidArgument, "the metadata "+securityHeader+": true is missing")
	}
	return nil
}

// renew keeps the SVID of an endpoint fresh until Close.
func (a *Authority) renew(ep *endpoint) {
	for {
		a.mu.Lock()
		current := ep.current
		a.mu.Unlock()
		if !a.sleepUntilRenewal(current) {
			return
		}
		if err := a.replace(ep, current); err != nil {
			a.cfg.Log.Error("SVID can't be renewed", "spiffe_id", ep.id.String(), "error", err)
		}
	}
}

// sleepUntilRenewal waits for half of the lifetime ±10 %. It looks at the clock now and then instead of relying on one
// long timer, since timers stand still while a laptop sleeps. It is false when the Authority closes.
func (a *Authority) sleepUntilRenewal(current *issued) bool {
	delay := renewalDelay(a.cfg.TTL)
	for begin := time.Now(); ; {
		left := delay - time.Since(begin)
		if left <= 0 || a.cfg.Now().Sub(current.at) >= delay {
			return true
		}
		timer := time.NewTimer(min(left, 5*time.Second))
		select {
		case <-timer.C:
		case <-a.done:
			timer.Stop()
			return false
		}
	}
}

// replace gives ep a new SVID in place of old, unless old is gone already.
func (a *Authority) replace(ep *endpoint, old *issued) error {
	now := a.cfg.Now()
	fresh, err := a.view().keys.signer(now).issueX509(ep.id, now, a.cfg.TTL)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if ep.current != old || !a.keys.maySign(fresh.signer) {
		return nil // a taint or revocation came first, and gave a better one
	}
	ep.current = fresh
	a.announce()
	return nil
}
