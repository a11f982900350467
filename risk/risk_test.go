package risk

import (
	"errors"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const example = `
version: 1
factors:
  identity: {weight: 15, severities: {HIGH_ASSURANCE: 0, ENHANCED: 30, BASIC: 60}}
  svid_age: {weight: 5, steps: [{from: 100, severity: 50}, {from: 1000, severity: 90}]}
  attestation_age: {weight: 10, steps: [{from: 60, severity: 20}]}
  attestation_trust: {weight: 15, steps: [{from: 20, severity: 40}]}
  attestation_tier: {weight: 15, severities: {affirming: 0, warning: 60, contraindicated: 100}}
  zone: {weight: 10, severities: {office: 0, guests: 70}}
  transit: {weight: 5, severities: {post_quantum: 0, classical: 60}}
  request_rate: {weight: 10, steps: [{from: 1000, severity: 10}, {from: 50000, severity: 100}]}
  novelty: {weight: 5, severities: {known: 0, new: 100}}
  hour_of_week: {weight: 5, severities: {usual: 0, unusual: 80}}
  denials: {weight: 15, steps: [{from: 3000, severity: 100}]}
  unconfirmed: {weight: 5, steps: []}
  new_country: {weight: 5, severities: {known: 0, new: 100}}
  geo_velocity: {weight: 10, steps: [{from: 1000, severity: 50}]}
  external: {weight: 20, severities: {clear: 0, raised: 40, high: 100}}
usual_hours:
  - {days: [mon, fri], from: 8, to: 18}
floors:
  - {factor: denials, severity: 100, score: 40}
  - {factor: zone, severity: 100, score: 20}
`

func parse(tb testing.TB, text string) Model {
	tb.Helper()
	m, err := ParseModel([]byte(text))
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

func best() Signals {
	return Signals{
		Level: "HIGH_ASSURANCE", SVIDAge: Known(0), AttestationAge: Known(0), AttestationScore: Known(100),
		AttestationTier: "affirming", Zone: "office", Transit: "post_quantum", RateMilli: Known(0), Novelty: "known",
		Hour: Known(8), Denials: Known(0), Unconfirmed: Known(0), Country: "known", Velocity: Known(0), External: "clear",
	}
}

func points(a Assessment) map[string]int {
	out := map[string]int{}
	for _, f := range a.Factors {
		out[f.Name] = f.Points
	}
	return out
}

func TestAssess(t *testing.T) {
	t.Parallel()
	m := parse(t, example)
	a := Assess(best(), m)
	if a.Score != 0 || len(a.Factors) != factorCount || len(a.Floors) != 0 {
		t.Fatalf("best: %+v", a)
	}
	for i, f := range a.Factors {
		if f.Name != factorTable[i].name || f.Value == "" || f.Reason == "" || f.Points != 0 {
			t.Errorf("factor %d: %+v", i, f)
		}
	}
	worst := Assess(Signals{}, m)
	if worst.Score != MaxScore || len(worst.Factors) != factorCount || len(worst.Floors) != 2 {
		t.Errorf("nothing known: %+v", worst)
	}
	s := best()
	s.Level, s.SVIDAge, s.Hour = "BASIC", Known(100), Known(18)
	a = Assess(s, m)
	// 15 × 60 / 100 = 9; 5 × 50 / 100 = 2.5, rounded up; 5 × 80 / 100 = 4.
	if p := points(a); a.Score != 16 || p[FactorIdentity] != 9 || p[FactorSVIDAge] != 3 || p[FactorHourOfWeek] != 4 {
		t.Errorf("%+v", a)
	}
	s = best()
	s.Denials = Known(3000)
	if a := Assess(s, m); a.Score != 40 || len(a.Floors) != 1 || a.Floors[0] != (Floor{FactorDenials, 40}) {
		t.Errorf("floor: %+v", a)
	}
	s = best()
	s.AttestationScore = Known(MaxScore + 1)
	if f := Assess(s, m).Factors[iAttestationTrust]; f.Value != unknownValue || f.Points != 15 {
		t.Errorf("a score above the scale: %+v", f)
	}
	if a := Assess(best(), Model{}); a.Score != MaxScore || len(a.Factors) != factorCount {
		t.Errorf("without a model: %+v", a)
	}
}

// TestOlderModels: a model from before the factors of place and of external signals is read as it was, under the same digest, and what it
// said of recorded signals it says today.
func TestOlderModels(t *testing.T) {
	t.Parallel()
	older := example
	for _, line := range []string{
		"  new_country: {weight: 5, severities: {known: 0, new: 100}}\n", "  geo_velocity: {weight: 10, steps: [{from: 1000, severity: 50}]}\n",
		"  external: {weight: 20, severities: {clear: 0, raised: 40, high: 100}}\n",
	} {
		older = strings.Replace(older, line, "", 1)
	}
	m := parse(t, older)
	if m.Digest() != "806811299a74ba454bb9cd12d3c2ead62a98106f6bec3348e367caa531f8d016" {
		t.Errorf("the digest is %s", m.Digest())
	}
	for _, s := range []Signals{{}, best(), {Country: "new", Velocity: Known(10_000), External: "high"}} {
		for _, f := range Assess(s, m).Factors {
			if f.Name == FactorNewCountry || f.Name == FactorGeoVelocity || f.Name == FactorExternal {
				t.Errorf("it assesses %+v", f)
			}
		}
	}
	if a := Assess(best(), m); a.Score != 0 || len(a.Factors) != factorCount-3 {
		t.Errorf("%+v", a)
	}
}

// TestUnplaced: where place means nothing, it is worth nothing, and the assessment says why.
func TestUnplaced(t *testing.T) {
	t.Parallel()
	m, s := parse(t, example), best()
	s.Country, s.Velocity = "new", Known(1000)
	if p := points(Assess(s, m)); p[FactorNewCountry] != 5 || p[FactorGeoVelocity] != 5 {
		t.Errorf("%+v", p)
	}
	s.Country, s.Velocity = "", Reading{}
	if p := points(Assess(s, m)); p[FactorNewCountry] != 5 || p[FactorGeoVelocity] != 10 {
		t.Errorf("withheld: %+v", p)
	}
	s.Unplaced = "nobody looks"
	a := Assess(s, m)
	for _, f := range a.Factors[iNewCountry : iGeoVelocity+1] {
		if f.Points != 0 || f.Value != notAssessed || !strings.HasSuffix(f.Reason, ": nobody looks") {
			t.Errorf("%+v", f)
		}
	}
}

// TestVelocity: farther is never slower, and longer never faster.
func TestVelocity(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ km, seconds, want int64 }{
		{0, 0, 0}, {900, 3600, 900}, {1, 0, 3600}, {1, 3601, 0}, {-1, -1, 0}, {20_015, 1, 72_054_000}, {math.MaxInt64, 1, 1 << 32 * 3600},
	} {
		if v, ok := Velocity(c.km, c.seconds).Get(); !ok || v != c.want {
			t.Errorf("%d km in %d s is %d km/h, want %d", c.km, c.seconds, v, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		km, seconds := rapid.Int64().Draw(t, "km"), rapid.Int64().Draw(t, "seconds")
		v, ok := Velocity(km, seconds).Get()
		farther, _ := Velocity(max(km, rapid.Int64().Draw(t, "farther")), seconds).Get()
		longer, _ := Velocity(km, max(seconds, rapid.Int64().Draw(t, "longer"))).Get()
		if !ok || v < 0 || farther < v || longer > v {
			t.Fatalf("%d, farther %d, longer %d", v, farther, longer)
		}
	})
}

// TestModelWithoutAnOptionalFactor scores and explains as if there were none.
func TestModelWithoutAnOptionalFactor(t *testing.T) {
	t.Parallel()
	old := parse(t, strings.Replace(example, "  external: {weight: 20, severities: {clear: 0, raised: 40, high: 100}}\n", "", 1))
	s := best()
	s.External = ""
	if a := Assess(s, old); a.Score != 0 || len(a.Factors) != factorCount-1 || points(a)[FactorExternal] != 0 {
		t.Errorf("%+v", a)
	}
	if a := Assess(s, parse(t, example)); a.Score != 20 {
		t.Errorf("withheld: %+v", a)
	}
	if _, err := ParseModel([]byte(strings.NewReplacer("  external: {weight: 20, severities: {clear: 0, raised: 40, high: 100}}\n", "", "factor: zone", "factor: external").Replace(example))); !errors.Is(err, ErrModel) {
		t.Errorf("a floor of a factor that is left out: %v", err)
	}
}

func TestAssessIsDeterministic(t *testing.T) {
	t.Parallel()
	a, b := parse(t, example), parse(t, "# another comment\n"+example)
	if a.Digest() != b.Digest() || len(a.Digest()) != 64 {
		t.Errorf("digests %s and %s", a.Digest(), b.Digest())
	}
	if c := parse(t, strings.Replace(example, "weight: 15", "weight: 16", 1)); c.Digest() == a.Digest() {
		t.Error("another weight, the same digest")
	}
	if (Model{}).Digest() != "" {
		t.Error("the zero model has a digest")
	}
}

// worse returns a change that makes one signal worse, or takes it away.
func worse(t *rapid.T, s Signals) Signals {
	number := func(name string, r Reading) Reading {
		v, ok := r.Get()
		if !ok || rapid.Bool().Draw(t, name+" withheld") {
			return Reading{}
		}
		return Known(v + rapid.Int64Range(0, 100_000).Draw(t, name+" more"))
	}
	category := func(name string, order []string, v string) string {
		for i, o := range order {
			if o == v {
				next := rapid.IntRange(i, len(order)).Draw(t, name+" worse")
				if next < len(order) {
					return order[next]
				}
				return rapid.SampledFrom([]string{"", "none", "unknown", "made up"}).Draw(t, name+" withheld")
			}
		}
		return ""
	}
	switch rapid.IntRange(0, factorCount-1).Draw(t, "factor") {
	case iIdentity:
		s.Level = category("level", []string{"HIGH_ASSURANCE", "ENHANCED", "BASIC"}, s.Level)
	case iSVIDAge:
		s.SVIDAge = number("svid age", s.SVIDAge)
	case iAttestationAge:
		s.AttestationAge = number("attestation age", s.AttestationAge)
	case iAttestationTrust:
		score, ok := s.AttestationScore.Get()
		s.AttestationScore = Reading{}
		if ok && score <= MaxScore && rapid.Bool().Draw(t, "score known") {
			s.AttestationScore = Known(rapid.Int64Range(0, score).Draw(t, "score less"))
		}
	case iAttestationTier:
		s.AttestationTier = category("tier", []string{"affirming", "warning", "contraindicated"}, s.AttestationTier)
	case iZone:
		s.Zone = category("zone", []string{"office", "guests"}, s.Zone)
	case iTransit:
		s.Transit = category("transit", []string{"post_quantum", "classical"}, s.Transit)
	case iRequestRate:
		s.RateMilli = number("rate", s.RateMilli)
	case iNovelty:
		s.Novelty = category("novelty", []string{"known", "new"}, s.Novelty)
	case iHourOfWeek:
		s.Hour = Reading{}
	case iDenials:
		s.Denials = number("denials", s.Denials)
	case iUnconfirmed:
		s.Unconfirmed = number("unconfirmed", s.Unconfirmed)
	case iNewCountry:
		s.Country = category("country", []string{"known", "new"}, s.Country)
	case iGeoVelocity:
		s.Velocity = number("velocity", s.Velocity)
	case iExternal:
		s.External = category("external", []string{"clear", "raised", "high"}, s.External)
	}
	if rapid.Bool().Draw(t, "assessed") {
		s.Unplaced = ""
	}
	return s
}

func drawSignals(t *rapid.T) Signals {
	number := func(name string, limit int64) Reading {
		if rapid.Bool().Draw(t, name+" known") {
			return Known(rapid.Int64Range(-1, limit).Draw(t, name))
		}
		return Reading{}
	}
	text := func(name string, values ...string) string {
		return rapid.SampledFrom(append(values, "", "none", "other")).Draw(t, name)
	}
	return Signals{
		Level: text("level", "HIGH_ASSURANCE", "ENHANCED", "BASIC"), SVIDAge: number("svid age", 2000),
		AttestationAge: number("attestation age", 200), AttestationScore: number("score", 101),
		AttestationTier: text("tier", "affirming", "warning", "contraindicated"), Zone: text("zone", "office", "guests"),
		Transit: text("transit", "post_quantum", "classical"), RateMilli: number("rate", 100_000),
		Novelty: text("novelty", "known", "new"), Hour: number("hour", 170), Denials: number("denials", 5000),
		Unconfirmed: number("unconfirmed", 5000), Country: text("country", "known", "new"), Velocity: number("velocity", 5000),
		Unplaced: rapid.SampledFrom([]string{"", "a reason"}).Draw(t, "unplaced"),
		External: text("external", "clear", "raised", "high"),
	}
}

func TestMonotone(t *testing.T) {
	t.Parallel()
	m := parse(t, example)
	rapid.Check(t, func(t *rapid.T) {
		s := drawSignals(t)
		w := worse(t, s)
		before, after := Assess(s, m), Assess(w, m)
		if after.Score < before.Score || before.Score < 0 || after.Score > MaxScore {
			t.Fatalf("%+v scores %d, the worse %+v scores %d", s, before.Score, w, after.Score)
		}
		old := points(before)
		for name, p := range points(after) {
			if p < old[name] {
				t.Fatalf("%s fell from %d to %d", name, old[name], p)
			}
		}
		if len(after.Factors) != factorCount {
			t.Fatalf("%d factors", len(after.Factors))
		}
	})
}

func TestSumOfPoints(t *testing.T) {
	t.Parallel()
	m := parse(t, example)
	rapid.Check(t, func(t *rapid.T) {
		a := Assess(drawSignals(t), m)
		want := 0
		for _, f := range a.Factors {
			want += f.Points
		}
		want = min(want, MaxScore)
		for _, f := range a.Floors {
			want = max(want, f.Score)
		}
		if a.Score != want {
			t.Fatalf("score %d, want %d: %+v", a.Score, want, a)
		}
	})
}

func TestParseModelRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string][2]string{
		"unknown key":         {"version: 1", "version: 1\nextra: 2"},
		"version":             {"version: 1", "version: 2"},
		"missing factor":      {"  novelty: {weight: 5, severities: {known: 0, new: 100}}\n", ""},
		"unknown factor":      {"  novelty:", "  place: {weight: 1}\n  novelty:"},
		"absent factor":       {"  geo_velocity: {weight: 10, steps: [{from: 1000, severity: 50}]}\n  external: {weight: 20, severities: {clear: 0, raised: 40, high: 100}}\nusual_hours:\n  - {days: [mon, fri], from: 8, to: 18}\nfloors:", "usual_hours:\n  - {days: [mon, fri], from: 8, to: 18}\nfloors:\n  - {factor: geo_velocity, severity: 100, score: 20}"},
		"weight":              {"weight: 15, severities: {HIGH", "weight: 101, severities: {HIGH"},
		"negative weight":     {"weight: 15, severities: {HIGH", "weight: -1, severities: {HIGH"},
		"severity":            {"BASIC: 60", "BASIC: 101"},
		"order turned":        {"ENHANCED: 30", "ENHANCED: 61"},
		"category missing":    {"known: 0, new", "new"},
		"category unknown":    {"known: 0", "known: 0, maybe: 1"},
		"withheld made cheap": {"office: 0", "unknown: 0"},
		"none made cheap":     {"affirming: 0", "none: 0, affirming: 0"},
		"steps fall":          {"{from: 1000, severity: 90}", "{from: 1000, severity: 40}"},
		"steps out of order":  {"{from: 1000, severity: 90}", "{from: 100, severity: 90}"},
		"step above":          {"severity: 90", "severity: 101"},
		"fraction":            {"severity: 90", "severity: 90.5"},
		"alias":               {"BASIC: 60", "BASIC: &x 60"},
		"steps for category":  {"known: 0, new: 100}", "known: 0, new: 100}, steps: [{from: 1, severity: 1}]"},
		"severities for step": {"unconfirmed: {weight: 5, steps: []}", "unconfirmed: {weight: 5, severities: {a: 1}}"},
		"hours":               {"from: 8, to: 18", "from: 18, to: 8"},
		"hour 25":             {"from: 8, to: 18", "from: 8, to: 25"},
		"day":                 {"[mon, fri]", "[monday]"},
		"no days":             {"[mon, fri]", "[]"},
		"no hours":            {"  - {days: [mon, fri], from: 8, to: 18}", "  []"},
		"floor factor":        {"factor: zone, severity", "factor: moon, severity"},
		"floor score":         {"score: 20", "score: 101"},
		"floor severity":      {"severity: 100, score: 20", "severity: 0, score: 20"},
		"two documents":       {"version: 1", "version: 1\n---\nversion: 1"},
		"duplicate key":       {"version: 1", "version: 1\nversion: 1"},
		"too large":           {"version: 1", "version: 1 # " + strings.Repeat("x", MaxModelSize)},
	} {
		text := strings.Replace(example, c[0], c[1], 1)
		if text == example {
			t.Errorf("%s: the test changes nothing", name)
		}
		if _, err := ParseModel([]byte(text)); !errors.Is(err, ErrModel) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := ParseModel([]byte(strings.NewReplacer("version: 1", "version: 2", "BASIC: 60", "BASIC: 101").Replace(example)))
	if err == nil || !strings.Contains(err.Error(), "version") || !strings.Contains(err.Error(), "BASIC") {
		t.Errorf("not all faults at once: %v", err)
	}
}

func FuzzParseModel(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte("version: 1\nfactors: {identity: {weight: 1}}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := ParseModel(text)
		if (err == nil) != (m.Digest() != "") {
			t.Fatal("a refused model is valid, or an accepted one is not")
		}
		if a := Assess(best(), m); a.Score < 0 || a.Score > MaxScore || len(a.Factors) < factorCount-3 || len(a.Factors) > factorCount {
			t.Fatalf("%+v", a)
		}
	})
}

func TestHourOfWeek(t *testing.T) {
	t.Parallel()
	const hour = 3600 * int64(1_000_000)
	for micro, want := range map[int64]int64{
		0:                     72,     // Thursday 00:00
		96 * hour:             0,      // Monday 00:00
		96*hour - 1:           167,    // Sunday, last microsecond
		1_736_157_600_000_000: 10,     // Monday, 6 January 2025, 10:00
		1_736_157_599_999_999: 10 - 1, // a microsecond before
	} {
		got, ok := HourOfWeek(micro).Get()
		if !ok || got != want {
			t.Errorf("%d: %d, want %d", micro, got, want)
		}
	}
	if h, ok := HourOfWeek(math.MaxInt64).Get(); !ok || h < 0 || h >= hoursPerWeek {
		t.Errorf("the last microsecond has the hour %d", h)
	}
	if _, ok := HourOfWeek(-1).Get(); ok {
		t.Error("a time before 1970 has an hour")
	}
}

func TestHistory(t *testing.T) {
	t.Parallel()
	const s = int64(1_000_000)
	var h History
	if !h.Idle(0) || h.RateMilli(5) != 0 {
		t.Error("a newcomer has a history")
	}
	// A steady 600 requests a minute settle at 600,000 thousandths.
	now := 1000 * s
	for range 6000 {
		now += s / 10
		h = h.Requested(now)
	}
	if r := h.RateMilli(now); r < 590_000 || r > 610_000 {
		t.Errorf("rate %d after a steady 600 a minute", r)
	}
	if r := h.RateMilli(now + 60*s); r < 215_000 || r > 225_000 { // 600,000 / e
		t.Errorf("rate %d a minute later", r)
	}
	if h.RateMilli(now-3600*s) != h.RateMilli(now) {
		t.Error("a clock that went back changes the rate")
	}
	h = History{}.Denied(now)
	if d := h.DenialsMilli(now + denialsHalfLife); d != 500 {
		t.Errorf("%d denials after a half-life", d)
	}
	// Asking often does not wear a denial down by rounding.
	for i := range int64(100_000) {
		h = h.Requested(now + i)
	}
	if d := h.DenialsMilli(now + 100_000); d < 999 {
		t.Errorf("%d denials after many requests", d)
	}
	h = History{}.LeftUnconfirmed(now).LeftUnconfirmed(now)
	if u := h.UnconfirmedMilli(now); u != 2000 || h.Idle(now) || !h.Idle(now+100*unconfirmedHalfLife) {
		t.Errorf("%d unconfirmed", u)
	}
	if back := h.Denied(now - s); back.Denials.At != now-s || back.Unconfirmed.At != now {
		t.Error("counters share a time")
	}
}

func TestDecay(t *testing.T) {
	t.Parallel()
	for i, r := range roots {
		want := math.Exp2(32 - math.Exp2(-float64(i+1)))
		if math.Abs(float64(r)-want) > 1 {
			t.Errorf("root %d is %d, want %.0f", i, r, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.Int64Range(0, maxMilli).Draw(t, "v")
		dt := rapid.Int64Range(1, 100*rateHalfLife).Draw(t, "dt")
		got := decay(v, dt, rateHalfLife)
		want := float64(v) * math.Exp2(-float64(dt)/rateHalfLife)
		if math.Abs(float64(got)-want) > 2+want*1e-6 {
			t.Fatalf("decay(%d, %d) = %d, want %.0f", v, dt, got, want)
		}
		if later := decay(v, dt+1, rateHalfLife); later > got {
			t.Fatalf("decay rises from %d to %d", got, later)
		}
	})
	for _, c := range []Counter{{Milli: math.MaxInt64}, {Milli: math.MinInt64}, {Milli: maxMilli, At: math.MinInt64}} {
		if got := c.add(0, rateHalfLife); got.Milli < 0 || got.Milli > maxMilli {
			t.Errorf("%+v grew to %+v", c, got)
		}
	}
}

func BenchmarkAssess(b *testing.B) {
	m, s := parse(b, example), best()
	b.ReportAllocs()
	for b.Loop() {
		Assess(s, m)
	}
}
