package e2e

import (
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/bulla-project/bulla/test/xtest"
)

// identities get a socket and an environment file from `bulla dev`.
func identities() []string {
	return []string{"operator", "security", "auditor", "workload", "stranger", "custodian-1", "custodian-2", "custodian-3"}
}

// TestDevWritesWhatScriptsRead checks everything that `bulla dev` promises to leave below its directory.
func TestDevWritesWhatScriptsRead(t *testing.T) {
	t.Parallel()
	d := shared(t)
	if got := read(t, d.path("ready")); got != "" {
		t.Errorf("ready holds %q, want nothing", got)
	}
	if key := read(t, d.path("log.pub")); !strings.HasPrefix(key, "dev.bulla.test/log+") || strings.Count(key, "+") < 2 || strings.Count(key, "\n") != 1 {
		t.Errorf("log.pub is no verifier key in note format: %q", key)
	}
	entries, err := os.ReadDir(d.path("env"))
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, e := range entries {
		files = append(files, strings.TrimSuffix(e.Name(), ".sh"))
	}
	if want := slices.Sorted(slices.Values(identities())); !slices.Equal(files, want) {
		t.Errorf("env/ has %v, want %v", files, want)
	}
	sockets := map[string]string{}
	for _, name := range identities() {
		env := d.as(t, name)
		wanted := []string{"BULLA_ADDR", "BULLA_SERVER_ID", "SPIFFE_ENDPOINT_SOCKET"}
		if name == "workload" && hasTPM() {
			wanted = append(wanted, "BULLA_TPM")
		} else if name == "workload" {
			wanted = append(wanted, "BULLA_DEVICE_FILE")
		}
		if got := slices.Sorted(maps.Keys(env)); !slices.Equal(got, slices.Sorted(slices.Values(wanted))) {
			t.Errorf("env/%s.sh exports %v, want %v", name, got, wanted)
		}
		socket := env["SPIFFE_ENDPOINT_SOCKET"]
		if other := sockets[socket]; other != "" {
			t.Errorf("%s and %s share the socket %s", name, other, socket)
		}
		sockets[socket] = name
		path, ok := strings.CutPrefix(socket, "unix://")
		if info, err := os.Stat(path); !ok || !filepath.IsAbs(path) || err != nil || info.Mode().Type() != os.ModeSocket {
			t.Errorf("%s: %s is no socket with an absolute path: %v", name, socket, err)
		}
		if len(path) > 104 {
			t.Errorf("%s: the socket's path has %d bytes, want at most 104", name, len(path))
		}
		checkID(t, env, name)
	}
	if host, _, err := net.SplitHostPort(d.as(t, "stranger")["BULLA_ADDR"]); err != nil || !net.ParseIP(host).IsLoopback() {
		t.Errorf("BULLA_ADDR is not on loopback: %q", d.as(t, "stranger")["BULLA_ADDR"])
	}
	info, err := os.Stat(d.dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %v, want 0700 (%v)", info.Mode().Perm(), err)
	}
}

// checkID asks the doctor whom the socket makes of its caller.
func checkID(t *testing.T, env environment, name string) {
	t.Helper()
	if r := run(t, env, "doctor").want(t, done); !strings.Contains(r.stdout, "spiffe://dev.bulla.test/"+name+",") {
		t.Errorf("%s is somebody else:\n%s", name, r.stdout)
	}
}

// TestDevGoesOnAfterAnEnd stops, starts, kills and starts a server on one directory.
func TestDevGoesOnAfterAnEnd(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "d")
	d := startDev(t, dir)
	d.put(t, "demo/kept", "high", "kept")
	before := picture(t, d)
	first := d.get(t, d.as(t, "workload"), "demo/kept")
	pids := swtpms(t, dir)
	if hasTPM() && len(pids) != 1 {
		t.Errorf("%d processes of swtpm, want 1", len(pids))
	}

	second := launch(t, nil, "dev", "--dir", dir)
	second.exit(t, failed)
	if said := second.stderr.String(); !strings.Contains(said, "another `bulla dev`") || !strings.Contains(said, dir) {
		t.Errorf("a second one on the directory says:\n%s", said)
	}
	if !exists(d.path("ready")) {
		t.Error("a second one on the directory took the file ready away")
	}
	run(t, d.as(t, "workload"), "get", "demo/kept").want(t, done)

	d.stop(t)
	if left := swtpms(t, dir); len(left) > 0 {
		t.Errorf("swtpm still runs after the end: %v", left)
	}
	run(t, withoutDevice(environment(before)), "get", "demo/kept").want(t, unavailable)

	d = startDev(t, dir)
	samePicture(t, before, picture(t, d))
	device := d.get(t, d.as(t, "workload"), "demo/kept")["attestation"].(map[string]any)["device_id"]
	if was := first["attestation"].(map[string]any)["device_id"]; device != was {
		t.Errorf("the device is %v after a restart, and was %v", device, was)
	}
	if state := d.session(t, first["session_id"])["state"]; state != "confirmed" {
		t.Errorf("the session of before the restart is %v, want confirmed", state)
	}

	d.kill()
	if !exists(d.path("ready")) {
		t.Fatal("kill -9 removed the file ready: the test does not test what it should")
	}
	until(t, "swtpm ends with a server that was killed", func() bool { return len(swtpms(t, dir)) == 0 })
	d = startAfterKill(t, dir)
	samePicture(t, before, picture(t, d))
	d.get(t, d.as(t, "workload"), "demo/kept")
	run(t, d.as(t, "auditor"), "audit", "rebuild", "--check").want(t, done)

	if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil { // its terminal was closed
		t.Fatal(err)
	}
	d.exit(t, done)
	if exists(d.path("ready")) {
		t.Error("the file ready is left when the terminal is closed")
	}
}

// startAfterKill starts where a killed one left its file ready: whoever waits for it must not be told too early.
func startAfterKill(t *testing.T, dir string) *dev {
	t.Helper()
	if !exists(filepath.Join(dir, "ready")) {
		t.Fatal("the killed one left no file ready")
	}
	return startDev(t, dir)
}

// session is a session as security sees it.
func (d *dev) session(t testing.TB, id any) map[string]any {
	t.Helper()
	return run(t, d.as(t, "security"), "session", "show", fmt.Sprint(id), "-o", "json").want(t, done).object(t, storyShape())
}

// picture is what has to outlive a restart: address, log key, authority, devices.
func picture(t *testing.T, d *dev) map[string]string {
	t.Helper()
	out := map[string]string(d.as(t, "workload"))
	out["log.pub"] = read(t, d.path("log.pub"))
	list := run(t, d.as(t, "operator"), "device", "list", "-o", "json").want(t, done).
		object(t, fields{"devices": list(object(deviceShape())), "next": is(nil)})
	var devices []string
	for _, one := range list["devices"].([]any) {
		devices = append(devices, one.(map[string]any)["id"].(string))
	}
	out["devices"] = strings.Join(devices, " ")
	genesis := run(t, d.as(t, "auditor"), "audit", "tail", "-o", "json").want(t, done).stdout
	out["genesis"], _, _ = strings.Cut(genesis, "\n")
	return out
}

func samePicture(t *testing.T, before, after map[string]string) {
	t.Helper()
	for name := range before {
		if before[name] != after[name] {
			t.Errorf("%s is another after a restart:\n%s\n%s", name, before[name], after[name])
		}
	}
}

// swtpms are the processes of swtpm that work below a directory.
func swtpms(t testing.TB, dir string) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && strings.HasPrefix(filepath.Base(strings.SplitN(string(line), "\x00", 2)[0]), "swtpm") && strings.Contains(string(line), dir+"/") {
			found = append(found, pid)
		}
	}
	return found
}

// TestDevInAPathThatIsLong starts below a directory whose sockets would have paths too long for the kernel, with
// a blank in it, and named relatively.
func TestDevInAPathThatIsLong(t *testing.T) {
	t.Parallel()
	base, temp := t.TempDir(), shortTemp(t)
	long := filepath.Join(base, strings.Repeat("long path ", 12), "d")
	env := environment{"TMPDIR": temp}
	p := &dev{launchIn(t, base, env, "dev", "--tpm=off", "--dir", strings.TrimPrefix(long, base+"/")), long}
	p.wait(t)
	p.put(t, "demo/far", "high", "far away")
	if r := run(t, p.as(t, "workload"), "get", "demo/far").want(t, done); r.stdout != "far away" {
		t.Errorf("got %q", r.stdout)
	}
	for _, name := range identities() {
		if path := strings.TrimPrefix(p.as(t, name)["SPIFFE_ENDPOINT_SOCKET"], "unix://"); len(path) > 104 || !strings.HasPrefix(path, temp) {
			t.Errorf("%s: socket %q", name, path)
		}
	}
	p.kill()
	p = &dev{launchIn(t, base, env, "dev", "--tpm=off", "--dir", long), long}
	until(t, "it is ready again", func() bool { return p.running() && strings.Contains(p.stdout.String(), "DEVELOPMENT ONLY") })
	if r := run(t, p.as(t, "workload"), "get", "demo/far").want(t, done); r.stdout != "far away" {
		t.Errorf("after a restart: %q", r.stdout)
	}
	p.stop(t)
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left in the temporary directory: %v %v", left, err)
	}
}

// shortTemp is a temporary directory with a path that leaves room for a socket.
func shortTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "b")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func launchIn(t *testing.T, dir string, env environment, args ...string) *process {
	t.Helper()
	p, err := launchAt(dir, xtest.Binary(t), env.list(t), args)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

// TestDevWithoutTPM: --tpm=off and a machine without swtpm give a development device, --tpm=on does not start.
func TestDevWithoutTPM(t *testing.T) {
	t.Parallel()
	bare := environment{"PATH": t.TempDir()}
	off := launch(t, bare, "dev", "--dir", filepath.Join(t.TempDir(), "d"), "--tpm=on")
	off.exit(t, failed)
	if said := off.stderr.String(); !strings.Contains(said, "swtpm") || !strings.Contains(said, "install") {
		t.Errorf("--tpm=on without swtpm does not say what to install:\n%s", said)
	}

	dir := filepath.Join(t.TempDir(), "d")
	d := &dev{launch(t, bare, "dev", "--dir", dir, "-o", "json"), dir}
	d.wait(t)
	if !strings.Contains(d.stderr.String(), "swtpm-tools") {
		t.Errorf("without swtpm it does not say how to get the real thing:\n%s", d.stderr.String())
	}
	env := d.as(t, "workload")
	if env["BULLA_TPM"] != "" || !filepath.IsAbs(env["BULLA_DEVICE_FILE"]) {
		t.Errorf("the environment of workload is %v, want a development device and no TPM", env)
	}
	d.put(t, "demo/x", "high", "x")
	got := d.get(t, env, "demo/x")["attestation"].(map[string]any)
	if got["kind"] != "development" {
		t.Errorf("it attests with %v, want development", got["kind"])
	}
	until(t, "the answer is there", func() bool { return strings.Contains(d.stdout.String(), "}\n") })
	result{line: "bulla dev", stdout: d.stdout.String()}.object(t, fields{
		"dir": is(dir), "addr": is(env["BULLA_ADDR"]), "http_addr": word, "server_id": is(env["BULLA_SERVER_ID"]),
		"log_key": is(strings.TrimSpace(read(t, d.path("log.pub")))), "device": is(got["device_id"]), "device_kind": is("development"), "policy_dir": is(d.path("policy")),
	})
	if err := d.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	d.exit(t, done)
}

// TestDevRefusesWhatCantWork: each has one sentence, and the exit code of wrong usage.
func TestDevRefusesWhatCantWork(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "", 0o600)
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--dir", filepath.Join(dir, "d"), "--tpm=maybe"}, wrongUsage, "use auto, on or off"},
		{[]string{"--dir", filepath.Join(dir, "d"), "--svid-ttl", "10ms"}, wrongUsage, "at least 1s"},
		{[]string{"--dir", filepath.Join(dir, "d"), "--listen", "0.0.0.0:0"}, wrongUsage, "loopback"},
		{[]string{"--dir", filepath.Join(dir, "d"), "--listen", "nonsense"}, wrongUsage, "host:port"},
		{[]string{"--dir", filepath.Join(dir, "d"), "--log-level", "loud"}, wrongUsage, "loud"},
		{[]string{"--dir", filepath.Join(dir, "it's")}, wrongUsage, "it's"},
		{[]string{"--dir", filepath.Join(dir, "d"), "extra"}, wrongUsage, "extra"},
		{[]string{"--dir", filepath.Join(dir, "file")}, failed, filepath.Join(dir, "file")},
	} {
		run(t, nil, append([]string{"dev"}, c.args...)...).want(t, c.code).says(t, c.says)
	}
}

// TestDevInItsDefaultPlace follows the XDG Base Directory Specification.
func TestDevInItsDefaultPlace(t *testing.T) {
	t.Parallel()
	state := filepath.Join(shortTemp(t), "s")
	d := &dev{launch(t, environment{"XDG_STATE_HOME": state}, "dev", "--tpm=off"), filepath.Join(state, "bulla", "dev")}
	d.wait(t)
	d.stop(t)
}
