package abuse

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/dev"
	"github.com/bulla-project/bulla/broker/server"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// A principal asks about a session of another, and about one that never was.
func TestAbuse_A02_anothers_session(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	owner := r.Raw("workload")
	delivered, envelope := opened(t, owner, "demo/a")
	thief := r.Raw("stranger")
	foreign, unknown := delivered.GetSessionId(), event.NewID(time.Now()).String()
	calls := map[string]func(id string) error{
		"status": func(id string) error { _, err := sessionStatus(t, thief, id); return err },
		"close": func(id string) error {
			_, err := acknowledge(t, thief, &bullav1.AcknowledgeRequest{SessionId: id, Close: true})
			return err
		},
		"receipt": func(id string) error {
			in := receipt(t, owner, envelope)
			in.SessionId = id
			_, err := acknowledge(t, thief, in)
			return err
		},
		"show": func(id string) error {
			_, err := bullav1.NewSessionsClient(thief.Conn).GetSession(t.Context(), &bullav1.GetSessionRequest{Id: id})
			return err
		},
		"revoke": func(id string) error {
			_, err := bullav1.NewSessionsClient(thief.Conn).RevokeSession(t.Context(), &bullav1.RevokeSessionRequest{Id: id, Reason: "x"})
			return err
		},
	}
	for name, call := range calls {
		alike(t, r, name, func() error { return call(foreign) }, func() error { return call(unknown) })
	}
	for _, q := range []*bullav1.ListSessionsRequest{{}, {Principal: owner.ID}, {Secret: "demo/a"}, {Principal: thief.ID}} {
		_, err := bullav1.NewSessionsClient(thief.Conn).ListSessions(t.Context(), q)
		wantCode(t, "a list of sessions", err, codes.PermissionDenied, "policy")
	}
	if state, err := sessionStatus(t, owner, foreign); err != nil || state.GetState() != "issued" {
		t.Errorf("the owner's session is %v, %v; want issued", state, err)
	}
}

// A nonce is good once, on the connection that it was given out on, for the call that it was signed for.
func TestAbuse_A12_nonces(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	w := r.Raw("workload")
	deliver := func(w *rig.Raw, req *bullav1.SignedRequest) error {
		_, err := w.Broker.Deliver(t.Context(), req)
		return err
	}
	fresh := func() *bullav1.SignedRequest { return signed(w, "demo/a", 1)[0] }
	// resigned is a request that is right in all but its nonce: signed for the connection that it is sent over.
	resigned := func(over *rig.Raw, nonce []byte) *bullav1.SignedRequest {
		ask, _ := over.Ask("demo/a")
		kept := over.Nonce
		over.Nonce = [32]byte(nonce)
		defer func() { over.Nonce = kept }()
		return over.Sign(bullav1.Broker_Deliver_FullMethodName, ask)
	}
	t.Run("same connection", func(t *testing.T) {
		req := fresh()
		if err := deliver(w, req); err != nil {
			t.Fatal(err)
		}
		wantCode(t, "again", deliver(w, req), codes.Unauthenticated, "nonce")
		wantCode(t, "its nonce in a new request", deliver(w, resigned(w, req.GetProof().GetNonce())), codes.Unauthenticated, "nonce")
		wantCode(t, "a nonce of nobody's", deliver(w, resigned(w, bytes.Repeat([]byte{7}, 32))), codes.Unauthenticated, "nonce")
	})
	t.Run("spent by a bad request", func(t *testing.T) {
		req := fresh()
		broken := proto.CloneOf(req)
		broken.Proof.Signature[5] ^= 1
		wantCode(t, "a bad signature", deliver(w, broken), codes.Unauthenticated, "proof")
		wantCode(t, "the good one after it", deliver(w, req), codes.Unauthenticated, "nonce")
	})
	t.Run("other connection", func(t *testing.T) {
		other := r.RawWith("workload", w.Key)
		req := fresh()
		wantCode(t, "as it was", deliver(other, req), codes.Unauthenticated, "nonce")
		wantCode(t, "signed for it", deliver(other, resigned(other, req.GetProof().GetNonce())), codes.Unauthenticated, "nonce")
		// With a nonce of the other connection and the signature of the first: the channel is signed too.
		other.Challenge(nil)
		ask, _ := other.Ask("demo/a")
		mixed := other.Nonce
		kept := other.Exporter
		other.Exporter = w.Exporter
		stolen := other.Sign(bullav1.Broker_Deliver_FullMethodName, ask)
		other.Exporter, stolen.Proof.Nonce = kept, mixed[:]
		wantCode(t, "signed for the first", deliver(other, stolen), codes.Unauthenticated, "proof")
		if err := deliver(w, req); err != nil {
			t.Errorf("and where it belongs: %v", err)
		}
	})
	t.Run("other method", func(t *testing.T) {
		req := fresh()
		_, err := w.Broker.Acknowledge(t.Context(), req)
		wantCode(t, "a delivery as a receipt", err, codes.Unauthenticated, "proof")
	})
	t.Run("concurrently", func(t *testing.T) {
		req := fresh()
		copies := make([]*bullav1.SignedRequest, 32)
		for i := range copies {
			copies[i] = req
		}
		accepted := 0
		for _, err := range atOnce(t.Context(), w, copies) {
			if err == nil {
				accepted++
				continue
			}
			wantCode(t, "one of many", err, codes.Unauthenticated, "nonce")
		}
		if accepted != 1 {
			t.Errorf("%d of %d copies were accepted, want 1", accepted, len(copies))
		}
	})
	t.Run("other broker", func(t *testing.T) {
		second := another(t, r)
		conn, err := grpc.NewClient("passthrough:///"+second, grpc.WithTransportCredentials(w.Credentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		req := fresh()
		_, err = bullav1.NewBrokerClient(conn).Deliver(t.Context(), req)
		wantCode(t, "another broker of the same identity", err, codes.Unauthenticated, "nonce")
		if err := deliver(w, req); err != nil {
			t.Errorf("and where it belongs: %v", err)
		}
	})
	t.Run("after a restart", func(t *testing.T) {
		used, unused := fresh(), fresh()
		if err := deliver(w, used); err != nil {
			t.Fatal(err)
		}
		r.Stop()
		r.Run()
		for name, req := range map[string]*bullav1.SignedRequest{"used": used, "unused": unused} {
			var err error
			eventually(t, "the broker answers again", func() bool {
				err = deliver(w, req)
				return status.Code(err) != codes.Unavailable
			})
			wantCode(t, name, err, codes.Unauthenticated, "nonce")
		}
	})
}

// another starts a second broker with the identity of the first, and a ledger of its own.
func another(t *testing.T, r *rig.Rig) (addr string) {
	t.Helper()
	cfg := r.Config
	cfg.DataDir, cfg.Keyring.KEKFile = filepath.Join(r.Dir, "second"), filepath.Join(r.Dir, "second-kek")
	if err := server.Init(t.Context(), cfg, "test", nil); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s, err := server.Open(ctx, cfg, server.Options{Listener: l})
	if err != nil {
		stop()
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// A device vouches for one instance on one connection.
func TestAbuse_A44_borrowed_evidence(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/high", "high", "top")
	file, id := r.Device(rig.ID("workload").String())
	device, err := dev.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	victim := r.Client("workload", func(c *client.Config) { c.DeviceFile = file })
	session := get(t, victim, "demo/high", "top")
	thief := r.Raw("stranger")
	sibling := r.Raw("workload")
	honest := func(w *rig.Raw) attest.Binding {
		w.Challenge(nil)
		spki := marshalKey(t, w)
		return attest.Binding{Nonce: w.Nonce, Channel: w.Exporter, Principal: w.ID, InstanceKey: spki}
	}
	show := func(w *rig.Raw, b attest.Binding, change func(*bullav1.AttestRequest)) error {
		evidence, err := device.Attest(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		in := &bullav1.AttestRequest{Kind: "development", Device: id, Evidence: evidence}
		if change != nil {
			change(in)
		}
		_, err = w.Broker.Attest(t.Context(), w.Sign(bullav1.Broker_Attest_FullMethodName, in))
		return err
	}
	refused := func(what string, err error) {
		t.Helper()
		wantCode(t, what, err, codes.PermissionDenied, "attestation")
	}
	refused("a device that is not the principal's", show(thief, honest(thief), nil))
	b := honest(sibling)
	b.InstanceKey = marshalKey(t, thief)
	refused("evidence for another instance key", show(sibling, b, nil))
	b = honest(sibling)
	b.Principal = thief.ID
	refused("evidence for another principal", show(sibling, b, nil))
	b = honest(sibling)
	b.Channel = thief.Exporter
	refused("evidence for another connection", show(sibling, b, nil))
	b = honest(sibling)
	b.Nonce[0] ^= 1
	refused("evidence for another nonce", show(sibling, b, nil))
	b = honest(sibling)
	b.RecipientKey = []byte("another key")
	refused("evidence for a recipient key that is not sent", show(sibling, b, nil))
	_, otherID := r.Device(rig.ID("workload").String())
	refused("evidence under another device's name", show(sibling, honest(sibling), func(in *bullav1.AttestRequest) { in.Device = otherID }))
	refused("failing evidence in the victim's name", show(sibling, honest(sibling), func(in *bullav1.AttestRequest) { in.Evidence[len(in.Evidence)/2] ^= 1 }))
	refused("no evidence in the victim's name", show(sibling, honest(sibling), func(in *bullav1.AttestRequest) { in.Evidence = nil }))
	refused("a device of another kind", show(sibling, honest(sibling), func(in *bullav1.AttestRequest) { in.Kind = "tpm2" }))
	_, _, err = sibling.Deliver(t.Context(), "demo/high")
	if got := rig.Refusal(err); got.GetDecision() != "STEP_UP" {
		t.Errorf("a sibling of the attested instance: %v; want STEP_UP", err)
	}
	if state, _, err := session.State(t.Context()); err != nil || state != "confirmed" {
		t.Errorf("the victim's session is %q, %v; want confirmed", state, err)
	}
	// The same evidence, in order, does count.
	if err := show(sibling, honest(sibling), nil); err != nil {
		t.Errorf("in good order: %v", err)
	}
	if _, _, err := sibling.Deliver(t.Context(), "demo/high"); err != nil {
		t.Errorf("in good order: %v", err)
	}
}

// 64 deliveries at once, where the policy allows ten in a window.
func TestAbuse_A47_parallel_deliveries_past_a_limit(t *testing.T) {
	t.Parallel()
	const most, tries = 10, 64
	r := rig.Start(t, rig.Config{Policy: func(files map[string]string) {
		replaceIn(t, files, "data/classes.yaml", "usage_limit: {max_uses: 1000, grade: open}", "rate_limit: {max: 10, window_seconds: 86400, grade: open}")
	}})
	r.Put("demo/a", "standard", "a")
	r.Put("demo/b", "standard", "b")
	first, second := r.Raw("workload"), r.Raw("workload") // the limit is the principal's, whatever its instances
	groups := []struct {
		w    *rig.Raw
		reqs []*bullav1.SignedRequest
	}{{first, signed(first, "demo/a", tries/2)}, {second, signed(second, "demo/b", tries/2)}}
	var all sync.WaitGroup
	results := make([][]error, len(groups))
	for i, g := range groups {
		all.Go(func() { results[i] = atOnce(t.Context(), g.w, g.reqs) })
	}
	all.Wait()
	delivered := 0
	for _, group := range results {
		for _, err := range group {
			if err == nil {
				delivered++
				continue
			}
			if status.Code(err) != codes.ResourceExhausted {
				t.Errorf("%v; want RESOURCE_EXHAUSTED", err)
			}
		}
	}
	issued := 0
	for _, e := range r.Events() {
		if _, ok := body(e); ok {
			issued++
		}
	}
	if delivered != most || issued != most {
		t.Errorf("%d delivered, %d recorded; the limit is %d", delivered, issued, most)
	}
	// What went over the limit is in the ledger too, as a count.
	r.Stop()
	r.Run()
	counted := uint64(0)
	for _, e := range r.Events() {
		if c, ok := e.Body.(event.RefusalsCounted); ok && c.Principal == first.ID {
			counted += c.Count
		}
	}
	if counted != tries-most {
		t.Errorf("%d refusals are recorded, want %d", counted, tries-most)
	}
	if _, err := r.Client("workload").Get(t.Context(), "demo/a"); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("after a restart: %v; want the limit to hold on", err)
	}
	r.Check()
}
