package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/policy"
)

// shadowJSON is a shadow in JSON.
type shadowJSON struct {
	Digest        string          `json:"digest"`
	State         string          `json:"state"`
	Reason        string          `json:"reason"`
	StartedAt     string          `json:"started_at"`
	Until         string          `json:"until"`
	CPUPercent    float64         `json:"cpu_percent"`
	By            string          `json:"by"`
	CountingSince string          `json:"counting_since"`
	Seen          uint64          `json:"seen"`
	Compared      uint64          `json:"compared"`
	Dropped       uint64          `json:"dropped"`
	Differed      uint64          `json:"differed"`
	Rows          []shadowRowJSON `json:"rows"`
	Other         uint64          `json:"other"`
}

type shadowRowJSON struct {
	Principal string `json:"principal"`
	Action    string `json:"action"`
	Secret    string `json:"secret"`
	From      string `json:"from"`
	To        string `json:"to"`
	Count     uint64 `json:"count"`
}

func newPolicyShadowCommand(a *app) *cobra.Command {
	return group("shadow", "Let a revision judge live traffic without effect",
		"A shadow judges a share of what the active revision decides, beside it and without effect, and counts where it\n"+
			"would decide otherwise. It takes no more than its share of a processor: what it can't follow is dropped.",
		"  bulla policy shadow start policy/ --for 24h\n  bulla policy shadow status\n  bulla policy shadow stop",
		newPolicyShadowStartCommand(a), newPolicyShadowStatusCommand(a), newPolicyShadowStopCommand(a))
}

func newPolicyShadowStartCommand(a *app) *cobra.Command {
	var life time.Duration
	var cpu, keyFile string
	c := &cobra.Command{
		Use: "start DIR|DIGEST [flags]", Short: "Start a shadow",
		Long: "Starts a shadow of a staged or an earlier revision; a directory is staged first. It ends by itself, also when\n" +
			"another revision is activated, and goes on after a restart. One shadow runs at a time.",
		Example: "  bulla policy shadow start policy/ --for 24h --cpu 5%", Args: argument("DIGEST"), ValidArgsFunction: completeDir,
		RunE: func(c *cobra.Command, args []string) error {
			share, err := strconv.ParseFloat(strings.TrimSuffix(cpu, "%"), 64)
			most := float64(policy.MaxShadowCPU) / 10
			if err != nil || !(share >= 0.1 && share <= most) {
				return usage("--cpu is %q: want 0.1%% to %g%%", cpu, most)
			}
			if life < time.Second || life/time.Second > math.MaxUint32 {
				return usage("--for is %s: want a second or more", life)
			}
			return a.startShadow(c, args[0], keyFile, &bullav1.StartShadowRequest{Seconds: uint32(life / time.Second), CpuMilli: uint32(math.Round(share * 10))})
		},
	}
	flags := c.Flags()
	flags.DurationVar(&life, "for", 24*time.Hour, "how long it runs, 720h at most")
	flags.StringVar(&cpu, "cpu", "5%", "share of one processor that it may take")
	flags.StringVar(&keyFile, "sign-key", "", "sign the directory with the private key in this file (PEM)")
	a.addIdentity(c)
	return c
}

func (a *app) startShadow(c *cobra.Command, name, keyFile string, in *bullav1.StartShadowRequest) error {
	var stage *bullav1.StageRequest
	if _, err := os.Stat(name); err == nil {
		stage = &bullav1.StageRequest{Note: "for a shadow", Only: true}
		if stage.Archive, stage.Signature, err = readBundle(name); err != nil {
			return err
		}
		if keyFile != "" {
			if stage.Signature, _, err = signBundle(stage.GetArchive(), keyFile); err != nil {
				return err
			}
		}
	} else if err := checkDigest(name); err != nil {
		return err
	}
	a.waitsForChecks()
	var r *bullav1.Shadow
	err := a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		revisions := bullav1.NewRevisionsClient(conn)
		if stage != nil {
			sum := policy.ArchiveDigest(stage.GetArchive())
			in.Digest = hex.EncodeToString(sum[:])
			if _, err := revisions.Stage(ctx, stage); err != nil {
				return err
			}
		} else if in.Digest, err = fullDigest(ctx, conn, name); err != nil {
			return err
		}
		r, err = revisions.StartShadow(ctx, in)
		return err
	})
	if err != nil {
		return fmt.Errorf("start a shadow of %s: %w", name, err)
	}
	return a.printShadow(r)
}

func newPolicyShadowStatusCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "status [flags]", Short: "Show what the shadow would have decided otherwise",
		Long: "Shows the shadow that runs, or the last one, and a table of the differences: who, what, and from which outcome\n" +
			"to which. Numbers are those of this process of the broker; the record has some examples, and the sums at the end.",
		Example: "  bulla policy shadow status\n  bulla policy shadow status -o json | jq '.rows[] | select(.to==\"PERMIT\")'",
		Args:    argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.askShadow(c, func(ctx context.Context, r bullav1.RevisionsClient) (*bullav1.Shadow, error) {
				return r.GetShadow(ctx, &bullav1.GetShadowRequest{})
			})
		},
	}
	a.addIdentity(c)
	return c
}

func newPolicyShadowStopCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "stop [flags]", Short: "End the shadow that runs",
		Long: "Ends the shadow, and records what it saw.", Example: "  bulla policy shadow stop",
		Args: argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.askShadow(c, func(ctx context.Context, r bullav1.RevisionsClient) (*bullav1.Shadow, error) {
				return r.StopShadow(ctx, &bullav1.StopShadowRequest{})
			})
		},
	}
	a.addIdentity(c)
	return c
}

func (a *app) askShadow(c *cobra.Command, ask func(context.Context, bullav1.RevisionsClient) (*bullav1.Shadow, error)) error {
	var r *bullav1.Shadow
	err := a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		r, err = ask(ctx, bullav1.NewRevisionsClient(conn))
		return err
	})
	if err != nil {
		return fmt.Errorf("shadow: %w", err)
	}
	return a.printShadow(r)
}

func (a *app) printShadow(r *bullav1.Shadow) error {
	answer := shadowJSON{
		r.GetDigest(), r.GetState(), r.GetReason(), moment(r.GetStartedAt()), moment(r.GetUntil()), float64(r.GetCpuMilli()) / 10, r.GetBy(),
		moment(r.GetCountingSince()), r.GetSeen(), r.GetCompared(), r.GetDropped(), r.GetDiffered(),
		[]shadowRowJSON{},
		r.GetOther(),
	}
	var rows [][]string
	for _, row := range r.GetRows() {
		answer.Rows = append(answer.Rows, shadowRowJSON{row.GetPrincipal(), row.GetAction(), row.GetSecret(), row.GetFrom(), row.GetTo(), row.GetCount()})
		what := row.GetAction()
		if row.GetSecret() != "" {
			what += " " + row.GetSecret()
		}
		rows = append(rows, []string{strconv.FormatUint(row.GetCount(), 10), row.GetPrincipal(), what, row.GetFrom() + " → " + row.GetTo()})
	}
	return a.print(answer, func(w io.Writer) error {
		if r.GetState() == "none" {
			_, err := fmt.Fprintln(w, "there was no shadow so far")
			return err
		}
		state := r.GetState()
		if r.GetReason() != "" {
			state += ": " + r.GetReason()
		}
		err := show.Fields(w, []show.Field{
			{Name: "shadow", Value: r.GetDigest()},
			{Name: "state", Value: state},
			{Name: "by", Value: r.GetBy()},
			{Name: "started", Value: second(r.GetStartedAt())},
			{Name: "until", Value: second(r.GetUntil())},
			{Name: "may take", Value: fmt.Sprintf("%g %% of one processor", answer.CPUPercent)},
			{Name: "counting since", Value: second(r.GetCountingSince())},
			{Name: "decisions", Value: fmt.Sprintf("%d seen, %d compared, %d dropped, %d differ", r.GetSeen(), r.GetCompared(), r.GetDropped(), r.GetDiffered())},
		})
		if err != nil || len(rows) == 0 {
			return err
		}
		_, _ = io.WriteString(w, "\n")
		if err := show.Table(w, []show.Column{{Title: "COUNT"}, {Title: "PRINCIPAL", Max: 24}, {Title: "ACTION", Max: 22}, {Title: "OUTCOME", Max: 24}}, rows); err != nil {
			return err
		}
		if r.GetOther() > 0 {
			_, err = fmt.Fprintf(w, "and %d others that found no row\n", r.GetOther())
		}
		return err
	})
}
