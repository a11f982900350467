package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// Append implements ledger.Store.
func (s *Store) Append(ctx context.Context, records []ledger.Record) ([]ledger.Outcome, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("append: %w: %w", ledger.ErrNotApplied, err)
	}
	s.write.Lock()
	defer s.write.Unlock()
	if err := s.usable(); err != nil {
		return nil, err
	}
	b := &batch{
		w: s.w, rows: map[ledger.RowKey]ledger.Row{}, sessions: map[ledger.RowKey]session.Session{}, created: map[ledger.RowKey]int64{},
		ids: map[event.ID]struct{}{}, counters: map[counter]ledgerCount{},
		subjects: map[string][]byte{}, blobs: map[string]*ledger.Blob{}, destroyed: map[string]struct{}{},
	}
	outcomes := make([]ledger.Outcome, len(records))
	err := s.w.transact("append", func() error {
		if _, err := s.w.scan(sqlSize, nil, &b.next); err != nil {
			return err
		}
		for i := range records {
			var err error
			if outcomes[i], err = b.add(&records[i]); err != nil {
				return err
			}
		}
		return b.flush()
	})
	if err != nil {
		s.note(err)
		return nil, err
	}
	for _, row := range b.rows {
		if row.Kind != ledger.KindDenial { // which nobody reads by its key, and strangers make many of
			s.w.remember(row)
		}
	}
	for key, session := range b.sessions {
		s.w.rememberTimes(key.Key, columnsOf(session).times)
	}
	for name, wrapped := range b.subjects {
		s.w.rememberSubject(name, wrapped)
	}
	for name := range b.destroyed {
		delete(s.w.subjects, name)
	}
	s.checkpoints.written()
	if len(b.destroyed) > 0 {
		s.checkpoints.scrub()
	}
	return outcomes, nil
}

// usable says whether anything may be written; the caller holds write.
func (s *Store) usable() error {
	switch {
	case s.closed:
		return fmt.Errorf("ledger %s: %w: it is closed", s.path, ledger.ErrNotApplied)
	case s.broken != nil || s.w == nil:
		return fmt.Errorf("ledger %s: %w: %w: %w", s.path, ledger.ErrNotApplied, ledger.ErrBroken, s.broken)
	}
	return nil
}

// note keeps everybody from the handle after an error that leaves it in doubt; the caller holds write.
func (s *Store) note(err error) {
	if errors.Is(err, ledger.ErrBroken) {
		s.broken = err
	}
}

type counter struct {
	key   string
	start int64
}

type ledgerCount struct {
	count   uint32
	expires int64
}

// batch is what the records accepted so far will have written.
type batch struct {
	w    *writer
	next int64 // index of the next event

	rows     map[ledger.RowKey]ledger.Row
	order    []ledger.RowKey // of rows, as they were first written
	sessions map[ledger.RowKey]session.Session
	created  map[ledger.RowKey]int64 // sessions that are new, and the index of their event
	events   []acceptedEvent
	ids      map[event.ID]struct{}
	counters map[counter]ledgerCount
	subjects map[string][]byte
	blobs    map[string]*ledger.Blob // nil: it is dropped

	destroyed map[string]struct{} // keys
}

type acceptedEvent struct {
	index  int64
	record *ledger.Record
}

func (b *batch) row(key ledger.RowKey) (ledger.Row, error) {
	if row, ok := b.rows[key]; ok {
		return row, nil
	}
	return b.w.row(key)
}

// add takes a record in, or says in the outcome why not. The error is the store's own.
func (b *batch) add(r *ledger.Record) (ledger.Outcome, error) {
	tx := &recordTx{b: b}
	err := b.demands(r)
	if err == nil {
		err = ledger.Project(tx, b.next, r.Event)
	}
	if errors.Is(err, ledger.ErrPrecondition) || errors.Is(err, ledger.ErrLimit) || errors.Is(err, ledger.ErrTransition) {
		// What was answered before is answered again, however the ledger moved on since.
		if taken, requestErr := b.requestTaken(r); requestErr != nil || taken {
			return ledger.Outcome{Err: duplicate(r)}, requestErr
		}
	}
	switch {
	case err == nil:
	case refusal(err):
		return ledger.Outcome{Err: err}, nil
	default:
		return ledger.Outcome{}, err
	}
	if err := b.accept(r, tx); err != nil {
		if refusal(err) {
			return ledger.Outcome{Err: err}, nil
		}
		return ledger.Outcome{}, err
	}
	return ledger.Outcome{Index: b.next - 1, Changed: tx.rows}, nil
}

func refusal(err error) bool {
	for _, outcome := range []error{ledger.ErrPrecondition, ledger.ErrLimit, ledger.ErrDuplicateRequest, ledger.ErrTransition, ledger.ErrSubjectKey} {
		if errors.Is(err, outcome) {
			return true
		}
	}
	return false
}

func duplicate(r *ledger.Record) error {
	return fmt.Errorf("request %q: %w", r.Request.Key, ledger.ErrDuplicateRequest)
}

// demands checks what the record demands of rows, counters, subject and blobs.
func (b *batch) demands(r *ledger.Record) error {
	if _, twice := b.ids[r.Event.ID]; twice {
		return fmt.Errorf("%w: event id %s is used twice", ledger.ErrTransition, r.Event.ID)
	}
	for _, p := range r.Require {
		row, err := b.row(p.RowKey)
		if err != nil {
			return err
		}
		if row.Seq != p.Seq {
			return fmt.Errorf("%w: %s %q is at %d, not at %d", ledger.ErrPrecondition, p.Kind, p.Key, row.Seq, p.Seq)
		}
	}
	for i, c := range r.Counters {
		used, err := b.count(c, r.Counters[:i])
		if err != nil {
			return err
		}
		if used >= c.Max {
			return fmt.Errorf("%w: %d of %d are used", ledger.ErrLimit, used, c.Max)
		}
	}
	if r.Blob != nil {
		there, err := b.blob(r.Blob.Key)
		if err != nil {
			return err
		}
		if !there.IsZero() && there != r.Blob.Digest {
			return fmt.Errorf("%w: blob %q is there already, with another digest", ledger.ErrTransition, r.Blob.Key)
		}
	}
	if err := b.erasure(r); err != nil {
		return err
	}
	return b.subject(r)
}

// count returns how much of c is used, by records before this one and by the counters before it.
func (b *batch) count(c ledger.Counter, before []ledger.Counter) (uint32, error) {
	key := counter{c.Key, c.Window.UnixMicro()}
	used := b.counters[key].count
	if used == 0 {
		if _, err := b.w.scan(sqlCounter, []any{key.key, key.start}, &used); err != nil {
			return 0, err
		}
	}
	for _, other := range before {
		if other.Key == c.Key && other.Window.Equal(c.Window) {
			used++
		}
	}
	return used, nil
}

func (b *batch) blob(key string) (event.Digest, error) {
	if blob, ok := b.blobs[key]; ok && blob != nil {
		return blob.Digest, nil
	} else if ok {
		return event.Digest{}, nil
	}
	return b.w.blobDigest(key)
}

// subject checks that the subject's key is, or becomes, the one that the body is sealed under.
func (b *batch) subject(r *ledger.Record) error {
	if r.Subject == "" {
		return nil
	}
	if _, gone := b.destroyed[r.Subject]; gone {
		return fmt.Errorf("subject %q: %w", r.Subject, ledger.ErrSubjectKey)
	}
	wrapped, ok := b.subjects[r.Subject]
	if !ok {
		var err error
		if wrapped, err = b.w.subject(r.Subject); err != nil {
			return err
		}
	}
	if wrapped == nil && r.NewSubject == nil || wrapped != nil && r.NewSubject != nil && !bytes.Equal(wrapped, r.NewSubject) {
		return fmt.Errorf("subject %q: %w", r.Subject, ledger.ErrSubjectKey)
	}
	if wrapped != nil {
		return nil
	}
	was, err := b.row(ledger.RowKey{Kind: ledger.KindErasure, Key: r.Subject})
	if err == nil && was.Seq != 0 {
		err = fmt.Errorf("subject %q: %w", r.Subject, ledger.ErrSubjectKey)
	}
	return err
}

func (b *batch) requestTaken(r *ledger.Record) (bool, error) {
	if r.Request == nil {
		return false, nil
	}
	var one int
	return b.w.scan(sqlHasRequest, []any{r.Request.Key}, &one)
}

// accept takes over what the record writes. The request is the last thing that can refuse it, so it is
// written at once.
func (b *batch) accept(r *ledger.Record, tx *recordTx) error {
	if q := r.Request; q != nil {
		n, err := b.w.exec(sqlPutRequest, b.next, q.Key, q.Owner[:], notNull(q.Reply), q.Expires.UnixMicro(), q.Session[:])
		if err != nil {
			return err
		}
		if n == 0 {
			return duplicate(r)
		}
	}
	for _, c := range r.Counters {
		used, err := b.count(c, nil)
		if err != nil {
			return err
		}
		b.counters[counter{c.Key, c.Window.UnixMicro()}] = ledgerCount{used + 1, c.Window.Add(c.Length).UnixMicro()}
	}
	if r.NewSubject != nil {
		if wrapped, err := b.w.subject(r.Subject); err != nil {
			return err
		} else if wrapped == nil {
			b.subjects[r.Subject] = r.NewSubject
		}
	}
	if r.Blob != nil {
		b.blobs[r.Blob.Key] = r.Blob
	}
	if e, ok := r.Event.Body.(event.SubjectErased); ok {
		b.destroyed[e.Key] = struct{}{}
		delete(b.subjects, e.Key)
		delete(b.w.subjects, e.Key)
	}
	for _, key := range tx.drops {
		b.blobs[key] = nil
	}
	for i, row := range tx.rows {
		if s := tx.sessions[i]; s != nil {
			b.sessions[row.RowKey] = *s
			if old, err := b.row(row.RowKey); err != nil {
				return err
			} else if old.Seq == 0 {
				b.created[row.RowKey] = b.next
				b.w.fresh.add(row.Key)
			}
		}
		if _, ok := b.rows[row.RowKey]; !ok {
			b.order = append(b.order, row.RowKey)
		}
		b.rows[row.RowKey] = row
	}
	b.ids[r.Event.ID] = struct{}{}
	b.events = append(b.events, acceptedEvent{b.next, r})
	b.next++
	return nil
}

// flush writes the batch.
func (b *batch) flush() error {
	for name, wrapped := range b.subjects {
		if _, err := b.w.exec(sqlPutSubject, name, wrapped); err != nil {
			return err
		}
	}
	for _, e := range b.events {
		if err := b.flushEvent(e.index, e.record); err != nil {
			return err
		}
	}
	for _, key := range b.order {
		if err := b.flushRow(b.rows[key]); err != nil {
			return err
		}
	}
	for c, n := range b.counters {
		if _, err := b.w.exec(sqlPutCounter, c.key, c.start, n.expires, n.count); err != nil {
			return err
		}
	}
	for key, blob := range b.blobs {
		if blob == nil {
			if _, err := b.w.exec(sqlDropBlob, key); err != nil {
				return err
			}
			continue
		}
		switch there, err := b.w.blobDigest(key); {
		case err != nil:
			return err
		case !there.IsZero():
			continue
		}
		if _, err := b.w.exec(sqlPutBlob, key, blob.Digest[:], notNull(blob.Data)); err != nil {
			return err
		}
	}
	return nil
}

func (b *batch) flushEvent(index int64, r *ledger.Record) error {
	_, err := b.w.exec(sqlEvent, index, r.Event.ID[:], r.Leaf.Bytes(), r.Subject, r.Body)
	if e, ok := r.Event.Body.(event.SubjectErased); ok && err == nil {
		err = b.flushErasure(e)
	}
	return err
}

// notNull keeps an empty value from becoming NULL.
func notNull(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

func (b *batch) flushRow(row ledger.Row) error {
	s, ok := b.sessions[row.RowKey]
	if row.Seq == 0 {
		_, err := b.w.exec(sqlDropState, string(row.Kind), row.Key)
		return err
	}
	if !ok {
		_, err := b.w.exec(sqlPutState, string(row.Kind), row.Key, row.Seq, row.Value)
		return err
	}
	c := columnsOf(s)
	if index, ok := b.created[row.RowKey]; ok {
		_, err := b.w.exec(sqlNewSession, index, row.Key, row.Seq, c.principal, c.secret, c.device, c.state, c.due, c.receiptDue, row.Value)
		return err
	}
	var n int64
	var err error
	if s.Erased != 0 {
		n, err = b.w.exec(sqlEraseSession, row.Seq, c.state, row.Value, row.Key)
	} else if known, ok := b.w.times[row.Key]; ok && known == c.times {
		n, err = b.w.exec(sqlMoveSession, row.Seq, c.state, row.Value, row.Key)
	} else {
		n, err = b.w.exec(sqlUpdateSession, row.Seq, c.state, c.due, c.receiptDue, row.Value, row.Key)
	}
	if err == nil && n != 1 {
		err = fmt.Errorf("%d rows of session %s", n, row.Key)
	}
	return err
}

// columns are those by which sessions are found.
type columns struct {
	principal, secret, device, state string
	times
}

// times are the columns among them that can change.
type times struct{ due, receiptDue sql.NullInt64 }

func columnsOf(s session.Session) columns {
	c := columns{principal: s.Principal, secret: s.Secret, device: s.Device, state: string(s.State)}
	if !s.State.Ended() {
		c.due = micros(s.Expires)
	}
	if s.State == session.Issued && !s.ReceiptBy.IsZero() {
		c.receiptDue = micros(s.ReceiptBy)
	}
	return c
}

func micros(t event.Time) sql.NullInt64 {
	return sql.NullInt64{Int64: t.Time().UnixMicro(), Valid: true}
}

// recordTx is the transaction of one record over those before it.
type recordTx struct {
	b        *batch
	rows     []ledger.Row
	sessions []*session.Session // of rows; nil for those of other kinds
	last     map[ledger.RowKey]int
	drops    []string // keys of blobs
}

func (t *recordTx) Get(key ledger.RowKey) (ledger.Row, error) {
	if i, ok := t.last[key]; ok {
		return t.rows[i], nil
	}
	row, err := t.b.row(key)
	if err == nil && row.Seq == 0 {
		err = ledger.ErrNotFound
	}
	return row, err
}

func (t *recordTx) Put(row ledger.Row) error { return t.put(row, nil) }

func (t *recordTx) PutSession(s session.Session, row ledger.Row) error { return t.put(row, &s) }

func (t *recordTx) DropBlob(key string) error {
	t.drops = append(t.drops, key)
	return nil
}

func (t *recordTx) put(row ledger.Row, s *session.Session) error {
	if t.last == nil {
		t.last = make(map[ledger.RowKey]int)
	}
	t.last[row.RowKey] = len(t.rows)
	t.rows, t.sessions = append(t.rows, row), append(t.sessions, s)
	return nil
}

// Sweep implements ledger.Store.
func (s *Store) Sweep(ctx context.Context, now time.Time, max int) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.write.Lock()
	defer s.write.Unlock()
	if err := s.usable(); err != nil {
		return 0, err
	}
	var requests, counters int64
	err := s.w.transact("sweep", func() (err error) {
		if requests, err = s.w.exec(sqlSweepRequests, now.UnixMicro(), max); err != nil {
			return err
		}
		counters, err = s.w.exec(sqlSweepCounters, now.UnixMicro(), max-int(requests))
		return err
	})
	if err != nil {
		s.note(err)
		return 0, err
	}
	return int(requests + counters), nil
}
