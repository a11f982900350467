package broker

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/secret"
)

// erasures is the service that destroys the keys of what a principal did, and keeps holds against it.
type erasures struct {
	bullav1.UnimplementedErasuresServer
	*Broker
}

// planAgain is how often an erasure is planned anew because an event came under one of the keys meanwhile, or a hold.
const planAgain = 3

// Erase implements the service: intent (the plan, on a ledger that checks), effect and outcome in one event for each
// key. What was erased when something fails stays erased, and the event says so; the next call goes on.
func (s erasures) Erase(in *bullav1.EraseRequest, out grpc.ServerStreamingServer[bullav1.EraseReply]) error {
	ctx := out.Context()
	subject, err := certs.ParseID(in.GetSubject())
	if err != nil {
		return wrong("%v", err)
	}
	if len(in.GetReason()) > maxReason || in.GetReason() == "" && !in.GetDryRun() {
		return wrong("an erasure needs a reason of 1 to %d bytes", maxReason)
	}
	facts := policy.Resource{Kind: policy.KindSession, Session: &policy.Session{Principal: subject.String()}}
	gate := s.authorise
	if in.GetDryRun() {
		gate = s.read
	}
	op, err := gate(ctx, policy.ActionAuditErase, facts)
	if err != nil {
		return err
	}
	report := &bullav1.EraseReply{Report: true}
	for try := 1; ; try++ {
		plan, err := s.plan(ctx, op, ledger.EraseQuery{Subject: subject.String(), Again: try > 1}, out)
		if !in.GetDryRun() && (err != nil || len(plan.Kept) > 0 || len(plan.Erasures) == 0) {
			// No erasure tells of it: what the caller is shown needs an event of its own.
			if _, err := s.read(ctx, policy.ActionAuditErase, facts); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		report.Looked, report.Of, report.Kept = plan.Seen, plan.Seen, plan.Kept
		if in.GetDryRun() || len(plan.Kept) > 0 {
			if len(report.GetBy()) > 0 { // it was overtaken: the counts are those of what went before
				return out.Send(report)
			}
			for _, e := range plan.Erasures {
				addErasure(report, e.Body)
			}
			return out.Send(report)
		}
		err = s.eraseAll(ctx, op, in.GetReason(), plan, report)
		if err == nil {
			return out.Send(report)
		}
		if !errors.Is(err, ledger.ErrPrecondition) && !errors.Is(err, ledger.ErrTransition) || try == planAgain {
			return s.answer(ctx, op.caller, err)
		}
		if op, err = s.authorise(ctx, policy.ActionAuditErase, facts); err != nil {
			return err
		}
	}
}

// plan looks for what can be erased, and tells the caller now and then that it goes on.
func (s erasures) plan(ctx context.Context, op operation, q ledger.EraseQuery, out grpc.ServerStreamingServer[bullav1.EraseReply]) (ledger.ErasePlan, error) {
	free, err := s.whole(ctx)
	if err != nil {
		return ledger.ErasePlan{}, err
	}
	defer free()
	said := time.Now()
	plan, err := s.ledger.PlanErasure(ctx, q, s.now(), func(done, total int64) {
		if time.Since(said) > signOfLife {
			said = time.Now()
			_ = out.Send(&bullav1.EraseReply{Looked: done, Of: total}) // a caller that went away ends ctx
		}
	})
	if errors.Is(err, ledger.ErrTampered) {
		s.logger.Error("nothing was erased: the state is not what the events make of it", "error", err)
		return plan, refuse(codes.FailedPrecondition, checkLedger, "the state is not what the events make of it, and nothing is erased then: run `bulla audit rebuild --check`")
	}
	if err != nil {
		return plan, s.answer(ctx, op.caller, err)
	}
	return plan, nil
}

// forget drops what this process remembers of a subject whose record was erased.
func (b *Broker) forget(subject string) {
	b.bindings.clear()
	b.shadow.forget(subject)
}

// addErasure adds an erasure to the report.
func addErasure(r *bullav1.EraseReply, e event.SubjectErased) {
	first, last := e.Indexes[0], e.Indexes[len(e.Indexes)-1]
	if r.Events == 0 || first < r.First {
		r.First = first
	}
	r.Last = max(r.Last, last)
	r.Events += int64(len(e.Indexes))
	r.Sessions += int64(len(e.Sessions))
	r.Keys++
}

func (s erasures) eraseAll(ctx context.Context, op operation, reason string, plan ledger.ErasePlan, report *bullav1.EraseReply) error {
	for _, planned := range plan.Erasures {
		e := planned.Body
		e.Reason, e.By = reason, op.by()
		commit := ledgerCommit(event.New(s.now(), op.id.String(), e))
		commit.Require = append(planned.Require, op.permit.active.unchanged())
		done, err := s.ledger.Commit(ctx, commit)
		if err != nil {
			return err
		}
		s.forget(e.Subject)
		addErasure(report, e)
		report.By = append(report.By, done.Index)
	}
	return nil
}

// hold reads what a request names.
func (s erasures) hold(in *bullav1.HoldRequest) (selector, value string, facts policy.Resource, err error) {
	if in.GetReason() == "" || len(in.GetReason()) > maxReason {
		return "", "", facts, wrong("a hold needs a reason of 1 to %d bytes, and so does its release", maxReason)
	}
	facts = policy.Resource{Kind: policy.KindAudit}
	switch in.GetSelector() {
	case event.HoldEverything:
		if in.GetValue() != "" {
			return "", "", facts, wrong("a hold on everything names nothing else")
		}
	case event.ByPrincipal:
		id, err := certs.ParseID(in.GetValue())
		if err != nil {
			return "", "", facts, wrong("%v", err)
		}
		value = id.String()
	case event.BySecret:
		name, err := secret.ParseName(in.GetValue())
		if err != nil {
			return "", "", facts, wrong("%v", err)
		}
		value = name.String()
	default:
		return "", "", facts, wrong("a hold is on a principal, a secret or everything")
	}
	return in.GetSelector(), value, facts, nil
}

// PlaceHold implements the service.
func (s erasures) PlaceHold(ctx context.Context, in *bullav1.HoldRequest) (*bullav1.Hold, error) {
	selector, value, facts, err := s.hold(in)
	if err != nil {
		return nil, err
	}
	return twice(func() (*bullav1.Hold, error) {
		op, err := s.authorise(ctx, policy.ActionAuditHold, facts)
		if err != nil {
			return nil, err
		}
		if h, _, err := s.ledger.Hold(ctx, selector, value); err == nil {
			if err := s.permitted(ctx, op); err != nil {
				return nil, err
			}
			return nil, refuse(codes.AlreadyExists, checkRequest, "there is a hold on it since %s", h.At)
		}
		return s.change(ctx, op, event.HoldPlaced{Selector: selector, Value: value, Reason: in.GetReason(), By: op.by()},
			ledger.Hold{Selector: selector, Value: value, Reason: in.GetReason(), At: event.NewTime(op.now), By: op.id.String()})
	})
}

// ReleaseHold implements the service.
func (s erasures) ReleaseHold(ctx context.Context, in *bullav1.HoldRequest) (*bullav1.Hold, error) {
	selector, value, facts, err := s.hold(in)
	if err != nil {
		return nil, err
	}
	return twice(func() (*bullav1.Hold, error) {
		op, err := s.authorise(ctx, policy.ActionAuditHold, facts)
		if err != nil {
			return nil, err
		}
		h, _, err := s.ledger.Hold(ctx, selector, value)
		if errors.Is(err, ledger.ErrNotFound) {
			if err := s.permitted(ctx, op); err != nil {
				return nil, err
			}
			return nil, missing("there is no hold on %s", strings.TrimSuffix(selector+" "+value, " "))
		}
		if err != nil {
			return nil, s.answer(ctx, op.caller, err)
		}
		return s.change(ctx, op, event.HoldReleased{Selector: selector, Value: value, Reason: in.GetReason(), By: op.by()}, h)
	})
}

// change commits an event about a hold.
func (s erasures) change(ctx context.Context, op operation, body event.Body, h ledger.Hold) (*bullav1.Hold, error) {
	commit := ledgerCommit(event.New(op.now, op.id.String(), body))
	commit.Require = []ledger.Precondition{op.permit.active.unchanged()}
	if _, err := s.ledger.Commit(ctx, commit); err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	return holdReply(h), nil
}

// ListHolds implements the service.
func (s erasures) ListHolds(ctx context.Context, in *bullav1.ListHoldsRequest) (*bullav1.ListHoldsReply, error) {
	op, err := s.read(ctx, policy.ActionAuditHolds, policy.Resource{Kind: policy.KindAudit})
	if err != nil {
		return nil, err
	}
	found, err := s.ledger.Holds(ctx, in.GetAfter(), maxPage)
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	out := new(bullav1.ListHoldsReply)
	for _, h := range found {
		out.Holds = append(out.Holds, holdReply(h))
	}
	if len(found) == maxPage {
		last := found[len(found)-1]
		out.Next = ledger.HoldKey(last.Selector, last.Value)
	}
	return out, nil
}

func holdReply(h ledger.Hold) *bullav1.Hold {
	return &bullav1.Hold{Selector: h.Selector, Value: h.Value, Reason: h.Reason, PlacedAt: stamp(h.At), PlacedBy: h.By}
}
