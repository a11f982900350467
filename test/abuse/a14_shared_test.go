package abuse

import (
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	attestx "github.com/bulla-project/bulla/attest/xtest"
	reqproof "github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
	"github.com/bulla-project/bulla/test/rig"
)

// long reports whether the full figures are wanted.
func long() bool { return os.Getenv("BULLA_TEST_LONG") == "1" }

// software starts a software TPM that is not enrolled anywhere.
func software(t *testing.T) *attestx.Rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "tpm") // t.TempDir makes paths that are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return attestx.StartRig(t, dir)
}

// trusting is the policy edit that takes the software TPM's maker for a maker.
func trusting(x *attestx.Rig) func(files map[string]string) {
	return func(files map[string]string) { files["references.yaml"] = string(x.YAML) }
}

// enrolRequest is what a TPM says of itself.
func enrolRequest(t *testing.T, x *attestx.Rig) []byte {
	t.Helper()
	chain, err := x.Software.ChainPEM()
	if err != nil {
		t.Fatal(err)
	}
	req, err := x.TPM.EnrolRequest(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	return req.Marshal()
}

// binding is what evidence shown over w now has to be made for.
func binding(t *testing.T, w *rig.Raw) attest.Binding {
	t.Helper()
	spki, err := reqproof.MarshalInstanceKey(&w.Key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return attest.Binding{Nonce: w.Nonce, Channel: w.Exporter, Principal: w.ID, InstanceKey: spki}
}

// show hands in evidence with the nonce that w holds.
func show(t *testing.T, w *rig.Raw, kind, device string, evidence []byte) (*bullav1.AttestReply, error) {
	t.Helper()
	ask := &bullav1.AttestRequest{Kind: kind, Device: device, Evidence: evidence}
	return w.Broker.Attest(t.Context(), w.Sign(bullav1.Broker_Attest_FullMethodName, ask))
}

// unauthentic demands the one answer that evidence which proves nothing gets.
func unauthentic(t *testing.T, err error) {
	t.Helper()
	const text = "the evidence was refused: is the device enrolled for this principal? See `bulla device list` as an operator"
	if status.Code(err) != codes.PermissionDenied || status.Convert(err).Message() != text {
		t.Errorf("want the constant refusal of evidence, got %v", err)
	}
	if r := rig.Refusal(err); r.GetCheck() != "attestation" || r.GetSupportId() == "" || len(r.GetReasons()) > 0 || len(r.GetRequires()) > 0 {
		t.Errorf("detail of the refusal: %v", r)
	}
}

// code demands a status code.
func code(t *testing.T, err error, want codes.Code, because string) {
	t.Helper()
	if status.Code(err) != want || !strings.Contains(status.Convert(err).Message(), because) {
		t.Errorf("want %v with %q, got %v", want, because, err)
	}
}

// of collects the bodies of one type, in order.
func of[B event.Body](events []event.Event) (out []B) {
	for _, e := range events {
		if b, ok := e.Body.(B); ok {
			out = append(out, b)
		}
	}
	return out
}

// sessionState is what the operator is told of a session.
func sessionState(t *testing.T, r *rig.Rig, id string) session.State {
	t.Helper()
	s, err := bullav1.NewSessionsClient(r.Client("operator").Conn()).GetSession(t.Context(), &bullav1.GetSessionRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	return session.State(s.GetState())
}

func requestID() string { return event.NewRequestID(time.Now()).String() }

// calm demands that no call ended in a panic.
func calm(t *testing.T, r *rig.Rig) {
	t.Helper()
	if log := r.Log.String(); strings.Contains(log, "panic in a call") {
		t.Errorf("a call panicked:\n%s", log)
	}
}
