package broker

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/session"
)

// sessions is the service that shows and ends sessions.
type sessions struct {
	bullav1.UnimplementedSessionsServer
	*Broker
}

// GetSession shows one session.
func (s sessions) GetSession(ctx context.Context, in *bullav1.GetSessionRequest) (*bullav1.Session, error) {
	found, facts, err := s.find(ctx, in.GetId())
	if err != nil {
		return nil, err
	}
	op, err := s.read(ctx, policy.ActionSessionShow, facts)
	if err != nil {
		return nil, err
	}
	if found.ID.IsZero() {
		return nil, missing("there is no session %s", in.GetId())
	}
	shown, err := s.shown(ctx, found, op.now)
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	return shown, nil
}

// find looks a session up; one that does not exist has the zero id, and policy decides who is told.
func (s sessions) find(ctx context.Context, text string) (session.Session, policy.Resource, error) {
	id, err := event.ParseID(text)
	if err != nil {
		return session.Session{}, policy.Resource{}, wrong("the session id is not a UUID of version 7")
	}
	facts := policy.Resource{Kind: policy.KindSession, Session: &policy.Session{ID: id.String()}}
	found, _, err := s.ledger.Session(ctx, id)
	if errors.Is(err, ledger.ErrNotFound) {
		return session.Session{}, facts, nil
	}
	if err != nil {
		return session.Session{}, facts, s.unavailable(err)
	}
	return found, sessionFacts(found), nil
}

// sessionFacts is a session as policy sees it.
func sessionFacts(s session.Session) policy.Resource {
	return policy.Resource{Kind: policy.KindSession, Session: &policy.Session{
		ID: s.ID.String(), State: string(s.State), Principal: s.Principal, Secret: s.Secret,
	}}
}

// ListSessions lists sessions, the newest first.
func (s sessions) ListSessions(ctx context.Context, in *bullav1.ListSessionsRequest) (*bullav1.ListSessionsReply, error) {
	op, err := s.read(ctx, policy.ActionSessionList, policy.Resource{Kind: policy.KindSession})
	if err != nil {
		return nil, err
	}
	for _, state := range in.GetStates() {
		if _, err := session.ParseState(state); err != nil {
			return nil, wrong("%v", err)
		}
	}
	if in.GetBefore() != "" {
		if _, err := event.ParseID(in.GetBefore()); err != nil {
			return nil, wrong("before is not a session id")
		}
	}
	limit := page(in.GetLimit())
	found, err := s.ledger.Sessions(ctx, ledger.SessionQuery{
		Principal: in.GetPrincipal(), Secret: in.GetSecret(), Device: in.GetDevice(), States: in.GetStates(), Before: in.GetBefore(), Max: limit,
	})
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	out := new(bullav1.ListSessionsReply)
	for _, f := range found {
		if s.shows(ctx, op, policy.ActionSessionShow, sessionFacts(f)) {
			out.Sessions = append(out.Sessions, sessionReply(f, op.now))
		}
	}
	if len(found) == limit {
		out.Next = found[limit-1].ID.String()
	}
	return out, nil
}

// RevokeSession ends a session. Ending one that has ended already is no error: it is over either way.
func (s sessions) RevokeSession(ctx context.Context, in *bullav1.RevokeSessionRequest) (*bullav1.Session, error) {
	if in.GetReason() == "" || len(in.GetReason()) > maxReason {
		return nil, wrong("a revocation needs a reason of 1 to %d bytes", maxReason)
	}
	return twice(func() (*bullav1.Session, error) { return s.revoke(ctx, in) })
}

func (s sessions) revoke(ctx context.Context, in *bullav1.RevokeSessionRequest) (*bullav1.Session, error) {
	found, facts, err := s.find(ctx, in.GetId())
	if err != nil {
		return nil, err
	}
	op, err := s.authorise(ctx, policy.ActionSessionRevoke, facts)
	if err != nil {
		return nil, err
	}
	if found.ID.IsZero() {
		if err := s.permitted(ctx, op); err != nil {
			return nil, err
		}
		return nil, missing("there is no session %s", in.GetId())
	}
	commit := ledgerCommit(event.New(op.now, found.Principal, event.SessionRevoked{Session: found.ID, Reason: in.GetReason(), By: op.by()}))
	commit.Require = []ledger.Precondition{op.permit.active.unchanged()}
	_, err = s.ledger.Commit(ctx, commit)
	switch {
	case errors.Is(err, ledger.ErrTransition): // it has ended: what the operator is shown of it needs an event of its own
		if err := s.permitted(ctx, op); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, s.answer(ctx, op.caller, err)
	}
	found, _, err = s.ledger.Session(ctx, found.ID)
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	return sessionReply(found, op.now), nil
}

func sessionReply(s session.Session, now time.Time) *bullav1.Session {
	return &bullav1.Session{
		Id: s.ID.String(), State: string(s.StateAt(now)), Principal: s.Principal, Secret: s.Secret, Version: s.Version, Grade: s.Grade,
		IssuedAt: stamp(s.Issued), ExpiresAt: stamp(s.Expires), RevokedAt: stamp(s.RevokedAt), ConfirmedAt: stamp(s.ConfirmedAt),
		EndedAt: stamp(s.EndedAt), Reason: s.Reason, Instance: s.Instance, Device: s.Device, Suite: s.Suite,
		EnvelopeDigest: s.EnvelopeDigest.String(), Revision: s.Revision.String(), Uses: s.Uses, Used: s.Used, Offline: s.Offline, Ahead: s.Ahead,
		Approval: text(s.Approval),
		Erased:   s.Erased,
	}
}

// text is empty for an id that is none.
func text(id event.ID) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

// stamp is nil for a time that has not come.
func stamp(t event.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t.Time())
}
