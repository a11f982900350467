package event

// RevisionStaged keeps a policy bundle that passed every check. It decides nothing until it is activated. Signature
// is the bundle's .signatures.json as it came, and Key the bundle key under which it verified; both are empty where
// the ledger has no bundle keys.
type RevisionStaged struct {
	Digest    Digest    `json:"digest"`
	Name      string    `json:"name"`
	Source    string    `json:"source"`
	Note      string    `json:"note,omitempty"`
	Signature []byte    `json:"signature,omitempty"`
	Key       string    `json:"key,omitempty"`
	By        *Decision `json:"by,omitempty"` // nil: it came from the configured source, which no caller chose
}

// RevisionProposed is one person's word for an activation that wants another's as well: By is the STEP_UP that says
// so. It holds for the one activation that would follow the active revision as Sequence, until Expires.
type RevisionProposed struct {
	Digest   Digest    `json:"digest"`
	Sequence uint64    `json:"sequence"`
	Rollback bool      `json:"rollback,omitempty"`
	Report   Digest    `json:"report,omitzero"` // of a report on what it would change, SHA-256
	Note     string    `json:"note,omitempty"`
	Expires  Time      `json:"expires"`
	By       *Decision `json:"by"`
	// Text is the report itself, where it is a what-if, and NoReport says why there is none.
	Text     []byte `json:"report_text,omitempty"`
	NoReport string `json:"no_report,omitempty"`
}

// ShadowStarted lets a staged or an earlier revision judge live traffic beside the active one, without effect.
type ShadowStarted struct {
	Digest   Digest    `json:"digest"`
	Active   Digest    `json:"active"` // the revision that it is compared with
	Sequence uint64    `json:"sequence"`
	Until    Time      `json:"until"`
	CPU      uint32    `json:"cpu"` // share of one processor that it may take, in thousandths
	By       *Decision `json:"by"`
}

// ShadowDiffered is one decision that the shadow would have made otherwise: Decision is what held, Effect and Result
// what the shadow said. Few of these are kept; the rest are counted in ShadowEnded.
type ShadowDiffered struct {
	Digest   Digest   `json:"digest"` // of the shadow
	Effect   string   `json:"effect"`
	Result   []byte   `json:"result"` // canonical JSON of policy.Decision
	Decision Decision `json:"decision"`
}

// ShadowEnded says why a shadow ended and what it saw: Seen decisions, of which Compared were judged twice and Dropped
// were not (its processor time was used up, or it could not follow).
type ShadowEnded struct {
	Digest      Digest             `json:"digest"`
	Reason      string             `json:"reason"`
	Seen        uint64             `json:"seen"`
	Compared    uint64             `json:"compared"`
	Dropped     uint64             `json:"dropped"`
	Transitions []ShadowTransition `json:"transitions,omitempty"`
	By          *Decision          `json:"by,omitempty"`
}

// ShadowTransition counts decisions that went from one outcome to another.
type ShadowTransition struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Count uint64 `json:"count"`
}

// The types of events about revisions that are not active.
const (
	TypeRevisionStaged   Type = "revision.staged"
	TypeRevisionProposed Type = "revision.proposed"
	TypeShadowStarted    Type = "shadow.started"
	TypeShadowDiffered   Type = "shadow.differed"
	TypeShadowEnded      Type = "shadow.ended"
)

// EventType implements Body.
func (RevisionStaged) EventType() Type { return TypeRevisionStaged }

// EventType implements Body.
func (RevisionProposed) EventType() Type { return TypeRevisionProposed }

// EventType implements Body.
func (ShadowStarted) EventType() Type { return TypeShadowStarted }

// EventType implements Body.
func (ShadowDiffered) EventType() Type { return TypeShadowDiffered }

// EventType implements Body.
func (ShadowEnded) EventType() Type { return TypeShadowEnded }

// The values of KeyIntroduced.Use.
const (
	UseEnvelope = "envelope" // signs envelopes
	UseBundle   = "bundle"   // signs policy bundles; the broker never has its private half
)
