package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
)

// eraseFlags say what is erased.
type eraseFlags struct {
	subject, reason string
	dryRun          bool
}

func newAuditEraseCommand(a *app) *cobra.Command {
	in := new(eraseFlags)
	c := &cobra.Command{
		Use: "erase --subject SPIFFE_ID --reason TEXT [--dry-run]", Short: "Destroy what the record tells of a principal",
		Long: "Destroys the keys and salts of everything that the record tells of a principal: deliveries, uses,\n" +
			"denials, attestations. The ids and final states of its sessions stay, and the log still proves that\n" +
			"there was an event at each place. It can't be undone, except from a backup that was made before.\n\n" +
			"It is refused as a whole while a session of the principal is live, or a legal hold covers it: see\n" +
			"`bulla audit hold`. --dry-run says what would go, and what has to stay.",
		Example: "  bulla audit erase --subject spiffe://dev.bulla.test/workload --dry-run\n" +
			"  bulla audit erase --subject spiffe://dev.bulla.test/workload --reason \"request 17\"",
		Args: argument(), ValidArgsFunction: cobra.NoFileCompletions, DisableFlagsInUseLine: true,
		RunE: func(c *cobra.Command, _ []string) error { return a.erase(c, in) },
	}
	c.Flags().StringVar(&in.subject, "subject", "", "SPIFFE ID of the principal (required)")
	c.Flags().StringVar(&in.reason, "reason", "", "why, for the record (required)")
	c.Flags().BoolVar(&in.dryRun, "dry-run", false, "only say what would go")
	a.addIdentity(c)
	return c
}

// eraseAnswer is the answer of `audit erase`.
type eraseAnswer struct {
	DryRun   bool     `json:"dry_run"`
	Erased   bool     `json:"erased"`
	Subject  string   `json:"subject"`
	Events   int64    `json:"events"`
	First    int64    `json:"first"`
	Last     int64    `json:"last"`
	Sessions int64    `json:"sessions"`
	Keys     int64    `json:"keys"`
	By       []int64  `json:"by"`   // indexes of the events that say so
	Kept     []string `json:"kept"` // what has to stay, and why
}

func (a *app) erase(c *cobra.Command, in *eraseFlags) error {
	if in.subject == "" {
		return usage("--subject is missing: name the SPIFFE ID of the principal")
	}
	if err := checkPrincipal("--subject", in.subject); err != nil {
		return err
	}
	if !in.dryRun {
		if err := checkReason(in.reason); err != nil {
			return err
		}
	}
	var found *bullav1.EraseReply
	err := a.withStream(c, a.timeout, func(ctx context.Context, conn *grpc.ClientConn, alive func()) error {
		stream, err := bullav1.NewErasuresClient(conn).Erase(ctx, &bullav1.EraseRequest{Subject: in.subject, Reason: in.reason, DryRun: in.dryRun})
		if err != nil {
			return err
		}
		progress := show.NewProgress(a.stderr, isTerminal(a.stderr), "looked at")
		defer progress.Clear()
		for {
			reply, err := stream.Recv()
			if err != nil { // io.EOF as well: the report did not come
				return err
			}
			alive()
			progress.Set(reply.GetLooked(), reply.GetOf())
			if reply.GetReport() {
				found = reply
				return nil
			}
		}
	})
	if err != nil {
		return fmt.Errorf("erase what the record tells of %s: %w", in.subject, err)
	}
	answer := eraseAnswer{
		in.dryRun, len(found.GetBy()) > 0, in.subject, found.GetEvents(), found.GetFirst(), found.GetLast(), found.GetSessions(), found.GetKeys(),
		append([]int64{}, found.GetBy()...), append([]string{}, found.GetKept()...),
	}
	if err := a.print(answer, func(w io.Writer) error { return printErased(w, answer) }); err != nil {
		return err
	}
	if len(answer.Kept) > 0 && !in.dryRun {
		return &reported{exitDenied}
	}
	return nil
}

func printErased(w io.Writer, answer eraseAnswer) error {
	for _, k := range answer.Kept {
		if _, err := fmt.Fprintln(w, show.Lines("has to stay: "+k)); err != nil {
			return err
		}
	}
	var text string
	counts := fmt.Sprintf("%d events, from %d to %d, with %d sessions, under %d keys", answer.Events, answer.First, answer.Last, answer.Sessions, answer.Keys)
	switch {
	case answer.DryRun && len(answer.Kept) == 0 && answer.Events > 0:
		text = "would erase " + counts
	case answer.DryRun && answer.Events > 0:
		text = "could be erased otherwise: " + counts
	case len(answer.Kept) > 0 && answer.Erased: // somebody came between
		text = "erased " + counts + ", but not the rest"
	case len(answer.Kept) > 0:
		text = "NOTHING was erased: it goes as a whole, or stays"
	case answer.Events == 0:
		text = "the record tells nothing of " + answer.Subject + " that can be erased"
	default:
		text = "erased " + counts
	}
	_, err := fmt.Fprintln(w, show.Text(text))
	return err
}

func newAuditHoldCommand(a *app) *cobra.Command {
	return group("hold", "Keep what the record tells from being erased",
		"A legal hold keeps everything, or what is about a principal or a secret, from being erased by anybody,\n"+
			"and from the retention. Placing and releasing one are events.",
		"  bulla audit hold add --subject spiffe://dev.bulla.test/workload --reason \"case 12\"\n  bulla audit hold list",
		newAuditHoldChange(a, true), newAuditHoldChange(a, false), newAuditHoldListCommand(a))
}

// holdFlags name what a hold is on.
type holdFlags struct {
	subject, secret, reason string
	everything              bool
}

func (in *holdFlags) request() (*bullav1.HoldRequest, error) {
	out, named := &bullav1.HoldRequest{Reason: in.reason}, 0
	if in.subject != "" {
		named, out.Selector, out.Value = named+1, "principal", in.subject
	}
	if in.secret != "" {
		named, out.Selector, out.Value = named+1, "secret", in.secret
	}
	if in.everything {
		named, out.Selector = named+1, "everything"
	}
	if named != 1 {
		return nil, usage("name exactly one of: --subject, --secret, --everything")
	}
	return out, cmp.Or(checkPrincipal("--subject", in.subject), checkSecret("--secret", in.secret), checkReason(in.reason))
}

func newAuditHoldChange(a *app, add bool) *cobra.Command {
	in := new(holdFlags)
	use, short, example := "release", "End a legal hold", "  bulla audit hold release --everything --reason \"case 12 is closed\""
	if add {
		use, short, example = "add", "Place a legal hold", "  bulla audit hold add --secret demo/db --reason \"case 12\""
	}
	c := &cobra.Command{
		Use: use + " (--subject ID | --secret NAME | --everything) --reason TEXT", Short: short, Example: example,
		Long: short + " on a principal, on a secret, or on everything. There is one hold on a thing, or none.",
		Args: argument(), ValidArgsFunction: cobra.NoFileCompletions, DisableFlagsInUseLine: true,
		RunE: func(c *cobra.Command, _ []string) error { return a.changeHold(c, in, add) },
	}
	c.Flags().StringVar(&in.subject, "subject", "", "what is about this SPIFFE ID")
	c.Flags().StringVar(&in.secret, "secret", "", "what is about this secret")
	c.Flags().BoolVar(&in.everything, "everything", false, "the whole record")
	c.Flags().StringVar(&in.reason, "reason", "", "why, for the record (required)")
	a.addIdentity(c)
	return c
}

// holdJSON is a legal hold.
type holdJSON struct {
	Selector string `json:"selector"`
	Value    string `json:"value"`
	Reason   string `json:"reason"`
	PlacedAt string `json:"placed_at"`
	PlacedBy string `json:"placed_by"`
}

func holdOf(h *bullav1.Hold) holdJSON {
	return holdJSON{h.GetSelector(), h.GetValue(), h.GetReason(), moment(h.GetPlacedAt()), h.GetPlacedBy()}
}

func (a *app) changeHold(c *cobra.Command, in *holdFlags, add bool) error {
	request, err := in.request()
	if err != nil {
		return err
	}
	var changed *bullav1.Hold
	err = a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		if add {
			changed, err = bullav1.NewErasuresClient(conn).PlaceHold(ctx, request)
		} else {
			changed, err = bullav1.NewErasuresClient(conn).ReleaseHold(ctx, request)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("change a legal hold: %w", err)
	}
	return a.print(holdOf(changed), func(w io.Writer) error {
		verb := "released: "
		if add {
			verb = "held: "
		}
		_, err := fmt.Fprintln(w, verb+show.Text(strings.TrimSpace(changed.GetSelector()+" "+changed.GetValue())))
		return err
	})
}

func newAuditHoldListCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "list", Short: "List the legal holds", Long: "Lists the legal holds that are in force.",
		Example: "  bulla audit hold list", Args: argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error { return a.listHolds(c) },
	}
	a.addIdentity(c)
	return c
}

func (a *app) listHolds(c *cobra.Command) error {
	holds, rows := []holdJSON{}, [][]string{}
	err := a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) error {
		for after := ""; ; {
			page, err := bullav1.NewErasuresClient(conn).ListHolds(ctx, &bullav1.ListHoldsRequest{After: after})
			if err != nil {
				return err
			}
			for _, h := range page.GetHolds() {
				holds = append(holds, holdOf(h))
				rows = append(rows, []string{h.GetSelector(), pathOf(h.GetValue()), minute(h.GetPlacedAt()), pathOf(h.GetPlacedBy()), h.GetReason()})
			}
			if page.GetNext() == "" {
				return nil
			}
			if page.GetNext() <= after {
				return errors.New("the broker's list does not go forward")
			}
			after = page.GetNext()
		}
	})
	if err != nil {
		return fmt.Errorf("list the legal holds: %w", err)
	}
	return a.print(holds, func(w io.Writer) error {
		return holdTable(w, rows)
	})
}

// holdTable fits a terminal: 10 + 18 + 16 + 11 + 17 and four gaps of two are 80.
func holdTable(w io.Writer, rows [][]string) error {
	columns := []show.Column{{Title: "ON", Max: 10}, {Title: "VALUE", Max: 18}, {Title: "SINCE (UTC)", Max: 16}, {Title: "BY", Max: 11}, {Title: "REASON", Max: 17}}
	return show.Table(w, columns, rows)
}
