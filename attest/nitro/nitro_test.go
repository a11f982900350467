package nitro_test

import (
	"errors"
	"testing"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/nitro"
	"github.com/bulla-project/bulla/attest/xtest"
)

func TestVerify(t *testing.T) {
	xtest.MachineOf(t, attest.KindNitro).Check(t, nitro.Verifier{})
}

func FuzzVerify(f *testing.F) {
	m := xtest.MachineOf(f, attest.KindNitro)
	b, _ := xtest.NewBinding(f, "spiffe://example.org/workload")
	other, _ := xtest.NewBinding(f, "spiffe://example.org/workload")
	f.Add(m.Evidence(f, other))
	for _, forgery := range m.Forgeries {
		f.Add(forgery.Forge(f, b))
	}
	f.Fuzz(func(t *testing.T, ev []byte) {
		if _, err := (nitro.Verifier{}).Locate(ev); err != nil && !errors.Is(err, attest.ErrUnauthentic) {
			t.Errorf("located nothing, for another reason: %v", err)
		}
		if _, err := (nitro.Verifier{}).Verify(t.Context(), ev, b, m.Device); !errors.Is(err, attest.ErrUnauthentic) {
			t.Errorf("believed, or failed otherwise: %v", err)
		}
	})
}

func TestFlips(t *testing.T) {
	xtest.MachineOf(t, attest.KindNitro).Flips(t, nitro.Verifier{}, 0, 0)
}

// Some hypervisors write the outermost map of a document without its length. Only there it is taken.
func TestOpenMap(t *testing.T) {
	m := xtest.MachineOf(t, attest.KindNitro)
	b, _ := xtest.NewBinding(t, "spiffe://example.org/workload")
	if _, err := (nitro.Verifier{}).Verify(t.Context(), m.Open(t, b), b, m.Device); err != nil {
		t.Error(err)
	}
}
