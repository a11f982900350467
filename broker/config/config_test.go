package config

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const good = `listen: 127.0.0.1:8443
http_listen: 127.0.0.1:8080
data_dir: data
spiffe:
  endpoint_socket: unix:///run/agent.sock
policy:
  dir: policy
keyring:
  kek_file: kek
log:
  origin: secrets.example.org/bulla
site:
  security: [spiffe://example.org/security]
principal_types:
  /people: USER
proxies: [10.0.0.7/32]
place:
  mmdb: places.mmdb
export:
  sinks:
    - {name: siem, file: events.jsonl}
    - name: aws
      cloudwatch: {group: /security/bulla, stream: broker-1}
      from: 7
`

func write(t testing.TB, text string) string {
	path := filepath.Join(t.TempDir(), "server.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoad(t *testing.T) {
	path := write(t, good)
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(filepath.Dir(path), "data"); c.DataDir != want {
		t.Errorf("data_dir is %s, want it beside the file: %s", c.DataDir, want)
	}
	if want := filepath.Join(filepath.Dir(path), "places.mmdb"); c.Place.MMDB != want {
		t.Errorf("place.mmdb is %s, want it beside the file: %s", c.Place.MMDB, want)
	}
	if want := filepath.Join(filepath.Dir(path), "events.jsonl"); c.Export.Sinks[0].File != want || c.Export.Sinks[1].From != 7 {
		t.Errorf("%+v, want the file %s", c.Export, want)
	}
	if c.PrincipalTypes["/people"] != "USER" || c.Site.Security[0] != "spiffe://example.org/security" {
		t.Errorf("%+v", c)
	}
}

// TestFaultsAreNamed: each fault gives one sentence that says where it is.
func TestFaultsAreNamed(t *testing.T) {
	for name, c := range map[string]struct{ old, new, want string }{
		"unknown key":      {"proxies: [", "proxys: [", "proxys"},
		"no listen":        {"listen: 127.0.0.1:8443\n", "", "listen"},
		"bad port":         {"127.0.0.1:8443", "127.0.0.1:84430", "port"},
		"no data_dir":      {"data_dir: data\n", "", "data_dir"},
		"no identity":      {"  endpoint_socket: unix:///run/agent.sock", "  trust_domains: []", "endpoint_socket"},
		"both identities":  {"  endpoint_socket:", "  cert_file: a\n  endpoint_socket:", "exclude"},
		"half of PEM":      {"  endpoint_socket: unix:///run/agent.sock", "  cert_file: a", "together"},
		"bad trust domain": {"  endpoint_socket:", "  trust_domains: [\"EXAMPLE.org\"]\n  endpoint_socket:", "trust_domains"},
		"no keyring":       {"keyring:\n  kek_file: kek\n", "", "keyring"},
		"two keyrings":     {"  kek_file: kek", "  kek_file: kek\n  aws_kms: {key_id: k}", "exclude"},
		"KMS without key":  {"  kek_file: kek", "  aws_kms: {region: eu-central-1}", "key_id"},
		"bad origin":       {"secrets.example.org/bulla", "\"two words\"", "origin"},
		"restored origin":  {"secrets.example.org/bulla", "secrets.example.org/bulla/incarnation-2", "by a restore"},
		"proxies":          {"10.0.0.7/32", "10.0.0.7", "proxies"},
		"all proxies":      {"10.0.0.7/32", "0.0.0.0/0", "everybody"},
		"unknown place":    {"  mmdb:", "  geoip:", "geoip"},
		"sink's name":      {"name: siem", "name: ../siem", "export.sinks[0]"},
		"same name":        {"name: aws", "name: siem", "twice"},
		"same file":        {"      cloudwatch: {group: /security/bulla, stream: broker-1}", "      file: events.jsonl", "twice"},
		"no sink":          {", file: events.jsonl", "", "one of file"},
		"two sinks":        {"file: events.jsonl", "file: events.jsonl, stdout: true", "one of file"},
		"no stream":        {", stream: broker-1", "", "group and stream"},
		"negative from":    {"from: 7", "from: -1", "index"},
		"bad type":         {"USER", "HUMAN", "HUMAN"},
		"bad prefix":       {"/people", "people", "people"},
		"bad site id":      {"spiffe://example.org/security", "https://example.org/security", "site"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(good, c.old, c.new, 1)
			if text == good {
				t.Fatal("nothing was changed")
			}
			path := write(t, text)
			_, err := Load(path)
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("%v", err)
			}
		})
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none")); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

// TestShippedConfigurations loads every server configuration of the repository.
func TestShippedConfigurations(t *testing.T) {
	shipped, err := filepath.Glob("../../deploy/*/server*.yaml")
	if err != nil || len(shipped) == 0 {
		t.Fatalf("no server configurations below deploy: %v", err)
	}
	for _, path := range shipped {
		if _, err := Load(path); err != nil {
			t.Error(err)
		}
	}
	manual, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(manual), "```yaml\n")
	example, _, ok := strings.Cut(example, "```")
	if !ok {
		t.Fatal("docs/operations.md has no example configuration")
	}
	if _, err := Load(write(t, example)); err != nil {
		t.Errorf("docs/operations.md: %v", err)
	}
	if manual, err = os.ReadFile("../../docs/export.md"); err != nil {
		t.Fatal(err)
	}
	_, sinks, _ := strings.Cut(string(manual), "```yaml\n")
	sinks, _, _ = strings.Cut(sinks, "```")
	own, _, _ := strings.Cut(good, "export:\n")
	if c, err := Load(write(t, own+sinks)); err != nil || len(c.Export.Sinks) != 3 {
		t.Errorf("docs/export.md: %v", err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(good)
	f.Add("listen: [")
	f.Add("keyring: {aws_kms: {}}")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Load(write(t, text))
		if err == nil && (c.Listen == "" || c.DataDir == "" || slices.ContainsFunc(c.Proxies, func(p string) bool { return strings.HasSuffix(p, "/0") })) {
			t.Errorf("accepted %q", text)
		}
	})
}
