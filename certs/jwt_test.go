package certs_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/certs/xtest"
)

func TestValidateJWTSVIDRefusesWhatNobodyIssued(t *testing.T) {
	a := newAuthority(t, "td.test", time.Hour)
	addr := a.socket(t, "workload")
	src := open(t, certs.Config{EndpointSocket: addr})
	svid, err := src.FetchJWTSVID(t.Context(), "bulla")
	if err != nil {
		t.Fatal(err)
	}
	good := svid.Marshal()
	parts := strings.Split(good, ".")
	encode := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	header := func(h string) string { return encode(h) + "." + parts[1] + "." + parts[2] }
	kid := a.Authorities()[0].ID
	flipped := []byte(parts[2])
	flipped[10] ^= 1
	for name, token := range map[string]string{
		"empty":                  "",
		"a trailing newline":     good + "\n",
		"a leading space":        " " + good,
		"a newline inside":       parts[0] + "." + parts[1][:8] + "\n" + parts[1][8:] + "." + parts[2],
		"padding":                parts[0] + "." + parts[1] + "." + parts[2] + "=",
		"unused bits":            parts[0] + "." + parts[1] + "." + parts[2][:85] + nextLetter(parts[2][85]),
		"two parts":              parts[0] + "." + parts[1],
		"four parts":             good + ".AA",
		"no signature":           parts[0] + "." + parts[1] + ".",
		"another signature":      parts[0] + "." + parts[1] + "." + string(flipped),
		"alg none":               header(`{"alg":"none","kid":"` + kid + `"}`),
		"alg HS256":              header(`{"alg":"HS256","kid":"` + kid + `"}`),
		"alg PS256":              header(`{"alg":"PS256","kid":"` + kid + `"}`),
		"a duplicated alg":       header(`{"alg":"ES256","alg":"ES256","kid":"` + kid + `"}`),
		"jku":                    header(`{"alg":"ES256","jku":"https://evil.test","kid":"` + kid + `"}`),
		"jwk":                    header(`{"alg":"ES256","jwk":{},"kid":"` + kid + `"}`),
		"crit":                   header(`{"alg":"ES256","crit":["x"],"kid":"` + kid + `"}`),
		"an unknown kid":         header(`{"alg":"ES256","kid":"none"}`),
		"two headers":            header(`{"alg":"ES256","kid":"` + kid + `"}{}`),
		"a header that's a list": header(`["alg"]`),
		"far too long":           strings.Repeat("a", 1<<20),
	} {
		if _, err := src.ValidateJWTSVID(token, "bulla"); !errors.Is(err, certs.ErrUntrusted) {
			t.Errorf("%s: %v; want ErrUntrusted", name, err)
		}
	}
	if _, err := src.ValidateJWTSVID(good, "other"); !errors.Is(err, certs.ErrUntrusted) {
		t.Errorf("another audience: %v; want ErrUntrusted", err)
	}
	if _, err := src.ValidateJWTSVID(good, ""); !errors.Is(err, certs.ErrConfig) {
		t.Errorf("no audience: %v; want ErrConfig", err)
	}
	late := open(t, certs.Config{EndpointSocket: addr, Now: func() time.Time { return time.Now().Add(5*time.Minute + time.Second) }})
	if _, err := late.ValidateJWTSVID(good, "bulla"); !errors.Is(err, certs.ErrExpired) {
		t.Errorf("after its end: %v; want ErrExpired", err)
	}
}

// nextLetter changes the bits of the last base64url letter that carry nothing.
func nextLetter(c byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, c)^1])
}

func TestValidateJWTSVIDJudgesWellSignedTokens(t *testing.T) {
	dev := newAuthority(t, "td.test", time.Hour)
	src := open(t, certs.Config{EndpointSocket: dev.socket(t, "workload")})
	key, kid := xtest.LoadDevJWTKey(t, dev.dir)
	header := `{"alg":"ES256","kid":"` + kid + `"`
	const claims = `{"sub":"spiffe://td.test/workload","aud":["bulla"],"exp":4102444800}`
	for name, tc := range map[string]struct {
		header, claims string
		want           error
		text           string
	}{
		"good":               {header + `}`, claims, nil, ""},
		"good, with a typ":   {header + `,"typ":"JWT"}`, claims, nil, ""},
		"an envelope's typ":  {header + `,"typ":"bulla-envelope+jws"}`, claims, certs.ErrUntrusted, "type"},
		"jku":                {header + `,"jku":"https://evil.test"}`, claims, certs.ErrUntrusted, `"jku"`},
		"x5u":                {header + `,"x5u":"https://evil.test"}`, claims, certs.ErrUntrusted, `"x5u"`},
		"a text as crit":     {header + `,"crit":"x"}`, claims, certs.ErrUntrusted, `"crit"`},
		"jwk":                {header + `,"jwk":{}}`, claims, certs.ErrUntrusted, `"jwk"`},
		"an unknown header":  {header + `,"x":"y"}`, claims, certs.ErrUntrusted, `"x"`},
		"a duplicated kid":   {header + `,"kid":"` + kid + `"}`, claims, certs.ErrUntrusted, `"kid"`},
		"two headers":        {header + `}{}`, claims, certs.ErrUntrusted, "one object"},
		"no kid":             {`{"alg":"ES256"}`, claims, certs.ErrUntrusted, "key id"},
		"alg PS256":          {`{"alg":"PS256","kid":"` + kid + `"}`, claims, certs.ErrUntrusted, `"PS256"`},
		"alg none":           {`{"alg":"none","kid":"` + kid + `"}`, claims, certs.ErrUntrusted, `"none"`},
		"no exp":             {header + `}`, `{"sub":"spiffe://td.test/workload","aud":["bulla"]}`, certs.ErrUntrusted, "exp"},
		"no aud":             {header + `}`, `{"sub":"spiffe://td.test/workload","exp":4102444800}`, certs.ErrUntrusted, "audience"},
		"no sub":             {header + `}`, `{"aud":["bulla"],"exp":4102444800}`, certs.ErrUntrusted, "subject"},
		"long ended":         {header + `}`, `{"sub":"spiffe://td.test/workload","aud":["bulla"],"exp":1000000000}`, certs.ErrExpired, ""},
		"of tomorrow":        {header + `}`, `{"sub":"spiffe://td.test/workload","aud":["bulla"],"exp":4102444800,"nbf":4102444700}`, certs.ErrUntrusted, "not valid yet"},
		"no path":            {header + `}`, `{"sub":"spiffe://td.test","aud":["bulla"],"exp":4102444800}`, certs.ErrUntrusted, "not a workload"},
		"dot-dot":            {header + `}`, `{"sub":"spiffe://td.test/a/../b","aud":["bulla"],"exp":4102444800}`, certs.ErrUntrusted, "invalid subject"},
		"other trust domain": {header + `}`, `{"sub":"spiffe://other.test/workload","aud":["bulla"],"exp":4102444800}`, certs.ErrUntrusted, "no bundle"},
	} {
		_, err := src.ValidateJWTSVID(signES256(t, key, tc.header, tc.claims), "bulla")
		if !errors.Is(err, tc.want) || err != nil && !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v; want %v with %q", name, err, tc.want, tc.text)
		}
	}
}

// signES256 signs any two texts as a compact JWS, whatever they say.
func signES256(t *testing.T, key *ecdsa.PrivateKey, header, claims string) string {
	t.Helper()
	input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	digest := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	return input + "." + base64.RawURLEncoding.EncodeToString(signature)
}
