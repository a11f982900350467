package publish

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// source gives what a test says.
type source struct {
	mu   sync.Mutex
	raw  []byte
	size int64
}

func (s *source) set(text string, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.raw, s.size = []byte(text), size
}

func (s *source) get() ([]byte, int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.raw, s.size
}

// store is a server that takes objects by PUT.
type store struct {
	mu     sync.Mutex
	got    []string
	status int
}

func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status != 0 {
		w.WriteHeader(s.status)
		return
	}
	s.got = append(s.got, r.Method+" "+r.URL.Path+" "+r.Header.Get("Authorization")+" "+string(body))
}

func TestPublish(t *testing.T) {
	s := &store{}
	server := httptest.NewServer(s)
	defer server.Close()
	dir, src := t.TempDir(), &source{}
	p, err := New(Config{Source: src.get, Targets: []Target{
		{Dir: dir}, {URL: server.URL + "/bucket/checkpoint", Bearer: func() ([]byte, error) { return []byte("t0ken"), nil }},
	}})
	if err != nil {
		t.Fatal(err)
	}
	once := func() { // each target's turn, once
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for i, tg := range p.targets {
			if raw, size := src.get(); raw != nil {
				_ = p.put(context.WithoutCancel(ctx), i, tg, raw, size)
			}
		}
	}
	src.set("one", 1)
	once()
	text, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil || string(text) != "one" {
		t.Errorf("%q, %v", text, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "checkpoint")); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", info, err)
	}
	if len(s.got) != 1 || s.got[0] != "PUT /bucket/checkpoint Bearer t0ken one" {
		t.Errorf("the server got %q", s.got)
	}
	s.status = http.StatusTemporaryRedirect
	src.set("two", 2)
	once()
	if status := p.Status(); status[0].Err != nil || status[0].Size != 2 || status[1].Err == nil || status[1].Size != 1 {
		t.Errorf("%+v", status)
	}
}

// A target that is away is asked less and less often, and gets the newest when it is back; never an older one.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, away := &source{}, errors.New("away")
		var mu sync.Mutex
		var tries int
		failing := true
		p, err := New(Config{Source: src.get, Every: time.Second, Targets: []Target{{URL: "http://127.0.0.1:1/checkpoint", Bearer: func() ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			tries++
			if failing {
				return nil, away
			}
			return nil, errors.New("still away")
		}}}})
		if err != nil {
			t.Fatal(err)
		}
		src.set("one", 1)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { p.Run(ctx); close(done) }()
		time.Sleep(time.Minute) // of the bubble's clock
		mu.Lock()
		if tries < 4 || tries > 8 {
			t.Errorf("it was tried %d times in a minute", tries)
		}
		mu.Unlock()
		if s := p.Status(); !errors.Is(s[0].Err, away) {
			t.Errorf("%+v", s)
		}
		stop()
		<-done
	})
}

func TestNeverOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, src := t.TempDir(), &source{}
		p, err := New(Config{Source: src.get, Every: time.Second, Targets: []Target{{Dir: dir}}})
		if err != nil {
			t.Fatal(err)
		}
		src.set("two", 2)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { p.Run(ctx); close(done) }()
		time.Sleep(5 * time.Second)
		src.set("one", 1)
		time.Sleep(5 * time.Second)
		stop()
		<-done
		if text, err := os.ReadFile(filepath.Join(dir, "checkpoint")); err != nil || string(text) != "two" {
			t.Errorf("%q, %v", text, err)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for name, target := range map[string]Target{
		"nothing": {}, "both": {Dir: "d", URL: "https://example.org/x"}, "plain": {URL: "http://192.0.2.1/x"}, "no directory": {Dir: "/no/such/dir"},
		"no CA": {URL: "https://example.org/x", CAFile: "/no/such/file"},
	} {
		if _, err := New(Config{Targets: []Target{target}}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
