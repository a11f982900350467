package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
	s := newSite(t)
	config := s.path("server.yaml")
	write(t, config, strings.Replace(serverConfig, "  origin: example.org/log\n", "  origin: example.org/log\n  checkpoint_copy: outside\n", 1), 0o600)
	run(t, nil, "server", "init", "--config", config).want(t, done)
	put := func() {
		b := serve(t, config)
		command{stdin: []byte("for the shop"), args: append(s.as(t, "bulla/operator", b.addr), "secret", "put", "shop/db", "--class", "standard")}.bulla(t).want(t, done)
		run(t, nil, append(s.as(t, "shop/api", b.addr), "get", "shop/db")...).want(t, done)
		b.stop(t)
	}
	put()
	if err := os.Rename(s.path("data"), s.path("backup")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(s.path("data"), os.DirFS(s.path("backup"))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "ledger.db", "keyring", "log.key", "envelope.key"} {
		mode := os.FileMode(0o600)
		if name == "" {
			mode = 0o700
		}
		if err := os.Chmod(s.path("data", name), mode); err != nil {
			t.Fatal(err)
		}
	}
	put()
	if err := errors.Join(os.RemoveAll(s.path("data")), os.Rename(s.path("backup"), s.path("data"))); err != nil {
		t.Fatal(err)
	}
	run(t, nil, "server", "run", "--config", config).want(t, failed).says(t, "rolled back", "bulla server restore")

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
