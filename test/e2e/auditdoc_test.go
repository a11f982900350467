package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/test/xtest"
)

// TestAuditTryIt runs the commands of docs/audit.md as they stand, in one shell, with another place for what they write.
func TestAuditTryIt(t *testing.T) {
	t.Parallel()
	found := blocks(read(t, filepath.Join(xtest.Root(t), "docs", "audit.md")), "sh")
	if len(found) != 1 || !strings.HasPrefix(found[0], "bulla dev --dir /tmp/bulla-audit ") {
		t.Fatal("docs/audit.md has no block of commands of the form that this test runs")
	}
	bin, temp := t.TempDir(), shortTemp(t)
	if err := os.Symlink(xtest.Binary(t), filepath.Join(bin, "bulla")); err != nil {
		t.Fatal(err)
	}
	script := strings.ReplaceAll(found[0], "/tmp/bulla-audit", filepath.Join(temp, "audit"))
	script = "set -e\ntrap 'kill $! 2>/dev/null; wait' EXIT\n" + script + "wait\ntrap - EXIT\n"
	out := shell(t, environment{"PATH": bin + ":" + os.Getenv("PATH"), "TMPDIR": temp}, "sh", "-c", script)
	for _, want := range []string{
		"events of session ", "\nNot shown:\n", "the recipient got the very envelope", "and extends the checkpoint of size ",
		"are the beginning of it, unchanged", "does not hold this event, salt or reply at this place", "exit 5",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the commands don't print %q:\n%s", want, cut(out))
		}
	}
}

// TestAuditConfiguration: the configuration in docs/audit.md is one.
func TestAuditConfiguration(t *testing.T) {
	t.Parallel()
	found := blocks(read(t, filepath.Join(xtest.Root(t), "docs", "audit.md")), "yaml")
	if len(found) != 1 {
		t.Fatalf("docs/audit.md has %d blocks of configuration", len(found))
	}
	path := filepath.Join(t.TempDir(), "server.yaml")
	write(t, path, "listen: 127.0.0.1:8443\ndata_dir: data\nspiffe:\n  endpoint_socket: unix:///run/spire/agent.sock\nkeyring:\n  kek_file: kek\n"+found[0], 0o600)
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Log.Witnesses.List) != 3 || c.Log.Witnesses.Quorum != 2 || len(c.Log.Publish) != 2 || c.Log.Tiles.Listen == "" {
		t.Errorf("it says %+v", c.Log)
	}
	if got := c.Log.Publish[1].BearerTokenFile; got != filepath.Join(filepath.Dir(path), "publish.token") {
		t.Errorf("a path is not relative to the file: %s", got)
	}
}
