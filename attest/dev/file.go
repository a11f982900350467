package dev

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	keyType     = "PRIVATE KEY"
	voucherType = "BULLA DEVELOPMENT VOUCHER"
	maxFile     = 8 << 10
)

// Create makes a device with a fresh key, has it vouched for, and writes both to path (mode 0600), which must
// not exist yet. vouch is given the device key in PKIX form (see [Vouch]).
func Create(path string, vouch func(devicePublic []byte) ([]byte, error)) (*Device, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a development device: %w", err)
	}
	d, err := newDevice(key, nil)
	if err != nil {
		return nil, fmt.Errorf("make a development device: %w", err)
	}
	if d.voucher, err = vouch(d.Public()); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make a development device: %w", err)
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: keyType, Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: voucherType, Bytes: d.voucher})...)
	if err := writeNew(path, text); err != nil {
		return nil, fmt.Errorf("make a development device: %w", err)
	}
	return d, nil
}

// Load reads a device that Create wrote. It refuses a file that others may read.
func Load(path string) (*Device, error) {
	d, err := load(path)
	if err != nil {
		return nil, fmt.Errorf("development device %s: %w", path, err)
	}
	return d, nil
}

func load(path string) (*Device, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("mode %s: it must be a file that only its owner may read (chmod 600)", info.Mode())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("more than %d bytes", maxFile)
	}
	return parse(text)
}

// parse reads exactly a private key and a voucher, in PEM.
func parse(text []byte) (*Device, error) {
	keyBlock, rest := pem.Decode(text)
	if keyBlock == nil || keyBlock.Type != keyType {
		return nil, errors.New("does not begin with a private key in PEM")
	}
	voucher, rest := pem.Decode(rest)
	if voucher == nil || voucher.Type != voucherType || len(rest) != 0 {
		return nil, errors.New("does not end with one voucher in PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, errors.New("the private key can't be read")
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("the private key is not on P-256")
	}
	return newDevice(key, voucher.Bytes)
}

// writeNew writes a file that must not exist yet, so that it is there whole or not at all.
func writeNew(path string, text []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".device-") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(text); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s exists already", path)
		}
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
