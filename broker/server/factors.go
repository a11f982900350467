package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/bulla-project/bulla/broker"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/caep"
	"github.com/bulla-project/bulla/token"
)

const (
	// maxTransmitterConnections bounds what is open at the listener of signals, over all and of one address.
	maxTransmitterConnections = 256
	maxTransmitterPerAddress  = 64
	// maxBearer is the longest bearer token in a file, in bytes.
	maxBearer = 4 << 10

	defaultSignalLife  = 8 * time.Hour
	defaultMaxSessions = 100
	defaultMaxSignals  = 1000
)

// issuer makes the verifier of an issuer. Keys behind an address are not asked for yet: an issuer that is away must
// not keep the broker from starting. A file that can't be read is a fault of the configuration.
func issuer(ctx context.Context, c config.Issuer, into token.Config, opts Options) (*token.Issuer, error) {
	into.Issuer, into.Audience, into.Algorithms = c.Issuer, c.Audience, c.Algorithms
	var err error
	if c.JWKSFile != "" {
		into.Keys = token.FileKeys(c.JWKSFile)
		err = into.Keys.Check(ctx)
	} else {
		into.Keys, err = token.URLKeys(token.URLConfig{URL: c.JWKSURL, CAFile: c.CAFile, AllowLoopback: opts.DevelopmentKey != nil})
	}
	if err != nil {
		return nil, fmt.Errorf("%w: issuer %s: %w", config.ErrInvalid, c.Issuer, err)
	}
	out, err := token.NewIssuer(into)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", config.ErrInvalid, err)
	}
	return out, nil
}

// factors are the issuers of further factors.
func factors(ctx context.Context, c config.Factors, opts Options) (broker.Factors, error) {
	var out broker.Factors
	for _, o := range c.OIDC {
		verifier, err := issuer(ctx, o.Issuer, token.Config{Kind: token.Bearer, Types: o.Types, MaxAge: o.MaxLifetime}, opts)
		if err != nil {
			return out, err
		}
		one := broker.OIDCFactor{Issuer: verifier, Claims: o.Claims, InstanceNonce: o.InstanceNonce}
		for _, t := range o.PrincipalTypes {
			one.Types = append(one.Types, broker.ClaimType(t))
		}
		out.OIDC = append(out.OIDC, one)
	}
	if c.JWTSVID != nil {
		out.JWTSVID = &broker.JWTSVIDFactor{Audience: c.JWTSVID.Audience, MaxAge: c.JWTSVID.MaxLifetime}
	}
	return out, nil
}

// transmitters are the senders of external signals.
func transmitters(ctx context.Context, c config.Signals, opts Options) ([]broker.Transmitter, error) {
	var out []broker.Transmitter
	for _, t := range c.Transmitters {
		verifier, err := issuer(ctx, t.Issuer, token.Config{Kind: token.Event}, opts)
		if err != nil {
			return nil, err
		}
		one := broker.Transmitter{
			Name: t.Name, Issuer: verifier, Events: t.Events, Life: t.Life, MaxSessions: t.MaxSessionsPerHour, MaxSignals: t.MaxSignalsPerHour,
			Subjects: map[caep.Subject][]string{}, SPIFFESubjects: t.SPIFFESubjects,
		}
		if one.Life == 0 {
			one.Life = defaultSignalLife
		}
		if one.MaxSessions == 0 {
			one.MaxSessions = defaultMaxSessions
		}
		if one.MaxSignals == 0 {
			one.MaxSignals = defaultMaxSignals
		}
		for _, s := range t.Subjects {
			one.Subjects[s.Key()] = broker.Targets(s.Principals, s.Devices, s.TrustDomains)
		}
		if t.BearerTokenFile != "" {
			one.Bearer = func() ([]byte, error) { return readBearer(t.BearerTokenFile) }
			if _, err := one.Bearer(); err != nil {
				return nil, fmt.Errorf("%w: bearer_token_file: %w", config.ErrInvalid, err)
			}
		}
		out = append(out, one)
	}
	return out, nil
}

// readBearer reads a token each time, so that a new one holds at once.
func readBearer(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxBearer+1))
	if err != nil {
		return nil, err
	}
	text = bytes.TrimSpace(text)
	if len(text) == 0 || len(text) > maxBearer {
		return nil, fmt.Errorf("%s holds no token of 1 to %d bytes", path, maxBearer)
	}
	return text, nil
}

// listenSignals opens the https listener of transmitters, which are no members of a trust domain.
func (s *Server) listenSignals(c config.Signals) error {
	if len(c.Transmitters) == 0 {
		return nil
	}
	pair := &certificate{certFile: c.CertFile, keyFile: c.KeyFile}
	if _, err := pair.get(nil); err != nil {
		return fmt.Errorf("%w: signals: %w", config.ErrInvalid, err)
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("signals.listen: %w", err)
	}
	s.signals = tls.NewListener(broker.Limit(l, maxTransmitterConnections, maxTransmitterPerAddress), &tls.Config{
		GetCertificate: pair.get, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, NextProtos: []string{"http/1.1"},
	})
	s.signalsHTTP = &http.Server{
		Handler: s.Broker.Signals(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute,
		IdleTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	return nil
}

// SignalsAddr is the address of the listener of transmitters, nil if there is none.
func (s *Server) SignalsAddr() net.Addr {
	if s.signals == nil {
		return nil
	}
	return s.signals.Addr()
}

// certificate is a key pair in files, read again when one of them changed.
type certificate struct {
	certFile, keyFile string

	mu      sync.Mutex // guards what follows
	pair    *tls.Certificate
	changed [2]time.Time
}

// get implements tls.Config.GetCertificate. Files that don't belong together, as in the middle of a change, leave the
// pair that there is.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var changed [2]time.Time
	for i, path := range []string{c.certFile, c.keyFile} {
		info, err := os.Stat(path)
		if err != nil {
			return c.or(err)
		}
		changed[i] = info.ModTime()
	}
	if c.pair != nil && changed == c.changed {
		return c.pair, nil
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return c.or(err)
	}
	c.pair, c.changed = &pair, changed
	return c.pair, nil
}

func (c *certificate) or(err error) (*tls.Certificate, error) {
	if c.pair == nil {
		return nil, err
	}
	return c.pair, nil
}

// stopSignals lets the pushes that are under way finish.
func (s *Server) stopSignals() {
	if s.signalsHTTP == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	if err := s.signalsHTTP.Shutdown(ctx); err != nil {
		s.log.Warn("pushes of signals were cut off", "error", errors.Join(err, s.signalsHTTP.Close()))
	}
}
