package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/broker/devserver"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/cmd/bulla/internal/story"
)

// demoTimeout is how long the demo may take, unless --timeout says something else.
const demoTimeout = time.Minute

func newDemoCommand(a *app) *cobra.Command {
	var tpm, level string
	c := &cobra.Command{
		Use: "demo [flags]", Short: "See the whole story in a minute",
		Long: "Starts a development broker in a temporary directory, plays its clients, and shows what Bulla does:\n" +
			"a permit, a denial, a step-up, attestation, delivery, receipt, uses that are counted, a key that\n" +
			"never leaves, a secret split among custodians, revocation, and a log that proves itself.\n" +
			" Each step is real and checked: the exit code is 0 only if every one held. It needs no\n" +
			"privileges and leaves nothing behind. With swtpm it attests by a software TPM.",
		Example: "  bulla demo\n  bulla demo -o json",
		Args:    argument(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error { return a.demo(c.Context(), tpm, level) },
	}
	c.Flags().StringVar(&tpm, "tpm", string(devserver.TPMAuto), "software TPM: auto, on, or off (a development device)")
	completeFlag(c, "tpm", "auto", "on", "off")
	c.Flags().StringVar(&level, "log-level", "error", "what the broker logs to stderr: "+strings.Join(logLevels(), ", "))
	completeFlag(c, "log-level", logLevels()...)
	return c
}

func (a *app) demo(ctx context.Context, tpm, level string) error {
	log, err := a.logger(level)
	if err != nil {
		return err
	}
	mode, err := tpmMode(tpm)
	if err != nil {
		return err
	}
	limit := demoTimeout
	if a.timeoutSet {
		limit = a.timeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errTimeout)
	defer cancel()
	a.holdsSecrets()
	begin := time.Now()
	tell := &narrator{w: a.stdout}
	cfg := story.Config{TPM: mode, Product: product(), Log: log, Export: exportTo}
	if !a.json() {
		cfg.Say = tell.step
	}
	steps := story.Tell(ctx, cfg)
	if a.json() {
		if err := show.JSON(a.stdout, demoAnswer{steps}); err != nil {
			return err
		}
	} else if err := tell.end(story.Held(steps), time.Since(begin)); err != nil {
		return err
	}
	if !story.Held(steps) {
		return &reported{exitFailed}
	}
	return nil
}

// demoAnswer is the answer of `bulla demo -o json`.
type demoAnswer struct {
	Steps []story.Step `json:"steps"`
}

// exportTo writes the log of the broker behind conn as `bulla audit export` does.
func exportTo(ctx context.Context, conn *grpc.ClientConn, dir string) error {
	stream, err := bullav1.NewAuditClient(conn).Export(ctx, &bullav1.ExportRequest{})
	if err != nil {
		return err
	}
	_, _, err = receiveExport(ctx, stream, exportTarget{out: dir, revisions: revisionsOf(fetched(conn))}, func() {}, nil)
	return err
}

// narrator puts the steps on a terminal as they come.
type narrator struct {
	w   io.Writer
	err error
}

func (n *narrator) printf(format string, args ...any) {
	if n.err == nil {
		_, n.err = fmt.Fprintf(n.w, format, args...)
	}
}

// step prints a step and what it showed, wrapped.
func (n *narrator) step(s story.Step) {
	mark := "ok    "
	if !s.OK {
		mark = "FAILED"
	}
	n.printf("%s  %s\n", mark, s.Name)
	const width = show.Width - 8 // the indentation
	for _, line := range wrap(show.Text(s.Detail), width) {
		n.printf("        %s\n", line)
	}
}

// end prints the verdict.
func (n *narrator) end(held bool, took time.Duration) error {
	if held {
		n.printf("\nEvery step held, in %s. Nothing of it is left on this machine.\n"+
			"Next: `bulla dev` starts such a broker to play with.\n", took.Round(100*time.Millisecond))
	} else {
		n.printf("\nNOT every step held. `bulla demo --log-level debug` shows the broker's log.\n")
	}
	if n.err != nil {
		return errors.Join(errors.New("write the story"), n.err)
	}
	return nil
}

// wrap breaks a line between words.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
