package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/bulla-project/bulla/secret"
)

// mapping says which secret goes into which variable of the child's environment.
type mapping struct{ variable, name string }

func newRunCommand(a *app) *cobra.Command {
	var env []string
	c := &cobra.Command{
		Use: "run --env VARIABLE=NAME [--env …] -- COMMAND [ARGUMENT…]", Short: "Run a program with secrets in its environment",
		Long: "Gets secrets and runs a program with each of them in a variable of its environment. The variables of\n" +
			"this process are passed on; the secrets are in none but the child's environment. It can be read there\n" +
			"by the child's own user for as long as the child runs, and the child is not told when a secret is\n" +
			"rotated or revoked.\n\n" +
			"All secrets are there before the program starts; if one is refused, it does not start. Signals are\n" +
			"passed on to it, and its exit code is returned: 128 plus the signal's number if one ended it.\n" +
			"--timeout limits the delivery only. stdout is the child's: -o json speaks of refused deliveries.",
		Example:               "  bulla run --env PGPASSWORD=demo/database -- psql -h db.internal",
		DisableFlagsInUseLine: true, ValidArgsFunction: cobra.NoFileCompletions,
		Args: func(c *cobra.Command, args []string) error {
			switch at := c.ArgsLenAtDash(); {
			case at < 0 || at > 0:
				return usage("bulla run needs -- before the command: %s", c.UseLine())
			case len(args) == 0:
				return usage("bulla run needs a COMMAND after --: %s", c.UseLine())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return a.runChild(c, env, args) },
	}
	c.Flags().StringArrayVar(&env, "env", nil, "VARIABLE=NAME: the secret NAME goes into VARIABLE; may be repeated")
	a.addIdentity(c)
	a.addDevice(c)
	a.addToken(c)
	return c
}

func (a *app) runChild(c *cobra.Command, env, args []string) error {
	wanted, err := parseMappings(env)
	if err != nil {
		return err
	}
	path, err := exec.LookPath(args[0]) // before any secret is asked for
	if err != nil {
		return usage("%v", err)
	}
	a.holdsSecrets()
	additions, err := a.gather(c.Context(), wanted)
	if err != nil {
		return err
	}
	child := exec.Command(path, args[1:]...)
	child.Args[0] = args[0]
	child.Env = append(os.Environ(), additions...) // the last one of a name holds
	child.Stdin, child.Stdout, child.Stderr = a.stdin, a.stdout, a.stderr
	return supervise(child)
}

// parseMappings reads VARIABLE=NAME.
func parseMappings(env []string) ([]mapping, error) {
	if len(env) == 0 {
		return nil, usage("bulla run needs --env VARIABLE=NAME, at least once")
	}
	seen, wanted := map[string]bool{}, []mapping(nil)
	for _, text := range env {
		variable, name, ok := strings.Cut(text, "=")
		if !ok || !isVariable(variable) {
			return nil, usage("--env is %q: it has to be VARIABLE=NAME, with a variable of A-Z a-z 0-9 _ that does not begin with a digit", text)
		}
		if _, err := secret.ParseName(name); err != nil {
			return nil, usage("--env %s: %v", variable, err)
		}
		if seen[variable] {
			return nil, usage("--env %s is given twice", variable)
		}
		seen[variable] = true
		wanted = append(wanted, mapping{variable, name})
	}
	return wanted, nil
}

func isVariable(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || i > 0 && c >= '0' && c <= '9' {
			continue
		}
		return false
	}
	return s != ""
}

// gather gets all secrets and returns them as lines of an environment. Go's strings can't be wiped: they stay
// in this process, which is not dumpable, until it ends.
func (a *app) gather(ctx context.Context, wanted []mapping) ([]string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, a.timeout, errTimeout)
	defer cancel()
	broker, err := a.connect(ctx, true)
	if err != nil {
		return nil, err
	}
	defer broker.Close()
	var lines []string
	for _, m := range wanted {
		s, err := a.deliver(ctx, broker, m.name)
		if err != nil {
			return nil, err
		}
		err = s.Use(func(value []byte) error {
			if bytes.IndexByte(value, 0) >= 0 {
				return fmt.Errorf("%s holds a NUL byte, so that it can't be in an environment: use `bulla get %s --out FILE`", m.name, m.name)
			}
			lines = append(lines, m.variable+"="+string(value))
			return nil
		})
		s.Close()
		if err != nil {
			return nil, err
		}
	}
	return lines, nil
}

// supervise runs the child to its end and passes signals on to it.
func supervise(child *exec.Cmd) error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	if err := child.Start(); err != nil {
		return fmt.Errorf("start %s: %w", child.Args[0], err)
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }() // ends with the child, and this function waits for it
	for {
		select {
		case s := <-signals:
			if !fromTerminal(s) {
				_ = child.Process.Signal(s) // it has ended: Wait is about to say so
			}
		case err := <-ended:
			return childResult(child, err)
		}
	}
}

// fromTerminal says whether s came from the keyboard of this process's terminal: the child got it, too.
func fromTerminal(s os.Signal) bool {
	if s != unix.SIGINT && s != unix.SIGQUIT && s != unix.SIGHUP {
		return false
	}
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false // no terminal
	}
	defer tty.Close()
	foreground, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && foreground == unix.Getpgrp()
}

// childResult is the child's exit code as this process's.
func childResult(child *exec.Cmd, err error) error {
	var exited *exec.ExitError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &exited):
		return fmt.Errorf("wait for %s: %w", child.Args[0], err)
	}
	if status, ok := exited.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return &reported{128 + int(status.Signal())}
	}
	return &reported{exited.ExitCode()}
}
