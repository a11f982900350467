// Package sink brings the events of a ledger to where they are watched: a file, a stream, a service.
//
// A [Pump] reads events by index, in order, maps them to OCSF lines, hands them to one [Sink], and only then keeps how
// far it came, durably. So each event arrives at least once, and in order: after a crash between the two the last lines
// come again, with the same metadata.uid. A sink that is slow, fails or hangs makes the pump fall behind and nothing
// else: the ledger knows nothing of it, and the pump holds one page of events, however far it is behind.
//
// The package decides nothing about what a line says (package ocsf) and knows no cloud (package cloudwatch).
package sink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
)

// ErrPosition says that the kept position is not one of this log: it is damaged, or of another log, or of this one before
// it was restored from a backup.
var ErrPosition = errors.New("the kept position does not fit this log")

// errAbandoned says that a sink did not answer when the pump had to stop.
var errAbandoned = errors.New("the sink did not answer in time, and was left behind")

// errEnd says that the source has no more. A sink may fail with an io.EOF of its own, and that is no end.
var errEnd = errors.New("the source has ended")

// Entry is an event with its index in the log. One without a body was erased; its id may be known.
type Entry struct {
	Index int64
	Event event.Event
}

// Source gives events. Next returns at most max of them from index from on, without a gap. It waits until there is one,
// or returns io.EOF where no more are to be waited for. An error is tried again later, unless it is made by [Final].
type Source interface {
	Next(ctx context.Context, from int64, max int) ([]Entry, error)
}

// Line is one event as it is written.
type Line struct {
	Index int64
	Time  time.Time
	JSON  []byte // without a newline
}

// Refusal is a line that the far side will never take.
type Refusal struct {
	Index  int64
	Reason string
}

// Sink takes lines, in order. Without an error all of them have arrived and survive, except those that the far side
// refused for good. After an error the same lines come again, and more of them than those that are missing.
type Sink interface {
	Write(ctx context.Context, lines []Line) ([]Refusal, error)
	Close() error
}

// final is an error that trying again does not mend.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// Final makes of err one that ends a pump.
func Final(err error) error { return final{err} }

func isFinal(err error) bool {
	var f final
	return errors.As(err, &f)
}

// inOrder makes sure that a source gave what was asked for.
func inOrder(entries []Entry, from int64) error {
	for i, e := range entries {
		if e.Index != from+int64(i) {
			return fmt.Errorf("event %d is missing: event %d came in its place", from+int64(i), e.Index)
		}
	}
	return nil
}
