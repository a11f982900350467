package tdx_test

import (
	"errors"
	"testing"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tdx"
	"github.com/bulla-project/bulla/attest/xtest"
)

func TestVerify(t *testing.T) {
	xtest.MachineOf(t, attest.KindTDX).Check(t, tdx.Verifier{})
}

func FuzzVerify(f *testing.F) {
	m := xtest.MachineOf(f, attest.KindTDX)
	b, _ := xtest.NewBinding(f, "spiffe://example.org/workload")
	other, _ := xtest.NewBinding(f, "spiffe://example.org/workload")
	f.Add(m.Evidence(f, other))
	for _, forgery := range m.Forgeries {
		f.Add(forgery.Forge(f, b))
	}
	f.Fuzz(func(t *testing.T, ev []byte) {
		if _, err := (tdx.Verifier{}).Locate(ev); err != nil && !errors.Is(err, attest.ErrUnauthentic) {
			t.Errorf("located nothing, for another reason: %v", err)
		}
		if _, err := (tdx.Verifier{}).Verify(t.Context(), ev, b, m.Device); !errors.Is(err, attest.ErrUnauthentic) {
			t.Errorf("believed, or failed otherwise: %v", err)
		}
	})
}

// The quote up to its certificates: what the signatures cover, and the signatures.
func TestFlips(t *testing.T) {
	xtest.MachineOf(t, attest.KindTDX).Flips(t, tdx.Verifier{}, 0, 0x27c+0x80+6+0x1c0+2+32)
}
