package replay

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bulla-project/bulla/policy"
)

// Cause is where two evaluations of the same request part for the first time.
type Cause struct {
	// File and Line are in the candidate, or else in the revision, as In says.
	In   string `json:"in,omitempty"` // candidate, revision; "": they don't part in any rule
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
	Rule string `json:"rule,omitempty"`
	Text string `json:"text,omitempty"`
	// What says how: "it did not hold and does now", "it held and does not now", "the rule reads differently".
	What string `json:"what"`
	// Data are values that were looked at and differ, and Risk the factors of it that do.
	Data []Change `json:"data,omitempty"`
	Risk []string `json:"risk,omitempty"`
}

// maxCauses bounds how many values a cause lists.
const maxCauses = 8

// Place is the cause in one line.
func (c Cause) Place() string {
	var parts []string
	if c.In != "" {
		parts = append(parts, fmt.Sprintf("%s:%d %s: %s", c.File, c.Line, c.Text, c.What))
	} else if c.What != "" {
		parts = append(parts, c.What)
	}
	for _, d := range c.Data {
		parts = append(parts, fmt.Sprintf("%s:%d %s: %s → %s", d.File, d.Line, d.Path, orNone(d.Was), orNone(d.Now)))
	}
	return strings.Join(append(parts, c.Risk...), "; ")
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}

// causeOf compares how two decisions came about.
func causeOf(was, now policy.Explanation, changed []Change) Cause {
	c := parting(was.Steps, now.Steps)
	for _, ch := range changed {
		if len(c.Data) < maxCauses && (looksAt(was.Data, ch.path) || looksAt(now.Data, ch.path)) {
			c.Data = append(c.Data, ch)
		}
	}
	if a, b := was.Decision.Risk, now.Decision.Risk; a.Score != b.Score {
		c.Risk = append(c.Risk, fmt.Sprintf("risk score: %d → %d", a.Score, b.Score))
		before := map[string]int{}
		for _, f := range a.Factors {
			before[f.Name] = f.Points
		}
		for _, f := range b.Factors {
			if f.Points != before[f.Name] && len(c.Risk) < maxCauses {
				c.Risk = append(c.Risk, fmt.Sprintf("risk factor %s (%s): %d → %d points", f.Name, f.Value, before[f.Name], f.Points))
			}
		}
	}
	return c
}

// looksAt says whether one of the paths that were read is above the changed one, or below it.
func looksAt(read [][]string, path []string) bool {
	return slices.ContainsFunc(read, func(r []string) bool {
		n := min(len(r), len(path))
		return slices.Equal(r[:n], path[:n])
	})
}

// parting finds the first step in which two evaluations differ. Lines don't count: the same rule may have moved.
func parting(was, now []policy.Step) Cause {
	i := 0
	for i < len(was) && i < len(now) && was[i].Kind == now[i].Kind && was[i].Rule == now[i].Rule && plain(was[i].Text) == plain(now[i].Text) {
		i++
	}
	at := func(in string, s policy.Step, what string) Cause {
		return Cause{In: in, File: s.File, Line: s.Line, Rule: s.Rule, Text: s.Text, What: what}
	}
	ended := func(steps []policy.Step) bool { return i < len(steps) && steps[i].Kind == policy.StepFail }
	switch {
	case i == len(was) && i == len(now):
		return Cause{What: "the same rules hold, and what they answer differs"}
	case ended(now) && !ended(was):
		return at("candidate", now[i], "it held and does not now")
	case ended(was) && !ended(now):
		moved := was[i]
		if i > 0 && i <= len(now) { // the same expression, where it stands in the candidate
			for j := min(i, len(now)) - 1; j >= 0; j-- {
				if now[j].Kind == policy.StepEval && now[j].Rule == moved.Rule && plain(now[j].Text) == plain(moved.Text) {
					return at("candidate", now[j], "it did not hold and does now")
				}
			}
		}
		return at("revision", moved, "it did not hold, and the candidate does not ask it")
	case i < len(now):
		return at("candidate", now[i], "the rules read differently from here on")
	}
	return at("revision", was[i], "the candidate does not get here")
}

func plain(text string) string { return strings.Join(strings.Fields(text), " ") }
