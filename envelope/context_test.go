package envelope

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

func sealedContext(t testing.TB) Context {
	t.Helper()
	return newScene(t, SuiteHybridX25519()).seal(t).Context
}

// TestContextGolden pins the JSON form: clients in other languages read it.
func TestContextGolden(t *testing.T) {
	c := sealedContext(t)
	c.Instance, c.ReceiptLock = DigestOf([]byte("instance")).String(), DigestOf([]byte("r"))
	const want = `{"v":"bulla-envelope/v1","sid":"ses_01","rid":"req_01","iss":"spiffe://dev.bulla.test/bulla/broker",` +
		`"sub":"spiffe://dev.bulla.test/workload","inst":"XowDqUx4Nbh92CxpD5-FwIWS73QzqhQc6qyzap9NpDQ",` +
		`"aud":"spiffe://dev.bulla.test/workload","secret":"gqNTf_Dbzn7sNdae3DoYnubxfYLzU6VT-aqWywvjzok","secret_version":3,` +
		`"iat":1795348800,"nbf":1795348800,"exp":1795352400,"grade":"open","uses":5,"uses_enforced_by":"client",` +
		`"places":["CH","DE"],"revision":"KyFN3zMmAWUZr8smj2NiO4C5GmUmUndmjk0CDYfdkHg","risk":12,` +
		`"risk_model":"k3LEcO6t1ezZw8dMKzy2M_ji8vrXmSUKD3DWUra4JeQ",` +
		`"attestation":"gTqJopaXPjVUXPp0_j79Fyp9GUQ8l8Yl1pnpc3IpsKI",` +
		`"channel":"aeNlaM2LRlk4m5_PvhFnVH9kIeeBaL-0OdraL_3bAUY","lock":"RUNJ5CLwUpcZHq0T4h09tSDlq-9SBV5JZLgvshP1k6E",` +
		`"log":"bulla.test/log","hs":110475149901826}`
	got := string(must(c.encode())(t))
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if again := must(ParseContext([]byte(got)))(t); !reflect.DeepEqual(again, c) {
		t.Errorf("got %+v", again)
	}
}

func TestContextOptionalParts(t *testing.T) {
	c := sealedContext(t)
	c.Attestation, c.Places, c.Uses, c.UsesEnforcedBy = Digest{}, nil, 0, ""
	b := must(c.encode())(t)
	for _, want := range []string{`"attestation":""`, `"places":[]`, `"uses":0,"uses_enforced_by":""`} {
		if !bytes.Contains(b, []byte(want)) {
			t.Errorf("%s is missing in %s", want, b)
		}
	}
	if c.Places != nil {
		t.Error("encode changed its argument")
	}
	must(ParseContext(b))(t)
	_, err := ParseContext(bytes.Replace(b, []byte(`"places":[]`), []byte(`"places":null`), 1))
	wantErr(t, err, ErrMalformed)
}

func TestContextRules(t *testing.T) {
	good := sealedContext(t)
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Context){
		"v":                     func(c *Context) { c.Version = "bulla-envelope/v2" },
		"sid":                   func(c *Context) { c.Session = "a b" },
		"rid":                   func(c *Context) { c.Request = strings.Repeat("a", maxID+1) },
		"iss":                   func(c *Context) { c.Issuer = "" },
		"sub":                   func(c *Context) { c.Subject = "spiffe://x/\n" },
		"inst":                  func(c *Context) { c.Instance = "abc" },
		"aud":                   func(c *Context) { c.Audience = "ä" },
		"log":                   func(c *Context) { c.LogOrigin = "" },
		"secret_version":        func(c *Context) { c.SecretVersion = 0 },
		"secret":                func(c *Context) { c.Secret = Digest{} },
		"revision":              func(c *Context) { c.Revision = Digest{} },
		"risk_model":            func(c *Context) { c.RiskModel = Digest{} },
		"channel":               func(c *Context) { c.Channel = Digest{} },
		"lock":                  func(c *Context) { c.ReceiptLock = Digest{} },
		"iat":                   func(c *Context) { c.IssuedAt = 0 },
		"iat in the far future": func(c *Context) { c.IssuedAt = maxTime + 1 },
		"nbf":                   func(c *Context) { c.NotBefore = c.IssuedAt - MaxLifetime - 1 },
		"nbf after exp":         func(c *Context) { c.NotBefore = c.Expires },
		"exp":                   func(c *Context) { c.Expires = c.IssuedAt + MaxLifetime + 1 },
		"grade":                 func(c *Context) { c.Grade = "Open" },
		"no grade":              func(c *Context) { c.Grade = "" },
		"uses_enforced_by":      func(c *Context) { c.UsesEnforcedBy = "" },
		"enforced without uses": func(c *Context) { c.Uses = 0 },
		"uses":                  func(c *Context) { c.Uses = 1<<32 + 1 },
		"places unsorted":       func(c *Context) { c.Places = []string{"DE", "CH"} },
		"places doubled":        func(c *Context) { c.Places = []string{"DE", "DE"} },
		"places too many":       func(c *Context) { c.Places = make([]string, maxPlaces+1) },
		"place with a quote":    func(c *Context) { c.Places = []string{`"`} },
		"risk too low":          func(c *Context) { c.RiskScore = -1 },
		"risk too high":         func(c *Context) { c.RiskScore = 101 },
		"hs":                    func(c *Context) { c.Suite = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			c := good
			change(&c)
			wantErr(t, c.Validate(), ErrInvalid)
			if _, err := c.encode(); err == nil {
				t.Fatal("encoded all the same")
			}
		})
	}
	var empty Context
	if n := strings.Count(empty.Validate().Error(), "\n"); n < 12 {
		t.Errorf("Validate reports %d faults of an empty context, not all", n+1)
	}
}

func TestDigestText(t *testing.T) {
	d := DigestOf([]byte("x"))
	var got Digest
	if err := got.UnmarshalText([]byte(d.String())); err != nil || got != d {
		t.Fatalf("%v %v", got, err)
	}
	if err := got.UnmarshalText(nil); err != nil || !got.IsZero() || got.String() != "" {
		t.Fatalf("%v %v", got, err)
	}
	for _, bad := range []string{"A", d.String() + "=", d.String()[1:], d.String() + "\n", strings.Repeat("A", 43), d.String()[:42] + "_"} {
		if err := got.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

// TestValidationSurvivesJSON: what Validate lets through, encoding/json writes without escapes, so that other
// languages build the same bytes.
func TestValidationSurvivesJSON(t *testing.T) {
	for c := rune(0); c < 256; c++ {
		s := "a" + string(c)
		if !plain(s, 8) {
			continue
		}
		ctx := sealedContext(t)
		ctx.Session = s
		if b := must(ctx.encode())(t); !bytes.Contains(b, []byte(`"sid":"`+s+`"`)) {
			t.Errorf("%q is escaped: %s", s, b)
		}
	}
}
