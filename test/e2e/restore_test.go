package e2e

import (
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/test/xtest"
)

// TestOperationsRestore runs the commands of the section "When a backup had to be restored", up to the one that goes on
// for ever, on a broker whose data came from a backup.
func TestOperationsRestore(t *testing.T) {
	t.Parallel()
	_, section, ok := strings.Cut(read(t, filepath.Join(xtest.Root(t), "docs", "operations.md")), "\n## When a backup had to be restored\n")
	scripts := blocks(section, "sh")
	if !ok || len(scripts) == 0 || !strings.Contains(scripts[0], "bulla server run ") {
		t.Fatal("docs/operations.md has no section on restores of the form that this test runs")
	}
	s, put := rolledBack(t)
	config := s.path("server.yaml")
	shape := fields{
		"state": is("behind"), "incarnation": whole, "origin": is("example.org/log"), "size": whole, "root": base64Text, "lost": whole, "sessions": whole,
		"checkpoints": list(object(fields{"where": word, "origin": word, "size": whole, "root": base64Text, "verified": is(true), "held": boolean})),
		"next":        is("example.org/log/incarnation-2"), "log_key": is(nil), "kept": list(word),
	}
	run(t, nil, "server", "restore", "--config", config, "-o", "json").want(t, done).object(t, shape)
	bin := t.TempDir()
	if err := os.Symlink(xtest.Binary(t), filepath.Join(bin, "bulla")); err != nil {
		t.Fatal(err)
	}
	script, _, _ := strings.Cut(strings.ReplaceAll(scripts[0], "/etc/bulla/server.yaml", "'"+config+"'"), "bulla server run ")
	out := shell(t, environment{"PATH": bin + ":" + os.Getenv("PATH")}, "sh", "-ec", script)
	for _, want := range []string{"Nothing was changed", "1 would end", "Done: start the broker", "1 have ended"} {
		if !strings.Contains(out, want) {
			t.Errorf("the commands don't print %q:\n%s", want, cut(out))
		}
	}
	shape["state"], shape["origin"], shape["next"] = is("whole"), is("example.org/log/incarnation-2"), is(nil)
	run(t, nil, "server", "restore", "--config", config, "-o", "json").want(t, done).object(t, shape)
	put()
	run(t, nil, "audit", "rebuild", "--check", "--data", s.path("data"), "--kek-file", s.path("kek")).want(t, done)
}

// rolledBack is a broker that refuses to start, since its data came from a backup; put lets it run, for a secret and a
// delivery of it.
func rolledBack(t *testing.T) (s *site, put func()) {
	t.Helper()
	s = newSite(t)
	config := s.path("server.yaml")
	write(t, config, strings.Replace(serverConfig, "  origin: example.org/log\n", "  origin: example.org/log\n  checkpoint_copy: outside\n", 1), 0o600)
	run(t, nil, "server", "init", "--config", config).want(t, done)
	put = func() {
		t.Helper()
		b := serve(t, config)
		command{stdin: []byte("for the shop"), args: append(s.as(t, "bulla/operator", b.addr), "secret", "put", "shop/db", "--class", "standard")}.bulla(t).want(t, done)
		run(t, nil, append(s.as(t, "shop/api", b.addr), "get", "shop/db")...).want(t, done)
		b.stop(t)
	}
	put()
	replace(t, s.path("backup"), s.path("data"))
	put()
	replace(t, s.path("data"), s.path("backup"))
	run(t, nil, "server", "run", "--config", config).want(t, failed).says(t, "rolled back", "bulla server restore")
	return s, put
}

// replace puts a copy of the directory from in the place of the directory to, for its owner only.
func replace(t *testing.T, to, from string) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(to), os.CopyFS(to, os.DirFS(from))); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.Chmod(path, 0o700)
		}
		return os.Chmod(path, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestAbuse_A28_killed_restores kills a restore at a random moment, over and over: the broker starts from what is left only
// if the restore was done, the next run takes it up, and then everything is as after one that nobody killed. Four rounds;
// a hundred with BULLA_TEST_LONG=1.
func TestAbuse_A28_killed_restores(t *testing.T) {
	t.Parallel()
	rounds := 4
	if os.Getenv("BULLA_TEST_LONG") != "" {
		rounds = 100
	}
	s, put := rolledBack(t)
	config := s.path("server.yaml")
	replace(t, s.path("data-before"), s.path("data"))
	before := read(t, s.path("outside"))
	began := time.Now()
	run(t, nil, "server", "restore", "--confirm", "--config", config).want(t, done)
	whole := time.Since(began)
	killed := 0
	for range rounds {
		replace(t, s.path("data"), s.path("data-before"))
		kept, err := filepath.Glob(s.path("outside*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range kept {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
		write(t, s.path("outside"), before, 0o600)
		for range 3 { // the next run can be killed as well
			p := launch(t, nil, "server", "restore", "--confirm", "--config", config)
			timer := time.AfterFunc(time.Duration(rand.Int64N(int64(whole))), p.kill)
			<-p.ended
			if timer.Stop() {
				break
			}
			killed++
		}
		var found struct{ State string }
		if err := json.Unmarshal([]byte(run(t, nil, "server", "restore", "--config", config, "-o", "json").want(t, done).stdout), &found); err != nil {
			t.Fatal(err)
		}
		if found.State != "whole" {
			run(t, nil, "server", "run", "--config", config).want(t, failed).says(t, "bulla server restore")
			run(t, nil, "server", "restore", "--confirm", "--config", config).want(t, done)
		}
		put()
		run(t, nil, "audit", "rebuild", "--check", "--data", s.path("data"), "--kek-file", s.path("kek")).want(t, done)
		if log := run(t, nil, "server", "restore", "--config", config, "-o", "json").want(t, done).stdout; !strings.Contains(log, `"origin": "example.org/log/incarnation-2"`) {
			t.Errorf("another log than the second: %s", log)
		}
	}
	t.Logf("%d rounds, %d runs were killed within %s", rounds, killed, whole)
}
