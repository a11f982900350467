package abuse

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// offlinePolicy allows four uses of a standard secret, two of them ahead.
func offlinePolicy(files map[string]string) {
	files["data/classes.yaml"] = strings.Replace(files["data/classes.yaml"],
		"usage_limit: {max_uses: 1000, grade: open}", "usage_limit: {max_uses: 4, offline: 2, grade: gated}", 1)
}

// Where the policy allows it, and only so often, a client may fetch shares ahead; they work without the broker, and the
// record shows them. Where the broker can be reached, its word counts.
func TestGatedOffline(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{Policy: offlinePolicy})
	r.Put("demo/away", "standard", "s3cret")
	c := r.Client("workload")
	use := func(s *client.Secret) error {
		return s.Use(func(b []byte) error {
			if string(b) != "s3cret" {
				t.Errorf("got %q", b)
			}
			return nil
		})
	}
	s, err := c.Get(t.Context(), "demo/away")
	if err != nil {
		t.Fatal(err)
	}
	revoked, err := c.Get(t.Context(), "demo/away")
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []*client.Secret{s, revoked} {
		if err := secret.FetchAhead(t.Context(), 2); err != nil || secret.Offline != 2 {
			t.Fatalf("fetch two of %d ahead: %v", secret.Offline, err)
		}
		if err := secret.FetchAhead(t.Context(), 1); !errors.Is(err, client.ErrDenied) {
			t.Errorf("a third one ahead: %v", err)
		}
	}
	if n, _ := s.UsesLeft(); n != 4 {
		t.Errorf("%d uses left, want all 4", n)
	}
	shown, err := bullav1.NewSessionsClient(r.Client("operator").Conn()).GetSession(t.Context(), &bullav1.GetSessionRequest{Id: s.SessionID})
	if err != nil || shown.GetUsed() != 2 || shown.GetAhead() != 2 || shown.GetOffline() != 2 {
		t.Errorf("the operator is shown %v, %v", shown, err)
	}
	_, err = bullav1.NewSessionsClient(r.Client("security").Conn()).RevokeSession(t.Context(), &bullav1.RevokeSessionRequest{Id: revoked.SessionID, Reason: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if err := use(revoked); !errors.Is(err, client.ErrEnded) || revoked.OfflineUses() != 0 {
		t.Errorf("a revoked session, while the broker is there: %v", err)
	}
	if err := use(s); err != nil || s.OfflineUses() != 0 {
		t.Fatalf("while the broker is there: %v, %d offline", err, s.OfflineUses())
	}

	r.Stop()
	for n := uint32(1); n <= 2; n++ {
		if err := use(s); err != nil || s.OfflineUses() != n {
			t.Fatalf("use %d without the broker: %v, %d offline", n, err, s.OfflineUses())
		}
	}
	if err := use(s); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("without the broker and without a share: %v", err)
	}
	r.Run()
	ahead := 0
	for _, u := range of[event.SessionUsed](r.Events()) {
		if u.Ahead {
			ahead++
		}
	}
	if ahead != 4 {
		t.Errorf("%d uses are recorded as fetched ahead, want 4", ahead)
	}
	r.Check()
}

// The broker keeps the limit, whatever the client does: one share more ahead, and any ahead where the policy is silent,
// are refused and cost nothing. A question whose answer got lost is answered again.
func TestAbuse_A18_ahead_of_policy(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{Policy: offlinePolicy})
	r.Put("demo/away", "standard", "s3cret")
	w := r.Raw("workload")
	s := deliverGated(t, w, "demo/away", "s3cret", 4)
	ahead := func(id string, number uint32) (*bullav1.UseReply, error) {
		w.Challenge(nil)
		in := s.ask(number)
		in.Ahead = true
		return w.Broker.Use(t.Context(), w.SignAs(bullav1.Broker_Use_FullMethodName, id, in))
	}
	id := requestID()
	for number := uint32(1); number <= 2; number++ {
		reply, err := ahead(id, number)
		if err != nil || s.opens(number, reply) != nil || reply.GetUsesLeft() != 4-number {
			t.Fatalf("share %d ahead: %v", number, err)
		}
		again, err := ahead(id, number)
		if err != nil || string(again.GetShare()) != string(reply.GetShare()) || again.GetUsesLeft() != 4-number {
			t.Fatalf("share %d ahead, asked again: %v", number, err)
		}
		id = requestID()
	}
	_, err := ahead(requestID(), 3)
	wantCode(t, "a third one", err, codes.PermissionDenied, "grade")
	r.Push(func(files map[string]string) {
		files["data/classes.yaml"] = strings.Replace(files["data/classes.yaml"],
			"usage_limit: {max_uses: 1000, grade: open}", "usage_limit: {max_uses: 4, grade: gated}", 1)
	})
	_, err = ahead(requestID(), 3)
	wantCode(t, "under a policy that allows none", err, codes.PermissionDenied, "grade")
	plain := deliverGated(t, w, "demo/away", "s3cret", 4)
	w.Challenge(nil)
	in := plain.ask(1)
	in.Ahead = true
	_, err = w.Broker.Use(t.Context(), w.Sign(bullav1.Broker_Use_FullMethodName, in))
	wantCode(t, "of a session that allows none", err, codes.PermissionDenied, "grade")
	reply, err := s.use(t, w, requestID(), 3)
	if err != nil || reply.GetUsesLeft() != 1 {
		t.Errorf("a use now: %v, %d left", err, reply.GetUsesLeft())
	}
	r.Check()
}

// The answer to the last use that the policy permits gets lost, and is given again.
func TestAbuse_A21_last_use_of_the_policy(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{Policy: func(files map[string]string) {
		files["data/classes.yaml"] = strings.Replace(files["data/classes.yaml"],
			"usage_limit: {max_uses: 1000, grade: open}", "usage_limit: {max_uses: 2, grade: gated}", 1)
	}})
	r.Put("demo/last", "standard", "s3cret")
	w := r.Raw("workload")
	s := deliverGated(t, w, "demo/last", "s3cret", 2)
	for number := uint32(1); number <= 2; number++ {
		id := requestID()
		first, err := s.use(t, w, id, number)
		if err != nil {
			t.Fatal(err)
		}
		again, err := s.use(t, w, id, number)
		if err != nil || string(again.GetShare()) != string(first.GetShare()) {
			t.Errorf("use %d again: %v", number, err)
		}
	}
	_, err := s.use(t, w, requestID(), 2)
	wantCode(t, "a third use", err, codes.FailedPrecondition, "session")
	if state, err := sessionStatus(t, w, s.reply.GetSessionId()); err != nil || state.GetState() != "exhausted" {
		t.Errorf("%v, %v at %s", state, err, time.Now())
	}
	r.Check()
}

// A broker that answers has the last word, whatever it says: a share that lies here is for a time without it. A rate
// limit is no such time, and neither is a caller who gave up waiting.
func TestAbuse_A18_ahead_is_no_way_around_the_broker(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{Policy: func(files map[string]string) {
		files["data/classes.yaml"] = strings.Replace(files["data/classes.yaml"], "usage_limit: {max_uses: 1000, grade: open}",
			"usage_limit: {max_uses: 8, offline: 2, grade: gated}\n    rate_limit: {max: 3, window_seconds: 31536000, grade: open}", 1)
	}})
	r.Put("demo/away", "standard", "s3cret")
	s, err := r.Client("workload").Get(t.Context(), "demo/away") // the first of three
	if err != nil {
		t.Fatal(err)
	}
	if err := s.FetchAhead(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.UseContext(gone, func([]byte) error { return nil }); err == nil || s.OfflineUses() != 0 {
		t.Errorf("of a caller who gave up: %v, %d offline", err, s.OfflineUses())
	}
	if err := s.Use(func([]byte) error { return nil }); err != nil || s.OfflineUses() != 0 {
		t.Fatalf("within the limit: %v, %d offline", err, s.OfflineUses())
	}
	if err := s.Use(func([]byte) error { return nil }); !errors.Is(err, client.ErrUnavailable) || s.OfflineUses() != 0 {
		t.Errorf("beyond the limit: %v, %d offline", err, s.OfflineUses())
	}
	r.Stop()
	if err := s.Use(func([]byte) error { return nil }); err != nil || s.OfflineUses() != 1 {
		t.Errorf("without the broker: %v, %d offline", err, s.OfflineUses())
	}
}
