package abuse

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// gatedSession is a session of grade gated, whose body is known to open to want.
type gatedSession struct {
	w     *rig.Raw
	reply *bullav1.DeliverReply
	body  *envelope.Gated
	want  string
}

// deliverGated delivers name at grade gated, with so many uses.
func deliverGated(t *testing.T, w *rig.Raw, name, want string, uses uint32) *gatedSession {
	t.Helper()
	w.Challenge(nil)
	ask, recipient := w.Ask(name)
	ask.Grade, ask.MaxUses, ask.TtlSeconds = "gated", uses, 1800
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
	if c := opened.Context; c.Grade != envelope.GradeGated || c.Uses != uint64(uses) || c.UsesEnforcedBy != envelope.UsesByBroker {
		t.Fatalf("the envelope says grade %s, %d uses by %q", c.Grade, c.Uses, c.UsesEnforcedBy)
	}
	if bytes.Contains(opened.Secret().Expose(), []byte(want)) {
		t.Fatal("the opened envelope holds the plaintext")
	}
	body, err := opened.Gated()
	if err != nil {
		t.Fatal(err)
	}
	return &gatedSession{w, reply, body, want}
}

// use asks for a share over a fresh nonce.
func (s *gatedSession) use(t *testing.T, w *rig.Raw, id string, number uint32) (*bullav1.UseReply, error) {
	t.Helper()
	w.Challenge(nil)
	return w.Broker.Use(t.Context(), w.SignAs(bullav1.Broker_Use_FullMethodName, id, s.ask(number)))
}

func (s *gatedSession) ask(number uint32) *bullav1.UseRequest {
	return &bullav1.UseRequest{SessionId: s.reply.GetSessionId(), Number: number}
}

// opens says whether a reply's share opens the body.
func (s *gatedSession) opens(number uint32, reply *bullav1.UseReply) error {
	if len(reply.GetShare()) != envelope.ShareSize {
		return errors.New("there is no share")
	}
	plain, err := s.body.Open(number, envelope.Share(reply.GetShare()))
	if err == nil && string(plain.Expose()) != s.want {
		err = errors.New("it opens to something else")
	}
	return err
}

// 64 parallel uses of a session with 3 left give exactly 3, whatever shares they ask for; each share that was given
// out opens the body, and the ledger has an event for it.
func TestAbuse_A20_parallel_uses(t *testing.T) {
	t.Parallel()
	rounds := 5
	if os.Getenv("BULLA_TEST_LONG") == "1" {
		rounds = 100
	}
	var ahead atomic.Int64
	r := rig.Start(t, rig.Config{SVIDTTL: 4 * time.Hour, Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	r.Put("demo/gated", "standard", "s3cret")
	first := r.Raw("workload")
	for round := range rounds {
		w := r.RawWith("workload", first.Key) // a connection keeps 256 nonces, and these calls leave many unspent
		ahead.Add(int64(10 * time.Second))    // refused calls have an allowance, which has to fill up again
		const racing, total, left = 64, 8, 3
		s := deliverGated(t, w, "demo/gated", "s3cret", total)
		for number := uint32(1); number <= total-left; number++ {
			reply, err := s.use(t, w, requestID(), number)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.opens(number, reply); err != nil || reply.GetUsesLeft() != total-number {
				t.Fatalf("use %d: %v, %d left", number, err, reply.GetUsesLeft())
			}
		}
		var given atomic.Int64
		var wg sync.WaitGroup
		for i := range racing {
			number := uint32(total - i%left) // the shares that are left
			if round%2 == 1 {
				number = uint32(1 + i%total) // any
			}
			w.Challenge(nil)
			in := w.SignAs(bullav1.Broker_Use_FullMethodName, requestID(), s.ask(number))
			wg.Go(func() {
				reply, err := w.Broker.Use(t.Context(), in)
				if err == nil {
					given.Add(1)
					err = s.opens(number, reply)
				}
				if err != nil && status.Code(err) != codes.FailedPrecondition {
					t.Errorf("share %d: %v", number, err)
				}
			})
		}
		wg.Wait()
		if given.Load() != left {
			t.Fatalf("round %d: %d of 64 racing uses were given a share, want %d", round, given.Load(), left)
		}
		state, err := sessionStatus(t, w, s.reply.GetSessionId())
		if err != nil || state.GetState() != "exhausted" {
			t.Fatalf("the session is %v, %v; want exhausted", state, err)
		}
		used := 0
		if round == rounds-1 {
			for _, e := range r.Events() {
				if u, ok := e.Body.(event.SessionUsed); ok && u.Session.String() == s.reply.GetSessionId() {
					used++
				}
			}
			if used != total {
				t.Errorf("%d uses are recorded, want %d", used, total)
			}
		}
	}
	r.Check()
}

// A use whose answer got lost gets the same share again, without a second count, also when it was the last one. What
// was sent under that id for another question, or by another key, gets nothing.
func TestAbuse_A21_lost_answer(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	r := rig.Start(t, rig.Config{SVIDTTL: 4 * time.Hour, Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	r.Put("demo/gated", "standard", "s3cret")
	w := r.Raw("workload")
	s := deliverGated(t, w, "demo/gated", "s3cret", 2)
	id := requestID()
	first, err := s.use(t, w, id, 1)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.use(t, w, id, 1)
	if err != nil || !bytes.Equal(again.GetShare(), first.GetShare()) || again.GetUsesLeft() != 1 || again.GetEventId() != first.GetEventId() {
		t.Fatalf("the same use again: %v, %d left", err, again.GetUsesLeft())
	}
	_, err = s.use(t, w, requestID(), 1)
	wantCode(t, "another use of the share", err, codes.FailedPrecondition, "session")
	last := requestID()
	reply, err := s.use(t, w, last, 2)
	if err != nil || reply.GetUsesLeft() != 0 {
		t.Fatal(err)
	}
	again, err = s.use(t, w, last, 2)
	if err != nil || !bytes.Equal(again.GetShare(), reply.GetShare()) {
		t.Fatalf("the last use again: %v", err)
	}
	ahead.Store(int64(6 * time.Minute))
	_, err = s.use(t, w, last, 2)
	wantCode(t, "after five minutes", err, codes.FailedPrecondition, "session")
	r.Check()
}

// Nobody but the instance of the session spends its uses: not a sibling with the same SPIFFE ID, not another
// principal, not a request that the instance did not sign. What they try leaves the owner's uses as they are.
func TestAbuse_A23_uses_of_another(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/gated", "standard", "s3cret")
	owner, sibling, other := r.Raw("workload"), r.Raw("workload"), r.Raw("stranger")
	s := deliverGated(t, owner, "demo/gated", "s3cret", 2)
	for name, w := range map[string]*rig.Raw{"a sibling": sibling, "another principal": other} {
		reply, err := s.use(t, w, requestID(), 1)
		wantCode(t, name, err, codes.NotFound, "session")
		if len(reply.GetShare()) > 0 {
			t.Errorf("%s got a share", name)
		}
	}
	owner.Challenge(nil)
	in := owner.Sign(bullav1.Broker_Use_FullMethodName, s.ask(1))
	in.Proof.Signature[8] ^= 1
	_, err := owner.Broker.Use(t.Context(), in)
	wantCode(t, "a bad signature", err, codes.Unauthenticated, "proof")
	owner.Challenge(nil)
	_, err = owner.Broker.Use(t.Context(), owner.Sign(bullav1.Broker_Status_FullMethodName, s.ask(1)))
	wantCode(t, "signed for another method", err, codes.Unauthenticated, "proof")
	for number, want := range map[uint32]codes.Code{0: codes.InvalidArgument, 3: codes.InvalidArgument, 1 << 31: codes.InvalidArgument} {
		_, err := s.use(t, owner, requestID(), number)
		wantCode(t, fmt.Sprint("share ", number), err, want, "request")
	}
	reply, err := s.use(t, owner, requestID(), 1)
	if err != nil || s.opens(1, reply) != nil || reply.GetUsesLeft() != 1 {
		t.Fatalf("the owner: %v, %d left", err, reply.GetUsesLeft())
	}
	r.Check()
}

// Revocation beats everything: no new share, and no share again. So does a policy that took the grant away, and a
// session that is over.
func TestAbuse_A48_use_after_revocation(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	r := rig.Start(t, rig.Config{SVIDTTL: 4 * time.Hour, Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	r.Put("demo/gated", "standard", "s3cret")
	w := r.Raw("workload")
	revoked := deliverGated(t, w, "demo/gated", "s3cret", 3)
	late := deliverGated(t, w, "demo/gated", "s3cret", 3)
	id, lateID := requestID(), requestID()
	for s, id := range map[*gatedSession]string{revoked: id, late: lateID} {
		if _, err := s.use(t, w, id, 1); err != nil {
			t.Fatal(err)
		}
	}
	_, err := bullav1.NewSessionsClient(r.Client("security").Conn()).RevokeSession(t.Context(), &bullav1.RevokeSessionRequest{Id: revoked.reply.GetSessionId(), Reason: "test"})
	if err != nil {
		t.Fatal(err)
	}
	for name, ask := range map[string]func() (*bullav1.UseReply, error){
		"a new use": func() (*bullav1.UseReply, error) { return revoked.use(t, w, requestID(), 2) },
		"a retry":   func() (*bullav1.UseReply, error) { return revoked.use(t, w, id, 1) },
	} {
		reply, err := ask()
		wantCode(t, name, err, codes.FailedPrecondition, "session")
		if len(reply.GetShare()) > 0 {
			t.Errorf("%s got a share", name)
		}
	}

	r.Push(func(files map[string]string) {
		files["canaries.yaml"] = strings.ReplaceAll(files["canaries.yaml"], "dev.bulla.test/workload", "dev.bulla.test/other")
		files["data/grants.yaml"] = strings.ReplaceAll(files["data/grants.yaml"], "dev.bulla.test/workload:", "dev.bulla.test/other:")
	})
	_, err = late.use(t, w, requestID(), 2)
	wantCode(t, "a use under a revision without the grant", err, codes.PermissionDenied, "policy")
	_, err = late.use(t, w, lateID, 1)
	wantCode(t, "a retry under it", err, codes.PermissionDenied, "policy")

	ahead.Store(int64(31 * time.Minute))
	_, err = late.use(t, w, requestID(), 2)
	wantCode(t, "after its end", err, codes.FailedPrecondition, "session")
	r.Check()
}

// A restart ends the gated sessions: their shares were in the memory of the process that is gone, and are nowhere
// else. Neither the database nor the logs ever had one.
func TestAbuse_A32_epochs_end_with_the_process(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/gated", "standard", "s3cret")
	w := r.Raw("workload")
	s := deliverGated(t, w, "demo/gated", "s3cret", 3)
	reply, err := s.use(t, w, requestID(), 1)
	if err != nil {
		t.Fatal(err)
	}
	r.Stop()
	err = filepath.WalkDir(r.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		if bytes.Contains(content, reply.GetShare()) {
			t.Errorf("%s holds a share", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	r.Run()
	after := r.RawWith("workload", w.Key) // the same instance, on a new connection
	_, err = s.use(t, after, requestID(), 2)
	wantCode(t, "a use after the restart", err, codes.FailedPrecondition, "session")
	state, err := sessionStatus(t, after, s.reply.GetSessionId())
	if err != nil || state.GetState() != "revoked" || !strings.Contains(state.GetReason(), "epoch") {
		t.Errorf("the session is %v, %v; want revoked", state, err)
	}
	r.Check()
}

// An old copy of everything that lies on disk brings back no share: not of a session that the copy knows as live, and
// not of one whose uses it does not know of. Nothing else is revoked or rotated by itself.
func TestAbuse_A32_a_restored_copy_ends_gated_sessions_and_nothing_else(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/gated", "standard", "s3cret")
	r.Put("demo/open", "standard", "0pen")
	w := r.Raw("workload")
	s := deliverGated(t, w, "demo/gated", "s3cret", 3)
	open, _, err := w.Deliver(t.Context(), "demo/open")
	if err != nil {
		t.Fatal(err)
	}
	r.Stop()
	old := copyOf(t, r.Config.DataDir)
	restore(t, old, r.Config.DataDir) // as it was, and another process
	r.Run()
	after := r.RawWith("workload", w.Key)
	for number := uint32(1); number <= 3; number++ {
		_, err = s.use(t, after, requestID(), number)
		wantCode(t, "a share after the restore", err, codes.FailedPrecondition, "session")
	}
	for id, want := range map[string]string{s.reply.GetSessionId(): "revoked", open.GetSessionId(): "issued"} {
		state, err := sessionStatus(t, after, id)
		if err != nil || state.GetState() != want {
			t.Errorf("session %s is %v, %v; want %s", id, state, err, want)
		}
	}
	for _, e := range r.Events() {
		switch body := e.Body.(type) {
		case event.SessionRevoked:
			if body.Session.String() != s.reply.GetSessionId() {
				t.Errorf("%s was revoked by nobody", body.Session)
			}
		case event.SecretPut:
			if body.Version != 1 {
				t.Errorf("%s has a new version that nobody put", body.Name)
			}
		}
	}
	r.Check()
}

// What was released at grade open once is not called gated later.
func TestAbuse_A18_no_gate_after_an_open_release(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/once", "standard", "s3cret")
	w := r.Raw("workload")
	if _, _, err := w.Deliver(t.Context(), "demo/once"); err != nil {
		t.Fatal(err)
	}
	gated := func() error {
		w.Challenge(nil)
		ask, _ := w.Ask("demo/once")
		ask.Grade = "gated"
		_, err := w.Broker.Deliver(t.Context(), w.Sign(bullav1.Broker_Deliver_FullMethodName, ask))
		return err
	}
	wantCode(t, "the version that was released", gated(), codes.PermissionDenied, "grade")
	r.Put("demo/once", "standard", "another")
	if err := gated(); err != nil {
		t.Errorf("a new version: %v", err)
	}
	r.Check()
}

// The SDK: each use opens anew, and counts are the broker's.
func TestGatedUsesOfTheSDK(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/critical", "critical", "s3cret")
	device, _ := r.Device(rig.ID("workload").String())
	c := r.Client("workload", func(c *client.Config) { c.DeviceFile = device })
	s, err := c.Get(t.Context(), "demo/critical")
	if err != nil {
		t.Fatal(err)
	}
	if n, limited := s.UsesLeft(); n != 10 || !limited || s.Grade != "gated" || s.UsesEnforcedBy != "broker" {
		t.Fatalf("%d uses, %t, grade %s by %q", n, limited, s.Grade, s.UsesEnforcedBy)
	}
	var kept []byte
	use := func() error {
		return s.Use(func(b []byte) error {
			if string(b) != "s3cret" {
				t.Errorf("got %q", b)
			}
			kept = b
			return nil
		})
	}
	if err := use(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(kept, make([]byte, len(kept))) {
		t.Error("the plaintext outlives its use")
	}
	if n, _ := s.UsesLeft(); n != 9 {
		t.Errorf("%d uses left, want 9", n)
	}
	var wg sync.WaitGroup
	for range 9 {
		wg.Go(func() {
			if err := s.Use(func([]byte) error { return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := use(); !errors.Is(err, client.ErrEnded) {
		t.Errorf("an eleventh use: %v", err)
	}
	if state, _, err := s.State(t.Context()); state != "exhausted" || err != nil {
		t.Errorf("the session is %s, %v", state, err)
	}
	r.Check()
}
