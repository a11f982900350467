package e2e

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDenialsSayWhatTheyMay: to a caller with a grant, reasons and what it would take; to others one constant text.
func TestDenialsSayWhatTheyMay(t *testing.T) {
	t.Parallel()
	d := shared(t)
	d.put(t, "demo/deny", "high", "x")
	bare := withoutDevice(d.as(t, "workload"))
	stepUp := run(t, bare, "get", "demo/deny", "-o", "json").want(t, denied)
	answer := stepUp.object(t, denialShape())
	if answer["decision"] != "STEP_UP" || len(answer["reasons"].([]any)) == 0 {
		t.Errorf("an attestation that is missing: %v", answer)
	}
	if _, ok := answer["requires"].(map[string]any)["attestation"].(map[string]any); !ok {
		t.Errorf("requires is %v, want an attestation", answer["requires"])
	}
	stepUp.says(t, answer["support_id"].(string), answer["reasons"].([]any)[0].(string), "it would take")
	if r := run(t, bare, "get", "demo/deny").want(t, denied); r.stdout != "" {
		t.Errorf("without -o json a denial prints %q", r.stdout)
	}

	for _, c := range []struct{ who, name string }{{"stranger", "demo/deny"}, {"workload", "other/deny"}, {"operator", "demo/deny"}, {"auditor", "demo/deny"}} {
		r := run(t, d.as(t, c.who), "get", c.name, "-o", "json").want(t, denied)
		answer := r.object(t, denialShape())
		if answer["decision"] != "DENY" || len(answer["reasons"].([]any)) != 0 || answer["requires"] != nil {
			t.Errorf("%s, who has no grant, is told %s", c.who, r.stdout)
		}
		r.says(t, answer["support_id"].(string))
	}
}

// TestUnknownAndDeniedAreOne: who has no grant can't tell a name that exists from one that does not, by text, code
// or the number of events. Whose grant covers it is told that it is not there.
func TestUnknownAndDeniedAreOne(t *testing.T) {
	t.Parallel()
	d := ownDev(t)
	d.put(t, "demo/there", "standard", "x")
	stranger, workload := d.as(t, "stranger"), d.as(t, "workload")
	var texts, events []string
	for _, name := range []string{"demo/there", "demo/gone!", "other/gone!"} {
		name = strings.ReplaceAll(name, "gone!", "gone-"+strings.Repeat("x", len("there")))
		before := len(d.events(t))
		r := run(t, stranger, "get", name, "-o", "json").want(t, denied)
		// The reading itself is an event of the auditor, the same one each time.
		seen := d.events(t)[before:]
		id := r.object(t, denialShape())["support_id"].(string)
		texts = append(texts, strings.NewReplacer(id, "ID", name, "NAME").Replace(r.stdout+r.stderr))
		// The first call of a trust domain brings its bundle on the record, whatever it asks for.
		events = append(events, strings.TrimPrefix(strings.Join(seen, " "), "trust.observed "))
	}
	if texts[0] != texts[1] || texts[0] != texts[2] {
		t.Errorf("the answers differ:\n%s", strings.Join(texts, "\n"))
	}
	if events[0] != events[1] || events[0] != events[2] {
		t.Errorf("the events differ:\n%s", strings.Join(events, "\n"))
	}
	if !strings.Contains(events[0], "decision.denied") || strings.Count(events[0], "decision.") != 1 {
		t.Errorf("a decision is not one event: %s", events[0])
	}
	missing := run(t, workload, "get", "demo/gone", "-o", "json").want(t, failed).says(t, "there is no secret demo/gone")
	if missing.object(t, failureShape())["exit_code"] != json.Number("1") {
		t.Errorf("not found is %s", missing.stdout)
	}
	run(t, workload, "get", "demo/there", "--version", "2").want(t, failed).says(t, "version")
}

// ownDev starts a server for a test that counts its events, or changes it.
func ownDev(t *testing.T, args ...string) *dev {
	t.Helper()
	return startDev(t, t.TempDir(), append([]string{"--tpm=off"}, args...)...)
}

// events are the types of all events, without those of reading them.
func (d *dev) events(t *testing.T) []string {
	t.Helper()
	var types []string
	r := run(t, d.as(t, "auditor"), "audit", "tail", "-o", "json").want(t, done)
	for i, line := range strings.Split(strings.TrimSuffix(r.stdout, "\n"), "\n") {
		var e struct {
			Index *int `json:"index"`
			Event struct {
				Type    string `json:"type"`
				Subject string `json:"subject"`
			} `json:"event"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Index == nil || *e.Index != i || e.Event.Type == "" {
			t.Fatalf("line %d of audit tail is no event with that index (%v): %s", i, err, line)
		}
		if e.Event.Subject != "spiffe://dev.bulla.test/auditor" {
			types = append(types, e.Event.Type)
		}
	}
	return types
}

// TestRoles tries every role's rights, and some of those that it has not.
func TestRoles(t *testing.T) {
	t.Parallel()
	d := ownDev(t)
	d.put(t, "demo/roles", "standard", "x")
	id := fmt.Sprint(d.get(t, d.as(t, "workload"), "demo/roles")["session_id"])
	device := run(t, d.as(t, "operator"), "device", "list").want(t, done).stdout
	device = regexp.MustCompile(devicePattern).FindString(device)
	policyDir := d.path("policy")
	commands := map[string][]string{
		"get": {"get", "demo/roles"}, "put": {"secret", "put", "demo/roles"}, "show": {"secret", "show", "demo/roles"}, "list": {"secret", "list"},
		"sessions": {"session", "list"}, "session": {"session", "show", id}, "revoke": {"session", "revoke", id, "--reason", "roles"},
		"devices": {"device", "list"}, "device": {"device", "show", device}, "enroll": {"device", "enroll", "--device-file", d.path("device.pem")},
		"push": {"policy", "push", policyDir}, "policies": {"policy", "list"}, "policy": {"policy", "show"},
		"tail": {"audit", "tail"}, "export": {"audit", "export"}, "rebuild": {"audit", "rebuild", "--check"},
	}
	nobody := []string{}
	for who, may := range map[string][]string{
		"operator": {"put", "show", "list", "sessions", "session", "revoke", "devices", "device", "enroll", "policies", "policy", "rebuild"},
		"security": {"show", "list", "sessions", "session", "revoke", "devices", "device", "push", "policies", "policy", "tail", "export"},
		"auditor":  {"show", "list", "sessions", "session", "devices", "device", "policies", "policy", "tail", "export", "rebuild"},
		"workload": {"get"}, "stranger": nobody, "custodian-1": nobody,
	} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			for name, args := range commands {
				if name == "export" {
					args = append(args, "--out", t.TempDir()+"/x")
				}
				r := command{env: d.as(t, who), stdin: []byte("x"), args: args}.bulla(t)
				switch allowed := slices.Contains(may, name); {
				case name == "list" && !allowed && r.code == done:
					if strings.Contains(r.stdout, "demo/") {
						t.Errorf("%s: a list shows what its reader may not see:\n%s", r.line, r.stdout)
					}
				case allowed && r.code == denied, !allowed && r.code != denied:
					t.Errorf("%s: exit code %d, allowed %t\n%s", r.line, r.code, allowed, r.stderr)
				case allowed && r.code != done && name != "enroll": // the device is enrolled already
					t.Errorf("%s: exit code %d\n%s", r.line, r.code, r.stderr)
				}
			}
		})
	}
}
