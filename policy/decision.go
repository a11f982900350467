package policy

import (
	"time"

	"github.com/bulla-project/bulla/internal/canonical"
	"github.com/bulla-project/bulla/risk"
)

// Effect is the answer of a policy. The zero value is invalid and permits nothing.
type Effect string

// The effects.
const (
	Permit Effect = "PERMIT"
	Deny   Effect = "DENY"
	StepUp Effect = "STEP_UP"
)

// Grade says how hard a limit is; see the design. The zero value is invalid.
type Grade string

// The grades.
const (
	GradeOpen    Grade = "open"
	GradeGated   Grade = "gated"
	GradeProxied Grade = "proxied"
	GradeLeased  Grade = "leased"
)

// Decision is the answer to one request. Only Effect == Permit permits. It is complete: a caller that
// can't meet an obligation refuses, and never changes the decision.
type Decision struct {
	Effect      Effect      `json:"decision"`
	Reasons     []string    `json:"reasons"` // sorted, without duplicates
	Obligations Obligations `json:"obligations"`
	Requires    Requires    `json:"requires"`
	// Covered says that the policy lets this caller see reasons and requirements, because a grant covers
	// it (disclose in the policy's output). Otherwise the caller gets one constant denial.
	Covered bool `json:"covered"`
	// TimedOut says that the evaluation was ended by the time limit or by the caller's context; it is then
	// DENY, and a replay of it is inconclusive.
	TimedOut bool `json:"timed_out"`
	// Fault says why the policy gave no usable answer; it is for the operators and never for the caller.
	Fault string `json:"fault"`
	// Risk is the assessment that was part of the input.
	Risk risk.Assessment `json:"risk"`
	// ModelDigest and RevisionDigest name what judged, in hexadecimal.
	ModelDigest    string `json:"model_digest"`
	RevisionDigest string `json:"revision_digest"`
	// InputDigest is SHA-256, in hexadecimal, over a label, the revision's digest and the encoded signals:
	// the input is a function of these two.
	InputDigest string `json:"input_digest"`
	// EngineVersion names the evaluator; a replay with another version is "semantic" at best.
	EngineVersion string `json:"engine_version"`

	// Signals is the canonical encoding of the signals that were judged, to be recorded.
	Signals []byte `json:"-"`
	// EvalDuration is how long input and evaluation took. It is not part of the canonical form.
	EvalDuration time.Duration `json:"-"`
}

// Canonical returns the bytes that a replay compares: everything but the duration and the signals.
func (d Decision) Canonical() []byte {
	out, err := canonical.Append(make([]byte, 0, 2048), d)
	if err != nil {
		panic("policy: internal error: a decision can't be encoded: " + err.Error())
	}
	return out
}

// Obligations are the limits under which a PERMIT stands. A nil part is not asked for. A caller must refuse
// when it can't keep one that is set.
type Obligations struct {
	TimeBound        *TimeBound        `json:"time_bound,omitempty"`
	UsageLimit       *UsageLimit       `json:"usage_limit,omitempty"`
	RateLimit        *RateLimit        `json:"rate_limit,omitempty"`
	ForwardSecrecy   *ForwardSecrecy   `json:"forward_secrecy,omitempty"`
	QuantumResistant *QuantumResistant `json:"quantum_resistant,omitempty"`
	ReceiptRequired  *ReceiptRequired  `json:"receipt_required,omitempty"`
	Reattest         *Reattest         `json:"reattest,omitempty"`
	GeoRestriction   *GeoRestriction   `json:"geo_restriction,omitempty"`
	SplitKnowledge   *SplitKnowledge   `json:"split_knowledge,omitempty"`
}

// TimeBound ends the session after TTLSeconds, 1 second to 366 days.
type TimeBound struct {
	TTLSeconds int64 `json:"ttl_seconds"`
	Grade      Grade `json:"grade"`
}

// UsageLimit allows MaxUses uses, at least 1. Of those at grade gated, Offline may be fetched ahead, for a time when the
// broker can't be reached: they are counted when they are fetched, and neither revocation nor expiry calls them back.
type UsageLimit struct {
	MaxUses int64 `json:"max_uses"`
	Offline int64 `json:"offline,omitempty"`
	Grade   Grade `json:"grade"`
}

// RateLimit allows Max requests within WindowSeconds for everything that shares Key; "" is the principal.
type RateLimit struct {
	Key           string `json:"key"`
	Max           int64  `json:"max"`
	WindowSeconds int64  `json:"window_seconds"`
	Grade         Grade  `json:"grade"`
}

// ForwardSecrecy asks for a recipient key that is fresh for this delivery.
type ForwardSecrecy struct {
	Grade Grade `json:"grade"`
}

// QuantumResistant asks for a hybrid post-quantum suite.
type QuantumResistant struct {
	Grade Grade `json:"grade"`
}

// ReceiptRequired asks for a receipt within WithinSeconds after the delivery.
type ReceiptRequired struct {
	WithinSeconds int64 `json:"within_seconds"`
	Grade         Grade `json:"grade"`
}

// Reattest ends the session when the attestation of its device becomes older than WithinSeconds.
type Reattest struct {
	WithinSeconds int64 `json:"within_seconds"`
	Grade         Grade `json:"grade"`
}

// GeoRestriction allows delivery to and use from Countries only (ISO 3166-1 alpha-2), by the address of the
// connection. Who comes from an unknown place is in none of them.
type GeoRestriction struct {
	Countries []string `json:"countries"`
	Grade     Grade    `json:"grade"`
}

// SplitKnowledge asks for Threshold of the named Holders to take part.
type SplitKnowledge struct {
	Threshold int64    `json:"threshold"`
	Holders   []string `json:"holders"`
	Grade     Grade    `json:"grade"`
	// Persons says who is behind a holder, or behind the caller. One that is missing is a person of its own.
	Persons map[string]string `json:"persons,omitempty"`
}

// Requires says what would satisfy the policy. It is set only with StepUp; a nil part is not asked for.
type Requires struct {
	Attestation *RequireAttestation `json:"attestation,omitempty"`
	Factor      *RequireFactor      `json:"factor,omitempty"`
	Approval    *RequireApproval    `json:"approval,omitempty"`
}

// Empty says that nothing is required.
func (r Requires) Empty() bool {
	return r.Attestation == nil && r.Factor == nil && r.Approval == nil
}

// RequireAttestation asks for a result of one of Kinds that is at most MaxAgeSeconds old and has at least
// MinScore.
type RequireAttestation struct {
	MaxAgeSeconds int64    `json:"max_age_seconds"`
	MinScore      int64    `json:"min_score"`
	Kinds         []string `json:"kinds"`
}

// RequireFactor asks for a further factor, so that the principal reaches Level.
type RequireFactor struct {
	Level string `json:"level"`
}

// RequireApproval asks for Count approvals by distinct members of Role.
type RequireApproval struct {
	Count int64  `json:"count"`
	Role  string `json:"role"`
}
