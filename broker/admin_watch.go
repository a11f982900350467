package broker

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
)

// viewBacklog is how many events a live view may be behind before it is ended.
const viewBacklog = 1024

// WatchSessions streams what happens to sessions from now on. It shows of each what `session show` would, to the same
// people; certificate and permit are judged again as in Tail.
func (s revocations) WatchSessions(in *bullav1.WatchSessionsRequest, out grpc.ServerStreamingServer[bullav1.SessionChange]) error {
	ctx := out.Context()
	op, err := s.read(ctx, policy.ActionSessionList, policy.Resource{Kind: policy.KindSession})
	if err != nil {
		return err
	}
	queue, behind := make(chan ledger.Committed, viewBacklog), make(chan struct{}, 1)
	view, err := s.hub.listen(func(e ledger.Committed) {
		if len(sessionsOf(e.Event.Body)) == 0 {
			return
		}
		select {
		case queue <- e:
		default:
			select {
			case behind <- struct{}{}:
			default:
			}
		}
	})
	if err != nil {
		return err
	}
	defer s.hub.silence(view)
	if err := out.SendHeader(nil); err != nil { // it is open from here on
		return err
	}
	tick := time.NewTicker(recheck)
	defer tick.Stop()
	for {
		var e *ledger.Committed
		select {
		case next := <-queue:
			e = &next
		case <-behind:
			return refuse(codes.ResourceExhausted, checkLimit, "more happens than is read: name a principal or a secret, or follow `bulla audit tail`")
		case <-view.gone:
			return refuse(codes.Unavailable, checkLimit, "the broker is stopping")
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if err := s.still(ctx, &op); err != nil {
			return err
		}
		if e == nil {
			continue
		}
		if err := s.change(op, in, *e, out); err != nil {
			return err
		}
	}
}

// change sends what an event did to the sessions that the caller asked for and may see.
func (s revocations) change(op operation, in *bullav1.WatchSessionsRequest, e ledger.Committed, out grpc.ServerStreamingServer[bullav1.SessionChange]) error {
	ctx := out.Context()
	for _, f := range s.reread(ctx, sessionsOf(e.Event.Body)) {
		if in.GetPrincipal() != "" && f.Principal != in.GetPrincipal() || in.GetSecret() != "" && f.Secret != in.GetSecret() {
			continue
		}
		if !s.shows(ctx, op, policy.ActionSessionShow, sessionFacts(f)) {
			continue
		}
		shown, err := s.shown(ctx, f, s.now())
		if err != nil {
			return s.answer(ctx, op.caller, err)
		}
		err = out.Send(&bullav1.SessionChange{
			Index: e.Index, Type: string(e.Event.Body.EventType()), Time: timestamppb.New(e.Event.Time.Time()), Session: shown,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// sessionsOf are the sessions that an event is about.
func sessionsOf(body event.Body) []event.ID {
	switch b := body.(type) {
	case event.SessionIssued:
		return []event.ID{b.Session}
	case event.SessionConfirmed:
		return []event.ID{b.Session}
	case event.SessionUsed:
		return []event.ID{b.Session}
	case event.SessionOperated:
		return []event.ID{b.Session}
	case event.SessionRevoked:
		return []event.ID{b.Session}
	case event.SessionClosed:
		return []event.ID{b.Session}
	case event.SessionsExpired:
		return b.Sessions
	case event.SessionsUnconfirmed:
		return b.Sessions
	case event.SessionsRevoked:
		return b.Sessions
	case event.SessionsWiped:
		return b.Sessions
	}
	return nil
}
