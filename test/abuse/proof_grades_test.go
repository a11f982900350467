package abuse

import (
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/audit/sessionproof"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/secret/keys"
	"github.com/bulla-project/bulla/test/rig"
)

// The proof of a proxied session, of one that custodians had to take part in, and of one that somebody approved.
func TestAbuse_A29_session_proof_of_others(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Generate("demo/key", "standard", "ecdsa-p256")
	r.Put("demo/split", "split", "the root key")
	r.Put("demo/approved", "approved", "one")
	want := map[string]string{}

	w := r.Raw("workload")
	s := deliverProxied(t, w, "demo/key", 2)
	for range 2 {
		if _, err := s.send(t, w, requestID(), s.ask(keys.Sign, []byte("message"))); err != nil {
			t.Fatal(err)
		}
	}
	want[s.reply.GetSessionId()] = "session.issued session.operated session.operated"

	g := ask(t, r, "workload", "demo/split", time.Minute)
	approve(t, r, "custodian-1", g.round)
	approve(t, r, "custodian-2", g.round)
	g.want(t, "the root key")
	want[g.round] = "session.issued"

	a := openApproval(t, r, "demo/approved")
	approve(t, r, "custodian-1", a.id)
	reply, err := a.deliver(t, a.w, a.id, a.body)
	if err != nil {
		t.Fatal(err)
	}
	want[reply.GetSessionId()] = "round.opened round.approved session.issued"

	for id, story := range want {
		p := proven(t, r, id, nil)
		report := told(t, p, sessionproof.Options{Key: logKey(t, r)})
		if got := types(report); !strings.Contains(got, story) || !strings.HasPrefix(got, "log.genesis key.introduced revision.activated ") {
			t.Errorf("the proof holds %q, want %q in it", got, story)
		}
		if story == "session.issued" && strings.Count(types(report), "round.") < 4 {
			t.Errorf("the proof tells too little of the custodians: %q", types(report))
		}
		for _, e := range p.Entries { // nothing about other sessions
			decoded, err := event.Decode(e.Encoding)
			if b, ok := decoded.Body.(event.SessionIssued); err != nil || ok && b.Session.String() != id {
				t.Errorf("event %d tells of another session: %v", e.Index, err)
			}
		}
	}
}
