package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/test/xtest"
)

// blocks are the fenced blocks of a language in a Markdown text.
func blocks(text, language string) []string {
	var out []string
	for {
		_, rest, ok := strings.Cut(text, "\n```"+language+"\n")
		if !ok {
			return out
		}
		block, after, _ := strings.Cut(rest, "```\n")
		out, text = append(out, block), after
	}
}

// TestReadmeTryIt runs the second block of "Try it" as it stands, in one shell, with other places for what it
// writes and the binary under test in place of an installed one.
func TestReadmeTryIt(t *testing.T) {
	t.Parallel()
	readme := read(t, filepath.Join(xtest.Root(t), "README.md"))
	_, section, ok := strings.Cut(readme, "\n## Try it\n")
	section, _, _ = strings.Cut(section, "\n## ")
	found := blocks(section, "sh")
	if !ok || len(found) != 2 || !strings.Contains(found[1], "bulla dev --dir /tmp/bulla ") || !strings.HasPrefix(found[1], "go install ./cmd/bulla ") {
		t.Fatalf("README.md has no section \"Try it\" of the form that this test runs:\n%s", section)
	}
	bin, temp := t.TempDir(), shortTemp(t)
	if err := os.Symlink(xtest.Binary(t), filepath.Join(bin, "bulla")); err != nil {
		t.Fatal(err)
	}
	_, script, _ := strings.Cut(found[1], "\n")
	script = strings.ReplaceAll(script, "/tmp/bulla", filepath.Join(temp, "bulla"))
	// Whatever happens in between, nothing goes on running.
	script = "set -e\ntrap 'kill $! 2>/dev/null; wait' EXIT\n" + script + "wait\ntrap - EXIT\n"
	out := shell(t, environment{"PATH": bin + ":" + os.Getenv("PATH"), "TMPDIR": temp}, "sh", "-c", script)
	for _, want := range []string{"demo/db version 1, class high", "s3cret", `"receipt": "confirmed"`, "denied (support id ", "exit 3", "consistent up to "} {
		if !strings.Contains(out, want) {
			t.Errorf("the README's commands don't print %q:\n%s", want, cut(out))
		}
	}
	if left := swtpms(t, temp); len(left) > 0 {
		t.Errorf("the README's commands leave swtpm running: %v", left)
	}
}

// TestOperationsFirstStart runs the commands of the section "First start" on the configuration above them, up to
// the one that goes on for ever, below a directory of the test.
func TestOperationsFirstStart(t *testing.T) {
	t.Parallel()
	text := read(t, filepath.Join(xtest.Root(t), "docs", "operations.md"))
	_, section, ok := strings.Cut(text, "\n## First start\n")
	configs, scripts := blocks(text, "yaml"), blocks(section, "sh")
	if !ok || len(configs) == 0 || len(scripts) == 0 || !strings.Contains(scripts[0], "bulla server run ") {
		t.Fatal("docs/operations.md has no section \"First start\" of the form that this test runs")
	}
	bin, dir := t.TempDir(), t.TempDir()
	if err := errors.Join(os.Symlink(xtest.Binary(t), filepath.Join(bin, "bulla")), os.Mkdir(filepath.Join(dir, "etc"), 0o700)); err != nil {
		t.Fatal(err)
	}
	move := strings.NewReplacer("/etc/bulla", filepath.Join(dir, "etc"), "/var/lib/bulla", filepath.Join(dir, "data"), "/mnt/witness", dir).Replace
	write(t, filepath.Join(dir, "etc", "server.yaml"), move(configs[0]), 0o600)
	script, _, _ := strings.Cut(scripts[0], "bulla server run ")
	out := shell(t, environment{"PATH": bin + ":" + os.Getenv("PATH")}, "sh", "-ec", "cd '"+xtest.Root(t)+"'\n"+move(script))
	if !strings.Contains(out, "initialised "+filepath.Join(dir, "data")) {
		t.Errorf("it says:\n%s", out)
	}
}

// TestReadmeNamesWhatThereIs: files that documents link to, and the tests that the README promises.
func TestReadmeNamesWhatThereIs(t *testing.T) {
	t.Parallel()
	root := xtest.Root(t)
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	for _, path := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(read(t, path), -1) {
			if !exists(filepath.Join(filepath.Dir(path), filepath.FromSlash(m[1]))) {
				t.Errorf("%s links to %s, which is not there", strings.TrimPrefix(path, root+"/"), m[1])
			}
		}
	}
	tests := shell(t, nil, "grep", "-rhoE", "--include=*_test.go", "^func TestAbuse_A[0-9]+_", root)
	promised := regexp.MustCompile("`(TestAbuse_A[0-9]+)`").FindAllStringSubmatch(read(t, filepath.Join(root, "README.md")), -1)
	for _, m := range promised {
		if !strings.Contains(tests, "func "+m[1]+"_") {
			t.Errorf("README.md promises %s, and there is no such test", m[1])
		}
	}
	if len(promised) < 10 {
		t.Errorf("README.md promises only %d tests: has its table another form?", len(promised))
	}
}

// documents are those that a reader comes by.
func documents(t *testing.T) []string {
	t.Helper()
	root := xtest.Root(t)
	found, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"README.md", "CONTRIBUTING.md", "SECURITY.md", "rego/README.md"} {
		found = append(found, filepath.Join(root, filepath.FromSlash(name)))
	}
	return found
}

// TestReadmeCommandsExist asks for the help of every bulla command that a document names.
func TestReadmeCommandsExist(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, path := range documents(t) {
		for _, line := range namedCommands(read(t, path)) {
			if seen[line] {
				continue
			}
			seen[line] = true
			args := append(strings.Fields(line), "--help")
			cmd := exec.CommandContext(t.Context(), xtest.Binary(t), args...)
			cmd.Env = environment(nil).list(t)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s names `bulla %s`: %s", filepath.Base(path), line, out)
			}
		}
	}
	if len(seen) < 10 {
		t.Errorf("found only %d commands: %v", len(seen), seen)
	}
}

// named is a bulla command at the beginning of a line, of code, or after another command.
var named = regexp.MustCompile("(?m)(?:^|`|[|&] )bulla ([a-z-]+)(?: ([a-z]+(?:-[a-z]+)*))?")

// namedCommands are the words of the commands in a text: `bulla audit verify DIR` gives "audit verify".
func namedCommands(text string) []string {
	var out []string
	for _, m := range named.FindAllStringSubmatch(text, -1) {
		line := m[1]
		switch m[1] {
		case "secret", "session", "device", "policy", "audit", "server": // the second word is a command below a group only
			line = strings.TrimSpace(line + " " + m[2])
		}
		out = append(out, line)
	}
	return out
}
