package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/bulla-project/bulla/test/xtest"
)

// The development server that tests share. It starts with the first test that asks for it.
var (
	sharedOnce sync.Once
	sharedDev  *dev
	sharedErr  error
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := endShared(); err != nil {
		fmt.Fprintln(os.Stderr, "the shared development server:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// shared returns the server of all tests that leave it as it is.
func shared(t testing.TB) *dev {
	t.Helper()
	binary, env := xtest.Binary(t), environment(nil).list(t)
	sharedOnce.Do(func() {
		dir, err := os.MkdirTemp("", "bulla-e2e-")
		if err != nil {
			sharedErr = err
			return
		}
		dir = filepath.Join(dir, "d")
		p, err := launchAt("", binary, env, []string{"dev", "--dir", dir, "--tpm=auto"})
		if err != nil {
			sharedErr = err
			return
		}
		sharedDev = &dev{p, dir}
	})
	if sharedErr != nil {
		t.Fatal(sharedErr)
	}
	sharedDev.wait(t)
	return sharedDev
}

// endShared stops the server and removes what it had.
func endShared() error {
	if sharedDev == nil {
		return sharedErr
	}
	defer os.RemoveAll(filepath.Dir(sharedDev.dir))
	if err := sharedDev.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("end it: %w", err)
	}
	<-sharedDev.ended
	if code := sharedDev.cmd.ProcessState.ExitCode(); code != done {
		return fmt.Errorf("it ended with exit code %d:\n%s", code, sharedDev.stderr.String())
	}
	return nil
}

// hasTPM says whether `bulla dev --tpm=auto` finds a software TPM.
func hasTPM() bool {
	for _, program := range []string{"swtpm", "swtpm_setup"} {
		if _, err := exec.LookPath(program); err != nil {
			return false
		}
	}
	return true
}

// withoutDevice is the environment of a workload that has no device to show.
func withoutDevice(env environment) environment {
	return env.with("BULLA_TPM", "").with("BULLA_DEVICE_FILE", "")
}
