package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestValuesGoThroughByteForByte puts values that a careless program would change.
func TestValuesGoThroughByteForByte(t *testing.T) {
	t.Parallel()
	d := shared(t)
	workload := d.as(t, "workload")
	large := bytes.Repeat([]byte{0, 1, 0xfe, 0xff}, 16<<10)
	for name, value := range map[string][]byte{
		"plain": []byte("s3cret"), "newline": []byte("s3cret\n"), "blank": []byte(" "), "crlf": []byte("a\r\nb\r\n"),
		"binary": {0, 0xff, 0x1b, '[', '3', '1', 'm', 0}, "largest": large,
	} {
		name = "demo/bytes-" + name
		d.put(t, name, "standard", string(value))
		if r := run(t, workload, "get", name).want(t, done); r.stdout != string(value) || r.stderr != "" {
			t.Errorf("%s: %d bytes on stdout, want %d; stderr %q", name, len(r.stdout), len(value), r.stderr)
		}
		got := d.get(t, workload, name)["value"].(string)
		if decoded, err := base64.StdEncoding.DecodeString(got); err != nil || !bytes.Equal(decoded, value) {
			t.Errorf("%s: another value in the JSON (%v)", name, err)
		}
	}
	over := command{env: d.as(t, "operator"), stdin: append(large, 'x'), args: []string{"secret", "put", "demo/too-large", "--class", "standard"}}
	over.bulla(t).want(t, wrongUsage).says(t, "65536")
	over.stdin = nil
	over.bulla(t).want(t, wrongUsage).says(t, "empty")
	run(t, d.as(t, "operator"), "secret", "show", "demo/too-large").want(t, failed).says(t, "no secret demo/too-large")
}

// TestOutFileIsTheOwnersAlone writes over files of other modes, and never through a link.
func TestOutFileIsTheOwnersAlone(t *testing.T) {
	t.Parallel()
	d := shared(t)
	d.put(t, "demo/out", "high", "into a file")
	workload, dir := d.as(t, "workload"), t.TempDir()
	write(t, filepath.Join(dir, "open"), "old and longer than the new one", 0o666)
	for _, name := range []string{"new", "open"} {
		path := filepath.Join(dir, name)
		if r := run(t, workload, "get", "demo/out", "--out", path).want(t, done); r.stdout != "" {
			t.Errorf("--out prints %q as well", r.stdout)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 || read(t, path) != "into a file" {
			t.Errorf("%s has mode %v and holds %q (%v)", name, info.Mode(), read(t, path), err)
		}
	}
	write(t, filepath.Join(dir, "victim"), "untouched", 0o600)
	if err := os.Symlink("victim", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	run(t, workload, "get", "demo/out", "--out", filepath.Join(dir, "link")).want(t, wrongUsage).says(t, "link")
	if got := read(t, filepath.Join(dir, "victim")); got != "untouched" {
		t.Errorf("a link was followed: %q", got)
	}
	shape := deliveredShape().but(fields{"value": is(nil), "out": is(filepath.Join(dir, "new"))})
	run(t, workload, "get", "demo/out", "--out", filepath.Join(dir, "new"), "-o", "json").want(t, done).object(t, shape)
	if left, err := os.ReadDir(dir); err != nil || len(left) != 4 {
		t.Errorf("left beside the files: %v (%v)", left, err)
	}
}

// factorNames are all factors of the risk model: each is listed with every delivery, also when it adds nothing.
func factorNames() []string {
	return []string{
		"identity", "svid_age", "attestation_age", "attestation_trust", "attestation_tier", "zone", "transit", "request_rate", "novelty",
		"hour_of_week", "denials", "unconfirmed", "new_country", "geo_velocity", "external",
	}
}

// TestDeliveryInJSON checks what the object says, class by class and device by device.
func TestDeliveryInJSON(t *testing.T) {
	t.Parallel()
	d := shared(t)
	workload := d.as(t, "workload")
	d.put(t, "demo/json-standard", "standard", "one")
	d.put(t, "demo/json-high", "high", "one")
	d.put(t, "demo/json-high", "high", "two")
	revision := run(t, d.as(t, "security"), "policy", "list", "-o", "json").want(t, done).
		object(t, fields{"revisions": list(object(revisionShape())), "staged": list(anyObject), "proposal": orNull(anyObject)})["revisions"].([]any)[0].(map[string]any)

	for _, c := range []struct {
		name     string
		env      environment
		value    string
		version  string
		attested bool
		args     []string
	}{
		{"demo/json-standard", withoutDevice(workload), "one", "1", false, nil},
		{"demo/json-high", workload, "two", "2", true, nil},
		{"demo/json-high", workload, "one", "1", true, []string{"--version", "1"}},
	} {
		got := d.get(t, c.env, c.name, c.args...)
		if value, _ := base64.StdEncoding.DecodeString(got["value"].(string)); string(value) != c.value || got["name"] != c.name || got["version"] != json.Number(c.version) {
			t.Errorf("%s: name %v, version %v, value %q", c.name, got["name"], got["version"], value)
		}
		checkRisk(t, got["risk"].(map[string]any))
		if policy := got["policy"].(map[string]any); policy["digest"] != revision["digest"] || policy["revision"] != revision["revision"] {
			t.Errorf("%s: policy %v, and %v is active", c.name, policy, revision)
		}
		if attestation, ok := got["attestation"].(map[string]any); ok != c.attested {
			t.Errorf("%s: attestation %v", c.name, got["attestation"])
		} else if ok && attestation["principal"] != "spiffe://dev.bulla.test/workload" {
			t.Errorf("%s: the attestation is of %v", c.name, attestation["principal"])
		} else if ok && hasTPM() && attestation["kind"] != "tpm2" {
			t.Errorf("%s: attested by %v with a TPM at hand", c.name, attestation["kind"])
		}
		session := d.session(t, got["session_id"])
		if session["state"] != "confirmed" || session["secret"] != c.name || session["version"] != got["version"] || session["suite"] != got["suite"] || session["grade"] != got["grade"] {
			t.Errorf("%s: the session is %v", c.name, session)
		}
	}
}

// checkRisk wants every factor once, and the score that they add up to.
func checkRisk(t *testing.T, risk map[string]any) {
	t.Helper()
	var names []string
	sum, zeros := 0, 0
	for _, one := range risk["factors"].([]any) {
		factor := one.(map[string]any)
		names = append(names, factor["name"].(string))
		points, err := strconv.Atoi(string(factor["points"].(json.Number)))
		if err != nil {
			t.Fatal(err)
		}
		sum += points
		if points == 0 {
			zeros++
		}
	}
	if !slices.Equal(names, factorNames()) {
		t.Errorf("the factors are %v, want %v", names, factorNames())
	}
	if zeros == 0 {
		t.Error("no factor is worth 0: this does not show that those are listed")
	}
	if score := string(risk["score"].(json.Number)); score != strconv.Itoa(min(sum, 100)) {
		t.Errorf("the score is %s, and the factors add up to %d", score, sum)
	}
}

// TestWishesShortenASession asks for fewer uses and less time than the policy gives.
func TestWishesShortenASession(t *testing.T) {
	t.Parallel()
	d := shared(t)
	d.put(t, "demo/wishes", "standard", "x")
	workload := d.as(t, "workload")
	begin := time.Now()
	got := d.get(t, workload, "demo/wishes", "--uses", "3", "--ttl", "6s")
	if got["uses_left"] != json.Number("2") || got["uses_enforced_by"] != "client" {
		t.Errorf("uses_left %v, enforced by %v, want 2 by the client", got["uses_left"], got["uses_enforced_by"])
	}
	expires, err := time.Parse(time.RFC3339, got["expires_at"].(string))
	if err != nil || expires.After(time.Now().Add(6*time.Second)) || expires.Before(begin) {
		t.Errorf("it expires at %v, asked for six seconds at %v", got["expires_at"], begin)
	}
	// Readers treat now ≥ exp as expired, whether the sweeper has been there or not.
	until(t, "the session expires", func() bool { return !time.Now().Before(expires) })
	if session := d.session(t, got["session_id"]); session["state"] != "expired" {
		t.Errorf("after its end the session is %v, want expired", session["state"])
	}
	unlimited := d.get(t, workload, "demo/wishes", "--ttl", "8760h")
	if expires, err := time.Parse(time.RFC3339, unlimited["expires_at"].(string)); err != nil || expires.After(time.Now().Add(2*time.Hour)) {
		t.Errorf("a wish for a year is granted: %v", unlimited["expires_at"])
	}
}

// TestSecretMetadata: put makes versions, show and list tell them, auditors included, and never a value.
func TestSecretMetadata(t *testing.T) {
	t.Parallel()
	d := shared(t)
	operator := d.as(t, "operator")
	put := func(value string, args ...string) result {
		return command{env: operator, stdin: []byte(value), args: append([]string{"secret", "put"}, args...)}.bulla(t)
	}
	answer := fields{"name": is("demo/meta/a"), "version": is("1"), "class": is("standard")}
	put("canary-1", "demo/meta/a", "--class", "standard", "-o", "json").want(t, done).object(t, answer)
	put("canary-2", "-o", "json", "demo/meta/a").want(t, done).object(t, answer.but(fields{"version": is("2")}))
	put("canary-3", "--class=high", "demo/meta/b", "-o", "json").want(t, done)
	put("canary-4", "demo/meta/c").want(t, failed).says(t, "class")
	put("canary-5", "demo/meta/d", "--class", "nonsense").want(t, denied)

	for _, name := range []string{"operator", "security", "auditor"} {
		env := d.as(t, name)
		r := run(t, env, "secret", "show", "demo/meta/a", "-o", "json").want(t, done)
		versions := r.object(t, secretShape())["versions"].([]any)
		if len(versions) != 2 || strings.Contains(r.stdout, "canary") || strings.Contains(r.stdout, base64.StdEncoding.EncodeToString([]byte("canary-1"))) {
			t.Errorf("%s: %s", name, r.stdout)
		}
		current := 0
		for _, v := range versions {
			if v.(map[string]any)["stage"] == "current" {
				current++
			}
		}
		if current != 1 {
			t.Errorf("%d versions are current, want one: %s", current, r.stdout)
		}
		page := fields{"secrets": list(object(secretShape())), "next": orNull(word)}
		first := run(t, env, "secret", "list", "demo/meta/", "--limit", "1", "-o", "json").want(t, done).object(t, page)
		if first["next"] != "demo/meta/a" {
			t.Errorf("%s: after the first page next is %v", name, first["next"])
			continue
		}
		rest := run(t, env, "secret", "list", "demo/meta/", "--after", "demo/meta/a", "-o", "json").want(t, done).object(t, page)
		if all := rest["secrets"].([]any); len(all) != 1 || all[0].(map[string]any)["name"] != "demo/meta/b" || rest["next"] != nil {
			t.Errorf("%s: the second page is %v", name, rest)
		}
	}
	for _, args := range [][]string{{"secret", "show", "demo/meta/a"}, {"secret", "list", "demo/meta/"}} {
		if r := run(t, operator, args...).want(t, done); strings.Contains(r.stdout, "canary") || !strings.Contains(r.stdout, "demo/meta/a") {
			t.Errorf("%v: %s", args, r.stdout)
		}
	}
}

// TestRunGivesSecretsToItsChild and to nobody else.
func TestRunGivesSecretsToItsChild(t *testing.T) {
	t.Parallel()
	d := shared(t)
	d.put(t, "demo/run", "high", "for the child")
	workload := d.as(t, "workload")
	r := run(t, workload, "run", "--env", "A=demo/run", "--", "sh", "-c", `printf %s "$A"; exit 7`).exits(t, 7)
	if r.stdout != "for the child" {
		t.Errorf("the child saw %q", r.stdout)
	}
	run(t, workload, "run", "--env", "A=demo/run", "--", "sh", "-c", "kill -KILL $$").exits(t, 128+9)
	if r := run(t, workload, "run", "--env", "A=demo/run", "--env", "B=demo/run-none", "--", "echo", "started").want(t, failed); r.stdout != "" {
		t.Errorf("the child was started without all of its secrets: %q", r.stdout)
	}
	run(t, workload, "run", "--env", "A=other/thing", "--", "echo", "started").want(t, denied)
	run(t, d.as(t, "stranger"), "run", "--env", "A=demo/run", "--", "echo", "started").want(t, denied)
}

// TestGated: each use of a gated session is counted by the broker, across commands of one instance and in the record.
func TestGated(t *testing.T) {
	t.Parallel()
	d := shared(t)
	workload := d.as(t, "workload")
	d.put(t, "demo/gated", "critical", "s3cret")
	got := d.get(t, workload, "demo/gated", "--uses", "3")
	if got["grade"] != "gated" || got["uses_left"] != json.Number("2") || got["uses_enforced_by"] != "broker" || got["value"] != "czNjcmV0" {
		t.Errorf("got %v", got)
	}
	if s := d.session(t, got["session_id"]); s["state"] != "confirmed" || s["uses"] != json.Number("3") || s["used"] != json.Number("1") {
		t.Errorf("the session is %v", s)
	}
	once := d.get(t, workload, "demo/gated", "--uses", "1")
	if s := d.session(t, once["session_id"]); s["state"] != "exhausted" || s["used"] != json.Number("1") {
		t.Errorf("the session with one use is %v", s)
	}
	d.put(t, "demo/asked", "standard", "x")
	if got := d.get(t, workload, "demo/asked", "--grade", "gated"); got["grade"] != "gated" {
		t.Errorf("gated was asked for, and got %v", got["grade"])
	}
	if open := d.get(t, workload, "demo/asked"); open["grade"] != "open" || d.session(t, open["session_id"])["used"] != nil {
		t.Errorf("nothing was asked for, and got %v", open["grade"])
	}
	run(t, workload, "get", "demo/asked", "--grade", "gated").want(t, denied).says(t, "released at grade open before", "put a new version")
	run(t, workload, "get", "demo/asked", "--grade", "proxied").want(t, denied).says(t, "this secret is opaque")
	run(t, workload, "get", "demo/asked", "--grade", "leased").want(t, wrongUsage).says(t, "not built yet")
	run(t, workload, "get", "demo/asked", "--grade", "soft").want(t, wrongUsage).says(t, "open, gated or proxied")
	run(t, d.as(t, "auditor"), "audit", "rebuild", "--check").want(t, done)
}
