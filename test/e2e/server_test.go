package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/bulla-project/bulla/certs/xtest"
	repository "github.com/bulla-project/bulla/test/xtest"
)

// site is what an operator prepares for `bulla server`: identities in PEM files of a trust domain of its own, a
// policy, and a configuration.
type site struct {
	dir string
	ca  *xtest.CA
}

// newSite takes the shipped policy as it is, with a grant for a workload.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t.TempDir(), xtest.NewCA(t, "example.org")}
	s.mint(t, "bulla/broker")
	if err := os.CopyFS(s.path("policy"), os.DirFS(filepath.Join(repository.Root(t), "rego", "base"))); err != nil {
		t.Fatal(err)
	}
	grants := s.path("policy", "data", "grants.yaml")
	text := strings.Replace(read(t, grants), "{}\n", "spiffe://example.org/shop/api:\n  read:\n    shop/: true\n", 1)
	if err := os.Chmod(grants, 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, grants, text, 0o600)
	write(t, s.path("server.yaml"), serverConfig, 0o600)
	return s
}

// serverConfig has relative paths, as an operator may write them.
const serverConfig = `listen: 127.0.0.1:0
http_listen: 127.0.0.1:0
data_dir: data
spiffe:
  cert_file: bulla/broker/svid.pem
  key_file: bulla/broker/key.pem
  bundle_file: bulla/broker/bundle.pem
policy:
  dir: policy
keyring:
  kek_file: kek
log:
  origin: example.org/log
site:
  security: [spiffe://example.org/bulla/security, spiffe://example.org/bulla/security-2]
  auditors: [spiffe://example.org/bulla/auditor]
`

func (s *site) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// mint writes the SVID of a path of the trust domain below a directory of that name.
func (s *site) mint(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(s.path(path), 0o700); err != nil {
		t.Fatal(err)
	}
	xtest.WriteFiles(t, s.path(path), s.ca.Issue(t, xtest.Leaf{ID: "spiffe://example.org/" + path}), s.ca.Certificate)
}

// as are the flags of an identity.
func (s *site) as(t *testing.T, path, addr string) []string {
	t.Helper()
	s.mint(t, path)
	return []string{"--addr", addr, "--cert", s.path(path, "svid.pem"), "--key", s.path(path, "key.pem"), "--bundle", s.path(path, "bundle.pem")}
}

// served is a running `bulla server run`.
type served struct {
	*process
	addr, http string
}

var serving = regexp.MustCompile(`msg="the broker serves" addr=(\S+) .*http_addr=(\S+)`)

// serve starts a broker and waits until it says where it listens and is ready.
func serve(t *testing.T, config string) *served {
	t.Helper()
	p := launch(t, nil, "server", "run", "--config", config)
	var at []string
	until(t, "the broker serves", func() bool {
		if !p.running() {
			t.Fatalf("bulla server run ended: %s", p.stderr.String())
		}
		at = serving.FindStringSubmatch(p.stderr.String())
		return at != nil
	})
	s := &served{p, at[1], at[2]}
	until(t, "the broker is ready", func() bool { return run(t, nil, "server", "healthcheck", "--addr", s.http).code == done })
	return s
}

func (s *served) stop(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.exit(t, done)
}

// TestServerWithFiles goes the whole way of an operator, with identities in files.
func TestServerWithFiles(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	config := s.path("server.yaml")
	run(t, nil, "server", "run", "--config", config).want(t, failed).says(t, "bulla server init")
	made := run(t, nil, "server", "init", "--config", config, "-o", "json").want(t, done).
		object(t, fields{"data_dir": is(s.path("data")), "log_origin": is("example.org/log"), "log_key": matching(`example\.org/log\+.+`)})
	if key := read(t, s.path("data", "log.pub")); key != made["log_key"].(string)+"\n" {
		t.Errorf("log.pub holds %q, and init said %v", key, made["log_key"])
	}
	for path, mode := range map[string]os.FileMode{"data": 0o700, "kek": 0o600, "data/ledger.db": 0o600, "data/keyring": 0o600, "data/log.key": 0o600, "data/envelope.key": 0o600} {
		if info, err := os.Stat(s.path(path)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s has not mode %v: %v", path, mode, err)
		}
	}
	run(t, nil, "server", "init", "--config", config).want(t, failed).says(t, "already", "bulla server run")

	b := serve(t, config)
	operator, api := s.as(t, "bulla/operator", b.addr), s.as(t, "shop/api", b.addr)
	command{stdin: []byte("for the shop"), args: append(operator, "secret", "put", "shop/db", "--class", "standard")}.bulla(t).want(t, done)
	if r := run(t, nil, append(api, "get", "shop/db")...).want(t, done); r.stdout != "for the shop" {
		t.Errorf("got %q", r.stdout)
	}
	run(t, nil, append(api, "get", "other/db")...).want(t, denied)
	run(t, nil, append(operator, "get", "shop/db")...).want(t, denied)
	second := launch(t, nil, "server", "run", "--config", config)
	second.exit(t, failed)
	if said := second.stderr.String(); !strings.Contains(said, "bulla: ") || strings.Contains(said, "goroutine") {
		t.Errorf("a second broker on the same data says:\n%s", said)
	}
	b.stop(t)
	run(t, nil, "server", "healthcheck", "--addr", b.http).want(t, unavailable)
	run(t, nil, append(api, "get", "shop/db")...).want(t, unavailable)

	b = serve(t, config)
	if r := run(t, nil, append(s.as(t, "shop/api", b.addr), "get", "shop/db", "-o", "json")...).want(t, done); r.object(t, deliveredShape())["version"] != json.Number("1") {
		t.Errorf("after a restart: %s", r.stdout)
	}
	export := s.path("export")
	run(t, nil, append(s.as(t, "bulla/auditor", b.addr), "audit", "export", "--out", export)...).want(t, done)
	run(t, nil, "audit", "verify", export, "--key", s.path("data", "log.pub")).want(t, done)
	b.stop(t)
	run(t, nil, "audit", "rebuild", "--check", "--data", s.path("data"), "--kek-file", s.path("kek")).want(t, done)
}

// TestServerWithWorkloadAPI runs a broker whose identity comes from a Workload API, for workloads that have theirs
// from there.
func TestServerWithWorkloadAPI(t *testing.T) {
	t.Parallel()
	d := shared(t)
	dir := t.TempDir()
	run(t, d.as(t, "security"), "policy", "show", "--out", filepath.Join(dir, "policy")).want(t, done)
	socket := strings.Replace(d.as(t, "operator")["SPIFFE_ENDPOINT_SOCKET"], "operator", "broker", 1)
	config := filepath.Join(dir, "server.yaml")
	write(t, config, fmt.Sprintf(`listen: 127.0.0.1:0
http_listen: 127.0.0.1:0
data_dir: data
spiffe: {endpoint_socket: %q}
policy: {dir: policy}
keyring: {kek_file: kek}
log: {origin: another.test/log}
`, socket), 0o600)
	run(t, nil, "server", "init", "--config", config).want(t, done)
	b := serve(t, config)
	command{env: d.as(t, "operator").with("BULLA_ADDR", b.addr), stdin: []byte("over there"), args: []string{"secret", "put", "demo/there", "--class", "standard"}}.
		bulla(t).want(t, done)
	if r := run(t, d.as(t, "workload").with("BULLA_ADDR", b.addr), "get", "demo/there").want(t, done); r.stdout != "over there" {
		t.Errorf("got %q", r.stdout)
	}
	run(t, d.as(t, "stranger").with("BULLA_ADDR", b.addr), "get", "demo/there").want(t, denied)
	b.stop(t)
}

// TestServerSaysWhatIsWrong with a configuration, and where.
func TestServerSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	change := func(old, new string) string { return strings.Replace(serverConfig, old, new, 1) }
	for name, c := range map[string]struct {
		config string
		code   int
		says   []string
	}{
		"unknown key":      {change("data_dir:", "datadir:"), wrongUsage, []string{"server.yaml", ":3", "datadir"}},
		"unknown below":    {change("  kek_file:", "  kekfile:"), wrongUsage, []string{"kekfile"}},
		"twice":            {serverConfig + "listen: 127.0.0.1:1\n", wrongUsage, []string{"listen"}},
		"not YAML":         {"listen: [", wrongUsage, []string{"server.yaml"}},
		"empty":            {"", wrongUsage, []string{"server.yaml"}},
		"wrong type":       {change("127.0.0.1:0", "[]"), wrongUsage, []string{"server.yaml:1:9"}},
		"no port":          {change("127.0.0.1:0", "127.0.0.1"), wrongUsage, []string{"listen", "host:port"}},
		"no data":          {change("data_dir: data\n", ""), wrongUsage, []string{"data_dir"}},
		"no identity":      {change("  cert_file: bulla/broker/svid.pem\n", ""), wrongUsage, []string{"cert_file"}},
		"both identities":  {change("spiffe:\n", "spiffe:\n  endpoint_socket: unix:///run/x\n"), wrongUsage, []string{"endpoint_socket"}},
		"two KEKs":         {change("  kek_file: kek\n", "  kek_file: kek\n  aws_kms: {key_id: x}\n"), wrongUsage, []string{"aws_kms"}},
		"proxies":          {serverConfig + "proxies: [10.0.0.1]\n", wrongUsage, []string{"proxies"}},
		"no origin":        {change("example.org/log", "''"), wrongUsage, []string{"log.origin"}},
		"no SPIFFE ID":     {change("spiffe://example.org/bulla/security", "security"), wrongUsage, []string{"site"}},
		"no policy":        {change("dir: policy", "dir: nowhere"), failed, []string{"nowhere"}},
		"nobody to push":   {change("spiffe://example.org/bulla/security", "spiffe://example.org/nobody"), failed, []string{"spiffe://example.org/nobody"}},
		"no certificate":   {change("svid.pem", "none.pem"), wrongUsage, []string{"none.pem"}},
		"KEK is a folder":  {change("kek_file: kek", "kek_file: policy"), failed, []string{"policy"}},
		"no place for KEK": {change("kek_file: kek", "kek_file: nowhere/kek"), failed, []string{"nowhere"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(s.dir, strings.ReplaceAll(name, " ", "-")+"-server.yaml")
			write(t, path, strings.Replace(c.config, "data_dir: data\n", "data_dir: "+strings.ReplaceAll(name, " ", "-")+"\n", 1), 0o600)
			args := []string{"server", "init", "--config", path}
			if name == "no certificate" { // init does without an identity
				run(t, nil, args...).want(t, done)
				args[1] = "run"
			}
			run(t, nil, args...).want(t, c.code).says(t, c.says...)
		})
	}
	for _, sub := range []string{"init", "run", "healthcheck"} {
		run(t, nil, "server", sub, "--config", s.path("none.yaml")).want(t, wrongUsage).says(t, "none.yaml")
	}
}

// TestServerRefusesAnOpenKeyFile: the key-encryption key is for its owner alone, and has one length.
func TestServerRefusesAnOpenKeyFile(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	config := s.path("server.yaml")
	run(t, nil, "server", "init", "--config", config).want(t, done)
	kek := read(t, s.path("kek"))
	for name, c := range map[string]struct {
		key  string
		mode os.FileMode
		says string
	}{
		"open to others": {kek, 0o644, "chmod 600"}, "short": {kek[:31], 0o600, s.path("kek")},
		"another": {strings.Repeat("x", len(kek)), 0o600, "another key-encryption key"},
	} {
		write(t, s.path("kek"), c.key, c.mode)
		r := run(t, nil, "server", "run", "--config", config).want(t, failed).says(t, c.says)
		if strings.Contains(r.stderr, kek) {
			t.Errorf("%s: the key is shown", name)
		}
	}
	write(t, s.path("kek"), kek, 0o600)
	serve(t, config).stop(t)
}
