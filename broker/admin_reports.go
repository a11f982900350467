package broker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/policy/replay"
)

// grounds are what a promotion says about its effect: a what-if report, whose text is kept with it, the digest of another
// report, or why there is none. Whether the report says the truth is for the persons who promote to answer for: the
// broker only sees that it is one, and that it is about this change.
type grounds struct {
	digest event.Digest
	text   []byte
	none   string
}

// groundsOf takes what a promotion says about its effect. The report is read by about.
func groundsOf(in *bullav1.PromoteRequest) (grounds, error) {
	a := grounds{text: in.GetReport(), none: in.GetNoReport()}
	switch n := len(in.GetReportDigest()); {
	case n != 0 && n != sha256.Size:
		return grounds{}, wrong("the digest of a report has %d bytes", sha256.Size)
	case len(a.none) > maxReason:
		return grounds{}, wrong("the reason for which there is no report has at most %d bytes", maxReason)
	case a.none != "" && (n != 0 || len(a.text) > 0):
		return grounds{}, wrong("there is a report, and a reason for which there is none: give one of both")
	case a.none == "" && n == 0 && len(a.text) == 0 && !in.GetRollback():
		return grounds{}, wrong("a promotion says what it would open: give a what-if report, or the reason for which there is none")
	}
	copy(a.digest[:], in.GetReportDigest())
	if len(a.text) == 0 {
		a.text = nil
	}
	return a, nil
}

// about reads the report, and says whether it is about the candidate and compares it with the revision that decides. It is
// for callers who may promote: a small text can ask for a lot of memory.
func (a grounds) about(candidate event.Digest, active *active) (grounds, error) {
	if len(a.text) == 0 {
		return a, nil
	}
	report, err := replay.ParseReport(a.text)
	if err != nil {
		return grounds{}, wrong("the report: %v", err)
	}
	sum := event.Digest(sha256.Sum256(a.text))
	switch {
	case !a.digest.IsZero() && a.digest != sum:
		return grounds{}, wrong("the report has the digest %s, and %s is named", sum, a.digest)
	case report.Narrowed():
		return grounds{}, wrong("the report is about one principal or one secret alone: make it without --principal and --secret")
	case report.Candidate != candidate.String():
		return grounds{}, wrong("the report is about revision %.12s, and not about %.12s", report.Candidate, candidate)
	case report.Active != hex.EncodeToString(active.digest[:]):
		return grounds{}, wrong("the report compares with revision %.12s, and %.12s is active by now: make it anew", report.Active, active.digest)
	}
	a.digest = sum
	return a, nil
}

// GetReports returns the reports that a revision was proposed and activated on.
func (s revisions) GetReports(ctx context.Context, in *bullav1.GetReportsRequest) (*bullav1.GetReportsReply, error) {
	var digest event.Digest
	if err := digest.UnmarshalText([]byte(in.GetDigest())); err != nil || digest.IsZero() {
		return nil, wrong("a digest has 64 hexadecimal digits")
	}
	op, err := s.read(ctx, policy.ActionAuditTail, policy.Resource{Kind: policy.KindAudit})
	if err != nil {
		return nil, err
	}
	out := new(bullav1.GetReportsReply)
	proposal, err := s.proposal(ctx, op.now, op.permit.active)
	if err == nil && proposal.seq != 0 && proposal.Digest == digest {
		err = s.proposedOn(ctx, proposal.ID, out)
	}
	row, _, rowErr := s.ledger.Revision(ctx, digest.String())
	if err == nil && rowErr == nil {
		err = s.activatedOn(ctx, row.Sequence, out)
	}
	if err == nil && !errors.Is(rowErr, ledger.ErrNotFound) {
		err = rowErr
	}
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	return out, nil
}

// activatedOn adds the reports of an activation, that of the first person before it.
func (s revisions) activatedOn(ctx context.Context, sequence uint64, out *bullav1.GetReportsReply) error {
	all, err := s.ledger.Activations(ctx)
	if err != nil {
		return err
	}
	for _, a := range all {
		if a.Sequence != sequence {
			continue
		}
		entries, err := s.ledger.Events(ctx, a.Index, 1)
		if err != nil || len(entries) == 0 || entries[0].Erased != 0 {
			return err
		}
		e, err := event.Decode(entries[0].Encoding)
		if err != nil {
			return err
		}
		body, ok := e.Body.(event.RevisionActivated)
		if !ok {
			return nil
		}
		if !body.Proposal.IsZero() {
			if err := s.proposedOn(ctx, body.Proposal, out); err != nil {
				return err
			}
		}
		keep(out, e, body.Text, false)
	}
	return nil
}

// proposedOn adds the report of a proposal, unless it was erased.
func (s revisions) proposedOn(ctx context.Context, id event.ID, out *bullav1.GetReportsReply) error {
	entry, err := s.ledger.Find(ctx, id)
	if errors.Is(err, ledger.ErrErased) {
		return nil
	}
	if err != nil {
		return err
	}
	e, err := event.Decode(entry.Encoding)
	if err != nil {
		return err
	}
	if body, ok := e.Body.(event.RevisionProposed); ok {
		keep(out, e, body.Text, true)
	}
	return nil
}

func keep(out *bullav1.GetReportsReply, e event.Event, text []byte, proposal bool) {
	if len(text) == 0 {
		return
	}
	sum := sha256.Sum256(text)
	out.Reports = append(out.Reports, &bullav1.KeptReport{
		Digest: hex.EncodeToString(sum[:]), By: e.Subject, At: stamp(e.Time), Proposal: proposal, Report: text,
	})
}
