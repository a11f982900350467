package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// stepNames are those that scripts look for; there may be more.
func stepNames() []string {
	return []string{
		"permit", "deny", "step-up", "attest", "deliver", "open", "receipt", "revoke", "refused-after-revoke", "verify-log", "detect-tampering",
	}
}

// TestDemo tells the whole story in JSON, with a TPM and without, and leaves nothing behind.
func TestDemo(t *testing.T) {
	t.Parallel()
	for name, env := range map[string]environment{"as it comes": nil, "without swtpm": {"PATH": t.TempDir()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			temp := shortTemp(t)
			home := t.TempDir()
			env = env.with("TMPDIR", temp).with("HOME", home)
			r := run(t, env, "demo", "-o", "json").want(t, done)
			steps := r.object(t, fields{"steps": list(object(fields{"name": word, "ok": is(true), "detail": word}))})["steps"].([]any)
			at := map[string]int{}
			for i, s := range steps {
				at[s.(map[string]any)["name"].(string)] = i + 1
			}
			last := 0
			for _, name := range stepNames() {
				if at[name] <= last {
					t.Errorf("step %s is missing or not in order: %v", name, at)
				}
				last = at[name]
			}
			tpm := hasTPM() && env["PATH"] == ""
			if told := strings.Contains(r.stdout, "swtpm-tools"); told == tpm {
				t.Errorf("with a TPM: %t, and it says how to get one: %t", tpm, told)
			}
			for _, dir := range []string{temp, home} {
				if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
					t.Errorf("left behind in %s: %v (%v)", filepath.Base(dir), left, err)
				}
			}
			if left := swtpms(t, temp); len(left) > 0 {
				t.Errorf("processes of swtpm are left behind: %v", left)
			}
		})
	}
}

// TestDemoForPeople fits a terminal and ends with a verdict.
func TestDemoForPeople(t *testing.T) {
	t.Parallel()
	r := run(t, nil, "demo", "--tpm=off").want(t, done)
	for _, line := range strings.Split(r.stdout, "\n") {
		if n := utf8.RuneCountInString(line); n > 80 && strings.Contains(strings.TrimSpace(line), " ") {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	if !strings.Contains(r.stdout, "Every step held") {
		t.Errorf("no verdict:\n%s", r.stdout)
	}
	run(t, nil, "demo", "--tpm=maybe").want(t, wrongUsage)
	run(t, nil, "demo", "--timeout", "1ms", "-o", "json").exits(t, failed).object(t, fields{"steps": list(anyObject)})
}
