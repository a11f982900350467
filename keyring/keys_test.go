package keyring_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/keyring"
)

func TestSubjectKey(t *testing.T) {
	r, c := newRing(t)
	wrapped, key, err := r.NewSubjectKey("subject-1")
	if err != nil {
		t.Fatal(err)
	}
	sealed := key.Seal([]byte("body"), []byte("aad"))
	if len(sealed) != len("body")+28 || bytes.Equal(sealed, key.Seal([]byte("body"), []byte("aad"))) {
		t.Error("a body is sealed with a fixed nonce, or has another overhead")
	}
	same, err := reopen(t, c).OpenSubjectKey(wrapped, "subject-1")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := same.Open(sealed, []byte("aad")); err != nil || string(got) != "body" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := same.Open(sealed, []byte("aae")); !errors.Is(err, keyring.ErrOpen) {
		t.Errorf("other aad: %v", err)
	}
	if _, err := r.OpenSubjectKey(wrapped, "subject-2"); !errors.Is(err, keyring.ErrOpen) {
		t.Errorf("another subject: %v", err)
	}
	_, other, err := r.NewSubjectKey("subject-1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Open(sealed, []byte("aad")); !errors.Is(err, keyring.ErrOpen) {
		t.Errorf("another key of the subject: %v", err)
	}
	everyAlteration(sealed, func(what string, altered []byte) {
		if _, err := key.Open(altered, []byte("aad")); !errors.Is(err, keyring.ErrOpen) {
			t.Errorf("body, %s: %v", what, err)
		}
	})
	everyAlteration(wrapped, func(what string, altered []byte) {
		if _, err := r.OpenSubjectKey(altered, "subject-1"); !errors.Is(err, keyring.ErrOpen) {
			t.Errorf("wrapped key, %s: %v", what, err)
		}
	})
	// What the ring seals for its users is never taken for a subject's key.
	for _, p := range purposes {
		if _, err := r.OpenSubjectKey(seal(t, r, p, strings.Repeat("k", 32), "subject-1"), "subject-1"); !errors.Is(err, keyring.ErrOpen) {
			t.Errorf("purpose %d: %v", p, err)
		}
	}
}

func TestSigners(t *testing.T) {
	r, c := newRing(t)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sealedEC, err := r.SealSigner("env-1", ec)
	if err != nil {
		t.Fatal(err)
	}
	sealedEd, err := r.SealSigner("log", ed)
	if err != nil {
		t.Fatal(err)
	}
	again := reopen(t, c)
	if got, err := again.OpenSigner("env-1", sealedEC); err != nil || !ec.Equal(got) {
		t.Errorf("%T, %v", got, err)
	}
	if got, err := again.OpenSigner("log", sealedEd); err != nil || !ed.Equal(got) {
		t.Errorf("%T, %v", got, err)
	}
	for name, f := range map[string]func() (any, error){
		"another id": func() (any, error) { return r.OpenSigner("log", sealedEC) },
		"a secret":   func() (any, error) { return r.OpenSigner("x", seal(t, r, keyring.PurposeSecret, "v", "x")) },
		"no PKCS #8": func() (any, error) { return r.OpenSigner("x", seal(t, r, keyring.PurposeKey, "v", "x")) },
		"altered":    func() (any, error) { return r.OpenSigner("env-1", sealedEC[1:]) },
	} {
		if got, err := f(); err != keyring.ErrOpen || fmt.Sprint(got) != "<nil>" { //nolint:errorlint // exactly this error
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestSealSignerRefusesOtherKinds(t *testing.T) {
	r, _ := newRing(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	//lint:ignore SA1019 a broken key is the point, and no newer way makes one
	broken := &ecdsa.PrivateKey{PublicKey: ecdsa.PublicKey{Curve: elliptic.P256(), X: big.NewInt(1), Y: big.NewInt(1)}, D: big.NewInt(0)}
	for name, err := range map[string]error{
		"P-384": second(r.SealSigner("k", p384)), "RSA": second(r.SealSigner("k", rsaKey)), "nil": second(r.SealSigner("k", nil)),
		"nil pointer": second(r.SealSigner("k", (*ecdsa.PrivateKey)(nil))), "short": second(r.SealSigner("k", ed25519.PrivateKey{1})),
		"broken": second(r.SealSigner("k", broken)),
	} {
		if err == nil || !strings.Contains(err.Error(), `"k"`) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// Key bytes are found in nothing that is printed, whatever the verb.
func TestNothingPrintsKeys(t *testing.T) {
	r, c := newRing(t)
	kek, err := keyring.OpenFileKEK(c.KEKFile)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(c.KEKFile)
	if err != nil {
		t.Fatal(err)
	}
	_, subject, err := r.NewSubjectKey("s")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{r, kek, subject} {
		var out []string
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p", "%T", "%c", "%U", "%b", "%o", "%t", "%e"} {
			out = append(out, fmt.Sprintf(verb, v), fmt.Sprintf(verb, []any{v}), fmt.Sprintf(verb, struct{ V any }{v}))
		}
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("m", "v", v)
		slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "v", v)
		asJSON, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, log.String(), string(asJSON))
		for _, s := range out {
			if strings.Contains(s, string(raw)) || strings.Contains(strings.ToLower(s), hex.EncodeToString(raw)) || len(s) > 600 {
				t.Errorf("%T prints %q", v, s)
			}
		}
		if got := fmt.Sprintf("%v", v); !strings.Contains(got, "REDACTED") && !strings.HasPrefix(got, "keyring.FileKEK(file:") {
			t.Errorf("%T prints %q", v, got)
		}
	}
}
