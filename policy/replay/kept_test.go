package replay_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/policy/replay"
)

// opened is a report of a candidate that opens something, by the recordings and by the sweep.
func opened(tb testing.TB) replay.Report {
	tb.Helper()
	old := bundle(tb)
	return whatIf(tb, old, bundle(tb, "data/grants.yaml", "", grantStranger),
		recorded(tb, old, 0, delivery("stranger", "demo/a", "standard")), recorded(tb, old, 1, delivery("workload", "demo/a", "standard")))
}

func encoded(tb testing.TB, r replay.Report) []byte {
	tb.Helper()
	text, err := r.Encode()
	if err != nil {
		tb.Fatal(err)
	}
	return text
}

// TestParseReport: what Encode wrote is read, and nothing else is.
func TestParseReport(t *testing.T) {
	t.Parallel()
	r := opened(t)
	text := encoded(t, r)
	again, err := replay.ParseReport(text)
	if err != nil || !bytes.Equal(encoded(t, again), text) {
		t.Fatalf("%v", err)
	}
	if got := again.Opening(); len(got) < 2 || !slices.Equal(got, r.Opening()) ||
		!slices.Contains(got, "DENY→PERMIT  spiffe://dev.bulla.test/stranger  demo/a") ||
		!slices.Contains(got, "sweep: DENY→PERMIT  spiffe://dev.bulla.test/stranger  demo/a (class standard)") {
		t.Errorf("%q", got)
	}
	for name, bad := range map[string]string{
		"nothing": "", "another text": "{}", "space": " " + string(text), "rest": string(text) + "{}", "cut": string(text[:len(text)-1]),
		"unknown key": strings.Replace(string(text), `{"format"`, `{"x":1,"format"`, 1),
		"a key twice": strings.Replace(string(text), `{"format"`, `{"format":"x","format"`, 1),
		"format":      strings.Replace(string(text), replay.ReportFormat, "bulla-whatif/v9", 1),
		"size":        strings.Repeat("x", replay.MaxReport+1),
	} {
		if _, err := replay.ParseReport([]byte(bad)); !errors.Is(err, replay.ErrReport) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestReportWithin: what does not fit is cut from what opens least, and counted; no number of what opens changes.
func TestReportWithin(t *testing.T) {
	t.Parallel()
	r := opened(t)
	group, change := r.Groups[0], r.Sweep.Changes[0]
	r.Groups, r.Sweep.Changes = nil, nil
	for i := range 3000 {
		g, c := group, change
		g.Principal, c.Principal = fmt.Sprint(domain, "g", i), fmt.Sprint(domain, "s", i)
		if i >= 20 {
			g.Transition, c.Transition = replay.PermitDeny, replay.PermitDeny
		}
		r.Groups, r.Sweep.Changes = append(r.Groups, g), append(r.Sweep.Changes, c)
	}
	opens, pairs := r.Opens()
	got, err := r.Within(replay.MaxReport)
	if err != nil {
		t.Fatal(err)
	}
	if text := encoded(t, got); len(text) > replay.MaxReport || len(text) < replay.MaxReport*3/4 {
		t.Errorf("%d bytes are kept", len(text))
	}
	if o, p := got.Opens(); o != opens || p != pairs || len(got.Opening()) != len(r.Opening()) {
		t.Errorf("%d and %d, want %d and %d", o, p, opens, pairs)
	}
	if n := len(got.Groups) + len(got.Sweep.Changes) + got.LeftOut; n != 6000 || got.LeftOutPairs != 0 || len(r.Groups) != 3000 {
		t.Errorf("%d rows with those left out", n)
	}
	small, err := r.Within(8 << 10)
	if _, p := small.Opens(); err != nil || p != pairs || small.LeftOutPairs == 0 {
		t.Errorf("%v, %d pairs, %d of them left out", err, p, small.LeftOutPairs)
	}
	if _, err := r.Within(10); err == nil {
		t.Error("a report of ten bytes")
	}
	if same, err := opened(t).Within(replay.MaxReport); err != nil || same.LeftOut != 0 {
		t.Errorf("a small one: %v, %d", err, same.LeftOut)
	}
}

// FuzzParseReport: what is read as a report encodes to the very bytes.
func FuzzParseReport(f *testing.F) {
	f.Add(encoded(f, opened(f)))
	f.Add([]byte("{}"))
	f.Add([]byte(`{"format":"bulla-whatif/v1"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := replay.ParseReport(text)
		if err != nil {
			return
		}
		if again, err := r.Encode(); err != nil || !bytes.Equal(again, text) {
			t.Errorf("%q became %q, %v", text, again, err)
		}
	})
}
