package broker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/secret/keys"
	"github.com/bulla-project/bulla/session"
)

// saltSize is how many random bytes a client puts into a request to operate: the record holds the payload's hash.
const saltSize = 32

// countedFor is how long the encryptions of a key are counted: longer than anybody keeps one.
const countedFor = 200 * 365 * 24 * time.Hour

// work is what a request to operate asks for, in the session that it is for.
type work struct {
	session session.Session
	input   keys.Input
	device  []ledger.Precondition // what says that the session was not overtaken: orders, and its device, which need not be today's
	shown   []*bullav1.Factor
}

// result is what came of an operation that was permitted.
type result struct {
	output  []byte
	refuted bool // the signature, MAC or ciphertext is not of the key
}

// Operate works with the key of a proxied session for its instance. It is the release path once more, for a key that
// never leaves: its result leaves only when the ledger has counted the operation, and the policy is asked each time.
func (b *Broker) Operate(ctx context.Context, in *bullav1.SignedRequest) (*bullav1.OperateReply, error) {
	now := b.now()
	who, err := b.request(ctx, now, bullav1.Broker_Operate_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	reply, err := twice(func() (*bullav1.OperateReply, error) { return b.operate(ctx, now, who) })
	if err != nil {
		return nil, b.answer(ctx, who.caller, err)
	}
	reply.NextNonce = who.conn.next()
	return reply, nil
}

// operate decides on a proven request for an operation and does it, or refuses.
func (b *Broker) operate(ctx context.Context, now time.Time, who request) (*bullav1.OperateReply, error) {
	if err := b.tree.Stopped(); err != nil { // what no signed log will ever hold does not leave
		return nil, err
	}
	w, err := b.work(ctx, now, who) // strictly parsed; this instance's session, which is proxied
	if err != nil {
		return nil, err
	}
	factors, err := b.factors(ctx, now, who, w.shown) // tokens of other issuers
	if err != nil {
		return nil, err
	}
	active, err := b.current(ctx) // the revision that decides now
	if err != nil {
		return nil, err
	}
	device, err := b.passport(ctx, active, who) // attestation, as it is now
	if err != nil {
		return nil, err
	}
	now = device.notBefore(now)
	asked, err := askedBy(w.session)
	if err != nil {
		return nil, err
	}
	asked.operation, asked.factors = w.input.Operation, factors
	target, err := b.target(ctx, asked) // the version that was delivered, or that there is none any more
	if err != nil {
		return nil, err
	}
	if err := w.input.Validate(target.keyType()); err != nil && target.exists {
		return nil, b.invalid(ctx, now, who, err.Error())
	}
	said, err := b.external(ctx, now, who, device.id, w.session.Device) // by transmitters of signals
	if err != nil {
		return nil, err
	}
	signals := b.signals(ctx, now, who, asked, recipientOf(w.session), device, target, said) // context
	verdict, err := b.decide(ctx, active, signals, said)                                     // risk and policy
	if err != nil {
		return nil, err
	}
	if verdict, err = b.stillApproved(ctx, w.session, verdict); err != nil { // with what others said to the delivery
		return nil, err
	}
	permit, denied := verdict.permit()
	unmet := ""
	if denied == nil {
		unmet = permit.stillMet(now, w.session, wanted{}) // obligations
	}
	if denied != nil || unmet != "" || !target.exists {
		if reply, err := b.operatedBefore(ctx, now, who, w, target, verdict, active); reply != nil || err != nil { // permitted before
			return reply, err
		}
		switch {
		case denied != nil:
			return nil, b.deny(ctx, now, who, denied, target)
		case w.session.State.Ended() || !target.exists:
			return nil, b.over(ctx, now, who, w)
		}
		return nil, b.unmet(ctx, now, who, permit, unmet)
	}
	done, err := b.do(ctx, target, w.input)
	if err != nil {
		return nil, err
	}
	unchanged := slices.Concat(w.device, device.unchanged(), said.unchanged(), []ledger.Precondition{target.unchanged(), active.unchanged()})
	return b.countOperation(ctx, now, who, w, permit, unchanged, target, done) // ledger commit, or what the request got before
}

// work parses the payload and finds the session. One of another instance looks like none.
func (b *Broker) work(ctx context.Context, now time.Time, who request) (work, error) {
	var in bullav1.OperateRequest
	if err := strictProto(who.payload, &in); err != nil {
		return work{}, b.invalid(ctx, now, who, "the payload is not an OperateRequest")
	}
	s, err := b.ownSession(ctx, now, who, in.GetSessionId())
	if err != nil {
		return work{}, err
	}
	switch {
	case s.Grade != string(envelope.GradeProxied):
		return work{}, b.invalid(ctx, now, who, fmt.Sprintf("the session is of grade %s, and its secret is with the client", s.Grade))
	case len(in.GetSalt()) != saltSize:
		return work{}, b.invalid(ctx, now, who, fmt.Sprintf("the salt has %d bytes, and %d are needed", len(in.GetSalt()), saltSize))
	}
	ended, row, err := b.overtaken(ctx, s)
	if err != nil {
		return work{}, err
	}
	state := s.StateAt(now)
	lastUse := state == session.Exhausted && now.Before(s.Expires.Time()) // its answer may have got lost
	if ended || state.Ended() && !lastUse {
		return work{}, b.rejectRequest(ctx, now, who, checkSession, s.ID.String(), fmt.Sprintf("the session is %s: get the key again", state))
	}
	return work{session: s, device: row, shown: in.GetFactors(), input: keys.Input{
		Operation: keys.Operation(in.GetOperation()), Data: in.GetInput(), AssociatedData: in.GetAssociatedData(), Signature: in.GetSignature(),
	}}, nil
}

// keyType is the type of the version that is asked for.
func (t target) keyType() secret.Type {
	kind, err := secret.ParseRecordedType(t.version.Type)
	if err != nil { // an edited row, of which nothing opens
		return secret.TypeOpaque
	}
	return kind
}

// key opens a key from rest; the value holds its bytes, and is to be wiped when the key is done with.
func (b *Broker) key(ctx context.Context, t target) (*keys.Key, secret.Bytes, error) {
	value, err := b.value(ctx, t)
	if err != nil {
		return nil, secret.Bytes{}, err
	}
	key, err := keys.Parse(t.keyType(), secret.Version(t.version.Version), value)
	if err != nil {
		value.Zero()
		return nil, secret.Bytes{}, fmt.Errorf("secret %s version %d: %w", t.name, t.version.Version, err)
	}
	return key, value, nil
}

// described is what the envelope of a proxied session holds of a key: what everybody may know.
func described(t target, value secret.Bytes) (secret.Bytes, error) {
	key, err := keys.Parse(t.keyType(), secret.Version(t.version.Version), value)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("secret %s version %d: %w", t.name, t.version.Version, err)
	}
	public := key.Public()
	if jwk, err := public.JWK(); err != nil || !bytes.Equal(jwk, t.version.PublicKey) {
		return secret.Bytes{}, fmt.Errorf("secret %s version %d: %w: its public key is not that of the key", t.name, t.version.Version, ledger.ErrTampered)
	}
	text, err := public.Encode()
	return secret.NewBytes(text), err
}

// do works with the key. What does not check out is a result as well.
func (b *Broker) do(ctx context.Context, t target, in keys.Input) (result, error) {
	key, value, err := b.key(ctx, t)
	if err != nil {
		return result{}, err
	}
	defer value.Zero()
	output, err := key.Do(in)
	if errors.Is(err, keys.ErrNotAuthentic) {
		return result{refuted: true}, nil
	}
	return result{output: output}, err
}

// countOperation commits the operation and makes the reply. The ledger refuses it when the session has ended or has no
// uses left, or what the decision saw has changed.
func (b *Broker) countOperation(
	ctx context.Context, now time.Time, who request, w work, permit permit, unchanged []ledger.Precondition, target target, done result,
) (reply *bullav1.OperateReply, err error) {
	defer func() {
		if err != nil {
			clear(done.output)
		}
	}()
	operated := event.New(now, who.caller.id.String(), event.SessionOperated{
		Session: w.session.ID, Operation: string(w.input.Operation), Object: object(w.input, done), Refuted: done.refuted, Most: permit.most(),
		Nonce: who.nonce[:], Exporter: who.conn.exporter[:], PayloadSHA256: sha256.Sum256(who.payload), Signature: who.signature,
		Decision: permit.record(who.id),
	})
	reply = &bullav1.OperateReply{EventId: operated.ID.String()}
	if w.input.Operation == keys.Encrypt { // drawn once; everything else comes out the same again, and is never written
		reply.Output = done.output
	}
	stored, err := proto.Marshal(reply)
	if err != nil {
		return nil, err
	}
	at, err := b.ledger.Commit(ctx, ledger.Commit{
		Event:    operated,
		Require:  unchanged,
		Counters: append(permit.rate(now), encryptions(w.input, target)...),
		Request: &ledger.Request{
			Key: operateKey(w.session.ID, who.id), Owner: operateOwner(who), Reply: stored, Expires: now.Add(useRetry), Session: w.session.ID,
		},
	})
	switch {
	case errors.Is(err, ledger.ErrDuplicateRequest): // the same request again, and still permitted
		before, err := b.operatedBefore(ctx, now, who, w, target, permit.verdict, nil)
		if before == nil && err == nil {
			err = b.rejectRequest(ctx, now, who, checkRequest, w.session.ID.String(), "this request was answered some time ago and that answer is gone: ask with a new request id")
		}
		return before, err
	case errors.Is(err, ledger.ErrTransition):
		return nil, b.over(ctx, now, who, w)
	case errors.Is(err, ledger.ErrLimit):
		b.limits.refused(who.caller.id.String(), now, 1)
		return nil, err
	case err != nil:
		return nil, err
	}
	b.travels.arrived(permit.signals)
	b.metrics.operations.Inc()
	return b.tell(ctx, reply, w, done, at.Index)
}

// tell adds the result, and what is known only after the commit.
func (b *Broker) tell(ctx context.Context, reply *bullav1.OperateReply, w work, done result, index int64) (*bullav1.OperateReply, error) {
	s, _, err := b.ledger.Session(ctx, w.session.ID)
	if err != nil {
		return nil, err
	}
	reply.Output, reply.Authentic, reply.LogIndex, reply.Checkpoint = done.output, !done.refuted, index, b.tree.Checkpoint()
	if s.Uses > 0 {
		reply.UsesLeft = s.Uses - s.Used
	}
	return reply, nil
}

// operatedBefore gives the same result again for the same request of the same instance, for as long as the answer is
// kept and the session lives, or was ended by that very use, and to no other place than the session is bound to. With a
// revision, only what that one permitted counts.
func (b *Broker) operatedBefore(ctx context.Context, now time.Time, who request, w work, target target, v verdict, by *active) (*bullav1.OperateReply, error) {
	before, err := b.ledger.Request(ctx, operateKey(w.session.ID, who.id))
	if errors.Is(err, ledger.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if before.Owner != operateOwner(who) {
		return nil, b.rejectRequest(ctx, now, who, checkRequest, w.session.ID.String(), "this request id was used for another request: choose a new one")
	}
	if !now.Before(before.Expires) || v.misplaced(w.session.Places) != "" {
		return nil, nil
	}
	reply := new(bullav1.OperateReply)
	if err := proto.Unmarshal(before.Reply, reply); err != nil {
		return nil, err
	}
	id, err := event.ParseID(reply.GetEventId())
	if err != nil {
		return nil, err
	}
	at, err := b.ledger.Find(ctx, id)
	if err != nil {
		return nil, err
	}
	operated, ok := at.Event.Body.(event.SessionOperated)
	if !ok || by != nil && operated.Decision.Sequence != by.sequence || !target.exists {
		return nil, nil
	}
	again, _, err := b.ledger.Session(ctx, w.session.ID) // it may have ended since it was read
	if err != nil {
		return nil, err
	}
	if state := again.StateAt(now); state.Ended() && state != session.Exhausted {
		return nil, b.over(ctx, now, who, w)
	}
	done := result{output: reply.GetOutput(), refuted: operated.Refuted}
	if w.input.Operation != keys.Encrypt {
		if done, err = b.do(ctx, target, w.input); err != nil {
			return nil, err
		}
	}
	return b.tell(ctx, reply, w, done, at.Index)
}

// over records and says why there is no operation (any more).
func (b *Broker) over(ctx context.Context, now time.Time, who request, w work) error {
	again, _, err := b.ledger.Session(ctx, w.session.ID)
	if err != nil {
		return err
	}
	text := "the policy permits fewer uses by now, or the version is not kept any more: get the key again"
	if state := again.StateAt(now); state.Ended() {
		text = fmt.Sprintf("the session is %s: get the key again", state)
	}
	return b.rejectRequest(ctx, now, who, checkSession, w.session.ID.String(), text)
}

// most is how many uses of a session the permit allows; 0 is no limit.
func (p permit) most() uint32 {
	if u := p.decision.Obligations.UsageLimit; u != nil {
		return uint32(min(u.MaxUses, 1<<31))
	}
	return 0
}

// object is what the record may name of an operation: see event.SessionOperated.
func object(in keys.Input, done result) event.Digest {
	switch in.Operation {
	case keys.Sign, keys.Verify, keys.Decrypt:
		return sha256.Sum256(in.Data)
	case keys.Encrypt:
		return sha256.Sum256(done.output)
	}
	return event.Digest{}
}

// encryptions counts what an AES-GCM key has encrypted, over all sessions: it must not be more than its nonces allow.
func encryptions(in keys.Input, t target) []ledger.Counter {
	if in.Operation != keys.Encrypt {
		return nil
	}
	return []ledger.Counter{{Key: "encryptions/" + t.version.RecordID.String(), Window: time.Unix(0, 0), Length: countedFor, Max: keys.MaxEncryptions}}
}

func operateKey(id event.ID, request string) string { return "operate/" + id.String() + "/" + request }

// operateOwner is whom and what a result was for: this request of this instance.
func operateOwner(who request) [32]byte {
	h := sha256.New()
	h.Write([]byte("bulla-operate-owner/v1\x00" + who.instance.thumbprint + "\x00"))
	h.Write(who.payload)
	return [32]byte(h.Sum(nil))
}
