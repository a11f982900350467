package event

import (
	"encoding/json"
	"strings"
)

// SubjectErased says that a key of a subject was destroyed, and with it the bodies and the salts of every event that was
// sealed under it. It is committed in one transaction with that. What is left of those events is their place in the log,
// their id, and the commitments of their leaf.
//
// It holds what the erased events did to state that is not the subject's own, so that the state can still be made
// from the log: this event is the snapshot that a rebuild starts from where those can't be read.
type SubjectErased struct {
	Subject string  `json:"subject"`
	Key     string  `json:"key"`     // name of the key that is gone
	Seen    int64   `json:"seen"`    // how many events the ledger had when it was searched: none under the key comes later
	Indexes []int64 `json:"indexes"` // of the erased events, ascending

	Sessions []ErasedSession `json:"sessions,omitempty"` // that the erased events opened
	Rows     []ErasedRow     `json:"rows,omitempty"`
	Reason   string          `json:"reason"`
	By       *Decision       `json:"by,omitempty"`     // nil: the retention of the configuration
	Export   *ErasedExport   `json:"export,omitempty"` // that was written and verified before
}

// ErasedSession is what stays of a session.
type ErasedSession struct {
	Session ID     `json:"session"`
	State   string `json:"state"` // how it ended
}

// ErasedRow is what an erased event did to a row of state. Without a value the row was the subject's own, and goes.
type ErasedRow struct {
	Index int64           `json:"index"` // of the event
	Kind  string          `json:"kind"`
	Key   string          `json:"key"`
	Value json.RawMessage `json:"value,omitempty"`
}

// ErasedExport names the export that holds what was erased.
type ErasedExport struct {
	Manifest Digest `json:"manifest_sha256"`
	Size     int64  `json:"size"`
	Root     string `json:"root"`
}

// HoldPlaced keeps what it names from being erased, until it is released.
type HoldPlaced struct {
	Selector string    `json:"selector"`
	Value    string    `json:"value,omitempty"` // nothing for HoldEverything
	Reason   string    `json:"reason"`
	By       *Decision `json:"by,omitempty"`
}

// HoldReleased ends a hold.
type HoldReleased struct {
	Selector string    `json:"selector"`
	Value    string    `json:"value,omitempty"`
	Reason   string    `json:"reason"`
	By       *Decision `json:"by,omitempty"`
}

// HoldEverything is the selector of a hold on the whole ledger; the others are ByPrincipal and BySecret.
const HoldEverything = "everything"

// The types of these events.
const (
	TypeSubjectErased Type = "subject.erased"
	TypeHoldPlaced    Type = "hold.placed"
	TypeHoldReleased  Type = "hold.released"
)

// EventType implements Body.
func (SubjectErased) EventType() Type { return TypeSubjectErased }

// EventType implements Body.
func (HoldPlaced) EventType() Type { return TypeHoldPlaced }

// EventType implements Body.
func (HoldReleased) EventType() Type { return TypeHoldReleased }

// Erasable reports whether an event is about what one principal did or had, and nothing else needs to read it later.
// All others lie under the ledger's own key, and stay.
func Erasable(b Body) bool {
	switch b.(type) {
	case InstanceBound, AttestationAppraised, AttestationRefused, AttestationDemanded, DecisionDenied, RequestRefused, RefusalsCounted,
		SessionIssued, SessionConfirmed, SessionUsed, SessionOperated, SessionRevoked, SessionClosed, SessionsWiped,
		ShadowDiffered:
		return true
	}
	return false
}

// SubjectOf is the subject of a key, by the key's name. A SPIFFE ID holds no '#'.
func SubjectOf(key string) string {
	subject, _, _ := strings.Cut(key, "#")
	return subject
}
