package audit

import (
	"fmt"
	"math"

	"github.com/bulla-project/bulla/ledger/event"
)

// erasures follows what is called erased until the event comes that says so. Whoever leaves an event out and calls it
// erased has no such event: it would have to be in the log, and to name the very index.
type erasures struct {
	open   map[int64]int64    // entries that are called erased, and the index of the event that is said to have done it
	strays map[event.ID]int64 // sessions whose opening was not seen, and the first event about them: erased, or never issued
}

func newErasures() erasures { return erasures{map[int64]int64{}, map[event.ID]int64{}} }

// misplaced is a fault at another entry than the one that is being read.
type misplaced struct {
	index int64
	text  string
}

func (m *misplaced) Error() string { return m.text }

// erase takes in the event at index, which says what was erased.
func (h *history) erase(b event.SubjectErased, index int64) error {
	for _, i := range b.Indexes {
		by, called := h.open[i]
		switch {
		case i < 0 || i >= index:
			return fmt.Errorf("it erases event %d, which does not come before it", i)
		case !called:
			return &misplaced{i, fmt.Sprintf("event %d says that it was erased, but here it is, or another event erased it before", index)}
		case by != index:
			return &misplaced{i, fmt.Sprintf("it is called erased by event %d, but event %d did it", by, index)}
		}
		delete(h.open, i)
	}
	for _, s := range b.Sessions {
		_, live := h.sessions[s.Session]
		if _, ended := h.ended[s.Session]; live || ended {
			return fmt.Errorf("it says that the opening of session %s was erased, but that can be read, or was erased before", s.Session)
		}
		h.ended[s.Session] = event.Time{}
		delete(h.strays, s.Session)
	}
	return nil
}

// settled refuses a history of another log, names the first entry that nothing in the log erased, though it is called so,
// and then the first event about a session that was never issued.
func (h *history) settled() error {
	if err := h.named(); err != nil {
		return err
	}
	first, by := int64(math.MaxInt64), int64(0)
	for i, claimed := range h.open {
		if i < first {
			first, by = i, claimed
		}
	}
	if by != 0 {
		return &misplaced{first, fmt.Sprintf("it is called erased by event %d, which says nothing of it", by)}
	}
	stray, first := event.ID{}, int64(math.MaxInt64)
	for id, i := range h.strays {
		if i < first {
			stray, first = id, i
		}
	}
	if !stray.IsZero() {
		return &misplaced{first, fmt.Sprintf("it is about session %s, which was never issued", stray)}
	}
	return nil
}
