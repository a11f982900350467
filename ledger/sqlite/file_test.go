package sqlite

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/ledger/storetest"
)

// raw opens the file past the store, as somebody with write access to the database would.
func raw(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := connect(path)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func TestFilesAreTheirOwnersAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "ledger.db")
	storetest.Founded(t, openAt(t, path), storetest.Ring(t))
	for name, want := range map[string]fs.FileMode{"": 0o700, "ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600, "ledger.db.lock": 0o600} {
		info, err := os.Stat(filepath.Join(filepath.Dir(path), name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%q: %v, %v, want %v", name, info, err, want)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, content string, mode fs.FileMode) {
		if err := os.WriteFile(at(name), []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("text", strings.Repeat("not a database. ", 100), 0o600)
	write("wide", "", 0o644)
	if err := os.Mkdir(at("folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, statement := range map[string]string{
		"other": "CREATE TABLE a (b); PRAGMA application_id = 77", "plain": "CREATE TABLE a (b)",
		"newer": "CREATE TABLE a (b); PRAGMA application_id = 0x42554c41; PRAGMA user_version = 3",
		"older": "CREATE TABLE a (b); PRAGMA application_id = 0x42554c41; PRAGMA user_version = 1",
	} {
		write(name, "", 0o600)
		db := raw(t, at(name))
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"text": "no SQLite database", "wide": "chmod 600", "folder": "no regular file", "other": "another program", "plain": "another program", "newer": "format is 3, this program reads 2: use the newer version",
		"older": "start the broker",
	} {
		before, _ := os.ReadFile(at(name))
		s, err := Open(t.Context(), at(name))
		if err == nil {
			_ = s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) || name != "wide" && !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
		if after, _ := os.ReadFile(at(name)); string(after) != string(before) {
			t.Errorf("%s was changed", name)
		}
	}
}

func TestSecondProcessIsLockedOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	s := openAt(t, path)
	if _, err := Open(t.Context(), path); !errors.Is(err, ErrLocked) {
		t.Errorf("second open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openAt(t, path)
}

func TestOddPaths(t *testing.T) {
	for _, name := range []string{"a b", "a?b=c", "a%41", "a#b", "ä"} {
		path := filepath.Join(t.TempDir(), name, "ledger.db")
		storetest.Founded(t, openAt(t, path), storetest.Ring(t))
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}

// Somebody with write access to the database edits it: each edit shows in the check, with its place.
func TestAbuse_A50_edited_rows(t *testing.T) {
	for name, c := range map[string]struct{ statement, where string }{
		"class":             {`UPDATE states SET value = CAST(replace(value, '"class":"standard"', '"class":"public"') AS BLOB) WHERE kind = 'secret'`, `secret "demo/db"`},
		"revoked device":    {`UPDATE states SET value = CAST(replace(value, ',"revoked_at"', ',"reason":"","revoked_at"') AS BLOB) WHERE kind = 'device'`, `device "device-1"`},
		"uses":              {`UPDATE sessions SET value = CAST(replace(value, '"version":1', '"uses":9,"version":1') AS BLOB) WHERE state = 'issued'`, "session"},
		"revoked session":   {`UPDATE sessions SET value = (SELECT b.value FROM sessions b WHERE b.state = 'issued') WHERE state = 'revoked'`, "session"},
		"index column":      {`UPDATE sessions SET principal = 'spiffe://dev.bulla.test/other' WHERE state = 'issued'`, "session"},
		"state column":      {`UPDATE sessions SET state = 'issued' WHERE state = 'revoked'`, "session"},
		"end column":        {`UPDATE sessions SET due = due + 1 WHERE state = 'issued'`, "session"},
		"sequence":          {`UPDATE states SET seq = 1 WHERE kind = 'revision'`, "revision"},
		"row removed":       {`DELETE FROM sessions WHERE state = 'revoked'`, "session"},
		"row added":         {`INSERT INTO states VALUES ('secret', 'demo/new', 3, CAST('{"name":"demo/new"}' AS BLOB))`, `secret "demo/new"`},
		"row renamed":       {`UPDATE states SET key = 'device-2' WHERE kind = 'device'`, `device "device-2"`},
		"kind renamed":      {`UPDATE states SET kind = 'passport' WHERE kind = 'device'`, `device "device-1"`},
		"blob":              {`UPDATE blobs SET data = x'00' WHERE key LIKE 'secret/%'`, "blob"},
		"blob removed":      {`DELETE FROM blobs WHERE key LIKE 'revision/%'`, "blob"},
		"body":              {`UPDATE events SET body = CAST(x'00' || body AS BLOB) WHERE idx = 3`, "event 3"},
		"leaf":              {`UPDATE events SET leaf = (SELECT leaf FROM events WHERE idx = 4) WHERE idx = 3`, "event 3"},
		"subject":           {`UPDATE events SET subject = 'spiffe://dev.bulla.test/workload' WHERE idx = 3`, "event 3"},
		"event removed":     {`DELETE FROM events WHERE idx = 7`, "event 7"},
		"tail cut":          {`DELETE FROM events WHERE idx = (SELECT max(idx) FROM events)`, "session"},
		"all cut":           {`DELETE FROM events`, "session"},
		"swapped":           {`UPDATE events SET idx = 100 WHERE idx = 7; UPDATE events SET idx = 7 WHERE idx = 8; UPDATE events SET idx = 8 WHERE idx = 100`, "session"},
		"subject key":       {`UPDATE subjects SET wrapped = (SELECT wrapped FROM subjects WHERE name LIKE '%operator#%') WHERE name LIKE '%workload#%'`, "event 5"},
		"subject key gone":  {`DELETE FROM subjects WHERE name LIKE '%operator#%'`, "event 10"},
		"nothing (control)": {`DELETE FROM probe`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			path, ring := filepath.Join(t.TempDir(), "ledger.db"), storetest.Ring(t)
			l := storetest.Founded(t, openAt(t, path), ring)
			first, second := storetest.Issue(storetest.Start, time.Hour, 0), storetest.Issue(storetest.Start, time.Hour, 0)
			for _, c := range []ledger.Commit{
				first, second, storetest.Plain(storetest.Operator, event.DeviceRevoked{Device: storetest.Device}),
				storetest.Plain(storetest.Operator, event.SessionRevoked{Session: storetest.SessionOf(first), Reason: "test"}),
			} {
				storetest.Commit(t, l, c)
			}
			storetest.MustCheck(t, l)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			db := raw(t, path)
			if _, err := db.Exec(c.statement); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			s := openAt(t, path)
			snap, err := s.Snapshot(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer snap.Close() //nolint:errcheck // only read from
			report, err := ledger.Check(t.Context(), snap, ring, nil)
			if err != nil {
				t.Fatal(err)
			}
			found := c.where == "" && report.OK()
			for _, d := range report.Differences {
				t.Logf("%s: %s", d.Where, d.What)
				found = found || c.where != "" && strings.HasPrefix(d.Where, c.where)
			}
			if !found {
				t.Errorf("%q is not among the differences", c.where)
			}
		})
	}
}

// Every query that the broker makes while serving, or the sweeper, finds its rows by an index.
func TestQueriesUseIndexes(t *testing.T) {
	s := openAt(t, filepath.Join(t.TempDir(), "ledger.db"))
	live := []string{"issued", "confirmed", "unconfirmed"}
	for want, q := range map[string]ledger.SessionQuery{
		"sessions_pair (secret=? AND principal=?)": {Principal: "p", Secret: "s", Max: 1},
		"sessions_principal (principal=?)":         {Principal: "p"},
		"sessions_pair (secret=?)":                 {Secret: "s"},
		"sessions_live (device=?)":                 {Device: "d", States: live},
		"sessions_device (device=?":                {Device: "d"},
		"sessions_due (due<?)":                     {ExpiresBefore: time.Now()},
		"sessions_receipt (receipt_due<?)":         {ReceiptBefore: time.Now()},
		"USING INTEGER PRIMARY KEY (rowid<?)":      {Before: "x"},
	} {
		text, args := sessionsSQL(q)
		rows, err := s.w.conn.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+text, args...)
		plan, err := collect(rows, err, func(rows *sql.Rows, line *string) error {
			var id, parent, unused int
			return rows.Scan(&id, &parent, &unused, line)
		})
		if err != nil || !strings.Contains(strings.Join(plan, "; "), want) {
			t.Errorf("%+v: %q (%v), want %s", q, plan, err, want)
		}
	}
}

// The write-ahead log is copied into the file beside the commits, and starts anew.
func TestLogDoesNotGrowWithoutEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := storetest.Founded(t, openAt(t, path), storetest.Ring(t))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				c := storetest.Issue(storetest.Start, time.Hour, 0)
				c.Request.Reply = make([]byte, 20000)
				if _, err := l.Commit(t.Context(), c); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	info, err := os.Stat(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	if total := int64(4 * 1000 * 20000); info.Size() > total/2 {
		t.Errorf("the log has %d bytes after %d were written", info.Size(), total)
	}
	storetest.MustCheck(t, l)
}

const childPath = "BULLA_TEST_CRASH_PATH"

// TestMain runs the child of a test when the environment asks for it.
func TestMain(m *testing.M) {
	if path := os.Getenv(childPath); path != "" {
		os.Exit(crashChild(path))
	}
	if path := os.Getenv(fullPath); path != "" {
		if err := fullChild(path); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("recovered")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// crashChild commits from 8 callers until it is killed, and prints what was acknowledged.
func crashChild(path string) int {
	out := bufio.NewWriter(os.Stdout)
	var mu sync.Mutex // guards out
	say := func(line string) {
		mu.Lock()
		defer mu.Unlock()
		_, _ = out.WriteString(line + "\n")
		_ = out.Flush()
	}
	l, err := openChild(path)
	if err != nil {
		say("error " + err.Error())
		return 1
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				c := storetest.Issue(time.Now(), time.Hour, time.Minute)
				id := storetest.SessionOf(c)
				if _, err := l.Commit(context.Background(), c); err != nil {
					say("error " + err.Error())
					return
				}
				say("issued " + id.String())
				confirm := event.New(time.Now(), storetest.Principal, event.SessionConfirmed{Session: id, R: []byte("r")})
				if _, err := l.Commit(context.Background(), ledger.Commit{Event: confirm}); err != nil {
					say("error " + err.Error())
					return
				}
				say("confirmed " + id.String())
			}
		})
	}
	wg.Wait()
	return 1
}

func openChild(path string) (*ledger.Ledger, error) {
	store, err := Open(context.Background(), path)
	if err != nil {
		return nil, err
	}
	ring, err := storetest.OpenRing(context.Background(), filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	return ledger.Open(context.Background(), ledger.Config{Store: store, Keys: ring})
}

// A process that commits is killed at a random moment; whatever it acknowledged is there, and all fits.
func TestAbuse_A28_kill(t *testing.T) {
	rounds := 3
	if os.Getenv("BULLA_TEST_LONG") == "1" {
		rounds = 20
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "ledger.db")
	ring := storetest.RingIn(t, dir)
	func() {
		l := storetest.Founded(t, openAt(t, path), ring)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}()
	acknowledged := map[event.ID]string{}
	for round := range rounds {
		for id, state := range killedChild(t, path, 50+int(event.NewSalt()[0])) {
			acknowledged[id] = state
		}
		l := storetest.Open(t, openAt(t, path), ring)
		for id, state := range acknowledged {
			s, _, err := l.Session(t.Context(), id)
			if err != nil || state == "confirmed" && s.State != "confirmed" {
				t.Errorf("round %d: session %s was %s, now %q: %v", round, id, state, s.State, err)
			}
		}
		report := storetest.MustCheck(t, l)
		t.Logf("round %d: %d acknowledged so far, %d events", round, len(acknowledged), report.Events)
		storetest.Commit(t, l, storetest.Issue(time.Now(), time.Hour, 0))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killedChild kills the child when it has acknowledged n lines, and returns what it said.
func killedChild(t *testing.T, path string, n int) map[event.ID]string {
	t.Helper()
	cmd := exec.Command(os.Args[0]) //nolint:gosec // the test binary itself
	cmd.Env = append(os.Environ(), childPath+"="+path)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := map[event.ID]string{}
	lines := bufio.NewScanner(pipe)
	for count := 0; lines.Scan(); count++ {
		state, text, _ := strings.Cut(lines.Text(), " ")
		id, err := event.ParseID(text)
		if err != nil {
			t.Errorf("the child says %q", lines.Text())
			break
		}
		said[id] = state
		if count == n {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) {
		t.Errorf("the child ended with %v", err)
	}
	return said
}
