package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/bulla-project/bulla/cmd/bulla/internal/story"
	"github.com/bulla-project/bulla/test/xtest"
)

// TestDemo tells the story with each kind of device.
func TestDemo(t *testing.T) {
	for _, kind := range []string{"on", "off"} {
		t.Run("tpm "+kind, func(t *testing.T) {
			if kind == "on" {
				xtest.Need(t, "swtpm", "swtpm_setup")
			}
			temp := t.TempDir()
			t.Setenv("TMPDIR", temp)
			var stdout, stderr bytes.Buffer
			a := &app{stdin: os.Stdin, stdout: &stdout, stderr: &stderr}
			if code := a.run(t.Context(), []string{"demo", "-o", "json", "--tpm=" + kind}); code != exitDone {
				t.Errorf("exit code %d: %s", code, stderr.String())
			}
			dec := json.NewDecoder(&stdout)
			dec.DisallowUnknownFields()
			var answer struct {
				Steps []story.Step `json:"steps"`
			}
			if err := dec.Decode(&answer); err != nil {
				t.Fatal(err)
			}
			if dec.More() {
				t.Error("there is more than one object")
			}
			checkSteps(t, answer.Steps, kind == "on")
			if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v %v", left, err)
			}
		})
	}
}

func checkSteps(t *testing.T, steps []story.Step, tpm bool) {
	t.Helper()
	var names []string
	for _, s := range steps {
		names = append(names, s.Name)
		if !s.OK || s.Detail == "" {
			t.Errorf("%s: ok %t: %s", s.Name, s.OK, s.Detail)
		}
		if s.Name == "attest" && strings.Contains(s.Detail, "affirming") != tpm {
			t.Errorf("attest with a TPM (%t): %s", tpm, s.Detail)
		}
	}
	want := []string{
		"permit", "deny", "step-up", "attest", "deliver", "open", "receipt", "revoke", "refused-after-revoke", "verify-log", "detect-tampering",
	}
	if got := slices.DeleteFunc(names, func(n string) bool { return !slices.Contains(want, n) }); !slices.Equal(got, want) {
		t.Errorf("the steps are %q, want %q among them, in this order", names, want)
	}
}

// TestDemoWithoutSwtpmSaysHowToGetIt: the story goes on, and names the packages.
func TestDemoWithoutSwtpmSaysHowToGetIt(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	var stdout, stderr bytes.Buffer
	a := &app{stdin: os.Stdin, stdout: &stdout, stderr: &stderr}
	if code := a.run(t.Context(), []string{"demo"}); code != exitDone {
		t.Errorf("exit code %d: %s%s", code, stdout.String(), stderr.String())
	}
	if text := stdout.String(); !strings.Contains(strings.Join(strings.Fields(text), " "), "install the packages swtpm and swtpm-tools") {
		t.Errorf("the packages are not named:\n%s", text)
	}
}

// gone FILE waits until the process whose number stands in a file has ended.
func gone(ts *testscript.TestScript, _ bool, args []string) {
	pid := strings.TrimSpace(ts.ReadFile(args[0]))
	limit, tick := time.After(time.Minute), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for {
		// A zombie waits for whoever adopted it.
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			ts.Fatalf("process %s goes on", pid)
		}
	}
}

// served DIR waits until a development server that was started again after a kill serves: the file ready of
// the killed one may still be there when its start begins, so this looks for one that is younger than the lock.
func served(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	limit, tick := time.After(time.Minute), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for {
		lock, err := os.Stat(filepath.Join(dir, "lock"))
		ts.Check(err)
		if ready, err := os.Stat(filepath.Join(dir, "ready")); err == nil && ready.ModTime().After(lock.ModTime()) {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			ts.Fatalf("%s does not serve", dir)
		}
	}
}
