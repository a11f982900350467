package policy

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"pgregory.net/rapid"

	shipped "github.com/bulla-project/bulla/rego"
	"github.com/bulla-project/bulla/risk"
)

// aliceSpeaks lets alice of idp.test speak for the workload.
const aliceSpeaks = "https://idp.test:\n  alice:\n    person: alice\n    principals: {spiffe://dev.bulla.test/workload: true, spiffe://dev.bulla.test/other: false}\n" +
	"https://second.test:\n  bob:\n    person: bob\n    principals: {spiffe://dev.bulla.test/workload: true}\n" +
	"spiffe://dev.bulla.test:\n  spiffe://dev.bulla.test/workload:\n    person: itself\n    principals: {spiffe://dev.bulla.test/workload: true}\n" +
	"spiffe://partner.test:\n  spiffe://partner.test/ci:\n    person: ci\n    principals: {spiffe://dev.bulla.test/workload: true}\n"

func shows(s Signals, factors ...Factor) Signals {
	s.Factors = factors
	return s
}

func alice() Factor {
	return Factor{Kind: FactorOIDC, Issuer: "https://idp.test", Subject: "alice", Type: TypeUser, ExpiresAt: now + second, Token: "t"}
}

// member looks a path up in an input.
func member(t testing.TB, v ast.Value, path ...string) string {
	t.Helper()
	ref := ast.Ref{}
	for _, p := range path {
		ref = append(ref, ast.StringTerm(p))
	}
	got, err := v.Find(ref)
	if err != nil {
		return ""
	}
	text, _ := got.(ast.String)
	return string(text)
}

// TestWhoseTokenCounts: a token raises the level only for whom data.persons says, while it holds, and never where its
// issuer is the one that the SVID is of.
func TestWhoseTokenCounts(t *testing.T) {
	t.Parallel()
	rev := open(t, map[string]string{filePersons: aliceSpeaks})
	with := func(change func(*Factor)) Factor {
		f := alice()
		change(&f)
		return f
	}
	federated := Factor{Kind: FactorJWTSVID, Issuer: "spiffe://partner.test", Subject: "spiffe://partner.test/ci", ExpiresAt: now + second}
	own := Factor{Kind: FactorJWTSVID, Issuer: "spiffe://dev.bulla.test", Subject: "spiffe://dev.bulla.test/workload", ExpiresAt: now + second}
	bob := Factor{Kind: FactorOIDC, Issuer: "https://second.test", Subject: "bob", Type: TypePipeline, ExpiresAt: now + second}
	for name, c := range map[string]struct {
		who                 string
		factors             []Factor
		level, person, kind string
	}{
		"none":                {"workload", nil, LevelBasic, "", TypeService},
		"alice":               {"workload", []Factor{alice()}, LevelEnhanced, "alice", TypeUser},
		"for another":         {"stranger", []Factor{alice()}, LevelBasic, "", TypeService},
		"switched off":        {"other", []Factor{alice()}, LevelBasic, "", TypeService},
		"another subject":     {"workload", []Factor{with(func(f *Factor) { f.Subject = "Alice" })}, LevelBasic, "", TypeService},
		"another issuer":      {"workload", []Factor{with(func(f *Factor) { f.Issuer += "/" })}, LevelBasic, "", TypeService},
		"ended":               {"workload", []Factor{with(func(f *Factor) { f.ExpiresAt = now })}, LevelBasic, "", TypeService},
		"the same issuer":     {"workload", []Factor{own}, LevelBasic, "", TypeService},
		"a federated issuer":  {"workload", []Factor{federated}, LevelEnhanced, "ci", TypeService},
		"two who differ":      {"workload", []Factor{alice(), bob}, LevelEnhanced, "", TypeService},
		"one of two counts":   {"workload", []Factor{own, alice()}, LevelEnhanced, "alice", TypeUser},
		"claims that pretend": {"stranger", []Factor{with(func(f *Factor) { f.Claims = map[string][]string{"person": {"alice"}, "level": {"HIGH_ASSURANCE"}} })}, LevelBasic, "", TypeService},
	} {
		s := shows(request(c.who, ActionDoctor), c.factors...)
		v, _ := rev.Input(s)
		if level, person, kind := member(t, v, "principal", "level"), member(t, v, "principal", "person"), member(t, v, "principal", "type"); level != c.level || person != c.person || kind != c.kind {
			t.Errorf("%s: %q, person %q, %s; want %q, %q, %s", name, level, person, kind, c.level, c.person, c.kind)
		}
		if id := member(t, v, "principal", "id"); id != domain+c.who {
			t.Errorf("%s: the principal is %q", name, id)
		}
	}
	strong := shows(request("workload", ActionDoctor), alice())
	strong.Principal.Level = LevelHighAssurance
	if v, _ := rev.Input(strong); member(t, v, "principal", "level") != LevelHighAssurance {
		t.Error("a token lowered the level")
	}
	if v, _ := open(t, map[string]string{filePersons: ""}).Input(shows(request("workload", ActionDoctor), alice())); member(t, v, "principal", "level") != LevelBasic {
		t.Error("a bundle without persons lets a token count")
	}
}

func TestPersonsAreStrict(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"a list": "[]", "a subject that is a text": "i: {s: alice}", "no person": "i: {s: {principals: {p: true}}}", "an empty person": `i: {s: {person: ""}}`,
		"an unknown key": "i: {s: {person: p, principal: {x: true}}}", "a list of principals": "i: {s: {person: p, principals: [x]}}",
		"a text for true": `i: {s: {person: p, principals: {x: "true"}}}`, "a long person": "i: {s: {person: " + strings.Repeat("x", maxPersonID+1) + "}}",
	} {
		_, err := Load(t.Context(), changed(t, map[string]string{filePersons: text}), site)
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), filePersons) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOldRecordsStay: signals without what came later have the encoding that they had, and a revision whose model
// knows nothing of external signals scores and explains as before.
func TestOldRecordsStay(t *testing.T) {
	t.Parallel()
	text, err := delivery("workload", "demo/key", "standard").Encode()
	if err != nil || strings.Contains(string(text), "factors") || strings.Contains(string(text), "external") {
		t.Errorf("%v: %s", err, text)
	}
	model := string(bundleFiles(t, shipped.Development(), nil)["risk.yaml"])
	old := strings.Replace(strings.Replace(model, "  external: {weight: 40, severities: {clear: 0, raised: 50, high: 100}}\n", "", 1),
		"floors:\n  - {factor: external, severity: 100, score: 90}\n", "floors: []\n", 1)
	before, after := open(t, map[string]string{"risk.yaml": old}), open(t, nil)
	s := delivery("workload", "demo/key", "standard")
	_, a := before.Input(s)
	_, b := after.Input(s)
	if a.Score != b.Score || len(a.Factors) != len(b.Factors)-1 || slices.ContainsFunc(a.Factors, func(f risk.Factor) bool { return f.Name == risk.FactorExternal }) {
		t.Errorf("an old model: %+v, and now %+v", a, b)
	}
	s.External = []ExternalSignal{{Transmitter: "idp", Type: "risk-level-change", Level: ExternalHigh, Received: now, Expires: now + second}}
	if _, c := before.Input(s); c.Score != a.Score {
		t.Errorf("an old model scores %d with a signal, and %d without", c.Score, a.Score)
	}
	if _, c := after.Input(s); c.Score < 90 {
		t.Errorf("with a signal the score is %d", c.Score)
	}
}

// TestSignalsOnlyRaise: whatever signals are added, in whatever order, the score does not fall.
func TestSignalsOnlyRaise(t *testing.T) {
	t.Parallel()
	rev := open(t, nil)
	rapid.Check(t, func(t *rapid.T) {
		draw := func() ExternalSignal {
			return ExternalSignal{
				Transmitter: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "transmitter"), Type: "risk-level-change",
				Level:    rapid.SampledFrom([]string{ExternalRaised, ExternalHigh, "", "low", "clear"}).Draw(t, "level"),
				Received: now - second, Expires: now + rapid.Int64Range(-second, second).Draw(t, "expires"),
			}
		}
		s, score := delivery("workload", "demo/key", "standard"), -1
		for range rapid.IntRange(1, 6).Draw(t, "signals") {
			_, a := rev.Input(s)
			if a.Score < score {
				t.Fatalf("the score fell from %d to %d with %+v", score, a.Score, s.External)
			}
			score = a.Score
			s.External = append(s.External, draw())
		}
		if text, err := s.Encode(); err != nil {
			t.Fatal(err)
		} else if again, err := ParseSignals(text); err != nil || len(again.External) != len(s.External) {
			t.Fatalf("%v: %s", err, text)
		}
	})
}

// TestFactorsAreRecorded: what was recorded is read again as it was.
func TestFactorsAreRecorded(t *testing.T) {
	t.Parallel()
	s := shows(request("workload", ActionDoctor), alice())
	s.Factors[0].Claims = map[string][]string{"groups": {"b", "a"}, "aud2": {"x"}}
	text, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseSignals(text)
	if err != nil || !maps.EqualFunc(again.Factors[0].Claims, s.Factors[0].Claims, slices.Equal) {
		t.Errorf("%v: %+v", err, again.Factors)
	}
}
