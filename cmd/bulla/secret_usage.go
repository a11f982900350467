package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/secret"
)

func newSecretUsageCommand(a *app) *cobra.Command {
	var times aboutFlags
	c := &cobra.Command{
		Use: "usage NAME [flags]", Short: "How often a secret is accessed, and by how many",
		Long: "Counts the deliveries of a secret, the principals that got it, and what was done with it, in the last\n" +
			"seven days or since a time. An hour (or a day, beyond 41 days) is counted by its place in the log. Uses\n" +
			"and operations are those of the deliveries that are counted. With -o json all hours are listed.",
		Example: "  bulla secret usage demo/database --since 24h\n  bulla secret usage demo/database -o json | jq .peak",
		Args:    argument("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			if _, err := secret.ParseName(args[0]); err != nil {
				return usage("%v", err)
			}
			window, err := times.request(time.Now())
			if err != nil {
				return err
			}
			return a.secretUsage(c, &bullav1.SecretUsageRequest{Name: args[0], Since: window.GetSince(), Until: window.GetUntil()})
		},
	}
	times.addTimes(c)
	a.addIdentity(c)
	return c
}

type usageSpanJSON struct {
	Start    string `json:"start"`
	Accesses uint64 `json:"accesses"`
}

// usageJSON is the answer of `secret usage`.
type usageJSON struct {
	Name          string          `json:"name"`
	Since         string          `json:"since"`
	Until         string          `json:"until"`
	Accesses      uint64          `json:"accesses"`
	Principals    uint64          `json:"principals"`
	SpanSeconds   uint32          `json:"span_seconds"`
	Spans         []usageSpanJSON `json:"spans"`
	Peak          *usageSpanJSON  `json:"peak"`
	Uses          uint64          `json:"uses"`
	Operations    uint64          `json:"operations"`
	Denials       uint64          `json:"denials"`
	LastAccess    *string         `json:"last_access"`
	LastPrincipal *string         `json:"last_principal"`
	LastUse       *string         `json:"last_use"`
	Notes         []string        `json:"notes"`
	Incomplete    bool            `json:"incomplete"`
}

func newUsageJSON(u *bullav1.SecretUsage) usageJSON {
	out := usageJSON{
		Name: u.GetName(), Since: moment(u.GetSince()), Until: moment(u.GetUntil()), Accesses: u.GetAccesses(), Principals: u.GetPrincipals(),
		SpanSeconds: u.GetSpanSeconds(), Spans: []usageSpanJSON{}, Uses: u.GetUses(), Operations: u.GetOperations(), Denials: u.GetDenials(),
		LastAccess: momentOrNull(u.GetLastAccess()), LastPrincipal: orNull(u.GetLastPrincipal()), LastUse: momentOrNull(u.GetLastUse()),
		Notes: append([]string{}, u.GetNotes()...), Incomplete: u.GetIncomplete(),
	}
	for _, s := range u.GetSpans() {
		out.Spans = append(out.Spans, usageSpanJSON{moment(s.GetStart()), s.GetAccesses()})
	}
	if p := u.GetPeak(); p != nil {
		out.Peak = &usageSpanJSON{moment(p.GetStart()), p.GetAccesses()}
	}
	return out
}

func (a *app) secretUsage(c *cobra.Command, in *bullav1.SecretUsageRequest) error {
	var answer *bullav1.SecretUsage
	err := a.withStream(c, a.timeout, func(ctx context.Context, conn *grpc.ClientConn, alive func()) error {
		stream, err := bullav1.NewQuestionsClient(conn).SecretUsage(ctx, in)
		if err != nil {
			return err
		}
		for answer == nil {
			reply, err := stream.Recv()
			if err != nil { // io.EOF as well: the answer did not come
				return err
			}
			alive()
			answer = reply.GetAnswer()
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("ask how %s is used: %w", in.GetName(), err)
	}
	return a.print(newUsageJSON(answer), func(w io.Writer) error { return printUsage(w, answer) })
}

// shownSpans is how many hours or days the text shows.
const shownSpans = 24

func printUsage(w io.Writer, u *bullav1.SecretUsage) error {
	unit := "hour"
	if u.GetSpanSeconds() > 3600 {
		unit = "day"
	}
	peak := ""
	if p := u.GetPeak(); p != nil {
		peak = fmt.Sprintf("%d in the %s from %s", p.GetAccesses(), unit, minute(p.GetStart()))
	}
	last := second(u.GetLastAccess())
	if p := u.GetLastPrincipal(); p != "" {
		last += ", " + p
	}
	err := show.Fields(w, []show.Field{
		{Name: "secret", Value: u.GetName()},
		{Name: "since", Value: second(u.GetSince())},
		{Name: "until", Value: second(u.GetUntil())},
		{Name: "accesses", Value: strconv.FormatUint(u.GetAccesses(), 10)},
		{Name: "principals", Value: strconv.FormatUint(u.GetPrincipals(), 10)},
		{Name: "peak", Value: peak},
		{Name: "uses", Value: strconv.FormatUint(u.GetUses(), 10)},
		{Name: "operations", Value: strconv.FormatUint(u.GetOperations(), 10)},
		{Name: "denials", Value: strconv.FormatUint(u.GetDenials(), 10)},
		{Name: "last access", Value: last},
		{Name: "last use", Value: second(u.GetLastUse())},
	})
	if err != nil {
		return err
	}
	spans := u.GetSpans()
	var rows [][]string
	for _, s := range spans[max(0, len(spans)-shownSpans):] {
		rows = append(rows, []string{minute(s.GetStart()), strconv.FormatUint(s.GetAccesses(), 10)})
	}
	if len(rows) > 0 {
		fmt.Fprintln(w)
		if err := show.Table(w, []show.Column{{Title: "FROM (UTC)", Max: 16}, {Title: "ACCESSES A " + map[string]string{"hour": "HOUR", "day": "DAY"}[unit], Max: 16}}, rows); err != nil {
			return err
		}
	}
	return printNotes(w, u.GetNotes())
}
