package abuse

import (
	"context"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/broker"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/test/rig"
)

// overtaken is a store that refuses the first erasure, as if somebody had been there first.
type overtaken struct {
	ledger.Store
	refused atomic.Bool
}

func (s *overtaken) Append(ctx context.Context, batch []ledger.Record) ([]ledger.Outcome, error) {
	if _, ok := batch[0].Event.Body.(event.SubjectErased); ok && len(batch) == 1 && s.refused.CompareAndSwap(false, true) {
		return []ledger.Outcome{{Err: ledger.ErrPrecondition}}, nil
	}
	return s.Store.Append(ctx, batch)
}

// Where a key can't go any more when its turn comes, what lies under later ones stays with it: how a session ended is not
// erased while the session is there, or the state could never be made from the events again.
func TestRetentionStopsWhereItIsOvertaken(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "value")
	s, err := r.Client("workload").Get(t.Context(), "demo/hello")
	if err != nil {
		t.Fatal(err)
	}
	r.Stop()
	r.Run() // the key of the workload is another one from here on
	if _, err := bullav1.NewSessionsClient(r.Client("security").Conn()).RevokeSession(t.Context(), &bullav1.RevokeSessionRequest{Id: s.SessionID, Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	store := new(overtaken)
	a := r.Assemble(rig.Parts{
		Store:     func(under ledger.Store) ledger.Store { store.Store = under; return store },
		Retention: broker.Retention{Age: time.Nanosecond, ExportDir: filepath.Join(t.TempDir(), "exports")},
	})
	if n, err := a.Broker.Retain(t.Context()); err != nil || n != 0 || !store.refused.Load() {
		t.Errorf("%d events went, %v", n, err)
	}
	r.Check()
	if n, err := a.Broker.Retain(t.Context()); err != nil || n == 0 {
		t.Errorf("%d events went the next time: %v", n, err)
	}
	r.Check()
}

// A hold on a secret keeps what was denied as well, and whoever is told what has to stay is on the record, like whoever
// asks for a hold that is there or for the end of one that is not.
func TestAbuse_A09_erasure_tells_on_record(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "value")
	if _, err := r.Client("stranger").Get(t.Context(), "demo/hello"); err == nil {
		t.Fatal("a stranger got it")
	}
	service := bullav1.NewErasuresClient(r.Client("security").Conn())
	hold := &bullav1.HoldRequest{Selector: "secret", Value: "demo/hello", Reason: "case"}
	if _, err := service.PlaceHold(t.Context(), hold); err != nil {
		t.Fatal(err)
	}
	permitted := func(what string, action policy.Action, call func() error) {
		t.Helper()
		before := mark(r)
		if err := call(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if told := of[event.OperationPermitted](after(r, before)); len(told) != 1 || told[0].Decision.Action != string(action) {
			t.Errorf("%s: recorded as %v", what, told)
		}
	}
	erase := &bullav1.EraseRequest{Subject: rig.ID("stranger").String(), Reason: "test"}
	permitted("held", policy.ActionAuditErase, func() error {
		got, err := eraseAs(t, r, "security", erase)
		if err == nil && (len(got.GetBy()) != 0 || len(got.GetKept()) != 1 || !strings.Contains(got.GetKept()[0], "legal hold")) {
			t.Errorf("a denial of a held secret: %v", got)
		}
		return err
	})
	permitted("nothing there", policy.ActionAuditErase, func() error {
		_, err := eraseAs(t, r, "security", &bullav1.EraseRequest{Subject: rig.ID("nobody").String(), Reason: "test"})
		return err
	})
	permitted("a second hold", policy.ActionAuditHold, func() error {
		_, err := service.PlaceHold(t.Context(), hold)
		code(t, err, codes.AlreadyExists, "since")
		return nil
	})
	if _, err := service.ReleaseHold(t.Context(), hold); err != nil {
		t.Fatal(err)
	}
	permitted("no hold", policy.ActionAuditHold, func() error {
		_, err := service.ReleaseHold(t.Context(), hold)
		code(t, err, codes.NotFound, "no hold")
		return nil
	})
	if got, err := eraseAs(t, r, "security", erase); err != nil || len(got.GetBy()) == 0 || len(got.GetKept()) != 0 {
		t.Errorf("%v, %v", got, err)
	}
	r.Check()
}

// slow is a store on which a look at the whole ledger waits at its first step.
type slow struct {
	ledger.Store
	begun chan struct{} // one for each look
	goOn  chan struct{} // closed: they go on
}

func (s *slow) Snapshot(ctx context.Context) (ledger.Snapshot, error) {
	snap, err := s.Store.Snapshot(ctx)
	return slowSnapshot{snap, s}, err
}

type slowSnapshot struct {
	ledger.Snapshot
	s *slow
}

func (v slowSnapshot) Rows(ctx context.Context, kind ledger.Kind, after string, max int) ([]ledger.Row, error) {
	if kind == ledger.KindErasure {
		v.s.begun <- struct{}{}
		select {
		case <-v.s.goOn:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return v.Snapshot.Rows(ctx, kind, after, max)
}

// Looks at the whole ledger do not take all readers of the store: beyond a few the next one is refused, and deliveries go on.
func TestAbuse_A42_checks(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "value")
	store := &slow{begun: make(chan struct{}, 100), goOn: make(chan struct{})}
	r.Assemble(rig.Parts{Store: func(under ledger.Store) ledger.Store { store.Store = under; return store }})
	ended := make(chan error, 12)
	for i := range cap(ended) {
		go func() {
			if i%2 == 0 {
				_, err := eraseAs(t, r, "security", &bullav1.EraseRequest{Subject: rig.ID("nobody").String(), DryRun: true})
				ended <- err
				return
			}
			stream, err := bullav1.NewAuditClient(r.Client("auditor").Conn()).CheckRebuild(t.Context(), &bullav1.CheckRebuildRequest{})
			if err == nil {
				_, err = stream.Recv()
			}
			ended <- err
		}()
	}
	limit, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for range cap(ended) - 2 {
		select {
		case err := <-ended:
			wantCode(t, "one look too many", err, codes.ResourceExhausted, "limit")
		case <-limit.Done():
			t.Fatal("none of the looks was refused")
		}
	}
	if n := len(store.begun); n != 2 {
		t.Errorf("%d looks have begun", n)
	}
	get(t, r.Client("workload"), "demo/hello", "value")
	close(store.goOn)
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// What a shadow counted of a principal goes with its record.
func TestErasureTakesWhatAShadowCounted(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	security := revisionsOf(r, "security")
	archive := r.Archive(func(f map[string]string) {
		f["data/grants.yaml"] = "spiffe://dev.bulla.test/workload:\n  read:\n    demo/standard: true\n    demo/high: true\n    other/: true\n  devices: [\"*\"]\n"
	})
	staged, err := security.Stage(t.Context(), &bullav1.StageRequest{Archive: archive, Only: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := security.StartShadow(t.Context(), &bullav1.StartShadowRequest{Digest: staged.GetRevision().GetDigest(), CpuMilli: 500}); err != nil {
		t.Fatal(err)
	}
	w, who := r.Raw("workload"), rig.ID("workload").String()
	shadow := func() (s *bullav1.Shadow, rows int) {
		t.Helper()
		s, err := security.GetShadow(t.Context(), &bullav1.GetShadowRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range s.GetRows() {
			if row.GetPrincipal() == who {
				rows++
			}
		}
		return s, rows
	}
	eventually(t, "the shadow differs", func() bool {
		reply, _, err := w.Deliver(t.Context(), "demo/a")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bullav1.NewSessionsClient(r.Client("security").Conn()).RevokeSession(t.Context(), &bullav1.RevokeSessionRequest{Id: reply.GetSessionId(), Reason: "test"}); err != nil {
			t.Fatal(err)
		}
		_, rows := shadow()
		return rows > 0
	})
	eventually(t, "the shadow is idle", func() bool { s, _ := shadow(); return s.GetSeen() == s.GetCompared()+s.GetDropped() })
	before, _ := shadow()
	if got, err := eraseAs(t, r, "security", &bullav1.EraseRequest{Subject: who, Reason: "test"}); err != nil || len(got.GetBy()) == 0 {
		t.Fatalf("%v, %v", got, err)
	}
	if s, rows := shadow(); rows != 0 || s.GetOther() == 0 || s.GetDiffered() < before.GetDiffered() {
		t.Errorf("the shadow still tells of it: %v", s)
	}
	r.Check()
}
