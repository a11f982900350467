package devserver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/broker/devserver"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/xtest"
)

// start starts a server that is closed at the end of the test.
func start(t *testing.T, cfg devserver.Config) *devserver.Server {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	s, err := devserver.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func dial(t *testing.T, cfg client.Config) *client.Client {
	t.Helper()
	c, err := client.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func put(t *testing.T, s *devserver.Server, name, class, value string) {
	t.Helper()
	operator := dial(t, s.Client("operator"))
	_, err := bullav1.NewSecretsClient(operator.Conn()).PutSecret(t.Context(), &bullav1.PutSecretRequest{
		Name: name, Class: class, Value: []byte(value), RequestId: event.NewID(time.Now()).String(),
	})
	if err != nil {
		t.Fatal(client.FromStatus(err))
	}
}

func get(t *testing.T, c *client.Client, name string) (value []byte, got *client.Secret) {
	t.Helper()
	got, err := c.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	err = got.Use(func(p []byte) error {
		value = bytes.Clone(p)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return value, got
}

func TestDeliversToWorkloadAndNotToStranger(t *testing.T) {
	s := start(t, devserver.Config{Dir: filepath.Join(t.TempDir(), "d"), TPM: devserver.TPMOff})
	put(t, s, "demo/hello", "standard", "value-1")
	put(t, s, "demo/high", "high", "value-2")
	workload := dial(t, s.Client("workload"))
	for name, want := range map[string]string{"demo/hello": "value-1", "demo/high": "value-2"} {
		if value, got := get(t, workload, name); string(value) != want || got.Receipt != "confirmed" {
			t.Errorf("%s: %q, receipt %s", name, value, got.Receipt)
		}
	}
	stranger := dial(t, s.Client("stranger"))
	if _, err := stranger.Get(t.Context(), "demo/hello"); !errors.Is(err, client.ErrDenied) {
		t.Errorf("stranger: %v, want a denial", err)
	}
	if _, err := workload.Get(context.Background(), "demo/none"); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("unknown name: %v, want not found", err)
	}
}

func TestAttestsByTPM(t *testing.T) {
	xtest.Need(t, "swtpm", "swtpm_setup")
	s := start(t, devserver.Config{Dir: filepath.Join(t.TempDir(), "d"), TPM: devserver.TPMOn})
	put(t, s, "demo/high", "high", "value")
	workload := dial(t, s.Client("workload"))
	value, got := get(t, workload, "demo/high")
	if string(value) != "value" || got.Suite != "HPKE-8-KE" {
		t.Errorf("%q in suite %s, want it sealed to the key in the TPM, HPKE-8-KE", value, got.Suite)
	}
	var result struct {
		Device string `json:"device_id"`
		Status string `json:"status"`
	}
	if err := json.Unmarshal(got.Attestation, &result); err != nil {
		t.Fatal(err)
	}
	if result.Device != s.Device().ID.String() || result.Status != "affirming" {
		t.Errorf("the attestation is %s by %s, want affirming by %s", result.Status, result.Device, s.Device().ID)
	}
}
