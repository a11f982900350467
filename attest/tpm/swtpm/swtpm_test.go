package swtpm_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulla-project/bulla/attest/tpm/device"
	"github.com/bulla-project/bulla/attest/tpm/swtpm"
	"github.com/bulla-project/bulla/test/xtest"
)

// childDir tells a second run of this test binary to start a TPM there and wait to be killed.
const childDir = "BULLA_SWTPM_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		child(dir)
		return
	}
	os.Exit(m.Run())
}

func child(dir string) {
	s, err := swtpm.Start(context.Background(), dir)
	if err != nil {
		fmt.Println("error", err)
		return
	}
	fmt.Println(s.PID())
	select {}
}

func start(t *testing.T, dir string) *swtpm.TPM {
	t.Helper()
	s, err := swtpm.Start(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func answers(t *testing.T, s *swtpm.TPM) {
	t.Helper()
	if _, err := device.Open(t.Context(), s.Address()); err != nil {
		t.Fatal(err)
	}
}

// gone waits until process pid has ended.
func gone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(raw), ") Z ") {
			return
		}
	}
	t.Errorf("process %d goes on", pid)
}

func TestLife(t *testing.T) {
	xtest.Need(t, "swtpm", "swtpm_setup")
	dir := t.TempDir()
	s := start(t, dir)
	answers(t, s)
	socket := strings.TrimPrefix(s.Address(), "unix:")
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
	pid := s.PID()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
	for _, f := range []string{socket, socket + device.LogSuffix, filepath.Join(dir, "swtpm.pid")} {
		if _, err := os.Stat(f); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left", f)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
	select {
	case <-s.Done():
	default:
		t.Error("not done")
	}

	t.Run("an orphan is ended", func(t *testing.T) {
		first := start(t, dir)
		second := start(t, dir)
		gone(t, first.PID())
		<-first.Done()
		answers(t, second)
	})
	t.Run("a stranger under the number is left alone", func(t *testing.T) {
		stranger := exec.Command("sleep", "60")
		if err := stranger.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = stranger.Process.Kill()
			_ = stranger.Wait()
		}()
		if err := os.WriteFile(filepath.Join(dir, "swtpm.pid"), []byte(strconv.Itoa(stranger.Process.Pid)), 0o600); err != nil {
			t.Fatal(err)
		}
		answers(t, start(t, dir))
		if err := stranger.Process.Signal(syscall.Signal(0)); err != nil {
			t.Errorf("the stranger was ended: %v", err)
		}
	})
	t.Run("ends with its parent on kill -9", func(t *testing.T) {
		killed(t, dir)
		answers(t, start(t, dir))
	})
}

// killed runs a process that starts a TPM in dir, kills it, and waits until the TPM has ended as well.
func killed(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("child: %s", line)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	gone(t, pid)
}

func TestLongPath(t *testing.T) {
	xtest.Need(t, "swtpm", "swtpm_setup")
	temp, err := os.MkdirTemp("/tmp", "bt-") // as short as it is elsewhere
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(temp) })
	t.Setenv("TMPDIR", temp)
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 25))
	s := start(t, dir)
	answers(t, s)
	socket := strings.TrimPrefix(s.Address(), "unix:")
	if len(socket) > 104 {
		t.Errorf("socket path of %d bytes", len(socket))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(socket)); !errors.Is(err, os.ErrNotExist) {
		t.Error("the short directory is left")
	}
	killed(t, dir)
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "bulla-tpm-*"))
	if err != nil || len(left) != 1 {
		t.Fatalf("a killed process leaves %q (%v), want one directory", left, err)
	}
	answers(t, start(t, dir))
	if _, err := os.Stat(left[0]); !errors.Is(err, os.ErrNotExist) {
		t.Error("the short directory of a killed process is left by the next start")
	}
}

func TestNotInstalled(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := swtpm.Start(t.Context(), t.TempDir())
	if !errors.Is(err, swtpm.ErrNotInstalled) || !strings.Contains(err.Error(), "swtpm-tools") || !strings.Contains(err.Error(), "development") {
		t.Errorf("start: %v", err)
	}
}
