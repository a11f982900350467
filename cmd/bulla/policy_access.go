package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/audit/decisions"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/policy/replay"
	"github.com/bulla-project/bulla/secret"
)

// accessFlags are those of `policy access`.
type accessFlags struct {
	record              recordFlags
	revision, candidate string
	ask                 replay.AccessOptions
}

func newPolicyAccessCommand(a *app) *cobra.Command {
	var f accessFlags
	c := &cobra.Command{
		Use: "access --secret NAME | --principal ID [flags]", Short: "Say who could read a secret, or what a principal could",
		Long: "Asks the active policy, or another one, about everybody whom its data or the recordings name, under the\n" +
			"best of circumstances, and says which of these were needed. It grants nothing, and proves only what\n" +
			"was tried: the assumptions are part of the answer.",
		Example: "  bulla policy access --secret demo/database\n  bulla policy access --principal spiffe://dev.bulla.test/workload --candidate policy/",
		Args:    argument(), ValidArgsFunction: cobra.NoFileCompletions, DisableFlagsInUseLine: true,
		RunE: func(c *cobra.Command, _ []string) error { return a.access(c, f) },
	}
	fl := c.Flags()
	fl.StringVar(&f.ask.Secret, "secret", "", "who could read this secret")
	fl.StringVar(&f.ask.Principal, "principal", "", "what this SPIFFE ID could read; with --secret: whether it could read that")
	fl.StringVar(&f.ask.Class, "class", "", "class of the secret, where it is to be another one than the record says")
	fl.StringVar(&f.revision, "revision", "", "digest of the revision to ask, or the first digits, instead of the active one")
	fl.StringVar(&f.candidate, "candidate", "", "directory of a bundle to ask, instead of the active one")
	a.addRecord(c, &f.record)
	return c
}

func (a *app) access(c *cobra.Command, f accessFlags) error {
	if f.ask.Secret == "" && f.ask.Principal == "" {
		return usage("name --secret, --principal or both")
	}
	if f.revision != "" && f.candidate != "" {
		return usage("--revision and --candidate exclude each other")
	}
	if err := cmp.Or(checkPrincipal("--principal", f.ask.Principal), checkSecret("--secret", f.ask.Secret), checkRevision("--revision", f.revision)); err != nil {
		return err
	}
	if f.ask.Class != "" {
		if _, err := secret.ParseClass(f.ask.Class); err != nil {
			return usage("--class: %v", err)
		}
	}
	var answer replay.Access
	err := a.withRecord(c, f.record, func(ctx context.Context, rec record) error {
		reader := new(decisions.Reader)
		delivers := func(d replay.Recorded) bool { return d.Action == string(policy.ActionDeliver) && d.Gap == "" }
		library := replay.NewLibrary(rec.archives)
		var err error
		answer, err = replay.WhoCould(ctx, f.ask, decided(rec.events, reader, time.Time{}, delivers), func() (replay.Base, error) {
			rev, err := a.asked(ctx, f, rec, reader, library)
			return replay.Base{Active: rev, Secrets: secretFacts(reader)}, err
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("ask who could: %w", err)
	}
	return a.print(answer, func(w io.Writer) error { return accessText(w, answer) })
}

// asked is the revision that the command asks.
func (a *app) asked(ctx context.Context, f accessFlags, rec record, reader *decisions.Reader, library *replay.Library) (*policy.Revision, error) {
	switch {
	case f.candidate != "":
		return openBundle(ctx, "--candidate", f.candidate)
	case f.revision == "":
		return library.Revision(ctx, reader.Active().Digest)
	}
	name := f.revision
	if rec.conn != nil {
		var err error
		if name, err = fullDigest(ctx, rec.conn, name); err != nil {
			return nil, err
		}
	}
	var digest event.Digest
	if err := digest.UnmarshalText([]byte(name)); err != nil {
		return nil, usage("--revision: %q is not a whole digest: with --export it has 64 hexadecimal digits", name)
	}
	return library.Revision(ctx, digest)
}

func accessText(w io.Writer, answer replay.Access) error {
	p := &printer{w: w}
	p.line("revision %.12s: %d principals, %d secrets, %d pairs denied", answer.Revision, answer.Principals, answer.Secrets, answer.Denied)
	for _, r := range answer.Rows {
		what := fmt.Sprintf("%s (class %s)", r.Secret, r.Class)
		if r.Made {
			what += ", which nobody has put"
		}
		p.line("\n%s  %s  %s", r.Decision, pathOf(r.Principal), what)
		p.line("  %s", r.Context)
		switch r.Decision {
		case string(policy.Permit):
			p.line("  %s\n  under: %s", r.Cause, names(r.Obligations))
		case replay.Inconclusive:
			p.line("  it reads %s, which was not supposed", strings.Join(r.Lacks, ", "))
		default:
			p.line("  it would be asked for: %s", names(r.Requires))
		}
	}
	p.line("\nSupposed:")
	for _, s := range answer.Assumed {
		p.lines(indent(show.Wrap(s, show.Width-4)))
	}
	return p.err
}

// indent makes an entry of a list.
func indent(text string) string { return "  - " + strings.ReplaceAll(text, "\n", "\n    ") }

// names are the parts of obligations or requirements, with their parameters.
func names(v any) string {
	text, err := json.Marshal(v)
	if err != nil || string(text) == "{}" {
		return "nothing"
	}
	return string(text)
}
