package envelope

import (
	"bytes"
	"crypto/elliptic"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/envelope/proof"
)

// sign returns the envelope of p, as the holder of the signing key could make it.
func (sc *scene) sign(t testing.TB, p *parts) []byte {
	t.Helper()
	input := p.signingInput()
	return appendSignature(input, must(proof.SignES256(sc.signer.key, input))(t))
}

// resign replaces header and payload of a JWS by text, and signs it with the real key.
func (sc *scene) resign(t testing.TB, header, payload string) []byte {
	t.Helper()
	input := []byte(b64.EncodeToString([]byte(header)) + "." + b64.EncodeToString([]byte(payload)))
	sig := must(proof.SignES256(sc.signer.key, input))(t)
	return appendSignature(input, sig)
}

// TestEveryByteCounts flips each bit of an envelope.
func TestEveryByteCounts(t *testing.T) {
	forSuites(t, func(t *testing.T, s Suite) {
		sc := newScene(t, s)
		jws := sc.seal(t).Bytes
		must(sc.open(jws))(t)
		bits := 8
		if testing.Short() {
			bits = 1
		}
		bad := bytes.Clone(jws)
		for i := range bad {
			for bit := range bits {
				bad[i] ^= 1 << bit
				if _, err := sc.open(bad); err == nil {
					t.Fatalf("bit %d of byte %d changed, and it opened", bit, i)
				}
				bad[i] = jws[i]
			}
			if _, err := sc.open(slices.Delete(bytes.Clone(jws), i, i+1)); err == nil {
				t.Fatalf("byte %d left out, and it opened", i)
			}
		}
		if _, err := sc.open(bad); err != nil {
			t.Fatalf("the test does not restore what it changes: %v", err)
		}
	})
}

// TestEveryByteCountsBelowTheSignature does the same to each value of the JWE and signs the result anew: encryption
// holds without the signature.
func TestEveryByteCountsBelowTheSignature(t *testing.T) {
	forSuites(t, func(t *testing.T, s Suite) {
		sc := newScene(t, s)
		p, _, _, err := parse(sc.seal(t).Bytes)
		if err != nil {
			t.Fatal(err)
		}
		must(sc.open(sc.sign(t, p)))(t)
		for name, v := range map[string][]byte{
			"ek": p.ek, "encrypted_key": p.encryptedKey, "iv": p.iv, "ciphertext": p.ciphertext, "tag": p.tag,
		} {
			for i := range v {
				for _, mask := range []byte{0x01, 0x80} { // X25519 ignores the top bit of its last byte; the suite must not
					v[i] ^= mask
					_, err := sc.open(sc.sign(t, p))
					v[i] ^= mask
					if err == nil {
						t.Fatalf("byte %d of %s changed by %#x, and it opened", i, name, mask)
					}
					wantErr(t, err, ErrCrypto)
				}
			}
		}
	})
}

// A19: a context of other content, signed by the genuine key, does not open.
func TestAbuse_A19_context_swap(t *testing.T) {
	sc := newScene(t, SuiteHybridX25519())
	sealed := sc.seal(t)
	other := sc.seal(t)
	for name, change := range map[string]func(*Context){
		"session":     func(c *Context) { c.Session = "ses_02" },
		"secret":      func(c *Context) { c.Secret = DigestOf([]byte("other")) },
		"version":     func(c *Context) { c.SecretVersion++ },
		"issued":      func(c *Context) { c.IssuedAt-- },
		"not before":  func(c *Context) { c.NotBefore-- },
		"expiry":      func(c *Context) { c.Expires++ },
		"grade":       func(c *Context) { c.Grade = GradeLeased },
		"uses":        func(c *Context) { c.Uses++ },
		"no limit":    func(c *Context) { c.Uses, c.UsesEnforcedBy = 0, "" },
		"enforcer":    func(c *Context) { c.UsesEnforcedBy = UsesByBroker },
		"places":      func(c *Context) { c.Places = nil },
		"revision":    func(c *Context) { c.Revision = DigestOf(nil) },
		"risk":        func(c *Context) { c.RiskScore++ },
		"risk model":  func(c *Context) { c.RiskModel = DigestOf(nil) },
		"attestation": func(c *Context) { c.Attestation = Digest{} },
		"lock":        func(c *Context) { c.ReceiptLock = other.Context.ReceiptLock },
		"log":         func(c *Context) { c.LogOrigin = "other" },
		"subject":     func(c *Context) { c.Subject = "spiffe://dev.bulla.test/other" },
		"request":     func(c *Context) { c.Request = "req_02" },
		"issuer":      func(c *Context) { c.Issuer = "spiffe://dev.bulla.test/other" },
		"instance":    func(c *Context) { c.Instance = DigestOf(nil).String() },
		"audience":    func(c *Context) { c.Audience = "other" },
		"channel":     func(c *Context) { c.Channel = DigestOf(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			p, _, _, err := parse(sealed.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			c := must(ParseContext(p.aad))(t)
			change(&c)
			p.aad = must(c.encode())(t)
			e := sc.expect // an expectation that fits the swapped context, so that only the encryption can refuse
			e.Subject, e.Request, e.Issuer, e.Instance, e.Audience, e.Channels = c.Subject, c.Request, c.Issuer, c.Instance, c.Audience, []Digest{c.Channel}
			_, err = Open(sc.sign(t, p), sc.keys.Lookup, sc.recipient, e)
			wantErr(t, err, ErrCrypto)
		})
	}
	t.Run("content of another envelope", func(t *testing.T) {
		p, _, _, _ := parse(sealed.Bytes)
		q, _, _, _ := parse(other.Bytes)
		p.ciphertext, p.tag, p.iv = q.ciphertext, q.tag, q.iv
		_, err := sc.open(sc.sign(t, p))
		wantErr(t, err, ErrCrypto)
	})
	t.Run("context of another envelope", func(t *testing.T) {
		p, _, _, _ := parse(sealed.Bytes)
		q, _, _, _ := parse(other.Bytes)
		p.aad = q.aad
		_, err := sc.open(sc.sign(t, p))
		wantErr(t, err, ErrCrypto)
	})
}

// The context stands in info as well as in aad: each alone is enough to refuse another one.
func TestContextIsBoundTwice(t *testing.T) {
	sc := newScene(t, SuiteHybridX25519())
	p, _, _, err := parse(sc.seal(t).Bytes)
	if err != nil {
		t.Fatal(err)
	}
	extra := DigestOf(p.aad)
	if _, err := p.decrypt(sc.recipient.key, p.suite.p.protected, extra[:]); err != nil {
		t.Fatal(err)
	}
	wrong := DigestOf([]byte("other"))
	_, err = p.decrypt(sc.recipient.key, p.suite.p.protected, wrong[:])
	wantErr(t, err, ErrCrypto)
	p.aad = append(p.aad, ' ')
	_, err = p.decrypt(sc.recipient.key, p.suite.p.protected, extra[:])
	wantErr(t, err, ErrCrypto)
}

// TestPlaintextMustFitTheContext: a plaintext without the label, or whose r is not behind the lock, is refused, even
// if the broker itself made it: a client could give no receipt for it.
func TestPlaintextMustFitTheContext(t *testing.T) {
	sc := newScene(t, SuiteP256())
	for name, change := range map[string]func(plain []byte) []byte{
		"as it is":  func(b []byte) []byte { return b },
		"label":     func(b []byte) []byte { b[0] ^= 1; return b },
		"another r": func(b []byte) []byte { b[len(labelData)] ^= 1; return b },
	} {
		t.Run(name, func(t *testing.T) {
			sealed := sc.seal(t)
			p, _, _, err := parse(sealed.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			o := must(sc.open(sealed.Bytes))(t)
			plain := change(bytes.Clone(o.plain.Expose()))
			extra := DigestOf(p.aad)
			if err := p.encrypt(sc.input.Recipient.key, extra[:], plain); err != nil {
				t.Fatal(err)
			}
			_, err = sc.open(sc.sign(t, p))
			if name == "as it is" {
				wantErr(t, err, nil)
				return
			}
			wantErr(t, err, ErrCrypto)
		})
	}
}

// A17: other spellings of the same envelope.
func TestAbuse_A17_malleation(t *testing.T) {
	sc := newScene(t, SuiteP256())
	jws := string(sc.seal(t).Bytes)
	seg := strings.Split(jws, ".")
	head, _ := b64.DecodeString(seg[0])
	payload, _ := b64.DecodeString(seg[1])
	kid := sc.signer.kid
	const alg, typ = `"alg":"ES256"`, `"typ":"` + Type + `"`

	// What the signature covers as it stands: the same signature, other bytes.
	sameSignature := map[string]string{
		"trailing newline":      jws + "\n",
		"carriage return":       jws + "\r",
		"leading space":         " " + jws,
		"newline in the header": seg[0][:8] + "\n" + seg[0][8:] + "." + seg[1] + "." + seg[2],
		"newline in the middle": seg[0] + "." + seg[1] + "." + seg[2][:40] + "\n" + seg[2][40:],
		"padding":               jws + "==",
		"fourth part":           jws + ".",
		"unused signature bits": jws[:len(jws)-1] + nextUnused(seg[2]),
		"other half of s":       seg[0] + "." + seg[1] + "." + otherHalf(t, seg[2]),
		"JSON serialization":    fmt.Sprintf(`{"payload":%q,"protected":%q,"signature":%q}`, seg[1], seg[0], seg[2]),
		"no signature":          seg[0] + "." + seg[1] + ".",
		"empty":                 "",
		"two dots":              "..",
	}
	for name, bad := range sameSignature {
		t.Run(name, func(t *testing.T) {
			if bad == jws {
				t.Fatal("the test changes nothing")
			}
			if _, err := sc.open([]byte(bad)); err == nil {
				t.Fatal("opened")
			}
		})
	}

	// Other headers, signed by the genuine key.
	for name, bad := range map[string]string{
		"space in the header": `{` + alg + `, "kid":"` + kid + `",` + typ + `}`,
		"order":               `{"kid":"` + kid + `",` + alg + `,` + typ + `}`,
		"doubled alg":         `{"alg":"none",` + alg + `,"kid":"` + kid + `",` + typ + `}`,
		"doubled kid":         `{` + alg + `,"kid":"x","kid":"` + kid + `",` + typ + `}`,
		"crit":                `{` + alg + `,"crit":["b64"],"b64":true,"kid":"` + kid + `",` + typ + `}`,
		"jwk":                 `{` + alg + `,"jwk":{},"kid":"` + kid + `",` + typ + `}`,
		"jku":                 `{` + alg + `,"jku":"https://example.org","kid":"` + kid + `",` + typ + `}`,
		"alg none":            `{"alg":"none","kid":"` + kid + `",` + typ + `}`,
		"alg HS256":           `{"alg":"HS256","kid":"` + kid + `",` + typ + `}`,
		"alg ES384":           `{"alg":"ES384","kid":"` + kid + `",` + typ + `}`,
		"no kid":              `{` + alg + `,` + typ + `}`,
		"empty kid":           `{` + alg + `,"kid":"",` + typ + `}`,
		"typ JWT":             `{` + alg + `,"kid":"` + kid + `","typ":"JWT"}`,
		"no typ":              `{` + alg + `,"kid":"` + kid + `"}`,
		"escaped":             `{"alg":"ES256","kid":"` + kid + `","typ":"bulla-envelope\u002bjws"}`,
		"upper case":          `{"ALG":"ES256","kid":"` + kid + `",` + typ + `}`,
	} {
		t.Run("header: "+name, func(t *testing.T) {
			_, err := sc.open(sc.resign(t, bad, string(payload)))
			wantErr(t, err, ErrMalformed)
		})
	}

	// Other spellings of the JWE and of the context, signed by the genuine key.
	p, _, _, _ := parse([]byte(jws))
	aad64 := b64.EncodeToString(p.aad)
	withContext := func(c string) string {
		return strings.Replace(string(payload), aad64, b64.EncodeToString([]byte(c)), 1)
	}
	for name, bad := range map[string]string{
		"indented":              indent(t, payload),
		"trailing newline":      string(payload) + "\n",
		"unknown member":        strings.Replace(string(payload), `"iv"`, `"x":"","iv"`, 1),
		"doubled member":        strings.Replace(string(payload), `"iv"`, `"iv":"AAAAAAAAAAAAAAAA","iv"`, 1),
		"unprotected alg":       strings.Replace(string(payload), `{"ek"`, `{"alg":"HPKE-7-KE","ek"`, 1),
		"shared header":         strings.Replace(string(payload), `"header"`, `"unprotected":{},"header"`, 1),
		"padding":               strings.Replace(string(payload), `"}`, `="}`, 1),
		"newline in a value":    strings.Replace(string(payload), aad64, aad64[:8]+"\n"+aad64[8:], 1),
		"no tag":                string(payload)[:strings.Index(string(payload), `,"tag"`)] + "}",
		"space in the context":  withContext(strings.Replace(string(p.aad), ":", ": ", 1)),
		"unknown context field": withContext(strings.Replace(string(p.aad), `{"v"`, `{"x":1,"v"`, 1)),
		"doubled context field": withContext(strings.Replace(string(p.aad), `"uses":5`, `"uses":9,"uses":5`, 1)),
		"context field case":    withContext(strings.Replace(string(p.aad), `"uses":5`, `"USES":5`, 1)),
		"context field missing": withContext(strings.Replace(string(p.aad), `"uses":5,`, ``, 1)),
		"empty context":         withContext(""),
	} {
		t.Run("payload: "+name, func(t *testing.T) {
			if bad == string(payload) {
				t.Fatal("the test changes nothing")
			}
			_, err := sc.open(sc.resign(t, string(head), bad))
			wantErr(t, err, ErrMalformed)
		})
	}
	must(sc.open(sc.resign(t, string(head), string(payload))))(t)
}

// nextUnused returns another last character that decodes to the same bytes in a lenient decoder.
func nextUnused(s string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, s[len(s)-1])|1])
}

// otherHalf returns the second signature that plain ECDSA accepts: s replaced by n-s.
func otherHalf(t *testing.T, sig64 string) string {
	sig, err := b64.DecodeString(sig64)
	if err != nil {
		t.Fatal(err)
	}
	s := new(big.Int).SetBytes(sig[32:])
	s.Sub(elliptic.P256().Params().N, s).FillBytes(sig[32:])
	return b64.EncodeToString(sig)
}

func indent(t *testing.T, b []byte) string {
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", " "); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// A18: suite and grade can't be lowered on the way or by the broker's mistake.
func TestAbuse_A18_downgrade(t *testing.T) {
	t.Run("weaker than the minimum", func(t *testing.T) {
		sc := newScene(t, SuiteP256())
		sc.expect.MinimumSuite = SuiteHybridP256()
		_, err := sc.open(sc.seal(t).Bytes)
		wantErr(t, err, ErrSuite)
	})
	t.Run("stronger than the minimum is welcome", func(t *testing.T) {
		sc := newScene(t, SuiteHybridP256())
		sc.expect.MinimumSuite = SuiteP256()
		must(sc.open(sc.seal(t).Bytes))(t)
	})
	t.Run("another suite than the key's", func(t *testing.T) {
		sc, other := newScene(t, SuiteHybridX25519()), newScene(t, SuiteHybridP256())
		_, err := Open(sc.seal(t).Bytes, sc.keys.Lookup, other.recipient, sc.expect)
		wantErr(t, err, ErrSuite)
	})
	t.Run("context and header disagree", func(t *testing.T) {
		sc := newScene(t, SuiteHybridX25519())
		p, _, _, _ := parse(sc.seal(t).Bytes)
		c := must(ParseContext(p.aad))(t)
		c.Suite = SuiteP256().Number()
		p.aad = must(c.encode())(t)
		jws := sc.sign(t, p)
		_, err := sc.open(jws)
		wantErr(t, err, ErrSuite)
		_, err = Verify(jws, sc.keys.Lookup)
		wantErr(t, err, ErrSuite)
	})
	t.Run("header names another suite", func(t *testing.T) {
		sc := newScene(t, SuiteP256())
		jws := sc.seal(t).Bytes
		for _, alg := range []string{"HPKE-0-KE", "HPKE-7", "dir", "ECDH-ES+A256KW", "HPKE-8-KE"} {
			p, _, _, _ := parse(jws)
			payload := strings.Replace(string(p.payload()), SuiteP256().p.protected,
				b64.EncodeToString([]byte(`{"alg":"`+alg+`","enc":"A256GCM"}`)), 1)
			_, err := sc.open(sc.resign(t, jwsHead+sc.signer.kid+jwsTail, payload))
			wantErr(t, err, ErrMalformed)
		}
	})
	t.Run("grade, uses and expiry changed in transit", func(t *testing.T) {
		sc := newScene(t, SuiteP256())
		p, input, sig, _ := parse(sc.seal(t).Bytes)
		_ = input
		c := must(ParseContext(p.aad))(t)
		c.Grade, c.Expires = GradeProxied, testNow.Add(2*time.Hour).Unix()
		p.aad = must(c.encode())(t)
		_, err := sc.open(appendSignature(p.signingInput(), sig))
		wantErr(t, err, ErrCrypto)
	})
}

func TestSizeCaps(t *testing.T) {
	sc := newScene(t, SuiteP256())
	_, err := sc.open(bytes.Repeat([]byte("A"), MaxEnvelope+1))
	wantErr(t, err, ErrMalformed)
	_, err = ParseContext(bytes.Repeat([]byte("{"), MaxContext+1))
	wantErr(t, err, ErrMalformed)
	_, err = ParseKeySet(bytes.Repeat([]byte("{"), MaxKeySet+1))
	wantErr(t, err, ErrMalformed)
}
