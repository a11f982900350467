package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/token/xtest"
)

var signalsAt = regexp.MustCompile(`signals_addr=(\S+)`)

// TestFactorsAndSignals: a real broker that takes tokens of an issuer, whose keys it fetches over https, and signals of
// the same, with the shipped policy and a class that demands a further factor.
func TestFactorsAndSignals(t *testing.T) {
	t.Parallel()
	s, issuer := newSite(t), xtest.NewTLS(t)
	cert, key, roots := xtest.ServerCertificate(t, s.dir)
	edit := func(file, old, new string) {
		text := read(t, file)
		if !strings.Contains(text, old) {
			t.Fatalf("%s has no %q", file, old)
		}
		if err := os.Chmod(file, 0o600); err != nil {
			t.Fatal(err)
		}
		write(t, file, strings.Replace(text, old, new, 1), 0o600)
	}
	edit(s.path("policy", "data", "classes.yaml"), "standard:\n  sensitivity: 1\n  levels: [BASIC, ", "personal:\n  sensitivity: 2\n  levels: [ENHANCED, HIGH_ASSURANCE]\n  step_up: ENHANCED\n  max_risk: 85\n  attestation: {required: false}\n  obligations:\n    time_bound: {ttl_seconds: 600, grade: open}\nstandard:\n  sensitivity: 1\n  levels: [BASIC, ")
	edit(s.path("policy", "data", "persons.yaml"), "{}\n", issuer.URL+":\n  alice:\n    person: alice\n    principals:\n      spiffe://example.org/shop/api: true\n")
	config := s.path("server.yaml")
	write(t, config, serverConfig+fmt.Sprintf(`factors:
  oidc:
    - issuer: %[1]s
      audience: %[2]s
      jwks_url: %[3]s
      ca_file: %[4]s
      claims: [groups]
signals:
  listen: 127.0.0.1:0
  cert_file: %[5]s
  key_file: %[6]s
  transmitters:
    - name: idp
      issuer: %[1]s
      audience: %[2]s
      jwks_url: %[3]s
      ca_file: %[4]s
      events: [session-revoked, risk-level-change]
      life: 1h
      subjects:
        - {format: iss_sub, iss: %[1]q, id: alice, principals: ["spiffe://example.org/shop/api"]}
`, issuer.URL, xtest.Audience, issuer.JWKS, issuer.CAFile, cert, key), 0o600)
	run(t, nil, "server", "init", "--config", config).want(t, done)
	b := serve(t, config)
	operator, api := s.as(t, "bulla/operator", b.addr), s.as(t, "shop/api", b.addr)
	command{stdin: []byte("for people"), args: append(operator, "secret", "put", "shop/db", "--class", "personal")}.bulla(t).want(t, done)

	run(t, nil, append(api, "get", "shop/db")...).want(t, denied).says(t, "not verified strongly enough")
	token := s.path("token")
	write(t, token, issuer.Token(t, "bob", nil)+"\n", 0o600)
	run(t, nil, append(api, "get", "shop/db", "--token-file", token)...).want(t, denied)
	write(t, token, issuer.Token(t, "alice", xtest.Claims{"aud": "other"})+"\n", 0o600)
	run(t, nil, append(api, "get", "shop/db", "--token-file", token)...).want(t, denied).says(t, "the token is refused", "audience")
	write(t, token, issuer.Token(t, "alice", xtest.Claims{"groups": []string{"ops"}})+"\n", 0o600)
	got := run(t, nil, append(api, "get", "shop/db", "--token-file", token, "-o", "json")...).want(t, done).object(t, deliveredShape())
	if r := run(t, environment{"BULLA_TOKEN_FILE": token}, append(api, "get", "shop/db")...).want(t, done); r.stdout != "for people" {
		t.Errorf("got %q", r.stdout)
	}
	run(t, nil, append(api, "get", "shop/db", "--token-file", s.path("none"))...).want(t, wrongUsage).says(t, "none")

	push := func(kind string, content xtest.Claims) {
		t.Helper()
		event := issuer.Event(t, "https://schemas.openid.net/secevent/caep/event-type/"+kind, content, xtest.Claims{"format": "iss_sub", "iss": issuer.URL, "sub": "alice"}, nil)
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}, Timeout: 10 * time.Second}
		resp, err := client.Post("https://"+signalsAt.FindStringSubmatch(b.stderr.String())[1]+"/v1/signals/idp", "application/secevent+jwt", strings.NewReader(event))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if said, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusAccepted {
			t.Fatalf("%s: %s %s %v", kind, resp.Status, said, err)
		}
	}
	push("session-revoked", xtest.Claims{})
	if r := run(t, nil, append(operator, "session", "show", got["session_id"].(string))...).want(t, done); !strings.Contains(r.stdout, "revoked") {
		t.Errorf("after session-revoked: %s", r.stdout)
	}
	run(t, nil, append(api, "get", "shop/db", "--token-file", token)...).want(t, done)
	push("risk-level-change", xtest.Claims{"current_level": "HIGH"})
	run(t, nil, append(api, "get", "shop/db", "--token-file", token)...).want(t, denied).says(t, "the risk is too high")
	push("risk-level-change", xtest.Claims{"current_level": "LOW"})
	run(t, nil, append(api, "get", "shop/db", "--token-file", token)...).want(t, denied)
	if r := run(t, nil, append(operator, "doctor")...); !strings.Contains(r.stdout, "1 transmitters") {
		t.Errorf("the doctor says %s", r.stdout)
	}

	export := s.path("export")
	run(t, nil, append(s.as(t, "bulla/auditor", b.addr), "audit", "export", "--out", export)...).want(t, done)
	run(t, nil, "audit", "verify", export, "--key", s.path("data", "log.pub")).want(t, done)
	b.stop(t)
	run(t, nil, "audit", "rebuild", "--check", "--data", s.path("data"), "--kek-file", s.path("kek")).want(t, done)
}
