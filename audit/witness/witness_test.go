package witness

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/witness/xtest"
	"github.com/bulla-project/bulla/ledger/event"
)

const origin = "test.example/bulla"

// source holds leaves that nobody can open.
type source struct {
	mu     sync.Mutex
	leaves []audit.Entry
}

func (s *source) Leaves(_ context.Context, from int64, most int) ([]audit.Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rest := s.leaves[min(int(from), len(s.leaves)):]
	return rest[:min(most, len(rest))], nil
}

func (s *source) grow(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range n {
		s.leaves = append(s.leaves, audit.Entry{Index: int64(len(s.leaves)), Leaf: event.Leaf{Event: event.NewSalt(), Reply: event.NewSalt()}})
	}
}

// scene is a log with some witnesses.
type scene struct {
	t    *testing.T
	src  *source
	log  *audit.Log
	dir  string
	all  []*xtest.Witness
	keys []proofs.WitnessKey
}

func newScene(t *testing.T, witnesses int) *scene {
	t.Helper()
	skey, vkey, err := proofs.NewLogKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := proofs.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{t: t, src: &source{}, dir: t.TempDir()}
	s.src.grow(5)
	if s.log, err = audit.Open(t.Context(), audit.Config{Dir: filepath.Join(s.dir, "log"), Origin: origin, Signer: signer, Source: s.src}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.log.Close() })
	s.grow(0)
	for i := range witnesses {
		w := xtest.Start(t, "witness.example/w"+string(rune('1'+i)), vkey)
		key, err := proofs.ParseWitnessKey(w.Key)
		if err != nil {
			t.Fatal(err)
		}
		s.all, s.keys = append(s.all, w), append(s.keys, key)
	}
	return s
}

func (s *scene) grow(n int) int64 {
	s.t.Helper()
	s.src.grow(n)
	at, err := s.log.Integrate(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return at.Size
}

func (s *scene) config(quorum int) Config {
	cfg := Config{Log: s.log, Quorum: quorum, File: filepath.Join(s.dir, "witnessed"), Every: time.Millisecond}
	for i, w := range s.all {
		cfg.Witnesses = append(cfg.Witnesses, Witness{Key: s.keys[i], URL: w.URL, Timeout: 2 * time.Second})
	}
	return cfg
}

func (s *scene) open(quorum int) *Circle {
	s.t.Helper()
	c, err := Open(s.config(quorum))
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// again has everybody asked in the next round, whatever happened before.
func (c *Circle) again() {
	for _, m := range c.members {
		m.next, m.asked = time.Time{}, time.Time{}
	}
}

// policy is another implementation's idea of a checkpoint that these witnesses cosigned.
func (s *scene) policy(quorum int, which ...int) torchwood.Policy {
	s.t.Helper()
	v, err := note.NewVerifier(s.log.Key().String())
	if err != nil {
		s.t.Fatal(err)
	}
	var all []torchwood.Policy
	for _, i := range which {
		w, err := torchwood.NewCosignatureVerifier(s.all[i].Key)
		if err != nil {
			s.t.Fatal(err)
		}
		all = append(all, torchwood.SingleVerifierPolicy(w))
	}
	return torchwood.ThresholdPolicy(3, torchwood.OriginPolicy(origin), torchwood.SingleVerifierPolicy(v), torchwood.ThresholdPolicy(quorum, all...))
}

// TestCircle: what is kept is what another implementation accepts, and nothing altered is.
func TestCircle(t *testing.T) {
	s := newScene(t, 3)
	c := s.open(2)
	for _, more := range []int{0, 1, 300, 0} {
		size := s.grow(more)
		c.again()
		c.round(t.Context())
		raw := c.Witnessed()
		at, sigs, err := s.log.Key().OpenCosigned(raw, s.keys)
		if err != nil || at.Size != size || len(sigs) != 3 {
			t.Fatalf("%d entries: witnessed %+v, %d cosignatures: %v", size, at, len(sigs), err)
		}
		if seen, missing := proofs.VerifiedBy(sigs, s.keys); len(seen) != 3 || len(missing) != 0 {
			t.Errorf("seen %v, missing %v", seen, missing)
		}
		checkpoint, _, err := torchwood.VerifyCheckpoint(raw, s.policy(3, 0, 1, 2))
		if err != nil || checkpoint.N != size {
			t.Fatalf("torchwood: %+v, %v", checkpoint, err)
		}
		if on, err := os.ReadFile(s.config(2).File); err != nil || string(on) != string(raw) {
			t.Errorf("the file holds something else: %v", err)
		}
		for i := range raw { // no byte can change: of the log's part, of any cosignature
			bad := append([]byte{}, raw...)
			bad[i] ^= 1
			if _, sigs, err := s.log.Key().OpenCosigned(bad, s.keys); err == nil {
				if seen, _ := proofs.VerifiedBy(sigs, s.keys); len(seen) == 3 {
					t.Fatalf("byte %d was changed, and all three verify", i)
				}
			} else if !errors.Is(err, proofs.ErrVerification) {
				t.Fatalf("byte %d: %v", i, err)
			}
			if i+1 < len(raw) && raw[i+1] == '=' {
				continue // the last digit of base64 has bits that mean nothing; we refuse that spelling, others don't
			}
			if _, _, err := torchwood.VerifyCheckpoint(bad, s.policy(3, 0, 1, 2)); err == nil {
				t.Fatalf("byte %d was changed, and torchwood accepts it", i)
			}
		}
	}
	if at := c.Time(); time.Since(at) > time.Minute {
		t.Errorf("witnessed at %s", at)
	}
}

// TestQuorum: below the quorum nothing is witnessed, and what was stays.
func TestQuorum(t *testing.T) {
	s := newScene(t, 3)
	c := s.open(2)
	c.round(t.Context())
	first := c.Witnessed()
	away := func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "away", http.StatusServiceUnavailable)
		return true
	}
	s.all[0].Break(away)
	s.all[1].Break(away)
	s.grow(10)
	c.again()
	c.round(t.Context())
	if string(c.Witnessed()) != string(first) {
		t.Error("one witness of three made a checkpoint a witnessed one")
	}
	status, size := c.Status()
	if size != 5 || status[0].Err == nil || status[1].Err == nil || status[2].Err != nil || status[2].Size != 15 {
		t.Errorf("status %+v, %d entries witnessed", status, size)
	}
	// One that failed is left alone for a while, and the quorum comes together as soon as it is back.
	calls := s.all[0].Calls()
	c.round(t.Context())
	if s.all[0].Calls() != calls {
		t.Error("a witness that is away is asked without a pause")
	}
	s.all[0].Break(nil)
	c.again()
	c.round(t.Context())
	if at, _, err := s.log.Key().OpenCosigned(c.Witnessed(), s.keys); err != nil || at.Size != 15 {
		t.Errorf("witnessed: %+v, %v", at, err)
	}
	if _, _, err := torchwood.VerifyCheckpoint(c.Witnessed(), s.policy(2, 0, 2)); err != nil {
		t.Errorf("torchwood: %v", err)
	}
}

// TestRestart: the witness knows more than the broker remembers, and says so.
func TestRestart(t *testing.T) {
	s := newScene(t, 1)
	c := s.open(1)
	c.round(t.Context())
	size := s.grow(7)
	again := s.open(1)
	if string(again.Witnessed()) != string(c.Witnessed()) {
		t.Error("what was witnessed is forgotten")
	}
	again.round(t.Context())
	if got := s.all[0].Tree(origin).N; got != size {
		t.Errorf("the witness has %d entries, want %d", got, size)
	}
	if status, _ := again.Status(); status[0].Err != nil {
		t.Error(status[0].Err)
	}
}

// TestRollback: a witness, or the kept checkpoint, that has seen more, or something else, is named as that.
func TestRollback(t *testing.T) {
	s := newScene(t, 1)
	c := s.open(1)
	s.all[0].SetTree(origin, tlog.Tree{N: 6, Hash: tlog.Hash{1}})
	c.round(t.Context())
	if status, _ := c.Status(); !errors.Is(status[0].Err, ErrAhead) {
		t.Errorf("a witness with a larger log: %v", status[0].Err)
	}
	for _, size := range []int64{3, 5} {
		s.all[0].SetTree(origin, tlog.Tree{N: size, Hash: tlog.Hash{1}})
		c.again()
		c.round(t.Context())
		if status, _ := c.Status(); !errors.Is(status[0].Err, ErrForked) {
			t.Errorf("a witness with another log of %d entries: %v", size, status[0].Err)
		}
	}
	if c.Witnessed() != nil {
		t.Error("something was witnessed")
	}
	// The kept checkpoint is of a log that this one does not extend.
	s.all[0].SetTree(origin, tlog.Tree{})
	c.again()
	c.round(t.Context())
	kept := c.Witnessed()
	other := newScene(t, 0)
	other.all, other.keys = s.all, s.keys
	if kept == nil {
		t.Fatal("nothing was witnessed")
	}
	if err := os.WriteFile(other.config(1).File, kept, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(other.config(1)); !errors.Is(err, proofs.ErrVerification) {
		t.Errorf("a checkpoint of another log's key: %v", err)
	}
}

// TestHostile: what a witness answers is believed only as far as it is signed.
func TestHostile(t *testing.T) {
	s := newScene(t, 2)
	other := newScene(t, 1) // cosigns another log, and has another key
	oc := other.open(1)
	oc.round(t.Context())
	_, foreign, _ := strings.Cut(string(oc.Witnessed()), "\n\n")
	foreign = foreign[strings.Index(foreign, "\n")+1:]
	for name, f := range map[string]http.HandlerFunc{
		"nothing":            func(http.ResponseWriter, *http.Request) {},
		"another's":          func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, foreign) },
		"no newline":         func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "— x y") },
		"too long":           func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxAnswer+1)) },
		"no size":            func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusConflict) },
		"a wrong size":       size("-1\n"),
		"a size with a zero": size("03\n"),
		"a huge size":        size("999999999999999999999\n"),
		"another mind": func() http.HandlerFunc {
			n := 0
			return func(w http.ResponseWriter, r *http.Request) { n++; size([]string{"1\n", "2\n", "3\n"}[n%3])(w, r) }
		}(),
		"unknown log": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) },
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, s.all[0].URL+"/add-checkpoint", http.StatusTemporaryRedirect)
		},
	} {
		c := s.open(2)
		s.all[1].Break(func(w http.ResponseWriter, r *http.Request) bool { f(w, r); return true })
		calls := s.all[1].Calls()
		c.round(t.Context())
		status, _ := c.Status()
		if status[0].Err != nil || status[1].Err == nil || c.Witnessed() != nil {
			t.Errorf("%s: %+v", name, status)
		}
		if n := s.all[1].Calls() - calls; n > 2 {
			t.Errorf("%s: it was asked %d times in one round", name, n)
		}
	}
}

func size(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/x.tlog.size")
		w.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(w, text)
	}
}

// TestSlow: a witness that does not answer holds up nobody but the round, and no longer than its time.
func TestSlow(t *testing.T) {
	s := newScene(t, 2)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	s.all[1].Break(func(_ http.ResponseWriter, r *http.Request) bool {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return true
	})
	cfg := s.config(1)
	cfg.Witnesses[1].Timeout = 50 * time.Millisecond
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.round(t.Context()) // ends by itself
	if status, _ := c.Status(); c.Witnessed() == nil || status[1].Err == nil {
		t.Errorf("one witness that is well is not enough: %+v", status)
	}
}

func TestOpenRefuses(t *testing.T) {
	s := newScene(t, 2)
	for name, edit := range map[string]func(c *Config){
		"no quorum":       func(c *Config) { c.Quorum = 0 },
		"too many":        func(c *Config) { c.Quorum = 3 },
		"nobody":          func(c *Config) { c.Witnesses = nil },
		"twice":           func(c *Config) { c.Witnesses[1] = c.Witnesses[0] },
		"no key":          func(c *Config) { c.Witnesses[1].Key = proofs.WitnessKey{} },
		"plain http":      func(c *Config) { c.Witnesses[1].URL = "http://192.0.2.1/" },
		"a missing CA":    func(c *Config) { c.Witnesses[1].CAFile = "/no/such/file" },
		"user in the URL": func(c *Config) { c.Witnesses[1].URL = "https://a:b@example.org/" },
	} {
		cfg := s.config(1)
		edit(&cfg)
		if _, err := Open(cfg); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
