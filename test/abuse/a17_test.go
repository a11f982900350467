package abuse

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// What the ledger, the operator and the auditor see of an envelope is the digest of the very bytes that were signed
// and sent; a receipt for any other spelling of them is refused. That the other spellings do not even parse is
// TestAbuse_A17_malleation in package envelope.
func TestAbuse_A17_recorded_digest(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "hello")
	w := r.Raw("workload")
	reply, o := opened(t, w, "demo/hello")
	want := event.Digest(sha256.Sum256(reply.GetEnvelope()))

	issued := of[event.SessionIssued](r.Events())
	if len(issued) != 1 || issued[0].EnvelopeDigest != want {
		t.Fatalf("the ledger recorded %v, the envelope is %s", issued, want)
	}
	shown, err := bullav1.NewSessionsClient(r.Client("operator").Conn()).GetSession(t.Context(), &bullav1.GetSessionRequest{Id: reply.GetSessionId()})
	if err != nil || shown.GetEnvelopeDigest() != want.String() {
		t.Errorf("the operator is shown %s, %v", shown.GetEnvelopeDigest(), err)
	}
	record := exported(t, r).Records[reply.GetLogIndex()]
	if record.Reply != want || record.ReplySalt != event.Salt(reply.GetReplySalt()) || record.Leaf().Event != [32]byte(reply.GetLeafEventCommitment()) {
		t.Errorf("the log commits to the reply %s, and the client was told another leaf", record.Reply)
	}

	last := len(reply.GetEnvelope()) - 1
	flipped := bytes.Clone(reply.GetEnvelope())
	flipped[last] ^= 1
	for name, other := range map[string][]byte{
		"trailing newline": append(bytes.Clone(reply.GetEnvelope()), '\n'),
		"padding":          append(bytes.Clone(reply.GetEnvelope()), '='),
		"unused bits":      flipped,
		"another encoding": []byte(base64.StdEncoding.EncodeToString(reply.GetEnvelope())),
	} {
		if _, err := envelope.Verify(other, w.Keys.Lookup); err == nil {
			t.Errorf("%s: the envelope verifies", name)
		}
		// A receipt that is signed for that spelling, by the right key and with the right r.
		forged := *o
		forged.Digest = envelope.DigestOf(other)
		_, err := acknowledge(t, w, receipt(t, w, &forged))
		code(t, err, codes.FailedPrecondition, "receipt does not belong")
	}
	if _, err := acknowledge(t, w, receipt(t, w, o)); err != nil {
		t.Errorf("the true receipt: %v", err)
	}
}

// A suite that the policy does not want is refused, whatever the client asks for, and the ledger says why.
func TestAbuse_A18_policy_minimum(t *testing.T) {
	r := rig.Start(t, rig.Config{Policy: func(files map[string]string) {
		files["data/classes.yaml"] = string(bytes.Replace([]byte(files["data/classes.yaml"]),
			[]byte("usage_limit: {max_uses: 1000, grade: open}"), []byte("usage_limit: {max_uses: 1000, grade: open}\n    quantum_resistant: {grade: open}"), 1))
	}})
	r.Put("demo/hello", "standard", "hello")
	w := r.Raw("workload")
	ask := func(suite envelope.Suite, change func(*bullav1.DeliverRequest)) error {
		w.Challenge(nil)
		recipient, err := envelope.GenerateRecipient(suite)
		if err != nil {
			t.Fatal(err)
		}
		q := &bullav1.DeliverRequest{Name: "demo/hello", Suite: suite.String(), RecipientKey: recipient.PublicKey()}
		if change != nil {
			change(q)
		}
		_, err = w.Broker.Deliver(t.Context(), w.Sign(bullav1.Broker_Deliver_FullMethodName, q))
		return err
	}
	err := ask(envelope.SuiteP256(), nil)
	wantCode(t, "a classical suite", err, codes.PermissionDenied, "grade")
	denied := of[event.DecisionDenied](r.Events())
	if len(denied) != 1 || denied[0].Unmet != "the policy demands a post-quantum suite: ask with HPKE-9-KE or HPKE-8-KE" || denied[0].Decision.Effect != "PERMIT" {
		t.Errorf("recorded: %+v", denied)
	}
	for _, s := range []envelope.Suite{envelope.SuiteHybridP256(), envelope.SuiteHybridX25519()} {
		if err := ask(s, nil); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	// A name that claims more than the key can do.
	code(t, ask(envelope.SuiteP256(), func(q *bullav1.DeliverRequest) { q.Suite = "HPKE-9-KE" }), codes.InvalidArgument, "does not belong to suite")
	code(t, ask(envelope.SuiteHybridX25519(), func(q *bullav1.DeliverRequest) { q.Suite = "HPKE-8-KE" }), codes.InvalidArgument, "does not belong to suite")
	code(t, ask(envelope.SuiteHybridX25519(), func(q *bullav1.DeliverRequest) { q.Suite = "none" }), codes.InvalidArgument, "unknown suite")
	// A harder grade is asked for than the broker has: nothing weaker is given instead. This version was out at grade
	// open by now, so that gated can't be had either.
	for _, grade := range []string{"gated", "proxied", "leased"} {
		err := ask(envelope.SuiteHybridX25519(), func(q *bullav1.DeliverRequest) { q.Grade = grade })
		wantCode(t, "grade "+grade, err, codes.PermissionDenied, "grade")
	}
}

// A policy that demands a grade which this broker can't enforce gives nothing at all; one that it can enforce is
// enforced, whatever the client asks for.
func TestAbuse_A18_grade(t *testing.T) {
	for grade, delivered := range map[string]bool{"gated": true, "proxied": false, "leased": false} {
		t.Run(grade, func(t *testing.T) {
			r := rig.Start(t, rig.Config{Policy: func(files map[string]string) {
				files["data/classes.yaml"] = string(bytes.Replace([]byte(files["data/classes.yaml"]),
					[]byte("usage_limit: {max_uses: 1000, grade: open}"), []byte("usage_limit: {max_uses: 1000, grade: "+grade+"}"), 1))
			}})
			r.Put("demo/hello", "standard", "hello")
			reply, _, err := r.Raw("workload").Deliver(t.Context(), "demo/hello", func(q *bullav1.DeliverRequest) { q.Grade = "open" })
			if delivered {
				if err != nil || reply.GetGrade() != grade {
					t.Errorf("a usage limit at grade %s: delivered at %q, %v", grade, reply.GetGrade(), err)
				}
				return
			}
			wantCode(t, "a usage limit at grade "+grade, err, codes.PermissionDenied, "grade")
			if n := len(of[event.SessionIssued](r.Events())); n != 0 {
				t.Errorf("%d sessions", n)
			}
		})
	}
}

// An authentic envelope of a weaker suite than the client wants is not opened.
func TestAbuse_A18_client_minimum(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "hello")
	w := r.Raw("workload")
	recipient, err := envelope.GenerateRecipient(envelope.SuiteP256())
	if err != nil {
		t.Fatal(err)
	}
	w.Challenge(nil)
	q := w.Sign(bullav1.Broker_Deliver_FullMethodName, &bullav1.DeliverRequest{Name: "demo/hello", Suite: "HPKE-7-KE", RecipientKey: recipient.PublicKey()})
	reply, err := w.Broker.Deliver(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	want := envelope.Expectation{
		Request: q.GetProof().GetRequestId(), Issuer: rig.ID("bulla/broker").String(), Subject: w.ID, Instance: w.Name, Audience: w.ID,
		Channels: []envelope.Digest{envelope.Digest(w.Exporter)}, MinimumSuite: envelope.SuiteHybridP256(), Now: time.Now(), Skew: time.Minute,
	}
	if _, err := envelope.Open(reply.GetEnvelope(), w.Keys.Lookup, recipient, want); !errors.Is(err, envelope.ErrSuite) {
		t.Errorf("a classical envelope where a hybrid one is wanted: %v", err)
	}
	want.MinimumSuite = envelope.SuiteP256()
	if _, err := envelope.Open(reply.GetEnvelope(), w.Keys.Lookup, recipient, want); err != nil {
		t.Errorf("the same, where it is wanted: %v", err)
	}
}

// The SDK takes from a broker only the envelope that answers this very request: a broker, or whoever has its
// identity, that sends another one gets neither an opening nor a receipt.
func TestAbuse_A19_context_swap(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	x := newFalseBroker(t, r)
	c := r.Client("workload", func(c *client.Config) { c.Address = x.addr })
	ask := func(opts ...client.GetOption) (*client.Secret, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		return c.Get(ctx, "demo/hello", opts...)
	}
	s, err := ask()
	if err != nil || s.Receipt != "confirmed" {
		t.Fatalf("without any change: %v", err)
	}
	other := rig.ID("operator").String()
	for name, change := range map[string]func(*envelope.Context){
		"request":       func(c *envelope.Context) { c.Request = requestID() },
		"issuer":        func(c *envelope.Context) { c.Issuer = other },
		"subject":       func(c *envelope.Context) { c.Subject = other },
		"audience":      func(c *envelope.Context) { c.Audience = other },
		"instance":      func(c *envelope.Context) { c.Instance = r.Raw("workload").Name },
		"channel":       func(c *envelope.Context) { c.Channel[0] ^= 1 },
		"expired":       func(c *envelope.Context) { c.IssuedAt -= 7200; c.NotBefore -= 7200; c.Expires -= 7200 },
		"not yet valid": func(c *envelope.Context) { c.IssuedAt += 3600; c.NotBefore += 3600; c.Expires += 3600 },
		"session":       func(c *envelope.Context) { c.Session = requestID() },
		"uses":          func(c *envelope.Context) { c.Uses, c.UsesEnforcedBy = 1000, envelope.UsesByClient },
		"grade":         func(c *envelope.Context) { c.Grade = envelope.GradeLeased },
	} {
		t.Run(name, func(t *testing.T) {
			x.set(change, nil)
			receipts := x.receipts.Load()
			if s, err := ask(); s != nil || !errors.Is(err, client.ErrVerification) {
				t.Errorf("a changed %s: %v, %v", name, s, err)
			}
			if x.receipts.Load() != receipts {
				t.Error("a receipt was handed in")
			}
		})
	}
	t.Run("another version than the one asked for", func(t *testing.T) {
		x.set(nil, nil)
		receipts := x.receipts.Load()
		if s, err := ask(client.WithVersion(2)); s != nil || !errors.Is(err, client.ErrVerification) || x.receipts.Load() != receipts {
			t.Errorf("%v, %v, %d receipts", s, err, x.receipts.Load()-receipts)
		}
		if _, err := ask(client.WithVersion(1)); err != nil {
			t.Errorf("the version asked for: %v", err)
		}
	})
	t.Run("a softer grade than the one asked for", func(t *testing.T) {
		x.set(nil, nil)
		for _, grade := range []string{"gated", "proxied"} {
			receipts := x.receipts.Load()
			if s, err := ask(client.WithGrade(grade)); s != nil || !errors.Is(err, client.ErrVerification) || x.receipts.Load() != receipts {
				t.Errorf("%s: %v, %v, %d receipts", grade, s, err, x.receipts.Load()-receipts)
			}
		}
	})
	t.Run("the envelope of the request before", func(t *testing.T) {
		x.set(nil, x.last())
		if s, err := ask(); s != nil || !errors.Is(err, client.ErrVerification) {
			t.Errorf("%v, %v", s, err)
		}
	})
	t.Run("signed by a key that the broker does not publish", func(t *testing.T) {
		x.set(nil, nil)
		x.stranger.Store(true)
		if s, err := ask(); s != nil || !errors.Is(err, client.ErrVerification) {
			t.Errorf("%v, %v", s, err)
		}
	})
}
