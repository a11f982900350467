package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/audit/decisions"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/policy/replay"
)

// whatIfFlags are those of `policy whatif`.
type whatIfFlags struct {
	record            recordFlags
	candidate         string
	principal, secret string
}

func newPolicyWhatIfCommand(a *app) *cobra.Command {
	var f whatIfFlags
	c := &cobra.Command{
		Use: "whatif --candidate DIR [--since 7d] [flags]", Short: "Say what a bundle would have done to what was recorded",
		Long: "Judges recorded decisions again by a bundle that is not active, and groups what comes out differently by\n" +
			"principal and secret, with the line at which both part: what it would open comes first. INCONCLUSIVE\n" +
			"is where the bundle reads what the recordings lack; it counts as DENY→PERMIT.\n\n" +
			"Then it sweeps over what nobody asked: each principal that the change touches, with each secret, in\n" +
			"the ways in which it asked before and in the best of circumstances. It all runs here, not at the\n" +
			"broker. --since bounds the recordings, not the sweep.",
		Example: "  bulla policy whatif --candidate policy/ --since 7d\n  bulla policy whatif --candidate policy/ --export export/ --log-key log.pub -o json",
		Args:    argument(), ValidArgsFunction: cobra.NoFileCompletions, DisableFlagsInUseLine: true,
		RunE: func(c *cobra.Command, _ []string) error { return a.whatIf(c, f) },
	}
	c.Flags().StringVar(&f.candidate, "candidate", "", "directory of the bundle (required)")
	c.Flags().StringVar(&f.record.since, "since", "", "only recordings this recent, such as 24h or 7d; without it all of them")
	c.Flags().StringVar(&f.principal, "principal", "", "only what this SPIFFE ID asked, and could ask")
	c.Flags().StringVar(&f.secret, "secret", "", "only what is about this secret")
	a.addRecord(c, &f.record)
	return c
}

// openBundle compiles the bundle in a directory.
func openBundle(ctx context.Context, flag, dir string) (*policy.Revision, error) {
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, usage("%s: %v", flag, err)
	}
	defer root.Close()
	archive, err := policy.Pack(root.FS())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	rev, err := policy.Reopen(ctx, archive)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return rev, nil
}

func (a *app) whatIf(c *cobra.Command, f whatIfFlags) error {
	if f.candidate == "" {
		return usage("--candidate is missing: name the directory of a bundle")
	}
	if err := cmp.Or(checkPrincipal("--principal", f.principal), checkSecret("--secret", f.secret)); err != nil {
		return err
	}
	since, err := parseSince(f.record.since, time.Now())
	if err != nil {
		return err
	}
	candidate, err := openBundle(c.Context(), "--candidate", f.candidate)
	if err != nil {
		return err
	}
	var report replay.Report
	err = a.withRecord(c, f.record, func(ctx context.Context, rec record) (err error) {
		report, err = a.judgeAgain(ctx, rec, since, replay.WhatIfOptions{Candidate: candidate, Principal: f.principal, Secret: f.secret})
		return err
	})
	if err != nil {
		return fmt.Errorf("what if %s: %w", f.candidate, err)
	}
	return a.printReport(report)
}

// judgeAgain compares what was recorded since a moment with a candidate, and shows progress.
func (a *app) judgeAgain(ctx context.Context, rec record, since time.Time, opts replay.WhatIfOptions) (replay.Report, error) {
	reader := new(decisions.Reader)
	count, done := a.counting("judged")
	defer done()
	opts.Library, opts.Progress = replay.NewLibrary(rec.archives), func() { rec.alive(); count() }
	all := func(replay.Recorded) bool { return true }
	return replay.WhatIf(ctx, opts, decided(rec.events, reader, since, all), func() (replay.Base, error) {
		active, err := opts.Library.Revision(ctx, reader.Active().Digest)
		return replay.Base{Active: active, Secrets: secretFacts(reader)}, err
	})
}

// secretFacts are the secrets that the record has.
func secretFacts(r *decisions.Reader) []replay.SecretFacts {
	out := []replay.SecretFacts{}
	for _, s := range r.Secrets() {
		out = append(out, replay.SecretFacts{Name: s.Name, Class: s.Class, Type: s.Type, Version: int64(s.Version)})
	}
	slices.SortFunc(out, func(a, b replay.SecretFacts) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// whatIfAnswer is the report with its digest, which promoting the candidate can name.
type whatIfAnswer struct {
	Digest string        `json:"digest"`
	Opens  uint64        `json:"opens"`       // recorded requests
	Pairs  int           `json:"opens_pairs"` // of the sweep
	Report replay.Report `json:"report"`
}

func (a *app) printReport(r replay.Report) error {
	digest, err := r.Digest()
	if err != nil {
		return err
	}
	recorded, pairs := r.Opens()
	answer := whatIfAnswer{hex.EncodeToString(digest[:]), recorded, pairs, r}
	return a.print(answer, func(w io.Writer) error { return reportText(w, answer) })
}

func reportText(w io.Writer, answer whatIfAnswer) error {
	r, m := answer.Report, answer.Report.Matrix
	p := &printer{w: w}
	p.line("%d recorded decisions, candidate %.12s", r.Decisions, r.Candidate)
	if r.Decisions > 0 {
		p.line("from %s to %s", r.From, r.To)
	}
	p.line("\n  DENY→PERMIT    %8d   (%d of them INCONCLUSIVE)", m.DenyPermit, m.Inconclusive)
	p.line("  STEP_UP→PERMIT %8d\n  DENY→STEP_UP   %8d", m.StepUpPermit, m.DenyStepUp)
	p.line("  PERMIT→DENY    %8d\n  PERMIT→STEP_UP %8d\n  STEP_UP→DENY   %8d", m.PermitDeny, m.PermitStepUp, m.StepUpDeny)
	p.line("  PERMIT→PERMIT  %8d   and %d under other obligations", m.PermitPermit, m.Obligations)
	p.line("  STEP_UP→STEP_UP%8d   and %d to something else", m.StepUpStepUp, m.Requirements)
	p.line("  DENY→DENY      %8d   and %d refused with other words", m.DenyDeny, m.Disclosure)
	for _, why := range sortedKeys(r.Skipped) {
		p.line("  not judged     %8d   %s", r.Skipped[why], why)
	}
	for _, g := range r.Groups {
		p.group(g)
	}
	p.line("\nSweep: %d principals, %d secrets, %d evaluations", r.Sweep.Principals, r.Sweep.Secrets, r.Sweep.Evaluations)
	if !r.Sweep.Complete {
		p.line("NOT COMPLETE: there are too many pairs. Name --principal or --secret.")
	}
	if len(r.Sweep.Changes) == 0 {
		p.line("no request that was not made comes out differently, as far as was tried")
	}
	for _, s := range r.Sweep.Changes {
		p.swept(s)
	}
	if r.LeftOut > 0 {
		p.line("\nNOT WHOLE: %d rows that open least were left out so that the report could be kept", r.LeftOut)
	}
	p.line("\nIt would open %d recorded requests and %d pairs of the sweep.\nreport %s", answer.Opens, answer.Pairs, answer.Digest)
	return p.err
}

// printer writes lines, and keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

// line writes the lines of a format. What is put into it comes from outside and makes no line of its own: it is escaped.
func (p *printer) line(format string, args ...any) {
	safe := slices.Clone(args)
	for i, arg := range safe {
		if text, ok := arg.(string); ok {
			safe[i] = show.Text(text)
		}
	}
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", safe...)
	}
}

// lines writes a text that was cut into lines here, each escaped.
func (p *printer) lines(text string) {
	for line := range strings.SplitSeq(text, "\n") {
		p.line("%s", line)
	}
}

// group tells of recorded decisions that come out differently.
func (p *printer) group(g replay.Group) {
	p.line("\n%s  %d times  %s  %s", g.Transition, g.Count, pathOf(g.Principal), g.Target)
	if g.Transition == replay.Inconclusive {
		p.line("  %s, and %s now; the recordings lack %s", g.Was, g.Now, strings.Join(g.Lacks, ", "))
	}
	p.line("  first: event %d, %s", g.Index, g.Event)
	p.cause(g.Detail, g.Cause)
}

// swept tells of a pair of the sweep.
func (p *printer) swept(s replay.SweepChange) {
	what := s.Target
	if s.Class != "" {
		what += " (class " + s.Class + ")"
	}
	if s.Operation != "" {
		what += ", to " + s.Operation
	}
	if s.Made {
		what += ", which nobody has put yet"
	}
	p.line("\n%s  %s  %s", s.Transition, pathOf(s.Principal), what)
	if !s.Exercised {
		p.line("  never asked for in the recordings")
	}
	if len(s.Lacks) > 0 {
		p.line("  it reads %s, which no context has", strings.Join(s.Lacks, ", "))
	}
	p.line("  %s", s.Context)
	p.cause("", s.Cause)
}

func (p *printer) cause(detail string, c replay.Cause) {
	if detail != "" {
		p.line("  %s", detail)
	}
	if c.In != "" {
		p.line("  %s:%d (%s)  %s\n    %s", c.File, c.Line, c.In, c.Text, c.What)
	} else if c.What != "" {
		p.line("  %s", c.What)
	}
	for _, d := range c.Data {
		p.line("  %s:%d  %s: %s", d.File, d.Line, d.Path, wasNow(d))
	}
	for _, r := range c.Risk {
		p.line("  %s", r)
	}
}

func wasNow(c replay.Change) string {
	switch {
	case c.Was == "":
		return "new, " + c.Now
	case c.Now == "":
		return "gone, was " + c.Was
	}
	return c.Was + " → " + c.Now
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
