package e2e

import (
	"net"
	"path/filepath"
	"testing"

	"github.com/bulla-project/bulla/certs/xtest"
)

// TestUnreachable: whatever keeps a command from its broker is exit code 4, says what, and what to do.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	d := shared(t)
	d.put(t, "demo/reach", "standard", "x")
	workload := d.as(t, "workload")
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	foreign := t.TempDir()
	ca := xtest.NewCA(t, "foreign.test")
	xtest.WriteFiles(t, foreign, ca.Issue(t, xtest.Leaf{ID: "spiffe://foreign.test/workload"}), ca.Certificate)
	// The name is right, the authority is not: what an impostor has.
	forged := t.TempDir()
	impostor := xtest.NewCA(t, "dev.bulla.test")
	xtest.WriteFiles(t, forged, impostor.Issue(t, xtest.Leaf{ID: "spiffe://dev.bulla.test/workload"}), impostor.Certificate)
	files := func(dir string) []string {
		return []string{"--cert", filepath.Join(dir, "svid.pem"), "--key", filepath.Join(dir, "key.pem"), "--bundle", filepath.Join(dir, "bundle.pem")}
	}
	bare := workload.with("SPIFFE_ENDPOINT_SOCKET", "")
	for name, c := range map[string]struct {
		env  environment
		args []string
		says string
	}{
		"nobody listens":           {workload.with("BULLA_ADDR", "127.0.0.1:1"), nil, "127.0.0.1:1"},
		"no such host":             {workload.with("BULLA_ADDR", "no-such-host.invalid:8443"), nil, "no-such-host.invalid"},
		"nobody answers":           {workload.with("BULLA_ADDR", silent.Addr().String()), []string{"--timeout", "500ms"}, "raise --timeout"},
		"no Workload API":          {workload.with("SPIFFE_ENDPOINT_SOCKET", "unix:///no/such/socket"), nil, "/no/such/socket"},
		"no TPM":                   {workload.with("BULLA_DEVICE_FILE", "").with("BULLA_TPM", "unix:/no/such/tpm"), nil, "/no/such/tpm"},
		"another broker is wanted": {workload.with("BULLA_SERVER_ID", "spiffe://dev.bulla.test/operator"), nil, "BULLA_SERVER_ID"},
		"another trust domain":     {bare, files(foreign), "bulla: "},
		"a forged trust domain":    {bare, files(forged), "bulla: "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			get := append([]string{"get", "demo/reach", "-o", "json"}, c.args...)
			if c.says == "/no/such/tpm" {
				run(t, c.env, get...).want(t, unavailable).says(t, c.says)
				return
			}
			run(t, c.env, get...).want(t, unavailable).says(t, c.says).object(t, failureShape())
			run(t, c.env, append(c.args, "session", "list")...).want(t, unavailable).says(t, c.says)
		})
	}
	// The broker refuses as the client does: a foreign caller that trusts the broker's authority gets no further.
	dev := xtest.LoadDevCA(t, d.path("authority"))
	mixed := t.TempDir()
	xtest.WriteFiles(t, mixed, impostor.Issue(t, xtest.Leaf{ID: "spiffe://dev.bulla.test/workload"}), dev.Certificate)
	r := run(t, bare, append(files(mixed), "get", "demo/reach")...)
	r.want(t, unavailable)
	// And with an SVID of the authority, in files, the same command works.
	right := t.TempDir()
	xtest.WriteFiles(t, right, dev.Issue(t, xtest.Leaf{ID: "spiffe://dev.bulla.test/workload"}), dev.Certificate)
	if r := run(t, bare, append([]string{"get", "demo/reach"}, files(right)...)...).want(t, done); r.stdout != "x" {
		t.Errorf("got %q", r.stdout)
	}
}

// TestBadFilesAndNames: one sentence each, and the exit code of wrong usage.
func TestBadFilesAndNames(t *testing.T) {
	t.Parallel()
	d := shared(t)
	bare, dir := d.as(t, "workload").with("SPIFFE_ENDPOINT_SOCKET", ""), t.TempDir()
	dev := xtest.LoadDevCA(t, d.path("authority"))
	svid := dev.Issue(t, xtest.Leaf{ID: "spiffe://dev.bulla.test/workload"})
	xtest.WriteFiles(t, dir, svid, dev.Certificate)
	other := t.TempDir()
	xtest.WriteFiles(t, other, dev.Issue(t, xtest.Leaf{ID: "spiffe://dev.bulla.test/workload"}), dev.Certificate)
	write(t, filepath.Join(dir, "junk.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 0o600)
	write(t, filepath.Join(dir, "empty.pem"), "", 0o600)
	for name, files := range map[string][3]string{
		"no file":     {"none.pem", "key.pem", "bundle.pem"},
		"junk":        {"junk.pem", "key.pem", "bundle.pem"},
		"empty":       {"empty.pem", "key.pem", "bundle.pem"},
		"other key":   {"svid.pem", filepath.Join(other, "key.pem"), "bundle.pem"},
		"no bundle":   {"svid.pem", "key.pem", "empty.pem"},
		"key as cert": {"key.pem", "key.pem", "bundle.pem"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := []string{"get", "demo/files"}
			for i, flag := range []string{"--cert", "--key", "--bundle"} {
				path := files[i]
				if !filepath.IsAbs(path) {
					path = filepath.Join(dir, path)
				}
				args = append(args, flag, path)
			}
			run(t, bare, args...).want(t, wrongUsage).says(t, ".pem")
		})
	}
	for _, name := range []string{"", " demo/x", "demo/x ", "Demo/x", "demo//x", "demo/../x", "/demo/x", "demo/", "demo/ü", "demo/х", "demo/x\n", "."} {
		r := run(t, d.as(t, "workload"), "get", name, "-o", "json").want(t, wrongUsage)
		r.object(t, failureShape())
	}
	for _, class := range []string{"", "High", "a b", "ü"} {
		command{env: d.as(t, "operator"), stdin: []byte("x"), args: []string{"secret", "put", "demo/class", "--class", class}}.bulla(t).want(t, wrongUsage)
	}
}

// TestCommandLines: flags may stand before and after arguments; what is no command is wrong, with --help as well.
func TestCommandLines(t *testing.T) {
	t.Parallel()
	d := shared(t)
	d.put(t, "demo/flags", "standard", "x")
	workload := d.as(t, "workload")
	for _, args := range [][]string{
		{"-o", "json", "get", "demo/flags"},
		{"get", "-o", "json", "demo/flags"},
		{"get", "demo/flags", "-o", "json"},
		{"--timeout=20s", "get", "demo/flags", "--output=json"},
		{"get", "--timeout", "20s", "demo/flags", "-o", "json"},
	} {
		run(t, workload, args...).want(t, done).object(t, deliveredShape())
	}
	for _, args := range [][]string{
		{"nonsense"},
		{"nonsense", "--help"},
		{"--help", "nonsense"},
		{"help", "nonsense"},
		{"secret", "nonsense"},
		{"secret", "nonsense", "--help"},
		{"secret"},
		{"audit"},
		{"get"},
		{"get", "a", "b"},
		{"get", "a", "--nonsense"},
		{"get", "a", "-o", "xml"},
		{"get", "a", "--timeout", "0s"},
		{"session", "show"},
		{"run", "--", "true"},
		{"policy", "check", "/no/such/dir"},
		{"audit", "verify", "/no/such/dir", "--key", d.path("log.pub")},
		{"audit", "verify", d.path("env"), "--key", d.path("ready")},
	} {
		if r := run(t, workload, args...).want(t, wrongUsage); r.stdout != "" {
			t.Errorf("%s prints %q on stdout", r.line, r.stdout)
		}
	}
	for _, args := range [][]string{{"nonsense", "-o", "json"}, {"-o", "json", "get"}, {"get", "a", "--nonsense", "-o", "json"}} {
		run(t, workload, args...).want(t, wrongUsage).object(t, failureShape())
	}
}
