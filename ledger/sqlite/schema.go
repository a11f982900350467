package sqlite

const (
	applicationID = 0x42554c41 // "BULA"
	schemaVersion = 2          // Upgrade makes it of 1
)

// Times are microseconds since 1970 in UTC. Of sessions, idx is the index of the event that opened them, so
// that rows lie in the order of the log; due is the end of a session that has not ended, and receipt_due the
// time by which a receipt is awaited: NULL takes a row out of the partial index.
const schema = `
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
CREATE INDEX states_denial ON states (seq) WHERE kind = 'denial';
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
	room BLOB NOT NULL
) STRICT;
`
