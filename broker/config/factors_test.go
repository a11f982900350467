package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const withFactors = good + `factors:
  oidc:
    - issuer: https://idp.example.org
      audience: https://bulla.example.org
      jwks_url: https://idp.example.org/keys
      algorithms: [ES256, RS256]
      max_lifetime: 30m
      claims: [groups]
      principal_types:
        - {claim: groups, value: people, type: USER}
  jwt_svid: {audience: bulla}
signals:
  listen: 0.0.0.0:8444
  cert_file: signals.pem
  key_file: signals-key.pem
  transmitters:
    - name: idp
      issuer: https://idp.example.org
      audience: https://bulla.example.org
      jwks_file: idp.jwks
      bearer_token_file: bearer
      events: [session-revoked]
      life: 4h
      subjects:
        - {format: iss_sub, iss: "https://idp.example.org", id: alice, principals: ["spiffe://example.org/shop"]}
`

func TestFactorsAreLoaded(t *testing.T) {
	path := write(t, withFactors)
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	o, tr := c.Factors.OIDC[0], c.Signals.Transmitters[0]
	if o.Issuer.Issuer != "https://idp.example.org" || o.MaxLifetime != 30*time.Minute || c.Factors.JWTSVID.Audience != "bulla" {
		t.Errorf("%+v", c.Factors)
	}
	if want := filepath.Join(filepath.Dir(path), "idp.jwks"); tr.JWKSFile != want || tr.Subjects[0].Key().ID != "alice" {
		t.Errorf("%+v; want %s beside the file", tr, want)
	}
}

func TestFaultsOfFactors(t *testing.T) {
	for name, c := range map[string]struct{ old, new, want string }{
		"no audience":         {"      audience: https://bulla.example.org\n      jwks_url", "      jwks_url", "audience"},
		"a trust domain":      {"- issuer: https://idp.example.org", "- issuer: spiffe://example.org", "JWT-SVID"},
		"no keys":             {"      jwks_url: https://idp.example.org/keys\n", "", "jwks_file"},
		"two places of keys":  {"      jwks_url:", "      jwks_file: x\n      jwks_url:", "jwks_file"},
		"http":                {"jwks_url: https://idp", "jwks_url: http://idp", "jwks_url"},
		"alg none":            {"[ES256, RS256]", "[none]", "none"},
		"alg HS256":           {"[ES256, RS256]", "[HS256]", "HS256"},
		"a day and more":      {"30m", "25h", "max_lifetime"},
		"a registered claim":  {"claims: [groups]", "claims: [sub]", "claims"},
		"no principal type":   {"type: USER", "type: ROOT", "principal_types"},
		"an unknown key":      {"jwt_svid: {audience: bulla}", "jwt_svid: {audience: bulla, discover: true}", "discover"},
		"JWT-SVID for nobody": {"jwt_svid: {audience: bulla}", "jwt_svid: {max_lifetime: 5m}", "jwt_svid.audience"},
		"no certificate":      {"  cert_file: signals.pem\n", "", "cert_file"},
		"no listener":         {"  listen: 0.0.0.0:8444\n", "", "signals.listen"},
		"a name with a slash": {"name: idp", "name: idp/x", "name"},
		"an unknown event":    {"[session-revoked]", "[session-established]", "session-established"},
		"no event":            {"      events: [session-revoked]\n", "", "events"},
		"half a subject":      {`iss: "https://idp.example.org", `, "", "subjects"},
		"nobody's subject":    {`, principals: ["spiffe://example.org/shop"]`, "", "stands for nobody"},
		"no SPIFFE ID":        {"spiffe://example.org/shop", "shop", "principals"},
		"an endless life":     {"life: 4h", "life: 2000h", "life"},
	} {
		text := strings.Replace(withFactors, c.old, c.new, 1)
		if text == withFactors {
			t.Fatalf("%s: the test changes nothing", name)
		}
		if _, err := Load(write(t, text)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q in it", name, err, c.want)
		}
	}
}

// TestManualOfFactors: the examples of the manual are one configuration that loads.
func TestManualOfFactors(t *testing.T) {
	manual, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(manual), "```yaml\n")
	if len(blocks) < 4 {
		t.Fatalf("docs/operations.md has %d examples", len(blocks)-1)
	}
	text := ""
	for _, b := range blocks[1:4] {
		example, _, _ := strings.Cut(b, "```")
		text += example
	}
	c, err := Load(write(t, text))
	if err != nil || len(c.Factors.OIDC) != 1 || len(c.Signals.Transmitters) != 1 {
		t.Errorf("docs/operations.md: %v", err)
	}
}
