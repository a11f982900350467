package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy/replay"
)

// hostile is text as somebody would choose it who wants to play with a terminal.
const hostile = "\x1b]0;x\x07\u202e\u009b31m\rover\n\tnext"

// TestAbuse_A54_EveryAnswer gives hostile text to everything that prints what came from a broker.
func TestAbuse_A54_EveryAnswer(t *testing.T) {
	s := &bullav1.Session{
		Id: "0193f2f0-5c1e-7a40-9a57-0d2f6f1c5a11", State: hostile, Principal: "spiffe://" + hostile + "/" + strings.Repeat(hostile, 9),
		Secret: hostile, Reason: hostile, Suite: hostile, Instance: hostile, IssuedAt: timestamppb.Now(),
	}
	answers := map[string]func(*app) error{
		"session": func(a *app) error { return a.printSession(s) },
		"sessions": func(a *app) error {
			return sessionTable(a.stdout, []*bullav1.Session{s})
		},
		"secret": func(a *app) error {
			return secretText(a.stdout, &bullav1.SecretMetadata{Name: hostile, Class: hostile, Versions: []*bullav1.SecretVersion{{Stage: hostile, Owner: hostile}}})
		},
		"devices": func(a *app) error {
			return a.printDevices(&bullav1.ListDevicesReply{Devices: []*bullav1.Device{{Id: hostile, Kind: hostile, Reason: hostile}}, Next: hostile})
		},
		"revisions": func(a *app) error {
			return a.printRevisions(&bullav1.ListRevisionsReply{Revisions: []*bullav1.Revision{{Digest: hostile, Note: hostile, By: hostile}}}, nil)
		},
		"doctor": func(a *app) error {
			return findingText(a.stdout, []finding{{Name: hostile, Detail: hostile, Hint: hostile}})
		},
		"event": func(a *app) error {
			encoded, err := event.New(timestamppb.Now().AsTime(), "spiffe://a/"+hostile, event.DeviceRevoked{Device: hostile, Reason: hostile}).Encode()
			if err != nil {
				return err
			}
			return a.printEvent(&bullav1.AuditEvent{Event: encoded})
		},
		"error": func(a *app) error {
			a.finish(&client.Refusal{Text: hostile, Reasons: []string{hostile}, Requires: json.RawMessage(`"` + "\u202e\u009b" + `"`)})
			return nil
		},
		"warning": func(a *app) error { a.warn("%s", hostile); return nil },
	}
	escapes(t, answers)
}

// TestAbuse_A54_AnswersToQuestions does the same with what auditors and responders are told.
func TestAbuse_A54_AnswersToQuestions(t *testing.T) {
	foreign := hostile
	escapes(t, map[string]func(*app) error{
		"erased": func(a *app) error {
			return a.print(eraseAnswer{Subject: hostile, Kept: []string{hostile}}, func(w io.Writer) error {
				return printErased(w, eraseAnswer{Subject: hostile, Kept: []string{hostile}})
			})
		},
		"query": func(a *app) error {
			return a.printQuery([][]string{findingRow(&bullav1.Finding{Outcome: hostile, Principal: hostile, Secret: hostile, Grade: hostile, State: hostile})},
				queryEnd{Next: &foreign, Notes: []string{hostile}}, nil)
		},
		"blast radius": func(a *app) error {
			b := &bullav1.BlastRadius{
				Exposures: []*bullav1.Exposure{{Todo: hostile, Secret: hostile, Grades: []string{hostile}}}, Notes: []string{hostile},
				Steps: []*bullav1.Step{{Command: hostile, Why: hostile}},
			}
			return a.print(newBlastJSON(b), func(w io.Writer) error { return printBlast(w, b) })
		},
		"usage": func(a *app) error {
			u := &bullav1.SecretUsage{Name: hostile, LastPrincipal: hostile, Notes: []string{hostile}}
			return a.print(newUsageJSON(u), func(w io.Writer) error { return printUsage(w, u) })
		},
	})
}

// escapes fails where an answer has something in it that a terminal would obey.
func escapes(t *testing.T, answers map[string]func(*app) error) {
	t.Helper()
	for name, answer := range answers {
		for _, output := range []string{outputText, outputJSON} {
			var out bytes.Buffer
			if err := answer(&app{stdout: &out, stderr: &out, output: output}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if out.Len() == 0 {
				t.Errorf("%s: nothing was printed", name)
			}
			text := strings.ReplaceAll(out.String(), "\nnext:\n", "") // which is ours
			for _, bad := range []string{"\x1b", "\x07", "\u202e", "\u009b", "\r", "\t", "\nover", "\nnext"} {
				if strings.Contains(text, bad) {
					t.Errorf("%s as %s: %q in %q", name, output, bad, out.String())
				}
			}
		}
	}
}

// TestPrintErased: what was erased before something came between is not called nothing.
func TestPrintErased(t *testing.T) {
	for want, answer := range map[string]eraseAnswer{
		"NOTHING was erased: it goes as a whole, or stays":                              {Kept: []string{"why"}},
		"erased 3 events, from 1 to 9, with 1 sessions, under 1 keys, but not the rest": {Erased: true, Events: 3, First: 1, Last: 9, Sessions: 1, Keys: 1, Kept: []string{"why"}},
	} {
		var out bytes.Buffer
		if err := printErased(&out, answer); err != nil || out.String() != "has to stay: why\n"+want+"\n" {
			t.Errorf("got %q, %v, want %q", out.String(), err, want)
		}
	}
}

// TestQueryGoesOnWithTheSameTime: the next page is asked for with the time of this one, however it was given.
func TestQueryGoesOnWithTheSameTime(t *testing.T) {
	about, err := (&aboutFlags{since: "7d", until: "90m"}).request(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	next := "token"
	if err := (&app{stdout: &out, output: outputText}).printQuery(nil, queryEnd{Next: &next}, about); err != nil {
		t.Fatal(err)
	}
	var again aboutFlags
	if _, hint, ok := strings.Cut(out.String(), "go on with "); !ok {
		t.Fatalf("%q", out.String())
	} else if _, err := fmt.Sscanf(hint, "--since %s --until %s --page token", &again.since, &again.until); err != nil {
		t.Fatalf("%q: %v", hint, err)
	}
	same, err := again.request(time.Now().Add(time.Hour))
	if err != nil || !proto.Equal(about, same) {
		t.Errorf("%v becomes %v: %v", about, same, err)
	}
}

// TestTablesFit gives long values to the tables; only devices are wider, since their ids are needed whole.
func TestTablesFit(t *testing.T) {
	long := strings.Repeat("x", 255)
	s := &bullav1.Session{Id: "0193f2f0-5c1e-7a40-9a57-0d2f6f1c5a11", State: "unconfirmed", Principal: "spiffe://a.b/" + long, Secret: long, Version: 4294967295}
	digest := strings.Repeat("0", 64)
	device := &bullav1.Device{Id: "tpm-" + strings.Repeat("a", 52), RevokedAt: timestamppb.Now(), EnrolledAt: timestamppb.Now()}
	for name, print := range map[string]func(*app) error{
		"sessions": func(a *app) error { return sessionTable(a.stdout, []*bullav1.Session{s}) },
		"secret": func(a *app) error {
			return secretText(a.stdout, &bullav1.SecretMetadata{Name: "x", Class: "high", Versions: []*bullav1.SecretVersion{
				{Version: 4294967295, Stage: "previous", CreatedAt: timestamppb.Now(), Owner: long},
			}})
		},
		"devices": func(a *app) error {
			return a.printDevices(&bullav1.ListDevicesReply{Devices: []*bullav1.Device{device}})
		},
		"revisions": func(a *app) error {
			return a.printRevisions(&bullav1.ListRevisionsReply{Revisions: []*bullav1.Revision{{Digest: digest, Sequence: 1000000, Active: true, ActivatedAt: timestamppb.Now(), Note: long}}}, nil)
		},
		"rounds": func(a *app) error {
			r := client.Round{ID: s.GetId(), Kind: "approval", Requester: s.GetPrincipal(), Secret: long, Version: 4294967295, Approvals: 15, Needed: 16}
			answered := r
			answered.Kind, answered.Answered = "split", "approved"
			return roundTable(a.stdout, [][]string{roundRow(r), roundRow(answered)})
		},
		"holds": func(a *app) error {
			return holdTable(a.stdout, [][]string{{"everything", long, "2026-01-31 12:00", "/" + long, long}})
		},
	} {
		var out bytes.Buffer
		if err := print(&app{stdout: &out}); err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(out.String(), "\n") {
			if n := utf8.RuneCountInString(line); n > 80 {
				t.Errorf("%s: %d columns: %s", name, n, line)
			}
		}
		if (name == "sessions" || name == "rounds") && !strings.Contains(out.String(), s.Id) || name == "devices" && !strings.Contains(out.String(), device.Id) {
			t.Errorf("%s: the id is not whole:\n%s", name, out.String())
		}
	}
}

// TestEveryCommandHasHelp walks the whole tree.
func TestEveryCommandHasHelp(t *testing.T) {
	root := newRootCommand(&app{})
	named := regexp.MustCompile(`(?m)^\s+(-\w, )?--[a-z0-9-]+ \S+ \S.*$`) // a value's name of several words
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || c.Long == "" || c.Example == "" {
			t.Errorf("%s lacks a description or an example", c.CommandPath())
		}
		if !c.HasSubCommands() && c.Args == nil {
			t.Errorf("%s takes any arguments", c.CommandPath())
		}
		before, _, _ := strings.Cut(helpText(c), "\nExamples:")
		_, after, _ := strings.Cut(helpText(c), "\nFlags:")
		for _, line := range strings.Split(before+after, "\n") {
			if n := utf8.RuneCountInString(line); n > 80 && !strings.HasPrefix(line, "  "+c.CommandPath()) {
				t.Errorf("%s: %d columns: %s", c.CommandPath(), n, line)
			}
		}
		if line := named.FindString(c.LocalFlags().FlagUsages()); line != "" {
			t.Errorf("%s: what stands between backquotes in the text of a flag is the name of its value: %s", c.CommandPath(), line)
		}
		for _, s := range c.Commands() {
			walk(s)
		}
	}
	walk(root)
}

// TestAbuse_A54_Reports: whoever wrote a bundle, proposed it or made a report of it has no line of their own in what the
// next person is shown before they agree.
func TestAbuse_A54_Reports(t *testing.T) {
	const forged = "x\nforged"
	change := replay.Change{File: forged, Path: forged, Was: forged, Now: forged}
	cause := replay.Cause{In: forged, File: forged, Text: forged, What: forged, Data: []replay.Change{change}, Risk: []string{forged}}
	report := replay.Report{
		Decisions: 1, From: forged, To: forged, Skipped: map[string]uint64{forged: 1},
		Groups: []replay.Group{{Transition: replay.Inconclusive, Principal: forged, Target: forged, Was: forged, Now: forged, Lacks: []string{forged}, Event: forged, Detail: forged, Cause: cause}},
		Sweep: replay.Sweep{Changes: []replay.SweepChange{{
			Transition: replay.DenyPermit, Principal: forged, Target: forged, Class: forged, Operation: forged, Context: forged, Lacks: []string{forged}, Cause: cause,
		}}},
	}
	proposal := &bullav1.Proposal{By: forged, ReportDigest: forged, NoReport: forged}
	var out bytes.Buffer
	p := &printer{w: &out}
	p.opening(report, forged)
	p.first(first{proposal: proposal, why: "there is none: " + forged}, &report)
	p.first(first{proposal: proposal, report: &report}, &replay.Report{})
	access := replay.Access{Rows: []replay.Reach{{Principal: forged, Secret: forged, Class: forged, Decision: "PERMIT", Context: forged, Cause: forged}}}
	story := []entryJSON{{Event: forged, Kind: forged, What: forged, Details: []string{forged}}}
	if err := errors.Join(p.err, reportText(&out, whatIfAnswer{Report: report, Digest: forged}), accessText(&out, access), storyText(&out, story, 1)); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "forged") {
			t.Errorf("%q stands at the beginning of a line", line)
		}
	}
}

// Reports that were cut are not said to open the same: what is not in them may differ.
func TestFirstReportThatWasCut(t *testing.T) {
	r := replay.Report{Matrix: replay.Matrix{DenyPermit: 2000}, Sweep: replay.Sweep{Changes: []replay.SweepChange{}}}
	for i := range 2000 {
		r.Groups = append(r.Groups, replay.Group{Transition: replay.DenyPermit, Principal: fmt.Sprintf("spiffe://dev.bulla.test/%04d", i), Target: "x", Count: 1})
	}
	mine, err := r.Within(replay.MaxReport)
	if err != nil {
		t.Fatal(err)
	}
	last := &r.Groups[len(r.Groups)-1]
	last.Target = "other"
	theirs, err := r.Within(replay.MaxReport)
	if err != nil {
		t.Fatal(err)
	}
	f := first{proposal: &bullav1.Proposal{}, report: &theirs}
	var out bytes.Buffer
	(&printer{w: &out}).first(f, &mine)
	if text := out.String(); strings.Contains(text, "opens the same") || !strings.Contains(text, "not compared") {
		t.Error(text)
	}
	if answer := (review{report: &mine, first: &f}).json(); answer.First.Why == "" {
		t.Errorf("%+v", answer.First)
	}
	whole := replay.Report{Matrix: replay.Matrix{DenyPermit: 1}, Groups: r.Groups[:1]}
	out.Reset()
	(&printer{w: &out}).first(first{proposal: &bullav1.Proposal{}, report: &whole}, &whole)
	if text := out.String(); !strings.Contains(text, "opens the same 1 rows as theirs") {
		t.Error(text)
	}
}

// TestFindingsStandInColumns: also beside the longest name that there is.
func TestFindingsStandInColumns(t *testing.T) {
	var out bytes.Buffer
	err := findingText(&out, []finding{{Name: "broker: log", OK: true, Detail: "well"}, {Name: "broker: live sessions", Detail: "held", Hint: "decide"}})
	want := "ok      broker: log            well\nFAILED  broker: live sessions  held\n                               decide\n"
	if err != nil || out.String() != want {
		t.Errorf("got %q, %v", out.String(), err)
	}
}
