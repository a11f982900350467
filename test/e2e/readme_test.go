package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
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
	if !ok || len(found) != 2 || !strings.Contains(found[1], "bulla dev --dir /tmp/bulla ") || !strings.Contains(found[1], "go install ./cmd/bulla\n") {
		t.Fatalf("README.md has no section \"Try it\" of the form that this test runs:\n%s", section)
	}
	bin, temp := t.TempDir(), shortTemp(t)
	if err := os.Symlink(xtest.Binary(t), filepath.Join(bin, "bulla")); err != nil {
		t.Fatal(err)
	}
	script := strings.ReplaceAll(found[1], "/tmp/bulla", filepath.Join(temp, "bulla"))
	script = strings.Replace(script, "go install ./cmd/bulla\n", "", 1)
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

// TestReadmeCommandsExist asks for the help of every bulla command that a document names.
func TestReadmeCommandsExist(t *testing.T) {
	t.Parallel()
	root := xtest.Root(t)
	documents, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	documents = append(documents, filepath.Join(root, "README.md"), filepath.Join(root, "CONTRIBUTING.md"), filepath.Join(root, "rego", "README.md"))
	seen := map[string]bool{}
	for _, path := range documents {
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

// namedCommands are the words of commands after "bulla " in code: `bulla audit verify DIR` gives "audit verify".
func namedCommands(text string) []string {
	var out []string
	for _, line := range strings.Split(text, "\n") {
		for _, start := range []string{"`", "", "| ", "&& "} {
			_, rest, ok := strings.Cut("\x00"+line, map[bool]string{true: "\x00", false: start}[start == ""]+"bulla ")
			if !ok {
				continue
			}
			var words []string
			for _, w := range strings.Fields(rest) {
				bare := strings.TrimRight(w, "`,.;:)")
				if bare == "" || strings.Trim(bare, "abcdefghijklmnopqrstuvwxyz") != "" || len(words) == 2 {
					break
				}
				words = append(words, bare)
				if bare != w {
					break
				}
			}
			if len(words) == 0 {
				continue
			}
			// The second word is a command only below a group.
			switch words[0] {
			case "secret", "session", "device", "policy", "audit", "server":
			default:
				words = words[:1]
			}
			out = append(out, strings.Join(words, " "))
		}
	}
	return out
}
