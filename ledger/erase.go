package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// EraseQuery says what is to be erased.
type EraseQuery struct {
	Subject string    // all that lies under this subject's keys; "": of everybody
	Before  time.Time // what is over since before it; zero: whatever is over
	// Again says that this was planned before, and overtaken: what the subject did since stays.
	Again bool
}

// ErasePlan is what can be erased, as one snapshot showed it.
type ErasePlan struct {
	// Erasures are to be committed in this order, and none after one that was refused: what lies under a later key may
	// go on with sessions that an earlier one opened.
	Erasures []PlannedErasure
	// Kept says what has to stay, and why: at most 100 of them.
	Kept   []string
	Events int64 // that go
	Seen   int64 // size of the ledger
}

// PlannedErasure is an event to commit, and what the commit has to demand: that no hold was placed since on a secret
// that the erased events are about, and that the event does not name. Reason, By and Export are the caller's to fill in.
type PlannedErasure struct {
	Body    event.SubjectErased
	Require []Precondition
}

const maxKept = 100

// PlanErasure looks through all events for what can be erased, and through all state: erasing fixes in the log what the
// erased events did, and that must not be somebody else's edit. A state that is not what the events make gives
// ErrTampered. It commits nothing.
//
// What lies under one key goes together or stays: it stays while one of its sessions is live or newer than q.Before, or
// under a legal hold, or while an event is among it that has to stay. What comes while an erasure is planned is not
// part of it.
func (l *Ledger) PlanErasure(ctx context.Context, q EraseQuery, now time.Time, progress func(done, total int64)) (ErasePlan, error) {
	if q.Subject != "" && !q.Again {
		l.subjects.renew(q.Subject) // so that what comes meanwhile lies under a key of its own
	}
	return with(ctx, l, func(snap Snapshot) (ErasePlan, error) {
		p := planner{q: q, now: now, inUse: l.subjects.inUse, volumes: map[string]*volume{}, sessions: map[event.ID]*planned{}}
		c := newChecker(snap, l.keys, progress)
		c.watch, c.read = p.see, p.finish
		report, err := c.run(ctx)
		if err != nil {
			return ErasePlan{}, err
		}
		if !report.OK() {
			d := report.Differences[0]
			return ErasePlan{}, fmt.Errorf("%w: %s: %s (%d differences): nothing is erased before `bulla audit rebuild --check` is content", ErrTampered, d.Where, d.What, report.Faults)
		}
		p.plan.Seen = c.size
		for i := range p.plan.Erasures {
			p.plan.Erasures[i].Body.Seen = c.size
			p.plan.Events += int64(len(p.plan.Erasures[i].Body.Indexes))
		}
		return p.plan, nil
	})
}

// planner looks on while the ledger is checked.
type planner struct {
	q        EraseQuery
	now      time.Time
	inUse    func(key string) bool
	volumes  map[string]*volume // by key
	sessions map[event.ID]*planned
	plan     ErasePlan
}

// planned is a session that a volume opened.
type planned struct {
	volume *volume
	last   session.Session
}

// volume is what lies under one key.
type volume struct {
	erased  event.SubjectErased
	newest  time.Time
	opened  []event.ID
	uses    []event.ID          // sessions that others opened
	own     map[RowKey]int64    // rows of the subject's own, and the index of the event that wrote them last
	secrets map[string]struct{} // that the events are about
	stays   string              // why it can't be erased; "": it can
}

func (v *volume) stay(format string, args ...any) {
	if v.stays == "" {
		v.stays = fmt.Sprintf(format, args...)
	}
}

// see takes in an event and what it made.
func (p *planner) see(s Stored, e Entry, tx *checkTx) {
	subject := event.SubjectOf(s.Subject)
	if s.Subject != "" && (p.q.Subject == "" || p.q.Subject == subject) {
		p.take(s, e, tx)
	}
	for _, after := range tx.sessions {
		if known := p.sessions[after.ID]; known != nil {
			known.last = after
		}
	}
}

func (p *planner) take(s Stored, e Entry, tx *checkTx) {
	v := p.volumes[s.Subject]
	if v == nil {
		v = &volume{erased: event.SubjectErased{Subject: event.SubjectOf(s.Subject), Key: s.Subject}, own: map[RowKey]int64{}, secrets: map[string]struct{}{}}
		p.volumes[s.Subject] = v
	}
	v.erased.Indexes = append(v.erased.Indexes, s.Index)
	if at := e.Event.Time.Time(); at.After(v.newest) {
		v.newest = at
	}
	if !event.Erasable(e.Event.Body) {
		v.stay("event %d is %s, which has to stay", s.Index, e.Event.Body.EventType())
	}
	for _, name := range p.secretsOf(e.Event.Body) {
		v.secrets[name] = struct{}{}
	}
	for key, row := range tx.puts {
		switch {
		case key.Kind == KindSession:
			id := tx.sessions[key].ID
			v.secrets[tx.sessions[key].Secret] = struct{}{}
			if b, opens := e.Event.Body.(event.SessionIssued); opens && b.Session == id {
				p.sessions[id] = &planned{volume: v}
				v.opened = append(v.opened, id)
			} else if known := p.sessions[id]; known == nil || known.volume != v {
				v.uses = append(v.uses, id)
			}
		case key.Kind == KindDenial:
			// It goes with the event, and its key would tell what was denied.
		case slices.Contains(ownKinds, key.Kind):
			v.own[key] = s.Index
		default:
			v.erased.Rows = append(v.erased.Rows, event.ErasedRow{Index: s.Index, Kind: string(key.Kind), Key: key.Key, Value: row.Value})
		}
	}
}

// secretsOf names the secrets that an event is about which changes no session.
func (p *planner) secretsOf(body event.Body) (names []string) {
	var ids []event.ID
	switch b := body.(type) {
	case event.DecisionDenied:
		names = append(names, aboutSignals(b.Decision.Signals).Resource.Secret.Name)
	case event.ShadowDiffered:
		names = append(names, aboutSignals(b.Decision.Signals).Resource.Secret.Name)
	case event.SessionsWiped:
		ids = b.Sessions
	case event.RequestRefused:
		if id, err := event.ParseID(b.Target); err == nil {
			ids = append(ids, id)
		}
	}
	for _, id := range ids {
		if known := p.sessions[id]; known != nil {
			names = append(names, known.last.Secret)
		}
	}
	return slices.DeleteFunc(names, func(name string) bool { return name == "" })
}

// finish judges the volumes. One that goes on with sessions of others goes after them, or stays with them. Which key is
// older says nothing of that: where two callers come together a subject has two keys, and one of them for a moment only.
func (p *planner) finish(c *checker) {
	var left []*volume
	for _, v := range p.volumes {
		if p.inUse(v.erased.Key) {
			continue
		}
		p.judge(v, c)
		if v.rest(c); v.stays == "" {
			v.fits()
		}
		left = append(left, v)
	}
	slices.SortFunc(left, func(a, b *volume) int { return cmp.Compare(a.erased.Indexes[0], b.erased.Indexes[0]) })
	goes := map[*volume]bool{}
	for before := -1; before != len(left); {
		before = len(left)
		left = slices.DeleteFunc(left, func(v *volume) bool {
			if v.stays == "" && p.waitsFor(v, goes).IsZero() {
				goes[v] = true
				p.plan.Erasures = append(p.plan.Erasures, PlannedErasure{v.erased, v.unheld()})
			}
			return goes[v]
		})
	}
	for _, v := range left[:min(len(left), maxKept)] {
		v.stay("they go on with session %s, which has to stay", p.waitsFor(v, goes))
		p.plan.Kept = append(p.plan.Kept, fmt.Sprintf("%d events of %s from %d on: %s", len(v.erased.Indexes), v.erased.Subject, v.erased.Indexes[0], v.stays))
	}
}

// waitsFor is a session that v goes on with and that does not go, zero if there is none.
func (p *planner) waitsFor(v *volume, goes map[*volume]bool) event.ID {
	for _, id := range v.uses {
		if known := p.sessions[id]; known == nil || !goes[known.volume] {
			return id
		}
	}
	return event.ID{}
}

// unheld demands that there is still no hold on the secrets.
func (v *volume) unheld() []Precondition {
	var out []Precondition
	for _, name := range slices.Sorted(maps.Keys(v.secrets)) {
		out = append(out, Precondition{RowKey: RowKey{KindHold, HoldKey(event.BySecret, name)}})
	}
	return out
}

func (p *planner) judge(v *volume, c *checker) {
	if !p.q.Before.IsZero() && !v.newest.Before(p.q.Before) {
		v.stay("the newest is of %s", v.newest.Format(time.RFC3339))
	}
	held := func(selector, value string) {
		if row, ok := c.rows[RowKey{KindHold, HoldKey(selector, value)}]; ok {
			h, err := decode[Hold](row)
			v.stay("%v", errors.Join(err, heldBy(h)))
		}
	}
	held(event.HoldEverything, "")
	held(event.ByPrincipal, v.erased.Subject)
	for _, name := range slices.Sorted(maps.Keys(v.secrets)) {
		held(event.BySecret, name)
	}
	for _, id := range v.opened {
		s := p.sessions[id].last
		switch {
		case !s.State.Ended():
			v.stay("session %s is live: it is %s until %s", id, s.State, s.Expires)
		case s.State == session.Exhausted && p.now.Before(s.Expires.Time()):
			v.stay("session %s is used up, and the answer to its last use can be asked for again until %s: revoke it by its id", id, s.Expires)
		case !p.q.Before.IsZero() && (!s.EndedAt.Time().Before(p.q.Before) || s.State == session.Exhausted && !s.Expires.Time().Before(p.q.Before)):
			v.stay("session %s ended at %s", id, s.EndedAt)
		}
		v.erased.Sessions = append(v.erased.Sessions, event.ErasedSession{Session: id, State: string(s.State)})
	}
}

// rest adds the rows of the subject's own that nobody wrote since.
func (v *volume) rest(c *checker) {
	for key, index := range v.own {
		if row, ok := c.rows[key]; ok && row.Seq == index+1 {
			v.erased.Rows = append(v.erased.Rows, event.ErasedRow{Index: index, Kind: string(key.Kind), Key: key.Key})
		}
	}
	slices.SortFunc(v.erased.Rows, func(a, b event.ErasedRow) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Key, b.Key))
	})
}

// fits looks whether the event would become too large; ledgers from before keys were changed every so often may have that.
func (v *volume) fits() {
	const room = 64 << 10 // for the decision, and numbers that are not known yet
	if enc, err := event.Marshal(v.erased); err != nil || len(enc) > event.MaxSize-room {
		v.stay("%d events are too many for one erasure", len(v.erased.Indexes))
	}
}
