package client_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/test/rig"
)

// value returns the plaintext of a secret, or the error of using it.
func value(s *client.Secret) (out string, err error) {
	err = s.Use(func(b []byte) error { out = string(b); return nil })
	return out, err
}

func TestGetIsWhatThePolicySays(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/plain", "standard", "one")
	r.Put("demo/plain", "standard", "two")
	r.Put("demo/guarded", "high", "three")
	device, _ := r.Device(rig.ID("workload").String())
	c := r.Client("workload", func(c *client.Config) { c.DeviceFile = device })

	s, err := c.Get(t.Context(), "demo/plain")
	if err != nil {
		t.Fatal(err)
	}
	if v, err := value(s); v != "two" || err != nil || s.Version != 2 || s.Receipt != "confirmed" || s.Suite != "HPKE-9-KE" || s.Attestation != nil {
		t.Errorf("%q %v %+v", v, err, s)
	}
	old, err := c.Get(t.Context(), "demo/plain", client.WithVersion(1))
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := value(old); v != "one" {
		t.Errorf("version 1 is %q", v)
	}
	guarded, err := c.Get(t.Context(), "demo/guarded")
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := value(guarded); v != "three" || guarded.Attestation == nil {
		t.Errorf("%q, attestation %s", v, guarded.Attestation)
	}
	if _, err := c.Get(t.Context(), "demo/none"); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("a name that the grant covers and that does not exist: %v", err)
	}
	if _, err := c.Get(t.Context(), "other/none"); !errors.Is(err, client.ErrDenied) {
		t.Errorf("a name that no grant covers: %v", err)
	}
	if _, err := c.Get(t.Context(), "Demo/plain"); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("a name in another spelling: %v", err)
	}
	r.Check()
}

func TestStepUpWithoutADevice(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/guarded", "high", "x")
	_, err := r.Client("workload").Get(t.Context(), "demo/guarded")
	var refused *client.Refusal
	if !errors.As(err, &refused) || refused.Decision != "STEP_UP" || !strings.Contains(string(refused.Requires), "attestation") || refused.SupportID == "" {
		t.Fatalf("%v: %+v", err, refused)
	}
}

func TestLimitsOfASession(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/plain", "standard", "x")
	now := time.Now
	var ahead time.Duration
	c := r.Client("workload", func(c *client.Config) { c.Now = func() time.Time { return now().Add(ahead) } })
	s, err := c.Get(t.Context(), "demo/plain", client.WithUses(2), client.WithTTL(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if n, limited := s.UsesLeft(); n != 2 || !limited || s.UsesEnforcedBy != "client" {
		t.Errorf("%d %v %q", n, limited, s.UsesEnforcedBy)
	}
	for i := range 3 {
		if _, err := value(s); (err == nil) != (i < 2) || err != nil && !errors.Is(err, client.ErrEnded) {
			t.Errorf("use %d: %v", i+1, err)
		}
	}
	s, err = c.Get(t.Context(), "demo/plain", client.WithTTL(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	ahead = time.Minute + time.Second
	if _, err := value(s); !errors.Is(err, client.ErrEnded) {
		t.Errorf("after its end: %v", err)
	}
	ahead = 0
	s.Close()
	if _, err := value(s); !errors.Is(err, client.ErrEnded) {
		t.Errorf("after Close: %v", err)
	}
}

func TestReleaseEndsTheSession(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/plain", "standard", "x")
	c := r.Client("workload")
	s, err := c.Get(t.Context(), "demo/plain")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if state, _, err := s.State(t.Context()); state != "closed" || err != nil {
		t.Errorf("%s, %v", state, err)
	}
}

// TestRestartOfTheBroker: a client lives through a restart, and its next call succeeds, however often it tried in between.
func TestRestartOfTheBroker(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/plain", "standard", "x")
	c := r.Client("workload")
	before, err := c.Get(t.Context(), "demo/plain")
	if err != nil {
		t.Fatal(err)
	}
	r.Stop()
	for range 8 {
		if _, err := c.Get(t.Context(), "demo/plain"); !errors.Is(err, client.ErrUnavailable) {
			t.Errorf("while the broker is down: %v", err)
		}
	}
	r.Run()
	if _, err := c.Get(t.Context(), "demo/plain"); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	if state, _, err := before.State(t.Context()); state != "confirmed" || err != nil {
		t.Errorf("the session from before is %s, %v", state, err)
	}
}

func TestInclusionOfADelivery(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/plain", "standard", "x")
	text, err := os.ReadFile(r.Config.DataDir + "/log.pub")
	if err != nil {
		t.Fatal(err)
	}
	key, err := proofs.ParseKey(string(text))
	if err != nil {
		t.Fatal(err)
	}
	c := r.Client("workload", func(c *client.Config) { c.LogKey = key })
	s, err := c.Get(t.Context(), "demo/plain")
	if err != nil {
		t.Fatal(err)
	}
	head, err := s.VerifyInclusion(t.Context())
	if err != nil || head.Size <= s.LogIndex {
		t.Fatalf("%v, %v", head, err)
	}
	s.LogIndex-- // another event is not this delivery
	if _, err := s.VerifyInclusion(t.Context()); !errors.Is(err, client.ErrVerification) {
		t.Errorf("another index: %v", err)
	}
	if _, err := r.Client("workload").Get(t.Context(), "demo/plain"); err != nil {
		t.Fatal(err)
	}
}

func TestConfigurationFaults(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	good := client.Config{Address: r.Addr(), EndpointSocket: r.Socket("bulla/broker"), ConnectTimeout: 200 * time.Millisecond}
	for name, edit := range map[string]func(*client.Config){
		"no address":     func(c *client.Config) { c.Address = "" },
		"bad server id":  func(c *client.Config) { c.ServerID = "https://example.org/x" },
		"no identity":    func(c *client.Config) { c.EndpointSocket = "" },
		"missing socket": func(c *client.Config) { c.EndpointSocket = "unix:///nowhere/sock" },
		"bad tpm":        func(c *client.Config) { c.TPM = "nonsense" },
		"missing device": func(c *client.Config) { c.DeviceFile = "/nowhere/device" },
	} {
		cfg := good
		edit(&cfg)
		c, err := client.New(t.Context(), cfg)
		if err == nil {
			_ = c.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestRefusalIsOneSentinelEach(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	c := r.Client("stranger", func(c *client.Config) { c.MinimumSuite = envelope.SuiteP256() })
	_, err := c.Get(t.Context(), "demo/plain")
	for _, other := range []error{client.ErrNotFound, client.ErrUnavailable, client.ErrInvalid, client.ErrEnded} {
		if errors.Is(err, other) {
			t.Errorf("%v is %v", err, other)
		}
	}
	if !errors.Is(err, client.ErrDenied) {
		t.Error(err)
	}
	_, err = bullav1.NewSessionsClient(r.Client("auditor").Conn()).GetSession(t.Context(), &bullav1.GetSessionRequest{Id: "01900000-0000-7000-8000-000000000000"})
	if !errors.Is(client.FromStatus(err), client.ErrNotFound) {
		t.Error(err)
	}
}
