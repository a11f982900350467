package ledger

import (
	"cmp"
	"context"
	"slices"

	"github.com/bulla-project/bulla/ledger/event"
)

// Staged is the projection of a policy bundle that passed every check, whether or not it was active since.
type Staged struct {
	Digest    event.Digest `json:"digest"`
	Name      string       `json:"name"`
	Source    string       `json:"source"`
	Note      string       `json:"note,omitempty"`
	Signature []byte       `json:"signature,omitempty"` // .signatures.json
	Key       string       `json:"key,omitempty"`       // bundle key under which it verified
	At        event.Time   `json:"at"`
	By        string       `json:"by,omitempty"`
}

// Proposal is the projection of the newest proposal to activate a bundle. It holds while the revision before Sequence
// is the active one.
type Proposal struct {
	ID       event.ID     `json:"id"` // of its event
	Digest   event.Digest `json:"digest"`
	Sequence uint64       `json:"sequence"`
	Rollback bool         `json:"rollback,omitempty"`
	Report   event.Digest `json:"report,omitzero"`
	Note     string       `json:"note,omitempty"`
	Expires  event.Time   `json:"expires"`
	At       event.Time   `json:"at"`
	By       string       `json:"by"`
	Kept     bool         `json:"report_kept,omitempty"` // its event has the report's text
	NoReport string       `json:"no_report,omitempty"`   // why there is none
}

// Shadow is the projection of the newest shadow; Ended is empty while it runs.
type Shadow struct {
	Digest   event.Digest `json:"digest"`
	Active   event.Digest `json:"active"`
	Sequence uint64       `json:"sequence"`
	Started  event.Time   `json:"started_at"`
	Until    event.Time   `json:"until"`
	CPU      uint32       `json:"cpu"`
	By       string       `json:"by"`
	Ended    string       `json:"ended,omitempty"` // why
	EndedAt  event.Time   `json:"ended_at,omitzero"`
}

func (p projection) revisionStaged(b event.RevisionStaged) error {
	if b.Digest.IsZero() {
		return refuse("a staged revision needs a digest")
	}
	return put(p, KindStaged, b.Digest.String(), Staged{b.Digest, b.Name, b.Source, b.Note, b.Signature, b.Key, p.time, p.subject})
}

func (p projection) revisionProposed(b event.RevisionProposed, id event.ID) error {
	active, _, err := get[Revision](p, KindRevision, ActiveRevision)
	if err != nil {
		return err
	}
	if b.Digest.IsZero() || p.subject == "" || b.Sequence != active.Sequence+1 {
		return refuse("a proposal for revision %d of %q does not follow the active one, %d", b.Sequence, b.Digest, active.Sequence)
	}
	return put(p, KindProposal, ActiveRevision, Proposal{
		ID: id, Digest: b.Digest, Sequence: b.Sequence, Rollback: b.Rollback, Report: b.Report, Note: b.Note, Expires: b.Expires, At: p.time, By: p.subject,
		Kept: len(b.Text) > 0, NoReport: b.NoReport,
	})
}

func (p projection) shadowStarted(b event.ShadowStarted) error {
	active, _, err := get[Revision](p, KindRevision, ActiveRevision)
	if err != nil {
		return err
	}
	now, running, err := get[Shadow](p, KindShadow, ActiveRevision)
	if err != nil {
		return err
	}
	switch {
	case b.Digest.IsZero() || b.Active != active.Digest || b.Sequence != active.Sequence:
		return refuse("a shadow of revision %d can't start: revision %d is active", b.Sequence, active.Sequence)
	case running && now.Ended == "":
		return refuse("a shadow runs already: %s", now.Digest)
	}
	return put(p, KindShadow, ActiveRevision, Shadow{
		Digest: b.Digest, Active: b.Active, Sequence: b.Sequence, Started: p.time, Until: b.Until, CPU: b.CPU, By: p.subject,
	})
}

func (p projection) shadowEnded(b event.ShadowEnded) error {
	s, ok, err := get[Shadow](p, KindShadow, ActiveRevision)
	if err != nil {
		return err
	}
	if !ok || s.Ended != "" || s.Digest != b.Digest || b.Reason == "" {
		return refuse("no shadow of %q runs", b.Digest)
	}
	s.Ended, s.EndedAt = b.Reason, p.time
	return put(p, KindShadow, ActiveRevision, s)
}

// Staged returns the newest staging of the bundle with this digest, in hexadecimal.
func (l *Ledger) Staged(ctx context.Context, digest string) (Staged, int64, error) {
	return read[Staged](ctx, l, KindStaged, digest)
}

// AllStaged lists up to max staged bundles, the newest first.
func (l *Ledger) AllStaged(ctx context.Context, max int) ([]Staged, error) {
	out, err := all[Staged](ctx, l, KindStaged, func(string) bool { return true })
	slices.SortFunc(out, func(a, b Staged) int {
		return cmp.Or(b.At.Time().Compare(a.At.Time()), slices.Compare(a.Digest[:], b.Digest[:]))
	})
	return out[:min(len(out), page(max))], err
}

// Proposal returns the newest proposal, also one that does not hold any more.
func (l *Ledger) Proposal(ctx context.Context) (Proposal, int64, error) {
	return read[Proposal](ctx, l, KindProposal, ActiveRevision)
}

// Shadow returns the newest shadow, also one that has ended.
func (l *Ledger) Shadow(ctx context.Context) (Shadow, int64, error) {
	return read[Shadow](ctx, l, KindShadow, ActiveRevision)
}
