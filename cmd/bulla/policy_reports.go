package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
)

// keptJSON is a report that was kept, in JSON.
type keptJSON struct {
	By       string `json:"by"`
	At       string `json:"at"`
	Proposal bool   `json:"proposal"`
	whatIfAnswer
}

// showReports shows the reports that a revision was proposed and activated on.
func (a *app) showReports(c *cobra.Command, digest string) error {
	var reply *bullav1.GetReportsReply
	err := a.withBroker(c, func(ctx context.Context, conn *grpc.ClientConn) error {
		r, _, err := getRevision(ctx, conn, digest)
		if err != nil {
			return err
		}
		reply, err = bullav1.NewRevisionsClient(conn).GetReports(ctx, &bullav1.GetReportsRequest{Digest: r.GetRevision().GetDigest()})
		return err
	})
	if err != nil {
		return fmt.Errorf("show the reports: %w", err)
	}
	answer := struct {
		Reports []keptJSON `json:"reports"`
	}{[]keptJSON{}}
	for _, k := range reply.GetReports() {
		report, err := keptReport(k)
		if err != nil {
			return fmt.Errorf("show the reports: %w", err)
		}
		opens, pairs := report.Opens()
		answer.Reports = append(answer.Reports, keptJSON{k.GetBy(), moment(k.GetAt()), k.GetProposal(), whatIfAnswer{k.GetDigest(), opens, pairs, report}})
	}
	return a.print(answer, func(w io.Writer) error {
		p := &printer{w: w}
		if len(answer.Reports) == 0 {
			p.line("no report was kept with it")
		}
		for _, k := range answer.Reports {
			what := "activated"
			if k.Proposal {
				what = "proposed"
			}
			p.line("%s by %s at %s on this report:", what, k.By, k.At)
			if p.err == nil {
				p.err = reportText(w, k.whatIfAnswer)
			}
			p.line("")
		}
		return p.err
	})
}
