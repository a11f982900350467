package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/bulla-project/bulla/test/xtest"
)

// spire is a real SPIRE server and agent, configured by the files of docker-compose.yaml with other paths. The
// agent tells workloads apart by the path of their program.
type spire struct {
	dir           string
	server, agent *process
}

const (
	spireDomain = "spiffe://bulla.example"
	spireTTL    = 2 * time.Minute // of the SVIDs that the tests look at
)

// startSPIRE needs spire-server and spire-agent on PATH. They are nothing that test/run could install, so their
// absence is never a failure.
func startSPIRE(t *testing.T) *spire {
	t.Helper()
	for _, program := range []string{"spire-server", "spire-agent"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s on PATH (https://spiffe.io/downloads), which test/run does not install", program)
		}
	}
	dir, err := os.MkdirTemp("", "spire") // t.TempDir makes paths that are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &spire{dir: dir}
	for _, d := range []string{"server", "agent", "run/server/private", "run/agent/public", "run/bootstrap", "bin"} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	server := s.shipped(t, "spire/server.conf", strings.NewReplacer(`"0.0.0.0"`, `"127.0.0.1"`, `"8081"`, strconv.Quote(freePort(t))))
	s.server = s.start(t, "spire-server", "run", "-config", server)
	until(t, "the SPIRE server is healthy", func() bool {
		return s.server.running() && exec.Command("spire-server", "healthcheck", "-socketPath", s.socket("server/private")).Run() == nil
	})
	shell(t, nil, "sh", s.shipped(t, "register.sh", strings.NewReplacer()))
	port := regexp.MustCompile(`bind_port = ("[0-9]+")`).FindStringSubmatch(read(t, server))[1]
	agent := s.shipped(t, "spire/agent.conf", strings.NewReplacer(
		`"spire-server"`, `"127.0.0.1"`, `"8081"`, port,
		"WorkloadAttestor \"unix\" {\n        plugin_data {}", "WorkloadAttestor \"unix\" {\n        plugin_data { discover_workload_path = true }",
	))
	s.agent = s.start(t, "spire-agent", "run", "-config", agent)
	until(t, "the SPIRE agent is healthy", func() bool {
		return s.agent.running() && exec.Command("spire-agent", "healthcheck", "-socketPath", s.socket("agent/public")).Run() == nil
	})
	return s
}

func (s *spire) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

func (s *spire) socket(side string) string { return s.path("run", side, "api.sock") }

// shipped writes a file of deploy/compose with the paths of this SPIRE, and returns its path.
func (s *spire) shipped(t *testing.T, name string, edit *strings.Replacer) string {
	t.Helper()
	text := read(t, filepath.Join(xtest.Root(t), "deploy", "compose", name))
	paths := strings.NewReplacer("/var/lib/spire", s.dir, "/run/spire", s.path("run"))
	out := s.path(filepath.Base(name))
	write(t, out, edit.Replace(paths.Replace(text)), 0o600)
	return out
}

// start runs a program of SPIRE until the test ends.
func (s *spire) start(t *testing.T, program string, args ...string) *process {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatal(err)
	}
	p, err := launchAt(s.dir, path, environment(nil).list(t), args)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s: %s", program, tail(p.stdout.String()+p.stderr.String()))
		}
	})
	return p
}

func tail(text string) string {
	const most = 6000
	return text[max(0, len(text)-most):]
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// ctl asks the SPIRE server for something.
func (s *spire) ctl(t *testing.T, args ...string) string {
	t.Helper()
	return shell(t, nil, "spire-server", append(args, "-socketPath", s.socket("server/private"))...)
}

// register lets the program at a path be the workload of an id, and returns the entry.
func (s *spire) register(t *testing.T, id, program string) string {
	t.Helper()
	out := s.ctl(t, "entry", "create", "-parentID", spireDomain+"/node/compose", "-spiffeID", spireDomain+"/"+id,
		"-selector", "unix:path:"+program, "-x509SVIDTTL", strconv.Itoa(int(spireTTL.Seconds())))
	m := regexp.MustCompile(`Entry ID\s*: (\S+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no entry: %s", out)
	}
	return m[1]
}

// identity is a bulla of its own, which the agent takes for the workload of that id.
func (s *spire) identity(t *testing.T, id string) (binary string) {
	t.Helper()
	binary = s.path("bin", strings.ReplaceAll(id, "/", "-"))
	data, err := os.ReadFile(xtest.Binary(t))
	if err == nil {
		err = os.WriteFile(binary, data, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// spireSite is a broker that has its identity from SPIRE, with the policy of docker-compose.yaml.
type spireSite struct {
	*spire
	broker  *process
	env     environment
	entries map[string]string // SPIRE entry by id
}

func newSPIRESite(t *testing.T) *spireSite {
	t.Helper()
	s := &spireSite{spire: startSPIRE(t), entries: map[string]string{}}
	for _, id := range []string{"bulla/broker", "operator", "security", "auditor", "stranger"} {
		s.entries[id] = s.register(t, id, s.identity(t, id))
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s.entries["workload"] = s.register(t, "workload", self) // the test itself is the workload
	root := xtest.Root(t)
	if err := os.CopyFS(s.path("policy"), os.DirFS(filepath.Join(root, "rego", "base"))); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"manifest.yaml", "canaries.yaml", "data/grants.yaml", "data/members.yaml"} {
		target := s.path("policy", file)
		_ = os.Remove(target)
		write(t, target, read(t, filepath.Join(root, "deploy", "compose", "policy", file)), 0o600)
	}
	classes := s.path("policy", "data", "classes.yaml")
	text := strings.Replace(read(t, classes), "rate_limit: {max: 600,", "rate_limit: {max: 1000000,", 1) // it is the load of a test
	_ = os.Remove(classes)
	write(t, classes, text, 0o600)
	config := s.path("server.yaml")
	write(t, config, strings.NewReplacer(
		"0.0.0.0:8443", "127.0.0.1:0", "127.0.0.1:8080", "127.0.0.1:0", "/var/lib/bulla-kek", s.dir, "/var/lib/bulla", s.path("data"),
		"/run/spire", s.path("run"), "/etc/bulla", s.dir,
	).Replace(read(t, filepath.Join(root, "deploy", "compose", "server.yaml"))), 0o600)
	until(t, "the broker has an identity", func() bool {
		return s.run(t, "bulla/broker", nil, "server", "init", "--if-needed", "--config", config).code == done
	})
	s.broker, err = launchAt("", s.path("bin", "bulla-broker"), environment(nil).list(t), []string{"server", "run", "--config", config})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.broker.kill)
	var at []string
	until(t, "the broker serves", func() bool {
		if !s.broker.running() {
			t.Fatalf("bulla server run ended: %s", s.broker.stderr.String())
		}
		at = serving.FindStringSubmatch(s.broker.stderr.String())
		return at != nil
	})
	s.env = environment{
		"BULLA_ADDR": at[1], "BULLA_SERVER_ID": spireDomain + "/bulla/broker", "SPIFFE_ENDPOINT_SOCKET": "unix://" + s.socket("agent/public"),
	}
	for id := range s.entries { // the agent learns of new entries within some seconds
		if id != "workload" {
			until(t, "the agent knows "+id, func() bool { return s.run(t, id, nil, "get", "demo/none").code != unavailable })
		}
	}
	return s
}

// run is one command as an identity.
func (s *spireSite) run(t *testing.T, id string, stdin []byte, args ...string) result {
	t.Helper()
	return command{env: s.env, stdin: stdin, args: args, binary: s.path("bin", strings.ReplaceAll(id, "/", "-"))}.bulla(t)
}

// svid is the one that the agent gives to this test.
func (s *spireSite) source(t *testing.T) *workloadapi.X509Source {
	t.Helper()
	source, err := workloadapi.NewX509Source(t.Context(), workloadapi.WithClientOptions(workloadapi.WithAddr(s.env["SPIFFE_ENDPOINT_SOCKET"])))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = source.Close() })
	return source
}

// TestSPIRE: with a real SPIRE, everything is as with the development authority.
func TestSPIRE(t *testing.T) {
	t.Parallel()
	s := newSPIRESite(t)
	s.run(t, "operator", []byte("steady"), "secret", "put", "demo/hello", "--class", "standard").want(t, done)
	c := s.env.client(t)
	if err := deliver(t.Context(), c, "demo/hello", "steady"); err != nil {
		t.Fatal(err)
	}
	s.run(t, "stranger", nil, "get", "demo/hello").want(t, denied).says(t, "support id")
	s.run(t, "operator", nil, "get", "demo/hello").want(t, denied)
	unknown := s.identity(t, "nobody") // which has no entry
	command{env: s.env, args: []string{"get", "demo/hello"}, binary: unknown}.bulla(t).want(t, unavailable).says(t, "identity")

	t.Run("rotation", func(t *testing.T) {
		if os.Getenv("BULLA_TEST_LONG") != "1" {
			t.Skip("takes five minutes: test/long")
		}
		s.rotation(t)
	})

	s.run(t, "auditor", nil, "audit", "rebuild", "--check").want(t, done)
	out := s.path("export")
	s.run(t, "auditor", nil, "audit", "export", "--out", out).want(t, done)
	run(t, nil, "audit", "verify", out, "--key", s.path("data", "log.pub")).want(t, done)
	if said := s.broker.stderr.String(); strings.Contains(said, "level=ERROR") {
		t.Errorf("the broker logged errors:\n%s", cut(said))
	}
	if err := s.broker.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.broker.exit(t, done)
}

// rotation: clients that hold their connection get the secret without one failure while SVIDs of two minutes rotate
// and the authority is prepared, activated, tainted and revoked; and nothing any more once the entry is deleted and
// the last SVID has ended.
func (s *spireSite) rotation(t *testing.T) {
	source := s.source(t)
	first := current(t, source)
	if ttl := first.Certificates[0].NotAfter.Sub(first.Certificates[0].NotBefore); ttl > spireTTL+time.Minute {
		t.Fatalf("the SVID lives for %s, want about %s", ttl, spireTTL)
	}
	var load sync.WaitGroup
	defer load.Wait()
	ctx, enough := context.WithCancel(t.Context())
	defer enough()
	var deliveries atomic.Int64
	var deleted atomic.Bool
	last := make(chan time.Time, 2) // when a worker last got the secret, once the entry was deleted
	for range cap(last) {
		c := s.env.client(t)
		load.Go(func() {
			var at time.Time
			defer func() { last <- at }()
			for ctx.Err() == nil {
				err := deliver(ctx, c, "demo/hello", "steady")
				if err != nil {
					if !deleted.Load() && ctx.Err() == nil {
						t.Errorf("after %d deliveries: %v", deliveries.Load(), err)
					}
					return
				}
				at = time.Now()
				deliveries.Add(1)
			}
		})
	}
	step := func(format string, args ...any) {
		t.Helper()
		t.Logf("%4d deliveries: %s", deliveries.Load(), fmt.Sprintf(format, args...))
		if t.Failed() {
			t.FailNow()
		}
	}
	within(t, 4*spireTTL, "the first SVID has ended, and another came", func() bool {
		return time.Now().After(first.Certificates[0].NotAfter) && !same(current(t, source), first)
	})
	step("the first SVID has ended")

	authority := func(command ...string) { s.ctl(t, append([]string{"localauthority", "x509"}, command...)...) }
	old := authorities(s.ctl(t, "localauthority", "x509", "show"))["Active"]
	authority("prepare")
	fresh := authorities(s.ctl(t, "localauthority", "x509", "show"))["Prepared"]
	within(t, time.Minute, "the prepared authority is in the bundle", func() bool { return trusts(t, source) == 2 })
	authority("activate", "-authorityID", fresh)
	step("authority %s prepared and activated", fresh)
	authority("taint", "-authorityID", old)
	before := current(t, source)
	within(t, 2*spireTTL, "an SVID of the new authority came", func() bool { return !same(current(t, source), before) })
	step("authority %s tainted, and the workload has another SVID", old)
	within(t, 2*spireTTL, "nobody has an SVID of the old one", func() bool { return time.Since(before.Certificates[0].NotBefore) > spireTTL })
	authority("revoke", "-authorityID", old)
	within(t, time.Minute, "the revoked authority left the bundle", func() bool { return trusts(t, source) == 1 })
	for n := deliveries.Load() + 100; deliveries.Load() < n && !t.Failed(); {
		if err := deliver(ctx, s.env.client(t), "demo/hello", "steady"); err != nil {
			t.Errorf("a new client: %v", err)
		}
	}
	step("authority %s revoked", old)

	deleted.Store(true)
	gone := time.Now()
	s.ctl(t, "entry", "delete", "-entryID", s.entries["workload"])
	ends := time.Now().Add(spireTTL) // no SVID is younger than that
	for range cap(last) {
		select {
		case at := <-last:
			if at.After(ends) {
				t.Errorf("a delivery at %s, and the last SVID ended at %s", at, ends)
			}
			t.Logf("the last delivery was %s after the entry was deleted", at.Sub(gone).Round(time.Second))
		case <-time.After(time.Until(ends.Add(time.Minute))):
			t.Fatal("deliveries go on without an entry")
		}
	}
}

func current(t *testing.T, source *workloadapi.X509Source) *x509svid.SVID {
	t.Helper()
	svid, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

func same(a, b *x509svid.SVID) bool {
	return a.Certificates[0].SerialNumber.Cmp(b.Certificates[0].SerialNumber) == 0
}

// trusts is how many authorities the workload's bundle has.
func trusts(t *testing.T, source *workloadapi.X509Source) int {
	t.Helper()
	bundle, err := source.GetX509BundleForTrustDomain(current(t, source).ID.TrustDomain())
	if err != nil {
		t.Fatal(err)
	}
	return len(bundle.X509Authorities())
}

// authorities are the ids by state, from `spire-server localauthority x509 show`.
func authorities(text string) map[string]string {
	out := map[string]string{}
	state := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if s, ok := strings.CutSuffix(line, " X.509 authority:"); ok {
			state = s
		}
		if id, ok := strings.CutPrefix(line, "Authority ID: "); ok && state != "" {
			out[state], state = id, ""
		}
	}
	return out
}

// within is until with another limit.
func within(t *testing.T, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	end := time.Now().Add(limit)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		if time.Now().After(end) || t.Failed() {
			t.Fatalf("%s: not within %s", what, limit)
		}
		<-tick.C
	}
}
