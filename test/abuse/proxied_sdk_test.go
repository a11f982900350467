package abuse

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/test/rig"
)

func withDevice(file string) func(*client.Config) {
	return func(c *client.Config) { c.DeviceFile = file }
}

// The SDK: a key has no value to use, its operations are counted by the broker, and what it says is checked.
func TestProxiedKeysOfTheSDK(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Generate("demo/box", "critical", "aes-256-gcm")
	r.Generate("demo/mac", "standard", "hmac-sha256")
	r.Put("demo/hello", "standard", "hello")
	file, _ := r.Device(rig.ID("workload").String())
	c := r.Client("workload", withDevice(file))
	s, err := c.Get(t.Context(), "demo/box")
	if err != nil {
		t.Fatal(err)
	}
	if n, limited := s.UsesLeft(); n != 10 || !limited || s.Grade != "proxied" || s.UsesEnforcedBy != "broker" || s.KeyType() != "aes-256-gcm" || s.PublicKey() != nil {
		t.Fatalf("%d uses, %t, grade %s by %q, type %q", n, limited, s.Grade, s.UsesEnforcedBy, s.KeyType())
	}
	if err := s.Use(func([]byte) error { t.Error("there is a value"); return nil }); !errors.Is(err, client.ErrProxied) {
		t.Errorf("use: %v", err)
	}
	ct, err := s.Encrypt(t.Context(), []byte("plain"), []byte("context"))
	if err != nil {
		t.Fatal(err)
	}
	if v, err := client.CiphertextVersion(ct); v != 1 || err != nil {
		t.Errorf("version %d, %v", v, err)
	}
	if plain, err := s.Decrypt(t.Context(), ct, []byte("context")); err != nil || string(plain) != "plain" {
		t.Errorf("decrypted to %q, %v", plain, err)
	}
	if _, err := s.Decrypt(t.Context(), ct, nil); !errors.Is(err, client.ErrNotAuthentic) {
		t.Errorf("without its associated data: %v", err)
	}
	if _, err := s.Sign(t.Context(), []byte("m")); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("sign: %v", err)
	}
	if n, _ := s.UsesLeft(); n != 7 {
		t.Errorf("%d uses left, want 7", n)
	}
	var done atomic.Int64
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			_, err := s.Encrypt(t.Context(), fmt.Append(nil, i), nil)
			if err == nil {
				done.Add(1)
			} else if !errors.Is(err, client.ErrEnded) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if state, _, err := s.State(t.Context()); done.Load() != 7 || state != "exhausted" || err != nil {
		t.Errorf("%d operations, the session is %s, %v", done.Load(), state, err)
	}

	m, err := c.Get(t.Context(), "demo/mac", client.WithGrade("proxied"), client.WithUses(4))
	if err != nil {
		t.Fatal(err)
	}
	mac, err := m.MAC(t.Context(), []byte("message"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.VerifyMAC(t.Context(), []byte("message"), mac); err != nil {
		t.Error(err)
	}
	if err := m.VerifyMAC(t.Context(), []byte("Message"), mac); !errors.Is(err, client.ErrNotAuthentic) {
		t.Errorf("another message: %v", err)
	}
	m.Close()
	if _, err := m.MAC(t.Context(), []byte("message")); !errors.Is(err, client.ErrEnded) {
		t.Errorf("after Close: %v", err)
	}
	open := get(t, c, "demo/hello", "hello")
	if _, err := open.Sign(t.Context(), []byte("m")); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("sign with an opaque secret: %v", err)
	}
	if _, err := open.Signer(t.Context()); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("a signer of an opaque secret: %v", err)
	}
	r.Check()
}

// While the broker is away an operation fails, and the same call made again afterwards is the same request: it is
// counted once.
func TestProxiedOperationOverARestart(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Generate("demo/mac", "standard", "hmac-sha256")
	c := r.Client("workload")
	s, err := c.Get(t.Context(), "demo/mac", client.WithUses(2))
	if err != nil {
		t.Fatal(err)
	}
	r.Stop()
	if _, err := s.MAC(t.Context(), []byte("m")); !errors.Is(err, client.ErrUnavailable) {
		t.Fatalf("without a broker: %v", err)
	}
	if n, _ := s.UsesLeft(); n != 2 {
		t.Errorf("%d uses left", n)
	}
	r.Run()
	var first []byte
	eventually(t, "the broker is there again", func() bool {
		first, err = s.MAC(t.Context(), []byte("m"))
		return err == nil
	})
	second, err := s.MAC(t.Context(), []byte("m"))
	if err != nil || !bytes.Equal(first, second) {
		t.Error(err)
	}
	if state, _, err := s.State(t.Context()); state != "exhausted" || err != nil {
		t.Errorf("the session is %s, %v", state, err)
	}
	r.Check()
}
