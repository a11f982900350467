package attest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func testDevice() Device {
	sum := sha256.Sum256([]byte("ek"))
	id, err := NewDeviceID(KindTPM2, sum)
	if err != nil {
		panic(err)
	}
	return Device{
		ID: id, Kind: KindTPM2, IdentityHash: hex.EncodeToString(sum[:]), AKPublic: []byte("ak"), AKName: []byte("name"),
		Platform: Platform{Type: "tpm2", Manufacturer: "id:<&>"}, Principals: []string{"spiffe://a/b", "spiffe://a/c"},
		EnrolledAt: time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC),
	}
}

func TestDeviceID(t *testing.T) {
	d := testDevice()
	if got, err := ParseDeviceID(d.ID.String()); err != nil || got != d.ID {
		t.Errorf("%v, %v", got, err)
	}
	good := d.ID.String()
	for _, s := range []string{"", "tpm-", good[:len(good)-1], good + "a", strings.ToUpper(good), "sev" + good[3:], good[4:], good + "\n", good[:len(good)-1] + "7"} {
		if _, err := ParseDeviceID(s); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v", s, err)
		}
	}
	other, err := NewDeviceID(KindDevelopment, sha256.Sum256([]byte("ek")))
	if err != nil || other == d.ID || other.Kind() != KindDevelopment {
		t.Errorf("the same key of two kinds: %s, %v", other, err)
	}
	if _, err := NewDeviceID("sgx", [32]byte{}); err == nil {
		t.Error("unknown kind")
	}
	if _, err := (DeviceID{}).MarshalText(); err == nil {
		t.Error("the zero value was encoded")
	}
}

// Each field changes the digest, and no byte may move from one field to the next.
func TestBindingDigest(t *testing.T) {
	base := Binding{Principal: "ab", InstanceKey: []byte("c"), RecipientKey: []byte("d")}
	seen := map[[32]byte]string{base.Digest(): "base"}
	for name, change := range map[string]func(*Binding){
		"nonce":            func(b *Binding) { b.Nonce[31] = 1 },
		"channel":          func(b *Binding) { b.Channel[0] = 1 },
		"principal":        func(b *Binding) { b.Principal = "aB" },
		"instance":         func(b *Binding) { b.InstanceKey = []byte("C") },
		"recipient":        func(b *Binding) { b.RecipientKey = []byte("D") },
		"no recipient":     func(b *Binding) { b.RecipientKey = nil },
		"moved to the key": func(b *Binding) { b.Principal, b.InstanceKey = "a", []byte("bc") },
		"moved from it":    func(b *Binding) { b.Principal, b.InstanceKey = "abc", nil },
		"moved to the end": func(b *Binding) { b.InstanceKey, b.RecipientKey = nil, []byte("cd") },
	} {
		b := base
		change(&b)
		if before, ok := seen[b.Digest()]; ok {
			t.Errorf("%s has the digest of %s", name, before)
		}
		seen[b.Digest()] = name
	}
	const golden = "a label or layout that changed breaks every device in the field" // made by another program
	digest := base.Digest()
	if got := hex.EncodeToString(digest[:]); got != "d38fcf1cbfc84c083c890b6a6aae55091653a8a52e528df88174d21dc8315c49" {
		t.Errorf("digest %s: %s", got, golden)
	}
}

func TestPack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fields := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 20), 0, 5).Draw(t, "fields")
		packed := Pack("label", fields...)
		limits := make([]int, len(fields))
		for i := range limits {
			limits[i] = 20
		}
		got, err := Unpack("label", packed, limits...)
		if err != nil || !bytes.Equal(Pack("label", got...), packed) {
			t.Fatalf("%v, %v", got, err)
		}
		if _, err := Unpack("label", packed, append(limits, 0)...); err == nil {
			t.Fatal("one field too few was accepted")
		}
		if _, err := Unpack("other", packed, limits...); err == nil {
			t.Fatal("another label was accepted")
		}
		if _, err := Unpack("label", append(packed, 0), limits...); err == nil {
			t.Fatal("a tail was accepted")
		}
	})
}

func TestDeviceRecord(t *testing.T) {
	d := testDevice()
	b, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeDevice(b)
	if diff := cmp.Diff(d, got, cmp.AllowUnexported(DeviceID{})); diff != "" || err != nil {
		t.Error(diff, err)
	}
	for name, bad := range map[string]string{
		"space":         strings.Replace(string(b), ":", ": ", 1),
		"unknown field": strings.Replace(string(b), "{", `{"x":1,`, 1),
		"null list":     strings.Replace(string(b), `["spiffe://a/b","spiffe://a/c"]`, "null", 1),
		"unsorted list": strings.Replace(string(b), `["spiffe://a/b","spiffe://a/c"]`, `["spiffe://a/c","spiffe://a/b"]`, 1),
		"other hash":    strings.Replace(string(b), `"identity_hash":"`+d.IdentityHash[:1], `"identity_hash":"`+string("0123456789abcdef"[(strings.IndexByte("0123456789abcdef", d.IdentityHash[0])+1)%16]), 1),
		"other kind":    strings.Replace(string(b), `"kind":"tpm2"`, `"kind":"development"`, 1),
		"tail":          string(b) + "{}",
		"twice a key":   strings.Replace(string(b), "{", `{"kind":"tpm2",`, 1),
		"huge":          strings.Repeat(" ", maxRecord+1),
		"empty":         "",
	} {
		if bad == string(b) {
			t.Fatalf("%s: nothing changed", name)
		}
		if _, err := DecodeDevice([]byte(bad)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !d.Allows("spiffe://a/b") || d.Allows("spiffe://a/d") || !(Device{}).Allows("anyone") {
		t.Error("Allows")
	}
}

func TestCounters(t *testing.T) {
	minute := uint64(time.Minute / time.Millisecond)
	seen := Counters{ResetCount: 5, RestartCount: 1, Clock: 100 * minute}
	for name, c := range map[string]struct {
		next Counters
		back bool
	}{
		"the same":                {seen, false},
		"later":                   {Counters{5, 1, 101 * minute}, false},
		"verified out of order":   {Counters{5, 1, 99 * minute}, false},
		"clock fell":              {Counters{5, 1, 97 * minute}, true},
		"booted, clock fell":      {Counters{6, 0, 50 * minute}, false},
		"fewer boots":             {Counters{4, 9, 900 * minute}, true},
		"cleared":                 {Counters{}, true},
		"more boots, higher time": {Counters{9, 0, 900 * minute}, false},
	} {
		if got := seen.RolledBack(c.next); got != c.back {
			t.Errorf("%s: %v", name, got)
		}
	}
	if (Counters{}).RolledBack(Counters{}) {
		t.Error("a new device is rolled back")
	}
}

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(2, 1)
		release := make(chan struct{})
		var group sync.WaitGroup
		for range 2 {
			group.Go(func() {
				if err := g.Do(t.Context(), func() error { <-release; return nil }); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		waited := make(chan error)
		go func() { waited <- g.Do(ctx, func() error { return nil }) }()
		synctest.Wait()
		if err := g.Do(t.Context(), func() error { return nil }); !errors.Is(err, ErrBusy) {
			t.Errorf("a fourth one: %v", err)
		}
		cancel()
		if err := <-waited; !errors.Is(err, context.Canceled) {
			t.Errorf("the waiting one: %v", err)
		}
		close(release)
		group.Wait()
		want := errors.New("its own error")
		if err := g.Do(t.Context(), func() error { return want }); !errors.Is(err, want) {
			t.Error(err)
		}
	})
}
