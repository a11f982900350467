package abuse

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/sessionproof"
	"github.com/bulla-project/bulla/audit/witness/xtest"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/broker/server"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/secret/keys"
	"github.com/bulla-project/bulla/test/rig"
)

// content is every file below a directory, and the file beside it that is not there.
func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		out[path] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// outsideOf reads the checkpoint outside.
func outsideOf(t *testing.T, r *rig.Rig) []byte {
	t.Helper()
	raw, err := os.ReadFile(r.Config.Log.CheckpointCopy)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// looked is what the command says without confirmation, which has to change nothing.
func looked(t *testing.T, r *rig.Rig, want server.RestoreState) server.Restoration {
	t.Helper()
	before, outside := content(t, r.Config.DataDir), outsideOf(t, r)
	found, err := server.RestoreStopped(t.Context(), r.Config, server.RestoreOptions{})
	if err != nil || found.State != want {
		t.Fatalf("%+v, %v; want %s", found, err, want)
	}
	if after := content(t, r.Config.DataDir); !maps.Equal(before, after) || !bytes.Equal(outside, outsideOf(t, r)) {
		t.Error("asking changed something")
	}
	return found
}

// confirm begins the new incarnation.
func confirm(t *testing.T, r *rig.Rig, number uint32) server.Restoration {
	t.Helper()
	done, err := server.RestoreStopped(t.Context(), r.Config, server.RestoreOptions{Confirm: true})
	if err != nil || done.State != server.RestoreDone || done.Incarnation != number || done.Origin != proofs.Incarnation(r.Config.Log.Origin, number) {
		t.Fatalf("%+v, %v; want incarnation %d", done, err, number)
	}
	return done
}

// restoring makes a broker whose checkpoint lies outside.
func restoring(t *testing.T) *rig.Rig {
	t.Helper()
	return rig.Start(t, rig.Config{Edit: func(c *config.Config) {
		c.Log.CheckpointCopy = filepath.Join(filepath.Dir(c.DataDir), "outside")
	}})
}

// lived are sessions of each grade that lived when a copy was made, and one that began later.
type lived struct {
	open, late string
	envelope   []byte
	gated      *gatedSession
	used       string // request id of a use from before the copy
	proxied    *proxiedSession
	w          *rig.Raw
	resend     func(w *rig.Raw) (*bullav1.DeliverReply, error)
}

// deliverAll delivers at each grade.
func deliverAll(t *testing.T, r *rig.Rig) *lived {
	t.Helper()
	r.Put("demo/open", "standard", "0pen")
	r.Put("demo/gated", "standard", "s3cret")
	r.Generate("demo/key", "standard", "ed25519")
	w := r.Raw("workload")
	l := &lived{w: w, gated: deliverGated(t, w, "demo/gated", "s3cret", 3), used: requestID()}
	if _, err := l.gated.use(t, w, l.used, 1); err != nil {
		t.Fatal(err)
	}
	l.proxied = deliverProxied(t, w, "demo/key", 0)
	ask, _ := w.Ask("demo/open")
	id := requestID()
	l.resend = func(w *rig.Raw) (*bullav1.DeliverReply, error) {
		w.Challenge(nil)
		return w.Broker.Deliver(t.Context(), w.SignAs(bullav1.Broker_Deliver_FullMethodName, id, ask))
	}
	for range 2 {
		reply, err := l.resend(w)
		if err != nil || l.envelope != nil && !bytes.Equal(reply.GetEnvelope(), l.envelope) {
			t.Fatal(err)
		}
		l.open, l.envelope = reply.GetSessionId(), reply.GetEnvelope()
	}
	return l
}

// haveEnded demands that nothing of the sessions can be had any more, by the instance that had them.
func (l *lived) haveEnded(t *testing.T, r *rig.Rig) {
	t.Helper()
	w := r.RawWith("workload", l.w.Key)
	for _, id := range []string{l.open, l.gated.reply.GetSessionId(), l.proxied.reply.GetSessionId()} {
		state, err := sessionStatus(t, w, id)
		if err != nil || state.GetState() != "revoked" || !strings.Contains(state.GetReason(), "restored") {
			t.Errorf("session %s is %v, %v; want revoked", id, state, err)
		}
	}
	_, err := sessionStatus(t, w, l.late)
	wantCode(t, "a session that began after the copy", err, codes.NotFound, "session")
	for number := uint32(1); number <= 3; number++ {
		reply, err := l.gated.use(t, w, requestID(), number)
		wantCode(t, "a share", err, codes.FailedPrecondition, "session")
		if len(reply.GetShare()) > 0 {
			t.Error("a share came back")
		}
	}
	_, err = l.gated.use(t, w, l.used, 1)
	wantCode(t, "a use that was answered before", err, codes.FailedPrecondition, "session")
	_, err = l.proxied.send(t, w, requestID(), l.proxied.ask(keys.Sign, []byte("m")))
	wantCode(t, "an operation", err, codes.FailedPrecondition, "session")
	if reply, err := l.resend(w); err == nil && bytes.Equal(reply.GetEnvelope(), l.envelope) {
		t.Error("the same request gets the envelope of a session that has ended")
	}
}

// An old copy is restored: nothing happens until it is confirmed. Then the sessions that it knew as live have ended at
// every grade, shares don't come back, nothing else was revoked, rotated or delivered, and the broker works.
func TestAbuse_A32_a_restore_is_confirmed(t *testing.T) {
	r := restoring(t)
	l := deliverAll(t, r)
	pinned := logKey(t, r)
	r.Stop()
	old := copyOf(t, r.Config.DataDir)
	kept := outsideOf(t, r)
	r.Run()
	r.Put("demo/open", "standard", "newer")
	late, _, err := r.RawWith("workload", l.w.Key).Deliver(t.Context(), "demo/open")
	if err != nil {
		t.Fatal(err)
	}
	l.late = late.GetSessionId()
	pinning := func(c *client.Config) { c.LogKey = pinned }
	knows := r.Client("workload", pinning)
	if _, err := knows.Get(t.Context(), "demo/open"); err != nil {
		t.Fatal(err)
	}
	r.Stop()
	newest := outsideOf(t, r)
	was, err := pinned.Open(newest)
	if err != nil {
		t.Fatal(err)
	}
	restore(t, old, r.Config.DataDir)
	refusesToStart(t, r, audit.ErrRollback)
	found := looked(t, r, server.RestoreBehind)
	if found.Live != 3 || found.Next != 2 || found.Lost != was.Size-found.Size || found.Lost < 4 {
		t.Errorf("%+v, where %d entries were signed", found, was.Size)
	}
	refusesToStart(t, r, audit.ErrRollback)
	confirm(t, r, 2)
	r.Run()
	nothingElse(t, r, found.Size)
	l.haveEnded(t, r)

	again := r.RawWith("workload", l.w.Key)
	fresh := deliverGated(t, again, "demo/gated", "s3cret", 2)
	if reply, err := fresh.use(t, again, requestID(), 1); err != nil || fresh.opens(1, reply) != nil {
		t.Errorf("a new gated session: %v", err)
	}
	if _, _, err := again.Deliver(t.Context(), "demo/open"); err != nil {
		t.Error(err)
	}
	clients(t, r, knows, pinning)
	record(t, r, kept, newest, found.Size)
	told(t, proven(t, r, l.open, nil), sessionproof.Options{Key: logKey(t, r)})
	r.Check()
}

// nothingElse demands that a restore wrote one event of itself, at its place, and the end of sessions.
func nothingElse(t *testing.T, r *rig.Rig, size int64) {
	t.Helper()
	events := r.Events()[size:]
	for i, e := range events {
		switch b := e.Body.(type) {
		case event.Restored:
			if i != 0 {
				t.Errorf("event %d after the copy begins the incarnation", i)
			}
		case event.SessionsRevoked:
			if len(b.Sessions) != 3 {
				t.Errorf("%d sessions were ended", len(b.Sessions))
			}
		case event.InstanceBound, event.TrustObserved, event.OperationPermitted: // of the auditor who asks
		default:
			t.Errorf("%s was written by a restore: %+v", b.EventType(), b)
		}
	}
	if _, ok := events[0].Body.(event.Restored); !ok {
		t.Errorf("the first event after the copy is %s", events[0].Body.EventType())
	}
}

// clients demands that whoever pins the old log's key takes nothing, and hears why.
func clients(t *testing.T, r *rig.Rig, knows *client.Client, pinning func(*client.Config)) {
	t.Helper()
	for name, c := range map[string]*client.Client{"a client that kept a checkpoint": knows, "a client that pins the old key": r.Client("workload", pinning)} {
		_, err := c.Get(t.Context(), "demo/open")
		if !errors.Is(err, client.ErrVerification) || !strings.Contains(err.Error(), "restored from a backup") || !strings.Contains(err.Error(), "log.pub") {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := r.Client("workload", func(c *client.Config) { c.LogKey = logKey(t, r) })
	s, err := c.Get(t.Context(), "demo/open")
	if err != nil {
		t.Fatal(err)
	}
	if at, err := s.VerifyInclusion(t.Context()); err != nil || at.Origin != proofs.Incarnation(r.Config.Log.Origin, 2) {
		t.Errorf("with the new key: %+v, %v", at, err)
	}
}

// record demands that the new log verifies, holds what the copy held, and hides no loss.
func record(t *testing.T, r *rig.Rig, kept, newest []byte, size int64) {
	t.Helper()
	x := exported(t, r)
	dir := x.write(t)
	report, err := audit.Verify(t.Context(), dir, x.Key, audit.VerifyOptions{Against: kept})
	if err != nil || len(report.Restores) != 1 || report.Restores[0].Index != size {
		t.Errorf("%v, %+v", err, report)
	}
	if f := fault(t, dir, x.Key, audit.VerifyOptions{Against: outsideOf(t, r)}); f != nil {
		t.Error(f)
	}
	if f := fault(t, dir, x.Key, audit.VerifyOptions{Against: newest}); f == nil || f.Index != size || !strings.Contains(f.What, "restored here") {
		t.Errorf("against a checkpoint over what is lost: %v", f)
	}
}

// A second rollback is caught as the first one was, also one to before the first restore; and a broker on the newest
// data goes on.
func TestAbuse_A49_rolled_back_again(t *testing.T) {
	r, first := rolled(t, true)
	restore(t, first, r.Config.DataDir)
	confirm(t, r, 2)
	r.Run()
	r.Put("demo/hello", "standard", "three")
	r.Stop()
	second := copyOf(t, r.Config.DataDir)
	r.Run()
	r.Put("demo/hello", "standard", "four")
	r.Stop()
	newest := copyOf(t, r.Config.DataDir)
	for _, old := range []string{second, first} {
		restore(t, old, r.Config.DataDir)
		refusesToStart(t, r, audit.ErrRollback)
		if found := looked(t, r, server.RestoreBehind); found.Next != 3 || found.Lost < 1 {
			t.Errorf("%+v", found)
		}
		refusesToStart(t, r, audit.ErrRollback)
	}
	restore(t, newest, r.Config.DataDir)
	r.Run()
	r.Stop()
	looked(t, r, server.RestoreWhole)

	// From before the first restore, with the key of the first log and without that of the second.
	signed := outsideOf(t, r)
	restore(t, first, r.Config.DataDir)
	confirm(t, r, 3)
	r.Run()
	x := exported(t, r)
	report, err := audit.Verify(t.Context(), x.write(t), x.Key, audit.VerifyOptions{})
	if err != nil || len(report.Restores) != 1 || report.Restores[0].Incarnation != 3 || report.Restores[0].KnownOrigin != proofs.Incarnation(r.Config.Log.Origin, 2) {
		t.Errorf("%v, %+v", err, report)
	}
	if f := fault(t, x.write(t), x.Key, audit.VerifyOptions{Against: signed}); f == nil {
		t.Error("a checkpoint of the second log is passed over")
	}
	r.Check()
}

// Two brokers from one snapshot, and one of them is confirmed: the other one does not start, nor is it confirmed to the
// same number.
func TestAbuse_A49_two_copies_one_confirmed(t *testing.T) {
	r, old := rolled(t, true)
	restore(t, old, r.Config.DataDir)
	twin := r.Twin(copyOf(t, r.Config.DataDir))
	confirm(t, r, 2)
	refusesToStart(t, twin, audit.ErrRollback)
	found := looked(t, twin, server.RestoreBehind)
	if k := found.Known[1]; found.Next != 3 || k.Incarnation != 2 || k.Verified || k.Held {
		t.Errorf("%+v", found)
	}
	r.Run()
	r.Put("demo/hello", "standard", "three")
	refusesToStart(t, twin, audit.ErrRollback)

	// Whoever confirms the other one as well ends the first: it signs nothing more.
	confirm(t, twin, 3)
	r.Put("demo/hello", "standard", "four")
	eventually(t, "the first finds out", func() bool {
		for _, c := range r.Server.Broker.Health(t.Context()) {
			if c.Name == "log" && errors.Is(c.Err, audit.ErrRollback) {
				return true
			}
		}
		return false
	})
}

// The database alone came back, beside a log and a key that are newer; and a checkpoint that somebody kept shows what no
// file here does.
func TestAbuse_A49_mixed_and_kept(t *testing.T) {
	r, old := rolled(t, false)
	r.Run()
	kept, err := logKey(t, r).Open(exported(t, r).Checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	signed := exported(t, r).Checkpoint
	r.Stop()
	restore(t, old, r.Config.DataDir)
	opts := server.RestoreOptions{Confirm: true}
	if _, err := server.RestoreStopped(t.Context(), r.Config, opts); !errors.Is(err, server.ErrWhole) {
		t.Errorf("with nothing that shows a loss: %v", err)
	}
	r.Run() // in silence: it goes on in another history, and past what was lost
	for range kept.Size {
		r.Put("demo/hello", "standard", "other")
	}
	r.Stop()
	opts.Checkpoint = signed
	done, err := server.RestoreStopped(t.Context(), r.Config, opts)
	if err != nil || done.State != server.RestoreDone || done.Lost != 1 || done.Size <= kept.Size {
		t.Fatalf("%+v, %v", done, err)
	}
	r.Run()
	r.Put("demo/hello", "standard", "three")
	r.Stop()
	for _, name := range []string{"ledger.db-wal", "ledger.db-shm"} {
		_ = os.Remove(filepath.Join(r.Config.DataDir, name))
	}
	only(t, old, r.Config.DataDir, "ledger.db")
	refusesToStart(t, r, server.ErrLogKey)
	r.Config.Log.CheckpointCopy = filepath.Join(filepath.Dir(r.Config.DataDir), "outside") // from now on
	confirm(t, r, 3)
	r.Run()
	x := exported(t, r)
	if f := fault(t, x.write(t), x.Key, audit.VerifyOptions{Against: outsideOf(t, r)}); f != nil {
		t.Error(f)
	}
	r.Check()
}

// Without a copy outside only a witness knows what was signed: the checkpoint that it cosigned, which somebody kept, is
// what the restore is begun by. The witness takes the new log as a new one.
func TestAbuse_A49_witnessed_restore(t *testing.T) {
	w := xtest.Start(t, "witness.example/w1")
	r := rig.Start(t, rig.Config{Edit: func(c *config.Config) {
		c.Log.Witnesses = config.Witnesses{Quorum: 1, Every: 50 * time.Millisecond, List: []config.Witness{{Key: w.Key, URL: w.URL}}}
	}})
	witnessed := func() []byte {
		raw, err := os.ReadFile(filepath.Join(r.Config.DataDir, "log", "witnessed"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return raw
	}
	w.Know(t, r.Server.LogKey())
	r.Put("demo/hello", "standard", "one")
	r.Stop()
	old := copyOf(t, r.Config.DataDir)
	r.Run()
	r.Put("demo/hello", "standard", "two")
	first := logKey(t, r)
	cosigned := func(key proofs.Key, size int64) func() bool {
		return func() bool {
			at, sigs, err := key.OpenCosigned(witnessed(), nil)
			return err == nil && len(sigs) == 1 && at.Size >= size
		}
	}
	events := r.Events()
	eventually(t, "the newest checkpoint is cosigned", cosigned(first, int64(len(events))))
	kept := witnessed()
	r.Stop()
	restore(t, old, r.Config.DataDir)
	if _, err := server.RestoreStopped(t.Context(), r.Config, server.RestoreOptions{Confirm: true}); !errors.Is(err, server.ErrWhole) {
		t.Errorf("with nothing here that shows a loss: %v", err)
	}
	done, err := server.RestoreStopped(t.Context(), r.Config, server.RestoreOptions{Confirm: true, Checkpoint: kept})
	if err != nil || done.State != server.RestoreDone || done.Lost < 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	w.Know(t, first.String(), done.LogKey)
	r.Run()
	r.Put("demo/hello", "standard", "three")
	eventually(t, "the new log is cosigned", cosigned(logKey(t, r), done.Size+2))
	known := r.Events()[done.Size].Body.(event.Restored).Known
	if _, sigs, err := first.OpenCosigned(known.Signed, nil); err != nil || len(sigs) != 1 || known.Size < int64(len(events)) {
		t.Errorf("the event carries %d entries, %d cosignatures, %v", known.Size, len(sigs), err)
	}
	x := exported(t, r)
	if f := fault(t, x.write(t), x.Key, audit.VerifyOptions{}); f != nil {
		t.Error(f)
	}
	r.Check()
}
