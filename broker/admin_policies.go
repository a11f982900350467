package broker

import (
	"context"
	"errors"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
)

// policies is the service that activates and shows policy revisions.
type policies struct {
	bullav1.UnimplementedPoliciesServer
	*Broker
}

// PushRevision checks a bundle with everything that Load knows, and activates it by an event.
func (s policies) PushRevision(ctx context.Context, in *bullav1.PushRevisionRequest) (*bullav1.Revision, error) {
	if len(in.GetNote()) > maxReason {
		return nil, wrong("a note has at most %d bytes", maxReason)
	}
	return twice(func() (*bullav1.Revision, error) { return s.push(ctx, in) })
}

func (s policies) push(ctx context.Context, in *bullav1.PushRevisionRequest) (*bullav1.Revision, error) {
	digest := policy.ArchiveDigest(in.GetArchive())
	op, err := s.authorise(ctx, policy.ActionPolicyPush, policy.Resource{Kind: policy.KindRevision, Revision: &policy.NewRules{Digest: event.Digest(digest).String()}})
	if err != nil {
		return nil, err
	}
	loaded, err := s.load(ctx, in.GetArchive())
	if err != nil {
		if err := s.permitted(ctx, op); err != nil { // who tried it, and with what
			return nil, err
		}
		return nil, wrong("the bundle was refused, the active revision stays:\n%v", err)
	}
	row, err := s.activate(ctx, op.now, loaded, "push by "+op.id.String(), in.GetNote(), &op)
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	return revisionReply(row, true), nil
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
	return &bullav1.RevisionArchive{Revision: revisionReply(row, digest == active.digest), Archive: archive}, nil
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
	}
}
