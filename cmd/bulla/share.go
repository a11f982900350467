package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/envelope/split"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/secret"
)

func newShareCommand(a *app) *cobra.Command {
	return group("share", "Answer rounds of split secrets and approvals",
		"A secret may need other people before it can be read: custodians who hold shares of it, or approvers. Whoever\n"+
			"asks for it opens a round, which waits for them. `bulla get` waits meanwhile.\n\n"+
			"Before an answer leaves, what the requester signed is checked by the trust bundle of this machine, without\n"+
			"believing the broker; it goes to the requester's key and is good for that one request.",
		"  bulla share list\n  bulla share approve ROUND\n  bulla share reject ROUND --reason \"not announced\"",
		newShareListCommand(a), newShareApproveCommand(a), newShareRejectCommand(a), newShareCombineCommand(a))
}

// roundJSON is a round in JSON.
type roundJSON struct {
	ID        string         `json:"id"`
	Kind      string         `json:"kind"`
	State     string         `json:"state"`
	Requester string         `json:"requester"`
	Secret    string         `json:"secret"`
	Version   secret.Version `json:"version"`
	Approvals uint32         `json:"approvals"`
	Needed    uint32         `json:"needed"`
	Role      *string        `json:"role"`    // null: there are holders
	Holders   []string       `json:"holders"` // null: there is a role
	ShareFile bool           `json:"share_file"`
	OpenedAt  string         `json:"opened_at"`
	ExpiresAt string         `json:"expires_at"`
	Answered  *string        `json:"answered"`
}

func newRoundJSON(r client.Round) roundJSON {
	return roundJSON{
		ID: r.ID, Kind: r.Kind, State: r.State, Requester: r.Requester, Secret: r.Secret, Version: r.Version, Approvals: r.Approvals, Needed: r.Needed,
		Role: orNull(r.Role), Holders: r.Holders, ShareFile: r.Source, OpenedAt: r.Opened.Format(time.RFC3339Nano),
		ExpiresAt: r.Expires.Format(time.RFC3339Nano), Answered: orNull(r.Answered),
	}
}

func newShareListCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "list [flags]", Short: "List the rounds that wait for you, the newest first",
		Long: "Lists the rounds that wait for you as holder of a share or as approver, and not for others. With -o json:\n" +
			"{\"rounds\": [...]}, each with id, kind (split or approval), state, requester, secret, version, approvals,\n" +
			"needed, role, holders, share_file (true: approve with --share), opened_at, expires_at and answered (null,\n" +
			"approved or rejected).",
		Example: "  bulla share list\n  bulla share list -o json | jq -r '.rounds[].id'",
		Args:    argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error { return a.listRounds(c) },
	}
	a.addIdentity(c)
	return c
}

func (a *app) listRounds(c *cobra.Command) error {
	var rounds []client.Round
	err := a.withClient(c, func(ctx context.Context, broker *client.Client) (err error) {
		rounds, err = broker.Rounds(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("list rounds: %w", err)
	}
	answer := struct {
		Rounds []roundJSON `json:"rounds"`
	}{[]roundJSON{}}
	var rows [][]string
	for _, r := range rounds {
		answer.Rounds = append(answer.Rounds, newRoundJSON(r))
		rows = append(rows, roundRow(r))
	}
	return a.print(answer, func(w io.Writer) error {
		return roundTable(w, rows)
	})
}

// roundRow is a round in a table: what it has, and what the caller said.
func roundRow(r client.Round) []string {
	state := fmt.Sprintf("%d/%d approvals", r.Approvals, r.Needed)
	switch {
	case r.Answered != "":
		state = fmt.Sprintf("%d/%d, %s", r.Approvals, r.Needed, r.Answered)
	case r.Kind == "split":
		state = fmt.Sprintf("%d/%d shares", r.Approvals, r.Needed)
	}
	return []string{r.ID, pathOf(r.Requester), fmt.Sprintf("%s@%d", r.Secret, r.Version), state}
}

// roundTable fits a terminal with whole ids of rounds: 36 + 10 + 13 + 15 and three gaps of two are 80.
func roundTable(w io.Writer, rows [][]string) error {
	return show.Table(w, []show.Column{{Title: "ROUND", Max: 36}, {Title: "FOR", Max: 10}, {Title: "SECRET", Max: 13}, {Title: "HAS", Max: 15}}, rows)
}

func newShareApproveCommand(a *app) *cobra.Command {
	var path string
	c := &cobra.Command{
		Use: "approve ROUND [flags]", Short: "Approve a request, with your share where it is split",
		Long: "Checks what the requester signed, gets your share, seals it to the requester's key and signs an approval that\n" +
			"is good for this one request. The share of a secret that was split before the broker got it comes from the\n" +
			"file that you were given. Prints the round as `bulla share list` does.",
		Example: "  bulla share approve 0190a5d2-7a3e-7c01-8f6e-2b1f0c9d4e55\n  bulla share approve ROUND --share custodian-1.share",
		Args:    argument("ROUND"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			a.holdsSecrets()
			var file *split.File
			if c.Flags().Changed("share") {
				var err error
				if file, err = readShare("--share", path); err != nil {
					return err
				}
				defer file.Share.Zero()
			}
			return a.answerRound(c, args[0], func(ctx context.Context, broker *client.Client) (client.Round, error) {
				return broker.Approve(ctx, args[0], file)
			})
		},
	}
	c.Flags().StringVar(&path, "share", "", "file of your share, as bulla secret put --split wrote it")
	a.addIdentity(c)
	return c
}

// readShare reads a share file, and checks the share against the manifest in it.
func readShare(flag, path string) (*split.File, error) {
	text, err := readFile(flag, path, split.MaxFile)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	file, err := split.ParseFile(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return file, nil
}

func newShareRejectCommand(a *app) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "reject ROUND --reason TEXT", Short: "Refuse to take part",
		Long: "Says no to a request; the requester and the record get the reason. One rejection ends a round of approvals.\n" +
			"A split round ends when too few holders are left.",
		Example: "  bulla share reject ROUND --reason \"not announced\"",
		Args:    argument("ROUND"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			if err := checkReason(reason); err != nil {
				return err
			}
			return a.answerRound(c, args[0], func(ctx context.Context, broker *client.Client) (client.Round, error) {
				return broker.Reject(ctx, args[0], reason)
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why (it goes into the record)")
	a.addIdentity(c)
	return c
}

// answerRound gives an answer and prints the round.
func (a *app) answerRound(c *cobra.Command, id string, answer func(context.Context, *client.Client) (client.Round, error)) error {
	if _, err := event.ParseID(id); err != nil {
		return usage("%q is not the id of a round: `bulla share list` shows them", id)
	}
	var r client.Round
	err := a.withClient(c, func(ctx context.Context, broker *client.Client) (err error) {
		r, err = answer(ctx, broker)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s round %s: %w", c.Name(), id, err)
	}
	return a.print(newRoundJSON(r), func(w io.Writer) error {
		return show.Fields(w, []show.Field{
			{Name: "round", Value: r.ID},
			{Name: "kind", Value: r.Kind},
			{Name: "requester", Value: r.Requester},
			{Name: "secret", Value: fmt.Sprintf("%s, version %d", r.Secret, r.Version)},
			{Name: "you have", Value: r.Answered},
			{Name: "state", Value: fmt.Sprintf("%s, %d of %d approvals", r.State, r.Approvals, r.Needed)},
			{Name: "expires", Value: r.Expires.Format(time.RFC3339)},
		})
	})
}

// withClient runs one exchange with the broker that the instance key signs, within --timeout.
func (a *app) withClient(c *cobra.Command, f func(ctx context.Context, broker *client.Client) error) error {
	ctx, cancel := context.WithTimeoutCause(c.Context(), a.timeout, errTimeout)
	defer cancel()
	broker, err := a.connect(ctx, true)
	if err != nil {
		return err
	}
	defer broker.Close()
	return f(ctx, broker)
}

func newShareCombineCommand(a *app) *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "combine PACKAGE SHARE... [flags]", Short: "Recover a secret from its share files, without a broker",
		Long: "Combines share files of a secret that `bulla secret put --split` has split, and prints the value, and nothing\n" +
			"else, to stdout (with a newline only on a terminal). It is for the day when there is no broker: it asks\n" +
			"nobody, and nothing records it. A share that does not fit is named by its holder.",
		Example: "  bulla share combine shares/demo-root.split custodian-1.share custodian-3.share --out root.key",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) < 3 {
				return usage("%s needs a package and at least two share files: %s", c.CommandPath(), c.UseLine())
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return a.combine(args[0], args[1:], out) },
	}
	c.Flags().StringVar(&out, "out", "", "write the value to this file (mode 0600) instead of stdout")
	return c
}

func (a *app) combine(pkg string, paths []string, out string) error {
	if out != "" {
		if err := checkOut("--out", out); err != nil {
			return err
		}
	}
	a.holdsSecrets()
	data, err := readFile("PACKAGE", pkg, int64(split.MaxPackage))
	if err != nil {
		return err
	}
	p, err := split.ParsePackage(data)
	if err != nil {
		return fmt.Errorf("%s: %w", pkg, err)
	}
	shares := map[string]secret.Bytes{}
	for _, path := range paths {
		file, err := readShare("SHARE", path)
		if err != nil {
			return err
		}
		defer file.Share.Zero()
		if file.Digest() != p.Digest {
			return fmt.Errorf("%s: %w", path, &split.ShareError{Holder: file.Holder, Why: "it belongs to another manifest than the package"})
		}
		if _, twice := shares[file.Holder]; twice {
			return fmt.Errorf("%s: %w", path, &split.ShareError{Holder: file.Holder, Why: "it was named before: one holder counts once"})
		}
		shares[file.Holder] = file.Share
	}
	key, err := p.Manifest.Combine(shares)
	if err != nil {
		return fmt.Errorf("combine %s: %w", p.Manifest.Secret, err)
	}
	defer key.Zero()
	value, err := p.Open(key)
	if err != nil {
		return err
	}
	defer value.Zero()
	d := struct {
		Name  string `json:"name"`
		Value []byte `json:"value"`
		Out   string `json:"out,omitempty"`
	}{p.Manifest.Secret, value.Expose(), out}
	if out != "" {
		d.Value = nil
	}
	return a.handOver(d, value.Expose(), getFlags{out: out})
}

// waiting says on stderr how custodians stand for whom the command waits.
func (a *app) waiting(r client.RoundProgress) {
	who := "approvals"
	if r.Kind == "split" {
		who = "shares"
	}
	fmt.Fprintf(a.stderr, "bulla: round %s has %d of %d %s, and ends at %s\n", r.ID, r.Approvals, r.Needed, who, r.Expires.Format(time.RFC3339))
	for _, holder := range r.Bad {
		a.warn("the share of %s does not fit, and was not used", holder)
	}
}
