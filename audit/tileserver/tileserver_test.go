package tileserver

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/tiles"
	"github.com/bulla-project/bulla/ledger/event"
)

type source struct {
	leaves []audit.Entry
	err    error
}

func (s *source) Leaves(_ context.Context, from int64, most int) ([]audit.Entry, error) {
	if s.err != nil {
		return nil, s.err
	}
	rest := s.leaves[min(int(from), len(s.leaves)):]
	return rest[:min(most, len(rest))], nil
}

// serve serves a log of 600 entries, of which the store holds ten more than are signed.
func serve(t *testing.T) (*audit.Log, *source, string) {
	t.Helper()
	skey, _, err := proofs.NewLogKey("test.example/bulla")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := proofs.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	src := &source{}
	grow := func(n int) {
		for range n {
			src.leaves = append(src.leaves, audit.Entry{Index: int64(len(src.leaves)), Leaf: event.Leaf{Event: event.NewSalt(), Reply: event.NewSalt()}})
		}
	}
	grow(600)
	log, err := audit.Open(t.Context(), audit.Config{Dir: filepath.Join(t.TempDir(), "log"), Origin: signer.Origin(), Signer: signer, Source: src})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	if _, err := log.Integrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	grow(10)
	server := httptest.NewServer(Handler(Config{Log: log, Leaves: src, Checkpoint: log.Checkpoint}))
	t.Cleanup(server.Close)
	return log, src, server.URL
}

func ask(t *testing.T, method, url string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, body
}

func TestServe(t *testing.T) {
	log, src, base := serve(t)
	resp, body := ask(t, "GET", base+"/checkpoint")
	if resp.StatusCode != 200 || string(body) != string(log.Checkpoint()) || resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" || strings.Contains(resp.Header.Get("Cache-Control"), "immutable") {
		t.Errorf("checkpoint: %v, %q", resp, body)
	}
	for _, path := range []string{"tile/0/000", "tile/0/001", "tile/0/002.p/88", "tile/0/002.p/1", "tile/1/000.p/2", "tile/entries/000", "tile/entries/002.p/88", "tile/entries/001.p/7"} {
		at, entries, _ := tiles.Parse(path)
		want, err := log.Tile(at)
		if entries {
			want = nil
			for _, e := range src.leaves[at.First() : at.First()+int64(at.W)] {
				want, err = tiles.AppendEntry(want, e.Leaf.Bytes())
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		resp, body := ask(t, "GET", base+"/"+path)
		if resp.StatusCode != 200 || string(body) != string(want) || resp.Header.Get("Content-Type") != "application/octet-stream" || !strings.Contains(resp.Header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s: %v, %d bytes, want %d", path, resp, len(body), len(want))
		}
		if head, body := ask(t, "HEAD", base+"/"+path); head.StatusCode != 200 || len(body) != 0 || head.ContentLength != int64(len(want)) {
			t.Errorf("HEAD %s: %v", path, head)
		}
	}
}

// Nothing but the signed log is there: no event bodies, no entries that no checkpoint signs, no other methods.
func TestServeRefuses(t *testing.T) {
	_, src, base := serve(t)
	for _, path := range []string{
		"", "/", "/tile", "/tile/0/003", "/tile/0/002", "/tile/0/002.p/89", "/tile/entries/002.p/89", "/tile/entries/003.p/1", "/tile/1/001.p/1", "/tile/2/000.p/1", "/tile/63/000",
		"/events/000", "/tile/events/000", "/manifest", "/witnessed", "/hashes", "/tile/0/000?x=1", "/tile/0/%30%30%30", "/checkpoint/", "//checkpoint", "/tile/entries/x281/x474/x976/x710/655",
		"/tile/0/" + strings.Repeat("x000/", 60) + "000",
	} {
		if resp, body := ask(t, "GET", base+path); resp.StatusCode == 200 || strings.Contains(resp.Header.Get("Cache-Control"), "public") {
			t.Errorf("%s: %v, %q", path, resp.Status, body)
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"} {
		if resp, _ := ask(t, method, base+"/checkpoint"); resp.StatusCode != http.StatusMethodNotAllowed && method != "CONNECT" {
			t.Errorf("%s: %v", method, resp.Status)
		}
	}
	src.err = errors.New("the disk /dev/secret is away")
	if resp, body := ask(t, "GET", base+"/tile/entries/000"); resp.StatusCode != http.StatusServiceUnavailable || strings.Contains(string(body), "secret") {
		t.Errorf("a store that is away: %v, %q", resp.Status, body)
	}
	src.err, src.leaves = nil, src.leaves[:100]
	if resp, _ := ask(t, "GET", base+"/tile/entries/000"); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a store that lost leaves: %v", resp.Status)
	}
}

// slowPeer takes nothing of its answer until the end of the test.
type slowPeer struct {
	*httptest.ResponseRecorder
	waits, end chan struct{}
}

func (p slowPeer) Write(data []byte) (int, error) {
	p.waits <- struct{}{}
	<-p.end
	return p.ResponseRecorder.Write(data)
}

// Peers that take their answers slowly, as many as may be read for at once, keep nobody else waiting.
func TestSlowPeers(t *testing.T) {
	log, src, _ := serve(t)
	h := Handler(Config{Log: log, Leaves: src, Checkpoint: log.Checkpoint})
	slow := slowPeer{httptest.NewRecorder(), make(chan struct{}), make(chan struct{})}
	var all sync.WaitGroup
	defer all.Wait()
	defer close(slow.end)
	for range maxAtOnce {
		peer := slow
		peer.ResponseRecorder = httptest.NewRecorder()
		all.Go(func() { h.ServeHTTP(peer, httptest.NewRequest(http.MethodGet, "/tile/entries/000", nil)) })
	}
	for range maxAtOnce {
		<-slow.waits
	}
	out := httptest.NewRecorder()
	if h.ServeHTTP(out, httptest.NewRequest(http.MethodGet, "/tile/0/000", nil)); out.Code != http.StatusOK {
		t.Errorf("status %d", out.Code)
	}
}
