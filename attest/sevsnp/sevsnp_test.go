package sevsnp_test

import (
	"errors"
	"testing"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/sevsnp"
	"github.com/bulla-project/bulla/attest/xtest"
)

func TestVerify(t *testing.T) {
	xtest.MachineOf(t, attest.KindSEVSNP).Check(t, sevsnp.Verifier{})
}

func FuzzVerify(f *testing.F) {
	m := xtest.MachineOf(f, attest.KindSEVSNP)
	b, _ := xtest.NewBinding(f, "spiffe://example.org/workload")
	other, _ := xtest.NewBinding(f, "spiffe://example.org/workload")
	f.Add(m.Evidence(f, other))
	for _, forgery := range m.Forgeries {
		f.Add(forgery.Forge(f, b))
	}
	f.Fuzz(func(t *testing.T, ev []byte) {
		if _, err := (sevsnp.Verifier{}).Locate(ev); err != nil && !errors.Is(err, attest.ErrUnauthentic) {
			t.Errorf("located nothing, for another reason: %v", err)
		}
		if _, err := (sevsnp.Verifier{}).Verify(t.Context(), ev, b, m.Device); !errors.Is(err, attest.ErrUnauthentic) {
			t.Errorf("believed, or failed otherwise: %v", err)
		}
	})
}

// The frame, its first length and the report: what the signature covers, and the signature.
func TestFlips(t *testing.T) {
	xtest.MachineOf(t, attest.KindSEVSNP).Flips(t, sevsnp.Verifier{}, 0, 2+len("bulla-sev-snp-evidence/v1")+4+1184)
}
