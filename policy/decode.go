package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Limits of what a policy may answer. They are checked before anything is converted, so that an answer
// that a few lines of Rego made enormous costs nothing.
const (
	maxReasons   = 32
	maxText      = 256
	maxList      = 64
	maxSeconds   = 366 * 24 * 3600
	maxCount     = 1_000_000_000
	outputFields = 5
)

// output is what a policy answers.
type output struct {
	effect      Effect
	reasons     []string
	obligations Obligations
	requires    Requires
	disclose    bool
}

// decodeOutput reads the value of data.bulla.decision: an object with exactly the fields decision, reasons,
// obligations, requires and disclose, each of its exact type.
func decodeOutput(v ast.Value) (output, error) {
	obj, ok := v.(ast.Object)
	if !ok {
		return output{}, fmt.Errorf("the decision is %s, want an object", ast.ValueName(v))
	}
	if obj.Len() != outputFields {
		return output{}, fmt.Errorf("the decision has %d fields, want decision, reasons, obligations, requires and disclose", obj.Len())
	}
	get := func(name string) ast.Value {
		if t := obj.Get(ast.InternedTerm(name)); t != nil {
			return t.Value
		}
		return nil
	}
	var out output
	effect, _ := get("decision").(ast.String)
	switch out.effect = Effect(effect); out.effect {
	case Permit, Deny, StepUp:
	default:
		return output{}, errors.New("decision is not PERMIT, DENY or STEP_UP")
	}
	disclose, ok := get("disclose").(ast.Boolean)
	if !ok {
		return output{}, errors.New("disclose is not true or false")
	}
	out.disclose = bool(disclose)
	var err error
	if out.reasons, err = texts(get("reasons"), maxReasons); err != nil {
		return output{}, fmt.Errorf("reasons: %w", err)
	}
	slices.Sort(out.reasons)
	out.reasons = slices.Compact(out.reasons)
	if out.obligations, err = decodeObligations(get("obligations")); err != nil {
		return output{}, fmt.Errorf("obligations: %w", err)
	}
	if out.requires, err = decodeRequires(get("requires")); err != nil {
		return output{}, fmt.Errorf("requires: %w", err)
	}
	if (out.effect == StepUp) == out.requires.Empty() {
		return output{}, fmt.Errorf("decision %s with requirements %t: STEP_UP names what it requires, and nothing else does",
			out.effect, !out.requires.Empty())
	}
	if out.effect != Permit && out.obligations != (Obligations{}) {
		return output{}, fmt.Errorf("decision %s with obligations: only PERMIT has them", out.effect)
	}
	return out, nil
}

func decodeObligations(v ast.Value) (Obligations, error) {
	var o Obligations
	err := eachPart(v, func(name string, p *part) {
		switch name {
		case "time_bound":
			o.TimeBound = &TimeBound{TTLSeconds: p.number("ttl_seconds", 1, maxSeconds), Grade: p.grade()}
		case "usage_limit":
			o.UsageLimit = &UsageLimit{MaxUses: p.number("max_uses", 1, maxCount), Offline: p.optionalNumber("offline", 0, maxCount), Grade: p.grade()}
		case "rate_limit":
			o.RateLimit = &RateLimit{
				Key: p.optionalText("key"), Max: p.number("max", 1, maxCount),
				WindowSeconds: p.number("window_seconds", 1, maxSeconds), Grade: p.grade(),
			}
		case "forward_secrecy":
			o.ForwardSecrecy = &ForwardSecrecy{Grade: p.grade()}
		case "quantum_resistant":
			o.QuantumResistant = &QuantumResistant{Grade: p.grade()}
		case "receipt_required":
			o.ReceiptRequired = &ReceiptRequired{WithinSeconds: p.number("within_seconds", 1, maxSeconds), Grade: p.grade()}
		case "reattest":
			o.Reattest = &Reattest{WithinSeconds: p.number("within_seconds", 1, maxSeconds), Grade: p.grade()}
		case "geo_restriction":
			o.GeoRestriction = &GeoRestriction{Countries: p.countries(), Grade: p.grade()}
		case "split_knowledge":
			s := SplitKnowledge{Threshold: p.number("threshold", 2, maxList), Holders: p.list("holders"), Grade: p.grade(), Persons: p.persons("persons")}
			if s.Threshold > int64(len(s.Holders)) {
				p.fail(fmt.Errorf("threshold %d of %d holders", s.Threshold, len(s.Holders)))
			}
			o.SplitKnowledge = &s
		default:
			p.fail(errors.New("no such obligation"))
		}
	})
	return o, err
}

func decodeRequires(v ast.Value) (Requires, error) {
	var r Requires
	err := eachPart(v, func(name string, p *part) {
		switch name {
		case "attestation":
			r.Attestation = &RequireAttestation{
				MaxAgeSeconds: p.number("max_age_seconds", 1, maxSeconds),
				MinScore:      p.number("min_score", 0, 100), Kinds: p.list("kinds"),
			}
		case "factor":
			level := p.text("level")
			if level != LevelEnhanced && level != LevelHighAssurance {
				p.fail(fmt.Errorf("level %q is not %s or %s", level, LevelEnhanced, LevelHighAssurance))
			}
			r.Factor = &RequireFactor{Level: level}
		case "approval":
			r.Approval = &RequireApproval{Count: p.number("count", 1, maxList), Role: p.text("role")}
		default:
			p.fail(errors.New("no such requirement"))
		}
	})
	return r, err
}

// eachPart calls read for every named part of an object, and fails if one has a field that read did not
// take.
func eachPart(v ast.Value, read func(name string, p *part)) error {
	obj, ok := v.(ast.Object)
	if !ok {
		return errors.New("not an object")
	}
	if obj.Len() > maxList {
		return fmt.Errorf("it has %d entries, at most %d are allowed", obj.Len(), maxList)
	}
	return obj.Iter(func(k, v *ast.Term) error {
		name, _ := k.Value.(ast.String)
		p := &part{}
		if p.obj, ok = v.Value.(ast.Object); !ok {
			return fmt.Errorf("%q is not an object", short(string(name)))
		}
		read(string(name), p)
		if p.err == nil && p.taken != p.obj.Len() {
			p.fail(errors.New("it has an unknown field"))
		}
		if p.err != nil {
			return fmt.Errorf("%q: %w", short(string(name)), p.err)
		}
		return nil
	})
}

// part reads the fields of one obligation or requirement and keeps the first fault.
type part struct {
	obj   ast.Object
	taken int
	err   error
}

func (p *part) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

func (p *part) get(name string) ast.Value {
	t := p.obj.Get(ast.InternedTerm(name))
	if t == nil {
		p.fail(fmt.Errorf("%s is missing", name))
		return nil
	}
	p.taken++
	return t.Value
}

func (p *part) number(name string, lo, hi int64) int64 {
	n, ok := p.get(name).(ast.Number)
	if !ok {
		p.fail(fmt.Errorf("%s is not a number", name))
		return 0
	}
	i, err := strconv.ParseInt(json.Number(n).String(), 10, 64)
	if err != nil || i < lo || i > hi {
		p.fail(fmt.Errorf("%s is not an integer from %d to %d", name, lo, hi))
		return 0
	}
	return i
}

func (p *part) optionalNumber(name string, lo, hi int64) int64 {
	if p.obj.Get(ast.InternedTerm(name)) == nil {
		return 0
	}
	return p.number(name, lo, hi)
}

func (p *part) text(name string) string {
	s, ok := p.get(name).(ast.String)
	if !ok || s == "" || len(s) > maxText {
		p.fail(fmt.Errorf("%s is not a text of 1 to %d bytes", name, maxText))
		return ""
	}
	return string(s)
}

func (p *part) optionalText(name string) string {
	if p.obj.Get(ast.InternedTerm(name)) == nil {
		return ""
	}
	return p.text(name)
}

func (p *part) list(name string) []string {
	out, err := texts(p.get(name), maxList)
	if err == nil && len(out) == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		p.fail(fmt.Errorf("%s: %w", name, err))
		return nil
	}
	slices.Sort(out)
	if len(slices.Compact(slices.Clone(out))) != len(out) {
		p.fail(fmt.Errorf("%s: an entry is there twice", name))
	}
	return out
}

// countries are codes as a database of places has them: another spelling would never be met.
func (p *part) countries() []string {
	out := p.list("countries")
	for _, c := range out {
		if len(c) != 2 || c[0] < 'A' || c[0] > 'Z' || c[1] < 'A' || c[1] > 'Z' {
			p.fail(fmt.Errorf("countries: %q is not a code of two capital letters (ISO 3166-1 alpha-2)", short(c)))
		}
	}
	return out
}

func (p *part) grade() Grade {
	g := Grade(p.text("grade"))
	switch g {
	case GradeOpen, GradeGated, GradeProxied, GradeLeased:
		return g
	}
	p.fail(errors.New("grade is not open, gated, proxied or leased"))
	return ""
}

// texts reads a list or set of short texts.
func texts(v ast.Value, limit int) ([]string, error) {
	var n int
	var each func(func(*ast.Term) error) error
	switch v := v.(type) {
	case *ast.Array:
		n, each = v.Len(), v.Iter
	case ast.Set:
		n, each = v.Len(), v.Iter
	default:
		return nil, errors.New("not a list or set")
	}
	if n > limit {
		return nil, fmt.Errorf("%d entries, at most %d are allowed", n, limit)
	}
	out := make([]string, 0, n)
	err := each(func(t *ast.Term) error {
		s, ok := t.Value.(ast.String)
		if !ok || s == "" || len(s) > maxText {
			return fmt.Errorf("an entry is not a text of 1 to %d bytes", maxText)
		}
		out = append(out, string(s))
		return nil
	})
	return out, err
}

func short(s string) string { return s[:min(len(s), maxText)] }
