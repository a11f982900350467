package harden_test

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bulla-project/bulla/internal/harden"
)

// childEnv makes the test binary a process that hardens itself and says how it then stands.
const childEnv = "BULLA_TEST_HARDEN_CHILD"

// hardened is what it says if all is as it should be.
const hardened = "not dumpable"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	if err := harden.Process(); err != nil {
		_, _ = os.Stdout.WriteString(err.Error())
		os.Exit(1)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	var limit unix.Rlimit
	if err != nil || dumpable != 0 || unix.Getrlimit(unix.RLIMIT_CORE, &limit) != nil || limit.Cur != 0 {
		_, _ = os.Stdout.WriteString("it can still be dumped")
		os.Exit(1)
	}
	_, _ = os.Stdout.WriteString(hardened)
}

// TestAbuse_A56_NotDumpable hardens a process of its own, since it can't be undone.
func TestAbuse_A56_NotDumpable(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != hardened {
		t.Fatalf("%v: %s", err, out)
	}
}
