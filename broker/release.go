package broker

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/session"
)

// Deliver is the release path, the only way on which a secret leaves. Each step needs what the step before
// it returned; a step that fails ends the delivery, and what it refused is in the ledger by then.
func (b *Broker) Deliver(ctx context.Context, in *bullav1.SignedRequest) (*bullav1.DeliverReply, error) {
	now := b.now()
	who, err := b.request(ctx, now, bullav1.Broker_Deliver_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	reply, err := twice(func() (*bullav1.DeliverReply, error) { return b.release(ctx, now, who) })
	if err != nil {
		return nil, b.answer(ctx, who.caller, err)
	}
	reply.NextNonce = who.conn.next()
	return reply, nil
}

// release decides on a proven request and delivers, or refuses.
func (b *Broker) release(ctx context.Context, now time.Time, who request) (*bullav1.DeliverReply, error) {
	if err := b.tree.Stopped(); err != nil { // what no signed log will ever hold does not leave
		return nil, err
	}
	asked, err := b.ask(ctx, now, who) // strictly parsed
	if err != nil {
		return nil, err
	}
	if asked.factors, err = b.factors(ctx, now, who, asked.shown); err != nil { // tokens of other issuers
		return nil, err
	}
	active, err := b.current(ctx) // the revision that decides
	if err != nil {
		return nil, err
	}
	device, err := b.passport(ctx, active, who) // attestation
	if err != nil {
		return nil, err
	}
	now = device.notBefore(now)         // an appraisal beside this call may be newer than the call
	target, err := b.target(ctx, asked) // the secret, or that there is none
	if err != nil {
		return nil, err
	}
	if target.orders, err = b.barrier(ctx, touching(who.caller.id.String(), target.name, device.id, active.digest)); err != nil { // revocations
		return nil, err
	}
	now = target.orders.after(now)
	said, err := b.external(ctx, now, who, device.id) // by transmitters of signals
	if err != nil {
		return nil, err
	}
	signals := b.signals(ctx, now, who, asked, recipient(device, asked), device, target, said) // context
	verdict, err := b.decide(ctx, active, signals, said)                                       // risk and policy
	if err != nil {
		return nil, err
	}
	if verdict, err = b.approved(ctx, now, who, target, verdict); err != nil { // with what others said to this request
		return nil, err
	}
	permit, denied := verdict.permit()
	if denied != nil {
		if reply, err := b.answered(ctx, now, who, asked, verdict, active); reply != nil || err != nil { // permitted before
			return reply, err
		}
		return nil, b.deny(ctx, now, who, denied, target)
	}
	terms, unmet := permit.terms(now, asked, device, target, &b.epochs) // obligations
	if unmet != "" {
		return nil, b.unmet(ctx, now, who, permit, unmet)
	}
	value, err := b.value(ctx, target)
	if err != nil {
		return nil, err
	}
	defer value.Zero()
	if unmet := terms.divisible(asked, value); unmet != "" {
		return nil, b.unmet(ctx, now, who, permit, unmet)
	}
	sealed, err := b.seal(now, who, asked, device, target, terms, value)
	if err != nil {
		return nil, err
	}
	return b.issue(ctx, now, who, asked, device, target, terms, sealed) // ledger commit, or what the request got before
}

// issue commits the delivery and makes the reply. The ledger refuses it when the revision, the secret, the
// device or the appraisal is not what the decision saw, or a limit is reached.
func (b *Broker) issue(ctx context.Context, now time.Time, who request, asked ask, device device, target target, terms terms, sealed sealed) (*bullav1.DeliverReply, error) {
	session, _ := event.ParseID(sealed.Context.Session) // made by seal
	reply := &bullav1.DeliverReply{
		Envelope: sealed.Bytes, SessionId: sealed.Context.Session, Risk: riskReply(terms.decision.Risk),
		Policy:      &bullav1.PolicyRef{Revision: terms.active.sequence, Digest: terms.active.digest.String()},
		Attestation: device.encoded, ExpiresAt: timestamppb.New(terms.expires), Grade: string(terms.grade),
		Uses: terms.uses, UsesEnforcedBy: sealed.Context.UsesEnforcedBy, Offline: terms.offline, ReceiptRequired: !terms.receiptBy.IsZero(),
	}
	issued := event.New(now, who.caller.id.String(), event.SessionIssued{
		Session: session, Principal: who.caller.id.String(), Instance: who.instance.thumbprint, Device: device.id,
		Secret: asked.name.String(), Version: target.version.Version, Class: target.secret.Class, Grade: string(terms.grade),
		Suite: asked.recipient.Suite().String(), KeyID: b.signer.Key().ID, EnvelopeDigest: event.Digest(sealed.Digest),
		ReceiptLock: event.Digest(sealed.Context.ReceiptLock), Expires: event.NewTime(terms.expires),
		ReceiptBy: event.NewTime(terms.receiptBy), Uses: terms.uses, Epoch: terms.epoch, Offline: terms.offline, InHardware: terms.signals.Recipient.InHardware,
		Place: eventPlace(terms.signals.Place), Places: terms.places,
		Reattest: terms.reattest,
		Decision: terms.record(who.id), Custody: sealed.custody(), Approval: terms.consumes(who.id),
	})
	reply.EventId = issued.ID.String()
	stored, err := proto.Marshal(reply)
	if err != nil {
		return nil, err
	}
	commit := ledger.Commit{
		Event:    issued,
		Reply:    event.Digest(sealed.Digest),
		Require:  slices.Concat([]ledger.Precondition{terms.active.unchanged(), target.unchanged()}, device.unchanged(), terms.said.unchanged(), target.orders.rows),
		Counters: terms.counters, Blob: sealed.blob(),
		Request: &ledger.Request{
			Key: requestKey(who), Owner: requestOwner(who), Reply: stored, Expires: terms.expires, Session: session,
		},
	}
	result, err := b.ledger.Commit(ctx, commit)
	if errors.Is(err, ledger.ErrDuplicateRequest) { // the same request again, and still permitted
		before, err := b.answered(ctx, now, who, asked, terms.verdict, nil)
		if before == nil && err == nil {
			err = refuse(codes.Aborted, checkRequest, "this request was answered a moment ago and that answer is gone: ask with a new request id")
		}
		return before, err
	}
	if errors.Is(err, ledger.ErrLimit) {
		b.limits.refused(who.caller.id.String(), now, 1)
	}
	if err != nil {
		return nil, err
	}
	if sealed.dealt != nil {
		b.expireAt(sealed.dealt.custody.Expires.Time())
	}
	b.history.delivered(who.caller.id.String(), asked.name.String())
	b.travels.arrived(terms.signals)
	b.metrics.deliveries.Inc()
	return b.complete(reply, result), nil
}

// complete adds to a reply what is known only after its commit.
func (b *Broker) complete(reply *bullav1.DeliverReply, at ledger.Result) *bullav1.DeliverReply {
	reply.LogIndex, reply.ReplySalt, reply.LeafEventCommitment = at.Index, at.ReplySalt[:], at.Leaf.Event[:]
	reply.Checkpoint = b.tree.Checkpoint()
	return reply
}

// answered returns the reply that this request got before, while its session lives. Another key, another
// instance or another question under the same id gets nothing, nor another place where the session is bound to some.
// With a revision, only what that one permitted counts: what a new revision denies, it denies to retries too.
func (b *Broker) answered(ctx context.Context, now time.Time, who request, asked ask, v verdict, by *active) (*bullav1.DeliverReply, error) {
	before, err := b.ledger.Request(ctx, requestKey(who))
	if errors.Is(err, ledger.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	row, _, err := b.ledger.Session(ctx, before.Session)
	if err != nil {
		return nil, err
	}
	if before.Owner != requestOwner(who) {
		return nil, b.rejectRequest(ctx, now, who, checkRequest, asked.name.String(), "this request id was used for another request: choose a new one")
	}
	ended, _, err := b.overtaken(ctx, row)
	if err != nil {
		return nil, err
	}
	if ended || row.StateAt(now).Ended() {
		return nil, b.rejectRequest(ctx, now, who, checkSession, row.ID.String(), "the session of this request has ended: ask with a new request id")
	}
	if v.misplaced(row.Places) != "" {
		return nil, nil
	}
	reply := new(bullav1.DeliverReply)
	if err := proto.Unmarshal(before.Reply, reply); err != nil {
		return nil, err
	}
	if by != nil && reply.GetPolicy().GetRevision() != by.sequence {
		return nil, nil
	}
	issued, err := event.ParseID(reply.GetEventId())
	if err != nil {
		return nil, err
	}
	at, err := b.ledger.Find(ctx, issued)
	if err != nil {
		return nil, err
	}
	return b.complete(reply, ledger.Result{Index: at.Index, Leaf: at.Leaf, ReplySalt: at.ReplySalt}), nil
}

// overtaken says whether a session is about to be ended: the device that it relied on was revoked, or failed an
// appraisal since, or somebody has revoked all of its kind. It is true for as long as the rows stay.
func (b *Broker) overtaken(ctx context.Context, s session.Session) (ended bool, rows []ledger.Precondition, err error) {
	orders, err := b.barrier(ctx, touching(s.Principal, s.Secret, s.Device, s.Revision))
	if err != nil || s.Device == "" {
		return orders.covers(s), orders.rows, err
	}
	d, seq, err := b.ledger.Device(ctx, s.Device)
	if err != nil {
		return false, nil, err
	}
	ended = orders.covers(s) || !d.Revoked.IsZero() || s.Issued.Time().Before(d.Failed.Time())
	return ended, append(orders.rows, ledger.Precondition{RowKey: ledger.RowKey{Kind: ledger.KindDevice, Key: s.Device}, Seq: seq}), nil
}

// requestKey is the idempotency key: a principal can't take another's request ids. These come first, since they grow
// with time, and rows that are written together then lie together.
func requestKey(who request) string { return deliveryKey(who.caller.id.String(), who.id) }

func deliveryKey(principal, request string) string { return "deliver/" + request + "/" + principal }

// requestOwner is whom and what a stored reply is for: this instance, with this very payload.
func requestOwner(who request) [32]byte {
	h := sha256.New()
	h.Write([]byte("bulla-request-owner/v1\x00" + who.instance.thumbprint + "\x00"))
	h.Write(who.payload)
	return [32]byte(h.Sum(nil))
}

// verdict is a decision with the revision that made it.
type verdict struct {
	decision policy.Decision
	signals  policy.Signals
	active   *active
	said     external
}

// permit is a verdict that permits. Only verdict.permit makes one, and terms, hence seal, need one.
type permit struct{ verdict }

// permit splits a verdict into a permit, or else the denial.
func (v verdict) permit() (permit, *verdict) {
	if v.decision.Effect != policy.Permit {
		return permit{}, &v
	}
	return permit{v}, nil
}

// record is the verdict as the ledger keeps it.
func (v verdict) record(requestID string) event.Decision {
	return event.Decision{
		RequestID: requestID, Action: string(v.signals.Action), Effect: string(v.decision.Effect),
		Revision: v.active.digest, Sequence: v.active.sequence, Signals: v.decision.Signals, Result: v.decision.Canonical(),
	}
}
