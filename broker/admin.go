package broker

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
)

// operation is a permitted administrative action.
type operation struct {
	caller
	now    time.Time
	permit permit
}

// authorise is the operator side's one gate: who calls, and does policy permit this action on this resource.
// A change carries the decision in its own event; for a read, call read.
func (b *Broker) authorise(ctx context.Context, action policy.Action, resource policy.Resource) (operation, error) {
	now := b.now()
	who, err := b.caller(ctx, now)
	if err != nil {
		return operation{}, err
	}
	active, err := b.current(ctx)
	if err != nil {
		return operation{}, b.answer(ctx, who, err)
	}
	v, err := b.decide(ctx, active, b.adminSignals(now, who, action, resource), external{})
	if err != nil {
		return operation{}, b.answer(ctx, who, err)
	}
	p, denied := v.permit()
	if denied != nil {
		return operation{}, b.forbidden(ctx, now, who, denied)
	}
	return operation{caller: who, now: now, permit: p}, nil
}

// forbidden records that an administrative action was not permitted, and makes the caller's answer.
func (b *Broker) forbidden(ctx context.Context, now time.Time, who caller, denied *verdict) error {
	b.history.denied(who.id.String(), now)
	answer, err := b.denial(ctx, now, who, "", denied, "")
	if err != nil {
		return b.answer(ctx, who, err)
	}
	answer.nonce = nil
	return answer
}

// read is authorise for an action that changes nothing: the permit itself is the event.
func (b *Broker) read(ctx context.Context, action policy.Action, resource policy.Resource) (operation, error) {
	return twice(func() (operation, error) {
		op, err := b.authorise(ctx, action, resource)
		if err != nil {
			return operation{}, err
		}
		return op, b.permitted(ctx, op)
	})
}

// permitted records a permit that no event of a change carries.
func (b *Broker) permitted(ctx context.Context, op operation) error {
	commit := ledgerCommit(event.New(op.now, op.id.String(), event.OperationPermitted{Principal: op.id.String(), Decision: *op.by()}))
	commit.Require = []ledger.Precondition{op.permit.active.unchanged()}
	if _, err := b.ledger.Commit(ctx, commit); err != nil {
		return b.answer(ctx, op.caller, err)
	}
	return nil
}

// by is the decision as an event of a change carries it.
func (o operation) by() *event.Decision {
	d := o.permit.record("")
	return &d
}

// shows asks policy whether the caller of a listing may see one of its entries: a list shows nothing that
// asking for the entry would deny.
func (b *Broker) shows(ctx context.Context, op operation, action policy.Action, entry policy.Resource) bool {
	v, err := b.judge(ctx, op.permit.active, b.adminSignals(op.now, op.caller, action, entry), external{})
	return err == nil && v.decision.Effect == policy.Permit
}

// adminSignals are the raw signals of an operator's call: no instance, no recipient, no history; and no external
// signals, so that a transmitter that was taken over can't lock out those who would end it.
func (b *Broker) adminSignals(now time.Time, who caller, action policy.Action, resource policy.Resource) policy.Signals {
	return policy.Signals{
		Now: now.UnixMicro(), Action: action, Principal: b.principal(who, policy.LevelBasic), Resource: resource, Network: network(who),
		Place: b.placeFacts(who),
	}
}

// missing is the answer for a thing that a permitted operator asked for and that does not exist.
func missing(format string, args ...any) error {
	return refuse(codes.NotFound, checkRequest, format, args...)
}

// wrong is the answer for a call that can't be understood.
func wrong(format string, args ...any) error {
	return refuse(codes.InvalidArgument, checkRequest, format, args...)
}

// answer turns whatever went wrong into what the caller gets. A refusal is one already; everything else is
// logged here, once, and tells the caller nothing but its class.
func (b *Broker) answer(ctx context.Context, who caller, err error) error {
	var r *refusal
	if errors.As(err, &r) {
		return r
	}
	level := slog.LevelError
	if errors.Is(err, context.Canceled) && ctx.Err() != nil || errors.Is(err, ledger.ErrPrecondition) || errors.Is(err, ledger.ErrLimit) {
		level = slog.LevelInfo // the caller has gone, was overtaken twice, or met a limit: nothing is wrong here
	}
	method, _ := grpc.Method(ctx)
	b.logger.Log(ctx, level, "call failed", "method", method, "spiffe_id", who.id.String(), "trust_domain_id", who.id.TrustDomain().IDString(),
		"caller_addr", who.addr.String(), "error", err)
	r = fromLedger(err)
	r.nonce = who.conn.next()
	return r
}

// record commits an event that has no further conditions.
func (b *Broker) record(ctx context.Context, ev event.Event) error {
	_, err := b.ledger.Commit(ctx, ledgerCommit(ev))
	return err
}

// invalid refuses a proven call whose payload can't be understood.
func (b *Broker) invalid(ctx context.Context, now time.Time, who request, text string) error {
	answer := refuse(codes.InvalidArgument, checkRequest, "%s", text)
	body := event.RequestRefused{Method: who.method, Instance: who.instance.thumbprint, Check: checkRequest}
	return b.rejectTarget(ctx, now, who.caller, body, answer)
}

// rejectRequest refuses a proven call that is about something which is not, or no more, the caller's.
func (b *Broker) rejectRequest(ctx context.Context, now time.Time, who request, check, target, text string) error {
	answer := refuse(codes.FailedPrecondition, check, "%s", text)
	body := event.RequestRefused{Method: who.method, Instance: who.instance.thumbprint, Check: check, Target: target}
	return b.rejectTarget(ctx, now, who.caller, body, answer)
}
