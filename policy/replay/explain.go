package replay

import (
	"context"

	"github.com/bulla-project/bulla/policy"
)

// Tried is one try of a rule.
type Tried struct {
	Rule string `json:"rule"`
	File string `json:"file"`
	Line int    `json:"line"`
	Held bool   `json:"held"`
	// Default says that it is what a rule gives when none of its conditions holds.
	Default bool `json:"default,omitempty"`
	// FailedLine and Failed are the expression at which it ended, where it did not hold.
	FailedLine int    `json:"failed_line,omitempty"`
	Failed     string `json:"failed,omitempty"`
}

// Rules are the rules that an evaluation tried, in their order, each with whether it held. A rule that was tried several
// times with the same outcome at the same place is there once.
func Rules(steps []policy.Step) []Tried {
	var out []Tried
	open := map[uint64]int{} // index in out by query
	for _, s := range steps {
		switch s.Kind {
		case policy.StepEnter:
			open[s.Query] = len(out)
			out = append(out, Tried{Rule: s.Rule, File: s.File, Line: s.Line, Default: s.Text == "default"})
		case policy.StepFail:
			if i, ok := open[s.Query]; ok && !out[i].Held {
				out[i].FailedLine, out[i].Failed = s.Line, s.Text
			}
		case policy.StepExit:
			if i, ok := open[s.Query]; ok {
				out[i].Held, out[i].FailedLine, out[i].Failed = true, 0, ""
			}
		}
	}
	seen := map[Tried]bool{}
	kept := out[:0]
	for _, t := range out {
		if !seen[t] {
			seen[t] = true
			kept = append(kept, t)
		}
	}
	return kept
}

// Explain replays a single decision with an account of it. The account is nil where there is nothing to judge.
func Explain(ctx context.Context, library *Library, r Recorded) (Result, []Tried) {
	out := One(ctx, library, r)
	rev, err := library.Revision(ctx, r.Revision)
	if err != nil || r.Gap != "" {
		return out, nil
	}
	s, err := policy.ParseSignals(r.Signals)
	if err != nil {
		return out, nil
	}
	return out, Rules(rev.Explain(ctx, s).Steps)
}
