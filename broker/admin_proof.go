package broker

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/policy"
)

// proofPage is how many events of a proof go into one message.
const proofPage = 16

// prover is the service that gives out what is shown to others.
type prover struct {
	bullav1.UnimplementedProofsServer
	*Broker
}

// ProveSession streams what a proof of one session is made of. The checkpoint is the newest that witnesses cosigned where
// that one covers the session, else the newest.
func (s prover) ProveSession(in *bullav1.ProveSessionRequest, out grpc.ServerStreamingServer[bullav1.ProveSessionItem]) error {
	ctx := out.Context()
	found, facts, err := sessions{Broker: s.Broker}.find(ctx, in.GetId())
	if err != nil {
		return err
	}
	op, err := s.read(ctx, policy.ActionSessionProof, facts)
	if err != nil {
		return err
	}
	if found.ID.IsZero() {
		return missing("there is no session %s", in.GetId())
	}
	if found.Erased != 0 {
		return missing("session %s was erased by event %d: there is nothing left to prove but its place in the log", found.ID, found.Erased)
	}
	said := time.Now()
	entries, err := s.ledger.Trail(ctx, found.ID, func(done, total int64) {
		if time.Since(said) > signOfLife {
			said = time.Now()
			_ = out.Send(&bullav1.ProveSessionItem{Scanned: done, Of: total}) // a caller that went away ends ctx
		}
	})
	if errors.Is(err, ledger.ErrErased) {
		return missing("%v: it can't be proved any more", err)
	}
	if errors.Is(err, ledger.ErrLimit) {
		return refuse(codes.FailedPrecondition, checkLimit, "the session has more than %d events: export the log instead", ledger.MaxTrail)
	}
	if err != nil {
		return s.answer(ctx, op.caller, err)
	}
	if err := s.still(ctx, &op); err != nil {
		return err
	}
	return s.sendProof(ctx, op, in.GetSince(), entries, out)
}

// sendProof sends the parts.
func (s prover) sendProof(ctx context.Context, op operation, since int64, entries []ledger.Entry, out grpc.ServerStreamingServer[bullav1.ProveSessionItem]) error {
	if _, err := s.tree.Integrate(ctx); err != nil {
		return s.answer(ctx, op.caller, err)
	}
	raw, size, err := s.covering(max(entries[len(entries)-1].Index, since-1))
	if err != nil {
		return s.answer(ctx, op.caller, err)
	}
	if since < 0 || since > size {
		return wrong("the checkpoint of the proof is over %d entries: it can't extend one of %d", size, since)
	}
	item := &bullav1.ProveSessionItem{Checkpoint: raw, LogKey: s.tree.Key().String()}
	if since > 0 {
		consistency, err := s.tree.ProveConsistency(since, size)
		if err != nil {
			return s.answer(ctx, op.caller, err)
		}
		item.Consistency = consistency.Encode()
	}
	for len(entries) > 0 {
		var some []ledger.Entry
		some, entries = portion(entries, proofPage)
		for _, e := range some {
			inclusion, err := s.tree.ProveInclusion(e.Index, size)
			if err != nil {
				return s.answer(ctx, op.caller, err)
			}
			item.Records = append(item.Records, &bullav1.ProvenRecord{Record: recordReply(e), Inclusion: inclusion.Encode()})
		}
		if err := out.Send(item); err != nil {
			return err
		}
		item = new(bullav1.ProveSessionItem)
	}
	return nil
}

// covering returns the checkpoint that a proof about the entries up to last is best made for, and its size.
func (b *Broker) covering(last int64) ([]byte, int64, error) {
	raw := b.tree.Checkpoint()
	head, err := b.tree.Key().Open(raw)
	if err != nil {
		return nil, 0, err
	}
	if witnessed := b.witnessed(); witnessed != nil {
		if seen, _, err := b.tree.Key().OpenCosigned(witnessed, nil); err == nil && seen.Size > last && seen.Size <= head.Size {
			return witnessed, seen.Size, nil
		}
	}
	return raw, head.Size, nil
}

// Checkpoint gives the newest signed tree heads to every member of an allowed trust domain.
func (s prover) Checkpoint(ctx context.Context, in *bullav1.CheckpointRequest) (*bullav1.CheckpointReply, error) {
	who, err := s.caller(ctx, s.now())
	if err != nil {
		return nil, err
	}
	out := &bullav1.CheckpointReply{Checkpoint: s.tree.Checkpoint(), LogKey: s.tree.Key().String()}
	if in.GetWitnessed() {
		if out.Checkpoint = s.witnessed(); out.GetCheckpoint() == nil {
			return nil, missing("no checkpoint was cosigned by enough witnesses: `bulla doctor` says how they are")
		}
	}
	head, _, err := s.tree.Key().OpenCosigned(out.GetCheckpoint(), nil)
	if err != nil {
		return nil, s.answer(ctx, who, err)
	}
	// A caller who knows a larger log than this one gets the checkpoint alone, which shows just that.
	if in.GetSince() > 0 && in.GetSince() <= head.Size {
		consistency, err := s.tree.ProveConsistency(in.GetSince(), head.Size)
		if err != nil {
			return nil, s.answer(ctx, who, err)
		}
		out.Consistency = consistency.Encode()
	}
	return out, nil
}
