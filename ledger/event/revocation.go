package event

import "encoding/json"

// The selectors of a revocation.
const (
	ByPrincipal   = "principal"
	BySecret      = "secret"
	ByDevice      = "device"
	ByRevision    = "revision"
	ByTrustDomain = "trust_domain"
)

// RevocationOrdered ends every session that the selector names and that was issued up to now. From here on they are
// over; SessionsRevoked events say so of each, in chunks. It bars nobody: what the policy permits is delivered again.
type RevocationOrdered struct {
	Selector string    `json:"selector"`
	Value    string    `json:"value"`
	Reason   string    `json:"reason"`
	By       *Decision `json:"by,omitempty"`
}

// RevocationCompleted says that no session is left that an order named. Revocation is the id of the order's event.
type RevocationCompleted struct {
	Selector   string `json:"selector"`
	Value      string `json:"value"`
	Revocation ID     `json:"revocation"`
	Sessions   uint64 `json:"sessions"` // that it ended
}

// SessionsRevoked ends sessions for one and the same reason: by an order, or because the policy would not permit
// them any more, or wants an attestation or a receipt that did not come.
type SessionsRevoked struct {
	Sessions   []ID   `json:"sessions"`
	Reason     string `json:"reason"`
	Revocation ID     `json:"revocation,omitzero"` // the order, if it was one
	// Unreceipted says that no receipt came in time: the event fits only sessions that still wait for one.
	Unreceipted bool `json:"unreceipted,omitempty"`
	// Redecided says how the policy was asked again, where that is the reason.
	Redecided *Redecided `json:"redecided,omitempty"`
}

// Redecided stands for the decisions by which sessions ended: each on the signals that the session was delivered on.
// With a Level they were judged with Attestation instead of the one of then, as if it had been issued at their time, and
// with that level.
type Redecided struct {
	Revision    Digest          `json:"revision"`
	Sequence    uint64          `json:"sequence"`
	Level       string          `json:"level,omitempty"`
	Attestation json.RawMessage `json:"attestation,omitempty"` // canonical JSON of policy.Attestation; none: the device is void
	// Unmet says that the policy would permit, under limits that the sessions do not keep.
	Unmet bool `json:"unmet,omitempty"`
	// Results are SHA-256 of the canonical decisions, in the order of the sessions.
	Results []Digest `json:"results"`
}

// SessionsWiped is an instance's word that it holds nothing any more of sessions that ended.
type SessionsWiped struct {
	Principal string `json:"principal"`
	Instance  string `json:"instance"`
	Sessions  []ID   `json:"sessions"`
}

// AttestationDemanded asks an instance to attest its device afresh by a moment. Its sessions that rely on the device
// end then, unless it did.
type AttestationDemanded struct {
	Principal string `json:"principal"`
	Instance  string `json:"instance"`
	Device    string `json:"device"`
	By        Time   `json:"by"`
	Reason    string `json:"reason"`
}

// The outcomes of RevisionSwept.
const (
	SweepHeld      = "held"      // too many sessions would end: somebody has to confirm it
	SweepConfirmed = "confirmed" // somebody did
	SweepDropped   = "dropped"   // somebody decided that they live on
	SweepDone      = "done"      // what had to end has ended
)

// RevisionSwept says how far a revision's effect on the sessions is that were delivered before it: each is decided
// again, with the signals that were recorded.
type RevisionSwept struct {
	Digest   Digest    `json:"digest"`
	Sequence uint64    `json:"sequence"`
	Outcome  string    `json:"outcome"`
	Examined uint64    `json:"examined"`
	Ending   uint64    `json:"ending"` // of them, those that end, or would
	Reason   string    `json:"reason,omitempty"`
	By       *Decision `json:"by,omitempty"`
}

// The types of these events.
const (
	TypeRevocationOrdered   Type = "revocation.ordered"
	TypeRevocationCompleted Type = "revocation.completed"
	TypeSessionsRevoked     Type = "sessions.revoked"
	TypeSessionsWiped       Type = "sessions.wiped"
	TypeAttestationDemanded Type = "attestation.demanded"
	TypeRevisionSwept       Type = "revision.swept"
)

// EventType implements Body.
func (RevocationOrdered) EventType() Type { return TypeRevocationOrdered }

// EventType implements Body.
func (RevocationCompleted) EventType() Type { return TypeRevocationCompleted }

// EventType implements Body.
func (SessionsRevoked) EventType() Type { return TypeSessionsRevoked }

// EventType implements Body.
func (SessionsWiped) EventType() Type { return TypeSessionsWiped }

// EventType implements Body.
func (AttestationDemanded) EventType() Type { return TypeAttestationDemanded }

// EventType implements Body.
func (RevisionSwept) EventType() Type { return TypeRevisionSwept }
