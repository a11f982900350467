package replay_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/policy/replay"
)

// whatIf compares the recordings, which old made, with a candidate.
func whatIf(tb testing.TB, old, candidate *policy.Revision, all ...replay.Recorded) replay.Report {
	tb.Helper()
	secrets := []replay.SecretFacts{{Name: "demo/a", Class: "standard", Version: 1}, {Name: "prod/x", Class: "standard", Version: 1}}
	r, err := replay.WhatIf(tb.Context(), replay.WhatIfOptions{Library: library(old), Candidate: candidate}, sequence(all...), func() (replay.Base, error) {
		return replay.Base{Active: old, Secrets: secrets}, nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// recordingsOnly is whatIf without a sweep: the candidate is active already.
func recordingsOnly(tb testing.TB, old, candidate *policy.Revision, all ...replay.Recorded) replay.Report {
	tb.Helper()
	r, err := replay.WhatIf(tb.Context(), replay.WhatIfOptions{Library: library(old), Candidate: candidate}, sequence(all...), func() (replay.Base, error) {
		return replay.Base{Active: candidate}, nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// with returns the group of a transition.
func with(tb testing.TB, r replay.Report, transition string) replay.Group {
	tb.Helper()
	for _, g := range r.Groups {
		if g.Transition == transition {
			return g
		}
	}
	tb.Fatalf("no %s in %+v", transition, r.Groups)
	return replay.Group{}
}

const grantStranger = "spiffe://dev.bulla.test/stranger:\n  read:\n    demo/a: true\n  devices: [\"*\"]\n"

func TestWhatIfSameBundle(t *testing.T) {
	t.Parallel()
	old := bundle(t)
	r := whatIf(t, old, old, recorded(t, old, 0, delivery("workload", "demo/a", "standard")), recorded(t, old, 1, delivery("workload", "demo/a", "high")))
	if len(r.Groups) > 0 || len(r.Sweep.Changes) > 0 || r.Matrix.PermitPermit != 1 || r.Matrix.StepUpStepUp != 1 || r.Decisions != 2 {
		t.Errorf("%+v", r)
	}
}

// TestWhatIfOpensFirst: each transition is counted and found, with where it comes from, and what opens stands first.
func TestWhatIfOpensFirst(t *testing.T) {
	t.Parallel()
	old := bundle(t)
	candidate := bundle(
		t,
		"data/grants.yaml", "", grantStranger,
		"data/classes.yaml", "  max_risk: 90\n  attestation:\n    required: false\n  obligations:\n    time_bound: {ttl_seconds: 3600, grade: open}\n    usage_limit: {max_uses: 1000, grade: open}\nhigh:",
		"  max_risk: 90\n  attestation:\n    required: false\n  obligations:\n    time_bound: {ttl_seconds: 60, grade: open}\n    usage_limit: {max_uses: 1000, grade: open}\nhigh:",
		"data/classes.yaml", "max_risk: 75\n  attestation:\n    required: true\n    max_age_seconds: 600\n    min_score: 20",
		"max_risk: 75\n  attestation:\n    required: true\n    max_age_seconds: 600\n    min_score: 90",
	)
	r := recordingsOnly(
		t, old, candidate,
		recorded(t, old, 0, attested(delivery("workload", "demo/h", "high"))),
		recorded(t, old, 1, delivery("workload", "demo/a", "standard")),
		recorded(t, old, 2, delivery("stranger", "demo/a", "standard")),
		recorded(t, old, 3, delivery("stranger", "demo/b", "standard")),
	)
	if m := r.Matrix; m.DenyPermit != 1 || m.PermitDeny != 1 || m.Obligations != 1 || m.DenyDeny != 1 || m.Inconclusive != 0 {
		t.Errorf("matrix %+v", m)
	}
	var got []string
	for _, g := range r.Groups {
		got = append(got, g.Transition)
	}
	if want := []string{replay.DenyPermit, replay.Obligations, replay.PermitDeny}; !slices.Equal(got, want) {
		t.Errorf("groups %q, want %q", got, want)
	}
	open := with(t, r, replay.DenyPermit)
	if open.Principal != domain+"stranger" || open.Target != "demo/a" || open.Index != 2 {
		t.Errorf("%+v", open)
	}
	if c := open.Cause; c.File != "rego/deliver.rego" || c.Line == 0 || !strings.Contains(c.Text, "data.grants[input.principal.id].read") {
		t.Errorf("cause %+v", c)
	}
	if !slices.ContainsFunc(open.Cause.Data, func(c replay.Change) bool {
		return c.File == "data/grants.yaml" && strings.Contains(c.Path, "demo/a") && c.Line > 1
	}) {
		t.Errorf("the grant is not named: %+v", open.Cause.Data)
	}
	closes := with(t, r, replay.PermitDeny)
	if c := closes.Cause; c.Rule != "data.bulla.number.at_least" || c.In != "candidate" {
		t.Errorf("cause %+v", c)
	}
	if !slices.ContainsFunc(closes.Cause.Data, func(c replay.Change) bool {
		return strings.HasSuffix(c.Path, "min_score") && c.Was == "20" && c.Now == "90"
	}) {
		t.Errorf("the limit is not named: %+v", closes.Cause.Data)
	}
	if d := with(t, r, replay.Obligations).Detail; !strings.Contains(d, "3600") || !strings.Contains(d, "60") {
		t.Errorf("detail %q", d)
	}
}

func TestWhatIfStepUps(t *testing.T) {
	t.Parallel()
	old := bundle(t)
	required := "  sensitivity: 1\n  levels: [BASIC, ENHANCED, HIGH_ASSURANCE]\n  max_risk: 90\n  attestation:\n    required: "
	asks := bundle(t, "data/classes.yaml", required+"false", required+"true\n    max_age_seconds: 60\n    min_score: 1\n    kinds: [tpm2]\n    tiers: [affirming]")
	plain, high := delivery("workload", "demo/a", "standard"), delivery("workload", "demo/h", "high")
	r := recordingsOnly(t, old, asks, recorded(t, old, 0, plain))
	if r.Matrix.PermitStepUp != 1 || r.Matrix.Inconclusive != 0 { // that it lacks what it is asked for is the answer
		t.Errorf("%+v %+v", r.Matrix, r.Groups)
	}
	r = recordingsOnly(t, asks, old, recorded(t, asks, 0, plain))
	if r.Matrix.StepUpPermit != 1 {
		t.Errorf("%+v", r.Matrix)
	}
	other := bundle(t, "data/classes.yaml", "max_risk: 75\n  attestation:\n    required: true\n    max_age_seconds: 600", "max_risk: 75\n  attestation:\n    required: true\n    max_age_seconds: 60")
	r = recordingsOnly(t, old, other, recorded(t, old, 0, high))
	if r.Matrix.Requirements != 1 || !strings.Contains(with(t, r, replay.Requirements).Detail, "600") {
		t.Errorf("%+v", r)
	}
}

// TestWhatIfRiskAndZones: what is outside of Rego and data is tried as well, and said.
func TestWhatIfRiskAndZones(t *testing.T) {
	t.Parallel()
	old := bundle(t)
	lower := bundle(t, "data/classes.yaml", "max_risk: 90", "max_risk: 0")
	r := recordingsOnly(t, old, lower, recorded(t, old, 0, delivery("workload", "demo/a", "standard")))
	if c := with(t, r, replay.PermitDeny).Cause; c.File != "rego/number.rego" || c.Text != "value <= limit" {
		t.Errorf("cause %+v", c)
	}
	moved := bundle(t, "zones.yaml", "127.0.0.0/8", "192.0.2.0/24", "data/classes.yaml", "max_risk: 90", "max_risk: 30")
	r = recordingsOnly(t, old, moved, recorded(t, old, 0, delivery("workload", "demo/a", "standard")))
	if len(r.Groups) > 0 && len(r.Groups[0].Cause.Risk) == 0 {
		t.Errorf("the zone is not named: %+v", r.Groups)
	}
}

// inconclusive is a candidate that reads the place, which the development policy does not.
func inconclusive(tb testing.TB, condition string) *policy.Revision {
	return bundle(tb, "rego/deliver.rego", "permit if {\n\tcovered\n\tinput.resource.secret.exists == true\n",
		"permit if {\n\tcovered\n\t"+condition+"\n\tinput.resource.secret.exists == true\n")
}

// TestInconclusive: where the candidate reads what the recording lacks and the old revision did not read, nothing is
// concluded, and it counts as what it could be. Where it has it, or does not get there, it is concluded.
func TestInconclusive(t *testing.T) {
	t.Parallel()
	old := bundle(t)
	plain := delivery("workload", "demo/a", "standard")
	placed := plain
	placed.Place = &policy.Place{Country: "NO", Source: "x", BuiltAt: now - 1}
	covered := inconclusive(t, `input.place.country == "NO"`)
	for _, c := range []struct {
		name      string
		candidate *policy.Revision
		signals   policy.Signals
		want      string
	}{
		{"it lacks it", covered, plain, replay.Inconclusive},
		{"it has it", covered, placed, ""},
		{"it does not get there", covered, delivery("stranger", "demo/a", "standard"), ""},
		{"not, where it is undefined, would hold", inconclusive(t, `not input.place.country == "FR"`), plain, replay.Inconclusive},
		{"by another name", inconclusive(t, "here := input.place\n\there.country == \"NO\""), plain, replay.Inconclusive},
		{"what the old one read as well", inconclusive(t, "secret.class.attestation.required == false\n\tinput.approvals"), delivery("workload", "demo/a", "approved"), replay.Inconclusive},
		{"a part that no delivery has", inconclusive(t, "not input.resource.session.id"), plain, ""},
	} {
		r := recordingsOnly(t, old, c.candidate, recorded(t, old, 0, c.signals))
		got := ""
		if len(r.Groups) > 0 {
			got = r.Groups[0].Transition
		}
		if c.name == "what the old one read as well" { // custody.approved reads the approvals of this class
			if r.Matrix.Inconclusive > 0 {
				t.Errorf("%s: %+v", c.name, r.Groups)
			}
			continue
		}
		if got != c.want || (r.Matrix.Inconclusive == 1) != (c.want == replay.Inconclusive) || r.Matrix.DenyPermit != r.Matrix.Inconclusive {
			t.Errorf("%s: %q %+v, want %q; %+v", c.name, got, r.Matrix, c.want, r.Groups)
		}
		if c.want == replay.Inconclusive && len(r.Groups) > 0 && !slices.ContainsFunc(r.Groups[0].Lacks, func(p string) bool { return strings.HasPrefix(p, "input.place") }) {
			t.Errorf("%s: lacks %q", c.name, r.Groups[0].Lacks)
		}
	}
	// Without the revision that decided, nothing is known of what it read.
	rec := recorded(t, old, 0, delivery("workload", "demo/h", "high"))
	rec.Revision[0]++
	if r := recordingsOnly(t, old, bundle(t), rec); r.Matrix.Inconclusive != 0 { // a STEP_UP that asks for what is lacking
		t.Errorf("%+v", r.Groups)
	}
	rec = recorded(t, old, 0, delivery("workload", "demo/a", "approved"))
	rec.Revision[0]++
	if r := recordingsOnly(t, old, bundle(t, "data/classes.yaml", "approval: {count: 1", "approval: {count: \"1\""), rec); r.Matrix.Inconclusive != 1 {
		t.Errorf("%+v", r)
	}
}

// TestSweepFindsWhatNobodyAsked: a grant that is in no recording does not hide, for secrets that are there and for those
// that could be; nor does a role.
func TestSweepFindsWhatNobodyAsked(t *testing.T) {
	t.Parallel()
	old := bundle(t)
	candidate := bundle(
		t,
		"data/grants.yaml", "", "spiffe://dev.bulla.test/quiet:\n  read:\n    prod/: true\n    later/: true\n  devices: [dev-7]\n",
		"data/members.yaml", "", "spiffe://dev.bulla.test/newcomer: [security]\n",
	)
	r := whatIf(t, old, candidate, recorded(t, old, 0, delivery("workload", "demo/a", "standard")))
	if len(r.Groups) > 0 {
		t.Errorf("the recordings came out differently: %+v", r.Groups)
	}
	found := map[string]replay.SweepChange{}
	for _, c := range r.Sweep.Changes {
		if c.Transition != replay.DenyPermit || c.Exercised {
			t.Errorf("%+v", c)
		}
		found[c.Principal+" "+c.Target+" "+c.Class] = c
	}
	for _, want := range []string{
		domain + "quiet prod/x standard", domain + "quiet later/any-secret standard", domain + "quiet later/any-secret high",
		domain + "quiet later/any-secret critical", domain + "quiet later/any-secret approved", domain + "newcomer policy.push ",
		domain + "newcomer session.revoke ",
	} {
		c, ok := found[want]
		if !ok {
			t.Errorf("the sweep does not find %q", want)
			continue
		}
		if c.Cause.File == "" || c.Cause.Line == 0 || len(c.Cause.Data) == 0 {
			t.Errorf("%s: cause %+v", want, c.Cause)
		}
	}
	if _, ok := found[domain+"quiet demo/a standard"]; ok {
		t.Error("a secret that the grant does not cover is opened")
	}
	if c := found[domain+"quiet later/any-secret high"]; !c.Made || !strings.Contains(c.Context, "dev-7") {
		t.Errorf("%+v", c)
	}
	if recorded, pairs := r.Opens(); recorded != 0 || pairs != len(r.Sweep.Changes) || pairs == 0 || !r.Sweep.Complete {
		t.Errorf("opens %d and %d", recorded, pairs)
	}
}

// TestNarrowedReportSaysSo: a report about a part is not taken for one about everything.
func TestNarrowedReportSaysSo(t *testing.T) {
	t.Parallel()
	old, candidate := bundle(t), bundle(t, "data/grants.yaml", "", grantStranger)
	for _, opts := range []replay.WhatIfOptions{{Principal: domain + "nobody"}, {Secret: "demo/none"}} {
		opts.Library, opts.Candidate = library(old), candidate
		r, err := replay.WhatIf(t.Context(), opts, sequence(recorded(t, old, 0, delivery("stranger", "demo/a", "standard"))), func() (replay.Base, error) {
			return replay.Base{Active: old}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		again, err := replay.ParseReport(encoded(t, r))
		if recorded, pairs := again.Opens(); err != nil || recorded != 0 || pairs != 0 || !again.Narrowed() {
			t.Errorf("%+v, %v", again, err)
		}
	}
	if whatIf(t, old, candidate).Narrowed() {
		t.Error("a report about everything says that it is about a part")
	}
}

// TestSweepIsInconclusive: a candidate that reads what no context has is not taken for one that denies.
func TestSweepIsInconclusive(t *testing.T) {
	t.Parallel()
	old := bundle(t)
	candidate := bundle(t, "rego/deliver.rego", "", "\npermit if {\n\tinput.principal.id == \"spiffe://dev.bulla.test/workload\"\n\tinput.external[_].type == \"x\"\n}\n")
	r := whatIf(t, old, candidate)
	if !slices.ContainsFunc(r.Sweep.Changes, func(c replay.SweepChange) bool {
		return c.Transition == replay.Inconclusive && c.Principal == domain+"workload" && c.Target == "prod/x" && slices.Contains(c.Lacks, "input.external")
	}) {
		t.Errorf("%+v", r.Sweep.Changes)
	}
}

// TestReportIsCanonical: the same comparison has the same digest, and another one another.
func TestReportIsCanonical(t *testing.T) {
	t.Parallel()
	old, candidate := bundle(t), bundle(t, "data/grants.yaml", "", grantStranger)
	rec := recorded(t, old, 0, delivery("stranger", "demo/a", "standard"))
	a, b := whatIf(t, old, candidate, rec), whatIf(t, old, candidate, rec)
	for _, r := range []*replay.Report{&a, &b} { // contexts name no time of the run
		if len(r.Sweep.Changes) == 0 {
			t.Fatal("no change")
		}
	}
	x, errX := a.Encode()
	y, errY := b.Encode()
	if errX != nil || errY != nil || !bytes.Equal(x, y) {
		t.Errorf("two encodings:\n%s\n%s", x, y)
	}
	other, err := whatIf(t, old, old, rec).Digest()
	if same, _ := a.Digest(); err != nil || same == other {
		t.Error("two reports have one digest")
	}
}

// TestAccess: who could read a secret, in the context that asks least.
func TestAccess(t *testing.T) {
	t.Parallel()
	rev := bundle(t, "data/grants.yaml", "", grantStranger)
	ask := func(opts replay.AccessOptions) replay.Access {
		a, err := replay.WhoCould(t.Context(), opts, sequence(recorded(t, rev, 0, delivery("asker", "demo/a", "standard"))), func() (replay.Base, error) {
			return replay.Base{Active: rev, Secrets: []replay.SecretFacts{{Name: "demo/a", Class: "standard", Version: 1}, {Name: "demo/h", Class: "high", Version: 1}}}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	rows := func(a replay.Access) (out []string) {
		for _, r := range a.Rows {
			context, _, _ := strings.Cut(r.Context, " from ")
			out = append(out, strings.TrimPrefix(r.Principal, domain)+" "+r.Secret+" "+r.Decision+" "+context)
		}
		return out
	}
	a := ask(replay.AccessOptions{Secret: "demo/a"})
	if got := rows(a); !slices.Equal(got, []string{"stranger demo/a PERMIT on its SVID alone", "workload demo/a PERMIT on its SVID alone"}) {
		t.Errorf("%q", got)
	}
	if a.Denied == 0 || len(a.Assumed) == 0 || a.Rows[0].Obligations.TimeBound == nil || !strings.Contains(a.Rows[0].Cause, "rego/deliver.rego:") {
		t.Errorf("%+v", a)
	}
	if got := rows(ask(replay.AccessOptions{Principal: domain + "workload"})); len(got) != 2 || !strings.HasPrefix(got[1], "workload demo/h PERMIT on an attested device") {
		t.Errorf("%q", got)
	}
	if got := rows(ask(replay.AccessOptions{Secret: "demo/a", Principal: domain + "auditor"})); len(got) != 0 {
		t.Errorf("%q", got)
	}
	if got := ask(replay.AccessOptions{Secret: "demo/new"}); len(got.Rows) == 0 || !got.Rows[0].Made {
		t.Errorf("%+v", got.Rows)
	}
}
