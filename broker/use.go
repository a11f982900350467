package broker

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/keyring/epoch"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/session"
)

// useRetry is how long the answer to a use is given again.
const useRetry = 5 * time.Minute

// Use gives out the share for one use of a gated session. It is the release path once more, for a body that the
// client has already: the share leaves only when the ledger has counted it, and the policy is asked each time.
func (b *Broker) Use(ctx context.Context, in *bullav1.SignedRequest) (*bullav1.UseReply, error) {
	now := b.now()
	who, err := b.request(ctx, now, bullav1.Broker_Use_FullMethodName, in)
	if err != nil {
		return nil, err
	}
	reply, err := twice(func() (*bullav1.UseReply, error) { return b.use(ctx, now, who) })
	if err != nil {
		return nil, b.answer(ctx, who.caller, err)
	}
	reply.NextNonce = who.conn.next()
	return reply, nil
}

// use decides on a proven request for a share and gives it out, or refuses.
func (b *Broker) use(ctx context.Context, now time.Time, who request) (*bullav1.UseReply, error) {
	if err := b.tree.Stopped(); err != nil { // what no signed log will ever hold does not leave
		return nil, err
	}
	s, want, err := b.wanted(ctx, now, who) // strictly parsed; this instance's session, which is gated
	if err != nil {
		return nil, err
	}
	share, err := b.share(ctx, now, s, want.number) // nothing to decide about where there is none
	if err != nil {
		return nil, err
	}
	factors, err := b.factors(ctx, now, who, want.shown) // tokens of other issuers
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
	asked, err := askedBy(s)
	if err != nil {
		return nil, err
	}
	target, err := b.target(ctx, asked) // the version that was delivered, or that there is none any more
	if err != nil {
		return nil, err
	}
	asked.factors = factors
	said, err := b.external(ctx, now, who, device.id, s.Device) // by transmitters of signals
	if err != nil {
		return nil, err
	}
	signals := b.signals(ctx, now, who, asked, recipientOf(s), device, target, said) // context
	verdict, err := b.decide(ctx, active, signals, said)                             // risk and policy
	if err != nil {
		return nil, err
	}
	if verdict, err = b.stillApproved(ctx, s, verdict); err != nil { // with what others said to the delivery
		return nil, err
	}
	permit, denied := verdict.permit()
	unmet := ""
	if denied == nil {
		unmet = permit.stillMet(now, s, want) // obligations
	}
	if denied != nil || unmet != "" {
		if reply, err := b.usedBefore(ctx, now, who, s, want, share, verdict, active); reply != nil || err != nil { // permitted before
			return reply, err
		}
		if denied != nil {
			return nil, b.deny(ctx, now, who, denied, target)
		}
		return nil, b.unmet(ctx, now, who, permit, unmet)
	}
	unchanged := slices.Concat(permit.counted(s, want), device.unchanged(), said.unchanged(), []ledger.Precondition{target.unchanged()})
	return b.count(ctx, now, who, s, want, share, permit, unchanged) // ledger commit, or what the request got before
}

// wanted is the share that a Use call asks for.
type wanted struct {
	number uint32
	ahead  bool                  // for a time without the broker
	seq    int64                 // of the session's row
	device []ledger.Precondition // what says that the session was not overtaken: orders, and its device, which need not be today's
	shown  []*bullav1.Factor
}

// wanted parses the payload and finds the session. One of another instance looks like none.
func (b *Broker) wanted(ctx context.Context, now time.Time, who request) (session.Session, wanted, error) {
	var in bullav1.UseRequest
	if err := strictProto(who.payload, &in); err != nil {
		return session.Session{}, wanted{}, b.invalid(ctx, now, who, "the payload is not a UseRequest")
	}
	s, seq, err := b.ownSessionAt(ctx, now, who, in.GetSessionId())
	if err != nil {
		return session.Session{}, wanted{}, err
	}
	if s.Epoch == "" || in.GetNumber() == 0 || in.GetNumber() > s.Uses {
		return session.Session{}, wanted{}, b.invalid(ctx, now, who, fmt.Sprintf("the session is of grade %s and has shares 1 to %d", s.Grade, s.Uses))
	}
	ended, row, err := b.overtaken(ctx, s)
	if err != nil {
		return session.Session{}, wanted{}, err
	}
	state := s.StateAt(now)
	lastUse := state == session.Exhausted && now.Before(s.Expires.Time()) // its answer may have got lost
	if ended || state.Ended() && !lastUse {
		return session.Session{}, wanted{}, b.rejectRequest(ctx, now, who, checkSession, s.ID.String(), fmt.Sprintf("the session is %s: get the secret again", state))
	}
	return s, wanted{number: in.GetNumber(), ahead: in.GetAhead(), seq: seq, device: row, shown: in.GetFactors()}, nil
}

// share derives a share. A session whose epoch is over, or was another process's, is ended: none of its shares can
// ever be given out.
func (b *Broker) share(ctx context.Context, now time.Time, s session.Session, number uint32) (envelope.Share, error) {
	shares, err := b.epochs.Shares(now, s.Epoch, s.ID.String())
	if errors.Is(err, epoch.ErrGone) {
		if !s.State.Ended() {
			if err := b.endEpoch(ctx, now, s); err != nil {
				return envelope.Share{}, err
			}
		}
		return envelope.Share{}, refuse(codes.FailedPrecondition, checkSession, "%v, as after a restart of the broker: get the secret again", err)
	}
	if err != nil {
		return envelope.Share{}, err
	}
	return shares(number), nil
}

// askedBy is what a session was asked for, to be decided again: its very version.
func askedBy(s session.Session) (ask, error) {
	name, err := secret.ParseName(s.Secret)
	return ask{name: name, version: secret.Version(s.Version), grade: s.Grade}, err
}

// recipientOf is the key that the session's envelope was sealed to.
func recipientOf(s session.Session) policy.Recipient {
	suite, err := envelope.ParseSuite(s.Suite)
	if err != nil { // no suite that is known is worse than none
		return policy.Recipient{}
	}
	return policy.Recipient{Suite: int64(suite.Number()), InHardware: s.InHardware}
}

// stillMet says which obligation of a fresh permit the session does not meet.
func (p permit) stillMet(now time.Time, s session.Session, want wanted) (unmet string) {
	o := p.decision.Obligations
	grade, unmet := demanded(o)
	if unmet != "" {
		return unmet
	}
	if unmet := p.misplaced(s.Places); unmet != "" {
		return unmet
	}
	suite, err := envelope.ParseSuite(s.Suite)
	switch {
	case harder(grade, envelope.Grade(s.Grade)):
		return fmt.Sprintf("the policy demands grade %s by now: get the secret again", grade)
	case o.TimeBound == nil:
		return "the policy permits without a time bound, and nothing is released for ever"
	case !now.Before(expiry(s.Issued.Time(), o.TimeBound.TTLSeconds, 0)):
		return "the policy lets a session live for less time by now: get the secret again"
	case o.Reattest != nil && (s.Reattest == 0 || int64(s.Reattest) > o.Reattest.WithinSeconds):
		return "the policy demands attestations more often by now: get the secret again"
	case o.UsageLimit != nil && int64(s.Used) >= o.UsageLimit.MaxUses:
		return "the policy permits fewer uses by now: get the secret again"
	case want.ahead && (o.UsageLimit == nil || int64(s.Ahead) >= min(o.UsageLimit.Offline, int64(s.Offline))):
		return "the policy permits no more shares of this session ahead of their use"
	case o.QuantumResistant != nil && (err != nil || !suite.PostQuantum()):
		return "the policy demands a post-quantum suite by now: get the secret again with HPKE-9-KE or HPKE-8-KE"
	case o.ForwardSecrecy != nil && s.InHardware:
		return "the policy demands a fresh recipient key by now, and that of the session lives in hardware"
	case o.SplitKnowledge != nil && !covers(s.Split, o.SplitKnowledge):
		return "the policy demands split_knowledge by now, or of other holders: get the secret again"
	}
	return ""
}

// counted are the rows that a use demands besides those of its decision. The session's own is one of them where
// the policy permits fewer uses by now, or fewer ahead, than the session was issued with: what is left of its shares
// is no limit then.
func (p permit) counted(s session.Session, want wanted) []ledger.Precondition {
	o := p.decision.Obligations.UsageLimit
	if o == nil || o.MaxUses >= int64(s.Uses) && (!want.ahead || o.Offline >= int64(s.Offline)) {
		return want.device
	}
	return append(want.device, ledger.Precondition{RowKey: ledger.RowKey{Kind: ledger.KindSession, Key: s.ID.String()}, Seq: want.seq})
}

// count commits the use and makes the reply. The ledger refuses it when the session has ended, the share was given
// out, or what the decision saw has changed.
func (b *Broker) count(
	ctx context.Context, now time.Time, who request, s session.Session, want wanted, share envelope.Share, permit permit, unchanged []ledger.Precondition,
) (*bullav1.UseReply, error) {
	used := event.New(now, who.caller.id.String(), event.SessionUsed{
		Session: s.ID, Number: want.number, Ahead: want.ahead, Nonce: who.nonce[:], Exporter: who.conn.exporter[:], PayloadSHA256: sha256.Sum256(who.payload),
		Signature: who.signature, Decision: permit.record(who.id),
	})
	reply := &bullav1.UseReply{EventId: used.ID.String()}
	stored, err := proto.Marshal(reply) // without the share, which is never written
	if err != nil {
		return nil, err
	}
	result, err := b.ledger.Commit(ctx, ledger.Commit{
		Event:    used,
		Require:  append(unchanged, permit.active.unchanged()),
		Counters: permit.rate(now),
		Request: &ledger.Request{
			Key: useKey(who), Owner: useOwner(who), Reply: stored, Expires: now.Add(useRetry), Session: s.ID,
		},
	})
	switch {
	case errors.Is(err, ledger.ErrDuplicateRequest): // the same use again, and still permitted
		before, err := b.usedBefore(ctx, now, who, s, want, share, permit.verdict, nil)
		if before == nil && err == nil {
			err = b.spent(ctx, now, who, s, want) // too long ago
		}
		return before, err
	case errors.Is(err, ledger.ErrTransition):
		return nil, b.spent(ctx, now, who, s, want)
	case errors.Is(err, ledger.ErrLimit):
		b.limits.refused(who.caller.id.String(), now, 1)
		return nil, err
	case err != nil:
		return nil, err
	}
	b.travels.arrived(permit.signals)
	b.metrics.uses.Inc()
	return b.hand(ctx, reply, s.ID, share, result.Index)
}

// hand adds the share, and what is known only after the commit.
func (b *Broker) hand(ctx context.Context, reply *bullav1.UseReply, id event.ID, share envelope.Share, index int64) (*bullav1.UseReply, error) {
	s, _, err := b.ledger.Session(ctx, id)
	if err != nil {
		return nil, err
	}
	reply.Share, reply.UsesLeft, reply.LogIndex, reply.Checkpoint = share[:], s.Uses-s.Used, index, b.tree.Checkpoint()
	return reply, nil
}

// usedBefore gives the same share again for the same request of the same instance, for as long as the answer is
// kept and the session lives, or was ended by that very use, and to no other place than the session is bound to. With a
// revision, only what that one permitted counts.
func (b *Broker) usedBefore(
	ctx context.Context, now time.Time, who request, s session.Session, want wanted, share envelope.Share, v verdict, by *active,
) (*bullav1.UseReply, error) {
	before, err := b.ledger.Request(ctx, useKey(who))
	if errors.Is(err, ledger.ErrNotFound) {
		if s.HasSpent(want.number) { // in answer to another request
			return nil, b.spent(ctx, now, who, s, want)
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if before.Owner != useOwner(who) {
		return nil, b.spent(ctx, now, who, s, want)
	}
	if !now.Before(before.Expires) || v.misplaced(s.Places) != "" {
		return nil, nil
	}
	reply := new(bullav1.UseReply)
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
	if used, ok := at.Event.Body.(event.SessionUsed); !ok || by != nil && used.Decision.Sequence != by.sequence {
		return nil, nil
	}
	again, _, err := b.ledger.Session(ctx, s.ID) // it may have ended since it was read
	if err != nil {
		return nil, err
	}
	if state := again.StateAt(now); state.Ended() && state != session.Exhausted {
		return nil, b.rejectRequest(ctx, now, who, checkSession, s.ID.String(), fmt.Sprintf("the session is %s: get the secret again", state))
	}
	return b.hand(ctx, reply, s.ID, share, at.Index)
}

// spent records and says why a share can't be given out (any more).
func (b *Broker) spent(ctx context.Context, now time.Time, who request, s session.Session, want wanted) error {
	again, _, err := b.ledger.Session(ctx, s.ID)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("share %d of the session was given out: use another one", want.number)
	if state := again.StateAt(now); !state.Ended() && want.ahead && !again.HasSpent(want.number) {
		text = fmt.Sprintf("the session gives %d shares ahead of their use, and did: use the others when they are needed", again.Offline)
	} else if state.Ended() {
		text = fmt.Sprintf("the session is %s: get the secret again", state)
	}
	return b.rejectRequest(ctx, now, who, checkSession, s.ID.String(), text)
}

// endEpoch ends a session whose shares are gone.
func (b *Broker) endEpoch(ctx context.Context, now time.Time, s session.Session) error {
	err := b.record(context.WithoutCancel(ctx), event.New(now, s.Principal, event.SessionRevoked{Session: s.ID, Reason: "the epoch of its shares is over"}))
	if errors.Is(err, ledger.ErrTransition) { // it ended in another way
		return nil
	}
	return err
}

// endEpochs ends the gated sessions of the process before this one. No session of the kind is older than an epoch.
func (b *Broker) endEpochs(ctx context.Context) error {
	query := ledger.SessionQuery{States: liveStates(), Max: ledger.MaxPage}
	for {
		page, err := b.ledger.Sessions(ctx, query)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, s := range page {
			now := b.now() // it may take long, and a time of long ago would be one before the newest epoch
			if now.Sub(s.Issued.Time()) > epoch.Life {
				return nil
			}
			if s.Epoch == "" {
				continue
			}
			if _, err := b.epochs.Shares(now, s.Epoch, s.ID.String()); !errors.Is(err, epoch.ErrGone) {
				continue
			}
			if err := b.endEpoch(ctx, now, s); err != nil {
				return err
			}
		}
		query.Before = page[len(page)-1].ID.String()
	}
}

// useKey is that of the answer to this request. That a share is given out once is the session's own word.
func useKey(who request) string { return "use/" + who.id + "/" + who.instance.thumbprint }

// useOwner is whom and what a share was for: this request of this instance.
func useOwner(who request) [32]byte {
	h := sha256.New()
	h.Write([]byte("bulla-use-owner/v1\x00" + who.instance.thumbprint + "\x00" + who.id + "\x00"))
	h.Write(who.payload)
	return [32]byte(h.Sum(nil))
}
