package abuse

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/secret/keys"
	"github.com/bulla-project/bulla/test/rig"
)

// proxiedSession is a session of grade proxied.
type proxiedSession struct {
	w      *rig.Raw
	reply  *bullav1.DeliverReply
	public keys.Public
}

// deliverProxied delivers a key, with so many uses; 0 is as policy says.
func deliverProxied(t *testing.T, w *rig.Raw, name string, uses uint32) *proxiedSession {
	t.Helper()
	w.Challenge(nil)
	ask, recipient := w.Ask(name)
	ask.MaxUses, ask.TtlSeconds = uses, 1800
	in := w.Sign(bullav1.Broker_Deliver_FullMethodName, ask)
	reply, err := w.Broker.Deliver(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := envelope.Open(reply.GetEnvelope(), w.Keys.Lookup, recipient, envelope.Expectation{
		Request: in.GetProof().GetRequestId(), Issuer: rig.ID("bulla/broker").String(), Subject: w.ID, Instance: w.Name, Audience: w.ID,
		Channels: []envelope.Digest{envelope.Digest(w.Exporter)}, MinimumSuite: envelope.SuiteHybridP256(),
		Now: reply.GetExpiresAt().AsTime().Add(-time.Minute), // the broker may have a clock of its own
	})
	if err != nil {
		t.Fatal(err)
	}
	if c := opened.Context; c.Grade != envelope.GradeProxied || reply.GetGrade() != "proxied" || c.Uses > 0 && c.UsesEnforcedBy != envelope.UsesByBroker {
		t.Fatalf("the envelope says grade %s, %d uses by %q", c.Grade, c.Uses, c.UsesEnforcedBy)
	}
	public, err := keys.ParsePublic(opened.Secret().Expose())
	if err != nil {
		t.Fatal(err)
	}
	return &proxiedSession{w, reply, public}
}

// ask is a request for an operation with a salt of its own.
func (s *proxiedSession) ask(operation keys.Operation, input []byte) *bullav1.OperateRequest {
	salt := make([]byte, 32)
	_, _ = rand.Read(salt)
	return &bullav1.OperateRequest{SessionId: s.reply.GetSessionId(), Operation: string(operation), Input: input, Salt: salt}
}

// send asks over a fresh nonce.
func (s *proxiedSession) send(t *testing.T, w *rig.Raw, id string, ask *bullav1.OperateRequest) (*bullav1.OperateReply, error) {
	t.Helper()
	w.Challenge(nil)
	return w.Broker.Operate(t.Context(), w.SignAs(bullav1.Broker_Operate_FullMethodName, id, ask))
}

// withClock is a broker whose clock a test can put forward.
func withClock(t *testing.T, policy func(files map[string]string)) (*rig.Rig, *atomic.Int64) {
	ahead := new(atomic.Int64)
	return rig.Start(t, rig.Config{SVIDTTL: 4 * time.Hour, Policy: policy, Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }}), ahead
}

// threeUses lets the policy permit three uses of a standard secret.
func threeUses(files map[string]string) {
	files["data/classes.yaml"] = strings.Replace(files["data/classes.yaml"], "max_uses: 1000", "max_uses: 3", 1)
}

// 64 parallel operations of a session with 3 uses left give exactly 3 results, and the ledger has an event for each.
func TestAbuse_A20_parallel_operations(t *testing.T) {
	t.Parallel()
	r, ahead := withClock(t, nil)
	r.Generate("demo/key", "standard", "ecdsa-p256")
	first := r.Raw("workload")
	const racing, total, left = 64, 8, 3
	for round := range 3 {
		w := r.RawWith("workload", first.Key) // a connection keeps 256 nonces
		ahead.Add(int64(10 * time.Second))    // refused calls have an allowance, which has to fill up again
		s := deliverProxied(t, w, "demo/key", total)
		for n := uint32(1); n <= total-left; n++ {
			reply, err := s.send(t, w, requestID(), s.ask(keys.Sign, []byte("message")))
			if err != nil || reply.GetUsesLeft() != total-n {
				t.Fatalf("use %d: %v, %d left", n, err, reply.GetUsesLeft())
			}
		}
		var given atomic.Int64
		var wg sync.WaitGroup
		for i := range racing {
			w.Challenge(nil)
			message := fmt.Append(nil, "message ", i)
			in := w.SignAs(bullav1.Broker_Operate_FullMethodName, requestID(), s.ask(keys.Sign, message))
			wg.Go(func() {
				reply, err := w.Broker.Operate(t.Context(), in)
				switch {
				case err == nil && s.public.Verify(message, reply.GetOutput()) == nil:
					given.Add(1)
				case status.Code(err) != codes.FailedPrecondition:
					t.Errorf("operation %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if given.Load() != left {
			t.Fatalf("round %d: %d of 64 racing operations gave a signature, want %d", round, given.Load(), left)
		}
		state, err := sessionStatus(t, w, s.reply.GetSessionId())
		if err != nil || state.GetState() != "exhausted" {
			t.Fatalf("the session is %v, %v; want exhausted", state, err)
		}
		operated := 0
		for _, o := range of[event.SessionOperated](r.Events()) {
			if o.Session.String() == s.reply.GetSessionId() {
				operated++
			}
		}
		if operated != total {
			t.Errorf("%d operations are recorded, want %d", operated, total)
		}
	}
	r.Check()
}

// A policy that permits fewer uses by now is exact under races as well, in a session that began with more.
func TestAbuse_A20_fewer_uses_by_now(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Generate("demo/key", "standard", "hmac-sha256")
	w := r.Raw("workload")
	s := deliverProxied(t, w, "demo/key", 0)
	r.Push(threeUses)
	var given atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		w.Challenge(nil)
		in := w.SignAs(bullav1.Broker_Operate_FullMethodName, requestID(), s.ask(keys.MAC, []byte("m")))
		wg.Go(func() {
			_, err := w.Broker.Operate(t.Context(), in)
			if err == nil {
				given.Add(1)
			} else if c := status.Code(err); c != codes.FailedPrecondition && c != codes.PermissionDenied {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if given.Load() != 3 {
		t.Errorf("%d operations, want 3", given.Load())
	}
	r.Check()
}

// An operation whose answer got lost gives the same bytes again, without a second count, also when it was the last one
// and when its result is drawn by lot. Under that id another question, or another key, gets nothing.
func TestAbuse_A21_lost_result(t *testing.T) {
	t.Parallel()
	r, ahead := withClock(t, threeUses) // as many as the sessions have: the last one again is no fourth
	for kind, operation := range map[string]keys.Operation{
		"ecdsa-p256": keys.Sign, "ed25519": keys.Sign, "hmac-sha256": keys.MAC, "aes-256-gcm": keys.Encrypt,
	} {
		name := "demo/" + kind
		r.Generate(name, "standard", kind)
		w := r.Raw("workload")
		s := deliverProxied(t, w, name, 3)
		ask, id := s.ask(operation, []byte("message")), requestID()
		first, err := s.send(t, w, id, ask)
		if err != nil {
			t.Fatal(err)
		}
		again, err := s.send(t, w, id, ask)
		if err != nil || !bytes.Equal(again.GetOutput(), first.GetOutput()) || again.GetUsesLeft() != 2 || again.GetEventId() != first.GetEventId() || again.GetLogIndex() != first.GetLogIndex() {
			t.Fatalf("%s again: %v, %d left", kind, err, again.GetUsesLeft())
		}
		_, err = s.send(t, w, id, s.ask(operation, []byte("Message")))
		wantCode(t, "another message under its id", err, codes.FailedPrecondition, "request")
		other := requestID()
		next, err := s.send(t, w, other, ask)
		if err != nil || next.GetUsesLeft() != 1 || (operation == keys.Encrypt) == bytes.Equal(next.GetOutput(), first.GetOutput()) {
			t.Fatalf("%s under another id: %v, %d left", kind, err, next.GetUsesLeft())
		}
		last := s.ask(operation, first.GetOutput())
		if operation == keys.Encrypt { // what was decrypted is computed again
			last = s.ask(keys.Decrypt, first.GetOutput())
		}
		id = requestID()
		want, err := s.send(t, w, id, last)
		if err != nil || want.GetUsesLeft() != 0 {
			t.Fatal(err)
		}
		_, err = s.send(t, w, requestID(), last)
		wantCode(t, "a fourth one", err, codes.FailedPrecondition, "session")
		if again, err := s.send(t, w, id, last); err != nil || !bytes.Equal(again.GetOutput(), want.GetOutput()) || !again.GetAuthentic() {
			t.Fatalf("%s, the last one again: %v", kind, err)
		}
		if operation == keys.Encrypt && string(want.GetOutput()) != "message" {
			t.Errorf("decrypted to %q", want.GetOutput())
		}
		ahead.Add(int64(6 * time.Minute))
		_, err = s.send(t, w, id, last)
		wantCode(t, "after five minutes", err, codes.FailedPrecondition, "session")
	}
	r.Check()
}

// Nobody but the instance of the session operates its key, and others learn no more than of an id that never was.
func TestAbuse_A23_operations_of_another(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Generate("demo/key", "standard", "ecdsa-p256")
	r.Put("demo/open", "standard", "s3cret")
	owner := r.Raw("workload")
	s := deliverProxied(t, owner, "demo/key", 2)
	unknown := &proxiedSession{reply: &bullav1.DeliverReply{SessionId: requestID()}}
	for name, w := range map[string]*rig.Raw{"a sibling": r.Raw("workload"), "another principal": r.Raw("stranger")} {
		reply, err := s.send(t, w, requestID(), s.ask(keys.Sign, []byte("m")))
		wantCode(t, name, err, codes.NotFound, "session")
		_, never := unknown.send(t, w, requestID(), unknown.ask(keys.Sign, []byte("m")))
		if status.Convert(err).Message() != status.Convert(never).Message() || len(reply.GetOutput()) > 0 {
			t.Errorf("%s: %v, and for an unknown id %v", name, err, never)
		}
	}
	owner.Challenge(nil)
	in := owner.Sign(bullav1.Broker_Operate_FullMethodName, s.ask(keys.Sign, []byte("m")))
	in.Payload[len(in.Payload)-1] ^= 1
	_, err := owner.Broker.Operate(t.Context(), in)
	wantCode(t, "a changed payload", err, codes.Unauthenticated, "proof")
	owner.Challenge(nil)
	_, err = owner.Broker.Operate(t.Context(), owner.Sign(bullav1.Broker_Use_FullMethodName, s.ask(keys.Sign, []byte("m"))))
	wantCode(t, "signed for another method", err, codes.Unauthenticated, "proof")

	open, _, err := owner.Deliver(t.Context(), "demo/open")
	if err != nil {
		t.Fatal(err)
	}
	other := &proxiedSession{w: owner, reply: open}
	for name, ask := range map[string]*bullav1.OperateRequest{
		"a session of grade open": other.ask(keys.Sign, []byte("m")), "an operation of another type": s.ask(keys.Decrypt, make([]byte, 64)),
		"no operation": s.ask("", []byte("m")), "an unknown one": s.ask("export", nil), "too much": s.ask(keys.Sign, make([]byte, keys.MaxInput+1)),
		"no salt": {SessionId: s.reply.GetSessionId(), Operation: "sign", Input: []byte("m")},
	} {
		_, err := s.send(t, owner, requestID(), ask)
		wantCode(t, name, err, codes.InvalidArgument, "request")
	}
	_, err = (&gatedSession{w: owner, reply: s.reply}).use(t, owner, requestID(), 1)
	wantCode(t, "a share of a proxied session", err, codes.InvalidArgument, "request")
	reply, err := s.send(t, owner, requestID(), s.ask(keys.Sign, []byte("m")))
	if err != nil || reply.GetUsesLeft() != 1 || s.public.Verify([]byte("m"), reply.GetOutput()) != nil {
		t.Fatalf("the owner: %v, %d left", err, reply.GetUsesLeft())
	}
	r.Check()
}

// Revocation beats everything: no operation, and no result again. So does a policy that took the grant away, a session
// that is over, and a device that failed.
func TestAbuse_A48_operate_after_revocation(t *testing.T) {
	t.Parallel()
	r, ahead := withClock(t, nil)
	r.Generate("demo/key", "standard", "aes-256-gcm")
	w := r.Raw("workload")
	revoked, late := deliverProxied(t, w, "demo/key", 5), deliverProxied(t, w, "demo/key", 5)
	ask, id, lateAsk, lateID := revoked.ask(keys.Encrypt, []byte("m")), requestID(), late.ask(keys.Encrypt, []byte("m")), requestID()
	if _, err := revoked.send(t, w, id, ask); err != nil {
		t.Fatal(err)
	}
	if _, err := late.send(t, w, lateID, lateAsk); err != nil {
		t.Fatal(err)
	}
	refused := func(what string, err error, reply *bullav1.OperateReply, code codes.Code, check string) {
		t.Helper()
		wantCode(t, what, err, code, check)
		if len(reply.GetOutput()) > 0 {
			t.Errorf("%s got a result", what)
		}
	}
	_, err := bullav1.NewSessionsClient(r.Client("security").Conn()).RevokeSession(t.Context(), &bullav1.RevokeSessionRequest{Id: revoked.reply.GetSessionId(), Reason: "test"})
	if err != nil {
		t.Fatal(err)
	}
	reply, err := revoked.send(t, w, requestID(), revoked.ask(keys.Encrypt, []byte("m")))
	refused("a new operation", err, reply, codes.FailedPrecondition, "session")
	reply, err = revoked.send(t, w, id, ask)
	refused("a retry", err, reply, codes.FailedPrecondition, "session")

	r.Push(func(files map[string]string) {
		files["canaries.yaml"] = strings.ReplaceAll(files["canaries.yaml"], "dev.bulla.test/workload", "dev.bulla.test/other")
		files["data/grants.yaml"] = strings.ReplaceAll(files["data/grants.yaml"], "dev.bulla.test/workload:", "dev.bulla.test/other:")
	})
	reply, err = late.send(t, w, requestID(), late.ask(keys.Encrypt, []byte("m")))
	refused("under a revision without the grant", err, reply, codes.PermissionDenied, "policy")
	reply, err = late.send(t, w, lateID, lateAsk)
	refused("a retry under it", err, reply, codes.PermissionDenied, "policy")

	ahead.Store(int64(31 * time.Minute))
	reply, err = late.send(t, w, requestID(), late.ask(keys.Encrypt, []byte("m")))
	refused("after its end", err, reply, codes.FailedPrecondition, "session")
	r.Check()
}

// A session whose device was revoked is over, before the sweeper says so.
func TestAbuse_A48_operate_without_the_device(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Generate("demo/high", "high", "ed25519")
	file, id := r.Device(rig.ID("workload").String())
	c := r.Client("workload", withDevice(file))
	s, err := c.Get(t.Context(), "demo/high")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sign(t.Context(), []byte("m")); err != nil {
		t.Fatal(err)
	}
	_, err = bullav1.NewDevicesClient(r.Client("operator").Conn()).RevokeDevice(t.Context(), &bullav1.RevokeDeviceRequest{Id: id, Reason: "sold"})
	if err != nil {
		t.Fatal(err)
	}
	if sig, err := s.Sign(t.Context(), []byte("m")); err == nil || sig != nil {
		t.Errorf("it signs on: %v", err)
	}
	r.Check()
}

// A key is never delivered softer than it is kept, whatever is asked for and whatever the policy demands, and what is
// no key is not called proxied.
func TestAbuse_A18_keys_are_proxied(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	public := r.Generate("demo/key", "standard", "ecdsa-p256").GetPublicKey()
	r.Put("demo/hello", "standard", "hello")
	w := r.Raw("workload")
	for _, grade := range []string{"", "open", "gated", "proxied"} {
		w.Challenge(nil)
		ask, _ := w.Ask("demo/key")
		ask.Grade = grade
		reply, err := w.Broker.Deliver(t.Context(), w.Sign(bullav1.Broker_Deliver_FullMethodName, ask))
		if err != nil || reply.GetGrade() != "proxied" {
			t.Errorf("asked for %q: grade %q, %v", grade, reply.GetGrade(), err)
		}
	}
	if jwk, err := deliverProxied(t, w, "demo/key", 0).public.JWK(); err != nil || !bytes.Equal(jwk, public) {
		t.Errorf("the envelope holds %s, and the operator got %s: %v", jwk, public, err)
	}
	_, _, err := w.Deliver(t.Context(), "demo/key", func(q *bullav1.DeliverRequest) { q.Grade = "leased" })
	wantCode(t, "leased", err, codes.PermissionDenied, "grade")
	_, _, err = w.Deliver(t.Context(), "demo/hello", func(q *bullav1.DeliverRequest) { q.Grade = "proxied" })
	wantCode(t, "an opaque secret", err, codes.PermissionDenied, "grade")

	gated := deliverGated(t, w, "demo/hello", "hello", 2)
	r.Push(func(files map[string]string) { // the first usage_limit is that of class standard
		files["data/classes.yaml"] = strings.Replace(files["data/classes.yaml"], "usage_limit: {max_uses: 1000, grade: open}", "usage_limit: {max_uses: 1000, grade: proxied}", 1)
	})
	_, _, err = w.Deliver(t.Context(), "demo/hello")
	wantCode(t, "an opaque secret where proxied is demanded", err, codes.PermissionDenied, "grade")
	_, err = gated.use(t, w, requestID(), 1)
	wantCode(t, "a gated session where proxied is demanded by now", err, codes.PermissionDenied, "grade")
	s := deliverProxied(t, w, "demo/key", 0)
	if _, err := s.send(t, w, requestID(), s.ask(keys.Sign, []byte("m"))); err != nil {
		t.Error(err)
	}
	r.Check()
}

// The type of a secret stays, and only who may put a secret may make a key.
func TestAbuse_A18_types_stay(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Generate("demo/key", "high", "ecdsa-p256")
	r.Put("demo/hello", "standard", "hello")
	generate := func(as, name, class, kind, id string) (*bullav1.GenerateSecretReply, error) {
		return bullav1.NewSecretsClient(r.Client(as).Conn()).GenerateSecret(t.Context(), &bullav1.GenerateSecretRequest{Name: name, Class: class, Type: kind, RequestId: id})
	}
	for what, c := range map[string][4]string{
		"another type": {"operator", "demo/key", "", "ed25519"}, "a key in place of a value": {"operator", "demo/hello", "", "ed25519"},
		"opaque": {"operator", "demo/key", "", "opaque"}, "unknown": {"operator", "demo/new", "standard", "rsa"}, "no type": {"operator", "demo/new", "standard", ""},
		"no type of a value": {"operator", "demo/hello", "", ""},
	} {
		_, err := generate(c[0], c[1], c[2], c[3], requestID())
		wantCode(t, what, err, codes.InvalidArgument, "request")
	}
	_, err := bullav1.NewSecretsClient(r.Client("operator").Conn()).PutSecret(t.Context(), &bullav1.PutSecretRequest{Name: "demo/key", Value: make([]byte, 32), RequestId: requestID()})
	wantCode(t, "a value in place of a key", err, codes.InvalidArgument, "request")
	_, err = generate("operator", "demo/key", "standard", "ecdsa-p256", requestID())
	wantCode(t, "a lower class", err, codes.PermissionDenied, "policy")
	for _, as := range []string{"workload", "security", "auditor", "stranger"} {
		_, err := generate(as, "demo/new", "standard", "ed25519", requestID())
		wantCode(t, as, err, codes.PermissionDenied, "policy")
	}
	id := requestID()
	first, err := generate("operator", "demo/key", "", "", id)
	if err != nil || first.GetVersion() != 2 || first.GetClass() != "high" || first.GetType() != "ecdsa-p256" {
		t.Fatalf("%v, %v", first, err)
	}
	again, err := generate("operator", "demo/key", "", "", id)
	if err != nil || again.GetVersion() != 2 || !bytes.Equal(again.GetPublicKey(), first.GetPublicKey()) {
		t.Errorf("the same request again: %v, %v", again, err)
	}
	_, err = generate("operator", "demo/other", "high", "ecdsa-p256", id)
	wantCode(t, "another one under its id", err, codes.AlreadyExists, "request")
	r.Check()
}

// The sessions of keys outlive the process, with what they have used; nothing of them is in its memory.
func TestProxiedSessionsSurviveARestart(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Generate("demo/key", "critical", "ed25519")
	r.Generate("demo/plain", "standard", "ed25519")
	w := r.Raw("workload")
	s := deliverProxied(t, w, "demo/plain", 3)
	ask, id := s.ask(keys.Sign, []byte("m")), requestID()
	before, err := s.send(t, w, id, ask)
	if err != nil {
		t.Fatal(err)
	}
	r.Stop()
	r.Run()
	after := r.RawWith("workload", w.Key)
	again, err := s.send(t, after, id, ask)
	if err != nil || !bytes.Equal(again.GetOutput(), before.GetOutput()) || again.GetUsesLeft() != 2 {
		t.Fatalf("a retry after the restart: %v, %d left", err, again.GetUsesLeft())
	}
	for left := uint32(1); ; left-- {
		reply, err := s.send(t, after, requestID(), s.ask(keys.Sign, []byte("m")))
		if err != nil || reply.GetUsesLeft() != left {
			t.Fatalf("%v, %d left, want %d", err, reply.GetUsesLeft(), left)
		}
		if left == 0 {
			break
		}
	}
	_, err = s.send(t, after, requestID(), s.ask(keys.Sign, []byte("m")))
	wantCode(t, "one more", err, codes.FailedPrecondition, "session")
	r.Check()
}

// Policy sees which operation is asked for, and with which type of key.
func TestPolicyDecidesOnOperations(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{Policy: func(files map[string]string) {
		files["rego/deliver.rego"] = strings.Replace(files["rego/deliver.rego"], "default permit := false", `default permit := false

default operation_ok := false

operation_ok if input.request.operation in {"", "verify"}

operation_ok if input.resource.secret.type != "ed25519"`, 1)
		files["rego/deliver.rego"] = strings.Replace(files["rego/deliver.rego"], "permit if {\n\tcovered\n", "permit if {\n\tcovered\n\toperation_ok\n", 2)
		for name := range files { // they count what the shipped rules say
			if strings.HasSuffix(name, "_test.rego") {
				delete(files, name)
			}
		}
	}})
	r.Generate("demo/ed", "standard", "ed25519")
	r.Generate("demo/ec", "standard", "ecdsa-p256")
	w := r.Raw("workload")
	ed, ec := deliverProxied(t, w, "demo/ed", 0), deliverProxied(t, w, "demo/ec", 0)
	_, err := ed.send(t, w, requestID(), ed.ask(keys.Sign, []byte("m")))
	wantCode(t, "sign", err, codes.PermissionDenied, "policy")
	check := ed.ask(keys.Verify, []byte("m"))
	check.Signature = make([]byte, 64)
	if reply, err := ed.send(t, w, requestID(), check); err != nil || reply.GetAuthentic() {
		t.Errorf("verify: %v, %v", reply, err)
	}
	if _, err := ec.send(t, w, requestID(), ec.ask(keys.Sign, []byte("m"))); err != nil {
		t.Errorf("sign with the other type: %v", err)
	}
	r.Check()
}

// The standard library takes what the broker signs, by the public key that the operator was told.
func TestProxiedSignaturesVerifyElsewhere(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Generate("demo/key", "standard", "ecdsa-p256")
	c := r.Client("workload")
	s, err := c.Get(t.Context(), "demo/key")
	if err != nil {
		t.Fatal(err)
	}
	sig, err := s.Sign(t.Context(), []byte("message"))
	if err != nil {
		t.Fatal(err)
	}
	der, err := keys.EncodeDER(sig)
	if err != nil || !ecdsa.VerifyASN1(s.PublicKey().(*ecdsa.PublicKey), hashOf("message"), der) {
		t.Errorf("crypto/ecdsa does not take it: %v", err)
	}
	r.Check()
}
