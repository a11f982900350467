package envelope

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/secret"
)

var testNow = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// scene is a broker and a client that fit each other.
type scene struct {
	signer    *Signer
	keys      *KeySet
	instance  *ecdsa.PrivateKey
	recipient *Recipient
	input     SealInput
	expect    Expectation
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newScene(t testing.TB, s Suite) *scene {
	t.Helper()
	sc := &scene{}
	signing := must(proof.GenerateInstanceKey())(t)
	sc.signer = must(NewSigner(proof.Thumbprint(&signing.PublicKey), signing))(t)
	sc.keys = must(NewKeySet(sc.signer.Key()))(t)
	sc.instance = must(proof.GenerateInstanceKey())(t)
	sc.recipient = must(GenerateRecipient(s))(t)
	channel := DigestOf([]byte("channel"))
	c := Context{
		Session: "ses_01", Request: "req_01",
		Issuer: "spiffe://dev.bulla.test/bulla/broker", Subject: "spiffe://dev.bulla.test/workload",
		Instance: proof.Thumbprint(&sc.instance.PublicKey), Audience: "spiffe://dev.bulla.test/workload",
		Secret: DigestOf([]byte("name")), SecretVersion: 3,
		IssuedAt: testNow.Unix(), NotBefore: testNow.Unix(), Expires: testNow.Add(time.Hour).Unix(),
		Grade: GradeOpen, Uses: 5, UsesEnforcedBy: UsesByClient, Places: []string{"CH", "DE"},
		Revision: DigestOf([]byte("revision")), RiskScore: 12, RiskModel: DigestOf([]byte("model")),
		Attestation: DigestOf([]byte("attestation")), Channel: channel, LogOrigin: "bulla.test/log",
	}
	sc.input = SealInput{Recipient: sc.to(t), Context: c, Secret: secret.NewBytes([]byte("correct horse battery staple"))}
	sc.expect = Expectation{
		Request: c.Request, Issuer: c.Issuer, Subject: c.Subject, Instance: c.Instance, Audience: c.Audience,
		Channels: []Digest{channel}, MinimumSuite: s, Now: testNow.Add(time.Minute), Skew: time.Minute,
	}
	return sc
}

// to is the recipient's public key, as the sealing side parses it.
func (sc *scene) to(t testing.TB) RecipientKey {
	t.Helper()
	return must(ParseRecipientKey(sc.recipient.Suite(), sc.recipient.PublicKey()))(t)
}

func (sc *scene) seal(t testing.TB) Sealed {
	t.Helper()
	return must(Seal(sc.input, sc.signer))(t)
}

func (sc *scene) open(jws []byte) (*Opened, error) {
	return Open(jws, sc.keys.Lookup, sc.recipient, sc.expect)
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func forSuites(t *testing.T, f func(t *testing.T, s Suite)) {
	for _, s := range Suites() {
		t.Run(s.String(), func(t *testing.T) { f(t, s) })
	}
}

func TestSealOpen(t *testing.T) {
	forSuites(t, func(t *testing.T, s Suite) {
		sc := newScene(t, s)
		for _, size := range []int{0, 1, 32, MaxSecret} {
			data := make([]byte, size)
			_, _ = rand.Read(data)
			sc.input.Secret = secret.NewBytes(bytes.Clone(data))
			sealed := sc.seal(t)
			if len(sealed.Bytes) > MaxEnvelope {
				t.Fatalf("%d bytes of secret make an envelope of %d", size, len(sealed.Bytes))
			}
			o := must(sc.open(sealed.Bytes))(t)
			if !bytes.Equal(o.Secret().Expose(), data) || !bytes.Equal(sc.input.Secret.Expose(), data) {
				t.Fatal("secret changed on its way")
			}
			if fmt.Sprint(o.Context) != fmt.Sprint(sealed.Context) || o.Digest != sealed.Digest ||
				o.Digest != DigestOf(sealed.Bytes) || o.Context.Suite != s.Number() || o.KeyID != sc.signer.kid {
				t.Fatal("context or digest differs between the two sides")
			}
			v := must(Verify(sealed.Bytes, sc.keys.Lookup))(t)
			if v.Digest != o.Digest || fmt.Sprint(v.Context) != fmt.Sprint(o.Context) {
				t.Fatal("Verify and Open disagree")
			}
			opened := o.Secret()
			o.Wipe()
			o.Wipe()
			if o.Secret().Len() != 0 || !bytes.Equal(opened.Expose(), make([]byte, size)) {
				t.Fatal("Wipe left the secret")
			}
		}
	})
}

func TestEnvelopeSizes(t *testing.T) {
	forSuites(t, func(t *testing.T, s Suite) {
		sc := newScene(t, s)
		sc.input.Secret = secret.NewBytes(make([]byte, 32))
		n := len(sc.seal(t).Bytes)
		t.Logf("a 32-byte secret makes an envelope of %d bytes", n)
		if limit := 3000 + s.p.encLen*16/9; n > limit {
			t.Errorf("%d bytes, more than %d", n, limit)
		}
	})
}

// TestSealIsFresh: nothing random is used twice, and the input is not changed.
func TestSealIsFresh(t *testing.T) {
	sc := newScene(t, SuiteHybridX25519())
	before := fmt.Sprintf("%+v", sc.input.Context)
	a, _, _, _ := parse(sc.seal(t).Bytes)
	b, _, _, _ := parse(sc.seal(t).Bytes)
	for name, pair := range map[string][2][]byte{
		"ek": {a.ek, b.ek}, "key": {a.encryptedKey, b.encryptedKey}, "iv": {a.iv, b.iv}, "context (lock)": {a.aad, b.aad},
	} {
		if bytes.Equal(pair[0], pair[1]) {
			t.Errorf("%s is the same in two envelopes", name)
		}
	}
	if after := fmt.Sprintf("%+v", sc.input.Context); after != before {
		t.Errorf("Seal changed its input: %s", after)
	}
}

// keyExchanger hides a private key behind the interface that a TPM has.
type keyExchanger struct{ *ecdh.PrivateKey }

func TestHardwareRecipient(t *testing.T) {
	for _, s := range []Suite{SuiteP256(), SuiteHybridP256()} {
		t.Run(s.String(), func(t *testing.T) {
			sc := newScene(t, s)
			key := must(ecdh.P256().GenerateKey(rand.Reader))(t)
			sc.recipient = must(NewHardwareRecipient(s, keyExchanger{key}))(t)
			sc.input.Recipient = sc.to(t)
			o := must(sc.open(sc.seal(t).Bytes))(t)
			if !bytes.Equal(o.Secret().Expose(), sc.input.Secret.Expose()) {
				t.Fatal("wrong secret")
			}
			half := must(sc.to(t).HardwareHalf())(t)
			if !half.Equal(key.PublicKey()) {
				t.Fatal("HardwareHalf is not the device's key")
			}
		})
	}
	key := must(ecdh.P256().GenerateKey(rand.Reader))(t)
	_, err := NewHardwareRecipient(SuiteHybridX25519(), keyExchanger{key})
	wantErr(t, err, ErrInvalid)
	_, err = NewHardwareRecipient(SuiteP256(), nil)
	wantErr(t, err, ErrInvalid)
	_, err = newScene(t, SuiteHybridX25519()).to(t).HardwareHalf()
	wantErr(t, err, ErrInvalid)
	_, err = RecipientKey{}.HardwareHalf()
	wantErr(t, err, ErrInvalid)
}

func TestSealRefuses(t *testing.T) {
	base := newScene(t, SuiteP256())
	offCurve := base.recipient.PublicKey()
	offCurve[40] ^= 1
	for name, row := range map[string]struct {
		suite  Suite
		public []byte
	}{
		"no suite":             {Suite{}, base.recipient.PublicKey()},
		"key of another suite": {SuiteHybridX25519(), base.recipient.PublicKey()},
		"key off the curve":    {SuiteP256(), offCurve},
		"no key":               {SuiteP256(), nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseRecipientKey(row.suite, row.public)
			wantErr(t, err, ErrInvalid)
		})
	}
	for name, change := range map[string]func(*SealInput){
		"no recipient":            func(in *SealInput) { in.Recipient = RecipientKey{} },
		"secret too large":        func(in *SealInput) { in.Secret = secret.NewBytes(make([]byte, MaxSecret+1)) },
		"no session":              func(in *SealInput) { in.Context.Session = "" },
		"expired before issued":   func(in *SealInput) { in.Context.Expires = in.Context.IssuedAt },
		"quote in the request id": func(in *SealInput) { in.Context.Request = `a"b` },
		"context too large": func(in *SealInput) {
			in.Context.Issuer, in.Context.Subject = strings.Repeat("a", maxName), strings.Repeat("b", maxName)
			in.Context.Audience, in.Context.LogOrigin = strings.Repeat("c", maxName), strings.Repeat("d", maxName)
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := base.input
			change(&in)
			sealed, err := Seal(in, base.signer)
			wantErr(t, err, ErrInvalid)
			if sealed.Bytes != nil {
				t.Fatal("an envelope came with the error")
			}
		})
	}
	_, err := GenerateRecipient(Suite{})
	wantErr(t, err, ErrInvalid)
	signing := must(proof.GenerateInstanceKey())(t)
	for _, kid := range []string{"", "a b", `a"b`, "a.b", strings.Repeat("a", maxKID+1)} {
		_, err := NewSigner(kid, signing)
		wantErr(t, err, ErrInvalid)
	}
}

func TestOpenRefuses(t *testing.T) {
	sc := newScene(t, SuiteHybridX25519())
	jws := sc.seal(t).Bytes
	must(sc.open(jws))(t)
	for name, row := range map[string]struct {
		want   error
		change func(*Expectation)
	}{
		"another request":     {ErrMismatch, func(e *Expectation) { e.Request = "req_02" }},
		"another issuer":      {ErrMismatch, func(e *Expectation) { e.Issuer = "spiffe://dev.bulla.test/stranger" }},
		"another subject":     {ErrMismatch, func(e *Expectation) { e.Subject = "spiffe://dev.bulla.test/stranger" }},
		"another instance":    {ErrMismatch, func(e *Expectation) { e.Instance = DigestOf(nil).String() }},
		"another audience":    {ErrMismatch, func(e *Expectation) { e.Audience = "x" }},
		"another channel":     {ErrMismatch, func(e *Expectation) { e.Channels = []Digest{DigestOf(nil)} }},
		"zero channel":        {ErrMismatch, func(e *Expectation) { e.Channels = []Digest{{}} }},
		"the second it ends":  {ErrExpired, func(e *Expectation) { e.Now = testNow.Add(time.Hour); e.Skew = MaxSkew }},
		"before it starts":    {ErrNotYetValid, func(e *Expectation) { e.Now = testNow.Add(-61 * time.Second) }},
		"no request":          {ErrInvalid, func(e *Expectation) { e.Request = "" }},
		"no issuer":           {ErrInvalid, func(e *Expectation) { e.Issuer = "" }},
		"no subject":          {ErrInvalid, func(e *Expectation) { e.Subject = "" }},
		"no instance":         {ErrInvalid, func(e *Expectation) { e.Instance = "" }},
		"no audience":         {ErrInvalid, func(e *Expectation) { e.Audience = "" }},
		"no channel":          {ErrInvalid, func(e *Expectation) { e.Channels = nil }},
		"no minimum suite":    {ErrInvalid, func(e *Expectation) { e.MinimumSuite = Suite{} }},
		"no time":             {ErrInvalid, func(e *Expectation) { e.Now = time.Time{} }},
		"negative skew":       {ErrInvalid, func(e *Expectation) { e.Skew = -1 }},
		"more skew than that": {ErrInvalid, func(e *Expectation) { e.Skew = MaxSkew + 1 }},
	} {
		t.Run(name, func(t *testing.T) {
			e := sc.expect
			row.change(&e)
			o, err := Open(jws, sc.keys.Lookup, sc.recipient, e)
			wantErr(t, err, row.want)
			if o != nil {
				t.Fatal("opened all the same")
			}
		})
	}
	e := sc.expect
	e.Now = testNow.Add(-time.Minute)
	must(Open(jws, sc.keys.Lookup, sc.recipient, e))(t) // skew helps at the start
	e = sc.expect
	e.Channels = []Digest{DigestOf(nil), sc.input.Context.Channel}
	must(Open(jws, sc.keys.Lookup, sc.recipient, e))(t) // a retry knows several channels

	t.Run("nothing to open with", func(t *testing.T) {
		_, err := Open(jws, sc.keys.Lookup, nil, sc.expect)
		wantErr(t, err, ErrInvalid)
		_, err = Open(jws, nil, sc.recipient, sc.expect)
		wantErr(t, err, ErrInvalid)
		_, err = Seal(sc.input, nil)
		wantErr(t, err, ErrInvalid)
	})
	t.Run("unknown signing key", func(t *testing.T) {
		_, err := Open(jws, must(NewKeySet())(t).Lookup, sc.recipient, sc.expect)
		wantErr(t, err, ErrUnknownKey)
	})
	t.Run("another key under the id", func(t *testing.T) {
		other := newScene(t, SuiteP256())
		set := must(NewKeySet(Key{ID: sc.signer.kid, Public: other.signer.pub}))(t)
		_, err := Open(jws, set.Lookup, sc.recipient, sc.expect)
		wantErr(t, err, ErrCrypto)
	})
	t.Run("another recipient", func(t *testing.T) {
		_, err := Open(jws, sc.keys.Lookup, must(GenerateRecipient(SuiteHybridX25519()))(t), sc.expect)
		wantErr(t, err, ErrCrypto)
	})
}

func TestSecretIsPrintedByNoVerb(t *testing.T) {
	const canary = "canary-4711"
	sc := newScene(t, SuiteP256())
	sc.input.Secret = secret.NewBytes([]byte(canary))
	o := must(sc.open(sc.seal(t).Bytes))(t)
	r := o.plain.Expose()[len(labelData):][:randLen]
	var out bytes.Buffer
	for _, v := range []any{o, *o, sc.input, &sc.input, sc.recipient, sc.signer} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		j, err := json.Marshal(v)
		if err == nil {
			out.Write(j)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "v", v)
	}
	dump := strings.ToLower(out.String())
	for _, s := range []string{
		canary, fmt.Sprintf("%x", canary), fmt.Sprint([]byte(canary)), b64.EncodeToString([]byte(canary)),
		fmt.Sprintf("%x", r), fmt.Sprint(r),
	} {
		if strings.Contains(dump, strings.ToLower(strings.Trim(s, "[]"))) {
			t.Errorf("%q is printed", s)
		}
	}
}

func TestSuites(t *testing.T) {
	for _, row := range []struct {
		s      Suite
		alg    string
		number uint64
		pq     bool
	}{
		{SuiteHybridX25519(), "HPKE-9-KE", 0x647a_0011_0002, true},
		{SuiteHybridP256(), "HPKE-8-KE", 0x0050_0011_0002, true},
		{SuiteP256(), "HPKE-7-KE", 0x0010_0001_0002, false},
	} {
		if row.s.String() != row.alg || row.s.Number() != row.number || row.s.PostQuantum() != row.pq {
			t.Errorf("%s: number %#x, post-quantum %v", row.s, row.s.Number(), row.s.PostQuantum())
		}
		if s := must(ParseSuite(row.alg))(t); s != row.s {
			t.Errorf("ParseSuite(%s) = %s", row.alg, s)
		}
		if s := must(SuiteByNumber(row.number))(t); s != row.s {
			t.Errorf("SuiteByNumber(%#x) = %s", row.number, s)
		}
		if !row.s.AtLeast(SuiteP256()) || row.s.AtLeast(SuiteHybridX25519()) != row.pq || row.s.AtLeast(Suite{}) || (Suite{}).AtLeast(row.s) {
			t.Errorf("%s: wrong order", row.s)
		}
	}
	for _, bad := range []string{"", "hpke-9-ke", "HPKE-9", "HPKE-0-KE", "invalid"} {
		_, err := ParseSuite(bad)
		wantErr(t, err, ErrSuite)
	}
	_, err := SuiteByNumber(0)
	wantErr(t, err, ErrSuite)
	if !(Suite{}).IsZero() || (Suite{}).Number() != 0 || (Suite{}).PostQuantum() {
		t.Error("the zero suite is not invalid")
	}
}
