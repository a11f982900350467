package risk

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"go.yaml.in/yaml/v3"
)

// MaxModelSize is the largest model in bytes.
const MaxModelSize = 64 << 10

// ErrModel says that a risk model is malformed or breaks a rule of this package.
var ErrModel = errors.New("risk model refused")

const digestLabel = "bulla-risk-model/v1\n"

// Model holds weights, severities, usual hours and floors. The zero value is invalid and scores everything
// worst. A model is never changed after ParseModel and may be shared.
type Model struct {
	valid  bool
	rules  [factorCount]rule
	absent [factorCount]bool // optional factors that the model does not name
	floors [factorCount][]floorRule
	usual  [hoursPerWeek]bool
	digest [sha256.Size]byte
}

// rule is what a model says about one factor. A factor adds weight × severity / 100 points, rounded up.
type rule struct {
	Weight     int            `yaml:"weight" json:"weight"`
	Severities map[string]int `yaml:"severities,omitempty" json:"severities,omitempty"`
	Steps      []step         `yaml:"steps,omitempty" json:"steps,omitempty"`
}

// step gives the severity of every number from From up to the next step.
type step struct {
	From     int64 `yaml:"from" json:"from"`
	Severity int   `yaml:"severity" json:"severity"`
}

type floorRule struct {
	Factor   string `yaml:"factor" json:"factor"`
	Severity int    `yaml:"severity" json:"severity"`
	Score    int    `yaml:"score" json:"score"`
}

type hours struct {
	Days []string `yaml:"days" json:"days"`
	From int      `yaml:"from" json:"from"`
	To   int      `yaml:"to" json:"to"`
}

type modelFile struct {
	Version    int             `yaml:"version" json:"version"`
	Factors    map[string]rule `yaml:"factors" json:"factors"`
	UsualHours []hours         `yaml:"usual_hours" json:"usual_hours"`
	Floors     []floorRule     `yaml:"floors" json:"floors"`
}

// ParseModel reads a model from YAML, strictly: an unknown or missing factor, an unknown key, a weight or a
// severity outside 0 to 100, steps that do not rise, or an order of categories turned around is refused,
// and all faults are reported at once. Errors wrap ErrModel.
func ParseModel(text []byte) (Model, error) {
	if len(text) > MaxModelSize {
		return Model{}, fmt.Errorf("%w: it has %d bytes, at most %d are allowed", ErrModel, len(text), MaxModelSize)
	}
	if err := plainNodes(text); err != nil {
		return Model{}, fmt.Errorf("%w: %w", ErrModel, err)
	}
	var file modelFile
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		return Model{}, fmt.Errorf("%w: %w", ErrModel, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Model{}, fmt.Errorf("%w: text after the first document", ErrModel)
	}
	m, faults := build(file)
	if len(faults) > 0 {
		return Model{}, fmt.Errorf("%w: %w", ErrModel, errors.Join(faults...))
	}
	canonical, err := json.Marshal(file)
	if err != nil {
		return Model{}, fmt.Errorf("%w: %w", ErrModel, err)
	}
	m.digest = sha256.Sum256(append([]byte(digestLabel), canonical...))
	m.valid = true
	return m, nil
}

// plainNodes refuses what the decoder would take silently: fractions, which it cuts off to integers, and
// aliases, of which a few lines can unfold without end.
func plainNodes(text []byte) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return err
	}
	var walk func(n *yaml.Node) error
	walk = func(n *yaml.Node) error {
		if n.Kind == yaml.AliasNode || n.Anchor != "" {
			return fmt.Errorf("line %d: anchors and aliases are not allowed", n.Line)
		}
		if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!float" {
			return fmt.Errorf("line %d: %q is not an integer", n.Line, n.Value)
		}
		for _, c := range n.Content {
			if err := walk(c); err != nil {
				return err
			}
		}
		return nil
	}
	return walk(&doc)
}

// Digest returns the SHA-256 of the model's content in hexadecimal; comments and layout do not count. It is
// empty for the zero Model.
func (m Model) Digest() string {
	if !m.valid {
		return ""
	}
	return hex.EncodeToString(m.digest[:])
}

// Weighs says whether the model names this zone. A zone it does not name counts as the worst.
func (m Model) Weighs(zone string) bool {
	_, ok := m.rules[iZone].Severities[zone]
	return ok
}

func build(file modelFile) (Model, []error) {
	var m Model
	var faults []error
	if file.Version != 1 {
		faults = append(faults, fmt.Errorf("version is %d, want 1", file.Version))
	}
	known := map[string]int{}
	for i, f := range factorTable {
		known[f.name] = i
		r, ok := file.Factors[f.name]
		if m.absent[i] = !ok && f.optional; m.absent[i] {
			continue
		}
		if !ok {
			faults = append(faults, fmt.Errorf("factor %q is missing: give it weight 0 to leave it out of the score", f.name))
			continue
		}
		faults = append(faults, checkRule(f, r)...)
		m.rules[i] = r
	}
	for name := range file.Factors {
		if _, ok := known[name]; !ok {
			faults = append(faults, fmt.Errorf("factor %q is unknown", name))
		}
	}
	for _, fl := range file.Floors {
		i, ok := known[fl.Factor]
		if !ok {
			faults = append(faults, fmt.Errorf("floor of an unknown factor %q", fl.Factor))
			continue
		}
		if fl.Severity < 1 || fl.Severity > MaxScore || fl.Score < 1 || fl.Score > MaxScore {
			faults = append(faults, fmt.Errorf("floor of %q: severity and score must be 1 to %d", fl.Factor, MaxScore))
		}
		if m.absent[i] {
			faults = append(faults, fmt.Errorf("floor of the factor %q, which is missing", fl.Factor))
		}
		m.floors[i] = append(m.floors[i], fl)
	}
	faults = append(faults, m.setUsual(file.UsualHours)...)
	slices.SortFunc(faults, func(a, b error) int { return bytes.Compare([]byte(a.Error()), []byte(b.Error())) })
	return m, faults
}

func checkRule(f factor, r rule) (faults []error) {
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("factor %q: "+format, append([]any{f.name}, args...)...))
	}
	if r.Weight < 0 || r.Weight > MaxScore {
		fault("weight %d is not within 0 to %d", r.Weight, MaxScore)
	}
	for name, severity := range r.Severities {
		switch {
		case severity < 0 || severity > MaxScore:
			fault("severity %d of %q is not within 0 to %d", severity, name, MaxScore)
		case f.stepped:
			fault("it is measured by steps, not by severities")
		case !f.free && !slices.Contains(f.ordered, name):
			fault("category %q is unknown, want one of %q", name, f.ordered)
		case name == "" || name == unknownValue || name == "none":
			fault("category %q always counts as the worst and can't be given", name)
		}
	}
	worst := 0
	for _, name := range f.ordered {
		severity, ok := r.Severities[name]
		if !ok {
			fault("category %q is missing", name)
		}
		if severity < worst {
			fault("category %q is worse than the one before it, but has the lower severity %d", name, severity)
		}
		worst = max(worst, severity)
	}
	if len(r.Steps) > 0 && !f.stepped {
		fault("it is measured by severities, not by steps")
	}
	from, severity := int64(-1), 0
	for _, st := range r.Steps {
		if st.From <= from || st.Severity < severity || st.Severity > MaxScore {
			fault("steps must rise: from %d with severity %d does not follow %d with %d", st.From, st.Severity, from, severity)
		}
		from, severity = st.From, st.Severity
	}
	return faults
}

var weekdays = [...]string{"mon", "tue", "wed", "thu", "fri", "sat", "sun"}

func (m *Model) setUsual(table []hours) (faults []error) {
	if len(table) == 0 {
		return []error{errors.New("usual_hours is missing: name at least one range, for example all days from 0 to 24")}
	}
	for _, h := range table {
		if h.From < 0 || h.To > 24 || h.From >= h.To {
			faults = append(faults, fmt.Errorf("usual_hours: from %d to %d is not a range within 0 to 24", h.From, h.To))
			continue
		}
		if len(h.Days) == 0 {
			faults = append(faults, errors.New("usual_hours: a range without days"))
		}
		for _, d := range h.Days {
			day := slices.Index(weekdays[:], d)
			if day < 0 {
				faults = append(faults, fmt.Errorf("usual_hours: day %q is unknown, want one of %q", d, weekdays))
				continue
			}
			for hour := h.From; hour < h.To; hour++ {
				m.usual[day*24+hour] = true
			}
		}
	}
	return faults
}
