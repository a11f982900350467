package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
)

// Values of --output.
const (
	outputText = "text"
	outputJSON = "json"
)

// defaultTimeout is how long a command that talks to a broker may take, and connectTimeout how long the
// Workload API and a connection may.
const (
	defaultTimeout = 10 * time.Second
	connectTimeout = 3 * time.Second
)

// app is one run of the program: its streams and the flags that every command has.
type app struct {
	stdin          *os.File
	stdout, stderr io.Writer

	output  string
	timeout time.Duration
	// timeoutSet says that --timeout was given: commands that work offline have no limit otherwise.
	timeoutSet bool
	identity   identityFlags
	// onRound is told how custodians stand for whom the command waits.
	onRound func(client.RoundProgress)
	// late is an error that was found while help was printed.
	late error
}

// entry is a command and the heading that it stands under in the help.
type entry struct {
	group string
	make  func(*app) *cobra.Command
}

// entries are all commands, in the order of the help. Each is made by a function of its own, which gets the
// app: it writes to app.stdout with app.print, warns with app.warn, and returns its error.
func entries() []entry {
	return []entry{
		{"start", newDemoCommand},
		{"start", newDevCommand},
		{"workload", newGetCommand},
		{"workload", newRunCommand},
		{"workload", newSignCommand},
		{"workload", newVerifyCommand},
		{"workload", newMACCommand},
		{"workload", newEncryptCommand},
		{"workload", newDecryptCommand},
		{"operate", newSecretCommand},
		{"operate", newSessionCommand},
		{"operate", newShareCommand},
		{"operate", newDeviceCommand},
		{"operate", newPolicyCommand},
		{"operate", newAuditCommand},
		{"server", newServerCommand},
		{"help", newDoctorCommand},
		{"help", newVersionCommand},
		{"help", newCompletionCommand},
	}
}

// run executes a command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := newRootCommand(a)
	root.SetArgs(args)
	if asksJSON(args) {
		a.output = outputJSON // so that a command line that does not parse is answered in JSON, too
	}
	err := root.ExecuteContext(ctx)
	return a.finish(errors.Join(err, a.late))
}

// newRootCommand makes the tree of commands.
func newRootCommand(a *app) *cobra.Command {
	root := group("bulla", "Bulla is a zero-trust secret broker",
		"Bulla delivers secrets to workloads that prove who they are (SPIFFE) and what they run on (TPM\n"+
			"attestation), as far as the policy permits, in sealed envelopes, and keeps a log that proves itself.\n\n"+
			"Exit codes: 0 done, 1 failed, 2 wrong usage, 3 denied, 4 unavailable, 5 verification failed.",
		"  bulla demo                        see the whole story in a minute\n"+
			"  bulla dev                         start a broker for development\n"+
			"  bulla get demo/database           get a secret\n"+
			"  bulla run --env DB=demo/database -- ./server")
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.AddGroup(&cobra.Group{ID: "start", Title: "Start here:"}, &cobra.Group{ID: "workload", Title: "For workloads:"},
		&cobra.Group{ID: "operate", Title: "For operators, security and auditors:"}, &cobra.Group{ID: "server", Title: "The broker:"},
		&cobra.Group{ID: "help", Title: "Help:"})
	for _, e := range entries() {
		c := e.make(a)
		c.GroupID = e.group
		root.AddCommand(c)
	}
	root.SetHelpCommand(newHelpCommand(root))
	root.SetHelpFunc(a.help)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		text := err.Error()
		var number *strconv.NumError // its words are for programmers
		if errors.As(err, &number) {
			text = strings.ReplaceAll(text, number.Error(), number.Err.Error())
		}
		return usage("%s: see `%s --help`", text, c.CommandPath())
	})
	flags := root.PersistentFlags()
	flags.StringVarP(&a.output, "output", "o", outputText, "text or json")
	flags.DurationVar(&a.timeout, "timeout", defaultTimeout, "how long it may take; for a stream, how long it may stand still; what works on files only has no limit unless it is given")
	completeFlag(root, "output", outputText, outputJSON)
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		if a.output != outputText && a.output != outputJSON {
			bad := a.output
			a.output = outputText
			return usage("--output is %q: use text or json", bad)
		}
		a.timeoutSet = c.Flags().Changed("timeout")
		if a.timeout <= 0 {
			return usage("--timeout is %s: it must be more than 0, such as 10s", a.timeout)
		}
		return nil
	}
	return root
}

// group makes a command that does nothing but hold others.
func group(use, short, long, example string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example, Args: cobra.ArbitraryArgs, SuggestionsMinimumDistance: 2,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 && !c.HasParent() {
				return c.Help()
			}
			return unknownCommand(c, args)
		},
	}
	c.AddCommand(subs...)
	return c
}

// unknownCommand says which commands there are instead.
func unknownCommand(c *cobra.Command, args []string) error {
	var names []string
	for _, s := range c.Commands() {
		if s.IsAvailableCommand() {
			names = append(names, s.Name())
		}
	}
	if len(args) == 0 {
		return usage("%s needs a command: %s", c.CommandPath(), strings.Join(names, ", "))
	}
	if elsewhere := commandsNamed(c.Root(), args[0]); len(elsewhere) > 0 {
		return usage("unknown command %q for %s: did you mean %s?", args[0], c.CommandPath(), strings.Join(elsewhere, " or "))
	}
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		return usage("unknown command %q for %s: did you mean %s?", args[0], c.CommandPath(), strings.Join(near, " or "))
	}
	return usage("unknown command %q for %s: there are %s", args[0], c.CommandPath(), strings.Join(names, ", "))
}

// commandsNamed are the commands below c that have just this name, such as `bulla get` for who looks for it in another group.
func commandsNamed(c *cobra.Command, name string) (paths []string) {
	for _, s := range c.Commands() {
		if s.Name() == name && s.IsAvailableCommand() {
			paths = append(paths, "`"+s.CommandPath()+"`")
		}
		paths = append(paths, commandsNamed(s, name)...)
	}
	return paths
}

// argument makes the check that a command got exactly the arguments that it names, such as "NAME".
func argument(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usage("%s needs %s: %s", c.CommandPath(), article(names[len(args)]), c.UseLine())
		case len(args) > len(names):
			return usage("%s: %q is too much: %s", c.CommandPath(), args[len(names)], c.UseLine())
		}
		return nil
	}
}

func article(name string) string {
	if strings.ContainsRune("AEIO", rune(name[0])) {
		return "an " + name
	}
	return "a " + name
}

// json reports whether the answer has to be JSON.
func (a *app) json() bool { return a.output == outputJSON }

// print writes an answer at once or not at all: v as JSON, or what text writes.
func (a *app) print(v any, text func(io.Writer) error) error {
	if a.json() {
		return show.JSON(a.stdout, v)
	}
	var b strings.Builder
	if err := text(&b); err != nil {
		return err
	}
	if _, err := io.WriteString(a.stdout, b.String()); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return nil
}

// warn puts a sentence on stderr.
func (a *app) warn(format string, args ...any) {
	fmt.Fprintf(a.stderr, "bulla: warning: %s\n", show.Lines(fmt.Sprintf(format, args...)))
}

// asksJSON looks for -o json without parsing the command line, of which nothing may be well-formed.
func asksJSON(args []string) bool {
	for i, arg := range args {
		switch arg {
		case "--":
			return false
		case "-o=json", "-ojson", "--output=json":
			return true
		case "-o", "--output":
			if i+1 < len(args) && args[i+1] == outputJSON {
				return true
			}
		}
	}
	return false
}

// isTerminal reports whether a person sits at the other end of a stream.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
