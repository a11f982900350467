package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
)

// help prints the help of c. A word after a group that is no command of it is wrong, with --help as without.
func (a *app) help(c *cobra.Command, _ []string) {
	if positional := c.Flags().Args(); c.HasAvailableSubCommands() && len(positional) > 0 {
		a.late = unknownCommand(c, positional)
		return
	}
	text := helpText(c)
	a.late = a.print(struct {
		Help string `json:"help"`
	}{text}, func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	})
}

// helpText is what there is to know about a command, made for a terminal of 80 columns.
func helpText(c *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\nUsage:\n", show.Wrap(c.Long, show.Width))
	if c.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "  %s COMMAND\n", c.CommandPath())
	} else {
		fmt.Fprintf(&b, "  %s\n", c.UseLine())
	}
	if c.HasExample() {
		fmt.Fprintf(&b, "\nExamples:\n%s\n", c.Example)
	}
	for _, g := range append(c.Groups(), &cobra.Group{Title: "Commands:"}) {
		list(&b, g.Title, c.Commands(), g.ID)
	}
	if c.HasAvailableLocalFlags() {
		fmt.Fprintf(&b, "\nFlags:\n%s", c.LocalFlags().FlagUsagesWrapped(show.Width))
	}
	if c.HasAvailableInheritedFlags() {
		fmt.Fprintf(&b, "\nFlags of every command:\n%s", c.InheritedFlags().FlagUsagesWrapped(show.Width))
	}
	if c.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "\n`%s COMMAND --help` tells more about a command.\n", c.CommandPath())
	}
	return b.String()
}

// list writes the commands of a group, if there are any.
func list(b *strings.Builder, title string, commands []*cobra.Command, group string) {
	head := "\n" + title + "\n"
	for _, c := range commands {
		if c.GroupID != group || !c.IsAvailableCommand() {
			continue
		}
		fmt.Fprintf(b, "%s  %-12s %s\n", head, c.Name(), c.Short)
		head = ""
	}
}

// newHelpCommand is `bulla help COMMAND`.
func newHelpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "Show the help of a command", GroupID: "help",
		Long:    "Shows the help of a command; `bulla COMMAND --help` is the same.",
		Example: "  bulla help secret put", ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(_ *cobra.Command, args []string) error {
			at := root
			for _, arg := range args {
				next, rest, err := at.Find([]string{arg})
				if err != nil || next == at || len(rest) > 0 {
					return unknownCommand(at, []string{arg})
				}
				at = next
			}
			at.InitDefaultHelpFlag()
			return at.Help()
		},
	}
}
