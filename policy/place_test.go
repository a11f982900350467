package policy

import (
	"bytes"
	"io/fs"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"pgregory.net/rapid"

	shipped "github.com/bulla-project/bulla/rego"
	"github.com/bulla-project/bulla/risk"
)

// placed is a delivery to a USER in a country, "" for an unknown one, where a database is configured.
func placed(country string) Signals {
	s := delivery("workload", "demo/key", "standard")
	s.Principal.Type = TypeUser
	s.Place = &Place{Country: country, Source: strings.Repeat("ab", 32), BuiltAt: now - 86400*second}
	if country != "" {
		s.Place.Continent, s.Place.Point = "EU", &Point{LatitudeMilli: 52520, LongitudeMilli: 13405, RadiusKM: 20}
	}
	s.History.Travel = &Travel{}
	return s
}

// TestOlderSignals: what was recorded before there were places is in canonical form still, says the same, and is
// not worse for what nobody looked up then.
func TestOlderSignals(t *testing.T) {
	t.Parallel()
	old := `{"v":1,"now":1736157600000000,"action":"deliver","principal":{"id":"spiffe://dev.bulla.test/workload","trust_domain":"dev.bulla.test","path":"/workload","type":"USER","level":"BASIC","svid_not_before":1736157000000000,"svid_not_after":1736160600000000},"instance":"thumb","resource":{"kind":"secret","secret":{"name":"demo/key","exists":true,"class":"standard","version":1,"exposure":"none","new_class":""},"session":null,"device":null,"revision":null},"attestation":null,"network":{"peer":"127.0.0.1:51234","tls_group":"X25519MLKEM768","post_quantum":true,"channel":"ch"},"recipient":{"suite":9,"in_hardware":false},"history":{"rate_milli":0,"denials_milli":0,"unconfirmed_milli":0,"novel":true},"request":{"grade":"","max_uses":0,"ttl_seconds":0}}`
	s, err := ParseSignals([]byte(old))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.Encode(); err != nil || string(again) != old {
		t.Errorf("%s, %v", again, err)
	}
	_, a := open(t, nil).Input(s)
	for _, f := range a.Factors {
		if (f.Name == risk.FactorNewCountry || f.Name == risk.FactorGeoVelocity) && f.Points != 0 {
			t.Errorf("%+v", f)
		}
	}
	if text, err := placed("DE").Encode(); err != nil || !bytes.Contains(text, []byte(`"place":{"country":"DE","continent":"EU","point":{"latitude_milli":52520,`)) {
		t.Errorf("%s, %v", text, err)
	}
}

// TestOlderModel: a revision with a model from before the factors of place decides, and its input has no points
// for them.
func TestOlderModel(t *testing.T) {
	t.Parallel()
	text := string(bundleFiles(t, shipped.Development(), nil)["risk.yaml"])
	before, after := strings.Index(text, "  new_country:"), strings.Index(text, "usual_hours:")
	text = text[:before] + text[after:]
	text = strings.Replace(text, "floors:\n  - {factor: external, severity: 100, score: 90}\n", "floors: []\n", 1)
	rev := open(t, map[string]string{"risk.yaml": text})
	s := placed("DE")
	s.History.Travel = &Travel{NewCountry: true, DistanceKM: 20015, Seconds: 1}
	v, a := rev.Input(s)
	for _, f := range a.Factors {
		if f.Name == risk.FactorNewCountry || f.Name == risk.FactorGeoVelocity {
			t.Errorf("it assesses %+v", f)
		}
	}
	if strings.Contains(v.String(), "geo_velocity") || !strings.Contains(v.String(), `"place"`) {
		t.Errorf("%s", v)
	}
	if d := newEngine(t, Config{}).Decide(t.Context(), rev, s); d.Effect != Permit || d.Fault != "" {
		t.Error(describe(d))
	}
}

// placePoints returns what the two factors of place add under a revision, and the score.
func placePoints(r *Revision, s Signals) (sum, score int) {
	_, a := r.Input(s)
	for _, f := range a.Factors {
		if f.Name == risk.FactorNewCountry || f.Name == risk.FactorGeoVelocity {
			sum += f.Points
		}
	}
	return sum, a.Score
}

func TestAssessPlace(t *testing.T) {
	t.Parallel()
	rev := open(t, nil)
	service := func(f func(s *Signals)) Signals {
		s := placed("DE")
		s.Principal.Type = TypeService
		s.History.Travel = nil
		if f != nil {
			f(&s)
		}
		return s
	}
	travelled := func(country string, t Travel) Signals {
		s := placed(country)
		s.History.Travel = &t
		return s
	}
	for name, c := range map[string]struct {
		s    Signals
		want int
	}{
		"a user at a known place":        {travelled("DE", Travel{}), 0},
		"in another country":             {travelled("DE", Travel{NewCountry: true}), 5},
		"by airliner":                    {travelled("DE", Travel{DistanceKM: 900, Seconds: 3600}), 0},
		"faster":                         {travelled("DE", Travel{DistanceKM: 1000, Seconds: 3600}), 5},
		"impossibly fast":                {travelled("DE", Travel{DistanceKM: 5000, Seconds: 60}), 10},
		"at an unknown place":            {travelled("", Travel{NewCountry: true}), 5},
		"unknown, after a minute":        {travelled("", Travel{NewCountry: true, DistanceKM: 20015, Seconds: 60}), 15},
		"unknown, after a day":           {travelled("", Travel{NewCountry: true, DistanceKM: 20015, Seconds: 86400}), 5},
		"a user of whom nobody kept any": {func() Signals { s := placed("DE"); s.History.Travel = nil; return s }(), 15},
		"a service without a device":     {service(nil), 0},
		"a service with a device": {service(func(s *Signals) {
			s.Attestation = &Attestation{DeviceID: "d"}
			s.History.Travel = &Travel{NewCountry: true}
		}), 5},
		"no database":                     {func() Signals { s := placed("DE"); s.Place = nil; return s }(), 0},
		"an administrative call":          {func() Signals { s := placed("DE"); s.History = nil; return s }(), 0},
		"an administrative call, unknown": {func() Signals { s := placed(""); s.History = nil; return s }(), 0},
	} {
		if got, _ := placePoints(rev, c.s); got != c.want {
			t.Errorf("%s: %d points, want %d", name, got, c.want)
		}
	}
}

// TestWithheldPlaceNeverPays: where a database is configured, a place that can't be told is never better than one
// that can, wherever that is.
func TestWithheldPlaceNeverPays(t *testing.T) {
	t.Parallel()
	rev := open(t, nil)
	rapid.Check(t, func(t *rapid.T) {
		seconds := rapid.Int64Range(0, 1_000_000).Draw(t, "seconds")
		known, unknown := placed("DE"), placed("")
		known.History.Travel = &Travel{NewCountry: rapid.Bool().Draw(t, "new"), DistanceKM: rapid.Int64Range(0, 20015).Draw(t, "km"), Seconds: seconds}
		unknown.History.Travel = &Travel{NewCountry: true, DistanceKM: 20015, Seconds: seconds}
		k, _ := placePoints(rev, known)
		if u, _ := placePoints(rev, unknown); u < k {
			t.Fatalf("%+v costs %d, an unknown place %d", known.History.Travel, k, u)
		}
	})
}

// TestDeviceKeptBack: under the shipped models a service that keeps a trusted device back, to hide that the device
// has travelled, pays more for that than it saves.
func TestDeviceKeptBack(t *testing.T) {
	t.Parallel()
	for name, fsys := range map[string]fs.FS{"base": shipped.Base(), "development": shipped.Development()} {
		archive, err := Pack(fsys)
		if err != nil {
			t.Fatal(err)
		}
		rev, err := Load(t.Context(), archive, Invariants{})
		if err != nil {
			t.Fatal(err)
		}
		s := attested(placed(""), "tpm2", "affirming", 60)
		s.Principal.Type, s.History.Travel = TypeService, &Travel{NewCountry: true, DistanceKM: 20015, Seconds: 1}
		_, with := placePoints(rev, s)
		s.Attestation, s.History.Travel = nil, nil
		if saved, without := placePoints(rev, s); saved != 0 || without <= with {
			t.Errorf("%s: with the device %d, without it %d", name, with, without)
		}
	}
}

// TestPlaceInput: an unknown place is not there, so that what compares it holds for nobody.
func TestPlaceInput(t *testing.T) {
	t.Parallel()
	rev := open(t, nil)
	get := func(s Signals, path ...string) ast.Value {
		v, _ := rev.Input(s)
		for _, p := range path {
			o, ok := v.(ast.Object)
			if !ok || o.Get(ast.StringTerm(p)) == nil {
				return nil
			}
			v = o.Get(ast.StringTerm(p)).Value
		}
		return v
	}
	for path, want := range map[string]string{
		"country": `"DE"`, "continent": `"EU"`, "latitude_milli": "52520", "longitude_milli": "13405", "radius_km": "20", "source_age_seconds": "86400",
	} {
		if got := get(placed("DE"), "place", path); got == nil || got.String() != want {
			t.Errorf("input.place.%s is %v, want %s", path, got, want)
		}
	}
	if got := get(placed(""), "place"); got != nil {
		t.Errorf("an unknown place is %v", got)
	}
	if got := get(placed(""), "history", "new_country"); got != nil {
		t.Errorf("new_country of an unknown place is %v", got)
	}
}

// TestPlaceStyle: the condition that rego/README.md teaches holds for a listed country, and not for an unknown one.
func TestPlaceStyle(t *testing.T) {
	t.Parallel()
	rev := open(t, map[string]string{
		"data/countries.yaml": domain + "workload: [DE, FR]\n",
		"rego/decision.rego": `package bulla

import rego.v1

default decision := {"decision": "DENY", "reasons": [], "obligations": {}, "requires": {}, "disclose": false}

decision := {"decision": "PERMIT", "reasons": [], "obligations": {}, "requires": {}, "disclose": true} if at_home

default at_home := false

at_home if input.place.country in data.countries[input.principal.id]
`,
	})
	e := newEngine(t, Config{})
	for country, want := range map[string]Effect{"DE": Permit, "AU": Deny, "": Deny} {
		if d := e.Decide(t.Context(), rev, placed(country)); d.Effect != want {
			t.Errorf("from %q: %s", country, describe(d))
		}
	}
	s := placed("DE")
	s.Place = nil
	if d := e.Decide(t.Context(), rev, s); d.Effect != Deny {
		t.Errorf("without a database: %s", describe(d))
	}
}
