package ledger

import (
	"testing"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// A check keeps the rows of exhausted sessions for as long as a revocation may come, and no longer.
func TestCheckSettles(t *testing.T) {
	start := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	c := checker{rows: map[RowKey]Row{}, ended: map[event.ID]endedRow{}}
	add := func(expires time.Time) RowKey {
		s := session.Session{ID: event.NewID(start), State: session.Exhausted, Expires: event.NewTime(expires)}
		key := RowKey{KindSession, s.ID.String()}
		tx := &checkTx{c: &c, puts: map[RowKey]Row{key: {RowKey: key, Seq: 1}}, sessions: map[RowKey]session.Session{key: s}}
		tx.keep()
		return key
	}
	over, lives := add(start), add(start.Add(time.Hour))
	c.settle(start.Add(disorder + time.Minute))
	if _, kept := c.rows[over]; kept || len(c.ended) != 1 || len(c.spent) != 1 {
		t.Errorf("one whose time is over: kept %t, %d settled, %d watched", kept, len(c.ended), len(c.spent))
	}
	if _, kept := c.rows[lives]; !kept {
		t.Error("one that can still be revoked is gone")
	}
	for range c.limit {
		add(start)
	}
	c.settle(start.Add(disorder + time.Minute))
	if len(c.rows) != 1 || len(c.spent) != 1 {
		t.Errorf("%d rows are kept, %d watched; want those of 1", len(c.rows), len(c.spent))
	}
}
