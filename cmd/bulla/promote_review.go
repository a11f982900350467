package main

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/policy/diff"
	"github.com/bulla-project/bulla/policy/replay"
)

// maxShown is how many changes of data, and how many rows of a report, are told before a promotion.
const maxShown = 20

// confirm shows what a promotion would permit beyond the active revision, and asks whether that is wanted.
func (a *app) confirm(r review, f *promoteFlags) error {
	if f.rollback && r.diff.Wider() == 0 {
		return nil
	}
	p := &printer{w: a.stderr}
	if r.report != nil {
		p.opening(*r.report, short(r.digest))
	} else if f.noWhatIf != "" {
		p.line("no what-if was made: %s", f.noWhatIf)
	}
	if r.first != nil {
		p.first(*r.first, r.report)
	}
	p.wider(r.diff, short(r.digest))
	if p.err != nil || f.yes {
		return p.err
	}
	if !isTerminal(a.stdin) {
		return usage("there is no terminal to ask on: look at what it may permit, as above, and add --yes")
	}
	fmt.Fprint(a.stderr, "Go on? [y/N] ")
	answer, err := bufio.NewReader(io.LimitReader(a.stdin, 16)).ReadString('\n')
	if err != nil || strings.TrimSpace(strings.ToLower(answer)) != "y" {
		return errNotConfirmed
	}
	return nil
}

// wider tells what the data permit more.
func (p *printer) wider(report diff.Report, digest string) {
	var seen strings.Builder
	for i, c := range report.Changes {
		if c.Effect != diff.Wider && c.Effect != diff.Unclear {
			break
		}
		if i == maxShown {
			fmt.Fprintf(&seen, "and more: bulla policy diff %s\n", digest)
			break
		}
		_ = changesText(&seen, report.Changes[i:i+1]) // a builder takes everything
	}
	for _, t := range report.Texts {
		fmt.Fprintf(&seen, "rules     %s changed: bulla policy diff %s\n", show.Text(t.File), digest)
	}
	p.line("compared with the active revision:")
	if seen.Len() == 0 {
		seen.WriteString("nothing in its data or rules permits more\n")
	}
	if p.err == nil {
		_, p.err = io.WriteString(p.w, seen.String())
	}
}

// opening tells first what a revision would open, and then the numbers of the rest.
func (p *printer) opening(r replay.Report, digest string) {
	p.line("what-if: %d recorded decisions, judged again by %s", r.Decisions, digest)
	if r.Decisions > 0 {
		p.line("from %s to %s", r.From, r.To)
	}
	opens, pairs := r.Opens()
	p.line("\nIt would open %d recorded requests (DENY→PERMIT %d, of them %d INCONCLUSIVE; STEP_UP→PERMIT %d) and %d pairs of the sweep.",
		opens, r.Matrix.DenyPermit, r.Matrix.Inconclusive, r.Matrix.StepUpPermit, pairs)
	shown, all := 0, 0
	row := func(opens bool, tell func()) {
		if !opens {
			return
		}
		if all++; all <= maxShown {
			shown++
			tell()
		}
	}
	for _, g := range r.Groups {
		row(g.Opens(), func() { p.group(g) })
	}
	for _, c := range r.Sweep.Changes {
		row(c.Opens(), func() { p.swept(c) })
	}
	if all > shown {
		p.line("\nAND %d MORE ROWS THAT OPEN: see them all with `bulla policy whatif`", all-shown)
	}
	for _, why := range sortedKeys(r.Skipped) {
		p.line("\nnot judged, so that it could open as well: %d, %s", r.Skipped[why], why)
	}
	if !r.Sweep.Complete {
		p.line("\nTHE SWEEP IS NOT COMPLETE: there are too many pairs. See `bulla policy whatif` with --principal or --secret.")
	}
	if r.LeftOut > 0 {
		p.line("\n%d rows of the report don't fit in what is kept, and were left out from its end", r.LeftOut)
	}
	m := r.Matrix
	p.line("\nThe rest: DENY→STEP_UP %d, PERMIT→DENY %d, PERMIT→STEP_UP %d, STEP_UP→DENY %d,", m.DenyStepUp, m.PermitDeny, m.PermitStepUp, m.StepUpDeny)
	p.line("%d permitted under other obligations, %d to step up to something else, %d refused with other words,", m.Obligations, m.Requirements, m.Disclosure)
	p.line("%d as before.\n", m.PermitPermit+m.DenyDeny+m.StepUpStepUp)
}

// first tells who proposed the same, and in what the reports differ.
func (p *printer) first(f first, mine *replay.Report) {
	p.line("proposed by %s on %s", f.proposal.GetBy(), second(f.proposal.GetAt()))
	if d := f.proposal.GetReportDigest(); d != "" {
		p.line("  on the report %s", d)
	}
	only, gone := f.differs(mine)
	switch {
	case f.why != "":
		p.line("  their report is not compared: %s", f.why)
	case mine == nil:
		p.line("  it opens %d rows; without a report of your own there is nothing to compare", len(f.report.Opening()))
	case f.partial(mine) != "":
		p.line("  %s", f.partial(mine))
	case len(only)+len(gone) == 0:
		p.line("  your report opens the same %d rows as theirs", len(mine.Opening()))
	}
	for _, row := range only {
		p.line("  only in yours:  %s", row)
	}
	for _, row := range gone {
		p.line("  only in theirs: %s", row)
	}
	p.line("")
}

// partial says what keeps differs from telling everything; "": nothing.
func (f first) partial(mine *replay.Report) string {
	if f.report == nil || mine == nil || !f.report.OpeningLeftOut() && !mine.OpeningLeftOut() {
		return ""
	}
	return "rows that open did not fit in one of the reports, and are not compared"
}

// differs returns the rows that only one of the two reports opens; without both of them there are none.
func (f first) differs(mine *replay.Report) (only, gone []string) {
	only, gone = []string{}, []string{}
	if f.report == nil || mine == nil {
		return only, gone
	}
	here, there := mine.Opening(), f.report.Opening()
	for _, row := range here {
		if !slices.Contains(there, row) {
			only = append(only, row)
		}
	}
	for _, row := range there {
		if !slices.Contains(here, row) {
			gone = append(gone, row)
		}
	}
	return only, gone
}
