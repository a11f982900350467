package certs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	firstRetry = 100 * time.Millisecond // after the first failure of a watch; doubled at each further one
	lastRetry  = 5 * time.Second        // and no longer than this
)

// checkEndpoint refuses addresses that go-spiffe can't dial and those that would carry private keys over a network.
func checkEndpoint(addr string) error {
	if err := workloadapi.ValidateAddress(addr); err != nil {
		return fmt.Errorf("%w: endpoint_socket %q: %s (write unix:///path/to/socket)", ErrConfig, addr, err.Error())
	}
	u, err := url.Parse(addr)
	if err != nil {
		return fmt.Errorf("%w: endpoint_socket %q: not a URI (write unix:///path/to/socket)", ErrConfig, addr)
	}
	switch u.Scheme {
	case "unix":
		if u.Host != "" || len(u.Path) < 2 {
			return fmt.Errorf("%w: endpoint_socket %q: the path must be absolute (write unix:///path/to/socket)", ErrConfig, addr)
		}
	case "tcp":
		if ip, err := netip.ParseAddr(u.Hostname()); err != nil || !ip.IsLoopback() {
			return fmt.Errorf("%w: endpoint_socket %q: TCP is taken on loopback only, since private keys pass in the clear", ErrConfig, addr)
		}
	}
	return nil
}

// openWorkloadAPI starts the watches and waits for the first X.509 answer, and for the first JWT answer or error: a
// Workload API without the JWT profile is no reason to fail.
func (s *Source) openWorkloadAPI(ctx, background context.Context, cfg Config) error {
	client, err := workloadapi.New(background,
		workloadapi.WithAddr(cfg.EndpointSocket),
		workloadapi.WithBackoffStrategy(retries{}),
		workloadapi.WithDialOptions(grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: firstRetry, Multiplier: 2, Jitter: 0.2, MaxDelay: lastRetry},
		})))
	if err != nil {
		return fmt.Errorf("%w: endpoint_socket %q: %s", ErrConfig, cfg.EndpointSocket, err.Error())
	}
	s.client = client
	w := &watcher{source: s, gotX509: make(chan struct{}), gotJWT: make(chan struct{})}
	s.watch(background, func() error { return client.WatchX509Context(background, w) })
	s.watch(background, func() error { return client.WatchJWTBundles(background, w) })

	timeout := cfg.ConnectTimeout
	if timeout == 0 {
		timeout = defaultConnectTimeout
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for _, answered := range []<-chan struct{}{w.gotX509, w.gotJWT} {
		select {
		case <-answered:
		case <-ctx.Done():
			return fmt.Errorf("certs: open the Workload API at %s: %w", cfg.EndpointSocket, ctx.Err())
		case <-timer.C:
			if s.current.Load() == nil {
				return s.noAnswer(cfg.EndpointSocket, timeout)
			}
			return nil // identity and bundle are there; JWT bundles follow when they come
		}
	}
	return nil
}

func (s *Source) noAnswer(addr string, waited time.Duration) error {
	s.mu.Lock()
	fault := s.fault
	s.mu.Unlock()
	switch {
	case errors.Is(fault, ErrNoIdentity):
		return fmt.Errorf("%w at %s: register this workload, or see which socket it should use", ErrNoIdentity, addr)
	case fault != nil:
		return fmt.Errorf("%w: nothing usable from %s within %s (%s): is the agent running, and may this user open the socket?", ErrUnavailable, addr, waited, fault.Error())
	}
	return fmt.Errorf("%w: no answer from %s within %s", ErrUnavailable, addr, waited)
}

// watch keeps run going until the Source closes: go-spiffe gives up for good on some codes, and an agent that sends one
// of them once must not leave this process without renewal.
func (s *Source) watch(background context.Context, run func() error) {
	s.tasks.Go(func() {
		for wait := (retries{}).NewBackoff(); background.Err() == nil; {
			_ = run() // the watcher was told already
			select {
			case <-time.After(wait.Next()):
			case <-background.Done():
			}
		}
	})
}

// watcher turns what go-spiffe delivers into updates of a Source.
type watcher struct {
	source   *Source
	gotX509  chan struct{}
	gotJWT   chan struct{}
	onceX509 sync.Once
	onceJWT  sync.Once
}

// OnX509ContextUpdate takes the bundles in any case, since one of them may be a revocation, and the SVID if it is good.
func (w *watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	s, svid := w.source, update.DefaultSVID()
	err := s.adoptable(svid)
	first := s.current.Load() == nil
	switch {
	case err != nil && first:
		s.setFault(err)
		return
	case first:
		s.own = svid.ID.TrustDomain()
		if !update.Bundles.Has(s.own) {
			s.own = spiffeid.TrustDomain{}
			s.setFault(fmt.Errorf("%w: no bundle for the own trust domain %q", ErrUnavailable, svid.ID.TrustDomain().Name()))
			return
		}
	}
	bundles := make(map[spiffeid.TrustDomain]*x509bundle.Bundle)
	for _, bundle := range update.Bundles.Bundles() {
		if s.Allows(bundle.TrustDomain()) {
			bundles[bundle.TrustDomain()] = bundle.Clone()
		}
	}
	s.update(func(st *state) {
		st.x509 = bundles
		if err == nil {
			st.svid, st.certificate = svid, tlsCertificate(svid)
		}
	})
	s.setFault(err)
	w.onceX509.Do(func() { close(w.gotX509) })
}

// OnX509ContextWatchError notes the trouble; the last good state goes on.
func (w *watcher) OnX509ContextWatchError(err error) {
	switch {
	case isCanceled(err) && w.source.closed.Load():
	case status.Code(err) == codes.PermissionDenied:
		w.source.setFault(fmt.Errorf("%w: %s", ErrNoIdentity, status.Convert(err).Message()))
	default:
		w.source.setFault(fmt.Errorf("%w: %s", ErrUnavailable, status.Convert(err).Message()))
	}
}

// OnJWTBundlesUpdate takes the JWT bundles of the allowed trust domains.
func (w *watcher) OnJWTBundlesUpdate(update *jwtbundle.Set) {
	select {
	case <-w.gotX509: // from here on the own trust domain is known and never changes
	case <-w.source.done:
		return
	}
	bundles := make(map[spiffeid.TrustDomain]*jwtbundle.Bundle)
	for _, bundle := range update.Bundles() {
		if w.source.Allows(bundle.TrustDomain()) {
			bundles[bundle.TrustDomain()] = bundle.Clone()
		}
	}
	w.source.update(func(st *state) { st.jwt = bundles })
	w.onceJWT.Do(func() { close(w.gotJWT) })
}

// OnJWTBundlesWatchError lets Open go on when the Workload API refuses the JWT profile. A Workload API that can't be
// reached is reported by the X.509 watch.
func (w *watcher) OnJWTBundlesWatchError(err error) {
	switch status.Code(err) {
	case codes.Unimplemented, codes.PermissionDenied, codes.InvalidArgument:
		w.onceJWT.Do(func() { close(w.gotJWT) })
	}
}

func isCanceled(err error) bool {
	return errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled
}

// retries makes waits of 0.1 s, doubled up to 5 s, each ±20 %. go-spiffe's own begin at a second and end at thirty: too
// long for SVIDs that live for seconds.
type retries struct{}

func (retries) NewBackoff() workloadapi.Backoff { return &retry{next: firstRetry} }

type retry struct{ next time.Duration }

func (r *retry) Next() time.Duration {
	wait := r.next
	r.next = min(2*wait, lastRetry)
	return time.Duration(float64(wait) * (0.8 + 0.4*rand.Float64()))
}

func (r *retry) Reset() { r.next = firstRetry }
