package dev_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/dev"
	"github.com/bulla-project/bulla/attest/tpm/swtpm"
	"github.com/bulla-project/bulla/attest/xtest"
)

const workload = "spiffe://dev.bulla.test/workload"

type rig struct {
	authority *ecdsa.PrivateKey
	verifier  *dev.Verifier
	device    *dev.Device
	record    attest.Device
	path      string
}

func newRig(t *testing.T) rig {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r := rig{authority: key, path: filepath.Join(t.TempDir(), "device.pem")}
	if r.verifier, err = dev.New(dev.Config{Authority: &key.PublicKey, DevelopmentOnly: true}); err != nil {
		t.Fatal(err)
	}
	r.device, err = dev.Create(r.path, func(public []byte) ([]byte, error) { return dev.Vouch(key, public) })
	if err != nil {
		t.Fatal(err)
	}
	voucher, err := dev.Vouch(key, r.device.Public())
	if err != nil {
		t.Fatal(err)
	}
	if r.record, err = r.verifier.Enrol(r.device.Public(), voucher, time.Now()); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRefusedInProduction(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dev.New(dev.Config{Authority: &key.PublicKey}); !errors.Is(err, dev.ErrNotDevelopment) {
		t.Errorf("made a verifier outside development: %v", err)
	}
	if _, err := dev.New(dev.Config{DevelopmentOnly: true}); err == nil {
		t.Error("made a verifier without an authority")
	}
}

func TestWholeStory(t *testing.T) {
	r := newRig(t)
	loaded, err := dev.Load(r.path)
	if err != nil {
		t.Fatal(err)
	}
	id, err := loaded.ID()
	if err != nil || id != r.record.ID || id.Kind() != attest.KindDevelopment {
		t.Errorf("id %s, record %s, %v", id, r.record.ID, err)
	}
	b, _ := xtest.NewBinding(t, workload)
	b.RecipientKey = []byte("recipient")
	ev, err := loaded.Attest(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	c, err := r.verifier.Verify(t.Context(), ev, b, r.record)
	if err != nil || c.InstanceInTPM || c.RecipientInTPM {
		t.Fatalf("claims %+v, %v", c, err)
	}
	now := time.Now()
	refs, err := attest.ParseReferences(swtpm.ReferenceYAML(nil, now.Add(-time.Hour), now.Add(time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	got := attest.Appraise(c, refs, now)
	if got.Status != attest.Warning || got.HardwareBound() || got.TrustScore < 1 || got.TrustScore > 50 {
		t.Errorf("result: %+v", got)
	}
	if got := attest.Appraise(c, attest.References{}, now); got.Status == attest.Warning || got.Status == attest.Affirming {
		t.Errorf("without reference values: %+v", got)
	}
}

func TestForgeries(t *testing.T) {
	r, other := newRig(t), newRig(t)
	b, _ := xtest.NewBinding(t, workload)
	ev, err := r.device.Attest(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(name string, ev []byte, b attest.Binding, d attest.Device) {
		t.Helper()
		c, err := r.verifier.Verify(context.Background(), ev, b, d)
		if !errors.Is(err, attest.ErrUnauthentic) || c.Kind != "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	nonce, channel, principal, instance := b, b, b, b
	nonce.Nonce[0] ^= 1
	channel.Channel[0] ^= 1
	principal.Principal = "spiffe://dev.bulla.test/stranger"
	fresh, _ := xtest.NewBinding(t, workload)
	instance.InstanceKey = fresh.InstanceKey
	refused("A12 other nonce", ev, nonce, r.record)
	refused("A44 other channel", ev, channel, r.record)
	refused("A44 other principal", ev, principal, r.record)
	refused("A44 other instance", ev, instance, r.record)
	refused("A44 other device", ev, b, other.record)
	tpm := r.record
	tpm.Kind = attest.KindTPM2
	refused("device of another kind", ev, b, tpm)
	narrow := r.record
	narrow.Principals = []string{"spiffe://dev.bulla.test/operator"}
	refused("not enrolled for the principal", ev, b, narrow)
	for i := range ev {
		flipped := bytes.Clone(ev)
		flipped[i] ^= 1
		refused("flipped byte", flipped, b, r.record)
	}
	refused("tail", append(bytes.Clone(ev), 0), b, r.record)
	refused("empty", nil, b, r.record)
	foreign, err := other.device.Attest(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	refused("device of another authority", foreign, b, other.record)
	if _, err := r.verifier.Enrol(other.device.Public(), []byte("voucher"), time.Now()); !errors.Is(err, attest.ErrUnauthentic) {
		t.Errorf("enrolled without a voucher: %v", err)
	}
}

func TestFiles(t *testing.T) {
	r := newRig(t)
	info, err := os.Stat(r.path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := dev.Create(r.path, func([]byte) ([]byte, error) { return []byte{1}, nil }); err == nil {
		t.Error("overwrote a device")
	}
	if err := os.Chmod(r.path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := dev.Load(r.path); err == nil {
		t.Error("loaded a key that others may read")
	}
	good, err := os.ReadFile(r.path)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"empty": nil, "cut": good[:len(good)/2], "tail": append(bytes.Clone(good), "x"...), "twice": append(bytes.Clone(good), good...),
	} {
		path := filepath.Join(t.TempDir(), "device.pem")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := dev.Load(path); err == nil {
			t.Errorf("%s: loaded", name)
		}
	}
	if _, err := dev.Load(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	v, err := dev.New(dev.Config{Authority: &key.PublicKey, DevelopmentOnly: true})
	if err != nil {
		f.Fatal(err)
	}
	b, _ := xtest.NewBinding(f, workload)
	voucher, err := dev.Vouch(key, b.InstanceKey)
	if err != nil {
		f.Fatal(err)
	}
	record, err := v.Enrol(b.InstanceKey, voucher, time.Unix(1, 0))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(attest.Pack(dev.Label, voucher, []byte("signature")))
	f.Fuzz(func(t *testing.T, ev []byte) {
		if _, err := v.Verify(context.Background(), ev, b, record); !errors.Is(err, attest.ErrUnauthentic) {
			t.Errorf("believed, or failed otherwise: %v", err)
		}
	})
}
