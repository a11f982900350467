package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSessions lists, shows, revokes.
func TestSessions(t *testing.T) {
	t.Parallel()
	d := shared(t)
	security, workload := d.as(t, "security"), d.as(t, "workload")
	d.put(t, "demo/sessions", "standard", "x")
	page := fields{"sessions": list(object(sessionShape())), "next": orNull(matching(uuidPattern))}
	listed := func(args ...string) map[string]any {
		return run(t, security, append([]string{"session", "list", "-o", "json", "--secret", "demo/sessions"}, args...)...).want(t, done).object(t, page)
	}
	if none := listed(); len(none["sessions"].([]any)) != 0 || none["next"] != nil {
		t.Errorf("before any delivery: %v", none)
	}
	var ids []string
	for range 3 {
		ids = append(ids, d.get(t, workload, "demo/sessions")["session_id"].(string))
	}
	var seen []string
	args := []string{"--limit", "2"}
	for {
		got := listed(args...)
		for _, s := range got["sessions"].([]any) {
			seen = append(seen, s.(map[string]any)["id"].(string))
		}
		if got["next"] == nil || len(seen) > len(ids) {
			break
		}
		args = []string{"--limit", "2", "--before", got["next"].(string)}
	}
	if want := []string{ids[2], ids[1], ids[0]}; fmt.Sprint(seen) != fmt.Sprint(want) {
		t.Errorf("page by page: %v, want the newest first: %v", seen, want)
	}

	revoked := run(t, security, "session", "revoke", ids[0], "--reason", "a \x1b[31m test", "-o", "json").want(t, done).object(t, sessionDetailsShape())
	if revoked["state"] != "revoked" || revoked["revoked_at"] == nil || revoked["reason"] != "a \x1b[31m test" {
		t.Errorf("revoked: %v", revoked)
	}
	if shown := run(t, security, "session", "show", ids[0]).want(t, done).stdout; strings.Contains(shown, "\x1b") || !strings.Contains(shown, "revoked") {
		t.Errorf("shown: %q", shown)
	}
	again := run(t, security, "session", "revoke", "--reason", "again", ids[0], "-o", "json").want(t, done).object(t, sessionDetailsShape())
	if again["reason"] != revoked["reason"] || again["revoked_at"] != revoked["revoked_at"] {
		t.Errorf("revoked twice: %v", again)
	}
	if got := listed("--state", "revoked")["sessions"].([]any); len(got) != 1 || got[0].(map[string]any)["id"] != ids[0] {
		t.Errorf("the revoked ones: %v", got)
	}
	for _, id := range []string{"0193f2f0-5c1e-7a40-9a57-0d2f6f1c5a11", "nonsense", "'; DROP TABLE sessions"} {
		run(t, security, "session", "show", id, "-o", "json").want(t, failed).says(t, "no session").object(t, failureShape())
		run(t, security, "session", "revoke", id, "--reason", "x").want(t, failed)
	}
	run(t, security, "session", "revoke", ids[1]).want(t, wrongUsage).says(t, "--reason")
	run(t, security, "session", "list", "--state", "broken").want(t, wrongUsage).says(t, "broken")
	// A new delivery is a new session: revocation ends one and not the grant.
	run(t, workload, "get", "demo/sessions").want(t, done)
}

// TestDevices: the operator enrols, shows and revokes, and a revoked device is no device.
func TestDevices(t *testing.T) {
	t.Parallel()
	d := ownDev(t)
	operator, workload := d.as(t, "operator"), d.as(t, "workload")
	d.put(t, "demo/device", "high", "x")
	page := fields{"devices": list(object(deviceShape())), "next": orNull(word)}
	all := run(t, operator, "device", "list", "-o", "json").want(t, done).object(t, page)["devices"].([]any)
	if len(all) != 1 || all[0].(map[string]any)["state"] != "enrolled" || all[0].(map[string]any)["kind"] != "development" {
		t.Fatalf("devices: %v", all)
	}
	id := all[0].(map[string]any)["id"].(string)
	shown := run(t, operator, "device", "show", id, "-o", "json").want(t, done).object(t, deviceShape())
	if who := fmt.Sprint(shown["record"].(map[string]any)["principals"]); who != "[spiffe://dev.bulla.test/workload]" {
		t.Errorf("it is for %s", who)
	}
	session := d.get(t, workload, "demo/device")["session_id"]
	revoked := run(t, operator, "device", "revoke", id, "--reason", "sold", "-o", "json").want(t, done).object(t, deviceShape())
	if revoked["state"] != "revoked" || revoked["reason"] != "sold" || revoked["revoked_at"] == nil {
		t.Errorf("revoked: %v", revoked)
	}
	if s := d.session(t, session); s["state"] != "revoked" {
		t.Errorf("the session that relied on it is %v", s["state"])
	}
	run(t, workload, "get", "demo/device").want(t, denied)
	run(t, operator, "device", "enroll", "--device-file", workload["BULLA_DEVICE_FILE"], "--principal", "spiffe://dev.bulla.test/workload").want(t, failed).says(t, "revoked")
	run(t, operator, "device", "show", strings.Repeat("x", 40)).want(t, failed).says(t, "no device")
	run(t, operator, "device", "show", "dev-"+strings.Repeat("a", 52)).want(t, failed)
	run(t, operator, "device", "revoke", id).want(t, wrongUsage).says(t, "--reason")
	run(t, operator, "device", "enroll").want(t, wrongUsage).says(t, "--tpm", "--device-file")
	run(t, operator, "device", "enroll", "--tpm", "unix:/no/such/socket").want(t, unavailable).says(t, "/no/such/socket")
	d.stop(t)
}

// TestPolicies: check, test, push, list, show; a refused bundle leaves the active one; a demand for a grade that
// does not exist yet is a denial.
func TestPolicies(t *testing.T) {
	t.Parallel()
	d := ownDev(t)
	security, workload := d.as(t, "security"), d.as(t, "workload")
	d.put(t, "demo/policy", "standard", "x")
	bundle := filepath.Join(t.TempDir(), "bundle")
	shown := run(t, security, "policy", "show", "--out", bundle, "-o", "json").want(t, done).object(t, fields{
		"revision": object(revisionShape()), "files": list(object(fields{"path": word, "size": whole, "sha256": matching(digestPattern)})),
	})
	first := shown["revision"].(map[string]any)
	run(t, nil, "policy", "check", bundle, "-o", "json").want(t, done).object(t, fields{"ok": is(true), "faults": list(anyObject)})
	tests := run(t, nil, "policy", "test", bundle, "--threshold", "95", "-o", "json").want(t, done).
		object(t, fields{"ok": is(true), "coverage_percent": number, "results": list(anyObject), "uncovered": list(word)})
	if len(tests["results"].([]any)) == 0 {
		t.Error("the shipped policy has no tests")
	}

	grants := filepath.Join(bundle, "data", "grants.yaml")
	good := read(t, grants)
	write(t, grants, good+"spiffe://dev.bulla.test/stranger:\n  read:\n    demo/policy: true\n", 0o600)
	run(t, d.as(t, "stranger"), "get", "demo/policy").want(t, denied)
	second := run(t, security, "policy", "push", bundle, "--note", "a guest", "-o", "json").want(t, done).object(t, revisionShape().but(fields{"outcome": word, "proposal": orNull(anyObject)}))
	if second["active"] != true || second["note"] != "a guest" || second["revision"] != json.Number("2") || second["by"] != "spiffe://dev.bulla.test/security" {
		t.Errorf("pushed: %v", second)
	}
	run(t, d.as(t, "stranger"), "get", "demo/policy").want(t, done)

	write(t, filepath.Join(bundle, "rego", "deliver.rego"), "nonsense {", 0o600)
	run(t, security, "policy", "push", bundle).want(t, failed).says(t, "deliver.rego", "the active revision stays")
	if faults := run(t, nil, "policy", "check", bundle, "-o", "json").exits(t, failed).object(t, fields{
		"ok": is(false), "faults": list(object(fields{"file": text, "line": whole, "check": word, "message": word})),
	})["faults"].([]any); len(faults) == 0 {
		t.Error("policy check names no fault")
	}
	revisions := run(t, security, "policy", "list", "-o", "json").want(t, done).object(t, fields{"revisions": list(object(revisionShape())), "staged": list(anyObject), "proposal": orNull(anyObject)})["revisions"].([]any)
	if len(revisions) != 2 || revisions[0].(map[string]any)["digest"] != second["digest"] || revisions[1].(map[string]any)["active"] != false || revisions[1].(map[string]any)["digest"] != first["digest"] {
		t.Errorf("revisions: %v", revisions)
	}

	old := filepath.Join(t.TempDir(), "old")
	run(t, security, "policy", "show", first["digest"].(string), "--out", old).want(t, done)
	classes := filepath.Join(old, "data", "classes.yaml")
	write(t, classes, strings.ReplaceAll(read(t, classes), "usage_limit: {max_uses: 1000, grade: open}", "usage_limit: {max_uses: 1000, grade: gated}"), 0o600)
	run(t, security, "policy", "push", old).want(t, done)
	run(t, workload, "get", "demo/policy", "-o", "json").want(t, denied).object(t, denialShape())
}

// TestDoctorVersionCompletion: the commands that help.
func TestDoctorVersionCompletion(t *testing.T) {
	t.Parallel()
	d := shared(t)
	report := fields{"ok": boolean, "checks": list(object(fields{"name": word, "ok": boolean, "detail": text, "hint": text}))}
	for _, who := range []string{"operator", "workload", "stranger"} {
		if got := run(t, d.as(t, who), "doctor", "-o", "json").want(t, done).object(t, report); got["ok"] != true {
			t.Errorf("%s: %v", who, got)
		}
	}
	sick := run(t, d.as(t, "workload").with("BULLA_ADDR", "127.0.0.1:1"), "doctor", "-o", "json").exits(t, unavailable).object(t, report)
	last := sick["checks"].([]any)[len(sick["checks"].([]any))-1].(map[string]any)
	if sick["ok"] != false || last["ok"] != false || last["hint"] == "" {
		t.Errorf("without a broker: %v", last)
	}
	run(t, nil, "version", "-o", "json").want(t, done).object(t, fields{"version": word, "revision": text, "modified": boolean, "go": matching(`go1\..*`), "platform": word})
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if r := run(t, nil, "completion", shell).want(t, done); !strings.Contains(r.stdout, "bulla") {
			t.Errorf("%s: no script", shell)
		}
	}
	script := filepath.Join(t.TempDir(), "bulla.bash")
	write(t, script, run(t, nil, "completion", "bash").stdout, 0o600)
	if _, err := os.Stat("/bin/bash"); err == nil {
		shell(t, nil, "/bin/bash", "-n", script)
	}
}
