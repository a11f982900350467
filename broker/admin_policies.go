package broker

import (
	"context"
	"errors"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/policy"
)

// policies is the service that activates and shows policy revisions.
type policies struct {
	bullav1.UnimplementedPoliciesServer
	*Broker
}

// PushRevision stages a bundle and activates it, in one step. It is for brokers without bundle keys: it has no
// signature.
func (s policies) PushRevision(ctx context.Context, in *bullav1.PushRevisionRequest) (*bullav1.Revision, error) {
	change, err := revisions{Broker: s.Broker}.Stage(ctx, &bullav1.StageRequest{Archive: in.GetArchive(), Note: in.GetNote()})
	return change.GetRevision(), err
}

// GetRevision returns a revision with its archive.
func (s policies) GetRevision(ctx context.Context, in *bullav1.GetRevisionRequest) (*bullav1.RevisionArchive, error) {
	op, err := s.read(ctx, policy.ActionPolicyShow, policy.Resource{Kind: policy.KindRevision})
	if err != nil {
		return nil, err
	}
	active, err := s.current(ctx)
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	digest := active.digest
	if in.GetDigest() != "" {
		if err := digest.UnmarshalText([]byte(in.GetDigest())); err != nil {
			return nil, wrong("a digest has 64 hexadecimal digits")
		}
	}
	row, _, err := s.ledger.Revision(ctx, digest.String())
	reply := revisionReply(row, digest == active.digest)
	if errors.Is(err, ledger.ErrNotFound) {
		var staged ledger.Staged
		staged, _, err = s.ledger.Staged(ctx, digest.String())
		reply = stagedReply(staged)
	}
	if errors.Is(err, ledger.ErrNotFound) {
		return nil, missing("there is no revision %s", digest)
	}
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	archive, err := s.ledger.Blob(ctx, ledger.RevisionBlob(digest), digest)
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	return &bullav1.RevisionArchive{Revision: reply, Archive: archive}, nil
}

// ListRevisions lists the revisions that were ever active, the newest first.
func (s policies) ListRevisions(ctx context.Context, in *bullav1.ListRevisionsRequest) (*bullav1.ListRevisionsReply, error) {
	op, err := s.read(ctx, policy.ActionPolicyList, policy.Resource{Kind: policy.KindRevision})
	if err != nil {
		return nil, err
	}
	active, err := s.current(ctx)
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	rows, err := s.ledger.Revisions(ctx, page(in.GetLimit()))
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	out := new(bullav1.ListRevisionsReply)
	for _, r := range rows {
		reply := revisionReply(r, r.Digest == active.digest)
		if reply.GetActive() {
			reply.Sweep, _ = s.sweepText(ctx, active.sequence)
		}
		out.Revisions = append(out.Revisions, reply)
	}
	return out, nil
}

func revisionReply(r ledger.Revision, active bool) *bullav1.Revision {
	return &bullav1.Revision{
		Digest: r.Digest.String(), Sequence: r.Sequence, Source: r.Source, Note: r.Note, ActivatedAt: stamp(r.Activated), By: r.By, Active: active,
		Key: r.Key, Rollback: r.Rollback, ReportDigest: r.Report.String(),
		ReportKept: r.Kept, NoReport: r.NoReport,
	}
}

// stagedReply is a revision that was never active.
func stagedReply(r ledger.Staged) *bullav1.Revision {
	return &bullav1.Revision{
		Digest: r.Digest.String(), Source: r.Source, Note: r.Note, By: r.By, Key: r.Key, Name: r.Name, StagedAt: stamp(r.At),
	}
}
