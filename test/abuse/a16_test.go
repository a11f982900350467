package abuse

import (
	"testing"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tpm"
	"github.com/bulla-project/bulla/attest/tpm/swtpm"
	attestx "github.com/bulla-project/bulla/attest/xtest"
	"github.com/bulla-project/bulla/test/rig"
)

func TestAbuse_A16_forged_evidence(t *testing.T) { forgeries(t, "A16_") }

// What crashed well-known libraries gets a clear answer, and the broker serves on: an RSA key whose signature is
// tagged as ECDSA, the reverse, and an event of a type that nobody knows.
func TestAbuse_A16_library_crashes(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "hello")
	a := r.Assemble(rig.Parts{Verifiers: []attest.Verifier{tpm.Verifier{}}})
	w := r.Raw("workload")
	t.Run("mixed", func(t *testing.T) {
		ec, rsa := attestx.NewForger(t), attestx.NewRSAForger(t, 2048)
		rsaDevice := rsa.Device(t)
		t.Run("rsa", func(t *testing.T) {
			a.Enrol(rsaDevice)
			w.Challenge(nil)
			_, err := show(t, w, "tpm2", rsaDevice.ID.String(), ec.Evidence(t, binding(t, w), attestx.Quote{PCRs: attestx.GoodPCRs()}, nil))
			unauthentic(t, err)
		})
		ec = attestx.NewForger(t)
		t.Run("ecdsa", func(t *testing.T) {
			other := attestx.NewForger(t)
			a.Enrol(other.Device(t))
			w.Challenge(nil)
			_, err := show(t, w, "tpm2", other.Device(t).ID.String(), rsa.Evidence(t, binding(t, w), attestx.Quote{PCRs: attestx.GoodPCRs()}, nil))
			unauthentic(t, err)
		})
	})
	t.Run("unknown event type", func(t *testing.T) {
		f := attestx.NewForger(t)
		a.Enrol(f.Device(t))
		w.Challenge(nil)
		log := attestx.UnknownEventLog(swtpm.EventLog())
		if _, err := show(t, w, "tpm2", f.Device(t).ID.String(), f.Evidence(t, binding(t, w), attestx.Quote{PCRs: attestx.GoodPCRs()}, log)); err != nil {
			t.Errorf("a log with an event of an unknown type in PCR 16: %v", err)
		}
	})
	if _, _, err := w.Deliver(t.Context(), "demo/hello"); err != nil {
		t.Errorf("a delivery afterwards: %v", err)
	}
	calm(t, r)
}
