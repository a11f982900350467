package envelope

import (
	"bytes"
	"encoding/json"
	"testing"
)

// FuzzOpen: whatever comes, no panic; what parses has exactly one spelling; nothing but the genuine envelope opens.
func FuzzOpen(f *testing.F) {
	var scenes []*scene
	for _, s := range Suites() {
		sc := newScene(f, s)
		scenes = append(scenes, sc)
		f.Add(sc.seal(f).Bytes)
	}
	f.Add([]byte("eyJhbGciOiJFUzI1NiJ9.e30.AAAA"))
	f.Add([]byte(".."))
	f.Fuzz(func(t *testing.T, jws []byte) {
		if p, input, sig, err := parse(jws); err == nil {
			if !bytes.Equal(appendSignature(p.signingInput(), sig), jws) || !bytes.HasPrefix(jws, input) {
				t.Fatal("accepted, but written differently")
			}
		}
		for _, sc := range scenes {
			if o, err := sc.open(jws); err == nil && o.Secret().Len() == 0 {
				t.Fatal("opened to nothing")
			}
		}
	})
}

// FuzzParsePayload starts below the signature, where a fuzzer gets no further by itself.
func FuzzParsePayload(f *testing.F) {
	for _, s := range Suites() {
		p, _, _, err := parse(newScene(f, s).seal(f).Bytes)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p.payload())
	}
	f.Add([]byte(`{"protected":"","header":{"ek":""},"encrypted_key":"","aad":"","iv":"","ciphertext":"","tag":""}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		p := &parts{}
		if what := p.parsePayload(payload); what != "" {
			return
		}
		if !bytes.Equal(p.payload(), payload) {
			t.Fatalf("accepted, but written differently: %s", payload)
		}
	})
}

// FuzzContext: what is accepted is valid and has exactly one spelling.
func FuzzContext(f *testing.F) {
	c := sealedContext(f)
	f.Add(must(c.encode())(f))
	c.Attestation, c.Places, c.Uses, c.UsesEnforcedBy = Digest{}, nil, 0, ""
	f.Add(must(c.encode())(f))
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"v":"bulla-envelope/v1","sid":"\u0041"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseContext(b)
		if err != nil {
			return
		}
		if again, err := c.encode(); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("accepted, but written differently: %s (%v)", again, err)
		}
	})
}

// FuzzKeySet: what is accepted has exactly one spelling.
func FuzzKeySet(f *testing.F) {
	f.Add(must(json.Marshal(must(NewKeySet(testKey(f, "a"), testKey(f, "b")))(f)))(f))
	f.Add([]byte(`{"keys":[]}`))
	f.Add([]byte(`{"keys":[{"kty":"EC"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseKeySet(b)
		if err != nil {
			return
		}
		if again, err := json.Marshal(s); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("accepted, but written differently: %s (%v)", again, err)
		}
	})
}
