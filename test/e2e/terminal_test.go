package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/bulla-project/bulla/test/xtest"
)

// terminal opens a pseudo-terminal: what a person types and sees, and the end that a program gets.
func terminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = program.Close() })
	if err := unix.IoctlSetWinsize(int(program.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	return person, program
}

// onTerminal runs the binary with a terminal as stdin, stdout and stderr. typed is typed once the program has
// asked for it by prompt. It returns what a person sees, with plain newlines.
func onTerminal(t *testing.T, env environment, prompt, typed string, args ...string) (screen string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	person, program := terminal(t)
	cmd := exec.CommandContext(ctx, xtest.Binary(t), args...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env.with("TERM", "xterm").list(t), program, program, program
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = program.Close() // the child has it
	var seen output
	var reading sync.WaitGroup
	reading.Go(func() {
		buffer := make([]byte, 4096)
		for {
			n, err := person.Read(buffer)
			_, _ = seen.Write(bytes.ReplaceAll(buffer[:n], []byte("\r\n"), []byte("\n")))
			if err != nil {
				return // EIO: the program has ended
			}
		}
	})
	if prompt != "" {
		until(t, "it asks", func() bool { return strings.Contains(seen.String(), prompt) })
		if _, err := person.WriteString(typed); err != nil {
			t.Fatal(err)
		}
	}
	_ = cmd.Wait() // the exit code says it
	reading.Wait()
	return seen.String(), cmd.ProcessState.ExitCode()
}

// TestOnATerminal: a value gets a newline there, a secret is asked for without an echo, and is never read from one
// unasked.
func TestOnATerminal(t *testing.T) {
	t.Parallel()
	d := shared(t)
	workload, operator := d.as(t, "workload"), d.as(t, "operator")
	screen, code := onTerminal(t, operator, "not shown", "typed-secret\n", "secret", "put", "demo/typed", "--class", "standard", "--prompt")
	if code != done || strings.Contains(screen, "typed-secret") || !strings.Contains(screen, "demo/typed version 1, class standard\n") {
		t.Errorf("put --prompt: exit code %d, and the screen shows:\n%s", code, screen)
	}
	if r := run(t, workload, "get", "demo/typed").want(t, done); r.stdout != "typed-secret" {
		t.Errorf("typed was %q", r.stdout)
	}
	if screen, code := onTerminal(t, workload, "", "", "get", "demo/typed"); code != done || screen != "typed-secret\n" {
		t.Errorf("get: exit code %d, and the screen shows %q", code, screen)
	}
	if screen, code := onTerminal(t, operator, "", "", "secret", "put", "demo/typed"); code != wrongUsage || !strings.Contains(screen, "--prompt") {
		t.Errorf("put from a terminal: exit code %d, and the screen shows %q", code, screen)
	}
}

// TestPromoteAsks: a promotion shows what it would open, and asks; only "y" goes on. The auditor may look and not promote.
func TestPromoteAsks(t *testing.T) {
	t.Parallel()
	d := shared(t)
	bundle := filepath.Join(t.TempDir(), "bundle")
	run(t, d.as(t, "security"), "policy", "show", "--out", bundle).want(t, done)
	grants := filepath.Join(bundle, "data", "grants.yaml")
	granted, err := os.ReadFile(grants)
	if err == nil {
		err = os.WriteFile(grants, append(granted, "spiffe://dev.bulla.test/asked:\n  read:\n    asked/: true\n"...), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	staged := run(t, d.as(t, "security"), "policy", "push", bundle, "--stage", "-o", "json").want(t, done).object(t, revisionShape().but(fields{"activated_at": text, "outcome": word, "proposal": orNull(anyObject)}))
	for answer, want := range map[string]struct {
		code int
		says string
	}{"n\n": {failed, "nothing was changed"}, "\n": {failed, "nothing was changed"}, "y\n": {denied, "denied"}} {
		screen, code := onTerminal(t, d.as(t, "auditor"), "Go on? [y/N]", answer, "policy", "promote", staged["digest"].(string))
		at := strings.Index(screen, "DENY→PERMIT  /asked  asked/any-secret")
		if code != want.code || !strings.Contains(screen, want.says) || at < 0 || at > strings.Index(screen, "The rest:") || at > strings.Index(screen, "wider ") {
			t.Errorf("%q: exit code %d, and the screen shows:\n%s", answer, code, screen)
		}
	}
}

// TestTerminalWidth: tables and help fit 80 columns. What people copy whole (ids, digests, keys, examples) may be
// longer by itself.
func TestTerminalWidth(t *testing.T) {
	t.Parallel()
	d := shared(t)
	d.put(t, "demo/a-rather-long-name/for-a-secret/that-fills-its-column/and-more", "high", "x")
	d.get(t, d.as(t, "workload"), "demo/a-rather-long-name/for-a-secret/that-fills-its-column/and-more")
	for _, c := range []struct {
		who  string
		args []string
	}{
		{"operator", []string{"secret", "list"}},
		{"operator", []string{"secret", "show", "demo/a-rather-long-name/for-a-secret/that-fills-its-column/and-more"}},
		{"operator", []string{"session", "list"}},
		{"operator", []string{"device", "list"}},
		{"security", []string{"policy", "list"}},
		{"security", []string{"policy", "show"}},
	} {
		narrow(t, run(t, d.as(t, c.who), c.args...).want(t, done))
	}
	for _, line := range commands(t, nil) {
		r := run(t, nil, append(line, "--help")...).want(t, done)
		if !strings.Contains(r.stdout, "Usage:") || r.stderr != "" {
			t.Errorf("%s: %q", r.line, r.stdout)
		}
		text, examples, _ := strings.Cut(r.stdout, "\nExamples:\n")
		_, rest, _ := strings.Cut(examples, "\n\n")
		_, text, _ = strings.Cut("\n"+text, "\nUsage:\n")
		narrow(t, result{line: r.line, stdout: rest})
		before, _, _ := strings.Cut(r.stdout, "\nUsage:\n")
		narrow(t, result{line: r.line, stdout: before})
		if examples == "" && len(line) > 0 {
			t.Errorf("%s has no example: %s", r.line, text)
		}
	}
}

func narrow(t *testing.T, r result) {
	t.Helper()
	for _, line := range strings.Split(r.stdout, "\n") {
		fields := strings.Fields(line)
		if n := utf8.RuneCountInString(line); n > 80 && !(len(fields) == 2 && strings.HasSuffix(fields[0], ":")) {
			t.Errorf("%s: %d columns: %s", r.line, n, line)
		}
	}
}

// commands are all commands, found by their own help.
func commands(t *testing.T, below []string) [][]string {
	t.Helper()
	out := [][]string{below}
	help := run(t, nil, append(below, "--help")...).want(t, done).stdout
	_, list, ok := strings.Cut(help, " COMMAND\n")
	if !ok {
		return out
	}
	if _, after, found := strings.Cut(list, "\n\n"); found {
		list = after // past the examples
	}
	for _, line := range strings.Split(list, "\n") {
		if words := strings.Fields(line); strings.HasPrefix(line, "  ") && len(words) > 1 && line[2] >= 'a' && line[2] <= 'z' && words[0] != "help" && words[0] != "bulla" {
			out = append(out, commands(t, append(append([]string{}, below...), words[0]))...)
		}
	}
	return out
}
