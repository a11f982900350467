package replay

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/bulla-project/bulla/internal/canonical"
	"github.com/bulla-project/bulla/policy"
)

// ReportFormat names the encoding of a Report.
const ReportFormat = "bulla-whatif/v1"

// Report says what a candidate would have done.
type Report struct {
	Format    string `json:"format"`
	Candidate string `json:"candidate"` // digests, in hexadecimal
	Active    string `json:"active"`    // the revision that the sweep compares with
	Engine    string `json:"engine"`
	// Principal and Secret are what it was narrowed to: it says nothing about all else.
	Principal string `json:"principal,omitempty"`
	Secret    string `json:"secret,omitempty"`

	// The recorded decisions that were judged again.
	Decisions uint64 `json:"decisions"`
	From      string `json:"from"` // of the first and the last of them; "" where there is none
	To        string `json:"to"`
	FirstIdx  int64  `json:"first_index"`
	LastIdx   int64  `json:"last_index"`
	Matrix    Matrix `json:"matrix"`
	// Skipped are those that could not be judged, by the reason.
	Skipped map[string]uint64 `json:"skipped"`
	// Groups are those that come out differently, what opens first.
	Groups []Group `json:"groups"`

	Sweep Sweep `json:"sweep"`

	// LeftOut is how many of Groups and of the sweep's changes were left out so that the report can be kept, and
	// LeftOutPairs how many of the changes among them open: see Within.
	LeftOut      int `json:"left_out,omitempty"`
	LeftOutPairs int `json:"left_out_pairs,omitempty"`
}

// Matrix counts transitions. DenyPermit counts the inconclusive ones as well, whatever was and came out: see Group.
type Matrix struct {
	PermitPermit uint64 `json:"permit_permit"` // those with other obligations not counted
	PermitDeny   uint64 `json:"permit_deny"`
	PermitStepUp uint64 `json:"permit_step_up"`
	DenyPermit   uint64 `json:"deny_permit"`
	DenyDeny     uint64 `json:"deny_deny"`
	DenyStepUp   uint64 `json:"deny_step_up"`
	StepUpPermit uint64 `json:"step_up_permit"`
	StepUpDeny   uint64 `json:"step_up_deny"`
	StepUpStepUp uint64 `json:"step_up_step_up"` // those with other requirements not counted
	Obligations  uint64 `json:"obligations"`     // permitted before and now, under other obligations
	Requirements uint64 `json:"requirements"`    // a step-up before and now, to something else
	Disclosure   uint64 `json:"disclosure"`      // refused before and now, but the caller is told other things
	Inconclusive uint64 `json:"inconclusive"`
}

// The kinds of a Transition, what opens most first.
const (
	DenyPermit   = "DENY→PERMIT"
	Inconclusive = "INCONCLUSIVE"
	StepUpPermit = "STEP_UP→PERMIT"
	DenyStepUp   = "DENY→STEP_UP"
	Obligations  = "PERMIT, other obligations"
	Requirements = "STEP_UP, other requirements"
	Disclosure   = "refused, told otherwise"
	PermitStepUp = "PERMIT→STEP_UP"
	PermitDeny   = "PERMIT→DENY"
	StepUpDeny   = "STEP_UP→DENY"
	unchanged    = ""
)

var order = []string{
	DenyPermit, Inconclusive, StepUpPermit, DenyStepUp, Obligations, Requirements, Disclosure, PermitStepUp, PermitDeny, StepUpDeny, unchanged,
}

func rank(transition string) int { return slices.Index(order, transition) }

// Group is a set of decisions with one transition, principal, target and cause.
type Group struct {
	Transition string `json:"transition"`
	Principal  string `json:"principal"`
	Target     string `json:"target"` // the secret, or else the action
	Count      uint64 `json:"count"`
	// Index and Event are those of the first one.
	Index int64  `json:"index"`
	Event string `json:"event"`
	Was   string `json:"was"`
	Now   string `json:"now"`
	// Lacks says what the candidate reads that the recordings lack: the reason of INCONCLUSIVE.
	Lacks []string `json:"lacks,omitempty"`
	// Detail has the obligations or requirements that differ.
	Detail string `json:"detail,omitempty"`
	Cause  Cause  `json:"cause"`
}

// Sweep says what requests would come out differently that nobody made.
type Sweep struct {
	Principals  int    `json:"principals"`
	Secrets     int    `json:"secrets"`
	Evaluations uint64 `json:"evaluations"`
	// Complete says that no pair was left out for their number.
	Complete bool          `json:"complete"`
	Changes  []SweepChange `json:"changes"`
	Assumed  []string      `json:"assumed"`
}

// SweepChange is a pair of principal and target that comes out differently, in the context that opens most.
type SweepChange struct {
	Transition string   `json:"transition"`
	Principal  string   `json:"principal"`
	Target     string   `json:"target"`
	Class      string   `json:"class,omitempty"`
	Operation  string   `json:"operation,omitempty"` // with a key at grade proxied
	Made       bool     `json:"made,omitempty"`      // there is no such secret: it stands for all that the scope covers
	Context    string   `json:"context"`
	Exercised  bool     `json:"exercised"` // the recordings have a request of the principal for it
	Lacks      []string `json:"lacks,omitempty"`
	Cause      Cause    `json:"cause"`
}

// Opens is how many recorded requests and how many pairs of the sweep the candidate would or could open: whoever
// activates it has to answer for these.
func (r Report) Opens() (recorded uint64, pairs int) {
	recorded, pairs = r.Matrix.DenyPermit+r.Matrix.StepUpPermit, r.LeftOutPairs
	for _, c := range r.Sweep.Changes {
		if c.Opens() {
			pairs++
		}
	}
	return recorded, pairs
}

// Encode returns the canonical encoding, JSON.
func (r Report) Encode() ([]byte, error) {
	out, err := canonical.Append(nil, r)
	if err != nil {
		return nil, fmt.Errorf("encode the report: %w", err)
	}
	return out, nil
}

// Digest is the SHA-256 of the canonical encoding.
func (r Report) Digest() (Digest, error) {
	text, err := r.Encode()
	return sha256.Sum256(text), err
}

// transition names what became of a decision.
func transition(was, now policy.Decision, lacks []string) string {
	switch {
	case len(lacks) > 0:
		return Inconclusive
	case was.Effect == now.Effect && was.Effect == policy.Permit && !sameJSON(was.Obligations, now.Obligations):
		return Obligations
	case was.Effect == now.Effect && was.Effect == policy.StepUp && !sameJSON(was.Requires, now.Requires):
		return Requirements
	case was.Effect == now.Effect && was.Effect != policy.Permit && (was.Covered != now.Covered || was.Covered && !slices.Equal(was.Reasons, now.Reasons)):
		return Disclosure
	case was.Effect == now.Effect:
		return unchanged
	}
	return string(was.Effect) + "→" + string(now.Effect)
}

func sameJSON(a, b any) bool {
	x, errX := canonical.Append(nil, a)
	y, errY := canonical.Append(nil, b)
	return errX == nil && errY == nil && string(x) == string(y)
}

// count adds a decision.
func (m *Matrix) count(was, now policy.Effect, t string) {
	cell := map[string]*uint64{
		DenyPermit: &m.DenyPermit, StepUpPermit: &m.StepUpPermit, DenyStepUp: &m.DenyStepUp, Obligations: &m.Obligations,
		Requirements: &m.Requirements, Disclosure: &m.Disclosure, PermitStepUp: &m.PermitStepUp, PermitDeny: &m.PermitDeny, StepUpDeny: &m.StepUpDeny,
		Inconclusive: &m.DenyPermit,
	}[t]
	switch {
	case t == Inconclusive:
		m.Inconclusive++
	case cell != nil:
	case was == policy.Permit:
		cell = &m.PermitPermit
	case was == policy.StepUp:
		cell = &m.StepUpStepUp
	default:
		cell = &m.DenyDeny
	}
	*cell++
}

// sort puts what opens most first.
func (r *Report) sort() {
	slices.SortFunc(r.Groups, func(a, b Group) int {
		return cmp.Or(cmp.Compare(rank(a.Transition), rank(b.Transition)), cmp.Compare(b.Count, a.Count), cmp.Compare(a.Index, b.Index),
			cmp.Compare(a.Principal, b.Principal), cmp.Compare(a.Target, b.Target))
	})
	slices.SortFunc(r.Sweep.Changes, func(a, b SweepChange) int {
		return cmp.Or(cmp.Compare(rank(a.Transition), rank(b.Transition)), cmp.Compare(a.Principal, b.Principal), cmp.Compare(a.Target, b.Target), cmp.Compare(a.Class, b.Class),
			cmp.Compare(a.Operation, b.Operation))
	})
}

func moment(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }
