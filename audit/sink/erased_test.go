package sink

import (
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
)

// TestErasedEvents: an event that was erased before it was written has a line in its place, and a pump goes on behind one
// whose id is not told, and from a position whose event was erased since.
func TestErasedEvents(t *testing.T) {
	t.Parallel()
	for name, erased := range map[string]func(event.Event) event.Event{
		"id known": func(e event.Event) event.Event { return event.Event{ID: e.ID} },
		"no id":    func(event.Event) event.Event { return event.Event{} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, m, state := newLog(4), new(memory), filepath.Join(t.TempDir(), "position")
			l.end = true
			run := func() {
				t.Helper()
				if err := New(Config{Source: l, Sink: m, Origin: "a.example/b", State: state}).Run(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			l.events[0], l.events[3] = erased(l.events[0]), erased(l.events[3])
			run()
			l.add(2) // behind a position whose event is erased
			run()
			l.events[5] = erased(l.events[5]) // after it was written
			l.add(1)
			run()
			if len(m.got) != 7 {
				t.Fatalf("%d lines, want 7", len(m.got))
			}
			for i, line := range m.got {
				gone := i == 0 || i == 3
				if line.Index != int64(i) || line.Time.IsZero() || strings.Contains(string(line.JSON), `"status":"Erased"`) != gone {
					t.Errorf("line %d: %d %s %s", i, line.Index, line.Time, line.JSON)
				}
			}
		})
	}
}

// TestErasedWhileItWaits: what was read for a sink that is away, and is erased before that one comes back, is not written
// any more.
func TestErasedWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, m := newLog(2), &memory{fail: 1 << 20}
		l.end = true
		done := make(chan error, 1)
		go func() { done <- New(Config{Source: l, Sink: m, Origin: "a.example/b"}).Run(t.Context()) }()
		time.Sleep(time.Minute)
		l.mu.Lock()
		l.events[1] = event.Event{ID: l.events[1].ID}
		l.mu.Unlock()
		time.Sleep(stale + longestWait)
		m.mu.Lock()
		m.fail = 0
		m.mu.Unlock()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if last := m.got[len(m.got)-1]; last.Index != 1 || !strings.Contains(string(last.JSON), `"status":"Erased"`) {
			t.Errorf("event %d: %s", last.Index, last.JSON)
		}
	})
}
