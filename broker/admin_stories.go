package broker

import (
	"context"
	"time"

	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit/timeline"
	"github.com/bulla-project/bulla/policy"
)

// stories is the service that tells what happened to a session.
type stories struct {
	bullav1.UnimplementedStoriesServer
	*Broker
}

// TellSession streams the events of a session's story. It reads the events of the session's time, and no others.
func (s stories) TellSession(in *bullav1.TellSessionRequest, out grpc.ServerStreamingServer[bullav1.AuditEvent]) error {
	ctx := out.Context()
	found, facts, err := sessions{Broker: s.Broker}.find(ctx, in.GetId())
	if err != nil {
		return err
	}
	op, err := s.read(ctx, policy.ActionSessionShow, facts)
	if err != nil {
		return err
	}
	if found.ID.IsZero() {
		return missing("there is no session %s", in.GetId())
	}
	if found.Erased != 0 {
		return missing("session %s was erased by event %d: it has no story any more", found.ID, found.Erased)
	}
	teller := timeline.New(timeline.Subject{
		Session: found.ID, Principal: found.Principal, Instance: found.Instance, Secret: found.Secret, Device: found.Device,
		Revision: found.Revision, Approval: found.Approval, Issued: found.Issued.Time(), Expires: found.Expires.Time(),
	})
	next, err := s.firstSince(ctx, found.Issued.Time().Add(-timeline.Before))
	if err != nil {
		return s.answer(ctx, op.caller, err)
	}
	for {
		entries, err := s.ledger.Events(ctx, next, auditPage)
		if err != nil {
			return s.answer(ctx, op.caller, err)
		}
		if err := s.still(ctx, &op); err != nil {
			return err
		}
		for _, e := range entries {
			if teller.Over(e.Event.Time.Time()) {
				return nil
			}
			if e.Erased != 0 { // whose it was is not known: the client says how many
				if err := out.Send(&bullav1.AuditEvent{Index: e.Index, Erased: e.Erased}); err != nil {
					return err
				}
				continue
			}
			if _, part := teller.Add(e.Index, e.Event); !part {
				continue
			}
			if err := out.Send(&bullav1.AuditEvent{Index: e.Index, Event: e.Encoding}); err != nil {
				return err
			}
		}
		if next += int64(len(entries)); len(entries) < auditPage {
			return nil
		}
	}
}

// firstSince is the index of about the first event that is not older than a moment: the times of events that are
// committed side by side are not quite in order.
func (b *Broker) firstSince(ctx context.Context, moment time.Time) (int64, error) {
	at, err := b.ledger.Positions(ctx, moment)
	if err != nil {
		return 0, err
	}
	return max(0, at[0]-auditPage), nil
}
