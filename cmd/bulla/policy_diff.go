package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/policy/diff"
)

// changeEntry is one change of data in JSON.
type changeEntry struct {
	Effect string   `json:"effect"`
	File   string   `json:"file"`
	Path   []string `json:"path"`
	Before string   `json:"before"`
	After  string   `json:"after"`
}

type textEntry struct {
	File string `json:"file"`
	Diff string `json:"diff"`
}

func newPolicyDiffCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "diff [A] B", Short: "Show what changes from one revision to another",
		Long: "Compares two revisions, A being the active one unless it is given: Rego as text, data by meaning, and first\n" +
			"what permits more (wider, or unclear). A and B are digests, or directories and .tar.gz files with a bundle.",
		Example: "  bulla policy diff policy/\n  bulla policy diff 3f1c09ab\n  bulla policy diff 3f1c09ab 9b0e77d2 -o json",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 2 {
				return usage("%s takes two revisions at most: %s", c.CommandPath(), c.UseLine())
			}
			return argument("B")(c, args[max(len(args)-1, 0):])
		},
		ValidArgsFunction: completeDir,
		RunE:              func(c *cobra.Command, args []string) error { return a.diffPolicies(c, args) },
	}
	a.addIdentity(c)
	return c
}

// bundleFiles are the files of a bundle and its digest.
type bundleFiles struct {
	digest string
	files  map[string][]byte
}

// localBundle reads a bundle from a path; ok is false where name is a digest.
func localBundle(name string) (b bundleFiles, ok bool, err error) {
	if _, err := os.Stat(name); err != nil {
		return b, false, checkDigest(name)
	}
	archive, _, err := readBundle(name)
	if err != nil {
		return b, true, err
	}
	sum := policy.ArchiveDigest(archive)
	b.digest = hex.EncodeToString(sum[:])
	b.files, err = policy.Unpack(archive)
	return b, true, err
}

func (a *app) diffPolicies(c *cobra.Command, args []string) error {
	if slices.Contains(args, "") { // as of a variable that is not set: the active one would be compared with itself
		return usage("%s: the name of a revision is empty: %s", c.CommandPath(), c.UseLine())
	}
	names := args
	if len(names) == 1 {
		names = []string{"", args[0]}
	}
	sides := make([]bundleFiles, 2)
	var remote []int
	for i, name := range names {
		if name == "" {
			remote = append(remote, i)
			continue
		}
		side, ok, err := localBundle(name)
		if err != nil {
			return err
		}
		if sides[i] = side; !ok {
			remote = append(remote, i)
		}
	}
	if len(remote) > 0 {
		err := a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) error {
			for _, i := range remote {
				reply, files, err := getRevision(ctx, conn, names[i])
				if err != nil {
					return err
				}
				sides[i] = bundleFiles{reply.GetRevision().GetDigest(), files}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("compare policies: %w", err)
		}
	}
	report, err := diff.Compare(sides[0].files, sides[1].files)
	if err != nil {
		return fmt.Errorf("compare policies: %w", err)
	}
	return a.printDiff(sides, report)
}

func (a *app) printDiff(sides []bundleFiles, report diff.Report) error {
	answer := struct {
		Before  string        `json:"before"`
		After   string        `json:"after"`
		Wider   int           `json:"wider"`
		Changes []changeEntry `json:"changes"`
		Texts   []textEntry   `json:"texts"`
	}{sides[0].digest, sides[1].digest, report.Wider(), []changeEntry{}, []textEntry{}}
	for _, c := range report.Changes {
		answer.Changes = append(answer.Changes, changeEntry{string(c.Effect), c.File, c.Path, c.Before, c.After})
	}
	for _, t := range report.Texts {
		answer.Texts = append(answer.Texts, textEntry{t.File, t.Diff})
	}
	return a.print(answer, func(w io.Writer) error {
		if len(report.Changes)+len(report.Texts) == 0 {
			_, err := fmt.Fprintln(w, "no difference")
			return err
		}
		if err := changesText(w, report.Changes); err != nil {
			return err
		}
		for _, t := range report.Texts {
			if _, err := fmt.Fprintf(w, "\n%s\n", show.Lines(strings.TrimSuffix(t.Diff, "\n"))); err != nil {
				return err
			}
		}
		return nil
	})
}

// changesText tells changes of data, one to a line.
func changesText(w io.Writer, changes []diff.Change) error {
	for _, c := range changes {
		path := show.Text(strings.Join(c.Path, " › "))
		var err error
		switch {
		case c.Before == "" && c.After == "true":
			_, err = fmt.Fprintf(w, "%-8s  %s: + %s\n", c.Effect, show.Text(c.File), path)
		case c.Before == "true" && c.After == "":
			_, err = fmt.Fprintf(w, "%-8s  %s: - %s\n", c.Effect, show.Text(c.File), path)
		case c.Before == "":
			_, err = fmt.Fprintf(w, "%-8s  %s: + %s = %s\n", c.Effect, show.Text(c.File), path, show.Text(c.After))
		case c.After == "":
			_, err = fmt.Fprintf(w, "%-8s  %s: - %s = %s\n", c.Effect, show.Text(c.File), path, show.Text(c.Before))
		default:
			_, err = fmt.Fprintf(w, "%-8s  %s: %s: %s → %s\n", c.Effect, show.Text(c.File), path, show.Text(c.Before), show.Text(c.After))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
