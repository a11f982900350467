package policy

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// reading is a policy that permits on one condition.
func reading(condition string) map[string]string {
	changes := map[string]string{}
	for _, name := range []string{"administration", "custody", "custody_test", "decision_test", "deliver", "number"} {
		changes["rego/"+name+".rego"] = ""
	}
	changes["rego/decision.rego"] = `package bulla

import rego.v1

default decision := {"decision": "DENY", "reasons": ["no"], "obligations": {}, "requires": {}, "disclose": false}

decision := {"decision": "PERMIT", "reasons": ["yes"], "obligations": {}, "requires": {}, "disclose": true} if permit

default permit := false

helper(x) if x == "NO"

` + condition + "\n"
	return changes
}

// conditions read the input in each way that Rego has.
var conditions = []string{
	`permit if input.place.country == "NO"`,
	`permit if not input.place.country`,
	`permit if not input.place.country == "NO"`,
	`permit if { p := input.place; p.country == "NO" }`,
	`permit if { x := input; x.place.country == "NO" }`,
	`permit if { some key, value in input.place; key == "country"; value == "NO" }`,
	`permit if { name := "country"; input.place[name] == "NO" }`,
	`permit if { some name in ["country", "continent"]; input.place[name] == "NO" }`,
	`permit if input.place[_] == "NO"`,
	`permit if helper(input.place.country)`,
	`permit if { every c in ["NO", "FR"] { input.place.country == c } }`,
	`permit if { every k, v in input.place { v != k } }`,
	`permit if count([1 | input.place.country == "NO"]) == 1`,
	`permit if count({c | c := input.place.country}) == 0`,
	`permit if "country" in object.keys(input.place)`,
	`permit if object.get(input, ["place", "country"], "NO") == "NO"`,
	`permit if object.get(input.place, "country", "NO") == "NO"`,
	`permit if { a := data.grants[input.principal.person]; a }`,
	`permit if input.attestation.tier == "affirming"`,
	"permit if input.action == \"session.show\"\n\npermit if input.attestation.score > 50",
	"permit if input.action == \"deliver\"\n\npermit if input.attestation.score > 50",
	`permit if { input.action == "secret.show"; input.place.country == "NO" }`,
	`permit if { input.place.country == "NO"; input.action == "secret.show" }`,
	`permit if { some f in input.factors; f.type == "USER" }`,
	`permit if { some f in input.factors; f.claims.groups == ["ops"] }`,
	`permit if input.factors[0].claims.groups[0] == "ops"`,
	`permit if count(input.approvals) > 0`,
	`permit if input.history.novel == false`,
	`permit if input.history.new_country == false`,
	`permit if { some i; input.external[i].level == "raised" }`,
	`permit if input.recipient.in_hardware == true`,
	`permit if data.grants["x"] == input.place`,
	`permit if input.place.country == input.attestation.kind`,
	"permit if inner with input as {\"place\": {\"country\": input.attestation.kind}}\n\ninner if input.place.country == \"tpm2\"",
	"permit := true if input.place.country == \"FR\"\nelse := true if input.history.novel",
	"codes contains c if c := input.place.country\n\npermit if \"NO\" in codes",
	"fact[name] := value if some name, value in input.place\n\npermit if fact.country == \"NO\"",
}

// part is what a call may have or not, with the path of the input that is undefined without it.
var optionalParts = []struct {
	path string
	set  func(*Signals, *rand.Rand)
}{
	{"input.place", func(s *Signals, r *rand.Rand) {
		s.Place = &Place{Country: []string{"NO", "FR"}[r.IntN(2)], Continent: []string{"", "EU"}[r.IntN(2)], Source: "x", BuiltAt: s.Now - 1}
	}},
	{"input.attestation", func(s *Signals, r *rand.Rand) {
		*s = attested(*s, []string{"tpm2", "development"}[r.IntN(2)], []string{"affirming", "none"}[r.IntN(2)], int64(r.IntN(101)))
	}},
	{"input.factors", func(s *Signals, r *rand.Rand) {
		f := Factor{Kind: FactorOIDC, Issuer: "i", Subject: "s", ExpiresAt: s.Now + 1, Type: []string{"", "USER"}[r.IntN(2)]}
		if r.IntN(2) == 0 {
			f.Claims = map[string][]string{"groups": {"ops"}}
		}
		s.Factors = []Factor{f}
	}},
	{"input.history", func(s *Signals, r *rand.Rand) { s.History = &History{Novel: r.IntN(2) == 0} }},
	{"input.approvals", func(s *Signals, _ *rand.Rand) { s.Approvals = []Approval{{Principal: "x", At: s.Now - 1}} }},
	{"input.external", func(s *Signals, r *rand.Rand) {
		s.External = []ExternalSignal{{Transmitter: "t", Level: []string{"raised", "high"}[r.IntN(2)], Expires: s.Now + 1}}
	}},
	{"input.recipient", func(s *Signals, r *rand.Rand) { s.Recipient = &Recipient{Suite: 9, InHardware: r.IntN(2) == 0} }},
}

// TestLacksIsSound: what an evaluation is said not to have looked at can be filled in, with whatever, and the decision
// stays. So where a decision could come out differently with what a recording lacks, Lacks says so.
func TestLacksIsSound(t *testing.T) {
	t.Parallel()
	for _, condition := range conditions {
		t.Run(condition, func(t *testing.T) {
			t.Parallel()
			// A model that counts nothing: the score would be another way for what is filled in to matter.
			rev := open(t, reading(condition))
			dice := rand.New(rand.NewPCG(7, uint64(len(condition))))
			for range 60 {
				s := request("workload", []Action{ActionDeliver, ActionSecretShow}[dice.IntN(2)])
				s.Recipient, s.History = nil, nil
				for _, p := range optionalParts {
					if dice.IntN(3) == 0 {
						p.set(&s, dice)
					}
				}
				e := rev.Explain(t.Context(), s)
				if plain := rev.Judge(t.Context(), s); plain.Effect != e.Decision.Effect {
					t.Fatalf("explained %s, judged %s", e.Decision.Effect, plain.Effect)
				}
				for _, p := range optionalParts {
					if looked(e.Lacks, p.path) || !lacking(rev, s, p.path) {
						continue
					}
					filled := s
					p.set(&filled, dice)
					if got := rev.Judge(t.Context(), filled); got.Effect != e.Decision.Effect {
						t.Errorf("%s: %s without %s, %s with it, but it is not in %q", condition, e.Decision.Effect, p.path, got.Effect, e.Lacks)
					}
				}
			}
		})
	}
}

func looked(lacks []string, path string) bool {
	return slices.ContainsFunc(lacks, func(l string) bool {
		return l == path || strings.HasPrefix(l, path+".") || strings.HasPrefix(l, path+"[")
	})
}

func lacking(rev *Revision, s Signals, path string) bool {
	return slices.Contains(Explanation{Lacks: rev.lacksOf(s)}.Lacks, path)
}

// lacksOf is everything that the input of s lacks.
func (r *Revision) lacksOf(s Signals) []string {
	input, _ := r.Input(s)
	w := &watcher{input: input, kind: s.Resource.Kind, lacks: map[string]bool{}}
	w.missing(input, schemaOfInput(), "input", nil)
	var out []string
	for path := range w.lacks {
		out = append(out, path)
	}
	return out
}

// TestLacksIsExact: nothing is named that the evaluation did not get to.
func TestLacksIsExact(t *testing.T) {
	t.Parallel()
	s := request("workload", ActionDeliver)
	for condition, want := range map[string]string{
		`permit if input.place.country == "NO"`:                                            "input.place",
		`permit if { input.action == "secret.show"; input.place.country == "NO" }`:         "",
		`permit if { input.place.country == "NO"; input.action == "secret.show" }`:         "input.place",
		`permit if input.principal.level == "BASIC"`:                                       "",
		`permit if input.principal.person == "alex"`:                                       "input.principal.person",
		`permit if input.resource.session.id == "x"`:                                       "", // no delivery has one
		`permit if input.resource.secret.name == "x"`:                                      "",
		`permit if { some name, points in input.risk.points; name == "zone"; points > 0 }`: "",
		`permit if input.attestation`:                                                      "input.attestation",
	} {
		rev := open(t, reading(condition))
		if got := strings.Join(rev.Explain(t.Context(), s).Lacks, " "); got != want {
			t.Errorf("%s lacks %q, want %q", condition, got, want)
		}
	}
}

// TestExplainDecides: the account is of the very decision that is recorded.
func TestExplainDecides(t *testing.T) {
	t.Parallel()
	rev := development(t)
	for i, s := range []Signals{
		delivery("workload", "demo/key", "standard"), delivery("workload", "demo/key", "high"), delivery("stranger", "demo/key", "standard"),
		attested(delivery("workload", "demo/key", "high"), "development", "warning", 50), request("security", ActionPolicyPush),
		delivery("workload", "demo/key", "approved"), delivery("workload", "demo/key", "split"),
	} {
		d, e := rev.Judge(t.Context(), s), rev.Explain(t.Context(), s)
		e.Decision.InputDigest, e.Decision.Signals = d.InputDigest, d.Signals
		if !bytes.Equal(d.Canonical(), e.Decision.Canonical()) {
			t.Errorf("case %d: judged\n%s, explained\n%s", i, d.Canonical(), e.Decision.Canonical())
		}
		if len(e.Steps) == 0 || e.Steps[0].File == "" || e.Steps[0].Line == 0 {
			t.Errorf("case %d: no step, or none with a place", i)
		}
	}
}

// TestReopenGivesTheSame: a revision that is opened to judge judges as the one that was loaded to decide.
func TestReopenGivesTheSame(t *testing.T) {
	t.Parallel()
	rev := development(t)
	again, err := Reopen(t.Context(), rev.Archive())
	if err != nil {
		t.Fatal(err)
	}
	s := delivery("workload", "demo/key", "standard")
	if a, b := rev.Judge(t.Context(), s), again.Judge(t.Context(), s); !bytes.Equal(a.Canonical(), b.Canonical()) {
		t.Errorf("loaded\n%s, reopened\n%s", a.Canonical(), b.Canonical())
	}
	if _, err := Reopen(t.Context(), append(bytes.Clone(rev.Archive()), 'x')); err == nil {
		t.Error("an archive that is not canonical was reopened")
	}
}
