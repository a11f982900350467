// Package xtest holds what tests of several packages share. It is imported by tests only.
package xtest

import (
	"os"
	"os/exec"
	"testing"
)

// Need skips the test when one of the named programs is not on PATH. With BULLA_TEST_REQUIRE=1, which
// test/run sets after it installed everything, a missing program is a failure.
func Need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			Lack(t, p)
		}
	}
}

// Lack ends the test because what is missing; it fails where test/run demands everything.
func Lack(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("BULLA_TEST_REQUIRE") == "1" {
		t.Fatalf("needs %s, which test/run should have installed", what)
	}
	t.Skipf("needs %s: test/run", what)
}
