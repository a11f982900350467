package main

import (
	"bytes"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func newCompletionCommand(a *app) *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use: "completion SHELL", Short: "Print a script that completes commands in a shell",
		Long: "Prints a script for bash, zsh, fish or powershell that completes bulla's commands and flags.",
		Example: "  source <(bulla completion bash)\n" +
			"  bulla completion zsh > \"${fpath[1]}/_bulla\"\n" +
			"  bulla completion fish > ~/.config/fish/completions/bulla.fish",
		Args: argument("SHELL"), ValidArgsFunction: cobra.FixedCompletions(shells, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(c *cobra.Command, args []string) error {
			if !slices.Contains(shells, args[0]) {
				return usage("there is no completion for %q: choose %s", args[0], strings.Join(shells, ", "))
			}
			var script bytes.Buffer
			if err := writeCompletion(c.Root(), args[0], &script); err != nil {
				return err
			}
			return a.print(struct {
				Shell  string `json:"shell"`
				Script string `json:"script"`
			}{args[0], script.String()}, func(w io.Writer) error {
				_, err := w.Write(script.Bytes())
				return err
			})
		},
	}
}

func writeCompletion(root *cobra.Command, shell string, w io.Writer) error {
	switch shell {
	case "zsh":
		return root.GenZshCompletion(w)
	case "fish":
		return root.GenFishCompletion(w, true)
	case "powershell":
		return root.GenPowerShellCompletionWithDesc(w)
	}
	return root.GenBashCompletionV2(w, true)
}
