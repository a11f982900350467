// Package diff says what changes between two policy bundles: for Rego as text, for everything else by meaning, and for
// each change whether it permits more. What permits more comes first, since that is what nobody may overlook.
//
// It judges each entry of the data by itself, as the shipped Rego reads it: a bundle whose Rego says otherwise can make
// a "narrower" permit more. So it is for reading before a promotion, and no replacement for trying the bundle.
package diff

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Effect says what a change does to what is permitted.
type Effect string

// The effects, in the order in which changes are told.
const (
	Wider    Effect = "wider"    // permits more
	Unclear  Effect = "unclear"  // may permit more or less
	Narrower Effect = "narrower" // permits less
	None     Effect = "none"     // says nothing about what is permitted
)

var order = []Effect{Wider, Unclear, Narrower, None}

// Change is one entry that was added, removed or changed. Before and After are compact JSON, "" where there is none.
type Change struct {
	Effect        Effect
	File          string
	Path          []string
	Before, After string
}

// Text is how a file of Rego changed, in the unified format.
type Text struct {
	File, Diff string
}

// Report is all that changed.
type Report struct {
	Changes []Change
	Texts   []Text
}

// Wider returns how many changes permit more, or may; a changed file of Rego, other than a test, counts as one.
func (r Report) Wider() int {
	n := 0
	for _, c := range r.Changes {
		if c.Effect == Wider || c.Effect == Unclear {
			n++
		}
	}
	for _, t := range r.Texts {
		if !strings.HasSuffix(t.File, "_test.rego") {
			n++
		}
	}
	return n
}

// Compare compares the files of two bundles, as policy.Unpack returns them.
func Compare(before, after map[string][]byte) (Report, error) {
	names := maps.Clone(before)
	maps.Copy(names, after)
	var out Report
	for _, name := range slices.Sorted(maps.Keys(names)) {
		old, now := before[name], after[name]
		if string(old) == string(now) {
			continue
		}
		if strings.HasSuffix(name, ".rego") {
			out.Texts = append(out.Texts, Text{name, unified(name, string(old), string(now))})
			continue
		}
		var a, b any
		for _, side := range []struct {
			text []byte
			into *any
		}{{old, &a}, {now, &b}} {
			if err := yaml.Unmarshal(side.text, side.into); err != nil {
				return Report{}, fmt.Errorf("%s: %w", name, err)
			}
		}
		c := comparison{file: name, effect: effectOf(name), out: &out.Changes}
		c.node(nil, a, b)
	}
	slices.SortStableFunc(out.Changes, func(a, b Change) int {
		return cmp.Or(cmp.Compare(slices.Index(order, a.Effect), slices.Index(order, b.Effect)), cmp.Compare(a.File, b.File), slices.Compare(a.Path, b.Path))
	})
	return out, nil
}

// comparison goes through two trees side by side.
type comparison struct {
	file   string
	effect func(path []string, before, after any) Effect
	out    *[]Change
}

func (c comparison) node(path []string, a, b any) {
	was, isMap := a.(map[string]any)
	is, areMap := b.(map[string]any)
	if (isMap || a == nil) && (areMap || b == nil) && (isMap || areMap) && (c.expands(path) || isMap && areMap) {
		keys := maps.Clone(was)
		if keys == nil {
			keys = map[string]any{}
		}
		maps.Copy(keys, is)
		for _, k := range slices.Sorted(maps.Keys(keys)) {
			c.node(append(slices.Clone(path), k), was[k], is[k])
		}
		return
	}
	wasSet, ok1 := scalars(a)
	isSet, ok2 := scalars(b)
	if ok1 && ok2 && (wasSet != nil || isSet != nil) {
		for _, v := range slices.Sorted(maps.Keys(isSet)) {
			if !wasSet[v] {
				c.add(append(slices.Clone(path), v), nil, true)
			}
		}
		for _, v := range slices.Sorted(maps.Keys(wasSet)) {
			if !isSet[v] {
				c.add(append(slices.Clone(path), v), true, nil)
			}
		}
		return
	}
	if text(a) != text(b) {
		c.add(path, a, b)
	}
}

// expands says whether what is only on one side is told entry by entry: where each entry is a permission.
func (c comparison) expands(path []string) bool {
	switch c.file {
	case "data/grants.yaml", "data/members.yaml", "data/roles.yaml", "data/persons.yaml", "data/owners.yaml", "zones.yaml":
		return true
	}
	return len(path) == 0
}

func (c comparison) add(path []string, before, after any) {
	*c.out = append(*c.out, Change{Effect: c.effect(path, before, after), File: c.file, Path: path, Before: text(before), After: text(after)})
}

// scalars takes a list of texts and numbers as a set; nil is an empty one.
func scalars(v any) (map[string]bool, bool) {
	if v == nil {
		return nil, true
	}
	list, ok := v.([]any)
	if !ok {
		return nil, false
	}
	out := map[string]bool{}
	for _, e := range list {
		switch e := e.(type) {
		case string:
			out[e] = true
		case int, int64, uint64, bool:
			out[fmt.Sprint(e)] = true
		default:
			return nil, false
		}
	}
	return out, true
}

func text(v any) string {
	if v == nil {
		return ""
	}
	out, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(out)
}
