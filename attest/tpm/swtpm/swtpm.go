// Package swtpm starts and stops a software TPM (the program swtpm) with an endorsement certificate from an
// authority of its own, for development, demonstrations and tests.
//
// A software TPM protects nothing: whoever may read its directory has its keys. It lets every machine run the
// real protocol. On each start it measures a small made-up boot into the PCRs and writes the matching event
// log, so that quotes, logs and reference values are of the same kind as on real machines.
//
// The TPM ends with the process that started it, also on kill -9 (Linux: parent-death signal). One that was
// left over is found by its pid file, recognised by its command line, and ended before a new one starts: two
// on the same state would ruin it. The state stays, so keys and device identity survive restarts.
package swtpm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/bulla-project/bulla/attest/tpm/device"
)

// ErrNotInstalled is wrapped when the programs are missing.
var ErrNotInstalled = errors.New("no software TPM is installed")

const (
	maxSocketPath = 104 // bytes; some systems have no more room in sockaddr_un
	socketName    = "tpm.sock"
	tempPrefix    = "bulla-tpm-"
	startWait     = 10 * time.Second
	stopWait      = 5 * time.Second
	setupWait     = 60 * time.Second
	pollPause     = 10 * time.Millisecond
)

// Available says whether a software TPM can be started here. The error names the packages to install.
func Available() error {
	for _, program := range []string{"swtpm", "swtpm_setup"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: %s is not on PATH; install the packages swtpm and swtpm-tools (until then the development kind of attestation is what can be used)", ErrNotInstalled, program)
		}
	}
	return nil
}

// A TPM is a running software TPM.
type TPM struct {
	dir     string
	socket  string
	tempDir string // "" unless the socket had to move
	process *os.Process
	done    chan struct{} // closed when the process has ended
}

// Start starts the software TPM that lives in dir, which is made on first use (that takes a second or two).
func Start(ctx context.Context, dir string) (*TPM, error) {
	if err := Available(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("software TPM: %w", err)
	}
	t := &TPM{dir: dir, done: make(chan struct{})}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("software TPM: %w", err)
	}
	if err := t.endOrphan(); err != nil {
		return nil, fmt.Errorf("software TPM in %s: %w", dir, err)
	}
	if err := t.setup(ctx); err != nil {
		return nil, fmt.Errorf("set up a software TPM in %s: %w", dir, err)
	}
	if err := t.placeSocket(); err != nil {
		return nil, fmt.Errorf("software TPM in %s: %w", dir, err)
	}
	if err := t.run(); err != nil {
		t.removeFiles()
		return nil, fmt.Errorf("start the software TPM in %s: %w", dir, err)
	}
	if err := t.boot(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start the software TPM in %s: %w", dir, err), t.Close())
	}
	return t, nil
}

// Address is where attest/tpm/device finds the TPM: unix:PATH.
func (t *TPM) Address() string { return "unix:" + t.socket }

// Done is closed when the program has ended, by Close or by itself.
func (t *TPM) Done() <-chan struct{} { return t.done }

// PID is the process id of the program.
func (t *TPM) PID() int { return t.process.Pid }

// EKRootPEM is the certificate of the authority that vouches for the endorsement key.
func (t *TPM) EKRootPEM() ([]byte, error) {
	return os.ReadFile(filepath.Join(t.dir, caDir, "swtpm-localca-rootca-cert.pem"))
}

// ChainPEM is the intermediate certificate between them, which the TPM itself does not hold.
func (t *TPM) ChainPEM() ([]byte, error) {
	return os.ReadFile(filepath.Join(t.dir, caDir, "issuercert.pem"))
}

// Close shuts the TPM down and waits for the program to end. A second call does nothing.
func (t *TPM) Close() error {
	defer t.removeFiles()
	select {
	case <-t.done:
		return nil
	default:
	}
	// Orderly if it answers; if not, it is ended all the same, and counts one more reset.
	if c, err := linuxudstpm.Open(t.socket); err == nil {
		_, _ = tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}.Execute(c)
		_ = c.Close()
	}
	if err := t.process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the software TPM: %w", err)
	}
	select {
	case <-t.done:
		return nil
	case <-time.After(stopWait):
	}
	if err := t.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the software TPM: %w", err)
	}
	<-t.done
	return nil
}

func (t *TPM) pidFile() string { return filepath.Join(t.dir, "swtpm.pid") }

// endOrphan ends the TPM that an earlier process left over, if its pid file names one that works on this state.
func (t *TPM) endOrphan() error {
	raw, err := os.ReadFile(t.pidFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err == nil && pid > 1 && t.isOurs(pid) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("end the software TPM that was left over (process %d): %w", pid, err)
		}
		for end := time.Now().Add(stopWait); t.isOurs(pid); time.Sleep(pollPause) {
			if time.Now().After(end) {
				return fmt.Errorf("the software TPM that was left over (process %d) does not end", pid)
			}
		}
	}
	return os.Remove(t.pidFile())
}

// isOurs recognises a process by its command line: the number alone may be another program's by now.
func (t *TPM) isOurs(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	args := strings.Split(string(raw), "\x00")
	if filepath.Base(args[0]) != "swtpm" {
		return false
	}
	for _, a := range args {
		if a == t.stateArg() {
			return true
		}
	}
	return false
}

func (t *TPM) stateArg() string { return "dir=" + filepath.Join(t.dir, stateDir) }

// placeSocket puts the socket into the directory, or where that is too long into a short temporary one.
func (t *TPM) placeSocket() error {
	t.socket = filepath.Join(t.dir, socketName)
	if len(t.socket)+len(device.LogSuffix) > maxSocketPath {
		if err := t.removeStaleTemp(); err != nil {
			return err
		}
		short, err := os.MkdirTemp("", tempPrefix)
		if err != nil {
			return err
		}
		t.tempDir, t.socket = short, filepath.Join(short, socketName)
		if err := os.WriteFile(t.tempFile(), []byte(short), 0o600); err != nil {
			return err
		}
	}
	for _, stale := range []string{t.socket, t.socket + device.LogSuffix} {
		if err := os.Remove(stale); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// tempFile names the temporary directory of the socket, for the start after one that was killed.
func (t *TPM) tempFile() string { return filepath.Join(t.dir, "socket.dir") }

// removeStaleTemp removes the temporary directory that a killed process left: what this package made in it,
// and the directory itself if nothing else is there.
func (t *TPM) removeStaleTemp() error {
	raw, err := os.ReadFile(t.tempFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if dir := string(raw); filepath.IsAbs(dir) && strings.HasPrefix(filepath.Base(dir), tempPrefix) {
		for _, left := range []string{filepath.Join(dir, socketName), filepath.Join(dir, socketName+device.LogSuffix), dir} {
			_ = os.Remove(left) // what can't be removed is no trouble for a new one
		}
	}
	return os.Remove(t.tempFile())
}

func (t *TPM) removeFiles() {
	// What can't be removed is replaced or ignored by the next start.
	for _, f := range []string{t.pidFile(), t.socket, t.socket + device.LogSuffix} {
		_ = os.Remove(f)
	}
	if t.tempDir != "" {
		_ = os.RemoveAll(t.tempDir)
		_ = os.Remove(t.tempFile())
	}
}

// run starts the program. The parent-death signal follows the thread that started the child, not the process:
// so one goroutine keeps its thread from the start to the end of the child.
func (t *TPM) run() error {
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", t.stateArg(),
		"--server", "type=unixio,path="+t.socket+",mode=0600", "--pid", "file="+t.pidFile(),
		"--flags", "not-need-init,startup-clear", "--log", "file="+filepath.Join(t.dir, "swtpm.log")+",level=1")
	cmd.SysProcAttr = deathWithParent()
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait() // how it ended does not matter: it is gone
		close(t.done)
	}()
	if err := <-started; err != nil {
		return err
	}
	t.process = cmd.Process
	return nil
}
