package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/policy"
)

func newPolicyCommand(a *app) *cobra.Command {
	return group("policy", "Check, test, sign, push and compare policies",
		"A policy is a directory (a bundle) of Rego, data, risk model, zones, reference values and canaries.\n"+
			"check, test and sign work without a broker. push stages a bundle, promote makes it the revision that decides\n"+
			"(a broker for development does both at once), and rollback goes back to an earlier one. whatif and access say beforehand\n"+
			"what a bundle would change, and who could get a secret.",
		"  bulla policy check policy/ && bulla policy push policy/ --sign-key bundle.key --note \"new grants\"\n  bulla policy promote 3f1c09ab",
		newPolicyCheckCommand(a), newPolicyTestCommand(a), newPolicySignCommand(a), newPolicyPushCommand(a), newPolicyListCommand(a),
		newPolicyShowCommand(a), newPolicyDiffCommand(a), newPolicyPromoteCommand(a), newPolicyRollbackCommand(a), newPolicyShadowCommand(a),
		newPolicyWhatIfCommand(a), newPolicyAccessCommand(a))
}

// faultJSON is one reason why a bundle is not good.
type faultJSON struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Check   string `json:"check"`
	Message string `json:"message"`
}

func newFaultsJSON(faults []policy.Fault) []faultJSON {
	out := []faultJSON{}
	for _, f := range faults {
		out = append(out, faultJSON{f.File, f.Line, f.Check, f.Message})
	}
	return out
}

func newPolicyCheckCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "check DIR", Short: "Check a bundle as activation would, without a broker",
		Long: "Checks format, strict compilation against the schema of the input, builtins, tests, canaries and the\n" +
			"rules that hold for every site. Each fault names file and line. The exit code is 1 if there is any.",
		Example: "  bulla policy check policy/", Args: argument("DIR"), ValidArgsFunction: completeDir,
		RunE: func(c *cobra.Command, args []string) error {
			ctx, cancel := a.offline(c)
			defer cancel()
			if err := checkDir(args[0]); err != nil {
				return err
			}
			faults, err := policy.CheckDir(ctx, args[0])
			if err := errors.Join(err, ctx.Err()); err != nil {
				return fmt.Errorf("check %s: %w", args[0], err)
			}
			err = a.print(struct {
				OK     bool        `json:"ok"`
				Faults []faultJSON `json:"faults"`
			}{len(faults) == 0, newFaultsJSON(faults)}, func(w io.Writer) error { return faultText(w, faults) })
			if err == nil && len(faults) > 0 {
				return &reported{exitFailed}
			}
			return err
		},
	}
}

func completeDir(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// checkDir makes sure that an argument is a directory.
func checkDir(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return usage("%v", err)
	case !info.IsDir():
		return usage("%s is not a directory", path)
	}
	return nil
}

func faultText(w io.Writer, faults []policy.Fault) error {
	for _, f := range faults {
		if _, err := fmt.Fprintln(w, show.Lines(f.String())); err != nil {
			return err
		}
	}
	if len(faults) == 0 {
		_, err := fmt.Fprintln(w, "ok")
		return err
	}
	return nil
}

// testJSON is one test of a bundle.
type testJSON struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Name    string `json:"name"`
	Pass    bool   `json:"pass"`
	Message string `json:"message"`
}

// testReport is the answer of `policy test`.
type testReport struct {
	OK        bool       `json:"ok"`
	Coverage  float64    `json:"coverage_percent"`
	Results   []testJSON `json:"results"`
	Uncovered []string   `json:"uncovered"`
}

func newPolicyTestCommand(a *app) *cobra.Command {
	var threshold float64
	c := &cobra.Command{
		Use: "test DIR [flags]", Short: "Run the tests of a bundle, without a broker",
		Long: "Runs the Rego tests of a bundle and says how much of the policy they reach. The exit code is 1 if a\n" +
			"test does not pass or the coverage is below --threshold.",
		Example: "  bulla policy test policy/ --threshold 95", Args: argument("DIR"), ValidArgsFunction: completeDir,
		RunE: func(c *cobra.Command, args []string) error {
			if threshold < 0 || threshold > 100 {
				return usage("--threshold is %g: it is a percentage from 0 to 100", threshold)
			}
			if err := checkDir(args[0]); err != nil {
				return err
			}
			ctx, cancel := a.offline(c)
			defer cancel()
			report, err := policy.TestDir(ctx, args[0])
			if err := errors.Join(err, ctx.Err()); err != nil {
				return fmt.Errorf("test %s: %w", args[0], err)
			}
			return a.printTests(report, threshold)
		},
	}
	c.Flags().Float64Var(&threshold, "threshold", 0, "fail if fewer percent of the policy's lines are reached")
	return c
}

func (a *app) printTests(report policy.TestReport, threshold float64) error {
	answer := testReport{OK: true, Coverage: float64(report.Coverage) / 10, Results: []testJSON{}, Uncovered: report.Uncovered}
	if answer.Uncovered == nil {
		answer.Uncovered = []string{}
	}
	failed := 0
	for _, r := range report.Results {
		answer.Results = append(answer.Results, testJSON{r.File, r.Line, r.Name, r.Pass, r.Message})
		if !r.Pass {
			failed++
		}
	}
	answer.OK = failed == 0 && answer.Coverage >= threshold
	err := a.print(answer, func(w io.Writer) error {
		for _, r := range answer.Results {
			if !r.Pass {
				_, _ = fmt.Fprintf(w, "FAILED  %s:%d %s: %s\n", show.Text(r.File), r.Line, show.Text(r.Name), show.Lines(r.Message))
			}
		}
		if answer.Coverage < threshold {
			for _, u := range answer.Uncovered {
				_, _ = fmt.Fprintf(w, "not reached  %s\n", show.Text(u))
			}
		}
		_, err := fmt.Fprintf(w, "%d of %d tests passed, %.1f %% of the policy reached\n", len(answer.Results)-failed, len(answer.Results), answer.Coverage)
		return err
	})
	if err == nil && !answer.OK {
		return &reported{exitFailed}
	}
	return err
}

// revisionJSON is a revision in JSON.
type revisionJSON struct {
	Digest      string `json:"digest"`
	Sequence    uint64 `json:"revision"`
	Active      bool   `json:"active"`
	ActivatedAt string `json:"activated_at"`
	By          string `json:"by"`
	Source      string `json:"source"`
	Note        string `json:"note"`
	Sweep       string `json:"sweep"` // of the active one: what it did to live sessions
	Key         string `json:"bundle_key"`
	Rollback    bool   `json:"rollback"`
	Report      string `json:"report_sha256"`
	Name        string `json:"name"`
	StagedAt    string `json:"staged_at"`
	Kept        bool   `json:"report_kept"`
	NoReport    string `json:"no_report"`
}

func newRevisionJSON(r *bullav1.Revision) revisionJSON {
	return revisionJSON{
		r.GetDigest(), r.GetSequence(), r.GetActive(), moment(r.GetActivatedAt()), r.GetBy(), r.GetSource(), r.GetNote(), r.GetSweep(),
		r.GetKey(), r.GetRollback(), r.GetReportDigest(), r.GetName(), moment(r.GetStagedAt()),
		r.GetReportKept(), r.GetNoReport(),
	}
}

func revisionFields(r *bullav1.Revision) []show.Field {
	active := "no"
	if r.GetActive() {
		active = "yes"
	}
	fields := []show.Field{{Name: "digest", Value: r.GetDigest()}, {Name: "active", Value: active}}
	if r.GetSequence() > 0 {
		fields = slices.Concat([]show.Field{{Name: "revision", Value: strconv.FormatUint(r.GetSequence(), 10)}}, fields,
			[]show.Field{{Name: "activated", Value: second(r.GetActivatedAt())}})
	} else {
		fields = append(fields, show.Field{Name: "staged", Value: second(r.GetStagedAt())}, show.Field{Name: "name", Value: r.GetName()})
	}
	if r.GetRollback() {
		fields = append(fields, show.Field{Name: "rollback", Value: "yes"})
	}
	read := ""
	if r.GetReportKept() {
		read = fmt.Sprintf("bulla policy show %s --report", short(r.GetDigest()))
	}
	for _, f := range []show.Field{
		{Name: "signed by", Value: r.GetKey()},
		{Name: "report", Value: r.GetReportDigest()},
		{Name: "read it with", Value: read},
		{Name: "no what-if", Value: r.GetNoReport()},
	} {
		if f.Value != "" {
			fields = append(fields, f)
		}
	}
	return append(fields, []show.Field{
		{Name: "by", Value: r.GetBy()},
		{Name: "source", Value: r.GetSource()},
		{Name: "note", Value: r.GetNote()},
	}...)
}

func newPolicyListCommand(a *app) *cobra.Command {
	in := new(bullav1.ListRevisionsRequest)
	c := &cobra.Command{
		Use: "list [flags]", Short: "List the revisions that were active, and what is staged",
		Long: "Lists policy revisions, the newest first, then what is staged and was never active, and what waits for a\n" +
			"second person. With -o json: {\"revisions\": [...], \"staged\": [...], \"proposal\": ...}.",
		Example: "  bulla policy list -o json | jq -r '.revisions[] | select(.active).digest'",
		Args:    argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			var reply *bullav1.ListRevisionsReply
			var staged *bullav1.ListStagedReply
			err := a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
				if reply, err = bullav1.NewPoliciesClient(conn).ListRevisions(ctx, in); err != nil {
					return err
				}
				staged, err = bullav1.NewRevisionsClient(conn).ListStaged(ctx, &bullav1.ListStagedRequest{Limit: in.GetLimit()})
				return err
			})
			if err != nil {
				return fmt.Errorf("list revisions: %w", err)
			}
			return a.printRevisions(reply, staged)
		},
	}
	c.Flags().Uint32Var(&in.Limit, "limit", 100, "list at most so many, up to 1000")
	a.addIdentity(c)
	return c
}

func (a *app) printRevisions(reply *bullav1.ListRevisionsReply, waiting *bullav1.ListStagedReply) error {
	answer := struct {
		Revisions []revisionJSON `json:"revisions"`
		Staged    []revisionJSON `json:"staged"`
		Proposal  *proposalJSON  `json:"proposal"`
	}{[]revisionJSON{}, []revisionJSON{}, newProposalJSON(waiting.GetProposal())}
	var rows, staged [][]string
	for _, r := range reply.GetRevisions() {
		answer.Revisions = append(answer.Revisions, newRevisionJSON(r))
		active := ""
		if r.GetActive() {
			active = "*"
		}
		rows = append(rows, []string{strconv.FormatUint(r.GetSequence(), 10), active, short(r.GetDigest()), second(r.GetActivatedAt()), r.GetNote()})
	}
	for _, r := range waiting.GetStaged() {
		answer.Staged = append(answer.Staged, newRevisionJSON(r))
		staged = append(staged, []string{"staged", "", short(r.GetDigest()), second(r.GetStagedAt()), r.GetNote()})
	}
	return a.print(answer, func(w io.Writer) error {
		columns := []show.Column{{Title: "REVISION"}, {Title: "ACTIVE"}, {Title: "DIGEST"}, {Title: "SINCE"}, {Title: "NOTE", Max: 23}}
		if err := show.Table(w, columns, append(staged, rows...)); err != nil {
			return err
		}
		if p := waiting.GetProposal(); p != nil {
			if err := proposalText(w, p); err != nil {
				return err
			}
		}
		for _, r := range reply.GetRevisions() {
			if r.GetSweep() != "" {
				if _, err := fmt.Fprintf(w, "live sessions under revision %d: %s\n", r.GetSequence(), show.Text(r.GetSweep())); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// fileJSON is one file of a bundle.
type fileJSON struct {
	Path   string `json:"path"`
	Size   int    `json:"size"`
	SHA256 string `json:"sha256"`
}

func newPolicyShowCommand(a *app) *cobra.Command {
	var out string
	var reports bool
	c := &cobra.Command{
		Use: "show [DIGEST] [flags]", Short: "Show a revision and its files",
		Long: "Shows the active revision, or the one with a digest, and the files of its bundle. --out writes them\n" +
			"into a new directory. --report shows instead the what-if reports that it was proposed and activated on.",
		Example: "  bulla policy show\n  bulla policy show --out running/ && diff -r running/ policy/\n  bulla policy show 3f1c09ab --report",
		Args:    atMostOne("DIGEST"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			in := new(bullav1.GetRevisionRequest)
			if len(args) == 1 {
				if err := checkDigest(args[0]); err != nil {
					return err
				}
				in.Digest = args[0]
			}
			if reports && out != "" {
				return usage("--report shows reports, and --out writes files: give one of both")
			}
			if reports {
				return a.showReports(c, in.GetDigest())
			}
			return a.showPolicy(c, in, out)
		},
	}
	c.Flags().BoolVar(&reports, "report", false, "show the reports on what it would change, as they were kept")
	c.Flags().StringVar(&out, "out", "", "write the bundle's files into this directory, which must not exist")
	a.addIdentity(c)
	return c
}

func (a *app) showPolicy(c *cobra.Command, in *bullav1.GetRevisionRequest, out string) error {
	var reply *bullav1.RevisionArchive
	var files map[string][]byte
	err := a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		reply, files, err = getRevision(ctx, conn, in.GetDigest())
		return err
	})
	if err != nil {
		return fmt.Errorf("show the policy: %w", err)
	}
	r := reply.GetRevision()
	if out != "" {
		if err := writeBundle(out, files); err != nil {
			return err
		}
	}
	answer := struct {
		Revision revisionJSON `json:"revision"`
		Files    []fileJSON   `json:"files"`
	}{newRevisionJSON(r), []fileJSON{}}
	var rows [][]string
	for _, name := range sorted(files) {
		f := fileJSON{name, len(files[name]), digest(files[name])}
		answer.Files = append(answer.Files, f)
		rows = append(rows, []string{f.Path, strconv.Itoa(f.Size), f.SHA256})
	}
	return a.print(answer, func(w io.Writer) error {
		if err := show.Fields(w, revisionFields(r)); err != nil {
			return err
		}
		_, _ = io.WriteString(w, "\n")
		return show.Table(w, []show.Column{{Title: "FILE", Max: 44}, {Title: "BYTES"}, {Title: "SHA-256", Max: 20}}, rows)
	})
}

func sorted(files map[string][]byte) []string {
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// writeBundle writes files into a new directory. Nothing can end outside of it, and nothing is left of it if
// one of them can't be written.
func writeBundle(dir string, files map[string][]byte) (err error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return usage("--out: %v: name a directory that does not exist yet", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range sorted(files) {
		if err := root.MkdirAll(filepath.Dir(filepath.FromSlash(name)), 0o755); err != nil {
			return err
		}
		if err := root.WriteFile(filepath.FromSlash(name), files[name], 0o644); err != nil {
			return err
		}
	}
	return nil
}
