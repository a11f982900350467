package storetest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// Memory is a ledger.Store that keeps everything in memory: for tests that need a ledger and no disk. It
// copies its maps after every snapshot, so it suits thousands of events, not millions.
type Memory struct {
	mu     sync.Mutex
	state  *memoryState // guarded
	shared bool         // guarded: a snapshot sees state, which must not change any more
	closed bool         // guarded
}

type memoryState struct {
	rows     map[ledger.RowKey]ledger.Row
	sessions map[string]indexedSession
	events   []ledger.Stored
	ids      map[event.ID]int64
	requests map[string]ledger.Request
	counters map[memoryCounter]memoryCount
	blobs    map[string]ledger.Blob
	subjects map[string][]byte
}

type indexedSession struct {
	session.Session
	order int64
}

type memoryCounter struct {
	key   string
	start int64
}

type memoryCount struct {
	n   uint32
	end time.Time
}

var _ ledger.Store = (*Memory)(nil)

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{state: new(memoryState).clone()} }

func (s *memoryState) clone() *memoryState {
	return &memoryState{
		rows: cloneMap(s.rows), sessions: cloneMap(s.sessions), events: slices.Clip(s.events), ids: cloneMap(s.ids),
		requests: cloneMap(s.requests), counters: cloneMap(s.counters), blobs: cloneMap(s.blobs), subjects: cloneMap(s.subjects),
	}
}

func cloneMap[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return map[K]V{}
	}
	return maps.Clone(m)
}

// Append implements ledger.Store.
func (m *Memory) Append(ctx context.Context, batch []ledger.Record) ([]ledger.Outcome, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("append: %w: %w", ledger.ErrNotApplied, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, fmt.Errorf("append: %w: closed", ledger.ErrNotApplied)
	}
	m.own()
	outcomes := make([]ledger.Outcome, len(batch))
	for i := range batch {
		tx := &memoryTx{memoryState: m.state, rows: map[ledger.RowKey]ledger.Row{}, sessions: map[string]session.Session{}}
		if err := tx.check(&batch[i]); err != nil {
			outcomes[i] = ledger.Outcome{Err: err}
			continue
		}
		outcomes[i] = ledger.Outcome{Index: tx.keep(&batch[i]), Changed: tx.changed}
	}
	return outcomes, nil
}

// own makes the state one that no snapshot sees; the caller holds mu.
func (m *Memory) own() {
	if m.shared {
		m.state, m.shared = m.state.clone(), false
	}
}

// memoryTx is one record over the state before it: nothing is written until all of it was checked.
type memoryTx struct {
	*memoryState
	rows     map[ledger.RowKey]ledger.Row
	sessions map[string]session.Session
	changed  []ledger.Row
	drops    []string
}

func (t *memoryTx) Get(key ledger.RowKey) (ledger.Row, error) {
	row, ok := t.rows[key]
	if !ok {
		row, ok = t.memoryState.rows[key]
	}
	if !ok || row.Seq == 0 {
		return row, ledger.ErrNotFound
	}
	return row, nil
}

func (t *memoryTx) Put(row ledger.Row) error {
	t.rows[row.RowKey] = row
	t.changed = append(t.changed, row)
	return nil
}

func (t *memoryTx) DropBlob(key string) error {
	t.drops = append(t.drops, key)
	return nil
}

func (t *memoryTx) PutSession(s session.Session, row ledger.Row) error {
	t.sessions[row.Key] = s
	return t.Put(row)
}

func (t *memoryTx) check(r *ledger.Record) error {
	if r.Request != nil {
		if _, taken := t.requests[r.Request.Key]; taken {
			return fmt.Errorf("request %q: %w", r.Request.Key, ledger.ErrDuplicateRequest)
		}
	}
	if _, twice := t.ids[r.Event.ID]; twice {
		return fmt.Errorf("%w: event id %s is used twice", ledger.ErrTransition, r.Event.ID)
	}
	for _, p := range r.Require {
		if seq := t.memoryState.rows[p.RowKey].Seq; seq != p.Seq {
			return fmt.Errorf("%w: %s %q is at %d, not at %d", ledger.ErrPrecondition, p.Kind, p.Key, seq, p.Seq)
		}
	}
	used := map[memoryCounter]uint32{}
	for _, c := range r.Counters {
		key := memoryCounter{c.Key, c.Window.UnixMicro()}
		if n := t.counters[key].n + used[key]; n >= c.Max {
			return fmt.Errorf("%w: %d of %d are used", ledger.ErrLimit, n, c.Max)
		}
		used[key]++
	}
	if b := r.Blob; b != nil {
		if old, ok := t.blobs[b.Key]; ok && old.Digest != b.Digest {
			return fmt.Errorf("%w: blob %q is there already, with another digest", ledger.ErrTransition, b.Key)
		}
	}
	if old, ok := t.subjects[r.Subject]; r.Subject != "" && (!ok && r.NewSubject == nil || ok && r.NewSubject != nil && !bytes.Equal(old, r.NewSubject)) {
		return fmt.Errorf("subject %q: %w", r.Subject, ledger.ErrSubjectKey)
	}
	if _, destroyed := t.memoryState.rows[ledger.RowKey{Kind: ledger.KindErasure, Key: r.Subject}]; destroyed {
		return fmt.Errorf("subject %q: %w", r.Subject, ledger.ErrSubjectKey)
	}
	if err := t.checkErasure(r); err != nil {
		return err
	}
	return ledger.Project(t, int64(len(t.events)), r.Event)
}

func (t *memoryTx) checkErasure(r *ledger.Record) error {
	b, ok := r.Event.Body.(event.SubjectErased)
	if !ok {
		return nil
	}
	if _, ok := t.subjects[b.Key]; !ok {
		return fmt.Errorf("%w: there is no key %q", ledger.ErrPrecondition, b.Key)
	}
	for _, e := range t.events[min(max(b.Seen, 0), int64(len(t.events))):] {
		if e.Subject == b.Key {
			return fmt.Errorf("%w: event %d lies under key %q", ledger.ErrPrecondition, e.Index, b.Key)
		}
	}
	return nil
}

// erase takes away what an erasure takes away beside what it projects.
func (t *memoryTx) erase(b event.SubjectErased) {
	delete(t.subjects, b.Key)
	for _, s := range b.Sessions {
		delete(t.blobs, ledger.RoundBlob(s.Session))
	}
	for key, row := range t.memoryState.rows {
		if key.Kind == ledger.KindDenial && slices.Contains(b.Indexes, row.Seq-1) {
			delete(t.memoryState.rows, key)
		}
	}
	for key, r := range t.requests {
		if slices.Contains(b.Indexes, r.Index) {
			delete(t.requests, key)
		}
	}
}

// keep writes what was checked and returns the event's index.
func (t *memoryTx) keep(r *ledger.Record) int64 {
	index := int64(len(t.events))
	for key, row := range t.rows {
		if t.memoryState.rows[key] = row; row.Seq == 0 {
			delete(t.memoryState.rows, key)
		}
	}
	if b, ok := r.Event.Body.(event.SubjectErased); ok {
		t.erase(b)
	}
	for id, s := range t.sessions {
		old, ok := t.memoryState.sessions[id]
		if !ok {
			old.order = index
		}
		t.memoryState.sessions[id] = indexedSession{s, old.order}
	}
	for _, c := range r.Counters {
		key := memoryCounter{c.Key, c.Window.UnixMicro()}
		t.counters[key] = memoryCount{t.counters[key].n + 1, c.Window.Add(c.Length)}
	}
	if _, ok := t.subjects[r.Subject]; !ok && r.Subject != "" {
		t.subjects[r.Subject] = r.NewSubject
	}
	if r.Blob != nil {
		t.blobs[r.Blob.Key] = *r.Blob
	}
	for _, key := range t.drops {
		delete(t.blobs, key)
	}
	if r.Request != nil {
		request := *r.Request
		request.Index = index
		t.requests[request.Key] = request
	}
	t.ids[r.Event.ID] = index
	t.events = append(t.events, ledger.Stored{Index: index, ID: r.Event.ID, Leaf: r.Leaf, Subject: r.Subject, Body: r.Body})
	return index
}

// Snapshot implements ledger.Store.
func (m *Memory) Snapshot(ctx context.Context) (ledger.Snapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errors.New("snapshot: closed")
	}
	m.shared = true
	return memorySnapshot{m.state}, ctx.Err()
}

// Sweep implements ledger.Store.
func (m *Memory) Sweep(ctx context.Context, now time.Time, max int) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.own()
	n := 0
	for key, r := range m.state.requests {
		if n < max && r.Expires.Before(now) {
			delete(m.state.requests, key)
			n++
		}
	}
	for key, c := range m.state.counters {
		if n < max && c.end.Before(now) {
			delete(m.state.counters, key)
			n++
		}
	}
	return n, ctx.Err()
}

// Recover implements ledger.Store; there is nothing to recover.
func (m *Memory) Recover(ctx context.Context) error { return ctx.Err() }

// Close implements ledger.Store.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

type memorySnapshot struct{ s *memoryState }

func (v memorySnapshot) Close() error { return nil }

func (v memorySnapshot) Row(ctx context.Context, key ledger.RowKey) (ledger.Row, error) {
	row, ok := v.s.rows[key]
	if !ok {
		return row, ledger.ErrNotFound
	}
	return row, ctx.Err()
}

func (v memorySnapshot) Rows(ctx context.Context, kind ledger.Kind, after string, max int) ([]ledger.Row, error) {
	var out []ledger.Row
	for key, row := range v.s.rows {
		if key.Kind == kind && key.Key > after {
			out = append(out, row)
		}
	}
	slices.SortFunc(out, func(a, b ledger.Row) int { return strings.Compare(a.Key, b.Key) })
	return out[:min(len(out), max)], ctx.Err()
}

func (v memorySnapshot) Sessions(ctx context.Context, q ledger.SessionQuery) ([]ledger.Row, error) {
	var found []indexedSession
	for _, s := range v.s.sessions {
		if v.matches(s, q) {
			found = append(found, s)
		}
	}
	slices.SortFunc(found, func(a, b indexedSession) int {
		switch {
		case !q.ExpiresBefore.IsZero():
			return cmp.Or(a.Expires.Time().Compare(b.Expires.Time()), cmp.Compare(a.order, b.order))
		case !q.LiveFrom.IsZero():
			return cmp.Or(a.Expires.Time().Compare(b.Expires.Time()), cmp.Compare(a.ID.String(), b.ID.String()))
		case !q.ReceiptBefore.IsZero():
			return cmp.Or(a.ReceiptBy.Time().Compare(b.ReceiptBy.Time()), cmp.Compare(a.order, b.order))
		}
		return cmp.Compare(b.order, a.order)
	})
	if limit := q.Max; limit > 0 && limit < len(found) {
		found = found[:limit]
	}
	out := make([]ledger.Row, min(len(found), ledger.MaxPage))
	for i := range out {
		out[i] = v.s.rows[ledger.RowKey{Kind: ledger.KindSession, Key: found[i].ID.String()}]
		out[i].Opened = found[i].order
	}
	return out, ctx.Err()
}

func (v memorySnapshot) matches(s indexedSession, q ledger.SessionQuery) bool {
	switch {
	case q.Principal != "" && s.Principal != q.Principal, q.Secret != "" && s.Secret != q.Secret, q.Device != "" && s.Device != q.Device:
		return false
	case len(q.States) > 0 && !slices.Contains(q.States, string(s.State)):
		return false
	case !q.ExpiresBefore.IsZero() && (s.State.Ended() || s.Expires.Time().After(q.ExpiresBefore)):
		return false
	case !q.ReceiptBefore.IsZero() && (s.State != session.Issued || s.ReceiptBy.IsZero() || s.ReceiptBy.Time().After(q.ReceiptBefore) ||
		!s.Expires.Time().After(q.ReceiptBefore)):
		return false
	}
	if !q.LiveFrom.IsZero() {
		if at := s.Expires.Time().Compare(q.LiveFrom); s.State.Ended() || at < 0 || at == 0 && s.ID.String() <= q.LiveAfter {
			return false
		}
	}
	if s.order < q.From || q.Below > 0 && s.order >= q.Below {
		return false
	}
	return q.Before == "" || s.order < v.s.sessions[q.Before].order
}

// Scan implements ledger.Snapshot.
func (v memorySnapshot) Scan(ctx context.Context, q ledger.SessionQuery, f func(ledger.Row) error) error {
	for id, s := range v.s.sessions {
		if !v.matches(s, ledger.SessionQuery{Principal: q.Principal, Secret: q.Secret, Device: q.Device, From: q.From, Below: q.Below}) {
			continue
		}
		row := v.s.rows[ledger.RowKey{Kind: ledger.KindSession, Key: id}]
		if row.Opened = s.order; ctx.Err() != nil {
			return ctx.Err()
		}
		if err := f(row); err != nil {
			return err
		}
	}
	return nil
}

// Recipients implements ledger.Snapshot.
func (v memorySnapshot) Recipients(ctx context.Context, secret string, from, below int64, f func(string, int64) error) error {
	var found []indexedSession
	for _, s := range v.s.sessions {
		if s.Secret == secret && s.order >= from && s.order < below {
			found = append(found, s)
		}
	}
	slices.SortFunc(found, func(a, b indexedSession) int {
		return cmp.Or(strings.Compare(a.Principal, b.Principal), cmp.Compare(a.order, b.order))
	})
	for _, s := range found {
		if err := f(s.Principal, s.order); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (v memorySnapshot) Events(ctx context.Context, from int64, max int) ([]ledger.Stored, error) {
	from = min(from, int64(len(v.s.events)))
	return slices.Clone(v.s.events[from:min(from+int64(max), int64(len(v.s.events)))]), ctx.Err()
}

func (v memorySnapshot) Leaves(ctx context.Context, from int64, max int) ([]ledger.Stored, error) {
	events, err := v.Events(ctx, from, max)
	for i, e := range events {
		events[i] = ledger.Stored{Index: e.Index, Leaf: e.Leaf}
	}
	return events, err
}

func (v memorySnapshot) Find(ctx context.Context, id event.ID) (ledger.Stored, error) {
	index, ok := v.s.ids[id]
	if !ok {
		return ledger.Stored{}, ledger.ErrNotFound
	}
	return v.s.events[index], ctx.Err()
}

func (v memorySnapshot) Size(ctx context.Context) (int64, error) {
	return int64(len(v.s.events)), ctx.Err()
}

func (v memorySnapshot) Request(ctx context.Context, key string) (ledger.Request, error) {
	r, ok := v.s.requests[key]
	if !ok {
		return r, ledger.ErrNotFound
	}
	return r, ctx.Err()
}

func (v memorySnapshot) Blob(ctx context.Context, key string) ([]byte, error) {
	b, ok := v.s.blobs[key]
	if !ok {
		return nil, ledger.ErrNotFound
	}
	return bytes.Clone(b.Data), ctx.Err()
}

func (v memorySnapshot) SubjectKey(ctx context.Context, subject string) ([]byte, error) {
	k, ok := v.s.subjects[subject]
	if !ok {
		return nil, ledger.ErrNotFound
	}
	return bytes.Clone(k), ctx.Err()
}
