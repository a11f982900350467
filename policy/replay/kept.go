package replay

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// MaxReport is the largest report that is kept with a promotion, in bytes.
const MaxReport = 128 << 10

// ErrReport says that a text is not a report.
var ErrReport = errors.New("not a what-if report")

// ParseReport reads a report, and refuses every encoding but that of Encode.
func ParseReport(text []byte) (Report, error) {
	var r Report
	if len(text) > MaxReport {
		return r, fmt.Errorf("%w: it has %d bytes, at most %d are kept", ErrReport, len(text), MaxReport)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return Report{}, fmt.Errorf("%w: %w", ErrReport, err)
	}
	again, err := r.Encode()
	switch {
	case err != nil:
		return Report{}, fmt.Errorf("%w: %w", ErrReport, err)
	case !bytes.Equal(again, text):
		return Report{}, fmt.Errorf("%w: it is not in canonical form", ErrReport)
	case r.Format != ReportFormat:
		return Report{}, fmt.Errorf("%w: its format is %q, want %s", ErrReport, r.Format, ReportFormat)
	}
	return r, nil
}

// Narrowed says that the report leaves out what is not about one principal or one secret, so that nothing is to be promoted
// on it.
func (r Report) Narrowed() bool { return r.Principal != "" || r.Secret != "" }

// Within is the report cut to size bytes: of its rows those that open least are left out, and counted in LeftOut. The
// numbers of the matrix stay.
func (r Report) Within(size int) (Report, error) {
	for {
		text, err := r.Encode()
		if err != nil || len(text) <= size {
			return r, err
		}
		g, s := len(r.Groups), len(r.Sweep.Changes)
		if g+s == 0 {
			return r, fmt.Errorf("a report without a row has %d bytes, at most %d are kept", len(text), size)
		}
		// From the list whose last row opens less, a share at a time.
		if s == 0 || g > 0 && rank(r.Groups[g-1].Transition) >= rank(r.Sweep.Changes[s-1].Transition) {
			n := drop(g, func(i int) bool { return rank(r.Groups[i].Transition) == rank(r.Groups[g-1].Transition) })
			r.Groups = r.Groups[:g-n]
			r.LeftOut += n
		} else {
			n := drop(s, func(i int) bool { return rank(r.Sweep.Changes[i].Transition) == rank(r.Sweep.Changes[s-1].Transition) })
			if r.Sweep.Changes[s-1].Opens() {
				r.LeftOutPairs += n
			}
			r.Sweep.Changes = r.Sweep.Changes[:s-n]
			r.LeftOut += n
		}
	}
}

// OpeningLeftOut says that Within left out rows that open.
func (r Report) OpeningLeftOut() bool {
	recorded, _ := r.Opens()
	for _, g := range r.Groups {
		if g.Opens() {
			recorded -= min(recorded, g.Count)
		}
	}
	return recorded > 0 || r.LeftOutPairs > 0
}

// drop is how many rows to take from the end: a sixteenth of them at most, and all of one kind.
func drop(rows int, alike func(int) bool) int {
	n := 1
	for n < rows/16 && alike(rows-1-n) {
		n++
	}
	return n
}

// Opening names what the report says would or could be opened, a line for each: who, what, and whether it was asked for
// or is of the sweep. Two reports with the same lines open the same.
func (r Report) Opening() []string {
	seen := map[string]bool{}
	for _, g := range r.Groups {
		if g.Opens() {
			seen[fmt.Sprintf("%s  %s  %s", g.Transition, g.Principal, g.Target)] = true
		}
	}
	for _, c := range r.Sweep.Changes {
		if c.Opens() {
			what := c.Target
			if c.Class != "" {
				what += " (class " + c.Class + ")"
			}
			if c.Operation != "" {
				what += " to " + c.Operation
			}
			seen[fmt.Sprintf("sweep: %s  %s  %s", c.Transition, c.Principal, what)] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// Opens says whether the group is of those that the candidate would or could open.
func (g Group) Opens() bool { return rank(g.Transition) <= rank(StepUpPermit) }

// Opens says whether the pair is of those that the candidate would or could open.
func (c SweepChange) Opens() bool { return rank(c.Transition) <= rank(StepUpPermit) }
