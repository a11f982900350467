package keyring_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/keyring"
)

// newRing makes a ring below a new directory.
func newRing(t testing.TB) (*keyring.Ring, keyring.LocalConfig) {
	t.Helper()
	dir := t.TempDir()
	c := keyring.LocalConfig{Path: filepath.Join(dir, "keyset"), KEKFile: filepath.Join(dir, "kek"), Create: true}
	r, err := keyring.OpenLocal(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	c.Create = false
	return r, c
}

func reopen(t testing.TB, c keyring.LocalConfig) *keyring.Ring {
	t.Helper()
	r, err := keyring.OpenLocal(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func seal(t testing.TB, r *keyring.Ring, p keyring.Purpose, plaintext, aad string) []byte {
	t.Helper()
	ct, err := r.Seal(p, []byte(plaintext), []byte(aad))
	if err != nil {
		t.Fatal(err)
	}
	return ct
}

var purposes = []keyring.Purpose{keyring.PurposeSecret, keyring.PurposeEventBody, keyring.PurposeKey}

func TestSealOpensAfterReopening(t *testing.T) {
	r, c := newRing(t)
	again := reopen(t, c)
	for _, p := range purposes {
		for _, plaintext := range []string{"", "x", strings.Repeat("long", 5000)} {
			ct := seal(t, r, p, plaintext, "aad")
			if len(ct) != len(plaintext)+33 {
				t.Errorf("ciphertext is %d bytes longer than the plaintext", len(ct)-len(plaintext))
			}
			if got, err := again.Open(p, ct, []byte("aad")); err != nil || string(got) != plaintext {
				t.Errorf("purpose %d: %q, %v", p, got, err)
			}
		}
	}
	if r.NameHash("n") != again.NameHash("n") || r.ID() != again.ID() || len(r.ID()) != 32 {
		t.Error("the ring is not the same after reopening")
	}
}

func TestOpenRefusesAnotherPurpose(t *testing.T) {
	r, _ := newRing(t)
	for _, p := range purposes {
		ct := seal(t, r, p, "value", "aad")
		for _, q := range purposes {
			if _, err := r.Open(q, ct, []byte("aad")); (err == nil) != (p == q) || err != nil && err != keyring.ErrOpen { //nolint:errorlint // exactly this error
				t.Errorf("sealed for %d, opened for %d: %v", p, q, err)
			}
		}
	}
}

func TestOpenRefusesOtherAAD(t *testing.T) {
	r, _ := newRing(t)
	ct := seal(t, r, keyring.PurposeSecret, "value", "aad")
	for _, aad := range []string{"", "aa", "aad\x00", "aae", "\x00aad"} {
		if _, err := r.Open(keyring.PurposeSecret, ct, []byte(aad)); !errors.Is(err, keyring.ErrOpen) {
			t.Errorf("aad %q: %v", aad, err)
		}
	}
}

func TestOpenRefusesAnotherRing(t *testing.T) {
	a, _ := newRing(t)
	b, _ := newRing(t)
	if _, err := b.Open(keyring.PurposeSecret, seal(t, a, keyring.PurposeSecret, "v", ""), nil); !errors.Is(err, keyring.ErrOpen) {
		t.Error(err)
	}
	if a.NameHash("n") == b.NameHash("n") {
		t.Error("two rings hash a name alike")
	}
}

// everyAlteration calls f with data cut at each length, with each bit flipped, and with a byte more.
func everyAlteration(data []byte, f func(what string, altered []byte)) {
	for i := range data {
		f(fmt.Sprintf("cut to %d", i), data[:i])
		for bit := range 8 {
			c := bytes.Clone(data)
			c[i] ^= 1 << bit
			f(fmt.Sprintf("bit %d of byte %d flipped", bit, i), c)
		}
	}
	f("a byte appended", append(bytes.Clone(data), 0))
	f("a byte before", append([]byte{0}, data...))
}

func TestOpenRefusesEveryAlteration(t *testing.T) {
	r, _ := newRing(t)
	everyAlteration(seal(t, r, keyring.PurposeSecret, "value", "aad"), func(what string, altered []byte) {
		if got, err := r.Open(keyring.PurposeSecret, altered, []byte("aad")); err != keyring.ErrOpen || got != nil { //nolint:errorlint // exactly this error
			t.Errorf("%s: %q, %v", what, got, err)
		}
	})
}

func TestZeroPurposePanics(t *testing.T) {
	r, _ := newRing(t)
	for _, p := range []keyring.Purpose{0, 6, 255} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("purpose %d seals", p)
				}
			}()
			_, _ = r.Seal(p, nil, nil)
		}()
	}
}

func TestSecretAADBindsEveryField(t *testing.T) {
	base := keyring.SecretAAD{RecordID: "r", Name: "n", Version: 1, Class: "c", PolicyDigest: [32]byte{1}, Owner: "o"}
	variants := map[string]keyring.SecretAAD{}
	for name, change := range map[string]func(*keyring.SecretAAD){
		"none": func(*keyring.SecretAAD) {}, "record": func(a *keyring.SecretAAD) { a.RecordID = "q" },
		"name": func(a *keyring.SecretAAD) { a.Name = "m" }, "version": func(a *keyring.SecretAAD) { a.Version = 2 },
		"class": func(a *keyring.SecretAAD) { a.Class = "d" }, "digest": func(a *keyring.SecretAAD) { a.PolicyDigest[31] = 1 },
		"owner":    func(a *keyring.SecretAAD) { a.Owner = "p" },
		"type":     func(a *keyring.SecretAAD) { a.Type = "t" },
		"boundary": func(a *keyring.SecretAAD) { a.RecordID, a.Name = "rn", "" },
		"other":    func(a *keyring.SecretAAD) { a.RecordID, a.Name = "", "rn" },
		"swapped":  func(a *keyring.SecretAAD) { a.Class, a.Owner = a.Owner, a.Class },
		"version²": func(a *keyring.SecretAAD) { a.Version = 1 << 40 },
	} {
		a := base
		change(&a)
		variants[name] = a
	}
	r, _ := newRing(t)
	ct, err := r.Seal(keyring.PurposeSecret, []byte("v"), base.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for name, a := range variants {
		if _, err := r.Open(keyring.PurposeSecret, ct, a.Bytes()); (err == nil) != (name == "none") {
			t.Errorf("row with changed %s: %v", name, err)
		}
		if other, ok := seen[string(a.Bytes())]; ok {
			t.Errorf("%s and %s have the same bytes", name, other)
		}
		seen[string(a.Bytes())] = name
	}
	const want = "00000001" + "72" + "00000001" + "6e" + "0000000000000001" + "00000001" + "63" +
		"0100000000000000000000000000000000000000000000000000000000000000" + "00000001" + "6f"
	if got := hex.EncodeToString(base.Bytes()); got != want {
		t.Errorf("stored rows were bound to\n%s, now it is\n%s", want, got)
	}
}

func TestRotateKeepsOldDataReadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, c := newRing(t)
		first := time.Now().UTC().Truncate(time.Second)
		old := seal(t, r, keyring.PurposeSecret, "old", "")
		wrapped, _, err := r.NewSubjectKey("s")
		if err != nil {
			t.Fatal(err)
		}
		hash := r.NameHash("n")
		time.Sleep(time.Hour) // of the bubble's clock
		if err := r.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		young := seal(t, r, keyring.PurposeSecret, "young", "")
		if bytes.Equal(old[:5], young[:5]) {
			t.Error("new data is sealed under the old key")
		}
		again := reopen(t, c)
		for name, ring := range map[string]*keyring.Ring{"rotated": r, "reopened": again} {
			for want, ct := range map[string][]byte{"old": old, "young": young} {
				if got, err := ring.Open(keyring.PurposeSecret, ct, nil); err != nil || string(got) != want {
					t.Errorf("%s: %q, %v", name, got, err)
				}
			}
			if _, err := ring.OpenSubjectKey(wrapped, "s"); err != nil {
				t.Errorf("%s: subject key: %v", name, err)
			}
			if ring.NameHash("n") != hash {
				t.Errorf("%s: names hash differently after a rotation", name)
			}
			keys := ring.Keys()
			if len(keys) != 2 || keys[0].Status != keyring.StatusEnabled || keys[1].Status != keyring.StatusPrimary ||
				!keys[0].Created.Equal(first) || !keys[1].Created.Equal(first.Add(time.Hour)) || keys[0].ID == keys[1].ID {
				t.Errorf("%s: keys %+v", name, keys)
			}
		}
	})
}

func TestStaleProcessMayNotRotate(t *testing.T) {
	a, c := newRing(t)
	b := reopen(t, c)
	if err := a.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	young := seal(t, a, keyring.PurposeSecret, "v", "")
	if err := b.Rotate(t.Context()); !errors.Is(err, keyring.ErrChanged) {
		t.Fatalf("a rotation that loses a key: %v", err)
	}
	if _, err := reopen(t, c).Open(keyring.PurposeSecret, young, nil); err != nil {
		t.Errorf("data of the newer key: %v", err)
	}
}

func TestConcurrentUseWithRotation(t *testing.T) {
	r, c := newRing(t)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 200 {
				want := fmt.Sprint(i, n)
				ct := seal(t, r, keyring.PurposeEventBody, want, "")
				if got, err := r.Open(keyring.PurposeEventBody, ct, nil); err != nil || string(got) != want {
					t.Errorf("%q, %v", got, err)
				}
			}
		})
	}
	for range 3 {
		wg.Go(func() {
			if err := r.Rotate(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(reopen(t, c).Keys()); n != 4 {
		t.Errorf("%d keys after 3 rotations", n)
	}
}

func TestRewrap(t *testing.T) {
	r, c := newRing(t)
	ct := seal(t, r, keyring.PurposeSecret, "v", "")
	other, err := keyring.CreateFileKEK(c.KEKFile + "2")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Rewrap(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if r.KEKID() != other.ID() {
		t.Errorf("wrapped under %s", r.KEKID())
	}
	if _, err := keyring.OpenLocal(t.Context(), c); !errors.Is(err, keyring.ErrWrongKEK) || !strings.Contains(err.Error(), other.ID()) {
		t.Errorf("opened with the old key: %v", err)
	}
	c.KEKFile += "2"
	if got, err := reopen(t, c).Open(keyring.PurposeSecret, ct, nil); err != nil || string(got) != "v" {
		t.Errorf("%q, %v", got, err)
	}
	if err := r.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(reopen(t, c).Keys()); n != 2 {
		t.Errorf("%d keys: the rotation after it went under another key", n)
	}
}

// flawedKEK does what its functions say.
type flawedKEK struct {
	keyring.KEK
	id     string
	unwrap func([]byte, error) ([]byte, error)
	wrap   func([]byte, error) ([]byte, error)
}

func (k flawedKEK) ID() string {
	if k.id != "" {
		return k.id
	}
	return k.KEK.ID()
}

func (k flawedKEK) Wrap(ctx context.Context, p, aad []byte) ([]byte, error) {
	if k.wrap != nil {
		return k.wrap(k.KEK.Wrap(ctx, p, aad))
	}
	return k.KEK.Wrap(ctx, p, aad)
}

func (k flawedKEK) Unwrap(ctx context.Context, c, aad []byte) ([]byte, error) {
	if k.unwrap != nil {
		return k.unwrap(k.KEK.Unwrap(ctx, c, aad))
	}
	return k.KEK.Unwrap(ctx, c, aad)
}

// A new key-encryption key that can't give back what it took must never become the only one that is asked.
func TestRewrapKeepsTheOldWhenTheNewFails(t *testing.T) {
	r, c := newRing(t)
	good, err := keyring.CreateFileKEK(c.KEKFile + "2")
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(c.Path)
	if err != nil {
		t.Fatal(err)
	}
	for name, kek := range map[string]flawedKEK{
		"no wrap":     {wrap: func([]byte, error) ([]byte, error) { return nil, keyring.ErrKEKUnavailable }},
		"no unwrap":   {unwrap: func([]byte, error) ([]byte, error) { return nil, keyring.ErrKEKRefused }},
		"wrong bytes": {unwrap: func(p []byte, err error) ([]byte, error) { p[0] ^= 1; return p, err }},
		"no bytes":    {unwrap: func([]byte, error) ([]byte, error) { return nil, nil }},
		"bad ID":      {id: "\xff"},
	} {
		kek.KEK = good
		if err := r.Rewrap(t.Context(), kek); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if now, err := os.ReadFile(c.Path); err != nil || !bytes.Equal(before, now) {
			t.Errorf("%s: the file was changed (%v)", name, err)
		}
		if err := r.Rotate(t.Context()); err != nil {
			t.Errorf("%s: the ring no longer works with its own: %v", name, err)
		}
		if before, err = os.ReadFile(c.Path); err != nil {
			t.Fatal(err)
		}
	}
}

// What older versions stored must open for ever. The files were written by the first version.
func TestStoredFormatOfV1(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"kek", "keyset"} {
		b, err := os.ReadFile(filepath.Join("testdata", "v1", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(filepath.Join("testdata", "v1", "stored.json"))
	if err != nil {
		t.Fatal(err)
	}
	var stored storedV1
	if err := json.Unmarshal(b, &stored); err != nil {
		t.Fatal(err)
	}
	r := reopen(t, keyring.LocalConfig{Path: filepath.Join(dir, "keyset"), KEKFile: filepath.Join(dir, "kek")})
	for i, ct := range stored.Secrets {
		got, err := r.Open(keyring.PurposeSecret, ct, storedAAD.Bytes())
		if err != nil || string(got) != "a secret of the first version" {
			t.Errorf("secret under key %d: %q, %v", i, got, err)
		}
	}
	key, err := r.OpenSubjectKey(stored.SubjectKey, "spiffe://dev.bulla.test/workload")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := key.Open(stored.Body, []byte("event 1")); err != nil || string(got) != "a body of the first version" {
		t.Errorf("body: %q, %v", got, err)
	}
	for i, sealed := range stored.Signers {
		if _, err := r.OpenSigner("signer", sealed); err != nil {
			t.Errorf("signer %d: %v", i, err)
		}
	}
	if got := r.NameHash("demo/db"); !slices.Equal(got[:], stored.NameHash) {
		t.Errorf("name hash %x, was %x", got, stored.NameHash)
	}
}

type storedV1 struct {
	Secrets    [][]byte `json:"secrets"` // the same value before and after a rotation
	SubjectKey []byte   `json:"subject_key"`
	Body       []byte   `json:"body"`
	Signers    [][]byte `json:"signers"`
	NameHash   []byte   `json:"name_hash"`
}

var storedAAD = keyring.SecretAAD{RecordID: "01", Name: "demo/db", Version: 1, Class: "high", PolicyDigest: [32]byte{31: 7}, Owner: "operator"}
