package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
)

// Bounds of what the writer keeps in memory.
const (
	maxHotRows  = 8192
	maxSubjects = 16384
	maxFresh    = 16384
)

const probeSize = 256 << 10 // bytes

// The statements of the writer.
const (
	sqlSize          = "SELECT coalesce(max(idx) + 1, 0) FROM events"
	sqlEvent         = "INSERT INTO events (idx, id, leaf, subject, body) VALUES (?, ?, ?, ?, ?)"
	sqlState         = "SELECT value, seq FROM states WHERE kind = ? AND key = ?"
	sqlPutState      = "INSERT INTO states (kind, key, seq, value) VALUES (?, ?, ?, ?) ON CONFLICT (kind, key) DO UPDATE SET seq = excluded.seq, value = excluded.value"
	sqlNewest        = "SELECT coalesce(max(id), '') FROM sessions"
	sqlSession       = "SELECT value, seq FROM sessions WHERE id = ?"
	sqlNewSession    = "INSERT INTO sessions (idx, id, seq, principal, secret, device, state, due, receipt_due, value) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
	sqlUpdateSession = "UPDATE sessions SET seq = ?, state = ?, due = ?, receipt_due = ?, value = ? WHERE id = ?"
	sqlMoveSession   = "UPDATE sessions SET seq = ?, state = ?, value = ? WHERE id = ?" // no index: due and receipt_due stay
	sqlEraseSession  = "UPDATE sessions SET seq = ?, principal = '', secret = '', device = '', state = ?, due = NULL, receipt_due = NULL, value = ? WHERE id = ?"
	sqlDropState     = "DELETE FROM states WHERE kind = ? AND key = ?"
	sqlDropSubject   = "DELETE FROM subjects WHERE name = ?"
	sqlDropRequest   = "DELETE FROM requests WHERE idx = ?"
	sqlDropDenial    = "DELETE FROM states WHERE kind = 'denial' AND seq = ?" // by its own index
	sqlUnderKey      = "SELECT 1 FROM events WHERE idx >= ? AND subject = ? LIMIT 1"
	sqlHasRequest    = "SELECT 1 FROM requests WHERE key = ?"
	sqlPutRequest    = "INSERT INTO requests (idx, key, owner, reply, expires, session) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING"
	sqlCounter       = "SELECT count FROM counters WHERE key = ? AND start = ?"
	sqlPutCounter    = "INSERT INTO counters (key, start, expires, count) VALUES (?, ?, ?, ?) ON CONFLICT (key, start) DO UPDATE SET count = excluded.count, expires = max(expires, excluded.expires)"
	sqlSubject       = "SELECT wrapped FROM subjects WHERE name = ?"
	sqlPutSubject    = "INSERT INTO subjects (name, wrapped) VALUES (?, ?)"
	sqlBlobDigest    = "SELECT digest FROM blobs WHERE key = ?"
	sqlPutBlob       = "INSERT INTO blobs (key, digest, data) VALUES (?, ?, ?)"
	sqlDropBlob      = "DELETE FROM blobs WHERE key = ?"
	sqlSweepRequests = "DELETE FROM requests WHERE idx IN (SELECT idx FROM requests WHERE expires < ? ORDER BY expires LIMIT ?)"
	sqlSweepCounters = "DELETE FROM counters WHERE (key, start) IN (SELECT key, start FROM counters WHERE expires < ? ORDER BY expires LIMIT ?)"
	sqlProbe         = "INSERT INTO probe (id, room) VALUES (1, zeroblob(?)) ON CONFLICT (id) DO UPDATE SET room = excluded.room"
	sqlCheckpoint    = "PRAGMA wal_checkpoint(PASSIVE)"
	sqlTruncate      = "PRAGMA wal_checkpoint(TRUNCATE)"
	sqlCount         = "PRAGMA wal_checkpoint(NOOP)" // pages in the log, and how many of them are in the file
	sqlBegin         = "BEGIN IMMEDIATE"
	sqlCommit        = "COMMIT"
	sqlRollback      = "ROLLBACK"
)

// writer is the one connection that writes. It has no lock of its own: Store.write guards it.
type writer struct {
	db    *sql.DB
	conn  *sql.Conn
	stmts map[string]*sql.Stmt

	// What the file is known to hold, as of the last commit; dropped when a transaction fails.
	rows     map[ledger.RowKey]ledger.Row // a Seq of 0: there is no such row
	subjects map[string][]byte
	times    map[string]times // of sessions that were written
	fresh    freshSessions
}

// freshSessions saves the look-up of ids that can't be there yet: ids grow with time, and of those greater
// than after only those in ids are in the file, or in a batch that failed.
type freshSessions struct {
	after string
	ids   map[string]struct{}
}

func (f *freshSessions) unknown(id string) bool {
	_, ok := f.ids[id]
	return !ok && id > f.after
}

func (f *freshSessions) add(id string) {
	if len(f.ids) >= maxFresh {
		for id := range f.ids {
			f.after = max(f.after, id)
		}
		clear(f.ids)
	}
	if id > f.after {
		f.ids[id] = struct{}{}
	}
}

func openWriter(ctx context.Context, path string) (_ *writer, err error) {
	db, err := connect(path, "journal_mode(WAL)", "synchronous(FULL)", "secure_delete(1)", "wal_autocheckpoint(0)", "cache_size(-8192)")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	w := &writer{db: db, stmts: map[string]*sql.Stmt{}, rows: map[ledger.RowKey]ledger.Row{}, subjects: map[string][]byte{}, times: map[string]times{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if w.conn, err = db.Conn(ctx); err != nil {
		return nil, err
	}
	var mode string
	if err := w.conn.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		return nil, err
	}
	if mode != "wal" {
		return nil, fmt.Errorf("the file system does not allow a write-ahead log (journal mode %q): use a local one", mode)
	}
	for _, text := range []string{
		sqlSize, sqlEvent, sqlState, sqlPutState, sqlNewest, sqlSession, sqlNewSession, sqlUpdateSession, sqlMoveSession, sqlHasRequest, sqlPutRequest,
		sqlCounter, sqlPutCounter, sqlSubject, sqlPutSubject, sqlBlobDigest, sqlPutBlob, sqlDropBlob, sqlSweepRequests, sqlSweepCounters,
		sqlEraseSession, sqlDropState, sqlDropSubject, sqlDropRequest, sqlDropDenial, sqlUnderKey,
		sqlProbe, sqlCheckpoint, sqlTruncate, sqlCount, sqlBegin, sqlCommit, sqlRollback,
	} {
		if w.stmts[text], err = w.conn.PrepareContext(ctx, text); err != nil {
			return nil, err
		}
	}
	w.fresh.ids = map[string]struct{}{}
	if _, err := w.scan(sqlNewest, nil, &w.fresh.after); err != nil {
		return nil, err
	}
	return w, nil
}

func (w *writer) close() error {
	var errs []error
	for _, s := range w.stmts {
		errs = append(errs, s.Close())
	}
	if w.conn != nil {
		errs = append(errs, w.conn.Close())
	}
	return errors.Join(append(errs, w.db.Close())...)
}

// exec runs a statement to its end. It takes no context: the driver would watch it with a goroutine per
// statement, and a transaction under way is not torn by its caller.
func (w *writer) exec(text string, args ...any) (int64, error) {
	result, err := w.stmts[text].ExecContext(context.Background(), args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func (w *writer) scan(text string, args []any, into ...any) (ok bool, err error) {
	err = w.stmts[text].QueryRowContext(context.Background(), args...).Scan(into...)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// row returns a row as the last commit left it; its Seq is 0 if there is none.
func (w *writer) row(key ledger.RowKey) (ledger.Row, error) {
	if row, ok := w.rows[key]; ok {
		return row, nil
	}
	row := ledger.Row{RowKey: key}
	text, args := sqlState, []any{string(key.Kind), key.Key}
	if key.Kind == ledger.KindSession {
		if w.fresh.unknown(key.Key) {
			return row, nil
		}
		text, args = sqlSession, []any{key.Key}
	}
	if _, err := w.scan(text, args, &row.Value, &row.Seq); err != nil {
		return ledger.Row{}, err
	}
	row = ledger.NewRow(key, row.Value, row.Seq)
	w.remember(row)
	return row, nil
}

// rememberTimes notes what a session is indexed by in the file.
func (w *writer) rememberTimes(id string, t times) {
	if len(w.times) >= maxHotRows {
		clear(w.times)
	}
	w.times[id] = t
}

func (w *writer) remember(row ledger.Row) {
	if len(w.rows) >= maxHotRows {
		clear(w.rows)
	}
	w.rows[row.RowKey] = row
}

// subject returns the wrapped key of a subject, nil if it has none.
func (w *writer) subject(name string) (wrapped []byte, err error) {
	if wrapped, ok := w.subjects[name]; ok {
		return wrapped, nil
	}
	if _, err := w.scan(sqlSubject, []any{name}, &wrapped); err != nil || wrapped == nil {
		return nil, err
	}
	w.rememberSubject(name, wrapped)
	return wrapped, nil
}

func (w *writer) rememberSubject(name string, wrapped []byte) {
	if len(w.subjects) >= maxSubjects {
		clear(w.subjects)
	}
	w.subjects[name] = wrapped
}

// blobDigest returns the digest of the blob under key, or zero.
func (w *writer) blobDigest(key string) (d event.Digest, err error) {
	var raw []byte
	if _, err := w.scan(sqlBlobDigest, []any{key}, &raw); err != nil {
		return d, err
	}
	copy(d[:], raw)
	return d, nil
}

// forget drops what the file was known to hold.
func (w *writer) forget() {
	clear(w.rows)
	clear(w.subjects)
	clear(w.times)
}

// transact runs f in a transaction. When f or anything before the COMMIT fails, the error says that nothing
// was applied; when the COMMIT fails, it does not.
func (w *writer) transact(what string, f func() error) error {
	if _, err := w.exec(sqlBegin); err != nil {
		return undone(what, err)
	}
	if err := f(); err != nil {
		w.forget()
		if _, rollback := w.exec(sqlRollback); rollback != nil && !harmless(err) {
			err = fmt.Errorf("%w (rolling back: %w)", err, rollback) // SQLite may have done so itself
		}
		return undone(what, err)
	}
	if _, err := w.exec(sqlCommit); err != nil {
		w.forget()
		return fmt.Errorf("%s: %w: %w", what, ledger.ErrBroken, err)
	}
	return nil
}

// probe makes writes durable: one of about the size of a large commit, so that a disk that is all but full
// does not pass, and one that takes it back.
func (w *writer) probe(ctx context.Context) error {
	for _, size := range []int{probeSize, 0} {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.transact("write a probe", func() error {
			_, err := w.exec(sqlProbe, size)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}
