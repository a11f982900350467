// Package tileserver serves a log read-only over HTTP, as C2SP tlog-tiles has it: /checkpoint, the hashes of the tree at
// /tile/L/N, and the leaves at /tile/entries/N, each also partial (.p/W). Whoever wants to watch the log needs nothing else.
//
// What it serves is fit for the public: leaves are salted commitments, of which nobody can tell type, time or subject. The
// bodies of events are not within its reach. It authenticates nobody; how many connections there may be is for the
// listener to say.
package tileserver

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/tiles"
)

const (
	// maxAtOnce is how many tiles are read from the store at the same time.
	maxAtOnce = 16
	// maxWait is how long a request waits for its turn and for the store.
	maxWait = 5 * time.Second
	// maxPath is the longest path that is looked at, in bytes.
	maxPath = 128

	cacheForever = "public, max-age=31536000, immutable"
	cacheBriefly = "public, max-age=1, must-revalidate"
)

// Config says what is served.
type Config struct {
	Log *audit.Log
	// Leaves reads the entries; safe for concurrent use.
	Leaves audit.Source
	// Checkpoint gives the checkpoint to serve, or nil while there is none.
	Checkpoint func() []byte
}

// server serves one log.
type server struct {
	cfg  Config
	room chan struct{}
}

// Handler serves the log of cfg.
func Handler(cfg Config) http.Handler {
	return &server{cfg: cfg, room: make(chan struct{}, maxAtOnce)}
}

// ServeHTTP implements http.Handler.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		refuse(w, http.StatusMethodNotAllowed)
		return
	}
	path, ok := strings.CutPrefix(r.URL.EscapedPath(), "/")
	if !ok || len(path) > maxPath || r.URL.RawQuery != "" {
		refuse(w, http.StatusNotFound)
		return
	}
	if path == "checkpoint" {
		s.checkpoint(w)
		return
	}
	t, entries, ok := tiles.Parse(path)
	if !ok {
		refuse(w, http.StatusNotFound)
		return
	}
	data, err := s.read(r.Context(), t, entries)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		refuse(w, http.StatusNotFound)
	case err != nil:
		w.Header().Set("Retry-After", "1")
		refuse(w, http.StatusServiceUnavailable)
	default:
		answer(w, "application/octet-stream", cacheForever, data)
	}
}

// read reads a tile or a bundle when it is its turn. It waits for no peer: whoever takes its answer slowly keeps nobody
// else from being answered.
func (s *server) read(ctx context.Context, t tiles.Tile, entries bool) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	select {
	case s.room <- struct{}{}:
		defer func() { <-s.room }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if entries {
		return s.entries(ctx, t)
	}
	return s.cfg.Log.Tile(t)
}

func (s *server) checkpoint(w http.ResponseWriter) {
	raw := s.cfg.Checkpoint()
	if raw == nil {
		refuse(w, http.StatusNotFound)
		return
	}
	answer(w, "text/plain; charset=utf-8", cacheBriefly, raw)
}

// answer writes a whole body; that of a HEAD request is left out by net/http.
func answer(w http.ResponseWriter, kind, cache string, data []byte) {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Cache-Control", cache)
	h.Set("Content-Length", strconv.Itoa(len(data)))
	_, _ = w.Write(data) // the peer went away: nothing to do about it
}

// refuse says nothing but its status, and that nobody keeps it: what is not there yet may be soon.
func refuse(w http.ResponseWriter, status int) {
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, http.StatusText(status), status)
}

// entries reads the bundle of leaves that belongs to a tile of level 0 of the signed log.
func (s *server) entries(ctx context.Context, t tiles.Tile) ([]byte, error) {
	if t.N > s.cfg.Log.Size()/tiles.Width || t.First()+int64(t.W) > s.cfg.Log.Size() {
		return nil, fs.ErrNotExist
	}
	leaves, err := s.cfg.Leaves.Leaves(ctx, t.First(), t.W)
	if err != nil {
		return nil, err
	}
	if len(leaves) != t.W {
		return nil, errors.New("the store holds fewer leaves than the log has signed")
	}
	var out []byte
	for i, e := range leaves {
		if e.Index != t.First()+int64(i) {
			return nil, audit.ErrGap
		}
		if out, err = tiles.AppendEntry(out, e.Leaf.Bytes()); err != nil {
			return nil, err
		}
	}
	return out, nil
}
