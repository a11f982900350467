package split_test

import (
	"bytes"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/vault/shamir"

	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/envelope/split"
	"github.com/bulla-project/bulla/secret"
)

const (
	alice = "spiffe://dev.bulla.test/alice"
	bob   = "spiffe://dev.bulla.test/bob"
	carol = "spiffe://dev.bulla.test/carol"
)

func key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := proof.GenerateInstanceKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func input(t testing.TB, value string) split.Input {
	k := key(t)
	return split.Input{
		ID: "01a226a5-079d-7000-9737-ccef0864ae20", Secret: "demo/root", Version: 3, Threshold: 2, Holders: []string{carol, alice, bob},
		Value: secret.NewBytes([]byte(value)), Key: &k.PublicKey, Sign: func(m []byte) ([]byte, error) { return proof.SignES256(k, m) },
	}
}

func divide(t testing.TB, in split.Input) *split.Divided {
	t.Helper()
	d, err := split.Divide(in)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// by is the shares of the named holders.
func by(d *split.Divided, holders ...string) map[string]secret.Bytes {
	out := map[string]secret.Bytes{}
	for i, h := range d.Manifest.Holders {
		if slices.Contains(holders, h.ID) {
			out[h.ID] = d.Shares[i]
		}
	}
	return out
}

func TestDivideAndCombine(t *testing.T) {
	for threshold, sets := range map[uint32][][]string{
		2: {{alice, bob}, {alice, carol}, {bob, carol}, {alice, bob, carol}}, 3: {{alice, bob, carol}},
	} {
		in := input(t, "the root key")
		in.Threshold = threshold
		d := divide(t, in)
		if bytes.Contains(d.Package, []byte("root key")) || !slices.Equal(d.Manifest.IDs(), []string{alice, bob, carol}) {
			t.Fatal("the package holds the plaintext, or its holders are not in order")
		}
		p, err := split.ParsePackage(d.Package)
		if err != nil {
			t.Fatal(err)
		}
		if p.Digest != envelope.DigestOf(p.Signed.Manifest) || !p.Signed.Key.Equal(in.Key) {
			t.Error("digest or key of the package is not its manifest's")
		}
		for _, set := range sets {
			k, err := p.Manifest.Combine(by(d, set...))
			if err != nil {
				t.Fatalf("%v: %v", set, err)
			}
			got, err := p.Open(k)
			if err != nil || string(got.Expose()) != "the root key" {
				t.Errorf("%v: %q, %v", set, got.Expose(), err)
			}
		}
	}
}

func TestDivideRefuses(t *testing.T) {
	for name, change := range map[string]func(*split.Input){
		"threshold of one":  func(in *split.Input) { in.Threshold = 1 },
		"threshold of none": func(in *split.Input) { in.Threshold = 0 },
		"more than all":     func(in *split.Input) { in.Threshold = 4 },
		"a holder twice":    func(in *split.Input) { in.Holders = []string{alice, bob, alice} },
		"no SPIFFE ID":      func(in *split.Input) { in.Holders = []string{alice, "bob"} },
		"too many holders":  func(in *split.Input) { in.Holders = many(split.MaxHolders + 1) },
		"names too long": func(in *split.Input) {
			in.Holders = []string{alice, "spiffe://x/" + strings.Repeat("a", 2000), "spiffe://x/" + strings.Repeat("b", 2000), "spiffe://x/" + strings.Repeat("c", 2000), "spiffe://x/" + strings.Repeat("d", 2000), "spiffe://x/" + strings.Repeat("e", 2000), "spiffe://x/" + strings.Repeat("f", 2000)}
		},
		"nothing":               func(in *split.Input) { in.Value = secret.Bytes{} },
		"too much":              func(in *split.Input) { in.Value = secret.NewBytes(make([]byte, split.MaxSecret+1)) },
		"no name":               func(in *split.Input) { in.Secret = "" },
		"version at the source": func(in *split.Input) { in.Source = true },
		"no version":            func(in *split.Input) { in.Version = 0 },
	} {
		in := input(t, "value")
		change(&in)
		if _, err := split.Divide(in); !errors.Is(err, split.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	in := input(t, "value")
	in.Holders, in.Value = many(split.MaxHolders), secret.NewBytes(make([]byte, split.MaxSecret))
	if d := divide(t, in); len(d.Package) > split.MaxPackage || split.MaxPackage > secret.MaxValue {
		t.Errorf("the largest package has %d bytes, the limit is %d, and a secret can have %d", len(d.Package), split.MaxPackage, secret.MaxValue)
	}
}

func many(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("spiffe://dev.bulla.test/holder-%02d", i)
	}
	return out
}

// Each way in which a share can be wrong is found before anything is combined, and names its holder.
func TestSharesThatDoNotFit(t *testing.T) {
	d, other := divide(t, input(t, "value")), divide(t, input(t, "value"))
	for name, bad := range map[string][]byte{
		"x of 0":               append(bytes.Clone(by(d, bob)[bob].Expose()[:32]), 0),
		"x of another":         append(bytes.Clone(by(d, bob)[bob].Expose()[:32]), by(d, alice)[alice].Expose()[32]),
		"share of another":     by(d, alice)[alice].Expose(),
		"from another split":   by(other, bob)[bob].Expose(),
		"too short":            by(d, bob)[bob].Expose()[:32],
		"too long":             append(bytes.Clone(by(d, bob)[bob].Expose()), 1),
		"nothing":              nil,
		"first bit altered":    flip(by(d, bob)[bob].Expose(), 0),
		"last of the value":    flip(by(d, bob)[bob].Expose(), 31),
		"x altered by one bit": flip(by(d, bob)[bob].Expose(), 32),
	} {
		for _, with := range [][]string{{alice}, {carol}, {alice, carol}} {
			shares := by(d, with...)
			shares[bob] = secret.NewBytes(bad)
			_, err := d.Manifest.Combine(shares)
			var named *split.ShareError
			if !errors.As(err, &named) || named.Holder != bob || !errors.Is(err, split.ErrShare) || !strings.Contains(err.Error(), bob) {
				t.Errorf("%s, with %v: %v", name, with, err)
			}
		}
	}
	stranger := by(d, alice, bob)
	stranger["spiffe://dev.bulla.test/mallory"] = stranger[bob]
	var named *split.ShareError
	if _, err := d.Manifest.Combine(stranger); !errors.As(err, &named) || named.Holder != "spiffe://dev.bulla.test/mallory" {
		t.Errorf("a holder who is not in the manifest: %v", err)
	}
	for _, few := range []map[string]secret.Bytes{{}, by(d, alice)} {
		if _, err := d.Manifest.Combine(few); !errors.Is(err, split.ErrTooFew) {
			t.Errorf("%d shares: %v", len(few), err)
		}
	}
}

func flip(b []byte, i int) []byte {
	out := bytes.Clone(b)
	out[i] ^= 1
	return out
}

// A manifest whose maker gave two holders one x, or let the hashes pass a wrong key, is found as well: by x, and by
// the commitment.
func TestManifestsThatLie(t *testing.T) {
	d := divide(t, input(t, "value"))
	twin := d.Manifest
	twin.Holders = slices.Clone(d.Manifest.Holders)
	if err := rehash(&twin, bob, by(d, alice)[alice].Expose()); err != nil {
		t.Fatal(err)
	}
	shares := by(d, alice)
	shares[bob] = shares[alice]
	var named *split.ShareError
	if _, err := twin.Combine(shares); !errors.As(err, &named) || named.Holder != bob || !strings.Contains(named.Why, alice) {
		t.Errorf("two holders with one x: %v", err)
	}
	zero := d.Manifest
	zero.Holders = slices.Clone(d.Manifest.Holders)
	dictates := append(make([]byte, 32), 0) // with x of 0 its value is the result
	if err := rehash(&zero, bob, dictates); err != nil {
		t.Fatal(err)
	}
	shares[bob] = secret.NewBytes(dictates)
	if _, err := zero.Combine(shares); !errors.As(err, &named) || named.Holder != bob || !strings.Contains(named.Why, "x is 0") {
		t.Errorf("a share with x of 0: %v", err)
	}
	parts, err := shamir.Split(make([]byte, 32), 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	wrong := d.Manifest
	wrong.Holders = slices.Clone(d.Manifest.Holders)
	forged := map[string]secret.Bytes{}
	for i, id := range []string{alice, bob, carol} {
		if err := rehash(&wrong, id, parts[i]); err != nil {
			t.Fatal(err)
		}
		forged[id] = secret.NewBytes(parts[i])
	}
	if _, err := wrong.Combine(forged); !errors.Is(err, split.ErrCrypto) {
		t.Errorf("a key that the manifest does not commit to: %v", err)
	}
}

// rehash writes the hash of another share into a manifest, as whoever makes one could.
func rehash(m *split.Manifest, id string, share []byte) error {
	for i, h := range m.Holders {
		if h.ID == id {
			m.Holders[i].Hash = envelope.DigestOf(proof.Statement("bulla-share-hash/v1", []byte(m.ID), []byte(h.ID), h.Salt[:], share))
			return nil
		}
	}
	return errors.New("no such holder")
}

func TestPackageIsOneDocument(t *testing.T) {
	d := divide(t, input(t, "value"))
	k, err := d.Manifest.Combine(by(d, alice, bob))
	if err != nil {
		t.Fatal(err)
	}
	for i := range d.Package {
		if _, err := split.ParsePackage(flip(d.Package, i)); err == nil {
			t.Errorf("byte %d of %d altered, and it parses", i, len(d.Package))
		}
	}
	for _, cut := range [][]byte{nil, d.Package[:20], d.Package[:len(d.Package)-1], append(bytes.Clone(d.Package), 0), make([]byte, split.MaxPackage+1)} {
		if _, err := split.ParsePackage(cut); err == nil {
			t.Errorf("%d bytes parse", len(cut))
		}
	}
	p, err := split.ParsePackage(d.Package)
	if err != nil {
		t.Fatal(err)
	}
	for name, wrong := range map[string]secret.Bytes{"no key": {}, "another key": secret.NewBytes(flip(k.Expose(), 3))} {
		if _, err := p.Open(wrong); !errors.Is(err, split.ErrCrypto) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestManifestHasOneEncoding(t *testing.T) {
	p, err := split.ParsePackage(divide(t, input(t, "value")).Package)
	if err != nil {
		t.Fatal(err)
	}
	good := string(p.Signed.Manifest)
	for name, bad := range map[string]string{
		"space": strings.Replace(good, ",", ", ", 1), "unknown field": strings.Replace(good, `"id"`, `"x":1,"id"`, 1), "version": strings.Replace(good, "/v1", "/v2", 1),
		"threshold of 1": strings.Replace(good, `"threshold":2`, `"threshold":1`, 1), "order of holders": strings.Replace(good, alice, "spiffe://dev.bulla.test/zoe", 1),
		"a holder twice": strings.Replace(good, bob, alice, 1), "trailing": good + "{}", "empty": "", "null": "null", "source": strings.Replace(good, `"source":false`, `"source":true`, 1),
		"no name": strings.Replace(good, "demo/root", "", 1), "line break in a salt": strings.Replace(good, `"salt":"`, `"salt":"\n`, 1),
	} {
		if bad == good {
			t.Fatalf("%s: nothing was changed", name)
		}
		if _, err := split.ParseManifest([]byte(bad)); err == nil {
			t.Errorf("%s: it parses", name)
		}
	}
}

func TestApprovalIsForOneRequest(t *testing.T) {
	d := divide(t, input(t, "value"))
	holder, requester := key(t), key(t)
	recipient, err := envelope.GenerateRecipient(envelope.SuiteHybridX25519())
	if err != nil {
		t.Fatal(err)
	}
	public, err := envelope.ParseRecipientKey(recipient.Suite(), recipient.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	whole := split.Approval{
		Round: "round", Manifest: envelope.DigestOf([]byte("manifest")), Secret: "demo/root", Version: 3, Requester: "spiffe://dev.bulla.test/workload",
		Instance: proof.Thumbprint(&requester.PublicKey), Request: "request", Payload: envelope.DigestOf([]byte("payload")), Holder: bob, Expires: 17,
	}
	sealed, a, err := whole.Reseal(public, by(d, bob)[bob])
	if err != nil {
		t.Fatal(err)
	}
	signature, err := a.Sign(holder)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Verify(&holder.PublicKey, signature); err != nil {
		t.Fatal(err)
	}
	got, err := a.OpenShare(recipient, sealed)
	if err != nil || d.Manifest.Check(bob, got) != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*split.Approval){
		"round":     func(a *split.Approval) { a.Round += "x" },
		"manifest":  func(a *split.Approval) { a.Manifest[0] ^= 1 },
		"secret":    func(a *split.Approval) { a.Secret += "x" },
		"version":   func(a *split.Approval) { a.Version++ },
		"requester": func(a *split.Approval) { a.Requester += "x" },
		"instance":  func(a *split.Approval) { a.Instance += "x" },
		"request":   func(a *split.Approval) { a.Request += "x" },
		"payload":   func(a *split.Approval) { a.Payload[0] ^= 1 },
		"holder":    func(a *split.Approval) { a.Holder = alice },
		"expiry":    func(a *split.Approval) { a.Expires++ },
	} {
		other := a
		change(&other)
		if err := other.Verify(&holder.PublicKey, signature); !errors.Is(err, split.ErrCrypto) {
			t.Errorf("%s: the signature holds: %v", name, err)
		}
		if _, err := other.OpenShare(recipient, sealed); !errors.Is(err, split.ErrShare) {
			t.Errorf("%s: the share opens: %v", name, err)
		}
	}
	other := a
	other.Share[0] ^= 1
	if err := other.Verify(&holder.PublicKey, signature); err == nil {
		t.Error("another share: the signature holds")
	}
	if err := a.Verify(&requester.PublicKey, signature); err == nil {
		t.Error("another signer's key: the signature holds")
	}
	altered := flip(sealed, len(sealed)-1)
	again := a
	again.Share = envelope.DigestOf(altered)
	if _, err := again.OpenShare(recipient, altered); !errors.Is(err, split.ErrShare) {
		t.Errorf("altered ciphertext: %v", err)
	}
	if _, _, err := whole.Reseal(public, secret.NewBytes([]byte("short"))); !errors.Is(err, split.ErrInvalid) {
		t.Errorf("a share of another length: %v", err)
	}
}

func sourceFile(t testing.TB) []byte {
	t.Helper()
	in := input(t, "value")
	in.Source, in.Version = true, 0
	d := divide(t, in)
	f, err := split.NewFile(d.Package, bob, by(d, bob)[bob])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := split.NewFile(d.Package, alice, by(d, bob)[bob]); !errors.Is(err, split.ErrShare) {
		t.Errorf("a file with another's share: %v", err)
	}
	text, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestShareFile(t *testing.T) {
	text := sourceFile(t)
	f, err := split.ParseFile(text)
	if err != nil {
		t.Fatal(err)
	}
	if f.Holder != bob || f.Manifest().Secret != "demo/root" || strings.Contains(fmt.Sprintf("%v %+v %#v", f.Share, f.Share, f.Share), string(f.Share.Expose())) {
		t.Errorf("%+v", f)
	}
	for i := range text {
		if _, err := split.ParseFile(flip(text, i)); err == nil {
			t.Errorf("byte %d altered (%q), and it parses", i, text[max(0, i-10):i+1])
		}
	}
	for _, bad := range [][]byte{nil, []byte("{}"), append(bytes.Clone(text), '\n'), make([]byte, split.MaxFile+1)} {
		if _, err := split.ParseFile(bad); !errors.Is(err, split.ErrMalformed) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
}

func FuzzPackage(f *testing.F) {
	f.Add(divide(f, input(f, "value")).Package)
	f.Add([]byte("bulla-split/v1\n\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := split.ParsePackage(b)
		if err != nil {
			return
		}
		if again, err := split.ParseManifest(p.Signed.Manifest); err != nil || !maps.Equal(hashes(again), hashes(p.Manifest)) {
			t.Fatal("accepted, and its manifest is read differently")
		}
		if _, err := p.Manifest.Combine(nil); !errors.Is(err, split.ErrTooFew) {
			t.Fatal(err)
		}
	})
}

func hashes(m split.Manifest) map[string]envelope.Digest {
	out := map[string]envelope.Digest{}
	for _, h := range m.Holders {
		out[h.ID] = h.Hash
	}
	return out
}

func FuzzManifest(f *testing.F) {
	p, err := split.ParsePackage(divide(f, input(f, "value")).Package)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p.Signed.Manifest)
	f.Add([]byte(`{"v":"bulla-share-manifest/v1","threshold":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := split.ParseManifest(b)
		if err != nil {
			return
		}
		if m.Threshold < 2 || int(m.Threshold) > len(m.Holders) || len(m.Holders) > split.MaxHolders || !slices.IsSorted(m.IDs()) {
			t.Fatalf("accepted: %+v", m)
		}
	})
}

func FuzzShareFile(f *testing.F) {
	f.Add(sourceFile(f))
	f.Add([]byte("{\n}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := split.ParseFile(b)
		if err != nil {
			return
		}
		if again, err := file.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Fatal("accepted, but written differently")
		}
		m := file.Manifest()
		if err := m.Check(file.Holder, file.Share); err != nil {
			t.Fatal(err)
		}
	})
}
