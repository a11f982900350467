package abuse

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tpm"
	"github.com/bulla-project/bulla/attest/tpm/swtpm"
	attestx "github.com/bulla-project/bulla/attest/xtest"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// between runs a hook whenever the value of a secret is read: after the decision, before the commit.
type between struct {
	ledger.Store
	mu   sync.Mutex // guards hook
	hook func()
}

func (s *between) set(hook func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

func (s *between) Snapshot(ctx context.Context) (ledger.Snapshot, error) {
	snap, err := s.Store.Snapshot(ctx)
	return betweenSnapshot{snap, s}, err
}

type betweenSnapshot struct {
	ledger.Snapshot
	s *between
}

func (s betweenSnapshot) Blob(ctx context.Context, key string) ([]byte, error) {
	if strings.HasPrefix(key, "secret/") {
		s.s.mu.Lock()
		hook := s.s.hook
		s.s.mu.Unlock()
		if hook != nil {
			hook()
		}
	}
	return s.Snapshot.Blob(ctx, key)
}

// stale is a broker whose deliveries can be overtaken at the one moment that counts.
type stale struct {
	*rig.Assembled
	between *between
	f       *attestx.Forger
	w       *rig.Raw
	t       *testing.T
}

func newStale(t *testing.T) *stale {
	t.Helper()
	f := attestx.NewForger(t)
	r := rig.Start(t, rig.Config{Policy: func(files map[string]string) { files["references.yaml"] = listed(t, f) }})
	s := &stale{between: new(between), f: f, t: t}
	s.Assembled = r.Assemble(rig.Parts{
		Store:     func(inner ledger.Store) ledger.Store { s.between.Store = inner; return s.between },
		Verifiers: []attest.Verifier{tpm.Verifier{}},
	})
	s.Enrol(f.Device(t))
	s.w = r.Raw("workload")
	return s
}

// put, push and revoke are what overtakes.
func (s *stale) put(name, class string) {
	s.t.Helper()
	_, err := bullav1.NewSecretsClient(s.Client("operator").Conn()).PutSecret(s.t.Context(), &bullav1.PutSecretRequest{Name: name, Class: class, Value: []byte("next"), RequestId: requestID()})
	if err != nil {
		s.t.Error(err)
	}
}

func (s *stale) attest() {
	s.t.Helper()
	s.w.Challenge(nil)
	ev := s.f.Evidence(s.t, binding(s.t, s.w), attestx.Quote{PCRs: attestx.GoodPCRs()}, swtpm.EventLog())
	if _, err := show(s.t, s.w, "tpm2", s.f.Device(s.t).ID.String(), ev); err != nil {
		s.t.Fatal(err)
	}
}

// once is a hook that runs one time.
func once(f func()) func() {
	var o sync.Once
	return func() { o.Do(f) }
}

// What commits between a decision and its own commit makes the decision void: it is made again, on what is true
// now, and refused if that changes a second time.
func TestAbuse_A46_overtaken(t *testing.T) {
	s := newStale(t)
	references := listed(t, s.f)
	edit := func(change func(files map[string]string)) func(files map[string]string) {
		return func(files map[string]string) {
			files["references.yaml"] = references
			change(files)
		}
	}
	deliver := func(name string) (*bullav1.DeliverReply, error) {
		reply, _, err := s.w.Deliver(t.Context(), name)
		s.between.set(nil)
		return reply, err
	}
	t.Run("a new version", func(t *testing.T) {
		s.Put("demo/version", "standard", "one")
		s.between.set(once(func() { s.put("demo/version", "") }))
		if reply, err := deliver("demo/version"); err != nil || reply.GetLogIndex() == 0 {
			t.Error(err)
		}
		issued := of[event.SessionIssued](s.Events())
		if got := issued[len(issued)-1].Version; got != 2 {
			t.Errorf("version %d was delivered", got)
		}
	})
	t.Run("a higher class", func(t *testing.T) {
		s.Put("demo/class", "standard", "one")
		s.between.set(once(func() { s.put("demo/class", "high") }))
		if _, err := deliver("demo/class"); rig.Refusal(err).GetDecision() != "STEP_UP" {
			t.Errorf("want STEP_UP, got %v", err)
		}
	})
	t.Run("a revision that takes the grant away", func(t *testing.T) {
		s.Put("demo/grant", "standard", "one")
		s.between.set(once(func() {
			s.Push(edit(func(files map[string]string) {
				bare(func(map[string]string) {})(files)
				files["canaries.yaml"] = strings.Replace(files["canaries.yaml"], "dev.bulla.test/workload", "dev.bulla.test/other", 1)
				files["data/grants.yaml"] = strings.ReplaceAll(files["data/grants.yaml"], "dev.bulla.test/workload:", "dev.bulla.test/other:")
			}))
		}))
		_, err := deliver("demo/grant")
		wantCode(t, "after the grant is gone", err, codes.PermissionDenied, "policy")
		if r := rig.Refusal(err); r.GetDecision() != "DENY" || len(r.GetReasons()) > 0 {
			t.Errorf("it is told more than a stranger: %v", r)
		}
	})
	t.Run("a revision that gives it back", func(t *testing.T) {
		rev := s.Push(edit(func(map[string]string) {}))
		s.Put("demo/back", "standard", "one") // one whose value no delivery has read yet
		s.between.set(once(func() { s.Push(edit(func(f map[string]string) { f["manifest.yaml"] += "# again\n" })) }))
		reply, err := deliver("demo/back")
		if err != nil || reply.GetPolicy().GetRevision() != rev.GetSequence()+1 {
			t.Errorf("decided by revision %d, %v, want %d", reply.GetPolicy().GetRevision(), err, rev.GetSequence()+1)
		}
	})
	t.Run("twice", func(t *testing.T) {
		s.Put("demo/twice", "standard", "one")
		s.between.set(func() { s.put("demo/twice", "") })
		_, err := deliver("demo/twice")
		wantCode(t, "what changed twice", err, codes.Aborted, "ledger")
	})
	t.Run("the device is revoked", func(t *testing.T) {
		s.Put("demo/device", "high", "one")
		s.attest()
		s.between.set(once(func() {
			_, err := bullav1.NewDevicesClient(s.Client("operator").Conn()).RevokeDevice(t.Context(), &bullav1.RevokeDeviceRequest{Id: s.f.Device(s.t).ID.String(), Reason: "lost"})
			if err != nil {
				t.Error(err)
			}
		}))
		if _, err := deliver("demo/device"); rig.Refusal(err).GetDecision() != "STEP_UP" {
			t.Errorf("want STEP_UP, got %v", err)
		}
	})
	inOrder(t, s.Events())
	s.Check()
}

// The device fails its appraisal between the decision that relies on it and the commit.
func TestAbuse_A46_failed_appraisal(t *testing.T) {
	s := newStale(t)
	s.Put("demo/high", "high", "one")
	s.attest()
	s.between.set(once(func() {
		w := s.RawWith("workload", s.w.Key) // the same instance, over another connection
		ev := s.f.Evidence(t, binding(t, w), attestx.Quote{PCRs: attestx.GoodPCRs()}, nil)
		if _, err := show(t, w, "tpm2", s.f.Device(t).ID.String(), ev); err != nil {
			t.Error(err)
		}
	}))
	_, _, err := s.w.Deliver(t.Context(), "demo/high")
	code(t, err, codes.PermissionDenied, "")
	if n := len(of[event.SessionIssued](s.Events())); n != 0 {
		t.Errorf("%d sessions", n)
	}
}

// listed are reference values that admit the forger's device.
func listed(t *testing.T, f *attestx.Forger) string {
	return string(swtpm.ReferenceYAML(nil, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))) + "  ek_hashes: [\"" + f.Device(t).IdentityHash + "\"]\n"
}

// inOrder demands of every event that what it says to rely on was true when it took its place.
func inOrder(t *testing.T, events []event.Event) {
	t.Helper()
	var active event.RevisionActivated
	current, class, revoked := map[string]uint32{}, map[string]string{}, map[string]bool{}
	by := func(i int, d *event.Decision) {
		if d != nil && (d.Sequence != active.Sequence || d.Revision != active.Digest) {
			t.Errorf("event %d (%s) was decided by revision %d, while %d was active", i, events[i].Body.EventType(), d.Sequence, active.Sequence)
		}
	}
	for i, e := range events {
		switch b := e.Body.(type) {
		case event.RevisionActivated:
			by(i, b.By)
			active = b
		case event.SecretPut:
			by(i, b.By)
			if b.Version != current[b.Name]+1 {
				t.Errorf("event %d puts version %d of %s after %d", i, b.Version, b.Name, current[b.Name])
			}
			current[b.Name], class[b.Name] = b.Version, b.Class
		case event.DeviceRevoked:
			by(i, b.By)
			revoked[b.Device] = true
		case event.SessionIssued:
			by(i, &b.Decision)
			if b.Version != current[b.Secret] || b.Class != class[b.Secret] {
				t.Errorf("event %d delivers version %d (%s) of %s, current is %d (%s)", i, b.Version, b.Class, b.Secret, current[b.Secret], class[b.Secret])
			}
			if revoked[b.Device] {
				t.Errorf("event %d relies on a revoked device", i)
			}
		}
	}
}

// Puts, pushes and deliveries at once: whatever the order, each event fits those before it.
func TestAbuse_A46_all_at_once(t *testing.T) {
	rounds := 12
	if long() {
		rounds = 200
	}
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hot", "standard", "one")
	ctx, stop := context.WithCancel(t.Context())
	var deliverers, changers sync.WaitGroup
	for range 3 {
		w := r.Raw("workload")
		deliverers.Go(func() {
			for ctx.Err() == nil {
				_, _, err := w.Deliver(t.Context(), "demo/hot")
				if c := status.Code(err); err != nil && c != codes.Aborted {
					t.Errorf("deliver: %v", err)
					return
				}
			}
		})
	}
	for worker := range 2 {
		secrets := bullav1.NewSecretsClient(r.Client("operator").Conn())
		policies := bullav1.NewPoliciesClient(r.Client("security").Conn())
		changers.Go(func() {
			for i := range rounds {
				archive := r.Archive(func(f map[string]string) { f["manifest.yaml"] += "# " + strings.Repeat("x", 1+worker+2*i) + "\n" })
				if _, err := policies.PushRevision(t.Context(), &bullav1.PushRevisionRequest{Archive: archive}); err != nil && status.Code(err) != codes.Aborted {
					t.Errorf("push: %v", err)
				}
				_, err := secrets.PutSecret(t.Context(), &bullav1.PutSecretRequest{Name: "demo/hot", Value: []byte("v"), RequestId: requestID()})
				if c := status.Code(err); err != nil && c != codes.Aborted {
					t.Errorf("put: %v", err)
				}
			}
		})
	}
	changers.Wait()
	stop()
	deliverers.Wait()
	events := r.Events()
	inOrder(t, events)
	t.Logf("%d deliveries, %d puts, %d activations", len(of[event.SessionIssued](events)), len(of[event.SecretPut](events)), len(of[event.RevisionActivated](events)))
	r.Check()
}

// What was delivered under a request id is not given out again after its session was revoked, and neither a receipt
// nor a close brings the session back.
func TestAbuse_A48_retry_after_revocation(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "hello")
	w := r.Raw("workload")
	ask, _ := w.Ask("demo/hello")
	id := requestID()
	again := func(w *rig.Raw, ask *bullav1.DeliverRequest) (*bullav1.DeliverReply, error) {
		w.Challenge(nil)
		return w.Broker.Deliver(t.Context(), w.SignAs(bullav1.Broker_Deliver_FullMethodName, id, ask))
	}
	first, err := again(w, ask)
	if err != nil {
		t.Fatal(err)
	}
	same, err := again(w, ask)
	if err != nil || string(same.GetEnvelope()) != string(first.GetEnvelope()) || same.GetLogIndex() != first.GetLogIndex() {
		t.Fatalf("the same request again: %v", err)
	}
	_, err = bullav1.NewSessionsClient(r.Client("operator").Conn()).RevokeSession(t.Context(), &bullav1.RevokeSessionRequest{Id: first.GetSessionId(), Reason: "over"})
	if err != nil {
		t.Fatal(err)
	}
	reply, err := again(w, ask)
	wantCode(t, "the same request after the revocation", err, codes.FailedPrecondition, "session")
	if len(reply.GetEnvelope()) > 0 {
		t.Error("it came with an envelope")
	}
	fresh, _ := w.Ask("demo/hello")
	_, err = again(w, fresh)
	wantCode(t, "another question under the id", err, codes.FailedPrecondition, "request")
	_, err = again(r.Raw("workload"), ask)
	wantCode(t, "another instance under the id", err, codes.FailedPrecondition, "request")
	for _, close := range []bool{false, true} {
		q := &bullav1.AcknowledgeRequest{SessionId: first.GetSessionId(), Close: close, R: make([]byte, 32), EnvelopeDigest: make([]byte, 32), Signature: make([]byte, 64)}
		_, err := acknowledge(t, w, q)
		wantCode(t, "a receipt after the revocation", err, codes.FailedPrecondition, "session")
	}
	st, err := sessionStatus(t, w, first.GetSessionId())
	if err != nil || st.GetState() != "revoked" || st.GetReason() != "over" {
		t.Errorf("status: %v, %v", st, err)
	}
	if n := len(of[event.SessionIssued](r.Events())); n != 1 {
		t.Errorf("%d sessions", n)
	}
	r.Check()
}
