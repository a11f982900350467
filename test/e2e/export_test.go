package e2e

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/bulla-project/bulla/audit/sink/cloudwatch/xtest"
	"github.com/bulla-project/bulla/test/awsfake"
	binary "github.com/bulla-project/bulla/test/xtest"
)

// exportedEvent is what an OCSF line says of its place in the log.
type exportedEvent struct {
	Metadata struct {
		UID      string
		Sequence int64
	}
}

// exportedEvents reads lines; torn ones are those of a writer that was killed.
func exportedEvents(lines []string) (all []exportedEvent) {
	for _, line := range lines {
		var o exportedEvent
		if json.Unmarshal([]byte(line), &o) == nil {
			all = append(all, o)
		}
	}
	return all
}

// uids reads which events lines are, and checks that they come in order, but for those that come again.
func uids(t *testing.T, all []exportedEvent) (first []string) {
	t.Helper()
	next := int64(0)
	for _, o := range all {
		if o.Metadata.Sequence > next {
			t.Fatalf("event %d came before event %d", o.Metadata.Sequence, next)
		}
		if o.Metadata.Sequence == next {
			first = append(first, o.Metadata.UID)
			next++
		}
	}
	return first
}

// TestExportOutlivesKills: an export that is killed at any moment, and one whose broker goes away, loses nothing.
func TestExportOutlivesKills(t *testing.T) {
	t.Parallel()
	d := ownDev(t)
	d.put(t, "demo/export", "standard", "x")
	out, state := d.path("events.jsonl"), d.path("events.position")
	args := []string{"audit", "export", "--format", "ocsf", "--out", out, "--state", state}
	there := func() int {
		if !exists(out) {
			return 0
		}
		return len(uids(t, exportedEvents(strings.Split(read(t, out), "\n"))))
	}
	for round := range 5 {
		p := launch(t, d.as(t, "auditor"), append(args, "--follow")...)
		before := there()
		for range 5 + round {
			d.get(t, d.as(t, "workload"), "demo/export")
		}
		until(t, "something of it was written", func() bool { return there() > before })
		p.kill()
	}
	d.kill()
	e := startDev(t, d.dir)
	size := len(e.events(t))
	run(t, e.as(t, "auditor"), args...).want(t, done)
	got := uids(t, exportedEvents(strings.Split(read(t, out), "\n")))
	if len(got) < size {
		t.Fatalf("%d of %d events are there", len(got), size)
	}
	for i, uid := range got {
		if !strings.HasPrefix(uid, fmt.Sprintf("dev.bulla.test/log#%d#", i)) {
			t.Fatalf("event %d has the uid %s", i, uid)
		}
	}
	e.stop(t)
}

// TestExportToCloudWatch: the whole way over the wire of AWS, with a signature that is checked.
func TestExportToCloudWatch(t *testing.T) {
	t.Parallel()
	d := shared(t)
	fake := xtest.Start(t, "/security/bulla")
	env := d.as(t, "auditor").with("AWS_ACCESS_KEY_ID", awsfake.AccessKey).with("AWS_SECRET_ACCESS_KEY", awsfake.SecretKey).with("AWS_CONFIG_FILE", "/nonexistent")
	fake.Inject(awsfake.Fault{Op: "PutLogEvents", Code: "ThrottlingException"})
	args := []string{"audit", "export", "--format", "ocsf", "--out", "cloudwatch:/security/bulla/auditor", "--region", awsfake.Region, "--endpoint", fake.URL}
	run(t, env, args...).want(t, done)
	var lines []string
	for _, e := range fake.Events("/security/bulla", "auditor") {
		lines = append(lines, e.Message)
	}
	all := exportedEvents(lines)
	// CloudWatch Logs keeps a batch in the order of time, and events have that of their requests.
	slices.SortStableFunc(all, func(a, b exportedEvent) int { return cmp.Compare(a.Metadata.Sequence, b.Metadata.Sequence) })
	if got := uids(t, all); len(got) < 3 || len(got) != len(lines) {
		t.Errorf("%d lines, %d events", len(lines), len(got))
	}
	fake.Inject(awsfake.Fault{Op: "PutLogEvents", Code: "AccessDeniedException", Times: 100})
	if r := run(t, env, args...).want(t, failed); !strings.Contains(r.stderr, "logs:PutLogEvents") {
		t.Errorf("%s", r.stderr)
	}
}

// TestExportOutlivesItsReader: a broker whose stdout nobody reads any more goes on serving.
func TestExportOutlivesItsReader(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	config := s.path("server.yaml")
	write(t, config, serverConfig+"export:\n  sinks:\n    - name: collector\n      stdout: true\n", 0o600)
	run(t, nil, "server", "init", "--config", config).want(t, done)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(binary.Binary(t), "server", "run", "--config", config), ended: make(chan struct{})}
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = environment{}.list(t), w, &p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the process
		_ = p.cmd.Wait() // how it ended is in ProcessState
		close(p.ended)
	}()
	t.Cleanup(p.kill)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(r).ReadString('\n'); err != nil || len(exportedEvents([]string{line})) != 1 {
		t.Fatalf("%q, %v", line, err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	var at []string
	until(t, "the broker serves", func() bool { at = serving.FindStringSubmatch(p.stderr.String()); return at != nil || !p.running() })
	if at != nil {
		// Which is an event, and has to be written.
		_ = command{stdin: []byte("x"), args: append(s.as(t, "bulla/operator", at[1]), "secret", "put", "shop/db", "--class", "standard")}.bulla(t)
		until(t, "the export fails", func() bool { return strings.Contains(p.stderr.String(), "the export waits") || !p.running() })
	}
	if !p.running() {
		t.Fatalf("the broker has ended: %v", p.cmd.ProcessState)
	}
	run(t, nil, "server", "healthcheck", "--addr", at[2]).want(t, done)
}
