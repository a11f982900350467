package diff

import (
	"slices"
	"strings"
)

// effectOf returns what judges the changes of a file. What it does not know is unclear.
func effectOf(file string) func(path []string, before, after any) Effect {
	switch file {
	case "data/grants.yaml", "data/members.yaml", "data/roles.yaml":
		return permission
	case "data/persons.yaml":
		return func(path []string, before, after any) Effect {
			if slices.Contains(path, "principals") {
				return permission(path, before, after)
			}
			return Unclear
		}
	case "data/owners.yaml": // two identities of one owner count once
		return added(Narrower, Wider)
	case "data/classes.yaml", "data/limits.yaml":
		return limit
	case "risk.yaml":
		return func(path []string, before, after any) Effect { return number(before, after, false) }
	case "references.yaml":
		return reference
	case "canaries.yaml", "manifest.yaml":
		return func([]string, any, any) Effect { return None }
	}
	return func([]string, any, any) Effect { return Unclear }
}

// added judges what was there on one side only.
func added(there, gone Effect) func([]string, any, any) Effect {
	return func(_ []string, before, after any) Effect {
		switch {
		case before == nil:
			return there
		case after == nil:
			return gone
		}
		return Unclear
	}
}

// permission: an entry permits something, unless it is false.
func permission(_ []string, before, after any) Effect {
	if before == false {
		before = nil
	}
	if after == false {
		after = nil
	}
	if before == nil && after == nil {
		return None
	}
	return added(Wider, Narrower)(nil, before, after)
}

// What it means when the value with this name grows, or gets one more entry.
var growth = map[string]Effect{
	"max_risk": Wider, "ttl_seconds": Wider, "max_uses": Wider, "max_age_seconds": Wider, "max": Wider, "offline": Wider, "within_seconds": Wider,
	"min_score": Narrower, "window_seconds": Narrower, "count": Narrower, "threshold": Narrower, "sensitivity": Narrower,
	"levels": Wider, "kinds": Wider, "tiers": Wider, "countries": Wider,
	"second_person": Narrower, "obligations": Narrower, "approval": Narrower, "attestation": Narrower, "required": Narrower,
}

// needed are the parts without which nothing is permitted: what brings one permits more, perhaps, whatever it says.
var needed = []string{"attestation", "required", "obligations", "second_person"}

// grades, the hardest first.
var grades = []string{"proxied", "leased", "gated", "open"}

// limit judges classes and limits by the nearest name on the path that says anything.
func limit(path []string, before, after any) Effect {
	if len(path) == 0 {
		return Unclear
	}
	last := path[len(path)-1]
	if last == "grade" {
		was, is := grade(before), grade(after)
		switch {
		case was < 0 || is < 0 || was == is:
			return Unclear
		case is > was:
			return Wider
		}
		return Narrower
	}
	if before != nil && after != nil {
		if was, ok := before.(bool); ok && last == "required" && after != before {
			return pick(was, Wider, Narrower)
		}
		effect, ok := growth[last]
		if !ok {
			return Unclear
		}
		return number(before, after, effect == Wider)
	}
	if before == nil && slices.Contains(needed, last) {
		return Unclear
	}
	for i := len(path) - 1; i >= max(len(path)-2, 0); i-- { // itself, or an entry below it
		if effect, ok := growth[path[i]]; ok && !isNumber(before) && !isNumber(after) {
			return pick((before == nil) == (effect == Wider), Wider, Narrower)
		}
	}
	return Unclear
}

func pick(yes bool, a, b Effect) Effect {
	if yes {
		return a
	}
	return b
}

func grade(v any) int {
	s, _ := v.(string)
	return slices.Index(grades, s)
}

func isNumber(v any) bool { _, ok := v.(int); return ok }

// number compares two integers, of which a larger one permits more, or less.
func number(before, after any, largerIsWider bool) Effect {
	was, ok1 := before.(int)
	is, ok2 := after.(int)
	if !ok1 || !ok2 || was == is {
		return Unclear
	}
	return pick((is > was) == largerIsWider, Wider, Narrower)
}

// reference: one more value or root is one more device that passes.
func reference(path []string, before, after any) Effect {
	if len(path) > 0 && strings.HasPrefix(path[len(path)-1], "minimum") {
		return number(before, after, false)
	}
	return added(Wider, Narrower)(path, before, after)
}
