package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/bulla-project/bulla/keyring"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// maxDifferences bounds a report; the count goes on.
const maxDifferences = 1000

// Difference is one place where the store is not what its events say.
type Difference struct {
	Where string `json:"where"` // such as `event 17`, `session "0190…"`, `blob "secret/…"`
	What  string `json:"what"`
}

// Report is what Check found.
type Report struct {
	Events      int64        `json:"events"`
	Rows        int64        `json:"rows"`
	Blobs       int64        `json:"blobs"`
	Differences []Difference `json:"differences"` // at most 1000 of them
	Faults      int64        `json:"faults"`      // all of them
}

// OK reports whether there is no difference.
func (r Report) OK() bool { return r.Faults == 0 }

func (r *Report) add(what string, format string, args ...any) {
	r.Faults++
	if len(r.Differences) < maxDifferences {
		r.Differences = append(r.Differences, Difference{fmt.Sprintf(format, args...), what})
	}
}

// Check replays all events of a snapshot and compares what they make with what the store holds: every event
// has its index without a gap, opens, is what its leaf commits to, and fits the state before it; no id
// occurs twice; every projection row is the one that the events make, and there is no other; every blob that
// an event names, and none has dropped since, is there with its digest. It errs only when the snapshot can't be read.
//
// Request rows and counters are no projections and are not looked at. Memory: the rows, except that of a
// session that has ended only a digest is kept, once no event can change it any more.
//
// progress, if it is not nil, is called now and then with the number of events that were looked at, and of all.
func Check(ctx context.Context, snap Snapshot, keys *keyring.Ring, progress func(done, total int64)) (Report, error) {
	return newChecker(snap, keys, progress).run(ctx)
}

func newChecker(snap Snapshot, keys *keyring.Ring, progress func(done, total int64)) *checker {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	return &checker{
		snap: snap, progress: progress, opener: newOpener(keys, snap), report: Report{Differences: []Difference{}},
		rows: map[RowKey]Row{}, ended: map[event.ID]endedRow{}, ids: map[event.ID]struct{}{}, gone: map[event.ID]struct{}{},
		rounds: map[string]event.Digest{},
		watch:  func(Stored, Entry, *checkTx) {}, read: func(*checker) {},
	}
}

// run makes the report.
func (c *checker) run(ctx context.Context) (Report, error) {
	steps := []func(context.Context) error{c.erasures, c.events, func(context.Context) error { c.read(c); return nil }}
	for _, kind := range Kinds() {
		steps = append(steps, func(ctx context.Context) error { return c.compare(ctx, kind) })
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return Report{}, fmt.Errorf("check ledger: %w", err)
		}
	}
	for key, digest := range c.rounds {
		if err := c.blob(ctx, key, digest); err != nil {
			return Report{}, fmt.Errorf("check ledger: %w", err)
		}
	}
	c.missing()
	return c.report, nil
}

// endedRow is what is left to compare of a session that no event can change any more.
type endedRow struct {
	sum [sha256.Size]byte
	seq int64
}

type checker struct {
	snap     Snapshot
	progress func(done, total int64)
	size     int64
	opener   *opener
	report   Report

	rows   map[RowKey]Row
	ended  map[event.ID]endedRow
	ids    map[event.ID]struct{}
	rounds map[string]event.Digest // blobs that a later event may drop

	gone map[event.ID]struct{} // sessions that an event erases, wherever it stands

	watch func(s Stored, e Entry, tx *checkTx) // called with what each event made
	read  func(c *checker)                     // called with what all of them made

	spent []session.Session // exhausted: their rows are kept, since they can be revoked before their time is over
	limit int               // how many of them there may be until those whose time is over go
}

// disorder is how far apart the times of events may be that stand in another order in the ledger.
const disorder = 24 * time.Hour

// settle keeps but a digest of the sessions that were exhausted and whose time is over.
func (c *checker) settle(now time.Time) {
	if len(c.spent) <= c.limit {
		return
	}
	kept := c.spent[:0]
	for _, s := range c.spent {
		key := RowKey{KindSession, s.ID.String()}
		switch row, ok := c.rows[key]; {
		case !ok: // it was revoked
		case now.Sub(s.Expires.Time()) > disorder:
			c.end(s.ID, row)
		default:
			kept = append(kept, s)
		}
	}
	c.spent, c.limit = kept, 2*len(kept)+1000
}

// end keeps but a digest of a row that no event can change any more.
func (c *checker) end(id event.ID, row Row) {
	delete(c.rows, row.RowKey)
	c.ended[id] = endedRow{sha256.Sum256(row.Value), row.Seq}
}

func (c *checker) events(ctx context.Context) error {
	size, err := c.snap.Size(ctx)
	if err != nil {
		return err
	}
	c.size = size
	for next := int64(0); next < size; {
		page, err := c.snap.Events(ctx, next, MaxPage)
		if err != nil {
			return err
		}
		for _, s := range page {
			for ; next < s.Index && next < size; next++ {
				c.report.add("it is missing", "event %d", next)
			}
			if err := c.event(ctx, s); err != nil {
				return err
			}
			next = s.Index + 1
			c.report.Events++
		}
		c.progress(c.report.Events, size)
		if len(page) == 0 {
			c.report.add(fmt.Sprintf("they are missing, the store says it has %d", size), "events from %d", next)
			break
		}
	}
	return nil
}

func (c *checker) event(ctx context.Context, s Stored) error {
	e, err := c.opener.open(ctx, s)
	if errors.Is(err, ErrTampered) {
		c.report.add(err.Error(), "event %d", s.Index)
		return nil
	}
	if err != nil {
		return err
	}
	if e.Erased != 0 {
		c.effects(s)
		return nil
	}
	if _, twice := c.ids[s.ID]; twice {
		c.report.add("its id "+s.ID.String()+" was used before", "event %d", s.Index)
	}
	c.ids[s.ID] = struct{}{}
	tx := &checkTx{c: c, puts: map[RowKey]Row{}, sessions: map[RowKey]session.Session{}}
	if err := Project(tx, s.Index, e.Event); err != nil {
		c.report.add(err.Error(), "event %d", s.Index)
		return nil
	}
	c.watch(s, e, tx)
	tx.keep()
	c.settle(e.Event.Time.Time())
	key, digest, ok := BlobFor(e.Event.Body)
	if _, round := e.Event.Body.(event.SessionIssued); ok && round {
		c.rounds[key] = digest
		return nil
	}
	if ok {
		return c.blob(ctx, key, digest)
	}
	return nil
}

// erasures reads the events that destroyed keys, before those that lay under them. That a row names no such event shows
// where the key is asked for.
func (c *checker) erasures(ctx context.Context) error {
	for after := ""; ; {
		rows, err := c.snap.Rows(ctx, KindErasure, after, MaxPage)
		if err != nil {
			return err
		}
		for _, r := range rows {
			after = r.Key
			e, err := c.opener.findErasure(ctx, r.Key)
			if err != nil && !errors.Is(err, ErrTampered) {
				return err
			}
			if err != nil {
				continue
			}
			for _, s := range e.body.Sessions {
				c.gone[s.Session] = struct{}{}
			}
			switch _, err := c.snap.SubjectKey(ctx, r.Key); {
			case err == nil:
				c.report.add(fmt.Sprintf("it is there, but event %d destroyed it", e.index), "key %q", r.Key)
			case !errors.Is(err, ErrNotFound):
				return err
			}
		}
		if len(rows) == 0 {
			return nil
		}
	}
}

// effects applies what the event that erased s says that s did.
func (c *checker) effects(s Stored) {
	for _, r := range c.opener.erasures[s.Subject].body.Rows {
		key := RowKey{Kind(r.Kind), r.Key}
		switch {
		case r.Index != s.Index:
		case len(r.Value) == 0:
			delete(c.rows, key)
		default:
			c.rows[key] = NewRow(key, r.Value, s.Index+1)
		}
	}
}

func (c *checker) blob(ctx context.Context, key string, digest event.Digest) error {
	c.report.Blobs++
	data, err := c.snap.Blob(ctx, key)
	switch {
	case errors.Is(err, ErrNotFound):
		c.report.add("it is missing", "blob %q", key)
	case err != nil:
		return err
	case sha256.Sum256(data) != digest:
		c.report.add("it does not have the digest that its event names", "blob %q", key)
	}
	return nil
}

// compare takes each row of a kind off what the events made.
func (c *checker) compare(ctx context.Context, kind Kind) error {
	for after := ""; ; {
		rows, err := c.snap.Rows(ctx, kind, after, MaxPage)
		if err != nil {
			return err
		}
		for _, r := range rows {
			c.report.Rows++
			c.row(r)
		}
		c.progress(c.report.Events, c.size)
		if len(rows) == 0 {
			return nil
		}
		after = rows[len(rows)-1].Key
	}
}

func (c *checker) row(r Row) {
	want, ok := c.rows[r.RowKey]
	same := ok && bytes.Equal(want.Value, r.Value)
	delete(c.rows, r.RowKey)
	if id, err := event.ParseID(r.Key); r.Kind == KindSession && err == nil && !ok {
		var e endedRow
		e, ok = c.ended[id]
		want.Seq, same = e.seq, ok && e.sum == sha256.Sum256(r.Value)
		delete(c.ended, id)
	}
	switch {
	case !ok:
		c.report.add("no event made it", "%s %q", r.Kind, r.Key)
	case !same:
		c.report.add("its content is not what the events made", "%s %q", r.Kind, r.Key)
	case r.Fault != "":
		c.report.add(r.Fault, "%s %q", r.Kind, r.Key)
	case want.Seq != r.Seq:
		c.report.add(fmt.Sprintf("it says that event %d wrote it last, which was event %d", r.Seq-1, want.Seq-1), "%s %q", r.Kind, r.Key)
	}
}

func (c *checker) missing() {
	for key := range c.rows {
		c.report.add("it is missing", "%s %q", key.Kind, key.Key)
	}
	for id := range c.ended {
		c.report.add("it is missing", "%s %q", KindSession, id)
	}
}

// checkTx is the transaction of one event over the rows that the events before it made.
type checkTx struct {
	c        *checker
	puts     map[RowKey]Row
	sessions map[RowKey]session.Session
	drops    []string
}

func (t *checkTx) Get(key RowKey) (Row, error) {
	if r, ok := t.puts[key]; ok {
		if r.Seq == 0 {
			return Row{}, ErrNotFound
		}
		return r, nil
	}
	if r, ok := t.c.rows[key]; ok {
		return r, nil
	}
	if id, err := event.ParseID(key.Key); key.Kind == KindSession && err == nil {
		if _, ok := t.c.ended[id]; ok {
			return Row{}, fmt.Errorf("%w: session %s has ended", ErrTransition, id)
		}
		if _, ok := t.c.gone[id]; ok {
			return Row{}, errGone
		}
	}
	return Row{}, ErrNotFound
}

func (t *checkTx) Put(row Row) error {
	t.puts[row.RowKey] = row
	return nil
}

func (t *checkTx) PutSession(s session.Session, row Row) error {
	t.sessions[row.RowKey] = s
	return t.Put(row)
}

func (t *checkTx) DropBlob(key string) error {
	t.drops = append(t.drops, key)
	return nil
}

func (t *checkTx) keep() {
	for _, key := range t.drops {
		delete(t.c.rounds, key)
	}
	for key, row := range t.puts {
		s, ok := t.sessions[key]
		switch {
		case row.Seq == 0:
			delete(t.c.rows, key)
		case ok && s.State == session.Exhausted && s.Erased == 0:
			t.c.rows[key], t.c.spent = row, append(t.c.spent, session.Session{ID: s.ID, Expires: s.Expires})
		case ok && s.State.Ended():
			t.c.end(s.ID, row)
		default:
			t.c.rows[key] = row
		}
	}
}
