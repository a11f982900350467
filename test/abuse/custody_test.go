package abuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/envelope"
	reqproof "github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/envelope/split"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/test/rig"
)

// waitingGet is a Get that waits for others.
type waitingGet struct {
	round    string
	progress chan client.RoundProgress
	done     chan error
	value    string // once done is closed
	bad      atomic.Pointer[[]string]
}

// ask begins a Get as name, and returns once its round is open.
func ask(t *testing.T, r *rig.Rig, who, name string, wait time.Duration, opts ...client.GetOption) *waitingGet {
	t.Helper()
	g := &waitingGet{progress: make(chan client.RoundProgress, 64), done: make(chan error, 1)}
	c := r.Client(who, func(cfg *client.Config) {
		cfg.OnRound = func(p client.RoundProgress) {
			g.bad.Store(&p.Bad)
			g.progress <- p
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	t.Cleanup(cancel)
	go func() {
		s, err := c.Get(ctx, name, opts...)
		if err == nil {
			err = s.Use(func(plain []byte) error { g.value = string(plain); return nil })
		}
		g.done <- err
	}()
	select {
	case p := <-g.progress:
		g.round = p.ID
	case err := <-g.done:
		t.Fatalf("get %s: %v", name, err)
	case <-time.After(30 * time.Second):
		t.Fatal("no round was opened")
	}
	return g
}

// want waits for the end.
func (g *waitingGet) want(t *testing.T, value string) {
	t.Helper()
	if err := <-g.done; err != nil || g.value != value {
		t.Fatalf("%q, %v; want %q", g.value, err, value)
	}
}

// custodian is a holder who speaks the protocol step by step.
type custodian struct {
	*rig.Raw
	rounds bullav1.RoundsClient
}

func newCustodian(r *rig.Rig, name string) *custodian {
	w := r.Raw(name)
	return &custodian{w, bullav1.NewRoundsClient(w.Conn)}
}

// fetch gets the share of a round.
func (c *custodian) fetch(t *testing.T, round string) ([]byte, error) {
	t.Helper()
	recipient, err := envelope.GenerateRecipient(envelope.SuiteHybridX25519())
	if err != nil {
		t.Fatal(err)
	}
	c.Challenge(nil)
	in := c.Sign(bullav1.Rounds_FetchShare_FullMethodName, &bullav1.FetchShareRequest{
		RoundId: round, Suite: recipient.Suite().String(), RecipientKey: recipient.PublicKey(),
	})
	reply, err := c.rounds.FetchShare(t.Context(), in)
	if err != nil {
		return nil, err
	}
	o, err := envelope.Open(reply.GetEnvelope(), c.Keys.Lookup, recipient, envelope.Expectation{
		Request: in.GetProof().GetRequestId(), Issuer: rig.ID("bulla/broker").String(), Subject: c.ID, Instance: c.Name, Audience: c.ID,
		Channels: []envelope.Digest{envelope.Digest(c.Exporter)}, MinimumSuite: envelope.SuiteHybridP256(), Now: time.Now(), Skew: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(o.Secret().Expose()), nil
}

// word is what the custodian would sign for a round, and the key that its share has to be sealed to.
func (c *custodian) word(t *testing.T, id string) (split.Approval, envelope.RecipientKey, *bullav1.Round) {
	t.Helper()
	got, err := c.rounds.GetRound(t.Context(), &bullav1.GetRoundRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	deliver, manifest := got.GetRequest().GetPayload(), envelope.Digest{}
	if got.GetKind() == "approval" {
		var opening bullav1.OpenRoundRequest
		if err := proto.Unmarshal(deliver, &opening); err != nil {
			t.Fatal(err)
		}
		deliver = opening.GetDeliver()
	} else {
		manifest = envelope.DigestOf(got.GetManifest().GetManifest())
	}
	var asked bullav1.DeliverRequest
	if err := proto.Unmarshal(deliver, &asked); err != nil {
		t.Fatal(err)
	}
	key, err := envelope.ParseRecipientKey(envelope.SuiteHybridX25519(), asked.GetRecipientKey())
	if err != nil {
		t.Fatal(err)
	}
	binding := got.GetRequest().GetBinding()
	return split.Approval{
		Round: id, Manifest: manifest, Secret: got.GetSecret(), Version: got.GetVersion(), Requester: got.GetPrincipal(), Instance: instanceOf(t, binding),
		Request: got.GetRequest().GetRequestId(), Payload: envelope.DigestOf(deliver), Holder: c.ID, Expires: got.GetExpiresAt().AsTime().UnixMicro(),
	}, key, got
}

// give answers a round with these bytes as the share, and the changes to what is signed.
func (c *custodian) give(t *testing.T, id string, share []byte, change ...func(*split.Approval)) error {
	t.Helper()
	word, key, _ := c.word(t, id)
	in := &bullav1.AnswerRoundRequest{RoundId: id}
	if share != nil {
		var err error
		if in.Share, word, err = word.Reseal(key, secret.NewBytes(share)); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range change {
		f(&word)
	}
	var err error
	if in.Approval, err = word.Sign(c.Key); err != nil {
		t.Fatal(err)
	}
	c.Challenge(nil)
	_, err = c.rounds.AnswerRound(t.Context(), c.Sign(bullav1.Rounds_AnswerRound_FullMethodName, in))
	return err
}

// share is fetch that has to succeed.
func (c *custodian) share(t *testing.T, round string) []byte {
	t.Helper()
	s, err := c.fetch(t, round)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func approve(t *testing.T, r *rig.Rig, who, round string) {
	t.Helper()
	if _, err := r.Client(who).Approve(t.Context(), round, nil); err != nil {
		t.Fatalf("%s approves: %v", who, err)
	}
}

// roundClosed returns the requester's last word on a round.
func roundClosed(t *testing.T, r *rig.Rig, id string) (event.RoundClosed, bool) {
	t.Helper()
	for _, e := range slices.Backward(r.Events()) {
		if b, ok := e.Body.(event.RoundClosed); ok && b.Round.String() == id {
			return b, true
		}
	}
	return event.RoundClosed{}, false
}

// A22: whatever a custodian gives instead of its share, nothing is opened with it, and it is named.
func TestAbuse_A22_bad_shares_name_their_holder(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/split", "split", "the root key")
	earlier := ask(t, r, "workload", "demo/split", time.Minute)
	one, two := newCustodian(r, "custodian-1"), newCustodian(r, "custodian-2")
	old := two.share(t, earlier.round)
	approve(t, r, "custodian-1", earlier.round)
	approve(t, r, "custodian-2", earlier.round)
	earlier.want(t, "the root key")

	for name, bad := range map[string]func(own, others []byte) []byte{
		"x of 0":           func(own, _ []byte) []byte { return append(own[:32:32], 0) },
		"x of another":     func(own, others []byte) []byte { return append(own[:32:32], others[32]) },
		"another's share":  func(_, others []byte) []byte { return others },
		"altered value":    func(own, _ []byte) []byte { own[7] ^= 1; return own },
		"altered x":        func(own, _ []byte) []byte { own[32] ^= 1; return own },
		"another manifest": func(_, _ []byte) []byte { return old },
	} {
		g := ask(t, r, "workload", "demo/split", time.Minute)
		good := one.share(t, g.round)
		if err := two.give(t, g.round, bad(two.share(t, g.round), bytes.Clone(good))); err != nil {
			t.Fatalf("%s: the broker, which can't open it, refuses it: %v", name, err)
		}
		if err := one.give(t, g.round, good); err != nil {
			t.Fatal(err)
		}
		eventually(t, name+": the holder is named", func() bool { b := g.bad.Load(); return b != nil && slices.Contains(*b, two.ID) })
		select {
		case err := <-g.done:
			t.Fatalf("%s: it is over with one good share: %q, %v", name, g.value, err)
		default:
		}
		approve(t, r, "custodian-3", g.round) // makes up for it
		g.want(t, "the root key")
		if closed, ok := roundClosed(t, r, g.round); !ok || !closed.Combined || !slices.Equal(closed.Bad, []string{two.ID}) {
			t.Errorf("%s: the record says %+v", name, closed)
		}
	}

	// With no holder left to make up for it, the error names whose share it was.
	g := ask(t, r, "workload", "demo/split", time.Minute)
	if _, err := r.Client("custodian-3").Reject(t.Context(), g.round, "not today"); err != nil {
		t.Fatal(err)
	}
	if err := two.give(t, g.round, make([]byte, 33)); err != nil {
		t.Fatal(err)
	}
	err := <-g.done
	var ended *client.RoundError
	if !errors.As(err, &ended) || !slices.Equal(ended.Bad, []string{two.ID}) || !errors.Is(err, client.ErrDenied) || !strings.Contains(err.Error(), two.ID) || !strings.Contains(err.Error(), "not today") {
		t.Errorf("%v", err)
	}
	r.Check()
}

// A22: fewer shares than the threshold open nothing, whoever has them; the round ends with its requester.
func TestAbuse_A22_below_the_threshold(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/split", "split", "the root key")
	g := ask(t, r, "workload", "demo/split", 4*time.Second)
	approve(t, r, "custodian-1", g.round)
	if err := <-g.done; !errors.Is(err, context.DeadlineExceeded) || g.value != "" {
		t.Fatalf("with one of two shares: %q, %v", g.value, err)
	}
	if closed, ok := roundClosed(t, r, g.round); !ok || closed.Combined {
		t.Errorf("the round goes on without its requester: %+v", closed)
	}
	_, err := r.Client("custodian-2").Approve(t.Context(), g.round, nil)
	if err == nil || !strings.Contains(err.Error(), "the round is cancelled") {
		t.Errorf("an answer to a round that was given up: %v", err)
	}

	// What the requester gets by itself is ciphertext.
	w := r.Raw("workload")
	reply, o := opened(t, w, "demo/split")
	p, err := split.ParsePackage(o.Secret().Expose())
	if err != nil || bytes.Contains(o.Secret().Expose(), []byte("root key")) || p.Digest != o.Context.Split || p.Manifest.ID != reply.GetSessionId() {
		t.Fatalf("the envelope of a split delivery: %v", err)
	}
	alone := map[string]secret.Bytes{rig.ID("custodian-1").String(): secret.NewBytes(newCustodian(r, "custodian-1").share(t, reply.GetSessionId()))}
	if _, err := p.Manifest.Combine(alone); !errors.Is(err, split.ErrTooFew) {
		t.Errorf("one share: %v", err)
	}
	r.Check()
}

// A22: one person behind two holders is no two holders, and the requester is none: the delivery is refused before any
// round, and the holder is named.
func TestAbuse_A22_one_person_behind_two_holders(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		persons, holder, same string
	}{
		"two holders":                   {"spiffe://dev.bulla.test/custodian-3: blake\n", "custodian-3", "custodian-2"},
		"the requester behind a holder": {"spiffe://dev.bulla.test/workload: avery\n", "custodian-1", "workload"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rig.Start(t, rig.Config{Policy: func(files map[string]string) {
				key, _, _ := strings.Cut(c.persons, ": ")
				var kept []string
				for _, line := range strings.SplitAfter(files["data/owners.yaml"], "\n") {
					if !strings.HasPrefix(line, key+":") {
						kept = append(kept, line)
					}
				}
				files["data/owners.yaml"] = strings.Join(kept, "") + c.persons
			}})
			r.Put("demo/split", "split", "the root key")
			refusedSplit(t, r, "workload", rig.ID(c.holder).String()+" is the same person as "+rig.ID(c.same).String())
		})
	}
	t.Run("the requester as holder", func(t *testing.T) {
		t.Parallel()
		r := rig.Start(t, rig.Config{Policy: func(files map[string]string) {
			files["data/grants.yaml"] += "spiffe://dev.bulla.test/custodian-2:\n  read:\n    demo/: true\n  devices: [\"*\"]\n"
		}})
		r.Put("demo/split", "split", "the root key")
		refusedSplit(t, r, "custodian-2", rig.ID("custodian-2").String()+" is the same person as "+rig.ID("custodian-2").String())
	})
}

func refusedSplit(t *testing.T, r *rig.Rig, who, reason string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := r.Client(who).Get(ctx, "demo/split")
	var refused *client.Refusal
	if !errors.As(err, &refused) || refused.Code != codes.PermissionDenied || len(refused.Reasons) != 1 || !strings.Contains(refused.Reasons[0], reason) {
		t.Fatalf("%v, want %q", err, reason)
	}
	for _, e := range r.Events() {
		if e.Body.EventType() == event.TypeSessionIssued {
			t.Error("a session was opened")
		}
	}
	r.Check()
}

// A22: only the holders of a round take part, each once, with its own signed word for this very request.
func TestAbuse_A22_who_may_answer(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{Policy: func(files map[string]string) { // custodian-3 holds no share
		files["data/classes.yaml"] = strings.ReplaceAll(files["data/classes.yaml"], "        - spiffe://dev.bulla.test/custodian-3\n", "")
	}})
	r.Put("demo/split", "split", "the root key")
	g := ask(t, r, "workload", "demo/split", time.Minute)
	for _, who := range []string{"custodian-3", "operator", "security", "auditor", "workload", "stranger"} {
		c := newCustodian(r, who)
		_, err := c.fetch(t, g.round)
		wantCode(t, who+" fetches a share", err, codes.PermissionDenied, "policy")
		_, nothing := c.fetch(t, event.NewID(time.Now()).String())
		if a, b := rig.Refusal(err), rig.Refusal(nothing); !slices.Equal(a.GetReasons(), b.GetReasons()) || a.GetCheck() != b.GetCheck() {
			t.Errorf("%s can tell a round of others from none: %v, %v", who, err, nothing)
		}
		c.Challenge(nil)
		_, err = c.rounds.AnswerRound(t.Context(), c.Sign(bullav1.Rounds_AnswerRound_FullMethodName, &bullav1.AnswerRoundRequest{RoundId: g.round, Reject: "no"}))
		wantCode(t, who+" rejects", err, codes.PermissionDenied, "policy")
		c.Challenge(nil)
		_, err = c.rounds.RoundStatus(t.Context(), c.Sign(bullav1.Rounds_RoundStatus_FullMethodName, &bullav1.RoundStatusRequest{RoundId: g.round}))
		wantCode(t, who+" asks how it stands", err, codes.NotFound, "round")
		c.Challenge(nil)
		_, err = c.rounds.CloseRound(t.Context(), c.Sign(bullav1.Rounds_CloseRound_FullMethodName, &bullav1.CloseRoundRequest{RoundId: g.round}))
		wantCode(t, who+" cancels", err, codes.NotFound, "round")
	}
	two := newCustodian(r, "custodian-2")
	share := two.share(t, g.round)
	for name, change := range map[string]func(*split.Approval){
		"round": func(a *split.Approval) { a.Round = event.NewID(time.Now()).String() }, "manifest": func(a *split.Approval) { a.Manifest[0] ^= 1 },
		"request": func(a *split.Approval) { a.Request = event.NewID(time.Now()).String() }, "payload": func(a *split.Approval) { a.Payload[0] ^= 1 },
		"holder": func(a *split.Approval) { a.Holder = rig.ID("custodian-1").String() }, "expiry": func(a *split.Approval) { a.Expires++ },
		"requester": func(a *split.Approval) { a.Requester = rig.ID("stranger").String() }, "share": func(a *split.Approval) { a.Share[0] ^= 1 },
		"version": func(a *split.Approval) { a.Version++ }, "instance": func(a *split.Approval) { a.Instance = two.Name },
	} {
		wantCode(t, "an approval of another "+name, two.give(t, g.round, share, change), codes.FailedPrecondition, "round")
	}
	wantCode(t, "an approval without its share", two.give(t, g.round, nil), codes.InvalidArgument, "request")
	if err := two.give(t, g.round, share); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "a second answer", two.give(t, g.round, share), codes.FailedPrecondition, "round")
	_, err := two.fetch(t, g.round)
	wantCode(t, "a share after the answer", err, codes.FailedPrecondition, "round")
	approve(t, r, "custodian-1", g.round)
	g.want(t, "the root key")
	_, err = newCustodian(r, "custodian-1").fetch(t, g.round)
	wantCode(t, "a share of a round that is over", err, codes.FailedPrecondition, "round")
	r.Check()
}

// Rounds are in the ledger: a broker that stops in between goes on with them, and so does the client that waits.
func TestRoundsOutliveABroker(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/split", "split", "the root key")
	r.Put("demo/approved", "approved", "a value")
	s, a := ask(t, r, "workload", "demo/split", time.Minute), ask(t, r, "workload", "demo/approved", time.Minute)
	approve(t, r, "custodian-1", s.round)
	r.Stop()
	r.Run()
	approve(t, r, "custodian-3", s.round)
	approve(t, r, "custodian-3", a.round)
	s.want(t, "the root key")
	a.want(t, "a value")
	r.Check()
}

// A secret that was split at its source: the broker has ciphertext alone, and the custodians their files.
func TestSplitAtTheSource(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	op := r.Client("operator")
	name, err := secret.ParseName("demo/source")
	if err != nil {
		t.Fatal(err)
	}
	holders := []string{rig.ID("custodian-1").String(), rig.ID("custodian-2").String(), rig.ID("custodian-3").String()}
	value := []byte("never at the broker")
	pkg, binding, files, err := op.SplitAtSource(t.Context(), name, 2, holders, secret.NewBytes(bytes.Clone(value)))
	if err != nil {
		t.Fatal(err)
	}
	secrets := bullav1.NewSecretsClient(op.Conn())
	put := func(change func(*bullav1.PutSecretRequest)) error {
		in := &bullav1.PutSecretRequest{Name: "demo/source", Class: "standard", Value: bytes.Clone(pkg), RequestId: event.NewID(time.Now()).String(), SplitBinding: binding}
		change(in)
		_, err := secrets.PutSecret(t.Context(), in)
		return err
	}
	other := r.Client("operator")
	_, otherBinding, _, err := other.SplitAtSource(t.Context(), name, 2, holders, secret.NewBytes(bytes.Clone(value)))
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*bullav1.PutSecretRequest){
		"another name":        func(in *bullav1.PutSecretRequest) { in.Name = "demo/elsewhere" },
		"an altered package":  func(in *bullav1.PutSecretRequest) { in.Value[60] ^= 1 },
		"no package":          func(in *bullav1.PutSecretRequest) { in.Value = []byte("plain") },
		"another key":         func(in *bullav1.PutSecretRequest) { in.SplitBinding = otherBinding },
		"a binding of nobody": func(in *bullav1.PutSecretRequest) { in.SplitBinding = []byte("binding") },
	} {
		wantCode(t, what, put(change), codes.InvalidArgument, "request")
	}
	if err := put(func(*bullav1.PutSecretRequest) {}); err != nil {
		t.Fatal(err)
	}
	for _, opts := range [][]client.GetOption{{client.WithGrade("gated"), client.WithUses(3)}, nil} {
		g := ask(t, r, "workload", "demo/source", time.Minute, opts...)
		if _, err := r.Client("custodian-1").Approve(t.Context(), g.round, nil); !errors.Is(err, client.ErrInvalid) {
			t.Errorf("without the file: %v", err)
		}
		if _, err := r.Client("custodian-1").Approve(t.Context(), g.round, files[1]); !errors.Is(err, client.ErrInvalid) {
			t.Errorf("with another's file: %v", err)
		}
		_, err := newCustodian(r, "custodian-1").fetch(t, g.round)
		wantCode(t, "a share that the broker never had", err, codes.FailedPrecondition, "round")
		for i, who := range []string{"custodian-1", "custodian-2"} {
			if _, err := r.Client(who).Approve(t.Context(), g.round, files[i]); err != nil {
				t.Fatal(err)
			}
		}
		g.want(t, string(value))
	}
	for _, e := range r.Events() {
		if p, ok := e.Body.(event.SecretPut); ok && (p.Split == nil || p.Split.Threshold != 2 || !slices.Equal(p.Split.Holders, holders)) {
			t.Errorf("the record of the put: %+v", p.Split)
		}
	}
	r.Check()
}

// At grade gated each use takes the broker's share as well, and the custodians are asked once.
func TestSplitAndGated(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/split", "split", "the root key")
	c := r.Client("workload", func(cfg *client.Config) {
		cfg.OnRound = func(p client.RoundProgress) {
			if p.Approvals == 0 {
				go func() {
					for i := 1; i <= 2; i++ {
						if _, err := r.Client(fmt.Sprintf("custodian-%d", i)).Approve(t.Context(), p.ID, nil); err != nil {
							t.Error(err)
						}
					}
				}()
			}
		}
	})
	s, err := c.Get(t.Context(), "demo/split", client.WithGrade("gated"), client.WithUses(2))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Use(func(plain []byte) error {
			if string(plain) != "the root key" {
				t.Errorf("%q", plain)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Use(func([]byte) error { return nil }); !errors.Is(err, client.ErrEnded) {
		t.Errorf("a third use of two: %v", err)
	}
	r.Check()
}

// instanceOf is the thumbprint of the key that a binding names.
func instanceOf(t *testing.T, binding []byte) string {
	t.Helper()
	b, err := reqproof.ParseBinding(binding)
	if err != nil {
		t.Fatal(err)
	}
	return reqproof.Thumbprint(b.InstanceKey)
}
