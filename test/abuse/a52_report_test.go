package abuse

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/policy/replay"
	"github.com/bulla-project/bulla/test/rig"
)

// reportOn is a small report about a candidate, with a word of its own.
func reportOn(t *testing.T, candidate, active, word string) []byte {
	t.Helper()
	r := replay.Report{
		Format: replay.ReportFormat, Candidate: candidate, Active: active, Engine: policy.EngineVersion(), Skipped: map[string]uint64{word: 1},
		Groups: []replay.Group{{Transition: replay.DenyPermit, Principal: "spiffe://dev.bulla.test/x", Target: "demo/a", Count: 1}},
		Sweep:  replay.Sweep{Complete: true, Changes: []replay.SweepChange{}},
	}
	text, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A report is kept with the promotion that it is about, and both persons' can be read by those who may read the record.
// One about something else, or against another revision than the active one, is refused before anything is recorded.
func TestAbuse_A52_reports_are_kept(t *testing.T) {
	t.Parallel()
	private, public := bundleKey(t)
	r := twoPersons(t, private, public, nil)
	archive := variant(t, r, "new")
	digest := event.Digest(policy.ArchiveDigest(archive)).String()
	security, bob := revisionsOf(r, "security"), revisionsOf(r, "bob")
	if _, err := security.Stage(t.Context(), &bullav1.StageRequest{Archive: archive, Signature: signedBundle(t, archive, private)}); err != nil {
		t.Fatal(err)
	}
	active := of[event.RevisionActivated](r.Events())[0].Digest.String()
	hers, his := reportOn(t, digest, active, "hers"), reportOn(t, digest, active, "his")
	sum := sha256.Sum256(hers)
	var narrowed [2][]byte
	for i := range narrowed {
		part, err := replay.ParseReport(hers)
		if err != nil {
			t.Fatal(err)
		}
		if part.Principal = "spiffe://dev.bulla.test/x"; i == 1 {
			part.Principal, part.Secret = "", "demo/a"
		}
		if narrowed[i], err = part.Encode(); err != nil {
			t.Fatal(err)
		}
	}
	for name, in := range map[string]*bullav1.PromoteRequest{
		"nothing":                {},
		"about one principal":    {Report: narrowed[0]},
		"about one secret":       {Report: narrowed[1]},
		"no report":              {Report: []byte("{}")},
		"too large":              {Report: bytes.Repeat([]byte("x"), replay.MaxReport+1)},
		"not canonical":          {Report: append([]byte(" "), hers...)},
		"about another":          {Report: reportOn(t, active, active, "")},
		"against another":        {Report: reportOn(t, digest, digest, "")},
		"with another digest":    {Report: hers, ReportDigest: make([]byte, 31)},
		"with a wrong digest":    {Report: his, ReportDigest: sum[:]},
		"with a reason for none": {Report: hers, NoReport: "no time"},
		"a digest and a reason":  {ReportDigest: sum[:], NoReport: "no time"},
		"a long reason":          {NoReport: strings.Repeat("x", 1<<12)},
	} {
		in.Digest = digest
		_, err := security.Promote(t.Context(), in)
		code(t, err, codes.InvalidArgument, "report")
		t.Log(name, err)
	}
	if n := len(of[event.RevisionProposed](r.Events())); n != 0 {
		t.Fatalf("%d proposals", n)
	}
	reply, err := security.Promote(t.Context(), &bullav1.PromoteRequest{Digest: digest, Report: hers, ReportDigest: sum[:]})
	if err != nil || reply.GetOutcome() != "proposed" || !reply.GetProposal().GetReportKept() || reply.GetProposal().GetReportDigest() != hex.EncodeToString(sum[:]) {
		t.Fatalf("%v, %v", reply, err)
	}
	want := func(texts ...[]byte) {
		t.Helper()
		got, err := revisionsOf(r, "auditor").GetReports(t.Context(), &bullav1.GetReportsRequest{Digest: digest})
		if err != nil || len(got.GetReports()) != len(texts) {
			t.Fatalf("%v, %v; want %d reports", got, err, len(texts))
		}
		for i, k := range got.GetReports() {
			if s := sha256.Sum256(texts[i]); !bytes.Equal(k.GetReport(), texts[i]) || k.GetDigest() != hex.EncodeToString(s[:]) || k.GetProposal() != (i == 0) {
				t.Errorf("report %d: %v", i, k)
			}
		}
	}
	want(hers)
	_, err = revisionsOf(r, "operator").GetReports(t.Context(), &bullav1.GetReportsRequest{Digest: digest}) // it may show policies
	code(t, err, codes.PermissionDenied, "")
	// His what-if is of other recordings, and counts all the same.
	reply, err = bob.Promote(t.Context(), &bullav1.PromoteRequest{Digest: digest, Report: his})
	if err != nil || reply.GetOutcome() != "active" || !reply.GetRevision().GetReportKept() {
		t.Fatalf("%v, %v", reply, err)
	}
	want(hers, his)
	if a := of[event.RevisionActivated](r.Events())[1]; a.Report != sha256.Sum256(his) || a.NoReport != "" {
		t.Errorf("%+v", a)
	}
	r.Check()
}

// Who may not promote has no report read, however much there is in it, and learns nothing of what is wrong with it.
func TestAbuse_A42_reports_of_strangers(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	digest := strings.Repeat("0", 63) + "1"
	for name, report := range map[string][]byte{
		"no report": []byte("{}"),
		"wide":      []byte(`{"groups":[` + strings.Repeat("{},", replay.MaxReport/3-10) + `{}]}`),
	} {
		before := len(of[event.DecisionDenied](r.Events()))
		_, err := revisionsOf(r, "stranger").Promote(t.Context(), &bullav1.PromoteRequest{Digest: digest, Report: report})
		code(t, err, codes.PermissionDenied, "")
		if n := len(of[event.DecisionDenied](r.Events())) - before; n != 1 {
			t.Errorf("%s: %d denials are recorded", name, n)
		}
	}
}

// A second person without a report relies on the first one's, which can be found from what is active.
func TestAbuse_A52_the_first_report_will_do(t *testing.T) {
	t.Parallel()
	private, public := bundleKey(t)
	r := twoPersons(t, private, public, nil)
	archive := variant(t, r, "new")
	digest := event.Digest(policy.ArchiveDigest(archive)).String()
	security, bob := revisionsOf(r, "security"), revisionsOf(r, "bob")
	if _, err := security.Stage(t.Context(), &bullav1.StageRequest{Archive: archive, Signature: signedBundle(t, archive, private)}); err != nil {
		t.Fatal(err)
	}
	hers := reportOn(t, digest, of[event.RevisionActivated](r.Events())[0].Digest.String(), "hers")
	if _, err := security.Promote(t.Context(), &bullav1.PromoteRequest{Digest: digest, Report: hers}); err != nil {
		t.Fatal(err)
	}
	reply, err := bob.Promote(t.Context(), &bullav1.PromoteRequest{Digest: digest, NoReport: "hers will do"})
	sum := sha256.Sum256(hers)
	if v := reply.GetRevision(); err != nil || !v.GetReportKept() || v.GetReportDigest() != hex.EncodeToString(sum[:]) || v.GetNoReport() != "hers will do" {
		t.Fatalf("%v, %v", reply, err)
	}
	got, err := security.GetReports(t.Context(), &bullav1.GetReportsRequest{Digest: digest})
	if err != nil || len(got.GetReports()) != 1 || !got.GetReports()[0].GetProposal() || !bytes.Equal(got.GetReports()[0].GetReport(), hers) {
		t.Errorf("%v, %v", got, err)
	}
	r.Check()
}

// Who makes no report says why, and the reason is on the record of both.
func TestAbuse_A52_no_report_needs_a_reason(t *testing.T) {
	t.Parallel()
	private, public := bundleKey(t)
	r := twoPersons(t, private, public, nil)
	archive := variant(t, r, "new")
	digest := event.Digest(policy.ArchiveDigest(archive)).String()
	security, bob := revisionsOf(r, "security"), revisionsOf(r, "bob")
	if _, err := security.Stage(t.Context(), &bullav1.StageRequest{Archive: archive, Signature: signedBundle(t, archive, private)}); err != nil {
		t.Fatal(err)
	}
	reply, err := security.Promote(t.Context(), &bullav1.PromoteRequest{Digest: digest, NoReport: "incident 7"})
	if err != nil || reply.GetProposal().GetNoReport() != "incident 7" || reply.GetProposal().GetReportKept() {
		t.Fatalf("%v, %v", reply, err)
	}
	reply, err = bob.Promote(t.Context(), &bullav1.PromoteRequest{Digest: digest, NoReport: "as she says"})
	if err != nil || reply.GetOutcome() != "active" || reply.GetRevision().GetNoReport() != "as she says" {
		t.Fatalf("%v, %v", reply, err)
	}
	got, err := security.GetReports(t.Context(), &bullav1.GetReportsRequest{Digest: digest})
	if err != nil || len(got.GetReports()) != 0 {
		t.Errorf("%v, %v", got, err)
	}
	if p := of[event.RevisionProposed](r.Events())[0]; p.NoReport != "incident 7" {
		t.Errorf("%+v", p)
	}
	r.Check()
}
