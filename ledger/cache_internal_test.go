package ledger

import "testing"

// Denials push no row out of memory that somebody reads, and stay in none.
func TestAbuse_A42_denials_in_cache(t *testing.T) {
	c := newRowCache()
	hot := NewRow(RowKey{KindRevision, ActiveRevision}, []byte("{}"), 1)
	c.update([]Row{hot})
	for index := range int64(2 * maxRows) {
		c.update([]Row{NewRow(RowKey{KindDenial, denialKey(ScopeAll, "", index)}, []byte("{}"), index+1)})
	}
	if _, ok, _ := c.get(hot.RowKey); !ok || len(c.rows) != 1 {
		t.Errorf("%d rows are there, the hot one among them: %t", len(c.rows), ok)
	}
}
