package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// Erasure is the projection of a key that was destroyed.
type Erasure struct {
	Index   int64      `json:"index"` // of the event that says so
	Subject string     `json:"subject"`
	Events  int64      `json:"events"`
	At      event.Time `json:"at"`
}

// Hold is the projection of a legal hold.
type Hold struct {
	Selector string     `json:"selector"`
	Value    string     `json:"value,omitempty"`
	Reason   string     `json:"reason"`
	At       event.Time `json:"at"`
	By       string     `json:"by,omitempty"`
}

// HoldKey is the key of KindHold rows: there is one hold on a thing, or none.
func HoldKey(selector, value string) string { return selector + "/" + value }

// errGone is what the check's transaction says of a session whose events were erased, until it comes to the event that
// says how the session ended.
var errGone = errors.New("its events were erased")

// ownKinds are the rows that say nothing of anybody but the subject. They go with the event that wrote them last.
var ownKinds = []Kind{KindPassport, KindDemand, KindWiped}

func (p projection) subjectErased(b event.SubjectErased, index int64) error {
	switch _, there, err := get[Erasure](p, KindErasure, b.Key); {
	case err != nil:
		return err
	case there:
		return refuse("key %s was destroyed before", b.Key)
	}
	if err := checkErased(b, index); err != nil {
		return err
	}
	if err := p.unheld(HoldKey(event.HoldEverything, ""), HoldKey(event.ByPrincipal, b.Subject)); err != nil {
		return err
	}
	for _, s := range b.Sessions {
		if err := p.sessionErased(s, index); err != nil {
			return err
		}
	}
	for _, r := range b.Rows {
		if len(r.Value) == 0 {
			if err := p.rowErased(r, b.Indexes); err != nil {
				return err
			}
		}
	}
	return put(p, KindErasure, b.Key, Erasure{index, b.Subject, int64(len(b.Indexes)), p.time})
}

// checkErased judges what the event says by itself.
func checkErased(b event.SubjectErased, index int64) error {
	last := int64(0) // the genesis is nobody's
	for _, i := range b.Indexes {
		if i <= last || i >= b.Seen {
			return refuse("erasure of %s: index %d is out of order, or not below %d", b.Key, i, b.Seen)
		}
		last = i
	}
	if b.Subject == "" || event.SubjectOf(b.Key) != b.Subject || len(b.Indexes) == 0 || b.Seen > index || b.Reason == "" {
		return refuse("erasure of %q: a key of the subject, a reason, and earlier events are needed", b.Key)
	}
	for _, r := range b.Rows {
		if _, ok := slices.BinarySearch(b.Indexes, r.Index); !ok || len(r.Value) == 0 != slices.Contains(ownKinds, Kind(r.Kind)) || Kind(r.Kind) == KindDenial {
			return refuse("erasure of %s: it can't say what event %d did to %s %q", b.Key, r.Index, r.Kind, r.Key)
		}
	}
	return nil
}

func (p projection) unheld(keys ...string) error {
	for _, key := range keys {
		h, ok, err := get[Hold](p, KindHold, key)
		if err != nil {
			return err
		}
		if ok {
			return fmt.Errorf("%w: %w", ErrTransition, heldBy(h))
		}
	}
	return nil
}

func heldBy(h Hold) error {
	what := h.Selector
	if h.Value != "" {
		what += " " + h.Value
	}
	return fmt.Errorf("%w: on %s since %s: %s", ErrHeld, what, h.At, h.Reason)
}

func (p projection) sessionErased(b event.ErasedSession, index int64) error {
	s, ok, err := get[session.Session](p, KindSession, b.Session.String())
	switch {
	case errors.Is(err, errGone):
		// A check: whoever committed this looked at the session.
	case err != nil:
		return err
	case !ok || s.Erased != 0 || string(s.State) != b.State:
		return refuse("session %s is not there, or not %s", b.Session, b.State)
	case !s.State.Ended() || s.State == session.Exhausted && p.time.Time().Before(s.Expires.Time()):
		return refuse("session %s is live: it is %s until %s", b.Session, s.State, s.Expires)
	default:
		if err := p.unheld(HoldKey(event.BySecret, s.Secret)); err != nil {
			return err
		}
	}
	return p.putSession(session.Session{ID: b.Session, State: session.State(b.State), Erased: index})
}

// rowErased drops a row of the subject's own, unless another event wrote it meanwhile.
func (p projection) rowErased(r event.ErasedRow, indexes []int64) error {
	row, err := p.tx.Get(RowKey{Kind(r.Kind), r.Key})
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, ok := slices.BinarySearch(indexes, row.Seq-1); !ok {
		return nil
	}
	return p.tx.Put(NewRow(row.RowKey, nil, 0))
}

func (p projection) holdPlaced(b event.HoldPlaced) error {
	switch b.Selector {
	case event.ByPrincipal, event.BySecret, event.HoldEverything:
	default:
		return refuse("hold on %q: there is no such selector", b.Selector)
	}
	if (b.Value == "") != (b.Selector == event.HoldEverything) || b.Reason == "" {
		return refuse("hold on %s %q: a value and a reason are needed", b.Selector, b.Value)
	}
	key := HoldKey(b.Selector, b.Value)
	switch _, there, err := get[Hold](p, KindHold, key); {
	case err != nil:
		return err
	case there:
		return refuse("there is a hold on %s already", key)
	}
	return put(p, KindHold, key, Hold{b.Selector, b.Value, b.Reason, p.time, p.subject})
}

func (p projection) holdReleased(b event.HoldReleased) error {
	key := HoldKey(b.Selector, b.Value)
	row, err := p.tx.Get(RowKey{KindHold, key})
	if errors.Is(err, ErrNotFound) {
		return refuse("there is no hold on %s", key)
	}
	if err != nil {
		return err
	}
	return p.tx.Put(NewRow(row.RowKey, nil, 0))
}

// Hold returns a legal hold.
func (l *Ledger) Hold(ctx context.Context, selector, value string) (Hold, int64, error) {
	return read[Hold](ctx, l, KindHold, HoldKey(selector, value))
}

// Holds lists up to max legal holds whose HoldKey is greater than after.
func (l *Ledger) Holds(ctx context.Context, after string, max int) ([]Hold, error) {
	return list[Hold](ctx, l, KindHold, after, max)
}

// erased is an event that destroyed a key, as it was found in the log.
type erased struct {
	index int64
	body  event.SubjectErased
}

// erasure finds the event that destroyed the key of s, and that names s. A row alone is not believed, and a key that is
// missing without such an event was taken away by somebody else.
func (o *opener) erasure(ctx context.Context, s Stored) (*erased, error) {
	e, ok := o.erasures[s.Subject]
	if !ok {
		var err error
		if e, err = o.findErasure(ctx, s.Subject); err != nil {
			return nil, err
		}
		o.erasures[s.Subject] = e
	}
	if _, listed := slices.BinarySearch(e.body.Indexes, s.Index); !listed {
		return nil, fmt.Errorf("%w: the key %q was destroyed by event %d, which does not name this one", ErrTampered, s.Subject, e.index)
	}
	return e, nil
}

func (o *opener) findErasure(ctx context.Context, key string) (*erased, error) {
	row, err := o.snap.Row(ctx, RowKey{KindErasure, key})
	if errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("%w: there is no key %q, and no event destroyed it", ErrTampered, key)
	}
	if err != nil {
		return nil, err
	}
	says, err := decode[Erasure](row)
	if err != nil {
		return nil, err
	}
	found, err := o.snap.Events(ctx, says.Index, 1)
	if err != nil {
		return nil, err
	}
	if len(found) != 1 || found[0].Index != says.Index || found[0].Subject != "" {
		return nil, fmt.Errorf("%w: the key %q is gone, and event %d did not destroy it", ErrTampered, key, says.Index)
	}
	e, err := o.open(ctx, found[0])
	if err != nil {
		return nil, err
	}
	b, ok := e.Event.Body.(event.SubjectErased)
	if !ok || b.Key != key || checkErased(b, e.Index) != nil {
		return nil, fmt.Errorf("%w: the key %q is gone, and event %d did not destroy it", ErrTampered, key, says.Index)
	}
	return &erased{e.Index, b}, nil
}

// forgetErased drops from memory what r erased.
func (l *Ledger) forgetErased(r Record) {
	b, ok := r.Event.Body.(event.SubjectErased)
	if !ok {
		return
	}
	l.subjects.forget(b.Key)
	l.recent.drop(b.Indexes)
	l.cache.dropBlobs(b.Sessions)
}
