package sqlite

import (
	"fmt"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
)

// erasure checks that an erasure takes away all that lies under its key: nothing came since the ledger was searched.
func (b *batch) erasure(r *ledger.Record) error {
	e, ok := r.Event.Body.(event.SubjectErased)
	if !ok {
		return nil
	}
	if _, twice := b.destroyed[e.Key]; twice {
		return fmt.Errorf("%w: there is no key %q", ledger.ErrPrecondition, e.Key)
	}
	wrapped, err := b.w.subject(e.Key)
	if err != nil {
		return err
	}
	if wrapped == nil { // one of this very batch has an event under it that nobody searched
		return fmt.Errorf("%w: there is no key %q", ledger.ErrPrecondition, e.Key)
	}
	var one int
	newer, err := b.w.scan(sqlUnderKey, []any{e.Seen, e.Key}, &one)
	if err != nil {
		return err
	}
	for _, before := range b.events {
		newer = newer || before.record.Subject == e.Key
	}
	if newer {
		return fmt.Errorf("%w: an event lies under key %q that came after the ledger was searched", ledger.ErrPrecondition, e.Key)
	}
	return nil
}

// flushErasure takes away what the projections do not.
func (b *batch) flushErasure(e event.SubjectErased) error {
	if _, err := b.w.exec(sqlDropSubject, e.Key); err != nil {
		return err
	}
	for _, index := range e.Indexes {
		if _, err := b.w.exec(sqlDropRequest, index); err != nil {
			return err
		}
		if _, err := b.w.exec(sqlDropDenial, index+1); err != nil {
			return err
		}
	}
	for _, s := range e.Sessions {
		if _, err := b.w.exec(sqlDropBlob, ledger.RoundBlob(s.Session)); err != nil {
			return err
		}
	}
	return nil
}
