// Package devserver is everything that `bulla dev` runs, in one process and below one directory: the
// development SPIFFE authority with one Workload API socket for each identity, a software TPM where one is
// installed, and a broker whose policy directory may be edited while it runs. IT IS NOT FOR PRODUCTION: whoever
// can read its directory is everybody in its trust domain.
//
// Start makes what is missing and continues with what is there: ports, authority, ledger, keys, devices. It
// returns once everything serves, the device of `workload` is enrolled (over the wire, by `operator`) and the
// file `ready` is written. Close ends it all, and leaves the directory for the next start.
//
// What lies in the directory:
//
//	ready         empty; there while everything serves
//	lock          held by the one process that uses the directory
//	log.pub       the log's verifier key, in note format
//	env/NAME.sh   the environment of an identity: lines export NAME='value'
//	policy/       the policy bundle; an edit that passes all checks is activated, one that does not is logged
//	sock/         Workload API sockets, unless their paths would be too long: see env/NAME.sh then
//	authority/, broker/, tpm/, device.pem, kek, state.json   keys and state
//
// What it does not do: it makes no decision that a broker in production would make otherwise, except that it
// admits development devices and reloads policy from the directory.
package devserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/bulla-project/bulla/attest/tpm/swtpm"
	"github.com/bulla-project/bulla/broker/server"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/certs/devauthority"
	"github.com/bulla-project/bulla/internal/durable"
)

const (
	// TrustDomain is the trust domain of all identities.
	TrustDomain = "dev.bulla.test"
	// ServerID is the broker's SPIFFE ID.
	ServerID = "spiffe://" + TrustDomain + "/bulla/broker"

	logOrigin     = TrustDomain + "/log"
	defaultListen = "127.0.0.1:0"
	brokerSocket  = "broker" // beside those of the identities, never in an environment file
)

// The outcomes that a caller can tell apart.
var (
	// ErrInUse: another process uses the directory.
	ErrInUse = errors.New("the directory is in use")
	// ErrConfig: the configuration, or the directory's path, can't work.
	ErrConfig = errors.New("development server: configuration")
	// ErrPort: the port that the directory keeps is taken by somebody else.
	ErrPort = errors.New("the port is taken")
	// ErrEnded: a part of the server ended by itself.
	ErrEnded = errors.New("development server: a part of it has ended")
)

// Identities are the names of those who get a socket and an environment file. The SPIFFE ID of NAME is
// spiffe://dev.bulla.test/NAME.
func Identities() []string {
	return []string{"operator", "security", "auditor", "workload", "stranger", "custodian-1", "custodian-2", "custodian-3"}
}

// ID is the SPIFFE ID of a name.
func ID(name string) string { return "spiffe://" + TrustDomain + "/" + name }

// Config says what to start. Dir alone is needed.
type Config struct {
	Dir     string        // holds everything; made if it is missing
	TPM     TPMMode       // "": TPMAuto
	SVIDTTL time.Duration // lifetime of X.509-SVIDs; 0: an hour
	// Listen is the broker's address, on loopback; "": 127.0.0.1 and the port of the last start, a free one at
	// the first. A port other than 0 is used as it is.
	Listen  string
	Product string       // stands in the first event, such as "bulla v1.2.3"
	Log     *slog.Logger // nil: slog.Default(), since the warnings must not get lost
	// PolicyPoll is how often the policy directory is looked at; 0: half a second.
	PolicyPoll time.Duration
	Now        func() time.Time // nil: time.Now; of the broker and the authority
}

// Server is a running development server. Its methods may be called from any goroutine.
type Server struct {
	cfg       Config // with defaults in place; never changes, like all fields but the last group
	paths     paths
	lock      *os.File
	sockets   sockets
	authority *devauthority.Authority
	tpm       *swtpm.TPM // nil without one
	device    Device
	broker    *server.Server
	stop      context.CancelFunc // ends broker and policy watcher
	tasks     sync.WaitGroup

	ended chan struct{} // closed when a part ended by itself
	end   sync.Once
	why   error // written before ended is closed

	closing sync.Once
	closed  error // of closing

	stateMu sync.Mutex // guards state and its file
	state   state
}

// Start starts everything. ctx limits the starting only; the server lives until Close.
func Start(ctx context.Context, cfg Config) (_ *Server, err error) {
	if cfg, err = cfg.complete(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, paths: paths{cfg.Dir}, ended: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	for _, step := range []func(context.Context) error{
		s.takeDir, s.startAuthority, s.startDevice, s.startBroker, s.enrol, s.publish,
	} {
		if err = step(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// complete checks the configuration and fills in the defaults.
func (c Config) complete() (Config, error) {
	if c.Dir == "" {
		return c, fmt.Errorf("%w: no directory", ErrConfig)
	}
	abs, err := filepath.Abs(c.Dir)
	if err != nil {
		return c, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if c.Dir = abs; !quotable(abs) {
		return c, fmt.Errorf("%w: the directory %q has a quote or control character in its path: choose another", ErrConfig, abs)
	}
	if c.TPM == "" {
		c.TPM = TPMAuto
	}
	if _, err := ParseTPMMode(string(c.TPM)); err != nil {
		return c, err
	}
	if c.Listen == "" {
		c.Listen = defaultListen
	}
	if err := checkLoopback(c.Listen); err != nil {
		return c, err
	}
	if c.SVIDTTL == 0 {
		c.SVIDTTL = time.Hour
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Product == "" {
		c.Product = "bulla"
	}
	if c.PolicyPoll == 0 {
		c.PolicyPoll = 500 * time.Millisecond
	}
	return c, nil
}

// takeDir makes the directory, takes it for this process and clears away what an earlier one left behind.
func (s *Server) takeDir(context.Context) (err error) {
	if s.lock, err = takeLock(s.cfg.Dir, s.paths.lock()); err != nil {
		return err
	}
	if err := os.Remove(s.paths.ready()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the stale %s: %w", s.paths.ready(), err)
	}
	if s.state, err = readState(s.paths.state()); err != nil {
		return err
	}
	if err := clearSockets(s.paths, s.state.Sockets); err != nil {
		return err
	}
	if s.sockets, err = placeSockets(s.paths); err != nil {
		return err
	}
	return s.keep(func(st *state) { st.Sockets = s.sockets.temporary })
}

// startAuthority serves the Workload API to the broker and to each identity.
func (s *Server) startAuthority(context.Context) (err error) {
	s.authority, err = devauthority.New(devauthority.Config{
		DevelopmentOnly: true, Dir: s.paths.authority(), TrustDomain: TrustDomain, TTL: s.cfg.SVIDTTL, Log: s.cfg.Log, Now: s.cfg.Now,
	})
	if err != nil {
		return err
	}
	served := map[string]string{brokerSocket: ServerID}
	for _, name := range Identities() {
		served[name] = ID(name)
	}
	for name, text := range served {
		id, err := certs.ParseID(text)
		if err != nil {
			return err
		}
		if err := s.authority.Serve(id, s.sockets.path(name)); err != nil {
			return err
		}
	}
	return nil
}

// publish writes what others wait for; ready comes last.
func (s *Server) publish(context.Context) error {
	if err := durable.WriteFile(s.paths.logPub(), []byte(s.broker.LogKey()+"\n"), 0o644); err != nil {
		return err
	}
	if err := mkdir(s.paths.env()); err != nil {
		return err
	}
	for _, name := range Identities() {
		if err := durable.WriteFile(s.paths.envFile(name), script(s.Environment(name)), 0o600); err != nil {
			return err
		}
	}
	return durable.WriteFile(s.paths.ready(), nil, 0o600)
}

// Dir is the directory, as an absolute path.
func (s *Server) Dir() string { return s.cfg.Dir }

// Addr is the broker's address, HTTPAddr that of its /live, /ready and /metrics.
func (s *Server) Addr() string { return s.broker.Addr().String() }

// HTTPAddr is where /live, /ready and /metrics are.
func (s *Server) HTTPAddr() string { return s.broker.HTTPAddr().String() }

// LogKey is the log's verifier key, in note format.
func (s *Server) LogKey() string { return s.broker.LogKey() }

// Device is what `workload` attests with.
func (s *Server) Device() Device { return s.device }

// Authority is the SPIFFE authority, for tests that rotate and revoke.
func (s *Server) Authority() *devauthority.Authority { return s.authority }

// Wait returns nil when ctx ends, or the reason when a part of the server ended by itself. The caller closes
// the server in both cases.
func (s *Server) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-s.ended:
		return s.why
	}
}

// fail reports that a part has ended by itself.
func (s *Server) fail(err error) {
	s.end.Do(func() {
		s.why = fmt.Errorf("%w: %w", ErrEnded, err)
		close(s.ended)
	})
}

// Close removes ready, lets the calls that are under way finish for a moment, and ends everything. Further
// calls wait for the first.
func (s *Server) Close() error {
	s.closing.Do(func() { s.closed = s.close() })
	return s.closed
}

func (s *Server) close() error {
	var faults []error
	if s.lock == nil {
		return nil // nothing was taken
	}
	if err := os.Remove(s.paths.ready()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		faults = append(faults, err)
	}
	if s.stop != nil {
		s.stop()
	}
	s.end.Do(func() { close(s.ended) }) // from here on nothing ends by itself
	s.tasks.Wait()
	if s.tpm != nil {
		faults = append(faults, s.tpm.Close())
	}
	if s.authority != nil {
		faults = append(faults, s.authority.Close())
	}
	faults = append(faults, s.sockets.remove(), s.lock.Close())
	return errors.Join(faults...)
}
