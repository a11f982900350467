package e2e

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/bulla-project/bulla/test/xtest"
)

// output is a stream of a process that still runs.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// process is a bulla that goes on until it is told to end.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr output
	ended          chan struct{} // closed once it has ended
}

// launch starts the binary; the test's end kills it if nobody ended it before.
func launch(t testing.TB, env environment, args ...string) *process {
	t.Helper()
	p, err := launchAt("", xtest.Binary(t), env.list(t), args)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

// launchAt starts the binary in a directory; "" is that of the test.
func launchAt(dir, binary string, env, args []string) (*process, error) {
	p := &process{cmd: exec.Command(binary, args...), ended: make(chan struct{})}
	p.cmd.Dir, p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = dir, env, &p.stdout, &p.stderr
	// What a broker leaves behind must not outlive the tests, even if they are killed.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { // ends with the process
		_ = p.cmd.Wait() // how it ended is in ProcessState
		close(p.ended)
	}()
	return p, nil
}

func (p *process) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.ended
}

// exit waits for the end and wants an exit code.
func (p *process) exit(t testing.TB, code int) {
	t.Helper()
	until(t, "the process ends", func() bool { return !p.running() })
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("%s: exit code %d, want %d\n%s", strings.Join(p.cmd.Args[1:], " "), got, code, cut(p.stderr.String()))
	}
}

// dev is a running `bulla dev`.
type dev struct {
	*process
	dir string
}

// startDev starts `bulla dev` on a directory and waits until it is ready.
func startDev(t testing.TB, dir string, args ...string) *dev {
	t.Helper()
	ready := filepath.Join(dir, "ready")
	stale, err := os.Stat(ready) // of one that was killed; the new one removes it first
	d := &dev{launch(t, nil, append([]string{"dev", "--dir", dir}, args...)...), dir}
	if err == nil {
		until(t, "the stale file ready goes", func() bool {
			now, err := os.Stat(ready)
			return err != nil || !os.SameFile(stale, now) || now.ModTime().After(stale.ModTime())
		})
	}
	d.wait(t)
	return d
}

func (d *dev) wait(t testing.TB) {
	t.Helper()
	until(t, "bulla dev is ready", func() bool {
		if !d.running() {
			t.Fatalf("bulla dev ended: %s", cut(d.stderr.String()))
		}
		return exists(d.path("ready"))
	})
}

// stop ends it as a service manager would.
func (d *dev) stop(t testing.TB) {
	t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.exit(t, done)
	if exists(d.path("ready")) {
		t.Error("the file ready is still there after the end")
	}
}

func (d *dev) path(parts ...string) string {
	return filepath.Join(append([]string{d.dir}, parts...)...)
}

// exported is a line of an environment file: nothing else may stand in one.
var exported = regexp.MustCompile(`^export ([A-Z_]+)='([^']*)'$`)

// as is the environment of an identity, from its file.
func (d *dev) as(t testing.TB, name string) environment {
	t.Helper()
	env := environment{}
	for _, line := range strings.Split(strings.TrimSuffix(read(t, d.path("env", name+".sh")), "\n"), "\n") {
		m := exported.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("env/%s.sh: unexpected line %q", name, line)
		}
		env[m[1]] = m[2]
	}
	return env
}

// put stores a secret as operator.
func (d *dev) put(t testing.TB, name, class, value string) {
	t.Helper()
	command{env: d.as(t, "operator"), stdin: []byte(value), args: []string{"secret", "put", name, "--class", class}}.bulla(t).want(t, done)
}

// get is a delivery to an identity, in JSON.
func (d *dev) get(t testing.TB, env environment, name string, args ...string) map[string]any {
	t.Helper()
	return run(t, env, append([]string{"get", name, "-o", "json"}, args...)...).want(t, done).object(t, deliveredShape())
}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func write(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
