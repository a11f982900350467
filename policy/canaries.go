package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"go.yaml.in/yaml/v3"
)

const (
	maxCanaries   = 256
	wantedDenials = 3
)

// canary is a case with the result that the policy must give. A case has either signals, of which fields
// that are left out are zero, or a raw input.
type canary struct {
	name    string
	line    int
	signals *Signals
	input   ast.Value
	expect  Effect
}

type canariesFile struct {
	Version int `yaml:"version"`
	Cases   []struct {
		Name    string    `yaml:"name"`
		Signals yaml.Node `yaml:"signals"`
		Input   yaml.Node `yaml:"input"`
		Expect  string    `yaml:"expect"`
	} `yaml:"cases"`
}

// parseCanaries demands a case that is permitted, and three that are denied, one of them the empty input.
func parseCanaries(text []byte) ([]canary, error) {
	var file canariesFile
	if err := strictYAML(text, &file); err != nil {
		return nil, err
	}
	if file.Version != 1 {
		return nil, fmt.Errorf("version is %d, want 1", file.Version)
	}
	if len(file.Cases) > maxCanaries {
		return nil, fmt.Errorf("%d cases, at most %d are allowed", len(file.Cases), maxCanaries)
	}
	var out []canary
	var permits, denials int
	var empty bool
	seen := map[string]bool{}
	for _, c := range file.Cases {
		if c.Name == "" || seen[c.Name] {
			return nil, fmt.Errorf("case %q: the name is empty or there twice", c.Name)
		}
		seen[c.Name] = true
		one, err := parseCanary(c.Signals, c.Input)
		if err != nil {
			return nil, fmt.Errorf("case %q: %w", c.Name, err)
		}
		one.name, one.expect = c.Name, Effect(c.Expect)
		switch one.expect {
		case Permit:
			permits++
		case Deny:
			denials++
			if obj, ok := one.input.(ast.Object); ok && obj.Len() == 0 {
				empty = true
			}
		case StepUp:
		default:
			return nil, fmt.Errorf("case %q: expect is %q, want PERMIT, DENY or STEP_UP", c.Name, c.Expect)
		}
		out = append(out, one)
	}
	if permits < 1 || denials < wantedDenials || !empty {
		return nil, errors.New("want at least one case that is permitted and three that are denied, one of them with input: {}")
	}
	return out, nil
}

func parseCanary(signals, input yaml.Node) (canary, error) {
	if signals.IsZero() == input.IsZero() {
		return canary{}, errors.New("want either signals or input")
	}
	node := &signals
	if signals.IsZero() {
		node = &input
	}
	v, err := nodeValue(node, 0)
	if err != nil {
		return canary{}, err
	}
	if signals.IsZero() {
		return canary{line: node.Line, input: v}, nil
	}
	plain, err := ast.JSON(v)
	if err != nil {
		return canary{}, err
	}
	text, err := json.Marshal(plain)
	if err != nil {
		return canary{}, err
	}
	s, err := decodeSignals(text)
	if err != nil {
		return canary{}, fmt.Errorf("line %d: %w", node.Line, err)
	}
	s.Version = SignalsVersion
	return canary{line: node.Line, signals: &s}, nil
}

// describe says in one line what a decision was, for a fault.
func describe(d Decision) string {
	switch {
	case d.Fault != "":
		return string(d.Effect) + " (" + d.Fault + ")"
	case len(d.Reasons) > 0:
		return string(d.Effect) + " (" + strings.Join(d.Reasons, ", ") + ")"
	}
	return string(d.Effect)
}
