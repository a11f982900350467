package broker

import (
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// TestExposureUrgency: what can be known outside comes before what was only used, and that before ciphertext.
func TestExposureUrgency(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 29, 3, 0, 0, 0, time.UTC)
	made := func(name string, version, current uint32, ended bool, grade string, used uint32) *exposure {
		e := &exposure{versionKey: versionKey{name, version}, current: current, grades: map[string]struct{}{}}
		b := ledger.Brief{State: session.Confirmed, Grade: grade, Used: used, Issued: event.NewTime(now.Add(-time.Hour)), Expires: event.NewTime(now.Add(time.Hour))}
		if ended {
			b.State = session.Revoked
		}
		e.add(b, now)
		return e
	}
	want := []*exposure{
		made("open", 1, 1, false, "open", 0),
		made("open-ended", 1, 1, true, "open", 0),
		made("gated-used", 1, 1, false, "gated", 2),
		made("rotated", 1, 2, false, "open", 0),
		made("operated", 1, 1, false, "proxied", 3),
		made("gated", 1, 1, false, "gated", 0),
		made("ended", 1, 1, true, "gated", 0),
	}
	todos := []string{todoRotate, todoRotate, todoRotate, todoCheck, todoReview, todoRevoke, todoNothing}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, byUrgency)
	for i, e := range got {
		_, todo, why := e.todo()
		if e != want[i] || todo != todos[i] || why == "" {
			t.Errorf("place %d has %s (%s), want %s (%s)", i, e.secret, todo, want[i].secret, todos[i])
		}
	}
}

// TestUsageSpans: an answer has so many spans at most, and each but the first begins at a full hour or day.
func TestUsageSpans(t *testing.T) {
	t.Parallel()
	since := time.Date(2026, 11, 1, 12, 34, 56, 0, time.UTC)
	for _, window := range []time.Duration{time.Second, time.Hour, 7 * 24 * time.Hour, maxSpans * time.Hour, 400 * 24 * time.Hour} {
		cuts, length := spansOf(since, since.Add(window))
		if len(cuts) > maxSpans+2 || cuts[0] != since || cuts[len(cuts)-1] != since.Add(window) {
			t.Errorf("%s: %d cuts from %s to %s", window, len(cuts), cuts[0], cuts[len(cuts)-1])
		}
		for i, c := range cuts[1 : len(cuts)-1] {
			if c != c.Truncate(length) || !cuts[i].Before(c) {
				t.Errorf("%s: a cut at %s after %s", window, c, cuts[i])
			}
		}
	}
	if cuts, _ := spansOf(since, since.AddDate(20000, 0, 0)); len(cuts) > maxSpans+10 {
		t.Errorf("%d cuts of twenty thousand years", len(cuts))
	}
}

// TestQuoted: what stands in a command is one word to a shell.
func TestQuoted(t *testing.T) {
	t.Parallel()
	for word, want := range map[string]string{
		"demo/database": "demo/database", "spiffe://dev.bulla.test/a": "spiffe://dev.bulla.test/a", "": "''", "a b": "'a b'", "a;rm": "'a;rm'", "a'b": `'a'\''b'`, "$(x)": "'$(x)'",
	} {
		if got := quoted(word); got != want {
			t.Errorf("quoted(%q) = %s, want %s", word, got, want)
		}
	}
}

// However many versions are listed, who else has them is told apart up to a limit of all together.
func TestHoldersAreBounded(t *testing.T) {
	t.Parallel()
	b := &blast{sight: &sight{op: operation{now: time.Now()}}}
	told := 0
	for version := range uint32(maxAllHolders/maxHolders + 2) {
		e := &exposure{versionKey: versionKey{"demo/a", version}, others: map[string]struct{}{}, named: make([]string, maxOthers)}
		for i := range maxHolders {
			b.other(t.Context(), e, ledger.Brief{State: session.Revoked, Principal: strconv.Itoa(i)})
		}
		told += len(e.others)
	}
	if told != maxAllHolders || !b.tooMany {
		t.Errorf("%d holders are remembered, too many: %t", told, b.tooMany)
	}
}
