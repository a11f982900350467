package devserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/broker/server"
)

// startWait is how long a part of the server may take until it answers another part.
const startWait = 20 * time.Second

// startBroker makes the ledger where there is none, takes up what changed in the policy directory meanwhile,
// and serves.
func (s *Server) startBroker(ctx context.Context) error {
	if err := s.writePolicy(); err != nil {
		return err
	}
	cfg := s.brokerConfig()
	if err := s.initialise(ctx, cfg); err != nil {
		return err
	}
	listener, err := s.listen(ctx)
	if err != nil {
		return err
	}
	s.broker, err = server.Open(ctx, cfg, server.Options{
		Log: s.cfg.Log, Now: s.cfg.Now, DevelopmentKey: s.authority.DeviceKeyPublic(), Listener: listener,
	})
	if err != nil {
		if !errors.Is(err, syscall.EADDRINUSE) {
			return errors.Join(err, closed(listener))
		}
		return errors.Join(s.portTaken(s.kept().HTTP, err), closed(listener))
	}
	run, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.tasks.Go(func() {
		if err := s.broker.Serve(run); err != nil {
			s.cfg.Log.Error("the broker ended", "error", err)
			s.fail(fmt.Errorf("the broker: %w", err))
			return
		}
		s.fail(errors.New("the broker"))
	})
	if err := s.keep(func(st *state) { st.Listen, st.HTTP = s.Addr(), s.HTTPAddr() }); err != nil {
		return err
	}
	seen := s.reload(ctx)
	s.tasks.Go(func() { s.watchPolicy(run, seen) })
	return nil
}

func closed(l net.Listener) error {
	if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (s *Server) brokerConfig() config.Config {
	http := s.kept().HTTP
	if http == "" {
		http = defaultListen
	}
	return config.Config{
		Listen: s.cfg.Listen, HTTPListen: http, DataDir: s.paths.broker(),
		SPIFFE:  config.SPIFFE{EndpointSocket: "unix://" + s.sockets.path(brokerSocket)},
		Policy:  config.Policy{Dir: s.paths.policy()},
		Keyring: config.Keyring{KEKFile: s.paths.kek()},
		Log:     config.Log{Origin: logOrigin},
		Site:    config.Site{Security: []string{ID("security")}, Auditors: []string{ID("auditor")}},
	}
}

// initialise writes the ledger's first events, once. A start that was interrupted is taken up.
func (s *Server) initialise(ctx context.Context, cfg config.Config) error {
	if s.kept().Initialised {
		return nil
	}
	digest, err := policyDigest(s.paths.policy())
	if err != nil {
		return err
	}
	if err := server.Init(ctx, cfg, s.cfg.Product, s.cfg.Log); err != nil && !errors.Is(err, server.ErrInitialised) {
		return err
	}
	return s.keep(func(st *state) { st.Initialised, st.Policy = true, digest })
}

// listen opens the port: the configured one, else the one of the last start, else a free one.
func (s *Server) listen(ctx context.Context) (net.Listener, error) {
	address := s.cfg.Listen
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	kept := s.kept().Listen
	if was, _, err := net.SplitHostPort(kept); err == nil && port == "0" && was == host {
		address = kept
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, s.portTaken(address, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return l, nil
}

func (s *Server) portTaken(address string, err error) error {
	return fmt.Errorf("%w: %s belongs to another process, and %s keeps it over restarts: end that process, or take another port with --listen (%w)",
		ErrPort, address, s.cfg.Dir, err)
}
