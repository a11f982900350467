package abuse

import (
	"bytes"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// approvalOf opens a round for a delivery by hand.
type approvalAsk struct {
	w    *rig.Raw
	id   string
	body []byte
}

func openApproval(t *testing.T, r *rig.Rig, name string) *approvalAsk {
	t.Helper()
	w := r.Raw("workload")
	ask, _ := w.Ask(name)
	body, err := proto.Marshal(ask)
	if err != nil {
		t.Fatal(err)
	}
	a := &approvalAsk{w, event.NewRequestID(time.Now()).String(), body}
	reply, err := bullav1.NewRoundsClient(w.Conn).OpenRound(t.Context(), w.SignAs(bullav1.Rounds_OpenRound_FullMethodName, a.id, &bullav1.OpenRoundRequest{Deliver: body}))
	if err != nil {
		t.Fatal(err)
	}
	if reply.GetRoundId() != a.id {
		t.Fatalf("round %s for request %s", reply.GetRoundId(), a.id)
	}
	return a
}

func (a *approvalAsk) deliver(t *testing.T, w *rig.Raw, id string, body []byte) (*bullav1.DeliverReply, error) {
	t.Helper()
	w.Challenge(nil)
	return w.Broker.Deliver(t.Context(), w.SignPayload(bullav1.Broker_Deliver_FullMethodName, id, body))
}

func wantsApproval(t *testing.T, what string, err error) {
	t.Helper()
	if d := rig.Refusal(err); d.GetDecision() != "STEP_UP" || !strings.Contains(string(d.GetRequires()), `"approval"`) {
		t.Errorf("%s: %v, want a step-up to an approval", what, err)
	}
}

// A53: an approval is good for one delivery: that request, of that instance, for that key and version, once.
func TestAbuse_A53_approvals_are_for_one_request(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/approved", "approved", "one")
	r.Put("demo/other", "approved", "two")
	a := openApproval(t, r, "demo/approved")
	_, err := a.deliver(t, a.w, a.id, a.body)
	wantsApproval(t, "before anybody approved", err)
	approve(t, r, "custodian-1", a.id)

	otherKey, _ := a.w.Ask("demo/approved")
	otherSecret, _ := a.w.Ask("demo/other")
	for name, m := range map[string]*bullav1.DeliverRequest{"another key": otherKey, "another secret": otherSecret} {
		body, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		_, err = a.deliver(t, a.w, a.id, body)
		wantsApproval(t, name, err)
	}
	_, err = a.deliver(t, a.w, event.NewID(time.Now()).String(), a.body)
	wantsApproval(t, "another request", err)
	_, err = a.deliver(t, r.Raw("workload"), a.id, a.body)
	wantsApproval(t, "another instance", err)
	if _, err = a.deliver(t, r.Raw("stranger"), a.id, a.body); rig.Refusal(err).GetDecision() != "DENY" {
		t.Errorf("another principal: %v", err)
	}

	first, err := a.deliver(t, a.w, a.id, a.body)
	if err != nil {
		t.Fatal(err)
	}
	again, err := a.deliver(t, a.w, a.id, a.body)
	if err != nil || !bytes.Equal(again.GetEnvelope(), first.GetEnvelope()) {
		t.Errorf("the same request again gets something else: %v", err)
	}
	_, err = a.deliver(t, a.w, event.NewID(time.Now()).String(), a.body)
	wantsApproval(t, "a second delivery", err)
	_, err = newCustodian(r, "custodian-2").fetch(t, a.id)
	wantCode(t, "a share of an approval", err, codes.FailedPrecondition, "round")
	rounds := bullav1.NewRoundsClient(a.w.Conn)
	a.w.Challenge(nil)
	_, err = rounds.OpenRound(t.Context(), a.w.SignAs(bullav1.Rounds_OpenRound_FullMethodName, a.id, &bullav1.OpenRoundRequest{Deliver: a.body}))
	wantCode(t, "a second round of the request", err, codes.FailedPrecondition, "round")

	// A bearer token is not put on the record, nor shown to approvers.
	withToken, _ := a.w.Ask("demo/approved")
	withToken.Factors = []*bullav1.Factor{{Kind: "oidc", Token: "eyJhbGciOiJub25lIn0.a-bearer-token."}}
	shows, err := proto.Marshal(withToken)
	if err != nil {
		t.Fatal(err)
	}
	a.w.Challenge(nil)
	_, err = rounds.OpenRound(t.Context(), a.w.SignAs(bullav1.Rounds_OpenRound_FullMethodName, event.NewRequestID(time.Now()).String(), &bullav1.OpenRoundRequest{Deliver: shows}))
	wantCode(t, "a round of a request that shows a token", err, codes.FailedPrecondition, "round")

	b := openApproval(t, r, "demo/approved")
	approve(t, r, "custodian-1", b.id)
	r.Put("demo/approved", "approved", "rotated")
	_, err = b.deliver(t, b.w, b.id, b.body)
	wantsApproval(t, "another version", err)

	issued := 0
	for _, e := range r.Events() {
		if s, ok := e.Body.(event.SessionIssued); ok {
			issued++
			if s.Approval.String() != a.id || !strings.Contains(string(s.Decision.Signals), `"approvals":[{"principal":"`+rig.ID("custodian-1").String()) {
				t.Errorf("the delivery does not name its approval: %+v", s)
			}
		}
	}
	if issued != 1 {
		t.Errorf("%d deliveries", issued)
	}
	r.Check()
}

// A53: nobody approves what they asked for, be it under a second SPIFFE ID, and two identities of one person are one.
func TestAbuse_A53_self_approval(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{Policy: func(files map[string]string) {
		files["data/owners.yaml"] = "spiffe://dev.bulla.test/custodian-1: robin\nspiffe://dev.bulla.test/workload: robin\n" +
			"spiffe://dev.bulla.test/custodian-2: blake\nspiffe://dev.bulla.test/custodian-3: blake\nspiffe://dev.bulla.test/custodian-4: dana\n"
		files["data/members.yaml"] += "spiffe://dev.bulla.test/custodian-4: [custodian]\n"
		files["data/grants.yaml"] += "spiffe://dev.bulla.test/custodian-2:\n  read:\n    demo/: true\n  devices: [\"*\"]\n"
		files["data/classes.yaml"] = strings.Replace(files["data/classes.yaml"], "approval: {count: 1,", "approval: {count: 2,", 1)
	}})
	r.Put("demo/approved", "approved", "one")
	a := openApproval(t, r, "demo/approved")
	if rounds, err := r.Client("custodian-1").Rounds(t.Context()); err != nil || len(rounds) != 0 {
		t.Errorf("the requester's second identity sees the round: %v, %v", rounds, err)
	}
	c := newCustodian(r, "custodian-1")
	c.Challenge(nil)
	_, err := c.rounds.AnswerRound(t.Context(), c.Sign(bullav1.Rounds_AnswerRound_FullMethodName, &bullav1.AnswerRoundRequest{RoundId: a.id, Approval: make([]byte, 64)}))
	wantCode(t, "the requester's second identity approves", err, codes.PermissionDenied, "policy")

	approve(t, r, "custodian-2", a.id)
	approve(t, r, "custodian-3", a.id) // the same person
	_, err = a.deliver(t, a.w, a.id, a.body)
	wantsApproval(t, "two identities of one person", err)
	approve(t, r, "custodian-4", a.id)
	if _, err := a.deliver(t, a.w, a.id, a.body); err != nil {
		t.Errorf("two persons: %v", err)
	}

	// A custodian who has a grant, too, asks for itself.
	g := ask(t, r, "custodian-2", "demo/approved", time.Minute)
	own := newCustodian(r, "custodian-2")
	own.Challenge(nil)
	_, err = own.rounds.AnswerRound(t.Context(), own.Sign(bullav1.Rounds_AnswerRound_FullMethodName, &bullav1.AnswerRoundRequest{RoundId: g.round, Approval: make([]byte, 64)}))
	wantCode(t, "the requester approves", err, codes.PermissionDenied, "policy")
	if _, err := r.Client("custodian-4").Reject(t.Context(), g.round, "who are you?"); err != nil {
		t.Fatal(err)
	}
	if err := <-g.done; !errors.Is(err, client.ErrDenied) || !strings.Contains(err.Error(), "who are you?") {
		t.Errorf("after a rejection: %v", err)
	}
	r.Check()
}

// A53: approvals and shares end with their round, and with what it was for.
func TestAbuse_A53_rounds_end(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	r := rig.Start(t, rig.Config{SVIDTTL: 4 * time.Hour, Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	r.Put("demo/approved", "approved", "one")
	r.Put("demo/split", "split", "two")
	a := openApproval(t, r, "demo/approved")
	approve(t, r, "custodian-1", a.id)
	w := r.Raw("workload")
	revoked, _ := opened(t, w, "demo/split")
	_, err := bullav1.NewSessionsClient(r.Client("security").Conn()).RevokeSession(t.Context(), &bullav1.RevokeSessionRequest{Id: revoked.GetSessionId(), Reason: "test"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = newCustodian(r, "custodian-1").fetch(t, revoked.GetSessionId())
	wantCode(t, "a share for a session that was revoked", err, codes.FailedPrecondition, "round")
	lives, _ := opened(t, w, "demo/split")
	if rounds, err := r.Client("custodian-2").Rounds(t.Context()); err != nil || len(rounds) != 2 {
		t.Errorf("%d rounds wait for a custodian, want that of the living session and the approval: %v", len(rounds), err)
	}

	ahead.Store(int64(16 * time.Minute))
	_, err = a.deliver(t, a.w, a.id, a.body)
	wantsApproval(t, "an approval that is over", err)
	_, err = newCustodian(r, "custodian-1").fetch(t, lives.GetSessionId())
	wantCode(t, "a share of a round that is over", err, codes.FailedPrecondition, "round")
	if rounds, err := r.Client("custodian-2").Rounds(t.Context()); err != nil || len(rounds) != 0 {
		t.Errorf("%d rounds wait that are over: %v", len(rounds), err)
	}
	eventually(t, "the ends are in the record", func() bool {
		ends := 0
		for _, e := range r.Events() {
			if e.Body.EventType() == event.TypeRoundExpired {
				ends++
			}
		}
		return ends == 3
	})
	r.Check()
}
