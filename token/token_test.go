package token_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/token"
	"github.com/bulla-project/bulla/token/xtest"
)

func verifier(t testing.TB, i *xtest.Issuer, change ...func(*token.Config)) *token.Issuer {
	t.Helper()
	keys, err := token.URLKeys(token.URLConfig{URL: i.JWKS, CAFile: i.CAFile, AllowLoopback: i.CAFile == ""})
	if err != nil {
		t.Fatal(err)
	}
	cfg := token.Config{Issuer: i.URL, Audience: xtest.Audience, Keys: keys}
	for _, f := range change {
		f(&cfg)
	}
	v, err := token.NewIssuer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestVerify(t *testing.T) {
	t.Parallel()
	for _, start := range []func(testing.TB) *xtest.Issuer{xtest.New, xtest.NewTLS} {
		i := start(t)
		v := verifier(t, i, func(c *token.Config) { c.Algorithms = token.Algorithms() })
		for _, alg := range token.Algorithms() {
			i.Add(t, alg, xtest.NewKey(t, alg))
		}
		for _, alg := range token.Algorithms() {
			now := time.Now()
			claims := xtest.Claims{"iss": i.URL, "sub": "alice", "aud": []string{xtest.Audience}, "exp": now.Add(time.Minute).Unix(), "groups": []string{"a", "b"}}
			compact := i.Sign(t, xtest.Claims{"alg": alg, "kid": alg, "typ": "application/at+JWT", "x5t": "x"}, claims)
			c, err := v.Verify(t.Context(), compact, now)
			if err != nil {
				t.Fatalf("%s: %v", alg, err)
			}
			groups, _ := c.Texts("groups")
			if c.Subject != "alice" || c.Digest != sha256.Sum256([]byte(compact)) || strings.Join(groups, " ") != "a b" || !c.Expires.After(now) {
				t.Errorf("%s: %+v", alg, c)
			}
		}
		if asked := i.Asked(); asked != 1 {
			t.Errorf("the keys were asked for %d times", asked)
		}
	}
}

// TestRefusals: each of them is a token that the issuer's own key signed, or one that nobody signed.
func TestRefusals(t *testing.T) {
	t.Parallel()
	i := xtest.New(t)
	i.Add(t, "rsa", xtest.NewKey(t, "RS256"))
	v := verifier(t, i)
	now := time.Now()
	good := i.Token(t, "alice", nil)
	if _, err := v.Verify(t.Context(), good, now); err != nil {
		t.Fatalf("in good order: %v", err)
	}
	head := func(changes xtest.Claims) string {
		h := xtest.Claims{"alg": "ES256", "kid": i.Kid, "typ": "JWT"}
		for k, v := range changes {
			h[k] = v
		}
		return i.Sign(t, h, xtest.Claims{"iss": i.URL, "sub": "alice", "aud": xtest.Audience, "exp": now.Add(time.Minute).Unix()})
	}
	own := xtest.NewKey(t, "ES256")
	text := func(h, c string) string { return i.Sign(t, rawJSON(h), rawJSON(c)) }
	claims := func(more string) string {
		return fmt.Sprintf(`{"iss":%q,"sub":"alice","aud":%q,"exp":%d%s}`, i.URL, xtest.Audience, now.Add(time.Minute).Unix(), more)
	}
	header := fmt.Sprintf(`{"alg":"ES256","kid":%q,"typ":"JWT"}`, i.Kid)
	parts := strings.Split(good, ".")
	public, err := x509.MarshalPKIXPublicKey(own.Public())
	if err != nil {
		t.Fatal(err)
	}
	for name, compact := range map[string]string{
		"empty": "", "a newline behind": good + "\n", "a space before": " " + good, "two parts": parts[0] + "." + parts[1],
		"four parts": good + ".AA", "padding": good + "=", "no signature": parts[0] + "." + parts[1] + ".",
		"unused bits":      parts[0] + "." + parts[1] + "." + parts[2][:85] + next(parts[2][85]),
		"a line break":     parts[0] + "." + parts[1][:8] + "\n" + parts[1][8:] + "." + parts[2],
		"too long":         i.Token(t, strings.Repeat("a", token.MaxSize), nil),
		"no exp":           i.Token(t, "alice", xtest.Claims{"exp": nil}),
		"ended":            i.Token(t, "alice", xtest.Claims{"exp": now.Unix()}),
		"exp as text":      i.Token(t, "alice", xtest.Claims{"exp": "4102444800"}),
		"exp as fraction":  text(header, strings.Replace(claims(""), `"exp":`, `"exp":0.5e1`, 1)),
		"lives long":       i.Token(t, "alice", xtest.Claims{"exp": now.Add(2 * time.Hour).Unix()}),
		"lives long, aged": i.Token(t, "alice", xtest.Claims{"iat": now.Add(-time.Hour).Unix()}),
		"of tomorrow":      i.Token(t, "alice", xtest.Claims{"nbf": now.Add(2 * time.Minute).Unix()}),
		"issued tomorrow":  i.Token(t, "alice", xtest.Claims{"iat": now.Add(2 * time.Minute).Unix()}),
		"no audience":      i.Token(t, "alice", xtest.Claims{"aud": nil}),
		"no audiences":     i.Token(t, "alice", xtest.Claims{"aud": []string{}}),
		"another audience": i.Token(t, "alice", xtest.Claims{"aud": xtest.Audience + "/"}),
		"two audiences":    i.Token(t, "alice", xtest.Claims{"aud": []string{xtest.Audience, "other"}}),
		"null as audience": text(header, strings.Replace(claims(""), `"aud":"`+xtest.Audience+`"`, `"aud":["`+xtest.Audience+`",null]`, 1)),
		"another issuer":   i.Token(t, "alice", xtest.Claims{"iss": i.URL + "/"}),
		"no issuer":        i.Token(t, "alice", xtest.Claims{"iss": nil}),
		"half a surrogate": text(header, strings.Replace(claims(""), `"alice"`, `"\ud800"`, 1)),
		"no subject":       i.Token(t, "", nil),
		"subject a number": i.Token(t, "", xtest.Claims{"sub": 7}),
		"an event":         i.Token(t, "alice", xtest.Claims{"events": xtest.Claims{}}),
		"alg none":         head(xtest.Claims{"alg": "none"}),
		"alg RS256":        head(xtest.Claims{"alg": "RS256", "kid": "rsa"}), // not one that this issuer is configured for
		"alg PS256":        head(xtest.Claims{"alg": "PS256", "kid": "rsa"}),
		"alg ES384":        head(xtest.Claims{"alg": "ES384"}),
		"alg HS256":        mac(public, `{"alg":"HS256","kid":"`+i.Kid+`","typ":"JWT"}`, claims("")),
		"typ of another":   head(xtest.Claims{"typ": "secevent+jwt"}),
		"no typ":           head(xtest.Claims{"typ": ""}),
		"jku":              head(xtest.Claims{"jku": i.JWKS}),
		"x5u":              head(xtest.Claims{"x5u": i.JWKS}),
		"jwk":              head(xtest.Claims{"jwk": xtest.Claims{}}),
		"crit":             head(xtest.Claims{"crit": []string{"exp"}}),
		"b64":              head(xtest.Claims{"b64": true}),
		"unknown kid":      head(xtest.Claims{"kid": "k2"}),
		"a key of its own": xtest.SignText(t, own, header, claims("")),
		"alg twice":        text(`{"alg":"ES256","alg":"ES256","kid":"`+i.Kid+`","typ":"JWT"}`, claims("")),
		"sub twice":        text(header, claims(`,"sub":"bob"`)),
		"twice, deep":      text(header, claims(`,"x":[{"a":1,"a":2}]`)),
		"too deep":         text(header, claims(`,"x":`+strings.Repeat("[", 40)+strings.Repeat("]", 40))),
		"not UTF-8":        xtest.SignText(t, own, header, claims(",\"x\":\"\xff\"")),
		"a list":           text(header, `["iss"]`),
		"another case":     text(header, strings.Replace(claims(""), `"sub"`, `"SUB"`, 1)),
	} {
		c, err := v.Verify(t.Context(), compact, now)
		if !errors.Is(err, token.ErrRefused) || c.Subject != "" {
			t.Errorf("%s: %v; want ErrRefused", name, err)
		}
		if err != nil && len(compact) > 30 && strings.Contains(err.Error(), compact[len(compact)-30:]) {
			t.Errorf("%s: the error holds the token: %v", name, err)
		}
	}
	if _, err := v.Verify(t.Context(), good, now.Add(5*time.Minute)); !errors.Is(err, token.ErrRefused) {
		t.Errorf("when it has ended: %v", err)
	}
}

// rawJSON is JSON as it is.
type rawJSON string

// MarshalJSON implements json.Marshaler; it does not look at what it is.
func (r rawJSON) MarshalJSON() ([]byte, error) { return []byte(r), nil }

func next(c byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, c)^1])
}

func mac(key []byte, header, claims string) string {
	input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	h := hmac.New(sha256.New, key)
	h.Write([]byte(input))
	return input + "." + base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

func TestEvents(t *testing.T) {
	t.Parallel()
	i := xtest.New(t)
	v := verifier(t, i, func(c *token.Config) { c.Kind = token.Event })
	now := time.Now()
	event := func(changes xtest.Claims) string { return i.Event(t, "urn:x", xtest.Claims{}, xtest.Claims{}, changes) }
	c, err := v.Verify(t.Context(), event(xtest.Claims{"aud": []string{"other", xtest.Audience}}), now)
	if err != nil || c.ID == "" {
		t.Fatalf("in good order: %v", err)
	}
	for name, compact := range map[string]string{
		"exp": event(xtest.Claims{"exp": now.Add(time.Hour).Unix()}), "sub": event(xtest.Claims{"sub": "alice"}), "empty sub": event(xtest.Claims{"sub": ""}),
		"no iat": event(xtest.Claims{"iat": nil}), "old": event(xtest.Claims{"iat": now.Add(-25 * time.Hour).Unix()}),
		"no jti": event(xtest.Claims{"jti": nil}), "long jti": event(xtest.Claims{"jti": strings.Repeat("x", 257)}),
		"for another": event(xtest.Claims{"aud": "other"}), "an ID token": i.Token(t, "alice", nil),
	} {
		if _, err := v.Verify(t.Context(), compact, now); !errors.Is(err, token.ErrRefused) {
			t.Errorf("%s: %v; want ErrRefused", name, err)
		}
	}
}

// TestKeysAreKept: a key set is asked for when it is needed and not more often, and holds for a while when it is away.
func TestKeysAreKept(t *testing.T) {
	t.Parallel()
	i := xtest.New(t)
	v := verifier(t, i)
	now := time.Now()
	at := func(d time.Duration, kid string) error {
		compact := i.Sign(t, xtest.Claims{"alg": "ES256", "kid": kid, "typ": "JWT"}, xtest.Claims{
			"iss": i.URL, "sub": "alice", "aud": xtest.Audience, "exp": now.Add(d + time.Minute).Unix(),
		})
		_, err := v.Verify(t.Context(), compact, now.Add(d))
		return err
	}
	want := func(what string, err, target error, asked int) {
		t.Helper()
		if !errors.Is(err, target) || i.Asked() != asked {
			t.Errorf("%s: %v after asking %d times; want %v after %d", what, err, i.Asked(), target, asked)
		}
	}
	want("first", at(0, i.Kid), nil, 1)
	for n := range 50 {
		want("a made-up key id", at(time.Duration(n)*time.Millisecond, fmt.Sprint("x", n)), token.ErrSignature, 1)
	}
	i.Add(t, "new", xtest.NewKey(t, "ES256"))
	want("a new key, after the pause", at(11*time.Second, "new"), nil, 2)
	i.Remove("new")
	want("a withdrawn key, while the set is kept", at(12*time.Second, "new"), nil, 2)
	want("a withdrawn key, later", at(6*time.Minute, "new"), token.ErrSignature, 3)
	i.Answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	want("away", at(20*time.Minute, i.Kid), nil, 4)
	want("away for long", at(2*time.Hour, i.Kid), token.ErrKeys, 5)
	i.Answer(nil)
	want("back", at(2*time.Hour+time.Minute, i.Kid), nil, 6)
}

// TestKeySets: what a server of keys may send.
func TestKeySets(t *testing.T) {
	t.Parallel()
	i := xtest.New(t)
	key := string(i.KeySet())
	json := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(text))
		}
	}
	one := strings.TrimSuffix(strings.TrimPrefix(key, `{"keys":[`), `]}`)
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   error
	}{
		"good":                 {json(key), nil},
		"further members":      {json(`{"keys":[` + one + `,{"kty":"xyz"},{"kty":"OKP","crv":"X25519","x":"AAAA"}],"x":1}`), nil},
		"a certificate":        {json(strings.Replace(key, `"use"`, `"x5c":["%%"],"x5u":"http://127.0.0.1:1/","use"`, 1)), nil},
		"for verifying":        {json(strings.Replace(key, `"use":"sig"`, `"key_ops":["verify"]`, 1)), nil},
		"for encryption":       {json(strings.Replace(key, `"use":"sig"`, `"use":"enc"`, 1)), token.ErrKeys},
		"for deriving":         {json(strings.Replace(key, `"use":"sig"`, `"key_ops":["deriveKey"]`, 1)), token.ErrKeys},
		"of another algorithm": {json(strings.Replace(key, `"use":"sig"`, `"alg":"ES384"`, 1)), token.ErrKeys},
		"private":              {json(strings.Replace(key, `"use":"sig"`, `"d":"AAAA"`, 1)), token.ErrKeys},
		"shared":               {json(`{"keys":[` + one + `,{"kty":"oct","k":"AAAA"}]}`), token.ErrKeys},
		"twice":                {json(`{"keys":[` + one + `,` + one + `]}`), token.ErrKeys},
		"none":                 {json(`{"keys":[]}`), token.ErrKeys},
		"no set":               {json(`[]`), token.ErrKeys},
		"member twice":         {json(`{"keys":[],` + key[1:]), token.ErrKeys},
		"too large":            {json(key[:len(key)-1] + `,"x":"` + strings.Repeat("x", token.MaxKeySet) + `"}`), token.ErrKeys},
		"many":                 {json(`{"keys":[` + strings.Repeat(`{"kty":"x"},`, 64) + one + `]}`), token.ErrKeys},
		"HTML": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = w.Write([]byte(key))
		}, token.ErrKeys},
		"a short RSA key":       {json(`{"keys":[{"kty":"RSA","kid":"k1","n":"` + base64.RawURLEncoding.EncodeToString(make([]byte, 100)) + `","e":"AQAB"}]}`), token.ErrKeys},
		"a point off the curve": {json(strings.Replace(key, `"x":"`, `"x":"AA`, 1)), token.ErrKeys},
	} {
		i.Answer(c.answer)
		_, err := verifier(t, i).Verify(t.Context(), i.Token(t, "alice", nil), time.Now())
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v; want %v", name, err, c.want)
		}
	}
}

// TestKeysFromAFile: a new set holds soon, and one that can't be read is away.
func TestKeysFromAFile(t *testing.T) {
	t.Parallel()
	i := xtest.New(t)
	path := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(path, i.KeySet(), 0o600); err != nil {
		t.Fatal(err)
	}
	keys := token.FileKeys(path)
	v := verifier(t, i, func(c *token.Config) { c.Keys = keys })
	now := time.Now()
	if _, err := v.Verify(t.Context(), i.Token(t, "alice", nil), now); err != nil {
		t.Fatal(err)
	}
	i.Kid = i.Add(t, "k2", xtest.NewKey(t, "ES256"))
	if err := os.WriteFile(path, i.KeySet(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), i.Token(t, "alice", nil), now.Add(2*time.Second)); err != nil {
		t.Errorf("with a new key: %v", err)
	}
	if err := token.FileKeys(path + ".none").Check(t.Context()); !errors.Is(err, token.ErrKeys) {
		t.Errorf("no file: %v", err)
	}
	if i.Asked() != 0 {
		t.Error("the issuer was asked")
	}
}

func TestConfiguration(t *testing.T) {
	t.Parallel()
	for _, address := range []string{
		"", "keys", "http://issuer.test/keys", "http://localhost/keys", "http://10.0.0.1/keys", "ftp://127.0.0.1/keys", "https://user:pw@issuer.test/keys",
		"https:///keys", "file:///etc/keys", "https://issuer.test/keys#x", "http://127.0.0.1.issuer.test/",
	} {
		if _, err := token.URLKeys(token.URLConfig{URL: address, AllowLoopback: true}); !errors.Is(err, token.ErrConfig) {
			t.Errorf("%q: %v; want ErrConfig", address, err)
		}
	}
	if _, err := token.URLKeys(token.URLConfig{URL: "http://127.0.0.1/keys"}); !errors.Is(err, token.ErrConfig) {
		t.Errorf("http of this machine outside of development: %v", err)
	}
	for _, c := range []token.Config{
		{},
		{Issuer: "i", Audience: "a"},
		{Issuer: "i", Audience: "a", Keys: token.FileKeys("x"), Algorithms: []string{"none"}},
		{Issuer: "i", Audience: "a", Keys: token.FileKeys("x"), Algorithms: []string{"PS256"}},
		{Issuer: "i", Audience: "a", Keys: token.FileKeys("x"), MaxAge: -1},
	} {
		if _, err := token.NewIssuer(c); !errors.Is(err, token.ErrConfig) {
			t.Errorf("%+v: %v; want ErrConfig", c, err)
		}
	}
}

// FuzzVerify: whatever is shown, nothing but what the issuer signed is taken, and in one spelling.
func FuzzVerify(f *testing.F) {
	i := xtest.New(f)
	keys := token.FileKeys(filepath.Join(f.TempDir(), "none"))
	bearer, event := verifier(f, i), verifier(f, i, func(c *token.Config) { c.Kind, c.Keys = token.Event, keys })
	good := i.Token(f, "alice", nil)
	parts := strings.Split(good, ".")
	f.Add(good)
	f.Add(i.Event(f, "urn:x", xtest.Claims{}, xtest.Claims{"format": "opaque", "id": "x"}, nil))
	f.Add(parts[0] + "." + parts[1] + ".AA")
	f.Add("e30.e30.AA")
	f.Add("..")
	f.Fuzz(func(t *testing.T, compact string) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := bearer.Verify(ctx, compact, time.Now()); err == nil && compact != good && !strings.HasPrefix(compact, parts[0]+"."+parts[1]+".") {
			t.Fatal("something that was never signed was taken")
		}
		if _, err := event.Verify(ctx, compact, time.Now()); err == nil {
			t.Fatal("an event was taken without keys")
		}
		_, _ = token.IssuerOf(compact) // it must not panic
	})
}
