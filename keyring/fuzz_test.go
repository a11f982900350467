package keyring_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/bulla-project/bulla/keyring"
)

func FuzzOpen(f *testing.F) {
	r, _ := newRing(f)
	f.Add(seal(f, r, keyring.PurposeSecret, "v", "aad"), []byte("aad"))
	f.Add([]byte{}, []byte{})
	f.Add([]byte{1, 2, 3, 4, 5, 6}, []byte("x"))
	known := map[string]bool{string(seal(f, r, keyring.PurposeSecret, "v", "aad")): true}
	f.Fuzz(func(t *testing.T, ct, aad []byte) {
		if _, err := r.Open(keyring.PurposeKey, ct, aad); !errors.Is(err, keyring.ErrOpen) {
			t.Fatalf("opened %x for another purpose: %v", ct, err)
		}
		if _, err := r.Open(keyring.PurposeSecret, ct, aad); err != nil && !errors.Is(err, keyring.ErrOpen) {
			t.Fatalf("%v", err)
		}
		if _, err := r.OpenSigner(string(aad), ct); !errors.Is(err, keyring.ErrOpen) && !known[string(ct)] {
			t.Fatalf("a signer from %x: %v", ct, err)
		}
	})
}

func FuzzOpenSubjectKey(f *testing.F) {
	r, _ := newRing(f)
	wrapped, key, err := r.NewSubjectKey("s")
	if err != nil {
		f.Fatal(err)
	}
	sealed := key.Seal([]byte("body"), nil)
	f.Add(wrapped, "s", sealed)
	f.Add([]byte{}, "", []byte{})
	f.Add(make([]byte, 33), "s", make([]byte, 28))
	f.Fuzz(func(t *testing.T, w []byte, subject string, body []byte) {
		k, err := r.OpenSubjectKey(w, subject)
		if (err == nil) != (bytes.Equal(w, wrapped) && subject == "s") {
			t.Fatalf("key %x of %q: %v", w, subject, err)
		}
		if _, err := key.Open(body, nil); (err == nil) != bytes.Equal(body, sealed) {
			t.Fatalf("body %x: %v", body, err)
		}
		if k == nil && !errors.Is(err, keyring.ErrOpen) {
			t.Fatalf("%v", err)
		}
	})
}

func BenchmarkRing(b *testing.B) {
	r, _ := newRing(b)
	for _, size := range []int{32, 1024} {
		plaintext := make([]byte, size)
		aad := storedAAD.Bytes()
		ct := seal(b, r, keyring.PurposeSecret, string(plaintext), string(aad))
		b.Run(fmt.Sprintf("Seal/%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Seal(keyring.PurposeSecret, plaintext, aad); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("Open/%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Open(keyring.PurposeSecret, ct, aad); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("NameHash", func(b *testing.B) {
		for b.Loop() {
			r.NameHash("demo/database")
		}
	})
}

func BenchmarkSubjectKey(b *testing.B) {
	r, _ := newRing(b)
	wrapped, key, err := r.NewSubjectKey("s")
	if err != nil {
		b.Fatal(err)
	}
	body, aad := make([]byte, 1024), make([]byte, 48)
	sealed := key.Seal(body, aad)
	b.Run("Seal/1024", func(b *testing.B) {
		b.SetBytes(1024)
		b.ReportAllocs()
		for b.Loop() {
			key.Seal(body, aad)
		}
	})
	b.Run("Open/1024", func(b *testing.B) {
		b.SetBytes(1024)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := key.Open(sealed, aad); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Unwrap", func(b *testing.B) {
		for b.Loop() {
			if _, err := r.OpenSubjectKey(wrapped, "s"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
