// Package audit keeps the log of what the ledger recorded, so that others can check it: a Merkle tree over
// the leaves of all events (RFC 6962), its signed checkpoints, exports in the C2SP tlog-tiles layout, and
// their verification without the broker.
//
// [Log] integrates leaves in the order of their indexes, and refuses to sign whatever does not extend what it
// signed before. [Export] writes a directory that holds everything an auditor needs, and [Verify] reads every byte
// of such a directory again. The package does not store events, does not decide which there are, and does not know
// the ledger: it reads both leaves and events through small interfaces. What leaves and checkpoints are is
// said in packages ledger/event and audit/proofs.
package audit

import (
	"context"
	"errors"
	"fmt"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/ledger/event"
)

// The outcomes that a caller can tell apart, beside proofs.ErrVerification.
var (
	// ErrRollback: the store does not hold the history that was signed before, or somebody else signs for
	// the log. Nothing more is signed; an operator has to find out why.
	ErrRollback = errors.New("the log refuses to go on: its history was rolled back or rewritten")
	// ErrGap: the source skipped, repeated or swapped an index.
	ErrGap = errors.New("indexes of events are not contiguous")
	// ErrStopped: a write to the log's files failed, so nothing is known about them. Open the log again.
	ErrStopped = errors.New("the log has stopped after a failed write")
	// ErrEmpty: there is no event yet, hence no checkpoint.
	ErrEmpty = errors.New("the log has no entries yet")
)

// Entry is a leaf and the place in the log that the store gave to it.
type Entry struct {
	Index int64
	Leaf  event.Leaf
}

// Source reads leaves from the store. Leaves returns at most max entries from index from on, in the order of
// their indexes, fewer only when there are no more. All that it returns is durable and never changes.
// It is called by one goroutine at a time.
type Source interface {
	Leaves(ctx context.Context, from int64, max int) ([]Entry, error)
}

// Record is an event as an auditor gets it: its encoding, and what opens the two commitments of its leaf.
type Record struct {
	Index     int64
	Encoding  []byte // canonical, as event.Event.Encode wrote it
	EventSalt event.Salt
	ReplySalt event.Salt
	Reply     event.Digest // zero: there was no reply

	// Erased is the index of the event that erased this one, of which nothing is known but its leaf, Left. 0: it was not.
	Erased int64
	Left   event.Leaf
}

// Leaf returns the leaf that commits to r.
func (r Record) Leaf() event.Leaf {
	if r.Erased != 0 {
		return r.Left
	}
	return event.NewLeaf(r.Encoding, r.EventSalt, r.Reply, r.ReplySalt)
}

// EventSource reads events for an export. Records returns at most max records from index from on, in the order
// of their indexes, at least one while there are more.
type EventSource interface {
	Records(ctx context.Context, from int64, max int) ([]Record, error)
}

// Fault says what is wrong with an export, and where. It wraps proofs.ErrVerification.
type Fault struct {
	// File is the path within the export, with slashes.
	File string `json:"file"`
	// Index is the entry that is wrong, or -1 where the fault is not about one entry.
	Index int64  `json:"index"`
	What  string `json:"what"`
}

// Error implements error.
func (f *Fault) Error() string {
	if f.Index >= 0 {
		return fmt.Sprintf("%v: %s: entry %d: %s", proofs.ErrVerification, f.File, f.Index, f.What)
	}
	return fmt.Sprintf("%v: %s: %s", proofs.ErrVerification, f.File, f.What)
}

// Unwrap makes a fault a proofs.ErrVerification.
func (f *Fault) Unwrap() error { return proofs.ErrVerification }

func faultAt(file string, index int64, format string, args ...any) *Fault {
	return &Fault{File: file, Index: index, What: fmt.Sprintf(format, args...)}
}

func faultIn(file, format string, args ...any) *Fault { return faultAt(file, -1, format, args...) }

// OpenReply finds the digest that a leaf's second commitment hides, by the salt that opens it: that of the envelope in the
// events that deliver one, or none. It is how a salt that the recipient kept is held against the record: the event has to
// name the envelope that the recipient got.
func OpenReply(leaf event.Leaf, salt event.Salt, body event.Body) (event.Digest, error) {
	named := delivered(body)
	if event.CommitReply(named, salt) == leaf.Reply {
		return named, nil
	}
	return event.Digest{}, fmt.Errorf("%w: the reply that the leaf of a %s event commits to is not the one that the event records", proofs.ErrVerification, body.EventType())
}

// delivered is the digest of the envelope that an event says was delivered; zero: none.
func delivered(body event.Body) event.Digest {
	switch b := body.(type) {
	case event.SessionIssued:
		return b.EnvelopeDigest
	case event.ShareIssued:
		return b.EnvelopeDigest
	}
	return event.Digest{}
}
