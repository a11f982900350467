package replay_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/policy/replay"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/secret/keys"
)

// sweepOf compares two bundles on no recording, over the secrets that are given as "name class type".
func sweepOf(tb testing.TB, old, candidate *policy.Revision, secrets ...string) replay.Report {
	tb.Helper()
	var facts []replay.SecretFacts
	for _, text := range secrets {
		f := strings.Fields(text + " opaque")
		facts = append(facts, replay.SecretFacts{Name: f[0], Class: f[1], Type: f[2], Version: 1})
	}
	return sweepFor(tb, old, candidate, "", facts...)
}

// sweepFor is sweepOf for one principal, "" for all.
func sweepFor(tb testing.TB, old, candidate *policy.Revision, who string, facts ...replay.SecretFacts) replay.Report {
	tb.Helper()
	r, err := replay.WhatIf(tb.Context(), replay.WhatIfOptions{Library: library(old), Candidate: candidate, Principal: who}, sequence(), func() (replay.Base, error) {
		return replay.Base{Active: old, Secrets: facts}, nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// opens fails the test unless the sweep has the change.
func opens(tb testing.TB, r replay.Report, transition, who, target string, also ...func(replay.SweepChange) bool) {
	tb.Helper()
	if !slices.ContainsFunc(r.Sweep.Changes, func(c replay.SweepChange) bool {
		for _, ok := range also {
			if !ok(c) {
				return false
			}
		}
		return c.Transition == transition && c.Principal == domain+who && c.Target == target
	}) {
		tb.Errorf("the sweep does not find %s of %s for %s: %+v", transition, target, who, r.Sweep.Changes)
	}
}

// TestSweepReadsTheRules: a principal that only a rule names is swept, not in a test of it.
func TestSweepReadsTheRules(t *testing.T) {
	t.Parallel()
	old := bundle(t)
	candidate := bundle(t, "rego/deliver.rego", "", "\npermit if {\n\tinput.principal.id == \"spiffe://dev.bulla.test/backdoor\"\n\tinput.resource.secret.name == \"prod/x\"\n}\n",
		"rego/decision_test.rego", "", "\n# spiffe://dev.bulla.test/only-tested\n")
	r := sweepOf(t, old, candidate, "prod/x standard")
	opens(t, r, replay.DenyPermit, "backdoor", "prod/x")
	if n := sweepOf(t, old, bundle(t, "rego/decision_test.rego", "", "\n# spiffe://dev.bulla.test/only-tested\n"), "prod/x standard").Sweep.Principals; n != 0 {
		t.Errorf("a test sweeps %d principals", n)
	}
}

// TestSweepAsksOthers: what is about one principal can open something for another one, who has a second person by it.
func TestSweepAsksOthers(t *testing.T) {
	t.Parallel()
	four := []string{"data/classes.yaml", "approval: {count: 1", "approval: {count: 4"}
	old := bundle(t, four...)
	r := sweepOf(t, old, bundle(t, append(slices.Clone(four), "data/members.yaml", "", "spiffe://dev.bulla.test/custodian-4: [custodian]\n")...), "demo/ap approved")
	opens(t, r, replay.StepUpPermit, "workload", "demo/ap")
	three := []string{"data/classes.yaml", "approval: {count: 1", "approval: {count: 3", "data/owners.yaml", "blake", "avery"}
	r = sweepOf(t, bundle(t, three...), bundle(t, three[:3]...), "demo/ap approved")
	opens(t, r, replay.StepUpPermit, "workload", "demo/ap")
}

// TestSweepTakesWhatIsNew: where there are too many devices, places or approvers for all of them, those that the
// candidate brings are tried.
func TestSweepTakesWhatIsNew(t *testing.T) {
	t.Parallel()
	grant := func(devices string) []string {
		return []string{"data/grants.yaml", "", "spiffe://dev.bulla.test/quiet:\n  read:\n    demo/: true\n  devices: [" + devices + "]\n"}
	}
	r := sweepOf(t, bundle(t, grant("a, b, c, d, e")...), bundle(t, grant("a, b, c, d, e, z")...), "demo/h high")
	opens(t, r, replay.DenyPermit, "quiet", "demo/h", func(c replay.SweepChange) bool { return strings.Contains(c.Context, ", z)") })

	rule := []string{"rego/deliver.rego", "", "\npermit if {\n\tinput.place.country in data.abroad.countries\n\tinput.principal.id == \"spiffe://dev.bulla.test/auditor\"\n}\n", "data/abroad.yaml", ""}
	countries := func(codes string) []string { return append(slices.Clone(rule), "countries: ["+codes+"]\n") }
	r = sweepOf(t, bundle(t, countries("AA, BB, CC, DD, EE, FF, GG, HH")...), bundle(t, countries("AA, BB, CC, DD, EE, FF, GG, HH, ZW")...), "demo/a standard")
	opens(t, r, replay.DenyPermit, "auditor", "demo/a", func(c replay.SweepChange) bool { return strings.HasSuffix(c.Context, "in ZW") })

	crowd := []string{"data/members.yaml", "", ""}
	for i := range 100 {
		crowd[2] += fmt.Sprintf("spiffe://dev.bulla.test/c%02d: [operator]\n", i)
	}
	old := bundle(t, append(slices.Clone(crowd), "data/classes.yaml", "approval: {count: 1, role: custodian", "approval: {count: 1, role: board")...)
	now := bundle(t, append(slices.Clone(crowd), "data/classes.yaml", "approval: {count: 1, role: custodian", "approval: {count: 1, role: board",
		"data/members.yaml", "", "spiffe://dev.bulla.test/zoe: [board]\n")...)
	opens(t, sweepFor(t, old, now, domain+"workload", replay.SecretFacts{Name: "demo/ap", Class: "approved", Version: 1}), replay.StepUpPermit, "workload", "demo/ap")
}

// TestSweepUsesKeys: what can be done with a key at grade proxied is asked for as well.
func TestSweepUsesKeys(t *testing.T) {
	t.Parallel()
	rule := func(operations string) []string {
		return []string{"rego/deliver.rego", "", "\npermit if {\n\tinput.principal.id == \"spiffe://dev.bulla.test/auditor\"\n\tinput.request.operation in {" + operations + "}\n}\n"}
	}
	r := sweepOf(t, bundle(t, rule(`"encrypt"`)...), bundle(t, rule(`"encrypt", "decrypt"`)...), "demo/k standard aes-256-gcm", "demo/a standard")
	opens(t, r, replay.DenyPermit, "auditor", "demo/k", func(c replay.SweepChange) bool { return c.Operation == "decrypt" })
	if !slices.ContainsFunc(r.Opening(), func(row string) bool { return strings.Contains(row, "demo/k (class standard) to decrypt") }) {
		t.Errorf("%q", r.Opening())
	}
	for _, kind := range []secret.Type{secret.TypeOpaque, secret.TypeECDSAP256, secret.TypeEd25519, secret.TypeHMACSHA256, secret.TypeAES256GCM} {
		var want []string
		for _, o := range keys.Operations(kind) {
			want = append(want, string(o))
		}
		if got := replay.OperationsOf(string(kind)); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", kind, got, want)
		}
	}
}

// TestSweepComesFromEachZone: an address of a zone is in no narrower one.
func TestSweepComesFromEachZone(t *testing.T) {
	t.Parallel()
	zones := []string{
		"zones.yaml", "  - name: private\n    cidrs: [10.0.0.0/8, ", "  - name: lab\n    cidrs: [10.0.0.0/9]\n  - name: desk\n    cidrs: [10.128.0.0/16]\n  - name: private\n    cidrs: [10.0.0.0/8, ",
		"risk.yaml", "private: 20}", "private: 20, lab: 20, desk: 20}",
	}
	old := bundle(t, zones...)
	for _, zone := range []string{"lab", "desk", "private", "loopback", "unknown"} {
		candidate := bundle(t, append(slices.Clone(zones), "rego/deliver.rego", "", "\npermit if {\n\tinput.principal.id == \"spiffe://dev.bulla.test/auditor\"\n\tinput.network.zone == \""+zone+"\"\n}\n")...)
		t.Run(zone, func(t *testing.T) {
			t.Parallel()
			opens(t, sweepOf(t, old, candidate, "demo/a standard"), replay.DenyPermit, "auditor", "demo/a")
		})
	}
}

// TestSweepKnowsWhatItDidNotTry: what a candidate begins to read, and the contexts give one value only, such as the time,
// makes a denial INCONCLUSIVE; what both read in the same way does not.
func TestSweepKnowsWhatItDidNotTry(t *testing.T) {
	t.Parallel()
	rule := func(condition string) []string {
		return []string{"rego/deliver.rego", "", "\npermit if {\n\tinput.principal.id == \"spiffe://dev.bulla.test/auditor\"\n\t" + condition + "\n}\n"}
	}
	for _, c := range []struct{ reads, condition string }{
		{"input.now", "input.now > 4102444800000000"},
		{"input.hour_of_week", "input.hour_of_week == 900"},
		{"input.request.max_uses", "input.request.max_uses == 7"},
		{"input.network.address", `input.network.address == "198.51.100.9"`},
		{"input.request", "some_use(input.request)\n}\n\nsome_use(r) if {\n\tr.max_uses == 7"},
	} {
		candidate := bundle(t, rule(c.condition)...)
		r := sweepOf(t, bundle(t), candidate, "demo/a standard")
		opens(t, r, replay.Inconclusive, "auditor", "demo/a", func(s replay.SweepChange) bool { return slices.Contains(s.Lacks, c.reads+" (one value was tried)") })
		if again := sweepOf(t, candidate, bundle(t, append(rule(c.condition), "data/grants.yaml", "", grantStranger)...), "demo/a standard"); slices.ContainsFunc(again.Sweep.Changes, func(s replay.SweepChange) bool { return s.Principal == domain+"auditor" }) {
			t.Errorf("%s: %+v", c.reads, again.Sweep.Changes)
		}
	}
	limit := func(now string) *policy.Revision {
		return bundle(t, append(rule("input.now > data.start.at"), "data/start.yaml", "", "at: "+now+"\n")...)
	}
	r := sweepOf(t, limit("8102444800000000"), limit("4102444800000000"), "demo/a standard")
	opens(t, r, replay.Inconclusive, "auditor", "demo/a")
	r = sweepOf(t, bundle(t, rule("input.now > 8102444800000000")...), bundle(t, rule("input.now > 4102444800000000")...), "demo/a standard")
	opens(t, r, replay.Inconclusive, "auditor", "demo/a")
}
