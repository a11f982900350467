package abuse

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tpm/evidence"
	attestx "github.com/bulla-project/bulla/attest/xtest"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// forgeries sends every forgery whose name begins with a row to a broker that trusts the TPM, made from fresh
// and otherwise good evidence of this very connection, and compares the recorded reasons.
func forgeries(t *testing.T, rows ...string) {
	x := software(t)
	r := rig.Start(t, rig.Config{Policy: trusting(x)})
	id := enrol(t, r, x, rig.ID("workload").String())
	w := r.Raw("workload")
	var because []string
	for _, f := range attestx.Forgeries() {
		wanted := false
		for _, row := range rows {
			wanted = wanted || strings.HasPrefix(f.Name, row)
		}
		if !wanted {
			continue
		}
		t.Run(f.Name, func(t *testing.T) {
			w.Challenge(nil)
			good, err := x.TPM.Attest(t.Context(), binding(t, w), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = show(t, w, "tpm2", id, f.Forge(t, good))
			unauthentic(t, err)
			because = append(because, f.Because)
		})
	}
	if len(because) == 0 {
		t.Fatal("there is no such forgery")
	}
	got := of[event.AttestationRefused](r.Events())
	if len(got) != len(because) {
		t.Fatalf("%d refusals are recorded, want %d", len(got), len(because))
	}
	for i, g := range got {
		if !strings.Contains(g.Reason, because[i]) || g.Principal != rig.ID("workload").String() || g.Instance != w.Name {
			t.Errorf("refusal %d: %+v, want a reason with %q", i, g, because[i])
		}
	}
	// The same evidence without the forgery is believed, so nothing above was refused for another reason.
	w.Challenge(nil)
	good, err := x.TPM.Attest(t.Context(), binding(t, w), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := show(t, w, "tpm2", id, good); err != nil {
		t.Errorf("honest evidence after the forgeries: %v", err)
	}
	calm(t, r)
}

// enrol takes a TPM through its enrolment over the wire.
func enrol(t *testing.T, r *rig.Rig, x *attestx.Rig, principals ...string) string {
	t.Helper()
	devices := bullav1.NewDevicesClient(r.Client("operator").Conn())
	begun, err := devices.BeginEnrolment(t.Context(), &bullav1.BeginEnrolmentRequest{Kind: "tpm2", Request: enrolRequest(t, x), Principals: principals})
	if err != nil {
		t.Fatal(err)
	}
	challenge, err := evidence.ParseChallenge(begun.GetChallenge())
	if err != nil {
		t.Fatal(err)
	}
	answer, err := x.TPM.Activate(t.Context(), challenge)
	if err != nil {
		t.Fatal(err)
	}
	done, err := devices.FinishEnrolment(t.Context(), &bullav1.FinishEnrolmentRequest{Enrolment: begun.GetEnrolment(), Answer: answer})
	if err != nil {
		t.Fatal(err)
	}
	return done.GetId()
}

func TestAbuse_A14_forged_evidence(t *testing.T) { forgeries(t, "A14_") }

// Sizes are looked at before anything is parsed or computed.
func TestAbuse_A14_sizes(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	_, id := r.Device(rig.ID("workload").String())
	w := r.Raw("workload")
	t.Run("evidence", func(t *testing.T) {
		w.Challenge(nil)
		_, err := show(t, w, "development", id, make([]byte, 768<<10+1))
		code(t, err, codes.InvalidArgument, "at most 786432 bytes")
	})
	t.Run("payload", func(t *testing.T) {
		w.Challenge(nil)
		_, err := show(t, w, "development", id, make([]byte, 3<<19))
		code(t, err, codes.Unauthenticated, "payload is too large")
	})
	t.Run("message", func(t *testing.T) {
		w.Challenge(nil)
		_, err := show(t, w, "development", id, make([]byte, 9<<20))
		code(t, err, codes.ResourceExhausted, "larger than max")
	})
	t.Run("binding", func(t *testing.T) {
		_, err := w.Broker.Challenge(t.Context(), &bullav1.ChallengeRequest{Binding: make([]byte, 1<<20)})
		code(t, err, codes.Unauthenticated, "too large")
	})
	t.Run("enrolment", func(t *testing.T) {
		devices := bullav1.NewDevicesClient(r.Client("operator").Conn())
		_, err := devices.BeginEnrolment(t.Context(), &bullav1.BeginEnrolmentRequest{Kind: "tpm2", Request: make([]byte, 768<<10+1)})
		code(t, err, codes.InvalidArgument, "too large")
		_, err = devices.BeginEnrolment(t.Context(), &bullav1.BeginEnrolmentRequest{Kind: "tpm2", Principals: make([]string, 65)})
		code(t, err, codes.InvalidArgument, "too large")
	})
	if n := len(of[event.AttestationAppraised](r.Events())); n != 0 {
		t.Errorf("%d appraisals", n)
	}
	calm(t, r)
}

// Keys and chains that would cost much are refused for their size, at enrolment and afterwards.
func TestAbuse_A14_huge_keys_and_chains(t *testing.T) {
	x := software(t)
	r := rig.Start(t, rig.Config{Policy: trusting(x)})
	devices := bullav1.NewDevicesClient(r.Client("operator").Conn())
	huge := func(size int, bits uint16) []byte {
		return tpm2.Marshal(attestx.RSAPublic(bytes.Repeat([]byte{0xff}, size), bits))
	}
	for name, c := range map[string]struct {
		change  func(*evidence.Request)
		because string
	}{
		"attestation key of 16384 bits": {func(q *evidence.Request) { q.AKPublic = huge(2048, 16384) }, "bytes, want"},
		"attestation key of 6144 bits":  {func(q *evidence.Request) { q.AKPublic = huge(768, 6144) }, "want 2048 to 4096"},
		"endorsement key of 16384 bits": {func(q *evidence.Request) { q.EKPublic = huge(2048, 16384) }, "bytes, want"},
		"a chain of 100 certificates": {func(q *evidence.Request) {
			leaf := q.Certificates[0]
			q.Certificates = nil
			for range 100 {
				q.Certificates = append(q.Certificates, leaf)
			}
		}, "want at most"},
		"a certificate of 1 MiB": {func(q *evidence.Request) { q.Certificates[0] = make([]byte, 700<<10) }, "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			q, err := evidence.ParseRequest(enrolRequest(t, x))
			if err != nil {
				t.Fatal(err)
			}
			c.change(&q)
			_, err = devices.BeginEnrolment(t.Context(), &bullav1.BeginEnrolmentRequest{Kind: "tpm2", Request: q.Marshal(), Principals: []string{rig.ID("workload").String()}})
			code(t, err, codes.InvalidArgument, "can't be enrolled")
			code(t, err, codes.InvalidArgument, c.because)
		})
	}
	if n := len(of[event.DeviceEnrolled](r.Events())); n != 0 {
		t.Errorf("%d devices are enrolled", n)
	}
	calm(t, r)
}

// slowVerifier takes as long as the test wants, and counts how many verifications run at once.
type slowVerifier struct {
	release chan struct{}
	inside  atomic.Int64
	most    atomic.Int64
}

func (*slowVerifier) Kind() attest.Kind { return attest.KindTPM2 }

func (v *slowVerifier) Verify(context.Context, []byte, attest.Binding, attest.Device) (attest.Claims, error) {
	n := v.inside.Add(1)
	defer v.inside.Add(-1)
	for old := v.most.Load(); n > old && !v.most.CompareAndSwap(old, n); old = v.most.Load() {
	}
	<-v.release
	return attest.Claims{}, errors.Join(attest.ErrUnauthentic, errors.New("by the test"))
}

// However many verifications are asked for, four run and 32 wait; the others are refused at once, and deliveries
// go on.
func TestAbuse_A14_concurrency_cap(t *testing.T) {
	const running, room, asked = 4, 36, 50
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "hello")
	v := &slowVerifier{release: make(chan struct{})}
	a := r.Assemble(rig.Parts{Verifiers: []attest.Verifier{v}})
	f := attestx.NewForger(t)
	a.Enrol(f.Device(t))
	w := r.Raw("workload")
	requests := make([]*bullav1.SignedRequest, asked)
	for i := range requests {
		w.Challenge(nil)
		requests[i] = w.Sign(bullav1.Broker_Attest_FullMethodName, &bullav1.AttestRequest{Kind: "tpm2", Device: f.Device(t).ID.String()})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	refused, other := make(chan error, asked), make(chan error, asked)
	var all sync.WaitGroup
	for _, q := range requests {
		all.Go(func() {
			_, err := w.Broker.Attest(ctx, q)
			if status.Code(err) == codes.ResourceExhausted {
				refused <- err
				return
			}
			other <- err
		})
	}
	for range asked - room {
		select {
		case err := <-refused:
			code(t, err, codes.ResourceExhausted, "too many attestations at once")
		case err := <-other:
			t.Fatalf("an attestation ended while all are held: %v", err)
		case <-ctx.Done():
			t.Fatalf("of %d attestations no more than %d may be inside", asked, room)
		}
	}
	if reply, _, err := r.Raw("workload").Deliver(ctx, "demo/hello"); err != nil || len(reply.GetEnvelope()) == 0 {
		t.Errorf("a delivery beside them: %v", err)
	}
	close(v.release)
	all.Wait()
	close(other)
	for err := range other {
		unauthentic(t, err)
	}
	if n := v.most.Load(); n != running {
		t.Errorf("%d verifications ran at once, want %d", n, running)
	}
	if len(refused) > 0 {
		t.Errorf("%d more were refused than had to be", len(refused))
	}
}
