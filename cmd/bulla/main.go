// Command bulla is the whole of Bulla in one binary: what a workload gets its secrets with, what operators,
// security teams and auditors work with, and the broker itself.
//
// This package wires and talks to people: it parses the command line, calls the packages that do the work, and
// puts their answers on the terminal or, with -o json, into one JSON object. It decides nothing that a package
// below could decide.
//
// Rules that scripts rely on:
//
//   - Exit codes: 0 done, 1 failed, 2 wrong usage (the command line, the environment, or a file that they name),
//     3 denied, 4 unavailable, 5 verification failed. `bulla run` gives the exit code of its child.
//   - With -o json nothing but JSON goes to stdout. A denial is {"decision", "reasons", "requires",
//     "support_id"}; any other failure is {"error", "exit_code"}. Streams (audit tail) are one object a line.
//   - What went wrong stands on stderr, in one sentence, with what to do next.
//   - Secrets come in on stdin and go out on stdout, into a file (0600), or into a child's environment; they
//     are never an argument.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(program()) }

// program runs the command line of this process and returns its exit code.
func program() (code int) {
	defer func() {
		if p := recover(); p != nil {
			// The value may hold anything, and so it is not shown. Its type finds the place in most cases.
			fmt.Fprintf(os.Stderr, "bulla: internal error (%T): this is a bug, please report it\n", p)
			code = exitFailed
		}
	}()
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup has it
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	defer stop()
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	return a.run(ctx, os.Args[1:])
}
