package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// MaxTrail is the largest number of events that Trail returns.
const MaxTrail = 10_000

// headEvents is how many of the first events Trail looks at before it searches: the genesis, and what Init wrote.
const headEvents = 32

// Trail returns, in the order of their indexes, all events about a session, and those that they rest on: the genesis,
// the envelope key, the revision that decided, what vouched for the instance key, and the trust bundles of that. It reads
// backwards from the session's last event, up to the whole ledger; progress, if set, hears how many events it has been
// through and how many it may be. ErrNotFound: there is no such session. ErrErased: it, or what
// vouched for its instance, was erased. ErrLimit: there are more than MaxTrail.
func (l *Ledger) Trail(ctx context.Context, id event.ID, progress func(done, total int64)) ([]Entry, error) {
	return with(ctx, l, func(snap Snapshot) ([]Entry, error) {
		row, err := snap.Row(ctx, RowKey{KindSession, id.String()})
		if err != nil {
			return nil, fmt.Errorf("session %s: %w", id, err)
		}
		s, err := decode[session.Session](row)
		if err != nil {
			return nil, err
		}
		if s.Erased != 0 {
			return nil, fmt.Errorf("session %s: %w by event %d", id, ErrErased, s.Erased)
		}
		t := trail{session: s, snap: snap, opener: newOpener(l.keys, snap), progress: progress, found: map[int64]Entry{}}
		last := row.Seq
		for _, also := range []RowKey{{KindWiped, id.String()}, {KindRound, id.String()}} {
			if row, err := snap.Row(ctx, also); err == nil {
				last = max(last, row.Seq)
			}
		}
		return t.run(ctx, last)
	})
}

// trail is a search under way.
type trail struct {
	session  session.Session
	snap     Snapshot
	opener   *opener
	progress func(done, total int64)

	found  map[int64]Entry
	issued *event.SessionIssued // nil: the search has not come to it
	// What is still looked for, once issued is known.
	bound, key, revision, approval bool

	erased int64 // an event of the principal that can't be read any more; 0: none
}

func (t *trail) run(ctx context.Context, end int64) ([]Entry, error) {
	for at := end; at > 0 && !t.complete(); {
		from := max(0, at-MaxPage)
		page, err := t.snap.Events(ctx, from, int(at-from))
		if err != nil {
			return nil, err
		}
		for _, stored := range slices.Backward(page) {
			if err := t.look(ctx, stored); err != nil {
				return nil, err
			}
			if t.complete() {
				break
			}
		}
		if at = from; t.progress != nil {
			t.progress(end-at, end)
		}
	}
	if t.issued == nil {
		return nil, fmt.Errorf("%w: session %s has no event that issued it", ErrTampered, t.session.ID)
	}
	if t.bound && t.erased != 0 {
		return nil, fmt.Errorf("what vouched for the instance of session %s: %w, like event %d", t.session.ID, ErrErased, t.erased)
	}
	if err := t.trust(ctx); err != nil {
		return nil, err
	}
	if err := t.restore(ctx); err != nil {
		return nil, err
	}
	out := make([]Entry, 0, len(t.found))
	for _, e := range t.found {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Entry) int { return int(a.Index - b.Index) })
	return out, nil
}

// complete says whether nothing is looked for any more.
func (t *trail) complete() bool {
	return t.issued != nil && !t.bound && !t.key && !t.revision && !t.approval
}

// look opens an event if it may be one of those that are wanted.
func (t *trail) look(ctx context.Context, stored Stored) error {
	others := t.issued == nil && t.session.Split != nil || t.approval || t.revision
	if !others && stored.Subject != "" && event.SubjectOf(stored.Subject) != t.session.Principal {
		return nil
	}
	e, err := t.opener.open(ctx, stored)
	if err != nil {
		return err
	}
	if e.Erased != 0 {
		if event.SubjectOf(stored.Subject) == t.session.Principal {
			t.erased = e.Index
		}
		return nil
	}
	if !t.wants(e.Event.Body) {
		return nil
	}
	if t.found[e.Index] = e; len(t.found) > MaxTrail {
		return fmt.Errorf("%w: session %s has more than %d events", ErrLimit, t.session.ID, MaxTrail)
	}
	if b, ok := e.Event.Body.(event.SessionIssued); ok && t.issued == nil {
		t.issued, t.bound, t.key, t.revision, t.approval = &b, true, true, true, !b.Approval.IsZero()
		return t.head(ctx, e.Index)
	}
	return nil
}

// wants says whether an event belongs to the trail, and notes what it was that was looked for.
func (t *trail) wants(body event.Body) bool {
	if t.issued == nil {
		return concerns(body, t.session.ID) || t.binds(body)
	}
	switch b := body.(type) {
	case event.InstanceBound:
		yes := t.bound && t.binds(b)
		t.bound = t.bound && !yes
		return yes
	case event.KeyIntroduced:
		yes := t.key && b.KeyID == t.issued.KeyID
		t.key = t.key && !yes
		return yes
	case event.RevisionActivated:
		yes := t.revision && b.Digest == t.issued.Decision.Revision && b.Sequence == t.issued.Decision.Sequence
		t.revision = t.revision && !yes
		return yes
	case event.RoundOpened:
		yes := t.approval && b.Round == t.issued.Approval
		t.approval = t.approval && !yes
		return yes
	}
	return t.approval && concerns(body, t.issued.Approval)
}

func (t *trail) binds(body event.Body) bool {
	b, ok := body.(event.InstanceBound)
	return ok && b.Principal == t.session.Principal && b.Instance == t.session.Instance
}

// head looks at the first events of the ledger, which hold most of what is looked for, before the search goes through
// all that lies between.
func (t *trail) head(ctx context.Context, issued int64) error {
	page, err := t.snap.Events(ctx, 0, int(min(headEvents, issued)))
	if err != nil {
		return err
	}
	for _, stored := range page {
		e, err := t.opener.open(ctx, stored)
		if err != nil {
			return err
		}
		switch body := e.Event.Body.(type) {
		case event.Genesis:
			t.found[e.Index] = e
		case event.KeyIntroduced, event.RevisionActivated: // of anything else the newest counts, or all of it
			if t.wants(body) {
				t.found[e.Index] = e
			}
		}
	}
	if !t.revision {
		return nil
	}
	row, err := t.snap.Row(ctx, RowKey{KindRevision, t.issued.Decision.Revision.String()})
	if err != nil || row.Seq > issued {
		return nil // it was activated again since: the search finds it
	}
	return t.take(ctx, row.Seq-1)
}

// trust adds the bundles that the bindings name.
func (t *trail) trust(ctx context.Context) error {
	named := map[event.Digest]bool{}
	for _, e := range t.found {
		if b, ok := e.Event.Body.(event.InstanceBound); ok && !b.Trust.IsZero() {
			named[b.Trust] = true
		}
	}
	for digest := range named {
		row, err := t.snap.Row(ctx, RowKey{KindTrust, digest.String()})
		if err != nil {
			return fmt.Errorf("trust bundle %s: %w", digest, err)
		}
		page, err := t.snap.Events(ctx, row.Seq-1, 1)
		if err != nil || len(page) == 0 {
			return fmt.Errorf("trust bundle %s: %w: its event is missing: %w", digest, ErrTampered, err)
		}
		if t.found[row.Seq-1], err = t.opener.open(ctx, page[0]); err != nil {
			return err
		}
	}
	return nil
}

// restore adds the event that says whose the log is since the newest restore.
func (t *trail) restore(ctx context.Context) error {
	row, err := t.snap.Row(ctx, RowKey{KindIncarnation, CurrentIncarnation})
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	page, err := t.snap.Events(ctx, row.Seq-1, 1)
	if err != nil || len(page) == 0 {
		return fmt.Errorf("the newest restore: %w: its event is missing: %w", ErrTampered, err)
	}
	t.found[row.Seq-1], err = t.opener.open(ctx, page[0])
	return err
}

// take looks at the event with this index.
func (t *trail) take(ctx context.Context, index int64) error {
	page, err := t.snap.Events(ctx, index, 1)
	if err != nil || len(page) == 0 {
		return err
	}
	return t.look(ctx, page[0])
}

// concerns says whether an event tells of the session, or of the round, with this id.
func concerns(body event.Body, id event.ID) bool {
	switch b := body.(type) {
	case event.SessionIssued:
		return b.Session == id
	case event.SessionConfirmed:
		return b.Session == id
	case event.SessionUsed:
		return b.Session == id
	case event.SessionOperated:
		return b.Session == id
	case event.SessionRevoked:
		return b.Session == id
	case event.SessionClosed:
		return b.Session == id
	case event.SessionsExpired:
		return slices.Contains(b.Sessions, id)
	case event.SessionsUnconfirmed:
		return slices.Contains(b.Sessions, id)
	case event.SessionsRevoked:
		return slices.Contains(b.Sessions, id)
	case event.SessionsWiped:
		return slices.Contains(b.Sessions, id)
	case event.ShareIssued:
		return b.Round == id
	case event.RoundApproved:
		return b.Round == id
	case event.RoundRejected:
		return b.Round == id
	case event.RoundClosed:
		return b.Round == id
	case event.RoundExpired:
		return b.Round == id
	}
	return false
}
