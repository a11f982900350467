package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/policy/diff"
	"github.com/bulla-project/bulla/policy/replay"
)

// promoteFlags are those of `policy promote` and `policy rollback`.
type promoteFlags struct {
	note, since, report, noWhatIf string
	yes, rollback                 bool
}

func newPolicyPromoteCommand(a *app) *cobra.Command {
	f := new(promoteFlags)
	c := &cobra.Command{
		Use: "promote DIGEST [flags]", Short: "Make a staged revision the one that decides",
		Long: "Judges the recorded decisions of the last week again by the staged revision, here and not at the broker,\n" +
			"shows first what it would open, and asks. The report is kept with the revision: see `bulla policy show\n" +
			"--report`. Where the policy wants a second person, the first call is a proposal; the same command of\n" +
			"another person within a day activates it, and says in what the two reports differ. What was active before\n" +
			"is refused: to go back is `bulla policy rollback`.\n\n" +
			"Who may not read recorded decisions gives a report that somebody else made (bulla policy whatif\n" +
			"--candidate DIR -o json), or says why there is none.",
		Example: "  bulla policy promote 3f1c09ab --note \"as in ticket 17\"\n  bulla policy promote 3f1c09ab --report whatif.json --yes",
		RunE:    func(c *cobra.Command, args []string) error { return a.promote(c, args[0], f) },
	}
	c.Flags().StringVar(&f.since, "since", "7d", "judge only recordings this recent, such as 24h or 30d")
	c.Flags().StringVar(&f.report, "report", "", "file with a report that bulla policy whatif -o json wrote, instead of making one")
	c.Flags().StringVar(&f.noWhatIf, "no-whatif", "", "make no report, for this reason, which is recorded")
	return a.promotion(c, f)
}

func newPolicyRollbackCommand(a *app) *cobra.Command {
	f := &promoteFlags{rollback: true}
	return a.promotion(&cobra.Command{
		Use: "rollback DIGEST [flags]", Short: "Go back to a revision that was active before",
		Long: "Activates a revision that was active before, as a new activation with the next number. Policy decides on it\n" +
			"as an action of its own, and may want a second person, as for promote.",
		Example: "  bulla policy list\n  bulla policy rollback 3f1c09ab --note \"incident 4\"",
		RunE:    func(c *cobra.Command, args []string) error { return a.promote(c, args[0], f) },
	}, f)
}

func (a *app) promotion(c *cobra.Command, f *promoteFlags) *cobra.Command {
	c.Args, c.ValidArgsFunction = argument("DIGEST"), cobra.NoFileCompletions
	c.Flags().StringVar(&f.note, "note", "", "what it is for, for the record")
	c.Flags().BoolVar(&f.yes, "yes", false, "do not ask, also if it permits more than the active one")
	a.addIdentity(c)
	return c
}

// review is what somebody looks at before a promotion.
type review struct {
	digest string
	diff   diff.Report
	report *replay.Report // nil: there is none
	text   []byte         // of the report, as it is kept
	first  *first         // nil: nobody proposed it before
}

// first is the person who proposed the same before, and what this one saw.
type first struct {
	proposal *bullav1.Proposal
	report   *replay.Report // nil: it is not to be had, Why says why
	why      string
}

func (a *app) promote(c *cobra.Command, digest string, f *promoteFlags) error {
	if err := checkDigest(digest); err != nil {
		return err
	}
	if f.report != "" && f.noWhatIf != "" {
		return usage("--report names a report, and --no-whatif says that there is none: give one of both")
	}
	a.waitsForChecks()
	r, err := a.reviewed(c, digest, f)
	if err == nil {
		err = a.confirm(r, f)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", c.Name(), digest, err)
	}
	in := &bullav1.PromoteRequest{Digest: r.digest, Rollback: f.rollback, Note: f.note, Report: r.text, NoReport: f.noWhatIf}
	var change *bullav1.RevisionChange
	err = a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		change, err = bullav1.NewRevisionsClient(conn).Promote(ctx, in)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s %s: %w", c.Name(), digest, err)
	}
	if f.rollback {
		return a.printOutcome(change)
	}
	return a.printPromotion(change, r)
}

// reviewed fetches the revision, compares it with the active one, and judges what was recorded by it.
func (a *app) reviewed(c *cobra.Command, digest string, f *promoteFlags) (review, error) {
	since, err := parseSince(f.since, time.Now())
	if err != nil {
		return review{}, err
	}
	var r review
	err = a.withStream(c, a.timeout, func(ctx context.Context, conn *grpc.ClientConn, alive func()) error {
		next, active, changes, err := compared(ctx, conn, digest)
		if r.digest, r.diff = next.GetRevision().GetDigest(), changes; err != nil || f.rollback {
			return err
		}
		if r.first, err = firstPerson(ctx, conn, r.digest); err != nil || f.noWhatIf != "" {
			return err
		}
		var report replay.Report
		switch {
		case f.report != "":
			report, err = readReport(f.report, r.digest)
		case r.digest == active.GetRevision().GetDigest(): // before all that is recorded is judged by it
			err = fmt.Errorf("%w: revision %.12s is active already", client.ErrInvalid, r.digest)
		default:
			report, err = a.whatIfOf(ctx, next.GetArchive(), since, record{events: tailed(ctx, conn, alive), archives: fetched(conn), alive: alive, conn: conn})
		}
		if err == nil {
			report, err = report.Within(replay.MaxReport)
		}
		if err != nil {
			return err
		}
		r.report = &report
		r.text, err = report.Encode()
		return err
	})
	return r, err
}

// compared fetches a revision and the active one, and compares them.
func compared(ctx context.Context, conn *grpc.ClientConn, name string) (next, active *bullav1.RevisionArchive, report diff.Report, err error) {
	active, before, err := getRevision(ctx, conn, "")
	if err != nil {
		return nil, nil, report, err
	}
	next, after, err := getRevision(ctx, conn, name)
	if err != nil {
		return nil, nil, report, err
	}
	report, err = diff.Compare(before, after)
	return next, active, report, err
}

// whatIfOf judges the record by a revision that the broker has.
func (a *app) whatIfOf(ctx context.Context, archive []byte, since time.Time, rec record) (replay.Report, error) {
	candidate, err := policy.Reopen(ctx, archive)
	if err != nil {
		return replay.Report{}, err
	}
	report, err := a.judgeAgain(ctx, rec, since, replay.WhatIfOptions{Candidate: candidate})
	if status.Code(err) == codes.PermissionDenied {
		return replay.Report{}, fmt.Errorf("no what-if can be made, since recorded decisions may not be read with this identity (audit.tail): have it made by "+
			"somebody who may, with `bulla policy whatif --candidate DIR -o json`, and give it with --report FILE, or say with --no-whatif REASON why there is none: %w",
			client.FromStatus(err))
	}
	return report, err
}

// readReport reads what `policy whatif -o json` wrote about the revision.
func readReport(path, digest string) (replay.Report, error) {
	text, err := readFileAtMost(path, maxReportFile)
	if err != nil {
		return replay.Report{}, err
	}
	var answer whatIfAnswer
	if err := json.Unmarshal(text, &answer); err != nil || answer.Report.Format != replay.ReportFormat {
		return replay.Report{}, usage("--report: %s is not a report as `bulla policy whatif -o json` writes it", path)
	}
	sum, err := answer.Report.Digest()
	if err != nil {
		return replay.Report{}, err
	}
	switch {
	case hex.EncodeToString(sum[:]) != answer.Digest:
		return replay.Report{}, usage("--report: %s was altered: its report does not have the digest that stands beside it", path)
	case answer.Report.Narrowed():
		return replay.Report{}, usage("--report: %s is about one principal or one secret alone: make it without --principal and --secret", path)
	case answer.Report.Candidate != digest:
		return replay.Report{}, usage("--report: %s is about revision %.12s, and not about %.12s", path, answer.Report.Candidate, digest)
	}
	return answer.Report, nil
}

// firstPerson finds who proposed the promotion before, and what this one saw. Who may not look at it goes on without.
func firstPerson(ctx context.Context, conn *grpc.ClientConn, digest string) (*first, error) {
	revisions := bullav1.NewRevisionsClient(conn)
	waiting, err := revisions.ListStaged(ctx, &bullav1.ListStagedRequest{})
	if status.Code(err) == codes.PermissionDenied {
		return nil, nil
	}
	p := waiting.GetProposal()
	if err != nil || p.GetDigest() != digest || p.GetRollback() {
		return nil, err
	}
	out := &first{proposal: p}
	switch {
	case p.GetNoReport() != "":
		out.why = "there is none: " + p.GetNoReport()
	case !p.GetReportKept():
		out.why = "it was not kept"
	}
	if out.why != "" {
		return out, nil
	}
	reply, err := revisions.GetReports(ctx, &bullav1.GetReportsRequest{Digest: digest})
	if status.Code(err) == codes.PermissionDenied {
		out.why = "it may not be read with this identity"
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	out.why = "it is not there"
	for _, k := range reply.GetReports() {
		if report, err := keptReport(k); err == nil && k.GetProposal() && k.GetDigest() == p.GetReportDigest() {
			out.report, out.why = &report, ""
		}
	}
	return out, nil
}

// keptReport checks and reads a report of the broker.
func keptReport(k *bullav1.KeptReport) (replay.Report, error) {
	report, err := replay.ParseReport(k.GetReport())
	if err != nil {
		return report, fmt.Errorf("%w: the broker's report: %w", client.ErrVerification, err)
	}
	if sum, err := report.Digest(); err != nil || hex.EncodeToString(sum[:]) != k.GetDigest() {
		return report, fmt.Errorf("%w: the broker's report does not have the digest that it names", client.ErrVerification)
	}
	return report, nil
}

// errNotConfirmed says that somebody looked at a change and did not want it.
var errNotConfirmed = errors.New("not confirmed: nothing was changed")

// whatIfJSON is the report of a promotion in JSON, and in what that of the first person differs.
type whatIfJSON struct {
	Report string     `json:"report_sha256"`
	Opens  uint64     `json:"opens"`
	Pairs  int        `json:"opens_pairs"`
	First  *firstJSON `json:"first"`
}

type firstJSON struct {
	By     string   `json:"by"`
	Report string   `json:"report_sha256"`
	Why    string   `json:"not_compared"` // why
	Only   []string `json:"only_now"`     // what this report opens and that of the first person does not
	Gone   []string `json:"only_then"`
}

func (a *app) printPromotion(change *bullav1.RevisionChange, r review) error {
	answer := struct {
		outcomeJSON
		WhatIf *whatIfJSON `json:"whatif"`
	}{newOutcomeJSON(change), r.json()}
	return a.print(answer, func(w io.Writer) error { return outcomeText(w, change) })
}

func (r review) json() *whatIfJSON {
	if r.report == nil {
		return nil
	}
	sum := digest(r.text)
	opens, pairs := r.report.Opens()
	out := &whatIfJSON{Report: sum, Opens: opens, Pairs: pairs}
	if f := r.first; f != nil {
		only, gone := f.differs(r.report)
		out.First = &firstJSON{f.proposal.GetBy(), f.proposal.GetReportDigest(), cmp.Or(f.why, f.partial(r.report)), only, gone}
	}
	return out
}
