package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/bulla-project/bulla/certs"
)

// process is a server that runs beside this program.
type process struct {
	cmd   *exec.Cmd
	addr  string
	dir   string
	ready time.Duration // from start to serving
}

// clockTick is the unit of the times in /proc/PID/stat: USER_HZ, which is 100 on every Linux port.
const clockTick = time.Second / 100

// startBroker starts `bulla dev` and waits until it serves.
func startBroker(ctx context.Context, binary, dir string) (*process, error) {
	cmd := exec.CommandContext(ctx, binary, "dev", "--dir", dir, "--tpm=off")
	log, err := os.Create(dir + ".log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, dir: dir}
	for time.Since(start) < 30*time.Second {
		if _, err := os.Stat(filepath.Join(dir, "ready")); err == nil {
			p.ready = time.Since(start)
			env, err := p.env("workload")
			p.addr = env["BULLA_ADDR"]
			return p, err
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil, errors.Join(fmt.Errorf("the broker did not get ready; see %s", log.Name()), p.stop())
}

// env reads an environment file of `bulla dev`.
func (p *process) env(name string) (map[string]string, error) {
	f, err := os.Open(filepath.Join(p.dir, "env", name+".sh"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := map[string]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, ok := strings.Cut(strings.TrimPrefix(lines.Text(), "export "), "=")
		if ok {
			out[key] = strings.Trim(value, "'")
		}
	}
	return out, nil
}

// cpu is the processor time that the process has used.
func (p *process) cpu() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The second field, in parentheses, may hold spaces; utime and stime are the 12th and 13th after it.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * clockTick, errors.Join(err1, err2)
}

// resident is the memory that the process holds, in bytes; 0 if that can't be read.
func (p *process) resident() int64 {
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	pages, _ := strconv.ParseInt(strings.Fields(string(statm))[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// stop ends the process. Ending by the signal is as good as ending by itself.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	err := p.cmd.Wait()
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGTERM {
		return nil
	}
	return err
}

// startBare starts this program once more, as the bare server.
func startBare(ctx context.Context, broker *process) (*process, error) {
	env, err := broker.env("operator") // any identity of the trust domain will do
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+env["SPIFFE_ENDPOINT_SOCKET"])
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("the bare server did not start: %w", err)
	}
	return &process{cmd: cmd, addr: strings.TrimSpace(line)}, nil
}

// bare is the bare server: the same TLS, the same gRPC options that matter, and no work but that of the primitives.
func bare() error {
	src, err := certs.Open(context.Background(), certs.Config{EndpointSocket: os.Getenv(roleEnv)})
	if err != nil {
		return err
	}
	defer src.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bulla-bench-floor")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	w, err := newWork(context.Background(), filepath.Join(dir, "journal"))
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(certs.ServerTLS(src))), grpc.NumStreamWorkers(64))
	s.RegisterService(bareService(), w)
	fmt.Println(l.Addr())
	go func() {
		// The parent's end is ours: it holds the other side of standard output's pipe.
		for os.Getppid() != 1 {
			time.Sleep(time.Second)
		}
		s.Stop()
	}()
	return s.Serve(l)
}

// dialBare connects to the bare server as the workload.
func dialBare(src *certs.Source, addr string) (*grpc.ClientConn, error) {
	id := spiffeid.RequireFromString("spiffe://dev.bulla.test/operator")
	return grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(certs.ClientTLS(src, id))))
}
