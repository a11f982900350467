// Command bench measures a broker beside the floor that it stands on, in one run on one machine, and prints a
// table with ratios: absolute times say more about the machine than about the program.
//
//	go run ./test/bench [-seconds 5] [-callers 1,8,64]
//	go run ./test/bench -sessions 1000000       growth: a full store beside an empty one
//	go run ./test/bench -clients 1000           memory: the broker with so many connections
//	go run ./test/bench -watchers 1000          a revocation with so many watching clients
//
// Three processes take part: a broker (`bulla dev`, the real program), a bare gRPC server over the same mutual
// TLS, and this one, which makes the load with the Go SDK. CPU is what the kernel accounted to the server's
// process, so that the load's own work does not count.
//
// There are two floors. One is the sum of primitives, each measured over and over by itself, with warm caches. The
// other is what the bare server takes for the same primitives in its handlers, under the same load.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// roleEnv makes this program the bare server.
const roleEnv = "BULLA_BENCH_ECHO"

func main() {
	seconds := flag.Int("seconds", 5, "length of each measurement")
	callers := flag.String("callers", "1,8,64", "numbers of callers, separated by commas")
	sessions := flag.Int("sessions", 0, "compare an empty store with one of so many live sessions, instead")
	clients := flag.Int("clients", 0, "connect so many clients and say what the broker holds, instead")
	watchers := flag.Int("watchers", 0, "measure a revocation with so many watching clients instead")
	binary := flag.String("bulla", "", "the bulla program; built from this checkout when empty")
	flag.Parse()
	if os.Getenv(roleEnv) != "" {
		exit(bare())
	}
	exit(bench(options{*binary, *callers, time.Duration(*seconds) * time.Second, *sessions, *clients, *watchers}))
}

// options are the flags.
type options struct {
	binary, callers   string
	length            time.Duration
	sessions, clients int
	watchers          int
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// bench runs what was asked for and prints it.
func bench(o options) (err error) {
	numbers, err := parseCallers(o.callers)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bulla-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.binary == "" {
		if o.binary, err = build(dir); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	switch {
	case o.sessions > 0:
		g, err := growth(ctx, o.binary, dir, o.sessions, growthRounds, o.length)
		if err == nil {
			g.print(os.Stdout)
		}
		return err
	case o.clients > 0:
		return connections(ctx, o.binary, dir, o.clients, os.Stdout)
	case o.watchers > 0:
		return watching(ctx, o.binary, dir, o.watchers, os.Stdout)
	}
	return floors(ctx, o.binary, dir, numbers, o.length, os.Stdout)
}

// floors measures the broker beside its floor.
func floors(ctx context.Context, binary, dir string, numbers []int, length time.Duration, w io.Writer) (err error) {
	broker, err := startBroker(ctx, binary, filepath.Join(dir, "dev"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, broker.stop()) }()
	bare, err := startBare(ctx, broker)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bare.stop()) }()
	p, err := measurePrimitives(ctx, filepath.Join(dir, "floor"))
	if err != nil {
		return err
	}
	t := table{primitives: p, ready: broker.ready}
	for _, n := range numbers {
		row, err := measure(ctx, broker, bare, n, length)
		if err != nil {
			return fmt.Errorf("%d callers: %w", n, err)
		}
		t.rows = append(t.rows, row)
	}
	t.resident = broker.resident()
	t.print(w)
	return nil
}

func parseCallers(s string) ([]int, error) {
	var out []int
	for _, part := range strings.Split(s, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || n < 1 || n > 1024 {
			return nil, fmt.Errorf("-callers: %q is no number from 1 to 1024", part)
		}
		out = append(out, n)
	}
	return out, nil
}

// build compiles the program from the checkout that this one was started in.
func build(dir string) (string, error) {
	out := filepath.Join(dir, "bulla")
	cmd := exec.Command("go", "build", "-o", out, "./cmd/bulla")
	cmd.Env, cmd.Stderr = append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
	return out, cmd.Run()
}
