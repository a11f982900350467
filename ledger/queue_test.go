package ledger

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func testWaiter() *waiter { return &waiter{done: make(chan struct{})} }

func enqueue(t *testing.T, q *queue, n int) {
	t.Helper()
	for range n {
		if err := q.put(testWaiter()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestQueueDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(2*time.Millisecond, 256, 4096)
		took := func() (int, time.Duration) {
			begin := time.Now()
			return len(q.take()), time.Since(begin)
		}
		for _, c := range []struct {
			name  string
			puts  int
			batch int
			delay time.Duration
		}{
			{"a lone caller goes at once", 1, 1, 0},
			{"so do a few", 8, 8, 0},
			{"and a few again", 8, 8, 0},
			{"many are taken together, at once", 64, 64, 0},
			{"after many, one waits for the others that are about to come back", 1, 1, 2 * time.Millisecond},
			{"but not for ever: load is what it was last", 1, 1, 0},
			{"more than a batch is split", 300, 256, 0},
			{"the rest has to wait for others", 0, 44, 2 * time.Millisecond},
		} {
			enqueue(t, &q, c.puts)
			if n, d := took(); n != c.batch || d != c.delay {
				t.Errorf("%s: %d after %v, want %d after %v", c.name, n, d, c.batch, c.delay)
			}
		}
		// Half of the load is enough.
		enqueue(t, &q, 64)
		took()
		go func() {
			for range 32 {
				time.Sleep(10 * time.Microsecond)
				enqueue(t, &q, 1)
			}
		}()
		if n, d := took(); n != 32 || d != 320*time.Microsecond {
			t.Errorf("%d after %v, want 32 after 320µs", n, d)
		}
		// So is half of the calls that are under way, whatever was taken last.
		enqueue(t, &q, 1)
		took()
		q.expected.Add(40)
		enqueue(t, &q, 20)
		if n, d := took(); n != 20 || d != 0 {
			t.Errorf("%d after %v, want 20 at once", n, d)
		}
		q.expected.Add(-24)
		enqueue(t, &q, 1)
		took() // what was taken last counts here
		enqueue(t, &q, 1)
		if n, d := took(); n != 1 || d != 0 {
			t.Errorf("%d after %v, want one of a few at once", n, d)
		}
		q.expected.Add(1)
		enqueue(t, &q, 1)
		if n, d := took(); n != 1 || d != 2*time.Millisecond {
			t.Errorf("%d after %v, want one of many after the delay", n, d)
		}
	})
}

func TestQueueEnds(t *testing.T) {
	q := newQueue(time.Millisecond, 2, 3)
	enqueue(t, &q, 3)
	if err := q.put(testWaiter()); !errors.Is(err, ErrUnavailable) || !errors.Is(err, ErrNotApplied) {
		t.Errorf("a full queue: %v", err)
	}
	if n := len(q.take()); n != 2 {
		t.Errorf("took %d", n)
	}
	last := q.waiting[0]
	if !q.withdraw(last) || q.withdraw(last) {
		t.Error("withdraw once, then not again")
	}
	w := testWaiter()
	if err := q.put(w); err != nil {
		t.Fatal(err)
	}
	sick := errors.New("sick")
	q.refuse(sick)
	if <-w.done; !errors.Is(w.err, sick) || !errors.Is(w.err, ErrNotApplied) {
		t.Errorf("a waiter that was refused: %v", w.err)
	}
	if err := q.put(testWaiter()); !errors.Is(err, sick) {
		t.Errorf("a queue that refuses: %v", err)
	}
	q.accept()
	enqueue(t, &q, 1)
	q.close()
	if err := q.put(testWaiter()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a closed queue: %v", err)
	}
	if len(q.take()) != 1 || q.take() != nil {
		t.Error("a closed queue gives what is left, then nil")
	}
}

// A reader that is overtaken by a commit must not put its old row back.
func TestCacheIgnoresWhatWasOvertaken(t *testing.T) {
	c := newRowCache()
	key := RowKey{KindSecret, "a"}
	_, _, epoch := c.get(key)
	c.update([]Row{{RowKey: key, Seq: 2}})
	for len(c.rows) > 0 { // evicted meanwhile
		delete(c.rows, key)
	}
	c.add(key, Row{RowKey: key, Seq: 1}, epoch)
	if row, ok, _ := c.get(key); ok {
		t.Errorf("kept %v", row)
	}
	_, _, epoch = c.get(key)
	c.add(key, Row{RowKey: key, Seq: 2}, epoch)
	if row, ok, _ := c.get(key); !ok || row.Seq != 2 {
		t.Errorf("not kept: %v", row)
	}
	_, _, epoch = c.get(key)
	c.clear()
	if c.add(key, Row{RowKey: key, Seq: 2}, epoch); len(c.rows) != 0 {
		t.Error("kept what was read before everything was cleared")
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newRowCache()
	for i := range 3 * maxRows {
		c.update([]Row{{RowKey: RowKey{KindSecret, time.Duration(i).String()}, Seq: 1}, {RowKey: RowKey{KindSession, time.Duration(i).String()}, Seq: 1}})
	}
	blob := make([]byte, maxBlobs/16)
	for i := range 40 {
		c.addBlob(blobKey{key: time.Duration(i).String()}, blob)
	}
	c.addBlob(blobKey{key: "large"}, make([]byte, maxBlobs/16+1))
	if len(c.rows) > maxRows || len(c.sessions) > maxSessions || c.bytes > maxBlobs || len(c.blobs) > 16 {
		t.Errorf("%d rows, %d sessions, %d bytes in %d blobs", len(c.rows), len(c.sessions), c.bytes, len(c.blobs))
	}
}
