package ledger

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// FuzzBrief: the quick reading of a session's row is that of the general decoder, or none.
func FuzzBrief(f *testing.F) {
	at := time.Date(2026, 11, 29, 3, 0, 0, 0, time.UTC)
	s := session.Session{
		ID: event.NewID(at), State: session.Confirmed, Principal: "spiffe://dev.bulla.test/a", Device: "dev-x", Secret: "demo/a", Version: 3, Class: "high",
		Grade: "gated", Used: 2, UsedAt: event.NewTime(at), Issued: event.NewTime(at), Expires: event.NewTime(at), Revision: event.Digest{3},
		Place: &event.Place{}, Places: []string{"CH", "AT"}, Reason: `a "reason", {with} [all]`,
	}
	for _, s := range []session.Session{s, {}, {Reason: "plain", Places: []string{"CH"}}} {
		row, err := event.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(row)
	}
	for _, text := range []string{`{}`, `{"used":1,}`, `{"used":01}`, `{"used":1}}`, `{"secret":"a","secret":"b"}`, `{"places":[{"secret":"x"}],"used":1}`, `{"used":[1}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, row []byte) {
		var quick, slow Brief
		if !quick.quick(row) {
			return
		}
		if err := json.Unmarshal(row, &slow); err == nil && quick != slow {
			t.Fatalf("%s: %+v, want %+v", row, quick, slow)
		}
	})
}

// TestBriefIsQuick: the rows that this program writes are read quickly.
func TestBriefIsQuick(t *testing.T) {
	t.Parallel()
	row, err := event.Marshal(session.Session{Principal: "spiffe://dev.bulla.test/a", Secret: "demo/a", Place: &event.Place{Country: "CH"}, Places: []string{"CH", "AT"}, Used: 7})
	if err != nil {
		t.Fatal(err)
	}
	var b Brief
	if !b.quick(row) || b.Used != 7 || b.Secret != "demo/a" {
		t.Errorf("%s: %+v", row, b)
	}
}
