package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/publish"
	"github.com/bulla-project/bulla/audit/tileserver"
	"github.com/bulla-project/bulla/audit/witness"
	"github.com/bulla-project/bulla/broker"
	"github.com/bulla-project/bulla/broker/config"
)

const (
	witnessedFile = "witnessed" // beside the log's own checkpoint
	// maxTileConnections bounds what is open at the listener of tiles, over all and of one address.
	maxTileConnections = 256
	maxTilesPerAddress = 64
	// witnessedLate is how many refreshes may pass until the newest witnessed checkpoint is too old.
	witnessedLate = 3
)

// outward is what of the log others get to see. Nothing that the broker does for its callers waits for any of it.
type outward struct {
	tree      *audit.Log
	circle    *witness.Circle // nil: there are no witnesses
	refresh   time.Duration
	started   time.Time
	publisher *publish.Publisher // nil: nothing is published
	listener  net.Listener       // of tiles; nil: they are not served
	http      *http.Server

	mu        sync.Mutex // guards what follows
	shown     []byte     // what newest gave last
	shownSize int64
}

// openOutward makes it, and writes and asks nothing yet.
func openOutward(cfg config.Config, opts Options, tree *audit.Log, source audit.Source) (*outward, error) {
	o := &outward{tree: tree, started: time.Now(), refresh: cfg.Log.Witnesses.Refresh}
	if o.refresh == 0 {
		o.refresh = witness.DefaultRefresh
	}
	if err := o.openCircle(cfg, opts); err != nil {
		return nil, err
	}
	if len(cfg.Log.Publish) > 0 {
		targets := make([]publish.Target, 0, len(cfg.Log.Publish))
		for _, p := range cfg.Log.Publish {
			t := publish.Target{Dir: p.Directory, URL: p.URL, CAFile: p.CAFile, Timeout: p.Timeout}
			if p.BearerTokenFile != "" {
				t.Bearer = func() ([]byte, error) { return readBearer(p.BearerTokenFile) }
			}
			targets = append(targets, t)
		}
		var err error
		if o.publisher, err = publish.New(publish.Config{Source: o.newest, Targets: targets, Logger: opts.Log}); err != nil {
			return nil, fmt.Errorf("%w: log.publish: %w", config.ErrInvalid, err)
		}
	}
	return o, o.listen(cfg.Log.Tiles, opts, source)
}

func (o *outward) openCircle(cfg config.Config, opts Options) error {
	c := cfg.Log.Witnesses
	if len(c.List) == 0 {
		return nil
	}
	var all []witness.Witness
	for _, w := range c.List {
		key, err := proofs.ParseWitnessKey(w.Key)
		if err != nil {
			return fmt.Errorf("%w: log.witnesses: %w", config.ErrInvalid, err)
		}
		all = append(all, witness.Witness{Key: key, URL: w.URL, Timeout: w.Timeout, CAFile: w.CAFile})
	}
	var err error
	o.circle, err = witness.Open(witness.Config{
		Log: o.tree, Witnesses: all, Quorum: c.Quorum, File: filepath.Join(cfg.DataDir, logDir, witnessedFile), Every: c.Every, Refresh: c.Refresh, Logger: opts.Log,
	})
	return err
}

func (o *outward) listen(c config.Tiles, opts Options, source audit.Source) error {
	if c.Listen == "" {
		return nil
	}
	var tlsConfig *tls.Config
	if c.CertFile != "" {
		pair := &certificate{certFile: c.CertFile, keyFile: c.KeyFile}
		if _, err := pair.get(nil); err != nil {
			return fmt.Errorf("%w: log.tiles: %w", config.ErrInvalid, err)
		}
		tlsConfig = &tls.Config{GetCertificate: pair.get, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("log.tiles.listen: %w", err)
	}
	if o.listener = broker.Limit(l, maxTileConnections, maxTilesPerAddress); tlsConfig != nil {
		o.listener = tls.NewListener(o.listener, tlsConfig)
	}
	checkpoint := func() []byte { raw, _ := o.newest(); return raw }
	o.http = &http.Server{
		Handler:           tileserver.Handler(tileserver.Config{Log: o.tree, Leaves: source, Checkpoint: checkpoint}),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 20 * time.Second, IdleTimeout: 30 * time.Second,
		MaxHeaderBytes: 8 << 10, ErrorLog: slog.NewLogLogger(opts.Log.Handler(), slog.LevelDebug),
	}
	return nil
}

// witnessed is the newest checkpoint that enough witnesses cosigned, or nil.
func (o *outward) witnessed() []byte {
	if o.circle == nil {
		return nil
	}
	return o.circle.Witnessed()
}

// newest is the checkpoint that is served and published: the newest witnessed one where there are witnesses and they have
// cosigned any, else the newest one. With it comes the size of its log, which never becomes smaller: the first witnessed
// one may be of a smaller log than what was shown while there was none.
func (o *outward) newest() ([]byte, int64) {
	raw := o.witnessed()
	if raw == nil {
		raw = o.tree.Checkpoint()
	}
	at, _, err := o.tree.Key().OpenCosigned(raw, nil)
	if err != nil {
		return nil, 0
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if at.Size >= o.shownSize {
		o.shown, o.shownSize = raw, at.Size
	}
	return o.shown, o.shownSize
}

// run works until ctx ends. What the listener ends with goes to failed.
func (o *outward) run(ctx context.Context, failed chan<- error) {
	var all sync.WaitGroup
	if o.circle != nil {
		all.Go(func() { o.circle.Run(ctx) })
	}
	if o.publisher != nil {
		all.Go(func() { o.publisher.Run(ctx) })
	}
	if o.http != nil {
		all.Go(func() {
			if err := o.http.Serve(o.listener); !errors.Is(err, http.ErrServerClosed) {
				failed <- err
			}
		})
	}
	<-ctx.Done()
	o.stop()
	all.Wait()
}

// stop lets the requests for tiles that are under way finish.
func (o *outward) stop() {
	if o.http == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := o.http.Shutdown(ctx); err != nil {
		_ = o.http.Close() // they are only reading
	}
}

func (o *outward) close() error {
	if o == nil || o.listener == nil {
		return nil
	}
	if err := o.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// checks tell the doctor how it is.
func (o *outward) checks() []broker.Check {
	var out []broker.Check
	if o.circle != nil {
		out = append(out, o.checkCircle(time.Now()))
	}
	if o.publisher != nil {
		out = append(out, o.checkPublisher())
	}
	return out
}

func (o *outward) checkCircle(now time.Time) broker.Check {
	status, size := o.circle.Status()
	c := broker.Check{Name: "witnesses", Hint: "can the broker reach the witnesses, and do they know the log's key (log.pub)?"}
	var troubles []string
	well := 0
	for _, s := range status {
		if s.Err != nil {
			troubles = append(troubles, fmt.Sprintf("%s: %v", s.Name, s.Err))
			if errors.Is(s.Err, witness.ErrAhead) || errors.Is(s.Err, witness.ErrForked) {
				c.Hint = "somebody may have restored the data directory, or signs for this log elsewhere: see docs/audit.md"
				c.Err = errors.New(strings.Join(troubles, "; "))
			}
			continue
		}
		if s.Size > 0 {
			well++
		}
	}
	at := o.circle.Time()
	c.Fine = fmt.Sprintf("%d of %d cosigned, %d are enough; %d entries witnessed at %s", well, len(status), o.circle.Quorum(), size, at.UTC().Format(time.RFC3339))
	late := time.Duration(witnessedLate) * o.refresh
	switch {
	case c.Err != nil:
	case size == 0 && now.Sub(o.started) < late, size > 0 && now.Sub(at) < late:
		if size == 0 {
			c.Fine = fmt.Sprintf("%d of %d cosigned, %d are enough: no checkpoint is witnessed yet", well, len(status), o.circle.Quorum())
		}
		if len(troubles) > 0 {
			c.Fine += "; " + strings.Join(troubles, "; ")
		}
	default:
		c.Err = fmt.Errorf("no checkpoint was witnessed for %s: %s", late, strings.Join(append(troubles, c.Fine), "; "))
	}
	return c
}

func (o *outward) checkPublisher() broker.Check {
	c := broker.Check{Name: "publishing", Hint: "can the broker write there, and is the token of the address right?"}
	var fine, troubles []string
	for _, s := range o.publisher.Status() {
		if s.Err != nil {
			troubles = append(troubles, fmt.Sprintf("%s: %v", s.Name, s.Err))
		} else {
			fine = append(fine, fmt.Sprintf("%s has %d entries", s.Name, s.Size))
		}
	}
	if c.Fine = strings.Join(fine, "; "); len(troubles) > 0 {
		c.Err = errors.New(strings.Join(troubles, "; "))
	}
	return c
}

// collectors are its metrics.
func (o *outward) collectors() []prometheus.Collector {
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "bulla", Name: name, Help: help}, f)
	}
	out := []prometheus.Collector{gauge("log_entries", "Entries that the newest checkpoint signs.", func() float64 { return float64(o.tree.Size()) })}
	if o.circle != nil {
		out = append(out,
			gauge("log_witnessed_entries", "Entries of the newest checkpoint that enough witnesses cosigned.", func() float64 { _, size := o.circle.Status(); return float64(size) }),
			gauge("log_witnessed_timestamp_seconds", "When enough witnesses had cosigned it, by their clocks.", func() float64 {
				if at := o.circle.Time(); !at.IsZero() {
					return float64(at.Unix())
				}
				return 0
			}),
			gauge("log_witnesses_failing", "Witnesses whose last answer was none, or no cosignature.", func() float64 {
				status, _ := o.circle.Status()
				n := 0
				for _, s := range status {
					if s.Err != nil {
						n++
					}
				}
				return float64(n)
			}))
	}
	if o.publisher != nil {
		out = append(out, gauge("log_publications_failing", "Places that did not take the newest checkpoint.", func() float64 {
			n := 0
			for _, s := range o.publisher.Status() {
				if s.Err != nil {
					n++
				}
			}
			return float64(n)
		}))
	}
	return out
}
