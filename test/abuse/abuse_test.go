package abuse

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/envelope"
	reqproof "github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// TestPath is the way in good order that all the others depart from.
func TestPath(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "hello")
	r.Put("demo/high", "high", "top")
	c := r.Client("workload")
	s := get(t, c, "demo/hello", "hello")
	if s.Receipt != "confirmed" || s.Attestation != nil {
		t.Errorf("receipt %q, attestation %q; want confirmed, and none", s.Receipt, s.Attestation)
	}
	if _, err := c.Get(t.Context(), "demo/high"); !errors.Is(err, client.ErrDenied) {
		t.Errorf("high without a device: %v; want ErrDenied", err)
	}
	file, _ := r.Device(rig.ID("workload").String())
	attested := r.Client("workload", func(c *client.Config) { c.DeviceFile = file })
	if s := get(t, attested, "demo/high", "top"); s.Attestation == nil {
		t.Error("a secret of class high came without an attestation")
	}
	if _, err := r.Client("stranger").Get(t.Context(), "demo/hello"); !errors.Is(err, client.ErrDenied) {
		t.Errorf("stranger: %v; want ErrDenied", err)
	}
	r.Check()
}

// get gets a secret and checks its value.
func get(t *testing.T, c *client.Client, name, want string) *client.Secret {
	t.Helper()
	s, err := c.Get(t.Context(), name)
	if err != nil {
		t.Fatalf("get %s: %v", name, err)
	}
	t.Cleanup(s.Close)
	err = s.Use(func(b []byte) error {
		if string(b) != want {
			t.Errorf("%s is %q, want %q", name, b, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// wantCode checks the code of an answer and, where a check is given, which check refused.
func wantCode(t *testing.T, what string, err error, code codes.Code, check string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("%s: %v; want %s", what, err, code)
		return
	}
	if got := rig.Refusal(err).GetCheck(); got != check {
		t.Errorf("%s: refused by %q, want %q (%v)", what, got, check, err)
	}
}

// eventually waits until done says so.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !done() {
		select {
		case <-tick.C:
		case <-limit.Done():
			t.Fatalf("it did not come about that %s", what)
		}
	}
}

// after returns the events since a mark, without those of the tests' own auditor.
func after(r *rig.Rig, mark int) []event.Event {
	var out []event.Event
	for _, e := range r.Events()[mark:] {
		if p, ok := e.Body.(event.OperationPermitted); ok && p.Principal == rig.ID("auditor").String() {
			continue
		}
		out = append(out, e)
	}
	return out
}

func mark(r *rig.Rig) int { return len(r.Events()) }

// signed prepares n deliveries of name, each with a nonce and a request id of its own, to be sent at once.
func signed(w *rig.Raw, name string, n int) []*bullav1.SignedRequest {
	out := make([]*bullav1.SignedRequest, n)
	for i := range out {
		w.Challenge(nil)
		ask, _ := w.Ask(name)
		out[i] = w.Sign(bullav1.Broker_Deliver_FullMethodName, ask)
	}
	return out
}

// atOnce sends requests in parallel and returns the errors in their order.
func atOnce(ctx context.Context, w *rig.Raw, requests []*bullav1.SignedRequest) []error {
	errs := make([]error, len(requests))
	var all sync.WaitGroup
	begin := make(chan struct{})
	for i, req := range requests {
		all.Go(func() {
			<-begin
			_, errs[i] = w.Broker.Deliver(ctx, req)
		})
	}
	close(begin)
	all.Wait()
	return errs
}

// opened delivers name over w and opens the envelope.
func opened(t *testing.T, w *rig.Raw, name string) (*bullav1.DeliverReply, *envelope.Opened) {
	t.Helper()
	w.Challenge(nil)
	ask, recipient := w.Ask(name)
	req := w.Sign(bullav1.Broker_Deliver_FullMethodName, ask)
	reply, err := w.Broker.Deliver(t.Context(), req)
	if err != nil {
		t.Fatalf("deliver %s: %v", name, err)
	}
	out, err := envelope.Open(reply.GetEnvelope(), w.Keys.Lookup, recipient, envelope.Expectation{
		Request: req.GetProof().GetRequestId(), Issuer: rig.ID("bulla/broker").String(), Subject: w.ID, Instance: w.Name, Audience: w.ID,
		Channels: []envelope.Digest{envelope.Digest(w.Exporter)}, MinimumSuite: envelope.SuiteHybridP256(), Now: time.Now(), Skew: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	return reply, out
}

// receipt is the acknowledgement of an opened envelope by the instance key of w.
func receipt(t *testing.T, w *rig.Raw, o *envelope.Opened) *bullav1.AcknowledgeRequest {
	t.Helper()
	rec, err := envelope.SignReceipt(o, w.Key)
	if err != nil {
		t.Fatal(err)
	}
	return &bullav1.AcknowledgeRequest{SessionId: rec.Session, R: rec.R[:], EnvelopeDigest: rec.EnvelopeDigest[:], Signature: rec.Signature}
}

// acknowledge and sessionStatus speak for w, over a fresh challenge.
func acknowledge(t *testing.T, w *rig.Raw, in *bullav1.AcknowledgeRequest) (*bullav1.AcknowledgeReply, error) {
	t.Helper()
	w.Challenge(nil)
	return w.Broker.Acknowledge(t.Context(), w.Sign(bullav1.Broker_Acknowledge_FullMethodName, in))
}

func sessionStatus(t *testing.T, w *rig.Raw, id string) (*bullav1.StatusReply, error) {
	t.Helper()
	w.Challenge(nil)
	return w.Broker.Status(t.Context(), w.Sign(bullav1.Broker_Status_FullMethodName, &bullav1.StatusRequest{SessionId: id}))
}

// leaks reports whether an answer holds any of the needles, in its message, details or metadata.
func leaks(err error, needles ...[]byte) bool {
	st := status.Convert(err)
	text := []byte(st.Proto().String() + st.Message())
	for _, d := range st.Proto().GetDetails() {
		text = append(text, d.GetValue()...)
	}
	for _, n := range needles {
		if len(n) > 0 && bytes.Contains(text, n) {
			return true
		}
	}
	return false
}

// body is the body of a delivery's event.
func body(e event.Event) (event.SessionIssued, bool) {
	b, ok := e.Body.(event.SessionIssued)
	return b, ok
}

// shown is an SVID as a TLS certificate.
func shown(svid *x509svid.SVID) *tls.Certificate {
	c := &tls.Certificate{PrivateKey: svid.PrivateKey}
	for _, cert := range svid.Certificates {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	return c
}

// marshalKey is the instance key of w as evidence names it.
func marshalKey(t *testing.T, w *rig.Raw) []byte {
	t.Helper()
	spki, err := reqproof.MarshalInstanceKey(&w.Key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return spki
}

// replaceIn edits one file of a policy.
func replaceIn(t *testing.T, files map[string]string, name, old, with string) {
	t.Helper()
	if !strings.Contains(files[name], old) {
		t.Fatalf("%s has no %q", name, old)
	}
	files[name] = strings.ReplaceAll(files[name], old, with)
}

// alike makes two calls, about something that is not the caller's and about something that is not, and wants the
// same answer to both: code, text, details of the same size, and events of the same number, type and size class.
func alike(t *testing.T, r *rig.Rig, what string, first, second func() error) {
	t.Helper()
	shape := func(call func() error) string {
		before := mark(r)
		err := call()
		if err == nil {
			t.Fatalf("%s: it was permitted", what)
		}
		st := status.Convert(err)
		d := rig.Refusal(err)
		out := fmt.Sprintf("%s %q decision=%q reasons=%q requires=%q check=%q support=%d nonce=%d", st.Code(), st.Message(),
			d.GetDecision(), d.GetReasons(), d.GetRequires(), d.GetCheck(), len(d.GetSupportId()), len(d.GetNextNonce()))
		for _, e := range after(r, before) {
			text, err := e.Encode()
			if err != nil {
				t.Fatal(err)
			}
			out += fmt.Sprintf(" %s/2^%d", e.Body.EventType(), bits.Len(uint(len(text))))
		}
		return out
	}
	if a, b := shape(first), shape(second); a != b {
		t.Errorf("%s: one can be told from the other:\n%s\n%s", what, a, b)
	}
}
