package sink

import (
	"context"
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

// What is erased while a sink does not take it does not reach it later.
func TestErasedWhileTheSinkIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, m := newLog(8), &memory{fail: 12} // for more than a minute, at the waits between
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- New(Config{Source: l, Sink: m, Origin: testOrigin}).Run(ctx) }()
		synctest.Wait()
		l.mu.Lock()
		l.events[6] = event.Event{ID: l.events[6].ID}
		l.mu.Unlock()
		time.Sleep(time.Hour) // of the bubble
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		lines := 0
		for _, line := range m.got {
			if line.Index != 6 {
				continue
			}
			if lines++; !strings.Contains(string(line.JSON), `"status":"Erased"`) {
				t.Errorf("it arrived as %s", line.JSON)
			}
		}
		if lines != 1 || m.got[len(m.got)-1].Index != 7 {
			t.Errorf("%d lines of it, and the last one is %d", lines, m.got[len(m.got)-1].Index)
		}
	})
}
