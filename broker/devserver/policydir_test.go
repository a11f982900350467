package devserver_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/broker/devserver"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/internal/durable"
	"github.com/bulla-project/bulla/policy"
)

// grant is what an edit appends to grants.yaml.
const grant = "spiffe://dev.bulla.test/custodian-1:\n  read:\n    demo/: true\n  devices: [\"*\"]\n"

// logged collects a log, for whoever waits for a line of it.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// until waits for a condition; the policy directory is looked at every few milliseconds.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-limit.C:
			t.Fatalf("%s: not within 30 s", what)
		case <-tick.C:
		}
	}
}

func edit(t *testing.T, path string, change func(string) string) {
	t.Helper()
	// Whole or not at all, as editors write: the watcher may look at any moment.
	if err := durable.WriteFile(path, []byte(change(read(t, path))), 0o600); err != nil {
		t.Fatal(err)
	}
}

// active is the active revision's digest and source.
func active(t *testing.T, s *devserver.Server) (digest, source string) {
	t.Helper()
	found, err := bullav1.NewPoliciesClient(dial(t, s.Client("security")).Conn()).GetRevision(t.Context(), &bullav1.GetRevisionRequest{})
	if err != nil {
		t.Fatal(client.FromStatus(err))
	}
	return found.GetRevision().GetDigest(), found.GetRevision().GetSource()
}

func push(t *testing.T, s *devserver.Server, dir string) string {
	t.Helper()
	archive, err := policy.Pack(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	r, err := bullav1.NewPoliciesClient(dial(t, s.Client("security")).Conn()).PushRevision(t.Context(), &bullav1.PushRevisionRequest{Archive: archive})
	if err != nil {
		t.Fatal(client.FromStatus(err))
	}
	return r.GetDigest()
}

func TestEditsAreTakenUpAndBrokenOnesRefused(t *testing.T) {
	var log logged
	cfg := devserver.Config{
		Dir: filepath.Join(t.TempDir(), "d"), TPM: devserver.TPMOff, PolicyPoll: 5 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	}
	s := start(t, cfg)
	grants := filepath.Join(cfg.Dir, "policy", "data", "grants.yaml")
	put(t, s, "demo/hello", "standard", "value")
	custodian := dial(t, s.Client("custodian-1"))
	if _, err := custodian.Get(t.Context(), "demo/hello"); !errors.Is(err, client.ErrDenied) {
		t.Fatalf("before the edit: %v, want a denial", err)
	}
	edit(t, grants, func(text string) string { return text + grant })
	until(t, "the edit is taken up", func() bool {
		got, err := custodian.Get(t.Context(), "demo/hello")
		if got != nil {
			got.Close()
		}
		return err == nil
	})
	good, source := active(t, s)
	if !strings.HasPrefix(source, "directory ") {
		t.Errorf("its source is %q", source)
	}

	edit(t, grants, func(text string) string { return text + "twice: {}\ntwice: {}\n" })
	until(t, "the broken edit is logged", func() bool { return strings.Contains(log.String(), "file="+grants) }) // not of a file on its way there
	if !strings.Contains(log.String(), "file="+grants+" check=data") || !strings.Contains(log.String(), "line 11: key") {
		t.Errorf("the log does not name file and line:\n%s", log.String())
	}
	if now, _ := active(t, s); now != good {
		t.Error("a broken edit replaced the active revision")
	}
	get(t, custodian, "demo/hello")

	rego := filepath.Join(cfg.Dir, "policy", "rego", "deliver.rego")
	edit(t, grants, func(text string) string { return strings.ReplaceAll(text, "twice: {}\n", "") })
	edit(t, rego, func(text string) string { return text + "\nbroken if {\n" })
	until(t, "the broken rule is logged", func() bool { return strings.Contains(log.String(), "file="+rego+":") })
}

// TestPushedRevisionStays: the directory takes over when it is edited, not when the server is started again.
func TestPushedRevisionStays(t *testing.T) {
	cfg := devserver.Config{Dir: filepath.Join(t.TempDir(), "d"), TPM: devserver.TPMOff, PolicyPoll: 5 * time.Millisecond}
	other := filepath.Join(t.TempDir(), "other")
	var pushed string
	stopped(t, cfg, func(s *devserver.Server) {
		if err := os.CopyFS(other, os.DirFS(filepath.Join(cfg.Dir, "policy"))); err != nil {
			t.Fatal(err)
		}
		edit(t, filepath.Join(other, "data", "grants.yaml"), func(text string) string { return text + grant })
		pushed = push(t, s, other)
	})
	stopped(t, cfg, func(s *devserver.Server) {
		if now, source := active(t, s); now != pushed {
			t.Errorf("after the restart the active revision is %s from %s, not the pushed one", now, source)
		}
		// New times without new content are no edit.
		later := time.Now().Add(time.Hour)
		if err := os.Chtimes(filepath.Join(cfg.Dir, "policy", "risk.yaml"), later, later); err != nil {
			t.Fatal(err)
		}
		comment(t, cfg.Dir)
		until(t, "an edit takes over", func() bool {
			now, _ := active(t, s)
			return now != pushed
		})
	})
	// An edit while nobody runs is taken up at the start.
	digest := ""
	stopped(t, cfg, func(s *devserver.Server) { digest, _ = active(t, s) })
	comment(t, cfg.Dir)
	stopped(t, cfg, func(s *devserver.Server) {
		if now, _ := active(t, s); now == digest {
			t.Error("an edit between two runs was not taken up")
		}
	})
}

// comment is an edit that changes no decision.
func comment(t *testing.T, dir string) {
	t.Helper()
	edit(t, filepath.Join(dir, "policy", "data", "limits.yaml"), func(text string) string { return text + "# edited\n" })
}
