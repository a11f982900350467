package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/bulla-project/bulla/ledger"
)

// toFormat2 is what format 2 has and format 1 has not. In the oldest ledgers of format 1 the table of the probe has another
// column; nothing that lies in it counts.
const toFormat2 = `
CREATE INDEX IF NOT EXISTS states_denial ON states (seq) WHERE kind = 'denial';
DROP TABLE probe;
CREATE TABLE probe (
	id   INTEGER PRIMARY KEY,
	room BLOB NOT NULL
) STRICT;
`

const (
	sqlAddState     = "INSERT INTO states (kind, key, seq, value) VALUES (?, ?, ?, ?) ON CONFLICT (kind, key) DO NOTHING"
	sqlRenewSession = "UPDATE sessions SET value = ? WHERE id = ? AND seq = ?"
)

// Upgrade brings the ledger in the file at path from format 1 to the one that Open reads, in one transaction: whatever ends
// it before its end leaves the file as it was. What is not of format 1 is left to Open. rows hands put the rows that the
// older format lacks; it reads the ledger as it was.
func Upgrade(ctx context.Context, path string, rows func(ctx context.Context, snap ledger.Snapshot, put func(ledger.Row) error) error) error {
	if err := upgrade(ctx, path, rows); err != nil {
		return fmt.Errorf("bring ledger %s to format %d, and nothing of it was changed: %w", path, schemaVersion, err)
	}
	return nil
}

func upgrade(ctx context.Context, path string, rows func(context.Context, ledger.Snapshot, func(ledger.Row) error) error) (err error) {
	if path, err = filepath.Abs(path); err != nil {
		return err
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	db, err := connect(path, "synchronous(FULL)", "secure_delete(1)")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	if f, err := formatOf(ctx, db); err != nil || f != (format{app: applicationID, version: 1, tables: f.tables}) {
		return err
	}
	old := &Store{path: path, gate: make(chan struct{}, readers)}
	if old.r, err = openReader(ctx, path); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, old.swapReader(nil)) }()
	snap, err := old.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, snap.Close()) }()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, toFormat2); err != nil {
		return err
	}
	if err := rows(ctx, snap, func(row ledger.Row) error { return renew(ctx, tx, row) }); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", schemaVersion)); err != nil {
		return err
	}
	return tx.Commit()
}

// renew writes a row that is not there, or the newer form of a session that is as it was read.
func renew(ctx context.Context, tx *sql.Tx, row ledger.Row) (err error) {
	if row.Kind == ledger.KindSession {
		_, err = tx.ExecContext(ctx, sqlRenewSession, row.Value, row.Key, row.Seq)
	} else {
		_, err = tx.ExecContext(ctx, sqlAddState, string(row.Kind), row.Key, row.Seq, row.Value)
	}
	return err
}
