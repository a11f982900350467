package main

import (
	"log/slog"
	"strings"

	"github.com/spf13/cobra"
)

// logLevels are the values of --log-level.
func logLevels() []string { return []string{"debug", "info", "warn", "error"} }

// addLogLevel gives a command that runs a broker the flag of its log.
func (a *app) addLogLevel(c *cobra.Command, level *string) {
	c.Flags().StringVar(level, "log-level", "info", "what is logged to stderr: "+strings.Join(logLevels(), ", "))
	completeFlag(c, "log-level", logLevels()...)
}

// logger writes to stderr, as text.
func (a *app) logger(level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, usage("--log-level is %q: use one of %s", level, strings.Join(logLevels(), ", "))
	}
	return slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: l})), nil
}

// completeFlag completes the values of a flag.
func completeFlag(c *cobra.Command, flag string, values ...string) {
	if err := c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic("bulla: internal error: " + err.Error()) // the flag is not there, or registered twice
	}
}

// product is what the ledger's first event says of this program.
func product() string { return "bulla " + thisBuild().Version }
