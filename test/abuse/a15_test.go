package abuse

import (
	"crypto/sha256"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tpm"
	"github.com/bulla-project/bulla/attest/tpm/evidence"
	"github.com/bulla-project/bulla/attest/tpm/swtpm"
	attestx "github.com/bulla-project/bulla/attest/xtest"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
	"github.com/bulla-project/bulla/test/rig"
)

func TestAbuse_A15_forged_evidence(t *testing.T) { forgeries(t, "A15_") }

// The endorsement key of one TPM and the attestation key of another are no device, and a quote of another TPM
// says nothing about the enrolled one.
func TestAbuse_A15_two_devices(t *testing.T) {
	one, two := software(t), software(t)
	r := rig.Start(t, rig.Config{Policy: trusting(one)})
	devices := bullav1.NewDevicesClient(r.Client("operator").Conn())
	workload := []string{rig.ID("workload").String()}
	mixed, err := evidence.ParseRequest(enrolRequest(t, one))
	if err != nil {
		t.Fatal(err)
	}
	other, err := evidence.ParseRequest(enrolRequest(t, two))
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*evidence.Request){
		"attestation key of another TPM": func(q *evidence.Request) { q.AKPublic = other.AKPublic },
		"certificate of another TPM":     func(q *evidence.Request) { q.Certificates = other.Certificates },
		"endorsement key of another TPM": func(q *evidence.Request) { q.EKPublic = other.EKPublic },
		"another maker":                  func(q *evidence.Request) { *q = other },
	} {
		t.Run(name, func(t *testing.T) {
			q := mixed
			change(&q)
			begun, err := devices.BeginEnrolment(t.Context(), &bullav1.BeginEnrolmentRequest{Kind: "tpm2", Request: q.Marshal(), Principals: workload})
			if err != nil {
				code(t, err, codes.InvalidArgument, "can't be enrolled")
				return
			}
			// The credential opens for neither TPM; whatever is answered is wrong, and spends the enrolment.
			challenge, err := evidence.ParseChallenge(begun.GetChallenge())
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range []*attestx.Rig{one, two} {
				if _, err := x.TPM.Activate(t.Context(), challenge); err == nil {
					t.Error("a TPM that holds one of two keys recovered the secret")
				}
			}
			_, err = devices.FinishEnrolment(t.Context(), &bullav1.FinishEnrolmentRequest{Enrolment: begun.GetEnrolment(), Answer: make([]byte, 32)})
			code(t, err, codes.InvalidArgument, "did not prove")
			_, err = devices.FinishEnrolment(t.Context(), &bullav1.FinishEnrolmentRequest{Enrolment: begun.GetEnrolment(), Answer: make([]byte, 32)})
			code(t, err, codes.NotFound, "no such enrolment")
		})
	}
	if n := len(of[event.DeviceEnrolled](r.Events())); n != 0 {
		t.Fatalf("%d devices are enrolled", n)
	}
	id := enrol(t, r, one, workload...)
	w := r.Raw("workload")
	ev, err := two.TPM.Attest(t.Context(), binding(t, w), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = show(t, w, "tpm2", id, ev)
	unauthentic(t, err)
}

// An attestation key that would sign anything, may leave its TPM or came into it from outside is refused.
func TestAbuse_A15_attestation_key_attributes(t *testing.T) {
	x := software(t)
	r := rig.Start(t, rig.Config{Policy: trusting(x)})
	devices := bullav1.NewDevicesClient(r.Client("operator").Conn())
	for name, c := range map[string]struct {
		change  func(*tpm2.TPMTPublic)
		because string
	}{
		"unrestricted":     {func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false }, "not restricted"},
		"may be exported":  {func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false }, "may leave its TPM"},
		"imported":         {func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false }, "not made in the TPM"},
		"decrypts as well": {func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = true }, "not a signing key only"},
	} {
		t.Run(name, func(t *testing.T) {
			q, err := evidence.ParseRequest(enrolRequest(t, x))
			if err != nil {
				t.Fatal(err)
			}
			f := attestx.NewForger(t)
			c.change(&f.Public)
			q.AKPublic = tpm2.Marshal(f.Public)
			_, err = devices.BeginEnrolment(t.Context(), &bullav1.BeginEnrolmentRequest{Kind: "tpm2", Request: q.Marshal()})
			code(t, err, codes.InvalidArgument, c.because)
		})
	}
}

// A quote that holds, over PCRs that nothing was measured into or without the log that explains them, is
// contraindicated: what relied on the device ends, and nothing more is delivered on its word.
func TestAbuse_A15_nothing_measured(t *testing.T) {
	zero := attestx.GoodPCRs()
	for p := range zero {
		zero[p] = [sha256.Size]byte{}
	}
	for name, c := range map[string]struct {
		pcrs map[int][sha256.Size]byte
		log  []byte
		why  string
	}{
		"PCRs all zero":   {zero, nil, "executables"},
		"empty event log": {attestx.GoodPCRs(), nil, "executables"},
	} {
		t.Run(name, func(t *testing.T) {
			f := attestx.NewForger(t)
			hash := f.Device(t).IdentityHash
			r := rig.Start(t, rig.Config{Policy: func(files map[string]string) {
				refs := swtpm.ReferenceYAML(nil, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
				files["references.yaml"] = string(refs) + "  ek_hashes: [\"" + hash + "\"]\n"
			}})
			r.Put("demo/high", "high", "top")
			a := r.Assemble(rig.Parts{Verifiers: []attest.Verifier{tpm.Verifier{}}})
			a.Enrol(f.Device(t))
			id := f.Device(t).ID.String()
			w := r.Raw("workload")
			if _, err := show(t, w, "tpm2", id, f.Evidence(t, binding(t, w), attestx.Quote{PCRs: attestx.GoodPCRs()}, swtpm.EventLog())); err != nil {
				t.Fatal(err)
			}
			good, _, err := w.Deliver(t.Context(), "demo/high")
			if err != nil {
				t.Fatal(err)
			}
			w.Challenge(nil)
			reply, err := show(t, w, "tpm2", id, f.Evidence(t, binding(t, w), attestx.Quote{PCRs: c.pcrs}, c.log))
			if err != nil {
				t.Fatal(err)
			}
			result, err := attest.DecodeResult(reply.GetResult())
			if err != nil {
				t.Fatal(err)
			}
			reason := false
			for _, why := range result.Reasons {
				reason = reason || why.Claim == c.why && why.Value == attest.ValueRefused
			}
			if result.Status != attest.Contraindicated || !reason {
				t.Errorf("the result names no fault in the %s: %s", c.why, reply.GetResult())
			}
			if got := sessionState(t, r, good.GetSessionId()); got != session.Revoked {
				t.Errorf("the session that relied on the device is %s", got)
			}
			if _, _, err := w.Deliver(t.Context(), "demo/high"); err == nil {
				t.Error("a delivery on the word of a contraindicated device")
			} else {
				code(t, err, codes.PermissionDenied, "")
			}
		})
	}
}
