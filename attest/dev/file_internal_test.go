package dev

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"
)

// Whatever a device file holds, it is read without a crash, and what is read is a device with a key.
func FuzzParseFile(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	path := filepath.Join(f.TempDir(), "device.pem")
	if _, err := Create(path, func(public []byte) ([]byte, error) { return Vouch(key, public) }); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(append(bytes.Clone(good), good...))
	f.Add(bytes.ReplaceAll(good, []byte("PRIVATE"), []byte("EC PRIVATE")))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := parse(text)
		if (d == nil) == (err == nil) {
			t.Errorf("device %v, error %v", d, err)
		}
		if d != nil && len(d.Public()) == 0 {
			t.Error("a device without a key")
		}
	})
}
