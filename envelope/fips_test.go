package envelope

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestFIPSMode runs sealing, opening and receipts again in a process that refuses what FIPS 140-3 does not approve.
func TestFIPSMode(t *testing.T) {
	cmd := exec.Command(must(os.Executable())(t), "-test.v", "-test.run=^(TestHardwareRecipient|TestReceipt)$")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=only")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestHardwareRecipient") || !strings.Contains(string(out), "--- PASS: TestReceipt") {
		t.Fatalf("%v\n%s", err, out)
	}
}
