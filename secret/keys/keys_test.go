package keys

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/secret"
)

var types = []secret.Type{secret.TypeECDSAP256, secret.TypeEd25519, secret.TypeHMACSHA256, secret.TypeAES256GCM}

func generate(t testing.TB, kind secret.Type) *Key {
	t.Helper()
	value, err := Generate(kind)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, kind, value.Expose())
}

func parse(t testing.TB, kind secret.Type, raw []byte) *Key {
	t.Helper()
	k, err := Parse(kind, 3, secret.NewBytes(raw))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func do(t testing.TB, k *Key, in Input) []byte {
	t.Helper()
	out, err := k.Do(in)
	if err != nil {
		t.Fatalf("%s: %v", in.Operation, err)
	}
	return out
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	raw, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// RFC 6979, A.2.5, SHA-256, "sample". Its s is the upper one of the two, so that n-s is what is made here.
func TestECDSAVector(t *testing.T) {
	k := parse(t, secret.TypeECDSAP256, unhex(t, "c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721"))
	got := do(t, k, Input{Operation: Sign, Data: []byte("sample")})
	s := new(big.Int).SetBytes(unhex(t, "f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"))
	s.Sub(elliptic.P256().Params().N, s)
	want := append(unhex(t, "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716"), s.FillBytes(make([]byte, 32))...)
	if !bytes.Equal(got, want) {
		t.Errorf("signature %x, want %x", got, want)
	}
	digest := sha256.Sum256([]byte("sample"))
	der, err := EncodeDER(got)
	if err != nil || !ecdsa.VerifyASN1(k.Public().Key.(*ecdsa.PublicKey), digest[:], der) {
		t.Errorf("the standard library does not take it: %v", err)
	}
	upper := append(bytes.Clone(want[:32]), unhex(t, "f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8")...)
	if _, err := k.Do(Input{Operation: Verify, Data: []byte("sample"), Signature: upper}); !errors.Is(err, ErrNotAuthentic) {
		t.Errorf("a second signature of the same message: %v", err)
	}
}

// RFC 8032, 7.1, test 2.
func TestEd25519Vector(t *testing.T) {
	k := parse(t, secret.TypeEd25519, unhex(t, "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
	got := do(t, k, Input{Operation: Sign, Data: []byte{0x72}})
	want := unhex(t, "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00")
	if !bytes.Equal(got, want) || !ed25519.Verify(k.Public().Key.(ed25519.PublicKey), []byte{0x72}, got) {
		t.Errorf("signature %x, want %x", got, want)
	}
}

func TestMAC(t *testing.T) {
	raw := bytes.Repeat([]byte{7}, Size)
	k := parse(t, secret.TypeHMACSHA256, raw)
	h := hmac.New(sha256.New, raw)
	h.Write([]byte("message"))
	got := do(t, k, Input{Operation: MAC, Data: []byte("message")})
	if !bytes.Equal(got, h.Sum(nil)) {
		t.Errorf("MAC %x", got)
	}
	do(t, k, Input{Operation: VerifyMAC, Data: []byte("message"), Signature: got})
}

// What checks out does so for this key and this input alone, whichever byte is another.
func TestChecksRefuseEveryChange(t *testing.T) {
	for _, c := range []struct {
		kind        secret.Type
		make, check Operation
	}{{secret.TypeECDSAP256, Sign, Verify}, {secret.TypeEd25519, Sign, Verify}, {secret.TypeHMACSHA256, MAC, VerifyMAC}} {
		k, message := generate(t, c.kind), []byte("a message")
		tag := do(t, k, Input{Operation: c.make, Data: message})
		if again := do(t, k, Input{Operation: c.make, Data: message}); !bytes.Equal(again, tag) {
			t.Errorf("%s: another result the second time", c.kind)
		}
		do(t, k, Input{Operation: c.check, Data: message, Signature: tag})
		bad := func(what string, k *Key, message, tag []byte) {
			t.Helper()
			if _, err := k.Do(Input{Operation: c.check, Data: message, Signature: tag}); !errors.Is(err, ErrNotAuthentic) {
				t.Errorf("%s, %s: %v", c.kind, what, err)
			}
		}
		for i := range tag {
			spoiled := bytes.Clone(tag)
			spoiled[i] ^= 1
			bad(fmt.Sprint("byte ", i), k, message, spoiled)
		}
		bad("cut", k, message, tag[:len(tag)-1])
		bad("half", k, message, tag[:len(tag)/2])
		bad("none", k, message, nil)
		bad("zeros", k, message, make([]byte, len(tag)))
		bad("another message", k, []byte("a Message"), tag)
		bad("another key", generate(t, c.kind), message, tag)
	}
}

func TestCiphertexts(t *testing.T) {
	k, plain, aad := generate(t, secret.TypeAES256GCM), []byte("plaintext"), []byte("context")
	ct := do(t, k, Input{Operation: Encrypt, Data: plain, AssociatedData: aad})
	if v, err := CiphertextVersion(ct); v != 3 || err != nil || len(ct) != len(plain)+Overhead {
		t.Fatalf("version %d, %v, %d bytes", v, err, len(ct))
	}
	if again := do(t, k, Input{Operation: Encrypt, Data: plain, AssociatedData: aad}); bytes.Equal(again, ct) {
		t.Error("the same nonce twice")
	}
	if got := do(t, k, Input{Operation: Decrypt, Data: ct, AssociatedData: aad}); !bytes.Equal(got, plain) {
		t.Errorf("opened to %q", got)
	}
	bad := func(what string, k *Key, ct, aad []byte) {
		t.Helper()
		if out, err := k.Do(Input{Operation: Decrypt, Data: ct, AssociatedData: aad}); !errors.Is(err, ErrNotAuthentic) || out != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range ct {
		spoiled := bytes.Clone(ct)
		spoiled[i] ^= 1
		bad(fmt.Sprint("byte ", i), k, spoiled, aad)
		bad(fmt.Sprint("cut to ", i), k, ct[:i], aad)
	}
	bad("other associated data", k, ct, []byte("Context"))
	bad("no associated data", k, ct, nil)
	bad("another key", generate(t, secret.TypeAES256GCM), ct, aad)
	older := *k
	older.version = 2
	bad("another version of the same bytes", &older, ct, aad)
	relabelled := append(append([]byte{FormatCiphertext, 0, 0, 0, 2}, ct[5:]...), nil...)
	bad("the same under another version", &older, relabelled, aad)
	do(t, k, Input{Operation: Decrypt, Data: do(t, k, Input{Operation: Encrypt, Data: make([]byte, MaxInput)})})
}

func TestWhatAKeyCanDo(t *testing.T) {
	all := []Operation{Sign, Verify, MAC, VerifyMAC, Encrypt, Decrypt, "", "export"}
	for _, kind := range types {
		k, can := generate(t, kind), 0
		for _, o := range all {
			if _, err := k.Do(Input{Operation: o, Data: []byte("x")}); !errors.Is(err, ErrInvalid) {
				can++
			}
		}
		if can != 2 || len(Operations(kind)) != 2 {
			t.Errorf("%s does %d operations, want 2", kind, can)
		}
	}
	if Operations(secret.TypeOpaque) != nil || Operations("") != nil {
		t.Error("what is no key does something")
	}
	box, sig := generate(t, secret.TypeAES256GCM), generate(t, secret.TypeECDSAP256)
	for name, c := range map[string]struct {
		k  *Key
		in Input
	}{
		"a long message":                {sig, Input{Operation: Sign, Data: make([]byte, MaxInput+1)}},
		"a long plaintext":              {box, Input{Operation: Encrypt, Data: make([]byte, MaxInput+1)}},
		"a long ciphertext":             {box, Input{Operation: Decrypt, Data: make([]byte, MaxInput+Overhead+1)}},
		"long associated data":          {box, Input{Operation: Encrypt, AssociatedData: make([]byte, MaxAssociatedData+1)}},
		"associated data of a message":  {sig, Input{Operation: Sign, AssociatedData: []byte("x")}},
		"a signature beside a message":  {sig, Input{Operation: Sign, Signature: []byte("x")}},
		"a long signature":              {sig, Input{Operation: Verify, Signature: make([]byte, SignatureSize+1)}},
		"a signature of what is sealed": {box, Input{Operation: Decrypt, Data: make([]byte, Overhead), Signature: []byte("x")}},
	} {
		if _, err := c.k.Do(c.in); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	raw := bytes.Repeat([]byte{1}, Size)
	for name, c := range map[string]struct {
		kind    secret.Type
		version secret.Version
		raw     []byte
	}{
		"opaque": {secret.TypeOpaque, 1, raw}, "no type": {"", 1, raw}, "no version": {secret.TypeAES256GCM, 0, raw},
		"short": {secret.TypeHMACSHA256, 1, raw[1:]}, "long": {secret.TypeEd25519, 1, append(raw, 1)}, "empty": {secret.TypeAES256GCM, 1, nil},
		"the scalar 0": {secret.TypeECDSAP256, 1, make([]byte, Size)}, "a scalar above the order": {secret.TypeECDSAP256, 1, bytes.Repeat([]byte{255}, Size)},
	} {
		if _, err := Parse(c.kind, c.version, secret.NewBytes(c.raw)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, kind := range []secret.Type{secret.TypeOpaque, ""} {
		if _, err := Generate(kind); !errors.Is(err, ErrInvalid) {
			t.Errorf("generated %q: %v", kind, err)
		}
	}
}

func TestPublic(t *testing.T) {
	for _, kind := range types {
		p := generate(t, kind).Public()
		text, err := p.Encode()
		if err != nil || len(text) > MaxPublic {
			t.Fatalf("%s: %d bytes, %v", kind, len(text), err)
		}
		again, err := ParsePublic(text)
		if err != nil || again.Type != kind || again.Version != 3 || (again.Key == nil) != (p.Key == nil) {
			t.Errorf("%s: %+v, %v", text, again, err)
		}
		jwk, err := p.JWK()
		if err != nil || (jwk == nil) != (p.Key == nil) || !bytes.Contains(text, jwk) {
			t.Errorf("%s: JWK %s, %v", kind, jwk, err)
		}
		s := string(text)
		for name, bad := range map[string]string{
			"space": s + "\n", "version 0": strings.Replace(s, `"version":3`, `"version":0`, 1), "label": strings.Replace(s, "/v1", "/v2", 1),
			"type": strings.Replace(s, string(kind), "opaque", 1), "unknown member": strings.Replace(s, `{"v"`, `{"d":1,"v"`, 1),
			"another type": strings.NewReplacer("ecdsa-p256", "ed25519", "ed25519", "hmac-sha256", "hmac-sha256", "ecdsa-p256", "aes-256-gcm", "ed25519").Replace(s),
			"repeated":     strings.Replace(s, `{"v"`, `{"version":3,"v"`, 1), "cut": s[:len(s)-1], "long": s + strings.Repeat(" ", MaxPublic),
		} {
			if _, err := ParsePublic([]byte(bad)); !errors.Is(err, ErrInvalid) {
				t.Errorf("%s, %s: %v", kind, name, err)
			}
		}
	}
}

// A key shows itself to no verb, as little as its bytes do.
func TestKeysPrintNowhere(t *testing.T) {
	for _, kind := range types {
		value, err := Generate(kind)
		if err != nil {
			t.Fatal(err)
		}
		k, err := Parse(kind, 1, value)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&out, verb+verb, k, *k)
		}
		raw := value.Expose()
		for _, form := range []string{string(raw), hex.EncodeToString(raw), strings.Trim(fmt.Sprint(raw), "[]"), new(big.Int).SetBytes(raw).String()} {
			if strings.Contains(strings.ToLower(out.String()), strings.ToLower(form)) {
				t.Errorf("%s: its bytes are in %s", kind, out.String())
			}
		}
	}
}

func FuzzParsePublic(f *testing.F) {
	for _, kind := range types {
		text, err := generate(f, kind).Public().Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParsePublic(text)
		if err != nil {
			return
		}
		if again, err := p.Encode(); err != nil || !bytes.Equal(again, text) {
			t.Errorf("%q became %q, %v", text, again, err)
		}
		_ = p.Verify([]byte("m"), make([]byte, SignatureSize))
	})
}

func FuzzDER(f *testing.F) {
	der, err := EncodeDER(do(f, generate(f, secret.TypeECDSAP256), Input{Operation: Sign, Data: []byte("m")}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add(append(der, 0))
	f.Add([]byte{0x30, 6, 2, 1, 1, 2, 1, 1})
	f.Fuzz(func(t *testing.T, der []byte) {
		raw, err := DecodeDER(der)
		if err != nil {
			return
		}
		if again, err := EncodeDER(raw); err != nil || !bytes.Equal(again, der) || len(raw) != SignatureSize {
			t.Errorf("%x became %x, %v", der, again, err)
		}
	})
}

func FuzzDecrypt(f *testing.F) {
	k := parse(f, secret.TypeAES256GCM, bytes.Repeat([]byte{1}, Size))
	f.Add(do(f, k, Input{Operation: Encrypt, Data: []byte("plain")}), []byte(nil))
	f.Add(make([]byte, Overhead), []byte("aad"))
	f.Fuzz(func(t *testing.T, ct, aad []byte) {
		out, err := k.Do(Input{Operation: Decrypt, Data: ct, AssociatedData: aad})
		if v, e := CiphertextVersion(ct); err == nil && (e != nil || v != 3 || len(out) != len(ct)-Overhead) {
			t.Errorf("%x opened to %d bytes, version %d, %v", ct, len(out), v, e)
		}
	})
}
