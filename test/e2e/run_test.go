package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/test/xtest"
)

// The exit codes that scripts rely on.
const (
	done         = 0
	failed       = 1
	wrongUsage   = 2
	denied       = 3
	unavailable  = 4
	verification = 5
)

// patience is how long a condition, or one command, may take on a machine that does much else.
const patience = time.Minute

// environment are variables of a process, besides PATH and HOME.
type environment map[string]string

// with returns a copy in which a variable has another value; "" takes it out.
func (e environment) with(name, value string) environment {
	out := maps.Clone(e)
	if out == nil {
		out = environment{}
	}
	out[name] = value
	if value == "" {
		delete(out, name)
	}
	return out
}

// list is what exec wants. Nothing of the test's own environment gets through but PATH and the temporary
// directory.
func (e environment) list(t testing.TB) []string {
	t.Helper()
	all := environment{"PATH": os.Getenv("PATH"), "HOME": "/nonexistent", "TMPDIR": os.TempDir(), "LC_ALL": "C"}
	maps.Copy(all, e)
	var out []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, name+"="+all[name])
	}
	return out
}

// command is one run of the binary.
type command struct {
	env    environment
	stdin  []byte
	dir    string
	args   []string
	binary string // "" is the one that is tested
}

// result is how it went.
type result struct {
	line           string
	code           int
	stdout, stderr string
}

// bulla runs the binary and checks what holds for every run: no stack trace; nothing but one JSON value on
// stdout with -o json; a failure is said on stderr.
func (c command) bulla(t testing.TB) result {
	t.Helper()
	if c.binary == "" {
		c.binary = xtest.Binary(t) // the first one builds it, which is no part of the command's time
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.binary, c.args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(c.stdin), &stdout, &stderr
	cmd.Env, cmd.Dir = c.env.list(t), c.dir
	err := cmd.Run()
	r := result{"bulla " + strings.Join(c.args, " "), cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", r.line, err)
	}
	if ctx.Err() != nil {
		t.Fatalf("%s: not within %s\nstderr: %s", r.line, patience, r.stderr)
	}
	r.check(t, c.args)
	return r
}

func (r result) check(t testing.TB, args []string) {
	t.Helper()
	for _, trace := range []string{"goroutine ", "panic:", "runtime error", ".go:"} {
		if strings.Contains(r.stderr, trace) {
			t.Errorf("%s: a stack trace, or a place in the source:\n%s", r.line, r.stderr)
		}
	}
	if asksJSON(args) {
		one := json.NewDecoder(strings.NewReader(r.stdout))
		var v any
		if err := one.Decode(&v); err != nil {
			t.Errorf("%s: stdout is not JSON (%v): %q", r.line, err, r.stdout)
		} else if _, err := one.Token(); !errors.Is(err, io.EOF) && !slices.Contains(args, "tail") {
			t.Errorf("%s: more than one JSON value on stdout: %q", r.line, r.stdout)
		}
	}
}

// asksJSON says whether the command line has -o json before a --.
func asksJSON(args []string) bool {
	if end := slices.Index(args, "--"); end >= 0 {
		args = args[:end]
	}
	at := slices.Index(args, "-o")
	return at >= 0 && at+1 < len(args) && args[at+1] == "json" || slices.Contains(args, "--output=json")
}

// exits ends the test unless the exit code is that one.
func (r result) exits(t testing.TB, code int) result {
	t.Helper()
	if r.code != code {
		t.Fatalf("%s: exit code %d, want %d\nstdout: %s\nstderr: %s", r.line, r.code, code, cut(r.stdout), cut(r.stderr))
	}
	return r
}

// want is exits for commands of which a failure is a sentence on stderr. Without it there is the answer on stdout
// alone: the faults of a policy, the findings of the doctor, the exit code of a child.
func (r result) want(t testing.TB, code int) result {
	t.Helper()
	r.exits(t, code)
	if code != done && !strings.HasPrefix(r.stderr, "bulla: ") {
		t.Errorf("%s: exit code %d, and stderr does not begin with a sentence: %q", r.line, r.code, r.stderr)
	}
	return r
}

// says wants each of the texts on stderr.
func (r result) says(t testing.TB, texts ...string) result {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(r.stderr, text) {
			t.Errorf("%s: stderr does not say %q:\n%s", r.line, text, r.stderr)
		}
	}
	return r
}

// object is stdout as a JSON object of that shape.
func (r result) object(t testing.TB, shape fields) map[string]any {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(r.stdout))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("%s: %v: %s", r.line, err, cut(r.stdout))
	}
	if fault := object(shape)(v); fault != "" {
		t.Fatalf("%s: the JSON%s\n%s", r.line, fault, cut(r.stdout))
	}
	return v.(map[string]any)
}

func cut(text string) string {
	const most = 4000
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}

// run is bulla for an identity's environment.
func run(t testing.TB, env environment, args ...string) result {
	t.Helper()
	return command{env: env, args: args}.bulla(t)
}

// shell runs another program, which has to succeed, and returns its output.
func shell(t testing.TB, env environment, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = env.list(t)
	cmd.WaitDelay = 10 * time.Second // for what it left running with its output
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, cut(string(out)))
	}
	return string(out)
}

// until waits for a condition.
func until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-limit.C:
			t.Fatalf("%s: not within %s", what, patience)
		case <-tick.C:
		}
	}
}
