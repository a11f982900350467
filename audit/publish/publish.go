// Package publish puts the newest checkpoint of a log where others can see it: into directories, and to HTTP
// addresses by PUT. Whoever keeps what is published notices a log that was rolled back or rewritten.
//
// It works in the background: nothing waits for it, and a target that is away is asked less and less often. A target
// never gets an older checkpoint than it had from this process. The package signs nothing and reads nothing back.
package publish

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/bulla-project/bulla/internal/durable"
	"github.com/bulla-project/bulla/internal/outward"
)

const (
	// DefaultEvery is the shortest time between two writes to a target, DefaultTimeout how long one may take.
	DefaultEvery   = 10 * time.Second
	DefaultTimeout = 10 * time.Second

	maxBackoff = 5 * time.Minute
	maxAnswer  = 64 << 10
	name       = "checkpoint"
)

// Target is one place: exactly one of Dir and URL.
type Target struct {
	// Dir is a directory that gets a file named checkpoint, readable by everybody; it is replaced at once.
	Dir string
	// URL is the address of the object itself: https, or http of this machine.
	URL     string
	CAFile  string                 // PEM; "": the system's authorities
	Bearer  func() ([]byte, error) // gives the bearer token, read each time; nil: none
	Timeout time.Duration          // 0: DefaultTimeout
}

// String names the place.
func (t Target) String() string {
	if t.Dir != "" {
		return t.Dir
	}
	return t.URL
}

// Config says what is published and where.
type Config struct {
	// Source gives the checkpoint to publish, or nil, and the size of its log.
	Source  func() ([]byte, int64)
	Targets []Target
	Every   time.Duration // 0: DefaultEvery
	Logger  *slog.Logger  // nil: silent
}

// Status is how a target stands.
type Status struct {
	Name string
	Size int64     // of the log whose checkpoint it has; 0: it has none from this process
	Time time.Time // since when
	Err  error     // of the last write
}

// Publisher writes to its targets.
type Publisher struct {
	cfg     Config
	targets []*target

	mu     sync.Mutex // guards status
	status []Status
}

// target belongs to its goroutine.
type target struct {
	Target
	client   *http.Client
	last     []byte
	size     int64
	failures int
}

// New checks the targets and writes nothing.
func New(cfg Config) (*Publisher, error) {
	if cfg.Every == 0 {
		cfg.Every = DefaultEvery
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Publisher{cfg: cfg}
	for _, t := range cfg.Targets {
		if (t.Dir == "") == (t.URL == "") {
			return nil, errors.New("publish: a target is a directory or an address")
		}
		if t.Timeout == 0 {
			t.Timeout = DefaultTimeout
		}
		own := &target{Target: t}
		if t.URL != "" {
			if err := outward.CheckURL(t.URL); err != nil {
				return nil, fmt.Errorf("publish: %w", err)
			}
			var err error
			if own.client, err = outward.Client(t.CAFile, t.Timeout); err != nil {
				return nil, fmt.Errorf("publish: %w", err)
			}
		} else if err := durable.RemoveTemps(filepath.Join(t.Dir, name)); err != nil {
			return nil, fmt.Errorf("publish: %w", err)
		}
		p.targets, p.status = append(p.targets, own), append(p.status, Status{Name: t.String()})
	}
	return p, nil
}

// Status tells how the targets stand, in the order of the configuration.
func (p *Publisher) Status() []Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Status(nil), p.status...)
}

// Run publishes until ctx ends.
func (p *Publisher) Run(ctx context.Context) {
	var all sync.WaitGroup
	for i, t := range p.targets {
		all.Go(func() { p.follow(ctx, i, t) })
	}
	all.Wait()
}

// follow keeps one target up to date.
func (p *Publisher) follow(ctx context.Context, i int, t *target) {
	for {
		pause := p.cfg.Every
		raw, size := p.cfg.Source()
		if raw != nil && size >= t.size && !bytes.Equal(raw, t.last) {
			if err := p.put(ctx, i, t, raw, size); err != nil {
				pause = max(pause, outward.Backoff(t.failures, maxBackoff))
			}
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// put writes to one target, and notes what became of it.
func (p *Publisher) put(ctx context.Context, i int, t *target, raw []byte, size int64) error {
	err := t.write(ctx, raw)
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &p.status[i]
	if err != nil {
		if ctx.Err() == nil && (s.Err == nil || s.Err.Error() != err.Error()) {
			p.cfg.Logger.Warn("the checkpoint could not be published", "target", t.String(), "error", err)
		}
		t.failures++
		s.Err = err
		return err
	}
	t.last, t.size, t.failures = raw, size, 0
	s.Size, s.Time, s.Err = size, time.Now(), nil
	return nil
}

func (t *target) write(ctx context.Context, raw []byte) error {
	if t.Dir != "" {
		return durable.WriteFile(filepath.Join(t.Dir, name), raw, 0o644)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, t.URL, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	if t.Bearer != nil {
		token, err := t.Bearer()
		if err != nil {
			return fmt.Errorf("bearer token: %w", err)
		}
		req.Header.Set("Authorization", "Bearer "+string(token))
	}
	resp, err := t.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.CopyN(io.Discard, resp.Body, maxAnswer) // so that the connection can be used again
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("the server answers with status %d", resp.StatusCode)
	}
	return nil
}
