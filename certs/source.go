package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

const (
	defaultConnectTimeout = 3 * time.Second
	defaultPollInterval   = time.Second
)

// Config says where identity comes from: either EndpointSocket, or CertFile, KeyFile and BundleFile together.
type Config struct {
	// EndpointSocket is the address of the Workload API as in SPIFFE_ENDPOINT_SOCKET: unix:///path, or tcp:// with a
	// loopback address (it carries private keys in the clear).
	EndpointSocket string

	// CertFile holds the X.509-SVID and its intermediates, the leaf first; KeyFile its private key (PKCS #8, or SEC 1);
	// BundleFile the authorities of its trust domain. All are PEM. They are read again when they change; a key and a
	// certificate that don't belong together are left alone until they do.
	CertFile, KeyFile, BundleFile string

	// TrustDomains are the further (federated) trust domains whose members are admitted, by name. The own one always is.
	// Bundles for them come from the Workload API, so files allow none but the own.
	TrustDomains []string

	// ConnectTimeout limits how long Open waits for the first identity; 0 means 3 s.
	ConnectTimeout time.Duration
	// PollInterval is how often files are looked at; 0 means 1 s.
	PollInterval time.Duration
	// Now is the clock by which validity is judged; nil means time.Now.
	Now func() time.Time
	// Log takes what happens in the background; nil means nowhere.
	Log *slog.Logger
}

// Source holds the current X.509-SVID and the current bundles of a process. All methods may be called at any time from
// any goroutine; none but FetchJWTSVID waits for anything.
type Source struct {
	now     func() time.Time
	log     *slog.Logger
	further map[spiffeid.TrustDomain]struct{} // allowed besides the own; never changes
	own     spiffeid.TrustDomain              // set by the first update, before Open returns; never changes then
	client  *workloadapi.Client               // nil for files; owned by the Source
	cancel  context.CancelFunc                // ends the background goroutines
	done    <-chan struct{}                   // closed by cancel
	tasks   sync.WaitGroup

	current atomic.Pointer[state] // nil until the first update; its value is never changed
	closed  atomic.Bool

	mu      sync.Mutex
	changed chan struct{} // guarded by mu: closed and replaced at every change
	fault   error         // guarded by mu: why the latest refresh failed, nil if it did not
}

// state is one consistent picture: whoever needs several parts of it loads it once.
type state struct {
	version     uint64
	svid        *x509svid.SVID
	certificate *tls.Certificate
	x509        map[spiffeid.TrustDomain]*x509bundle.Bundle
	pools       map[spiffeid.TrustDomain]*x509.CertPool // of x509
	jwt         map[spiffeid.TrustDomain]*jwtbundle.Bundle
}

func (st *state) window() window {
	leaf := st.svid.Certificates[0]
	return window{leaf.NotBefore, leaf.NotAfter}
}

// Open returns a Source once it holds an X.509-SVID and the bundle of its trust domain. ctx limits the opening only;
// the Source lives until Close.
func Open(ctx context.Context, cfg Config) (*Source, error) {
	further, err := cfg.validate()
	if err != nil {
		return nil, err
	}
	s := &Source{now: cfg.Now, log: cfg.Log, further: further, changed: make(chan struct{})}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel, s.done = cancel, background.Done()
	if cfg.EndpointSocket != "" {
		err = s.openWorkloadAPI(ctx, background, cfg)
	} else {
		err = s.openFiles(background, cfg)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// validate reports every fault of the configuration at once.
func (c Config) validate() (map[spiffeid.TrustDomain]struct{}, error) {
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("%w: "+format, append([]any{ErrConfig}, args...)...))
	}
	files := c.CertFile != "" || c.KeyFile != "" || c.BundleFile != ""
	switch {
	case c.EndpointSocket != "" && files:
		fault("give endpoint_socket, or cert_file, key_file and bundle_file, not both")
	case c.EndpointSocket != "":
		if err := checkEndpoint(c.EndpointSocket); err != nil {
			faults = append(faults, err)
		}
	case !files:
		fault("no source of identity: set SPIFFE_ENDPOINT_SOCKET (endpoint_socket), or cert_file, key_file and bundle_file")
	case c.CertFile == "" || c.KeyFile == "" || c.BundleFile == "":
		fault("cert_file, key_file and bundle_file belong together: one is missing")
	}
	if c.ConnectTimeout < 0 || c.PollInterval < 0 {
		fault("a timeout or interval is negative")
	}
	further := make(map[spiffeid.TrustDomain]struct{}, len(c.TrustDomains))
	for _, name := range c.TrustDomains {
		td, err := ParseTrustDomain(name)
		if err != nil {
			fault("trust_domains: %s", err.Error())
			continue
		}
		further[td] = struct{}{}
	}
	return further, errors.Join(faults...)
}

// Close ends the background work and waits for it. It may be called more than once.
func (s *Source) Close() error {
	if s.closed.Swap(true) {
		s.tasks.Wait()
		return nil
	}
	s.cancel()
	s.tasks.Wait()
	s.mu.Lock()
	close(s.changed) // no update comes any more: the background work has ended
	s.mu.Unlock()
	if s.client == nil {
		return nil
	}
	if err := s.client.Close(); err != nil && !isCanceled(err) {
		return fmt.Errorf("certs: close the Workload API client: %w", err)
	}
	return nil
}

func (s *Source) load() (*state, error) {
	if s.closed.Load() {
		return nil, ErrClosed
	}
	return s.current.Load(), nil
}

// GetX509SVID returns the current X.509-SVID. It fails when that SVID isn't valid by this machine's clock: a peer would
// refuse it, with a worse explanation. The value is shared: don't change it.
func (s *Source) GetX509SVID() (*x509svid.SVID, error) {
	st, err := s.validState()
	if err != nil {
		return nil, err
	}
	return st.svid, nil
}

// validState returns the current state if its SVID is valid now.
func (s *Source) validState() (*state, error) {
	st, err := s.load()
	if err != nil {
		return nil, err
	}
	if err := st.window().check(st.svid.ID, s.now()); err != nil {
		return nil, err
	}
	return st, nil
}

// ID returns the SPIFFE ID of the current X.509-SVID, valid or not.
func (s *Source) ID() spiffeid.ID { return s.current.Load().svid.ID }

// TrustDomain returns the own trust domain. It never changes while the Source lives.
func (s *Source) TrustDomain() spiffeid.TrustDomain { return s.own }

// Allows reports whether members of td are admitted: td is the own trust domain, or named in Config.TrustDomains.
func (s *Source) Allows(td spiffeid.TrustDomain) bool {
	_, further := s.further[td]
	return further || td == s.own && !td.IsZero()
}

// GetX509BundleForTrustDomain returns a copy of the current X.509 bundle of an allowed trust domain.
func (s *Source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	st, err := s.load()
	if err != nil {
		return nil, err
	}
	bundle, ok := st.x509[td]
	if !ok {
		return nil, s.noBundle(td)
	}
	return bundle.Clone(), nil
}

func (s *Source) noBundle(td spiffeid.TrustDomain) error {
	if s.Allows(td) {
		return fmt.Errorf("%w: no trust bundle for %q has arrived: federate with it on both sides", ErrUntrusted, td.Name())
	}
	return fmt.Errorf("%w: trust domain %q is not allowed here: add it to trust_domains", ErrUntrusted, td.Name())
}

// BundleVersion counts the changes of the bundles (X.509 and JWT) since Open. It costs one atomic load.
func (s *Source) BundleVersion() uint64 { return s.current.Load().version }

// Updated returns a channel that is closed at the next change of the SVID or of a bundle, and at Close. Get the channel
// first and look at the Source after, so that no change is missed; any number of callers may wait.
func (s *Source) Updated() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Health returns nil while the SVID is valid and the latest refresh worked; otherwise what is wrong. A failed refresh
// alone doesn't stop anything: the last good state goes on serving until it expires.
func (s *Source) Health() error {
	if _, err := s.validState(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault
}

// setFault records why a refresh failed (nil: it did not) and logs the beginning of a trouble and its end.
func (s *Source) setFault(err error) {
	s.mu.Lock()
	was := s.fault
	s.fault = err
	s.mu.Unlock()
	switch {
	case err != nil && (was == nil || was.Error() != err.Error()):
		s.log.Warn("identity can't be refreshed, the last good one goes on", "error", err)
	case err == nil && was != nil:
		s.log.Info("identity is refreshed again")
	}
}

// update replaces the current state by what change makes of a copy of it, counts the version up if a bundle differs,
// and wakes who waits. The maps in the copy are shared with the old state: change replaces them, it never writes to them.
func (s *Source) update(change func(*state)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.current.Load()
	if old == nil {
		old = &state{}
	}
	next := *old
	change(&next)
	if !sameBundles(old.x509, next.x509) {
		next.pools = make(map[spiffeid.TrustDomain]*x509.CertPool, len(next.x509))
		for td, bundle := range next.x509 {
			next.pools[td] = newPool(bundle)
		}
		next.version = old.version + 1
	}
	if !sameBundles(old.jwt, next.jwt) {
		next.version = old.version + 1
	}
	s.current.Store(&next)
	close(s.changed)
	s.changed = make(chan struct{})
}

// sameBundles compares two sets of X.509 or JWT bundles by content.
func sameBundles[B interface{ Equal(B) bool }](a, b map[spiffeid.TrustDomain]B) bool {
	if len(a) != len(b) {
		return false
	}
	for td, bundle := range a {
		other, ok := b[td]
		if !ok || !bundle.Equal(other) {
			return false
		}
	}
	return true
}

// adoptable checks an SVID that a refresh brought: strictly well-formed, and of the trust domain that this Source is of.
func (s *Source) adoptable(svid *x509svid.SVID) error {
	id, err := leafID(svid.Certificates)
	if err != nil {
		return err
	}
	if s.own.IsZero() || id.MemberOf(s.own) {
		return nil
	}
	return fmt.Errorf("%w: the new SVID %s is of another trust domain than %q: restart to change it", ErrUntrusted, id, s.own.Name())
}

func tlsCertificate(svid *x509svid.SVID) *tls.Certificate {
	c := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, cert := range svid.Certificates {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	return c
}
