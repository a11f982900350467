package sqlite

import (
	"bytes"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/ledger/storetest"
)

// holding returns the files beside path in which a needle is.
func holding(t *testing.T, path string, needle []byte) (found []string) {
	t.Helper()
	files, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		content, err := os.ReadFile(f)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if bytes.Contains(content, needle) {
			found = append(found, f)
		}
	}
	return found
}

// After an erasure no file of the store holds the key, a reply or what the rows said: not the database, and not its
// write-ahead log, once the snapshots from before are closed.
func TestErasedBytesAreGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	store := openAt(t, path)
	l := storetest.Founded(t, store, storetest.Ring(t))
	c := storetest.Issue(storetest.Start, time.Hour, 0)
	const marker = "marker-of-one-instance"
	body := c.Event.Body.(event.SessionIssued)
	body.Instance, c.Request.Reply = marker, bytes.Repeat([]byte("reply to nobody else "), 300)
	c.Event.Body = body
	storetest.Commit(t, l, c)
	if _, err := l.RevokeSessions(t.Context(), storetest.Start, []event.ID{storetest.SessionOf(c)}, "test", event.ID{}); err != nil {
		t.Fatal(err)
	}
	const denied = "marker-of-a-denial" // in the key of a row that says where it is
	storetest.Commit(t, l, storetest.Plain(storetest.Principal, event.DecisionDenied{
		Principal: storetest.Principal, Decision: event.Decision{Signals: []byte(`{"attestation":{"device_id":"` + denied + `"}}`)},
	}))
	var wrapped []byte
	if err := raw(t, path).QueryRow("SELECT wrapped FROM subjects WHERE name LIKE '%workload#%'").Scan(&wrapped); err != nil {
		t.Fatal(err)
	}
	needles := [][]byte{wrapped, []byte(marker), []byte(denied), []byte("reply to nobody else")}
	for _, n := range needles {
		if len(holding(t, path, n)) == 0 {
			t.Fatalf("%q is not there before the erasure", n)
		}
	}
	old, err := store.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.Size(t.Context()); err != nil { // a snapshot begins with its first read
		t.Fatal(err)
	}
	plan, err := l.PlanErasure(t.Context(), ledger.EraseQuery{Subject: storetest.Principal}, storetest.Start, nil)
	if err != nil || len(plan.Kept) != 0 {
		t.Fatalf("%+v, %v", plan.Kept, err)
	}
	for _, e := range plan.Erasures {
		storetest.Commit(t, l, storetest.Erasure(e, "test", storetest.Start))
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 25 { // the log can't be emptied, which nobody waits for
		started := time.Now()
		storetest.Commit(t, l, storetest.Issue(storetest.Start, time.Hour, 0))
		if took := time.Since(started); took > 4*time.Second {
			t.Errorf("a commit waited %s for a snapshot to be closed", took)
		}
		<-tick.C
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		left := 0
		for _, n := range needles {
			left += len(holding(t, path, n))
		}
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			for _, n := range needles {
				t.Errorf("%.20q is in %v", n, holding(t, path, n))
			}
			break
		}
		<-tick.C
	}
	storetest.MustCheck(t, l)
}

// An erasure whose commit erred and that is there all the same leaves nothing in the write-ahead log either.
func TestErasedBytesAreGoneAfterRecover(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	store := openAt(t, path)
	l := storetest.Founded(t, store, storetest.Ring(t)) // whose reader keeps its connection
	storetest.MustCheck(t, l)
	var wrapped []byte
	if err := raw(t, path).QueryRow("SELECT wrapped FROM subjects WHERE name LIKE '%workload#%'").Scan(&wrapped); err != nil {
		t.Fatal(err)
	}
	store.write.Lock()
	err := store.w.transact("test", func() error {
		_, err := store.w.conn.ExecContext(t.Context(), "DELETE FROM subjects WHERE name LIKE '%workload#%'")
		return err
	})
	store.note(ledger.ErrBroken)
	store.write.Unlock()
	if err != nil || len(holding(t, path, wrapped)) == 0 {
		t.Fatalf("it is not there before: %v", err)
	}
	if err := store.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); len(holding(t, path, wrapped)) > 0; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("the key is in %v", holding(t, path, wrapped))
		}
	}
}

// Somebody with write access to the database calls events erased, undoes an erasure, or takes a key away: it shows.
func TestAbuse_A50_erasures(t *testing.T) {
	for name, statement := range map[string]string{
		"key taken away": `DELETE FROM subjects WHERE name LIKE '%workload#%'`,
		"called erased by another event": `DELETE FROM subjects WHERE name LIKE '%workload#%';
			INSERT INTO states SELECT 'erasure', name, 9, CAST(replace(value, key, name) AS BLOB) FROM states, (SELECT DISTINCT subject AS name FROM events WHERE subject LIKE '%workload#%') WHERE kind = 'erasure'`,
		"erasure forgotten": `DELETE FROM states WHERE kind = 'erasure'`,
		"residue edited":    `UPDATE sessions SET state = 'closed', value = CAST(replace(value, '"state":"revoked"', '"state":"closed"') AS BLOB) WHERE principal = ''`,
		"residue removed":   `DELETE FROM sessions WHERE principal = ''`,
		"key put back":      `INSERT INTO subjects SELECT key, x'00' FROM states WHERE kind = 'erasure'`,
		"another subject":   `UPDATE events SET subject = (SELECT key FROM states WHERE kind = 'erasure') WHERE subject LIKE '%workload#%'`,
	} {
		t.Run(name, func(t *testing.T) {
			path, ring := filepath.Join(t.TempDir(), "ledger.db"), storetest.Ring(t)
			l := storetest.Founded(t, openAt(t, path), ring)
			const gone = "spiffe://dev.bulla.test/gone"
			c := storetest.Issue(storetest.Start, time.Hour, 0)
			body := c.Event.Body.(event.SessionIssued)
			body.Principal = gone
			c.Event.Subject, c.Event.Body = gone, body
			storetest.Commit(t, l, c)
			storetest.Commit(t, l, storetest.Plain(gone, event.SessionRevoked{Session: storetest.SessionOf(c), Reason: "test"}))
			plan, err := l.PlanErasure(t.Context(), ledger.EraseQuery{Subject: gone}, storetest.Start, nil)
			if err != nil || len(plan.Erasures) != 1 {
				t.Fatalf("%+v: %v", plan, err)
			}
			storetest.Commit(t, l, storetest.Erasure(plan.Erasures[0], "test", storetest.Start))
			storetest.MustCheck(t, l)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			db := raw(t, path)
			if _, err := db.Exec(statement); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			again := storetest.Open(t, openAt(t, path), ring)
			report, err := again.Check(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range report.Differences {
				t.Logf("%s: %s", d.Where, d.What)
			}
			if report.OK() {
				t.Error("the check is content")
			}
		})
	}
}

// The rows of denials are found by an index of their own, however many there are.
func TestErasureFindsDenialsByIndex(t *testing.T) {
	s := openAt(t, filepath.Join(t.TempDir(), "ledger.db"))
	rows, err := s.w.conn.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+sqlDropDenial, 1)
	plan, err := collect(rows, err, func(rows *sql.Rows, line *string) error {
		var id, parent, unused int
		return rows.Scan(&id, &parent, &unused, line)
	})
	if err != nil || !strings.Contains(strings.Join(plan, "; "), "states_denial (seq=?") {
		t.Errorf("%q, %v", plan, err)
	}
}

// Denials push nothing out of the memory of the writer, and stay in none.
func TestAbuse_A42_denials_in_memory(t *testing.T) {
	s := openAt(t, filepath.Join(t.TempDir(), "ledger.db"))
	l := storetest.Founded(t, s, storetest.Ring(t))
	before := len(s.w.rows)
	for range 10 {
		storetest.Commit(t, l, storetest.Plain(storetest.Principal, event.DecisionDenied{
			Principal: storetest.Principal, Decision: event.Decision{Signals: []byte(`{"resource":{"secret":{"name":"demo/db"}}}`)},
		}))
	}
	if now := len(s.w.rows); now > before+1 { // whether the key of the principal was destroyed
		t.Errorf("%d rows are remembered, and %d before", now, before)
	}
}
