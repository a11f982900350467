package abuse

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/broker"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// eraseAs asks for an erasure, and returns the report.
func eraseAs(t *testing.T, r *rig.Rig, who string, in *bullav1.EraseRequest) (*bullav1.EraseReply, error) {
	t.Helper()
	stream, err := bullav1.NewErasuresClient(r.Client(who).Conn()).Erase(t.Context(), in)
	for err == nil {
		var reply *bullav1.EraseReply
		if reply, err = stream.Recv(); err == nil && reply.GetReport() {
			return reply, nil
		}
	}
	return nil, err
}

// Nobody erases without the right, while a session is live, or under a hold; nor what the record has to keep.
func TestAbuse_erasure(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "value")
	workload := r.Client("workload")
	s, err := workload.Get(t.Context(), "demo/hello")
	if err != nil {
		t.Fatal(err)
	}
	in := &bullav1.EraseRequest{Subject: rig.ID("workload").String(), Reason: "test"}
	for _, who := range []string{"workload", "operator", "auditor", "stranger"} {
		if _, err := eraseAs(t, r, who, in); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", who, err)
		}
		hold := &bullav1.HoldRequest{Selector: event.HoldEverything, Reason: "test"}
		if _, err := bullav1.NewErasuresClient(r.Client(who).Conn()).PlaceHold(t.Context(), hold); status.Code(err) != codes.PermissionDenied {
			t.Errorf("hold by %s: %v", who, err)
		}
		if _, err := bullav1.NewErasuresClient(r.Client(who).Conn()).ReleaseHold(t.Context(), hold); status.Code(err) != codes.PermissionDenied {
			t.Errorf("release by %s: %v", who, err)
		}
	}
	if got, err := eraseAs(t, r, "security", in); err != nil || len(got.GetKept()) == 0 || len(got.GetBy()) != 0 {
		t.Errorf("live: %v, %v", got, err)
	}
	sessions := bullav1.NewSessionsClient(r.Client("security").Conn())
	before, err := sessions.GetSession(t.Context(), &bullav1.GetSessionRequest{Id: s.SessionID})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sessions.RevokeSession(t.Context(), &bullav1.RevokeSessionRequest{Id: s.SessionID, Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	service := bullav1.NewErasuresClient(r.Client("security").Conn())
	for _, h := range []*bullav1.HoldRequest{
		{Selector: "principal", Value: in.Subject, Reason: "case"}, {Selector: "secret", Value: "demo/hello", Reason: "case"}, {Selector: "everything", Reason: "case"},
	} {
		if _, err := service.PlaceHold(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		if got, err := eraseAs(t, r, "security", in); err != nil || len(got.GetKept()) == 0 || len(got.GetBy()) != 0 {
			t.Errorf("held by %s: %v, %v", h.Selector, got, err)
		}
		if _, err := service.ReleaseHold(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	for _, who := range []string{"security", "operator"} { // administration is not theirs to erase
		got, err := eraseAs(t, r, "security", &bullav1.EraseRequest{Subject: rig.ID(who).String(), Reason: "test"})
		for _, e := range r.Events() {
			if b, ok := e.Body.(event.SubjectErased); ok && len(b.Sessions) > 0 {
				t.Errorf("%s: %v, %v", who, got, err)
			}
		}
	}
	got, err := eraseAs(t, r, "security", in)
	if err != nil || len(got.GetKept()) != 0 || got.GetSessions() != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	after, err := sessions.GetSession(t.Context(), &bullav1.GetSessionRequest{Id: s.SessionID})
	if err != nil || after.GetErased() == 0 || after.GetState() != "revoked" || after.GetPrincipal() != "" || after.GetInstance() != "" {
		t.Errorf("session %v: %v", after, err)
	}
	r.Check()
	if before.GetInstance() == "" {
		t.Fatal("no instance to look for")
	}
	eventually(t, "the instance is in no file", func() bool { return !treeHolds(t, r.Config.DataDir, before.GetInstance()) })
	kept := 0
	for _, e := range r.Events() {
		switch e.Body.(type) {
		case event.Genesis, event.KeyIntroduced, event.RevisionActivated, event.SecretPut, event.HoldPlaced, event.HoldReleased, event.SubjectErased:
			kept++
		}
	}
	if kept < 4+6+1 {
		t.Errorf("%d of the events that have to stay can be read", kept)
	}
	if _, err := r.Client("workload").Get(t.Context(), "demo/hello"); err != nil {
		t.Errorf("the subject comes back: %v", err)
	}
	r.Check()
}

// treeHolds says whether a file below dir has the text in it.
func treeHolds(t *testing.T, dir, text string) bool {
	t.Helper()
	found := false
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if errors.Is(err, os.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
			return nil
		}
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return nil // it went meanwhile
		}
		defer f.Close()
		content, err := io.ReadAll(f)
		found = found || strings.Contains(string(content), text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// Retention erases nothing that was not exported, nothing that is live or held, and names the export.
func TestRetention(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "value")
	s, err := r.Client("workload").Get(t.Context(), "demo/hello")
	if err != nil {
		t.Fatal(err)
	}
	blocked := filepath.Join(t.TempDir(), "blocked")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a := r.Assemble(rig.Parts{Retention: broker.Retention{Age: time.Nanosecond, ExportDir: filepath.Join(blocked, "exports")}})
	sessions := bullav1.NewSessionsClient(r.Client("security").Conn())
	holds := func() bool {
		got, err := sessions.GetSession(t.Context(), &bullav1.GetSessionRequest{Id: s.SessionID})
		if err != nil {
			t.Fatal(err)
		}
		return got.GetErased() == 0
	}
	_, _ = a.Broker.Retain(t.Context())
	if !holds() {
		t.Fatal("a live session was erased")
	}
	if _, err := sessions.RevokeSession(t.Context(), &bullav1.RevokeSessionRequest{Id: s.SessionID, Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	if n, err := a.Broker.Retain(t.Context()); err == nil || n != 0 || !holds() {
		t.Fatalf("%d events went without an export: %v", n, err)
	}
	dir := filepath.Join(t.TempDir(), "exports")
	a = r.Assemble(rig.Parts{Retention: broker.Retention{Age: time.Nanosecond, ExportDir: dir}})
	sessions = bullav1.NewSessionsClient(r.Client("security").Conn())
	service := bullav1.NewErasuresClient(r.Client("security").Conn())
	hold := &bullav1.HoldRequest{Selector: "everything", Reason: "case"}
	if _, err := service.PlaceHold(t.Context(), hold); err != nil {
		t.Fatal(err)
	}
	if n, err := a.Broker.Retain(t.Context()); err != nil || n != 0 || !holds() {
		t.Fatalf("%d events went under a hold: %v", n, err)
	}
	if _, err := service.ReleaseHold(t.Context(), hold); err != nil {
		t.Fatal(err)
	}
	n, err := a.Broker.Retain(t.Context())
	if err != nil || n == 0 || holds() {
		t.Fatalf("%d events went: %v", n, err)
	}
	made, err := os.ReadDir(dir)
	if err != nil || len(made) != 1 {
		t.Fatalf("%v: %v", made, err)
	}
	report, err := audit.Verify(t.Context(), filepath.Join(dir, made[0].Name()), a.Tree.Key(), audit.VerifyOptions{})
	if err != nil || report.Erased != 0 {
		t.Fatalf("%+v: %v", report, err)
	}
	named := 0
	for _, e := range r.Events() {
		if b, ok := e.Body.(event.SubjectErased); ok {
			if b.By != nil || b.Export == nil || b.Export.Manifest != report.ManifestSHA256 || b.Export.Size != report.Size || b.Indexes[len(b.Indexes)-1] >= report.Size {
				t.Errorf("%+v", b.Export)
			}
			named++
		}
	}
	if named == 0 {
		t.Error("no event says so")
	}
	r.Check()
}
