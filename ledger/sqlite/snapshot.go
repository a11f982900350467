package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

const (
	sqlStates      = "SELECT key, value, seq FROM states WHERE kind = ? AND key > ? ORDER BY key LIMIT ?"
	sqlAllSessions = "SELECT id, value, seq, principal, secret, device, state, due, receipt_due FROM sessions WHERE id > ? ORDER BY id LIMIT ?"
	sqlEvents      = "SELECT idx, id, leaf, subject, body FROM events WHERE idx >= ? ORDER BY idx LIMIT ?"
	sqlLeaves      = "SELECT idx, leaf FROM events WHERE idx >= ? ORDER BY idx LIMIT ?"
	sqlFind        = "SELECT idx, id, leaf, subject, body FROM events WHERE id = ?"
	sqlRequest     = "SELECT idx, owner, reply, expires, session FROM requests WHERE key = ?"
	sqlRecipients  = "SELECT principal, idx FROM sessions INDEXED BY sessions_pair WHERE secret = ? AND idx >= ? AND idx < ? ORDER BY principal, idx"
	sqlBlob        = "SELECT data FROM blobs WHERE key = ?"
)

// reader is the pool of connections that snapshots read with.
type reader struct {
	db          *sql.DB
	stmts       map[string]*sql.Stmt // each prepared once on each connection
	checkpoints *sql.DB

	users   int  // guarded by Store.read: snapshots, and a checkpoint under way
	retired bool // guarded by Store.read: the last user closes it
}

func openReader(ctx context.Context, path string) (_ *reader, err error) {
	r := &reader{stmts: map[string]*sql.Stmt{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if r.db, err = connect(path, "query_only(1)", "cache_size(-2048)"); err != nil {
		return nil, err
	}
	r.db.SetMaxOpenConns(readers)
	r.db.SetMaxIdleConns(readers)
	if r.checkpoints, err = connect(path, "synchronous(FULL)", "wal_autocheckpoint(0)"); err != nil {
		return nil, err
	}
	r.checkpoints.SetMaxOpenConns(1)
	for _, text := range []string{sqlState, sqlSession, sqlStates, sqlAllSessions, sqlEvents, sqlLeaves, sqlFind, sqlSize, sqlRequest, sqlBlob, sqlSubject, sqlRecipients} {
		if r.stmts[text], err = r.db.PrepareContext(ctx, text); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// take returns the pool for one more user, or nil.
func (s *Store) take() *reader {
	s.read.Lock()
	defer s.read.Unlock()
	if s.r != nil {
		s.r.users++
	}
	return s.r
}

// release ends what take began.
func (s *Store) release(r *reader) error {
	s.read.Lock()
	defer s.read.Unlock()
	if r.users--; r.users > 0 || !r.retired {
		return nil
	}
	return r.close()
}

func (r *reader) close() error {
	var errs []error
	for _, s := range r.stmts {
		errs = append(errs, s.Close())
	}
	if r.db != nil {
		errs = append(errs, r.db.Close())
	}
	if r.checkpoints != nil {
		errs = append(errs, r.checkpoints.Close())
	}
	return errors.Join(errs...)
}

// snapshot is a read transaction.
type snapshot struct {
	s  *Store
	r  *reader
	tx *sql.Tx // nil: closed
}

// Snapshot implements ledger.Store. It waits while as many are open as the store has readers.
func (s *Store) Snapshot(ctx context.Context) (ledger.Snapshot, error) {
	select {
	case s.gate <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("snapshot: %w", ctx.Err())
	}
	r := s.take()
	if r == nil {
		<-s.gate
		return nil, fmt.Errorf("snapshot: ledger %s is closed", s.path)
	}
	// Without the caller's context, for which database/sql would start a goroutine.
	tx, err := r.db.BeginTx(context.Background(), &sql.TxOptions{ReadOnly: true})
	if err != nil {
		<-s.gate
		return nil, fmt.Errorf("snapshot: %w", errors.Join(err, s.release(r)))
	}
	return &snapshot{s, r, tx}, nil
}

func (v *snapshot) Close() error {
	if v.tx == nil {
		return nil
	}
	err := v.tx.Rollback()
	v.tx = nil
	<-v.s.gate
	return errors.Join(err, v.s.release(v.r))
}

// query runs a prepared statement in the snapshot.
func (v *snapshot) query(ctx context.Context, text string, args ...any) (*sql.Rows, error) {
	if err := v.ready(ctx); err != nil {
		return nil, err
	}
	return v.tx.StmtContext(ctx, v.r.stmts[text]).QueryContext(context.Background(), args...)
}

func (v *snapshot) ready(ctx context.Context) error {
	if v.tx == nil {
		return errors.New("the snapshot is closed")
	}
	return ctx.Err()
}

// one reads the only row of a query, or says ErrNotFound.
func (v *snapshot) one(ctx context.Context, text string, args []any, into ...any) error {
	rows, err := v.query(ctx, text, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	if !rows.Next() {
		if err := rows.Err(); err != nil {
			return err
		}
		return ledger.ErrNotFound
	}
	return rows.Scan(into...)
}

// collect reads the rows of a query with scan, each into a value of its own.
func collect[T any](rows *sql.Rows, err error, scan func(*sql.Rows, *T) error) ([]T, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		var v T
		if err := scan(rows, &v); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

func (v *snapshot) Row(ctx context.Context, key ledger.RowKey) (ledger.Row, error) {
	row := ledger.Row{RowKey: key}
	text, args := sqlState, []any{string(key.Kind), key.Key}
	if key.Kind == ledger.KindSession {
		text, args = sqlSession, []any{key.Key}
	}
	err := v.one(ctx, text, args, &row.Value, &row.Seq)
	return row, err
}

func (v *snapshot) Rows(ctx context.Context, kind ledger.Kind, after string, max int) ([]ledger.Row, error) {
	if kind == ledger.KindSession {
		rows, err := v.query(ctx, sqlAllSessions, after, max)
		return collect(rows, err, scanIndexed)
	}
	rows, err := v.query(ctx, sqlStates, string(kind), after, max)
	return collect(rows, err, func(rows *sql.Rows, r *ledger.Row) error {
		r.Kind = kind
		return rows.Scan(&r.Key, &r.Value, &r.Seq)
	})
}

// scanIndexed reads a session and compares the columns that it is found by with what it says itself.
func scanIndexed(rows *sql.Rows, r *ledger.Row) error {
	var c columns
	if err := rows.Scan(&r.Key, &r.Value, &r.Seq, &c.principal, &c.secret, &c.device, &c.state, &c.due, &c.receiptDue); err != nil {
		return err
	}
	r.Kind = ledger.KindSession
	var s session.Session
	if err := event.Unmarshal(r.Value, &s); err != nil {
		r.Fault = err.Error()
		return nil
	}
	if c != columnsOf(s) || s.ID.String() != r.Key {
		r.Fault = "the columns that it is found by are not its own"
	}
	return nil
}

func (v *snapshot) Sessions(ctx context.Context, q ledger.SessionQuery) ([]ledger.Row, error) {
	if err := v.ready(ctx); err != nil {
		return nil, err
	}
	text, args := sessionsSQL(q)
	rows, err := v.tx.QueryContext(context.Background(), text, args...)
	return collect(rows, err, func(rows *sql.Rows, r *ledger.Row) error {
		r.Kind = ledger.KindSession
		return rows.Scan(&r.Key, &r.Value, &r.Seq, &r.Opened)
	})
}

// sessionsSQL builds the query for q out of constant text; values are parameters.
func sessionsSQL(q ledger.SessionQuery) (text string, args []any) {
	text, args = sessionsWhere(q)
	order := "idx DESC"
	switch {
	case !q.LiveFrom.IsZero():
		order = "due, id"
	case !q.ExpiresBefore.IsZero():
		order = "due, idx"
	case !q.ReceiptBefore.IsZero():
		order = "receipt_due, idx"
	}
	limit := q.Max
	if limit <= 0 || limit > ledger.MaxPage {
		limit = ledger.MaxPage
	}
	if args = append(args, limit); order == "idx DESC" && q.Secret != "" && q.Principal == "" && q.Device == "" && len(q.States) == 0 {
		// The index by secret is in the order of principals. What comes first is found in the index alone.
		return "SELECT id, value, seq, idx FROM sessions WHERE idx IN (SELECT idx FROM sessions INDEXED BY sessions_pair" + text +
			" ORDER BY idx DESC LIMIT ?) ORDER BY idx DESC", args
	}
	return "SELECT id, value, seq, idx FROM sessions" + text + " ORDER BY " + order + " LIMIT ?", args
}

// sessionsWhere is the condition of q, "" if there is none.
func sessionsWhere(q ledger.SessionQuery) (text string, args []any) {
	var where []string
	add := func(condition string, values ...any) {
		where, args = append(where, condition), append(args, values...)
	}
	if q.Principal != "" {
		add("principal = ?", q.Principal)
	}
	if q.Secret != "" {
		add("secret = ?", q.Secret)
	}
	if q.Device != "" {
		add("device = ? AND device <> ''", q.Device)
	}
	live := len(q.States) > 0
	if len(q.States) > 0 {
		marks := make([]any, len(q.States))
		for i, s := range q.States {
			marks[i] = s
			live = live && !session.State(s).Ended()
		}
		add("state IN (?"+strings.Repeat(", ?", len(marks)-1)+")", marks...)
	}
	if live {
		add("due IS NOT NULL")
	}
	if !q.ReceiptBefore.IsZero() {
		add("receipt_due <= ? AND due > ?", q.ReceiptBefore.UnixMicro(), q.ReceiptBefore.UnixMicro())
	}
	if !q.ExpiresBefore.IsZero() {
		add("due <= ?", q.ExpiresBefore.UnixMicro())
	}
	if !q.LiveFrom.IsZero() {
		from := q.LiveFrom.UnixMicro()
		add("due >= ? AND (due > ? OR id > ?)", from, from, q.LiveAfter)
	}
	if q.Before != "" {
		add("idx < (SELECT b.idx FROM sessions b WHERE b.id = ?)", q.Before)
	}
	if q.From > 0 {
		add("idx >= ?", q.From)
	}
	if q.Below > 0 {
		add("idx < ?", q.Below)
	}
	if len(where) > 0 {
		text = " WHERE " + strings.Join(where, " AND ")
	}
	return text, args
}

// Scan implements ledger.Snapshot. Without an order nothing is sorted: the rows come as the index has them.
func (v *snapshot) Scan(ctx context.Context, q ledger.SessionQuery, f func(ledger.Row) error) error {
	if err := v.ready(ctx); err != nil {
		return err
	}
	where, args := sessionsWhere(ledger.SessionQuery{Principal: q.Principal, Secret: q.Secret, Device: q.Device, From: q.From, Below: q.Below})
	rows, err := v.tx.QueryContext(context.Background(), "SELECT value, idx FROM sessions"+where, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	row := ledger.Row{RowKey: ledger.RowKey{Kind: ledger.KindSession}}
	var raw sql.RawBytes
	for n := 0; rows.Next(); n++ {
		if n%256 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if err := rows.Scan(&raw, &row.Opened); err != nil {
			return err
		}
		row.Value = raw
		if err := f(row); err != nil {
			return err
		}
	}
	return rows.Err()
}

// Recipients implements ledger.Snapshot, on an index that holds all that it passes on.
func (v *snapshot) Recipients(ctx context.Context, secret string, from, below int64, f func(principal string, index int64) error) error {
	rows, err := v.query(ctx, sqlRecipients, secret, from, below)
	if err != nil {
		return err
	}
	defer rows.Close()
	var raw sql.RawBytes // read before the next row
	var principal string
	for n := 0; rows.Next(); n++ {
		var index int64
		if err := rows.Scan(&raw, &index); err != nil {
			return err
		}
		if n%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if string(raw) != principal {
			principal = string(raw)
		}
		if err := f(principal, index); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (v *snapshot) Events(ctx context.Context, from int64, max int) ([]ledger.Stored, error) {
	rows, err := v.query(ctx, sqlEvents, from, max)
	return collect(rows, err, func(rows *sql.Rows, e *ledger.Stored) (err error) {
		*e, err = scanEvent(rows.Scan)
		return err
	})
}

func (v *snapshot) Leaves(ctx context.Context, from int64, max int) ([]ledger.Stored, error) {
	rows, err := v.query(ctx, sqlLeaves, from, max)
	var leaf sql.RawBytes // read before the next row
	return collect(rows, err, func(rows *sql.Rows, e *ledger.Stored) (err error) {
		if err := rows.Scan(&e.Index, &leaf); err != nil {
			return err
		}
		return parseLeaf(e, leaf)
	})
}

func parseLeaf(e *ledger.Stored, leaf []byte) (err error) {
	if e.Leaf, err = event.ParseLeaf(leaf); err != nil {
		return fmt.Errorf("%w: event %d: %w", ledger.ErrTampered, e.Index, err)
	}
	return nil
}

func scanEvent(scan func(...any) error) (e ledger.Stored, err error) {
	var id, leaf []byte
	if err := scan(&e.Index, &id, &leaf, &e.Subject, &e.Body); err != nil {
		return e, err
	}
	if len(id) != len(e.ID) {
		return e, fmt.Errorf("%w: event %d has an id of %d bytes", ledger.ErrTampered, e.Index, len(id))
	}
	copy(e.ID[:], id)
	err = parseLeaf(&e, leaf)
	return e, err
}

func (v *snapshot) Find(ctx context.Context, id event.ID) (ledger.Stored, error) {
	rows, err := v.query(ctx, sqlFind, id[:])
	found, err := collect(rows, err, func(rows *sql.Rows, e *ledger.Stored) (err error) {
		*e, err = scanEvent(rows.Scan)
		return err
	})
	if err == nil && len(found) == 0 {
		err = ledger.ErrNotFound
	}
	if err != nil {
		return ledger.Stored{}, err
	}
	return found[0], nil
}

func (v *snapshot) Size(ctx context.Context) (n int64, err error) {
	err = v.one(ctx, sqlSize, nil, &n)
	return n, err
}

func (v *snapshot) Request(ctx context.Context, key string) (ledger.Request, error) {
	q := ledger.Request{Key: key}
	var owner, id []byte
	var expires int64
	if err := v.one(ctx, sqlRequest, []any{key}, &q.Index, &owner, &q.Reply, &expires, &id); err != nil {
		return ledger.Request{}, err
	}
	if len(owner) != len(q.Owner) || len(id) != len(q.Session) {
		return ledger.Request{}, fmt.Errorf("%w: request %q", ledger.ErrTampered, key)
	}
	copy(q.Owner[:], owner)
	copy(q.Session[:], id)
	q.Expires = time.UnixMicro(expires).UTC()
	return q, nil
}

func (v *snapshot) Blob(ctx context.Context, key string) (data []byte, err error) {
	err = v.one(ctx, sqlBlob, []any{key}, &data)
	return data, err
}

func (v *snapshot) SubjectKey(ctx context.Context, subject string) (wrapped []byte, err error) {
	err = v.one(ctx, sqlSubject, []any{subject}, &wrapped)
	return wrapped, err
}
