package xtest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/attest"
)

// Check holds a verifier against a machine: honest evidence makes claims, whatever was forged makes none and is the
// fault of the evidence.
func (m *Machine) Check(t *testing.T, v attest.Verifier) {
	const principal = "spiffe://example.org/workload"
	b, _ := NewBinding(t, principal)
	good := m.Evidence(t, b)
	for name, image := range map[string]attest.Image{"pinned": m.Image, "on any platform": m.Loose} {
		t.Run("honest "+name, func(t *testing.T) {
			c, err := v.Verify(t.Context(), good, b, m.Enrolled(t, image))
			if err != nil {
				t.Fatal(err)
			}
			if c.Kind != m.Kind || c.Machine == nil || c.Machine.Debug != attest.False || !image.Shown(c.Measured) || c.InstanceInTPM || c.RecipientInTPM {
				t.Errorf("claims: %+v %+v", c, c.Machine)
			}
			id, err := image.ID(m.Kind)
			if ids, e := v.(attest.Locator).Locate(good); err != nil || e != nil || !slices.Contains(ids, id) {
				t.Errorf("located %v, %v, %v, want %s among them", ids, e, err, id)
			}
		})
	}
	refused := func(t *testing.T, ev []byte, b attest.Binding, d attest.Device, because string) {
		t.Helper()
		c, err := v.Verify(t.Context(), ev, b, d)
		if !errors.Is(err, attest.ErrUnauthentic) || c.Kind != "" || !strings.Contains(err.Error(), because) {
			t.Errorf("want a refusal with %q, got %v", because, err)
		}
	}
	for _, f := range m.Forgeries {
		t.Run(f.Name, func(t *testing.T) { refused(t, f.Forge(t, b), b, m.Device, f.Because) })
	}
	t.Run("A44 evidence of another instance", func(t *testing.T) {
		other, _ := NewBinding(t, principal)
		refused(t, m.Evidence(t, other), b, m.Device, "is not that of this challenge")
	})
	t.Run("records that do not fit", func(t *testing.T) {
		other := m.Device
		other.Kind = attest.KindTPM2
		refused(t, good, b, other, "is of kind")
		narrow := m.Device
		narrow.Principals = []string{"spiffe://example.org/operator"}
		refused(t, good, b, narrow, "not enrolled for this principal")
		rootless := m.Device
		rootless.Roots = nil
		refused(t, good, b, rootless, "name no root")
		bare := m.Device
		bare.Image = nil
		refused(t, good, b, bare, "enrolled one")
		refused(t, good, attest.Binding{Principal: principal}, m.Device, "instance key")
	})
	t.Run("ended", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := v.Verify(ctx, good, b, m.Device); !errors.Is(err, context.Canceled) || errors.Is(err, attest.ErrUnauthentic) {
			t.Errorf("with an ended context: %v", err)
		}
	})
}

// Flips flips bytes of good evidence from one place to another: nothing of it may be believed.
func (m *Machine) Flips(t *testing.T, v attest.Verifier, from, to int) {
	b, _ := NewBinding(t, "spiffe://example.org/workload")
	good := m.Evidence(t, b)
	if to == 0 {
		to = len(good)
	}
	for i := from; i < to; i += max(1, (to-from)/200) {
		ev := bytes.Clone(good)
		ev[i] ^= 0x10
		if _, err := v.Verify(t.Context(), ev, b, m.Device); !errors.Is(err, attest.ErrUnauthentic) {
			t.Errorf("byte %d: %v", i, err)
		}
	}
}
