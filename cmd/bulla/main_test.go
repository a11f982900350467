package main

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/bulla-project/bulla/test/xtest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"bulla": main})
}

// shellBlocks are the commands of a document, one after the other.
func shellBlocks(text string) string {
	out := ""
	for {
		_, rest, ok := strings.Cut(text, "\n```sh\n")
		if !ok {
			return out
		}
		block, after, _ := strings.Cut(rest, "```\n")
		out, text = out+block, after
	}
}

// TestScripts runs what a person would type. Scripts get the repository as $REPO, and the commands of docs/replay.md in
// doc.sh.
func TestScripts(t *testing.T) { scripts(t, "script") }

// TestTPMScripts are those that need a TPM.
func TestTPMScripts(t *testing.T) {
	xtest.Need(t, "swtpm", "swtpm_setup")
	scripts(t, "tpm")
}

func scripts(t *testing.T, dir string) {
	root := xtest.Root(t)
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", dir),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("REPO", root)
			text, err := os.ReadFile(filepath.Join(root, "docs", "replay.md"))
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(env.WorkDir, "doc.sh"), []byte(shellBlocks(string(text))), 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"waitfile": waitFile, "as": as, "capture": capture, "copybundle": copyBundle, "narrow": narrow, "code": code, "raw": raw,
			"gone": gone, "served": served, "manual": manual,
		},
	})
}

// waitFile PATH [TEXT] waits until a file is there, and holds the text.
func waitFile(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	deadline, tick := time.After(time.Minute), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(path); err == nil && (len(args) == 1 || strings.Contains(ts.ReadFile(args[0]), args[1])) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			ts.Fatalf("%s is not there after a minute", path)
		}
	}
}

// as FILE takes the environment that a file of `bulla dev` exports, and drops what an earlier one did.
func as(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range []string{"SPIFFE_ENDPOINT_SOCKET", "BULLA_ADDR", "BULLA_SERVER_ID", "BULLA_TPM", "BULLA_DEVICE_FILE"} {
		ts.Setenv(name, "")
	}
	line := regexp.MustCompile(`^export ([A-Z_]+)='([^']*)'$`)
	text := bufio.NewScanner(strings.NewReader(ts.ReadFile(args[0])))
	for text.Scan() {
		m := line.FindStringSubmatch(text.Text())
		if m == nil {
			ts.Fatalf("%s: unexpected line %q", args[0], text.Text())
		}
		ts.Setenv(m[1], m[2])
	}
}

// code N COMMAND… runs a command and wants that exit code.
func code(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
	if strings.Contains(ts.ReadFile("stderr"), "goroutine ") {
		ts.Fatalf("a stack trace")
	}
}

// raw N ARG… runs bulla with arguments whose escapes are as in Go, wants that exit code, and nothing in its
// output that a terminal obeys.
func raw(ts *testscript.TestScript, _ bool, args []string) {
	line := []string{args[0], "bulla"}
	for _, arg := range args[1:] {
		unquoted, err := strconv.Unquote(`"` + arg + `"`)
		ts.Check(err)
		line = append(line, unquoted)
	}
	code(ts, false, line)
	for _, name := range []string{"stdout", "stderr"} {
		for _, r := range ts.ReadFile(name) {
			if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r)) {
				ts.Fatalf("%U on %s", r, name)
			}
		}
	}
	if strings.Contains(ts.ReadFile("stderr"), "\nbulla: all") {
		ts.Fatalf("an argument wrote a line of its own")
	}
}

// capture NAME REGEXP sets $NAME to what the group in the expression matches in stdout.
func capture(ts *testscript.TestScript, _ bool, args []string) {
	m := regexp.MustCompile(args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	if m == nil {
		ts.Fatalf("%q matches nothing in stdout", args[1])
	}
	ts.Setenv(args[0], m[1])
}

// copyBundle FROM TO copies a directory.
func copyBundle(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.CopyFS(ts.MkAbs(args[1]), os.DirFS(ts.MkAbs(args[0]))))
}

// narrow FILE checks that no line but those of examples is wider than a terminal.
func narrow(ts *testscript.TestScript, _ bool, args []string) {
	examples := false
	for _, line := range strings.Split(ts.ReadFile(args[0]), "\n") {
		if line == "" || line == "Examples:" || line == "Usage:" {
			examples = line != ""
			continue
		}
		if n := len([]rune(line)); n > 80 && !examples {
			ts.Fatalf("%d columns: %q", n, line)
		}
	}
}

func TestOutIsNeverALink(t *testing.T) {
	dir := t.TempDir()
	plain, link, lost := filepath.Join(dir, "plain"), filepath.Join(dir, "link"), filepath.Join(dir, "lost")
	if err := errors.Join(os.WriteFile(plain, []byte("old"), 0o644), os.Symlink(plain, link), os.Symlink(filepath.Join(dir, "none"), lost)); err != nil {
		t.Fatal(err)
	}
	for path, ok := range map[string]bool{
		plain: true, filepath.Join(dir, "new"): true, link: false, lost: false, dir: false, "": false,
		filepath.Join(dir, "none", "new"): false, filepath.Join(plain, "new"): false, os.DevNull: false,
	} {
		if err := checkOut("--out", path); (err == nil) != ok {
			t.Errorf("checkOut(%q) = %v, want ok %v", path, err, ok)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the check made a file: %v", err)
	}
}
