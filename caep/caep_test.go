package caep_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/caep"
	"github.com/bulla-project/bulla/token"
	"github.com/bulla-project/bulla/token/xtest"
)

const (
	prefix = "https://schemas.openid.net/secevent/caep/event-type/"
	ssf    = "https://schemas.openid.net/secevent/ssf/event-type/"
)

type reader struct {
	*xtest.Issuer
	v *token.Issuer
}

func newReader(t testing.TB) reader {
	t.Helper()
	i := xtest.New(t)
	keys, err := token.URLKeys(token.URLConfig{URL: i.JWKS, AllowLoopback: true})
	if err != nil {
		t.Fatal(err)
	}
	v, err := token.NewIssuer(token.Config{Kind: token.Event, Issuer: i.URL, Audience: xtest.Audience, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return reader{i, v}
}

func (r reader) read(t testing.TB, compact string) (caep.Event, error) {
	t.Helper()
	claims, err := r.v.Verify(t.Context(), compact, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return caep.Read(claims)
}

var someone = xtest.Claims{"format": "opaque", "id": "x"}

func TestRead(t *testing.T) {
	t.Parallel()
	r := newReader(t)
	for name, c := range map[string]struct {
		uri     string
		content xtest.Claims
		level   string
		revokes bool
	}{
		"session":       {prefix + caep.SessionRevoked, xtest.Claims{"event_timestamp": 1, "initiating_entity": "policy"}, "", true},
		"credential":    {prefix + caep.CredentialChange, xtest.Claims{"credential_type": "fido2-roaming", "change_type": "create"}, caep.Raised, false},
		"not compliant": {prefix + caep.DeviceComplianceChange, xtest.Claims{"previous_status": "compliant", "current_status": "not-compliant"}, caep.High, false},
		"compliant":     {prefix + caep.DeviceComplianceChange, xtest.Claims{"previous_status": "not-compliant", "current_status": "compliant"}, "", false},
		"high":          {prefix + caep.RiskLevelChange, xtest.Claims{"current_level": "HIGH"}, caep.High, false},
		"medium":        {prefix + caep.RiskLevelChange, xtest.Claims{"current_level": "MEDIUM", "previous_level": "HIGH"}, caep.Raised, false},
		"low":           {prefix + caep.RiskLevelChange, xtest.Claims{"current_level": "LOW"}, "", false},
		"verification":  {ssf + caep.Verification, xtest.Claims{"state": "s"}, "", false},
	} {
		e, err := r.read(t, r.Event(t, c.uri, c.content, someone, nil))
		if err != nil || e.Level != c.level || e.Revokes != c.revokes || !strings.HasSuffix(c.uri, "/"+e.Type) || e.Subject.ID != "x" {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
}

func TestSubjects(t *testing.T) {
	t.Parallel()
	r := newReader(t)
	for name, c := range map[string]struct {
		subject xtest.Claims
		want    caep.Subject
	}{
		"iss_sub":            {xtest.Claims{"format": "iss_sub", "iss": "i", "sub": "s"}, caep.Subject{Format: "iss_sub", Issuer: "i", ID: "s"}},
		"email":              {xtest.Claims{"format": "email", "email": "a@b"}, caep.Subject{Format: "email", ID: "a@b"}},
		"uri":                {xtest.Claims{"format": "uri", "uri": "spiffe://td/x"}, caep.Subject{Format: "uri", ID: "spiffe://td/x"}},
		"account":            {xtest.Claims{"format": "account", "uri": "acct:a@b"}, caep.Subject{Format: "account", ID: "acct:a@b"}},
		"half":               {xtest.Claims{"format": "iss_sub", "sub": "s"}, caep.Subject{}},
		"an empty half":      {xtest.Claims{"format": "iss_sub", "iss": "", "sub": "s"}, caep.Subject{}},
		"of another":         {xtest.Claims{"format": "email", "id": "x"}, caep.Subject{}},
		"one member more":    {xtest.Claims{"format": "opaque", "id": "x", "email": "a@b"}, caep.Subject{}},
		"complex":            {xtest.Claims{"format": "complex", "user": someone}, caep.Subject{}},
		"an empty id":        {xtest.Claims{"format": "opaque", "id": ""}, caep.Subject{}},
		"a number":           {xtest.Claims{"format": "opaque", "id": 7}, caep.Subject{}},
		"a long id":          {xtest.Claims{"format": "opaque", "id": strings.Repeat("x", 1025)}, caep.Subject{}},
		"format in capitals": {xtest.Claims{"Format": "opaque", "id": "x"}, caep.Subject{}},
	} {
		e, err := r.read(t, r.Event(t, prefix+caep.SessionRevoked, xtest.Claims{}, c.subject, nil))
		if bad := c.want == (caep.Subject{}); bad != errors.Is(err, caep.ErrEvent) || !bad && e.Subject != c.want {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	r := newReader(t)
	for name, changes := range map[string]xtest.Claims{
		"none":            {"events": nil},
		"an empty object": {"events": xtest.Claims{}},
		"two":             {"events": xtest.Claims{prefix + caep.SessionRevoked: xtest.Claims{}, prefix + caep.RiskLevelChange: xtest.Claims{"current_level": "LOW"}}},
		"a list":          {"events": []string{prefix + caep.SessionRevoked}},
		"a text":          {"events": xtest.Claims{prefix + caep.SessionRevoked: "x"}},
		"null":            {"events": xtest.Claims{prefix + caep.SessionRevoked: (*int)(nil)}},
		"unknown":         {"events": xtest.Claims{prefix + "session-established": xtest.Claims{}}},
		"another prefix":  {"events": xtest.Claims{"https://evil.test/" + caep.SessionRevoked: xtest.Claims{}}},
		"no level":        {"events": xtest.Claims{prefix + caep.RiskLevelChange: xtest.Claims{}}},
		"another level":   {"events": xtest.Claims{prefix + caep.RiskLevelChange: xtest.Claims{"current_level": "NONE"}}},
		"no status":       {"events": xtest.Claims{prefix + caep.DeviceComplianceChange: xtest.Claims{"previous_status": "compliant"}}},
		"no change":       {"events": xtest.Claims{prefix + caep.CredentialChange: xtest.Claims{"credential_type": "password"}}},
		"no subject":      {"sub_id": nil},
	} {
		if e, err := r.read(t, r.Event(t, prefix+caep.SessionRevoked, xtest.Claims{}, someone, changes)); !errors.Is(err, caep.ErrEvent) {
			t.Errorf("%s: %+v, %v; want ErrEvent", name, e, err)
		}
	}
}

// FuzzRead: whatever a transmitter signs, the event is one of those that are known, about a whole subject, and none
// both raises nothing and is more than recorded.
func FuzzRead(f *testing.F) {
	r := newReader(f)
	for _, seed := range []string{
		`{"events":{"` + prefix + `session-revoked":{}},"sub_id":{"format":"opaque","id":"x"}}`,
		`{"events":{"` + prefix + `risk-level-change":{"current_level":"HIGH"}},"sub_id":{"format":"iss_sub","iss":"i","sub":"s"}}`,
		`{"events":{"` + ssf + `verification":{"state":"s"}}}`,
		`{"events":null,"sub_id":[]}`, `{}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, claims string) {
		claims = strings.TrimSpace(claims)
		if len(claims) < 2 || len(claims) > 4096 || claims[0] != '{' {
			t.Skip()
		}
		rest := strings.TrimSpace(claims[1:])
		if rest != "}" {
			rest = "," + rest
		}
		base := `{"iss":"` + r.URL + `","aud":"` + xtest.Audience + `","jti":"j","iat":` + xtest.Now() + rest
		got, err := r.v.Verify(t.Context(), xtest.SignText(t, r.Key(), `{"alg":"ES256","kid":"`+r.Kid+`","typ":"secevent+jwt"}`, base), time.Now())
		if err != nil {
			t.Skip()
		}
		e, err := caep.Read(got)
		if err != nil {
			return
		}
		if e.Type != caep.Verification && e.Subject.Check() != nil {
			t.Fatalf("%+v has no whole subject", e)
		}
		if e.Level != "" && e.Level != caep.Raised && e.Level != caep.High {
			t.Fatalf("%+v", e)
		}
	})
}
