package abuse

import (
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/certs/xtest"
	"github.com/bulla-project/bulla/test/rig"
)

// tokenForms shows tokens to the reader that a bearer factor would go through, signed by the key that signs the
// trust domain's real ones.
func tokenForms(t *testing.T, r *rig.Rig, src *certs.Source) {
	const audience = "bulla"
	key, kid := xtest.LoadDevJWTKey(t, filepath.Join(r.Dir, "authority"))
	claims := func(change func(map[string]any)) []byte {
		c := map[string]any{"sub": rig.ID("workload").String(), "aud": []string{audience}, "exp": time.Now().Add(time.Minute).Unix(), "iat": time.Now().Unix()}
		change(c)
		out, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	asIs := claims(func(map[string]any) {})
	header := `{"alg":"ES256","kid":"` + kid + `","typ":"JWT"}`
	good := jws(t, key, header, asIs)
	if _, err := src.ValidateJWTSVID(good, audience); err != nil {
		t.Fatalf("in good order: %v", err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	for what, token := range map[string]string{
		"no exp":                 jws(t, key, header, claims(func(c map[string]any) { delete(c, "exp") })),
		"expired":                jws(t, key, header, claims(func(c map[string]any) { c["exp"] = time.Now().Add(-time.Second).Unix() })),
		"no audience":            jws(t, key, header, claims(func(c map[string]any) { delete(c, "aud") })),
		"an empty audience":      jws(t, key, header, claims(func(c map[string]any) { c["aud"] = []string{} })),
		"another audience":       jws(t, key, header, claims(func(c map[string]any) { c["aud"] = []string{"other"} })),
		"no subject":             jws(t, key, header, claims(func(c map[string]any) { delete(c, "sub") })),
		"a spelled subject":      jws(t, key, header, claims(func(c map[string]any) { c["sub"] = "spiffe://DEV.bulla.test/workload" })),
		"alg none":               unsigned(`{"alg":"none","kid":"`+kid+`"}`, asIs) + ".",
		"alg none, signed":       jws(t, key, `{"alg":"none","kid":"`+kid+`"}`, asIs),
		"alg HS256 by public":    mac(public, `{"alg":"HS256","kid":"`+kid+`"}`, asIs),
		"a key of its own":       jws(t, xtest.NewKey(t), header, asIs),
		"an unknown kid":         jws(t, key, `{"alg":"ES256","kid":"none"}`, asIs),
		"jku":                    jws(t, key, `{"alg":"ES256","kid":"`+kid+`","jku":"https://evil.test/keys"}`, asIs),
		"a duplicated alg":       jws(t, key, `{"alg":"ES256","alg":"ES256","kid":"`+kid+`"}`, asIs),
		"a trailing newline":     good + "\n",
		"another trust domain's": jws(t, key, header, claims(func(c map[string]any) { c["sub"] = "spiffe://foreign.test/workload" })),
	} {
		if _, err := src.ValidateJWTSVID(token, audience); !errors.Is(err, certs.ErrUntrusted) && !errors.Is(err, certs.ErrExpired) {
			t.Errorf("%s: %v; want a refusal", what, err)
		}
	}
}

func unsigned(header string, claims []byte) string {
	return base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString(claims)
}

func jws(t *testing.T, key *ecdsa.PrivateKey, header string, claims []byte) string {
	t.Helper()
	text := unsigned(header, claims)
	digest := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	return strings.Join([]string{text, base64.RawURLEncoding.EncodeToString(signature)}, ".")
}

func mac(key []byte, header string, claims []byte) string {
	text := unsigned(header, claims)
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}
