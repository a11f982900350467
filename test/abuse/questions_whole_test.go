package abuse

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/ledger/storetest"
	"github.com/bulla-project/bulla/test/rig"
)

// blastOf asks how far a loss reaches.
func blastOf(t *testing.T, service bullav1.QuestionsClient, about *bullav1.About) *bullav1.BlastRadius {
	t.Helper()
	stream, err := service.BlastRadius(t.Context(), &bullav1.BlastRadiusRequest{About: about})
	for err == nil {
		var reply *bullav1.BlastRadiusReply
		if reply, err = stream.Recv(); err == nil && reply.GetAnswer() != nil {
			return reply.GetAnswer()
		}
	}
	t.Fatal(err)
	return nil
}

// commitDelivery writes a delivery into the ledger.
func commitDelivery(t *testing.T, a *rig.Assembled, principal, device string) {
	t.Helper()
	c := storetest.Issue(time.Now(), time.Hour, 0)
	body := c.Event.Body.(event.SessionIssued)
	body.Principal, body.Secret, body.Device = principal, "demo/a", device
	c.Event.Subject, c.Event.Body = principal, body
	if _, err := a.Ledger.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

// A principal is not somebody else because a delivery of its own lies outside of the time that is asked about.
func TestBlastRadiusOthersAreOthers(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	w := r.Client("workload")
	get(t, w, "demo/a", "a")
	since := time.Now()
	get(t, w, "demo/a", "a")
	service := bullav1.NewQuestionsClient(r.Client("auditor").Conn())
	about := &bullav1.About{Principal: rig.ID("workload").String(), Since: timestamppb.New(since)}
	found := blastOf(t, service, about).GetExposures()
	if len(found) != 1 || found[0].GetDeliveries() != 1 || found[0].GetOthers() != 0 || found[0].GetOthersLive() != 0 || len(found[0].GetOtherPrincipals()) != 0 {
		t.Errorf("%v", found)
	}
}

// Who may not see sessions and devices is not told who got it and where, and is told that something is missing; so is who
// asks about more principals than are told apart.
func TestAbuse_A09_blast_radius_names(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{Policy: func(files map[string]string) {
		replaceIn(t, files, "data/roles.yaml", "auditor:\n  - secret.show\n  - secret.list\n  - session.list\n  - session.show\n  - device.list\n  - device.show\n", "auditor:\n  - secret.show\n")
	}})
	r.Put("demo/a", "standard", "a")
	a := r.Assemble(rig.Parts{})
	device := "dev-" + strings.Repeat("a", 52)
	commitDelivery(t, a, rig.ID("workload").String(), device)
	about := &bullav1.About{Secret: "demo/a"}
	blind, sees := bullav1.NewQuestionsClient(r.Client("auditor").Conn()), bullav1.NewQuestionsClient(r.Client("security").Conn())
	if got := blastOf(t, blind, about); len(got.GetPrincipals()) != 0 || len(got.GetDevices()) != 0 || !got.GetIncomplete() || !strings.Contains(fmt.Sprint(got.GetNotes()), "2 principals and devices are left out") {
		t.Errorf("who may not see them is told %v", got)
	}
	if got := blastOf(t, sees, about); len(got.GetPrincipals()) != 1 || len(got.GetDevices()) != 1 || got.GetIncomplete() {
		t.Errorf("who may see them is told %v", got)
	}
	for i := range 100 {
		commitDelivery(t, a, rig.ID(fmt.Sprint("many-", i)).String(), "")
	}
	if got := blastOf(t, sees, about); got.GetDeliveries() != 101 || len(got.GetPrincipals()) != 100 || !got.GetIncomplete() {
		t.Errorf("of 101 principals %d are told, incomplete: %t", len(got.GetPrincipals()), got.GetIncomplete())
	}
	r.CheckRows()
}

// A refusal that was decided by a revision and came to the record after the next one is that revision's, once.
func TestQueryByRevisionHasLateRefusals(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	a := r.Assemble(rig.Parts{})
	first, _, err := a.Ledger.ActiveRevision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	who := rig.ID("stranger").String()
	denied := func() {
		t.Helper()
		body := event.DecisionDenied{Principal: who, Decision: event.Decision{Action: "deliver", Effect: "DENY", Revision: first.Digest, Sequence: first.Sequence}}
		if _, err := a.Ledger.Commit(t.Context(), ledger.Commit{Event: event.New(time.Now(), who, body)}); err != nil {
			t.Fatal(err)
		}
	}
	security := bullav1.NewQuestionsClient(r.Client("security").Conn())
	asked := func(what string, want int) {
		t.Helper()
		found, err := security.Query(t.Context(), &bullav1.QueryRequest{About: &bullav1.About{Revision: first.Digest.String()}, Outcome: "deny"})
		if err != nil || len(found.GetFindings()) != want {
			t.Errorf("%s: %v, %v; want %d", what, found.GetFindings(), err, want)
		}
		if got := blastOf(t, security, &bullav1.About{Revision: first.Digest.String()}); got.GetDenials() != uint64(want) {
			t.Errorf("%s: %d refusals, want %d", what, got.GetDenials(), want)
		}
	}
	denied()
	asked("while it decides", 1)
	r.Push(func(f map[string]string) { f["manifest.yaml"] += "# another\n" })
	denied() // decided before, and committed now
	asked("after the next one", 2)
	r.Push(func(map[string]string) {})
	if now, _, err := a.Ledger.ActiveRevision(t.Context()); err != nil || now.Digest != first.Digest {
		t.Fatalf("the first one is not back: %v", err)
	}
	denied()
	asked("once it is back", 3)
}

// A page is never larger than its reader takes, however long the reasons are.
func TestAbuse_A55_pages(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	a := r.Assemble(rig.Parts{})
	const denials = 1050
	who := rig.ID("stranger").String()
	reasons := `{"reasons":[` + strings.TrimSuffix(strings.Repeat(`"`+strings.Repeat("r", 256)+`",`, 32), ",") + `]}`
	for range denials {
		denied := event.DecisionDenied{Principal: who, Decision: event.Decision{Action: "deliver", Effect: "DENY", Result: []byte(reasons)}}
		if _, err := a.Ledger.Commit(t.Context(), ledger.Commit{Event: event.New(time.Now(), who, denied)}); err != nil {
			t.Fatal(err)
		}
	}
	service := bullav1.NewQuestionsClient(r.Client("security").Conn())
	in := &bullav1.QueryRequest{About: &bullav1.About{Principal: who}, Limit: 1000}
	seen := map[int64]bool{}
	for {
		page, err := service.Query(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range page.GetFindings() {
			if seen[f.GetIndex()] {
				t.Errorf("event %d is there twice", f.GetIndex())
			}
			seen[f.GetIndex()] = true
		}
		if in.PageToken = page.GetNext(); in.GetPageToken() == "" {
			break
		}
	}
	if len(seen) != denials {
		t.Errorf("%d of %d denials were told", len(seen), denials)
	}
}
