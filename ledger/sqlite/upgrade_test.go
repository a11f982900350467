package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/keyring"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/ledger/storetest"
)

// format1 is the schema of format 1 as its first version had it.
const format1 = `
CREATE TABLE events (
	idx     INTEGER PRIMARY KEY,
	id      BLOB NOT NULL UNIQUE,
	leaf    BLOB NOT NULL,
	subject TEXT NOT NULL,
	body    BLOB NOT NULL
) STRICT;
CREATE TABLE subjects (
	name    TEXT PRIMARY KEY,
	wrapped BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE states (
	kind  TEXT NOT NULL,
	key   TEXT NOT NULL,
	seq   INTEGER NOT NULL,
	value BLOB NOT NULL,
	PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE sessions (
	idx         INTEGER PRIMARY KEY,
	id          TEXT NOT NULL UNIQUE,
	seq         INTEGER NOT NULL,
	principal   TEXT NOT NULL,
	secret      TEXT NOT NULL,
	device      TEXT NOT NULL,
	state       TEXT NOT NULL,
	due         INTEGER,
	receipt_due INTEGER,
	value       BLOB NOT NULL
) STRICT;
CREATE INDEX sessions_principal ON sessions (principal);
CREATE INDEX sessions_pair      ON sessions (secret, principal);
CREATE INDEX sessions_device    ON sessions (device) WHERE device <> '';
CREATE INDEX sessions_live      ON sessions (device) WHERE device <> '' AND due IS NOT NULL;
CREATE INDEX sessions_due       ON sessions (due) WHERE due IS NOT NULL;
CREATE INDEX sessions_receipt   ON sessions (receipt_due) WHERE receipt_due IS NOT NULL;
CREATE TABLE requests (
	idx     INTEGER PRIMARY KEY,
	key     TEXT NOT NULL UNIQUE,
	owner   BLOB NOT NULL,
	reply   BLOB NOT NULL,
	expires INTEGER NOT NULL,
	session BLOB NOT NULL
) STRICT;
CREATE INDEX requests_expires ON requests (expires);
CREATE TABLE counters (
	key     TEXT NOT NULL,
	start   INTEGER NOT NULL,
	expires INTEGER NOT NULL,
	count   INTEGER NOT NULL,
	PRIMARY KEY (key, start)
) STRICT, WITHOUT ROWID;
CREATE INDEX counters_expires ON counters (expires);
CREATE TABLE blobs (
	key    TEXT PRIMARY KEY,
	digest BLOB NOT NULL,
	data   BLOB NOT NULL
) STRICT;
CREATE TABLE probe (
	id   INTEGER PRIMARY KEY,
	runs INTEGER NOT NULL
) STRICT;
PRAGMA application_id = 0x42554c41;
PRAGMA user_version = 1;
`

// toFormat1 fills a database of that schema from a newer one: without what that version did not have.
const toFormat1 = `
INSERT INTO events SELECT * FROM new.events;
INSERT INTO subjects SELECT * FROM new.subjects;
INSERT INTO states SELECT * FROM new.states WHERE kind NOT IN ('denial', 'activation');
INSERT INTO sessions SELECT idx, id, seq, principal, secret, device, state, due, receipt_due,
	CAST(json_remove(CAST(value AS TEXT), '$.used_at') AS BLOB) FROM new.sessions;
INSERT INTO requests SELECT * FROM new.requests;
INSERT INTO counters SELECT * FROM new.counters;
INSERT INTO blobs SELECT * FROM new.blobs;
INSERT INTO probe VALUES (1, 7);
`

// history is a ledger with some hundred events of all kinds that matter to an upgrade.
func history(t *testing.T, l *ledger.Ledger) {
	t.Helper()
	active := storetest.Revision(1, event.Digest{}, []byte("policy 1")).Event.Body.(event.RevisionActivated).Digest
	for i := range uint64(4) {
		c := storetest.Revision(i+2, active, fmt.Appendf(nil, "policy %d", i+2))
		active = c.Event.Body.(event.RevisionActivated).Digest
		storetest.Commit(t, l, c)
	}
	for i := range 60 {
		who := fmt.Sprintf("%s/%d", storetest.Principal, i%5)
		c := storetest.IssueGated(storetest.Start, time.Hour)
		body := c.Event.Body.(event.SessionIssued)
		body.Principal, c.Event.Subject = who, who
		c.Event.Body = body
		storetest.Commit(t, l, c)
		for n := range uint32(i % 4) {
			storetest.Commit(t, l, storetest.Use(body.Session, n+1))
		}
		if i%2 == 0 { // and one whose row is kept whole until the end
			storetest.Commit(t, l, storetest.Plain(who, event.SessionRevoked{Session: body.Session, Reason: "test"}))
		}
		signals := fmt.Appendf(nil, `{"resource":{"secret":{"name":"demo/%d"}},"attestation":{"device_id":"%s"}}`, i%7, storetest.Device)
		storetest.Commit(t, l, storetest.Plain(who, event.DecisionDenied{Principal: who, Decision: event.Decision{Signals: signals}}))
		storetest.Commit(t, l, storetest.Plain(who, event.RequestRefused{Method: "m", Instance: "i", Check: "nonce"}))
		storetest.Commit(t, l, storetest.Plain(who, event.AttestationRefused{Principal: who, Kind: "tpm2", Reason: "old"}))
		storetest.Commit(t, l, storetest.Plain(who, event.RefusalsCounted{Principal: who, Count: 3, From: event.NewTime(storetest.Start)}))
	}
}

// aged makes a ledger of format 1.
func aged(t *testing.T) (path string, ring *keyring.Ring) {
	t.Helper()
	dir := t.TempDir()
	newer := filepath.Join(dir, "newer.db")
	path, ring = filepath.Join(dir, "ledger.db"), storetest.Ring(t)
	store, err := Open(t.Context(), newer)
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(t.Context(), ledger.Config{Store: store, Keys: ring})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range storetest.Foundation() {
		storetest.Commit(t, l, c)
	}
	history(t, l)
	storetest.MustCheck(t, l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := prepareFile(path); err != nil {
		t.Fatal(err)
	}
	edit(t, path, pragmaWAL, format1, "ATTACH '"+newer+"' AS new", toFormat1)
	return path, ring
}

const pragmaWAL = "PRAGMA journal_mode = WAL"

// edit runs statements on the file, past the store.
func edit(t *testing.T, path string, statements ...string) {
	t.Helper()
	db := raw(t, path)
	for _, s := range statements {
		if _, err := db.ExecContext(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// upgraded runs Upgrade with the rows that package ledger makes.
func upgraded(t *testing.T, path string, ring *keyring.Ring, progress func(done, total int64)) error {
	t.Helper()
	return Upgrade(t.Context(), path, func(ctx context.Context, snap ledger.Snapshot, put func(ledger.Row) error) error {
		return ledger.Upgrade(ctx, snap, ring, progress, put)
	})
}

func schemaOf(t *testing.T, path string) (out []string) {
	t.Helper()
	db := raw(t, path)
	defer db.Close()
	rows, err := db.QueryContext(t.Context(), "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
	if out, err = collect(rows, err, func(rows *sql.Rows, s *string) error { return rows.Scan(s) }); err != nil {
		t.Fatal(err)
	}
	return out
}

// A ledger of format 1 becomes one of this format in which nothing differs from what its events make, and that answers
// questions about what was before.
func TestUpgrade(t *testing.T) {
	path, ring := aged(t)
	if _, err := Open(t.Context(), path); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "start the broker") {
		t.Errorf("opened as it is: %v", err)
	}
	var looked, of int64
	if err := upgraded(t, path, ring, func(done, total int64) { looked, of = done, total }); err != nil {
		t.Fatal(err)
	}
	l := storetest.Open(t, openAt(t, path), ring)
	report := storetest.MustCheck(t, l)
	if report.Events < 300 || looked != report.Events || of != report.Events {
		t.Errorf("%d events, %d of %d were looked at", report.Events, looked, of)
	}
	denials, err := l.Denials(t.Context(), ledger.ScopeAll, "", 0, report.Events, 1000)
	if err != nil || len(denials) != 4*60 {
		t.Errorf("%d denials: %v", len(denials), err)
	}
	activations, err := l.Activations(t.Context())
	if err != nil || len(activations) != 5 {
		t.Errorf("%d activations: %v", len(activations), err)
	}
	storetest.Commit(t, l, storetest.Issue(storetest.Start, time.Hour, 0))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	fresh := filepath.Join(t.TempDir(), "ledger.db")
	openAt(t, fresh)
	if got, want := strings.Join(schemaOf(t, path), "\n"), strings.Join(schemaOf(t, fresh), "\n"); got != want {
		t.Errorf("the schema is\n%s\nand not\n%s", got, want)
	}
	called := errors.New("it was called")
	if err := Upgrade(t.Context(), path, func(context.Context, ledger.Snapshot, func(ledger.Row) error) error { return called }); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

// An upgrade that ends before its end, or that can't read the events, leaves the ledger of the older format.
func TestUpgradeIsAllOrNothing(t *testing.T) {
	path, ring := aged(t)
	before := schemaOf(t, path)
	same := func(what string, err error) {
		t.Helper()
		db := raw(t, path)
		defer db.Close()
		var version, rows int
		scan := db.QueryRowContext(t.Context(), "SELECT (SELECT user_version FROM pragma_user_version), (SELECT count(*) FROM states WHERE kind IN ('denial', 'activation'))").Scan(&version, &rows)
		if err == nil || scan != nil || version != 1 || rows != 0 || strings.Join(schemaOf(t, path), "") != strings.Join(before, "") {
			t.Errorf("%s: %v; format %d, %d rows, %v", what, err, version, rows, scan)
		}
	}
	half := errors.New("half of it")
	same("interrupted", Upgrade(t.Context(), path, func(ctx context.Context, snap ledger.Snapshot, put func(ledger.Row) error) error {
		n := 0
		return ledger.Upgrade(ctx, snap, ring, nil, func(r ledger.Row) error {
			if n++; n > 500 {
				return half
			}
			return put(r)
		})
	}))
	same("another keyring", upgraded(t, path, storetest.Ring(t), nil))
	edit(t, path, "UPDATE events SET body = (SELECT body FROM events WHERE idx = 40) WHERE idx = 41")
	err := upgraded(t, path, ring, nil)
	same("an edited event", err)
	if !errors.Is(err, ledger.ErrTampered) || !strings.Contains(err.Error(), "event 41") {
		t.Errorf("an edited event: %v", err)
	}
}

// What somebody edited is not made true by an upgrade: the check names it as before.
func TestAbuse_A50_upgrade(t *testing.T) {
	for name, statement := range map[string]string{
		"session": `UPDATE sessions SET value = CAST(replace(value, '"used":3', '"used":2') AS BLOB) WHERE idx = (SELECT min(idx) FROM sessions WHERE instr(CAST(value AS TEXT), '"used":3') > 0)`,
		"denial":  `INSERT INTO states VALUES ('denial', 'all  7fffffffffffff00', 256, CAST('{"index":255}' AS BLOB))`,
		"secret":  `UPDATE states SET value = CAST(replace(value, 'standard', 'nothing!') AS BLOB) WHERE kind = 'secret'`,
	} {
		t.Run(name, func(t *testing.T) {
			path, ring := aged(t)
			edit(t, path, statement)
			if err := upgraded(t, path, ring, nil); err != nil {
				t.Fatal(err)
			}
			report, err := storetest.Open(t, openAt(t, path), ring).Check(t.Context(), nil)
			if err != nil || report.Faults != 1 {
				t.Errorf("%+v: %v", report.Differences, err)
			}
		})
	}
}
