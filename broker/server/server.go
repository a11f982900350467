// Package server makes a running broker of a configuration: it opens keyring, ledger, log, identity and policy
// in the order in which they need each other, serves, and closes them in the reverse order.
//
// Init writes the first events of a ledger, once. Open refuses a data directory that Init has not finished.
// The package decides nothing and speaks no protocol; that is package broker.
package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/dev"
	"github.com/bulla-project/bulla/attest/tpm"
	"github.com/bulla-project/bulla/attest/tpm/evidence"
	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/broker"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/broker/proxy"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/place"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/policy/remote"
)

const (
	// maxConnections and maxPerAddress bound what is open before anybody proved anything.
	maxConnections = 4096
	maxPerAddress  = 2048
	// stopGrace is how long calls may go on after the broker was told to end.
	stopGrace = 5 * time.Second
	// integrateEvery is the shortest time between two checkpoints.
	integrateEvery = 200 * time.Millisecond
	// recoverEvery is how long a log that could not be signed waits before it tries again.
	recoverEvery = time.Second
)

// Options are what a configuration file can't say.
type Options struct {
	Log *slog.Logger     // nil: silent
	Now func() time.Time // nil: time.Now
	// DevelopmentKey admits development devices that this key vouches for. Only `dev` and `demo` set it.
	DevelopmentKey *ecdsa.PublicKey
	// Listener, if set, is used instead of Config.Listen.
	Listener net.Listener
}

// Server is a running broker.
type Server struct {
	Broker *broker.Broker

	log         *slog.Logger
	stores      *stores
	source      *certs.Source
	places      *place.Source // nil: none is configured
	proxies     []netip.Prefix
	engine      *policy.Engine
	tree        *audit.Log
	outward     *outward
	listener    net.Listener
	grpc        *grpc.Server
	http        *http.Server
	web         net.Listener
	signals     net.Listener // of transmitters
	signalsHTTP *http.Server
	exports     []export
	runaway     chan *policy.Revision // revisions that the breaker is to replace

	bundles      *remote.Source // nil: no bundle server
	bundleServer config.BundleServer
}

// Open makes the broker and its listeners; Serve runs it.
func Open(ctx context.Context, cfg config.Config, opts Options) (_ *Server, err error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{log: opts.Log}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.stores, err = openStores(ctx, cfg, opts.Log); err != nil {
		return nil, err
	}
	genesis, err := s.stores.genesis(ctx)
	if err != nil {
		return nil, err
	}
	if genesis.Origin != cfg.Log.Origin {
		return nil, fmt.Errorf("%w: log.origin is %s, and this ledger is that of %s: a log's name never changes", config.ErrInvalid, cfg.Log.Origin, genesis.Origin)
	}
	if err = s.stores.hasBundleKeys(ctx, cfg); err != nil {
		return nil, err
	}
	if err = s.stores.publish(cfg.DataDir); err != nil { // Init may have been interrupted before it came to that
		return nil, err
	}
	if s.source, err = openSource(ctx, cfg, opts); err != nil {
		return nil, err
	}
	if cfg.Place.MMDB != "" {
		if s.places, err = place.Open(place.Config{File: cfg.Place.MMDB, Log: opts.Log}); err != nil {
			return nil, fmt.Errorf("%w: place.mmdb: %w", config.ErrInvalid, err)
		}
	}
	s.tree, err = audit.Open(ctx, audit.Config{
		Dir: filepath.Join(cfg.DataDir, logDir), Origin: s.stores.life.Origin, Signer: s.stores.logKey,
		Source: leaves{s.stores.ledger}, OutsideCheckpoint: cfg.Log.CheckpointCopy,
	})
	if errors.Is(err, audit.ErrRollback) {
		err = fmt.Errorf("%w\n`bulla server restore` says what is lost, and changes nothing until it is told to", err)
	}
	if err != nil {
		return nil, err
	}
	if _, err = s.tree.Integrate(ctx); err != nil {
		return nil, err
	}
	if s.outward, err = openOutward(cfg, opts, s.tree, leaves{s.stores.ledger}); err != nil {
		return nil, err
	}
	s.runaway = make(chan *policy.Revision, 1)
	s.engine = policy.NewEngine(policy.Config{OnRunaway: func(r *policy.Revision) {
		select {
		case s.runaway <- r:
		default: // one is waiting already
		}
	}})
	if err = s.assemble(ctx, cfg, opts, genesis); err != nil {
		return nil, err
	}
	return s, s.listen(cfg, opts)
}

// assemble makes the broker of its parts.
func (s *Server) assemble(ctx context.Context, cfg config.Config, opts Options, genesis event.Genesis) error {
	verifiers, enrollers, err := kinds(opts)
	if err != nil {
		return err
	}
	if s.bundles, err = bundleSource(cfg.Policy.BundleServer); err != nil {
		return err
	}
	s.bundleServer = cfg.Policy.BundleServer
	if s.proxies, err = proxy.ParseProxies(cfg.Proxies); err != nil {
		return fmt.Errorf("%w: proxies: %w", config.ErrInvalid, err)
	}
	tokens, err := factors(ctx, cfg.Factors, opts)
	if err != nil {
		return err
	}
	senders, err := transmitters(ctx, cfg.Signals, opts)
	if err != nil {
		return err
	}
	if s.exports, err = s.openExports(ctx, cfg, genesis.Origin); err != nil {
		return err
	}
	s.Broker, err = broker.New(ctx, broker.Config{
		Source: s.source, Ledger: s.stores.ledger, Ring: s.stores.ring, Engine: s.engine, Tree: s.tree, Signer: s.stores.signer,
		Verifiers: verifiers, Enrollers: enrollers, Invariants: policy.Invariants{Security: genesis.Security, Auditors: genesis.Auditors},
		Places: s.places, Proxies: s.proxies, Types: cfg.PrincipalTypes, Factors: tokens, Transmitters: senders, Now: opts.Now, Log: opts.Log,
		HoldShare: cfg.Policy.HoldSharePercent, HoldMinimum: cfg.Policy.HoldMinimum,
		Witnessed: s.outward.witnessed, Collectors: append(s.outward.collectors(), s.exportCollectors()...),
		Outward:   func() []broker.Check { return append(s.outward.checks(), s.exportChecks()...) },
		Retention: broker.Retention{Age: time.Duration(cfg.Retention.Days) * 24 * time.Hour, ExportDir: cfg.Retention.ExportDir},
	})
	if errors.Is(err, policy.ErrRefused) {
		return fmt.Errorf("%w\nthe active revision does not pass the checks of this version: put another in its place with `bulla server activate`", err)
	}
	return err
}

// kinds are the kinds of devices that this server accepts: development devices only where a development server
// says so, the others where the reference values do.
func kinds(opts Options) ([]attest.Verifier, map[attest.Kind]broker.Enroller, error) {
	verifiers := []attest.Verifier{tpm.Verifier{}}
	enrollers := map[attest.Kind]broker.Enroller{attest.KindTPM2: enrolTPM}
	for _, v := range confidential(opts.Now) {
		verifiers, enrollers[v.Kind()] = append(verifiers, v), enrolImage(v.Kind())
	}
	if opts.DevelopmentKey == nil {
		return verifiers, enrollers, nil
	}
	v, err := dev.New(dev.Config{Authority: opts.DevelopmentKey, DevelopmentOnly: true})
	if err != nil {
		return nil, nil, err
	}
	enrollers[attest.KindDevelopment] = func(request []byte, refs attest.References, _ string, now time.Time) ([]byte, func([]byte) (attest.Device, error), error) {
		if !refs.AcceptsDevelopment() {
			return nil, nil, errors.New("the reference values of the active policy do not accept development devices")
		}
		public, voucher, err := dev.ParseEnrolRequest(request)
		if err != nil {
			return nil, nil, err
		}
		device, err := v.Enrol(public, voucher, now)
		return nil, func([]byte) (attest.Device, error) { return device, nil }, err
	}
	return append(verifiers, v), enrollers, nil
}

// enrolTPM is the broker.Enroller of TPMs.
func enrolTPM(request []byte, refs attest.References, caller string, now time.Time) ([]byte, func([]byte) (attest.Device, error), error) {
	parsed, err := evidence.ParseRequest(request)
	if err != nil {
		return nil, nil, err
	}
	challenge, pending, err := tpm.BeginEnrolment(parsed, refs, caller, now, rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	return challenge.Marshal(), func(answer []byte) (attest.Device, error) { return pending.Finish(caller, answer, now) }, nil
}

func openSource(ctx context.Context, cfg config.Config, opts Options) (*certs.Source, error) {
	return certs.Open(ctx, certs.Config{
		EndpointSocket: cfg.SPIFFE.EndpointSocket, CertFile: cfg.SPIFFE.CertFile, KeyFile: cfg.SPIFFE.KeyFile,
		BundleFile: cfg.SPIFFE.BundleFile, TrustDomains: cfg.SPIFFE.TrustDomains, ConnectTimeout: 30 * time.Second, Now: opts.Now, Log: opts.Log,
	})
}

func (s *Server) listen(cfg config.Config, opts Options) (err error) {
	s.listener = opts.Listener
	if s.listener == nil {
		if s.listener, err = net.Listen("tcp", cfg.Listen); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	if len(s.proxies) > 0 { // first, so that the limits count where a connection comes from
		s.listener = proxy.Listen(s.listener, s.proxies, opts.Log)
	}
	s.listener = broker.Limit(s.listener, maxConnections, maxPerAddress)
	s.grpc = s.Broker.GRPC()
	if err := s.listenSignals(cfg.Signals); err != nil {
		return err
	}
	if cfg.HTTPListen == "" {
		return nil
	}
	if s.web, err = net.Listen("tcp", cfg.HTTPListen); err != nil {
		return fmt.Errorf("http_listen: %w", err)
	}
	s.http = &http.Server{
		Handler: s.Broker.HTTP(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
		MaxHeaderBytes: 8 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	return nil
}

// ID is the broker's SPIFFE ID.
func (s *Server) ID() string { return s.source.ID().String() }

// Addr is the address of the gRPC listener; HTTPAddr that of /live and /ready, nil if there is none.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// HTTPAddr is the address of /live, /ready and /metrics, nil if there is none.
func (s *Server) HTTPAddr() net.Addr {
	if s.web == nil {
		return nil
	}
	return s.web.Addr()
}

// TilesAddr is the address of the listener of tiles, nil if there is none.
func (s *Server) TilesAddr() net.Addr {
	if s.outward.listener == nil {
		return nil
	}
	return s.outward.listener.Addr()
}

// LogKey is the log's verifier key in note format.
func (s *Server) LogKey() string { return s.tree.Key().String() }

// Serve runs the broker until ctx ends, then lets the calls that are under way finish for a while, and closes
// everything. The server can't be used afterwards.
func (s *Server) Serve(ctx context.Context) error {
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	failed := make(chan error, 4) // one of each listener
	go func() { failed <- s.grpc.Serve(s.listener) }()
	if s.http != nil {
		go func() { failed <- s.http.Serve(s.web) }()
	}
	if s.signalsHTTP != nil {
		go func() { failed <- s.signalsHTTP.Serve(s.signals) }()
	}
	var work sync.WaitGroup
	work.Go(func() { s.Broker.Run(run) })
	work.Go(func() { s.integrate(run) })
	work.Go(func() { s.guardPolicy(run) })
	work.Go(func() { s.fetchPolicy(run) })
	work.Go(func() { s.outward.run(run, failed) })
	work.Go(func() { s.runExports(run) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	s.Broker.Drain()
	s.stopServing()
	stop()
	work.Wait()
	s.integrateLast(context.WithoutCancel(ctx)) // what the others wrote at their end, too
	return errors.Join(err, s.close())
}

// integrateLast leaves no event unsigned: a rollback to before it would go unnoticed.
func (s *Server) integrateLast(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	if _, err := s.tree.Integrate(ctx); err != nil {
		s.log.Error("the log could not be signed", "error", err)
	}
}

// integrate keeps the tree up to date while ctx lives. After a write that failed it recovers the log, since nothing is
// delivered until then; a rollback stays what it is.
func (s *Server) integrate(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		_, more := s.stores.ledger.Committed()
		err := s.tree.Recover(ctx)
		if err == nil {
			_, err = s.tree.Integrate(ctx)
		}
		if err == nil {
			said = ""
			wait(ctx, integrateEvery, nil)
			wait(ctx, 0, more)
			continue
		}
		if text := err.Error(); text != said && ctx.Err() == nil {
			s.log.Error("the log could not be signed", "error", err)
			said = text
		}
		wait(ctx, recoverEvery, nil)
	}
}

// wait returns after d (0: never), when wake is closed, or when ctx ends.
func wait(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	var over <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-ctx.Done():
	case <-over:
	case <-wake:
	}
}

// guardPolicy puts the previous revision back when the active one keeps running into its time limit.
func (s *Server) guardPolicy(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-s.runaway:
			digest := event.Digest(r.Digest()).String()
			s.log.Error("the active policy revision keeps running into its time limit: going back to the one before", "digest", digest)
			if err := s.Broker.Trip(ctx, r); err != nil {
				s.log.Error("the previous policy revision could not be activated: everything is denied until another one is pushed", "error", err)
			}
		}
	}
}

// stopServing ends the listeners: calls may finish, streams are cut after the grace.
func (s *Server) stopServing() {
	cut := time.AfterFunc(stopGrace, s.grpc.Stop)
	s.grpc.GracefulStop()
	cut.Stop()
	s.stopSignals()
	if s.http != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = s.http.Shutdown(ctx) // what is left of it ends with the process
	}
}

// close closes what Open has opened so far, in reverse order.
func (s *Server) close() error {
	var errs []error
	if s.listener != nil {
		if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if s.signals != nil {
		if err := s.signals.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if s.web != nil {
		if err := s.web.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, s.outward.close())
	if s.engine != nil {
		s.engine.Close()
	}
	if s.tree != nil {
		errs = append(errs, s.tree.Close())
	}
	if s.places != nil {
		errs = append(errs, s.places.Close())
	}
	if s.source != nil {
		errs = append(errs, s.source.Close())
	}
	if s.stores != nil {
		errs = append(errs, s.stores.close())
	}
	return errors.Join(errs...)
}

// Healthcheck asks a broker's /ready, for container health checks.
func Healthcheck(ctx context.Context, address string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/ready", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the broker at %s is not ready: %s", address, resp.Status)
	}
	return nil
}

// leaves is the ledger as the log's source.
type leaves struct{ ledger *ledger.Ledger }

// Leaves implements audit.Source.
func (l leaves) Leaves(ctx context.Context, from int64, most int) ([]audit.Entry, error) {
	found, err := l.ledger.Leaves(ctx, from, most)
	if err != nil {
		return nil, err
	}
	out := make([]audit.Entry, len(found))
	for i, leaf := range found {
		out[i] = audit.Entry{Index: from + int64(i), Leaf: leaf}
	}
	return out, nil
}

// mkdir makes a directory that only its owner may look into.
func mkdir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	return nil
}
