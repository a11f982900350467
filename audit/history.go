package audit

import (
	"errors"
	"fmt"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// history checks that events, in the order of their indexes, can have happened: the first one, and no other, is the
// genesis of this very log, or of one that it goes on from by restores; no event id comes twice; no session lives twice,
// before its delivery or after its end, and nothing is given out on a decision that does not permit it; that an event was
// erased only where a later one says so. It trusts that the events are those that the log has. Its memory grows by about
// a hundred bytes an event.
type history struct {
	key      proofs.Key
	next     int64
	lives    []life // whose log it was, the last one at the end
	ids      map[event.ID]struct{}
	ended    map[event.ID]event.Time      // until when they can be revoked all the same: not zero for exhausted ones
	sessions map[event.ID]session.Session // that have not ended
	erasures
}

func newHistory(key proofs.Key) *history {
	return &history{
		key: key, ids: map[event.ID]struct{}{}, ended: map[event.ID]event.Time{}, sessions: map[event.ID]session.Session{},
		erasures: newErasures(),
	}
}

// add takes the next event, or that it was erased by the one with the index erased.
func (h *history) add(e event.Event, erased int64) error {
	first, index := h.next == 0, h.next
	h.next++
	if erased != 0 {
		if first {
			return errors.New("it is called erased, but the genesis can't be")
		}
		h.open[index] = erased
		return nil
	}
	genesis, isGenesis := e.Body.(event.Genesis)
	switch {
	case first && !isGenesis:
		return fmt.Errorf("the first event is %s, expected %s", e.Body.EventType(), event.TypeGenesis)
	case !first && isGenesis:
		return fmt.Errorf("a second %s", event.TypeGenesis)
	case first:
		h.lives = append(h.lives, life{number: 1, origin: genesis.Origin, key: genesis.LogKey})
	}
	if _, ok := h.ids[e.ID]; ok {
		return fmt.Errorf("the event id %s comes a second time", e.ID)
	}
	h.ids[e.ID] = struct{}{}
	switch b := e.Body.(type) {
	case event.SubjectErased:
		return h.erase(b, index)
	case event.Restored:
		return h.restored(b, index)
	}
	return h.applySessions(e)
}

// applySessions follows the sessions through e.
func (h *history) applySessions(e event.Event) error {
	switch b := e.Body.(type) {
	case event.SessionIssued:
		return h.start(b, e)
	case event.SessionConfirmed:
		return h.apply(b.Session, e)
	case event.SessionRevoked:
		return h.apply(b.Session, e)
	case event.SessionClosed:
		return h.apply(b.Session, e)
	case event.SessionUsed:
		return h.use(b.Session, b.Decision, e)
	case event.SessionOperated:
		return h.use(b.Session, b.Decision, e)
	case event.SessionsExpired:
		return h.applyAll(b.Sessions, e)
	case event.SessionsRevoked:
		return h.applyAll(b.Sessions, e)
	case event.SessionsUnconfirmed:
		return h.applyAll(b.Sessions, e)
	}
	return nil // about no session
}

// Permitted checks the decision behind what was given out.
func Permitted(d event.Decision) error {
	if d.Effect != "PERMIT" {
		return fmt.Errorf("the decision that it carries is %q", d.Effect)
	}
	return nil
}

func (h *history) use(id event.ID, d event.Decision, e event.Event) error {
	if err := Permitted(d); err != nil {
		return err
	}
	return h.apply(id, e)
}

func (h *history) start(b event.SessionIssued, e event.Event) error {
	if err := Permitted(b.Decision); err != nil {
		return err
	}
	id := b.Session
	_, live := h.sessions[id]
	_, ended := h.ended[id]
	if live || ended || id.IsZero() {
		return fmt.Errorf("session %s is issued a second time, or has no id", id)
	}
	s, err := session.Open(e)
	if err != nil {
		return err
	}
	h.sessions[id] = s
	return nil
}

func (h *history) applyAll(ids []event.ID, e event.Event) error {
	for _, id := range ids {
		if err := h.apply(id, e); err != nil {
			return err
		}
	}
	return nil
}

func (h *history) apply(id event.ID, e event.Event) error {
	s, ok := h.sessions[id]
	if until, ended := h.ended[id]; ended {
		if until.IsZero() {
			return fmt.Errorf("%s for session %s, which has ended", e.Body.EventType(), id)
		}
		s, ok = session.Session{ID: id, State: session.Exhausted, Expires: until}, true
	}
	if !ok && len(h.open) > 0 {
		if _, known := h.strays[id]; !known {
			h.strays[id] = h.next - 1
		}
		return nil
	}
	if !ok {
		return fmt.Errorf("%s for session %s, which was never issued", e.Body.EventType(), id)
	}
	s, err := session.Apply(s, e)
	if err != nil {
		return err
	}
	if s.State.Ended() {
		delete(h.sessions, id)
		h.ended[id] = event.Time{}
		if s.State == session.Exhausted {
			h.ended[id] = s.Expires
		}
		return nil
	}
	h.sessions[id] = s
	return nil
}
