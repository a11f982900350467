package broker

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/keyring/epoch"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
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
	l, number, err := b.wanted(ctx, now, who) // strictly parsed; this instance's session, which is gated
	if err != nil {
		return nil, err
	}
	share, err := b.share(ctx, now, l.session, number) // nothing to decide about where there is none
	if err != nil {
		return nil, err
	}
	r, err := b.decideAgain(ctx, now, who, l, "") // identity, attestation, context, risk, policy, obligations
	if err != nil {
		return nil, err
	}
	if r.denied != nil || r.unmet != "" {
		if reply, err := b.usedBefore(ctx, who, l, number, share, r, r.active); reply != nil || err != nil { // permitted before
			return reply, err
		}
		return nil, b.refused(ctx, who, r)
	}
	return b.count(ctx, who, l, number, share, r) // ledger commit, or what the request got before
}

// wanted parses the payload and finds the session, and which of its shares is asked for.
func (b *Broker) wanted(ctx context.Context, now time.Time, who request) (live, uint32, error) {
	var in bullav1.UseRequest
	if err := strictProto(who.payload, &in); err != nil {
		return live{}, 0, b.invalid(ctx, now, who, "the payload is not a UseRequest")
	}
	l, err := b.liveSession(ctx, now, who, in.GetSessionId(), in.GetFactors())
	if err != nil {
		return live{}, 0, err
	}
	l.ahead = in.GetAhead()
	if s := l.session; s.Epoch == "" || in.GetNumber() == 0 || in.GetNumber() > s.Uses {
		return live{}, 0, b.invalid(ctx, now, who, fmt.Sprintf("the session is of grade %s and has shares 1 to %d", s.Grade, s.Uses))
	}
	return l, in.GetNumber(), nil
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

// counted are the rows that a use demands besides those of its decision. The session's own is one of them where
// the policy permits fewer uses by now, or fewer ahead, than the session was issued with: what is left of its shares
// is no limit then.
func (p permit) counted(l live) []ledger.Precondition {
	o, s := p.decision.Obligations.UsageLimit, l.session
	if o == nil || o.MaxUses >= int64(s.Uses) && (!l.ahead || o.Offline >= int64(s.Offline)) {
		return nil
	}
	return []ledger.Precondition{{RowKey: ledger.RowKey{Kind: ledger.KindSession, Key: s.ID.String()}, Seq: l.seq}}
}

// count commits the use and makes the reply. The ledger refuses it when the session has ended, the share was given
// out, or what the decision saw has changed.
func (b *Broker) count(ctx context.Context, who request, l live, number uint32, share envelope.Share, r ruling) (*bullav1.UseReply, error) {
	used := event.New(r.now, who.caller.id.String(), event.SessionUsed{
		Session: l.session.ID, Number: number, Ahead: l.ahead, Nonce: who.nonce[:], Exporter: who.conn.exporter[:], PayloadSHA256: sha256.Sum256(who.payload),
		Signature: who.signature, Decision: r.permit.record(who.id),
	})
	reply := &bullav1.UseReply{EventId: used.ID.String()}
	stored, err := proto.Marshal(reply) // without the share, which is never written
	if err != nil {
		return nil, err
	}
	result, err := b.ledger.Commit(ctx, ledger.Commit{
		Event:    used,
		Require:  append(r.rows, r.permit.counted(l)...),
		Counters: r.permit.rate(r.now),
		Request: &ledger.Request{
			Key: useKey(who), Owner: useOwner(who), Reply: stored, Expires: r.now.Add(useRetry), Session: l.session.ID,
		},
	})
	switch {
	case errors.Is(err, ledger.ErrDuplicateRequest): // the same use again, and still permitted
		before, err := b.usedBefore(ctx, who, l, number, share, r, nil)
		if before == nil && err == nil {
			err = b.spent(ctx, r.now, who, l, number) // too long ago
		}
		return before, err
	case errors.Is(err, ledger.ErrTransition):
		return nil, b.spent(ctx, r.now, who, l, number)
	case errors.Is(err, ledger.ErrLimit):
		b.limits.refused(who.caller.id.String(), r.now, 1)
		return nil, err
	case err != nil:
		return nil, err
	}
	b.travels.arrived(r.permit.signals)
	b.metrics.uses.Inc()
	return b.hand(ctx, reply, l.session.ID, share, result.Index)
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

// usedBefore gives the same share again for the same request of the same instance: see prior.
func (b *Broker) usedBefore(ctx context.Context, who request, l live, number uint32, share envelope.Share, r ruling, only *active) (*bullav1.UseReply, error) {
	before, err := b.ledger.Request(ctx, useKey(who))
	if errors.Is(err, ledger.ErrNotFound) {
		if l.session.HasSpent(number) { // in answer to another request
			return nil, b.spent(ctx, r.now, who, l, number)
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if before.Owner != useOwner(who) {
		return nil, b.spent(ctx, r.now, who, l, number)
	}
	reply := new(bullav1.UseReply)
	if err := proto.Unmarshal(before.Reply, reply); err != nil {
		return nil, err
	}
	at, ok, err := b.prior(ctx, who, l, r, before, reply.GetEventId(), only)
	if !ok || err != nil {
		return nil, err
	}
	return b.hand(ctx, reply, l.session.ID, share, at.Index)
}

// spent records and says why a share can't be given out (any more).
func (b *Broker) spent(ctx context.Context, now time.Time, who request, l live, number uint32) error {
	again, _, err := b.ledger.Session(ctx, l.session.ID)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("share %d of the session was given out: use another one", number)
	if state := again.StateAt(now); !state.Ended() && l.ahead && !again.HasSpent(number) {
		text = fmt.Sprintf("the session gives %d shares ahead of their use, and did: use the others when they are needed", again.Offline)
	} else if state.Ended() {
		text = fmt.Sprintf("the session is %s: get the secret again", state)
	}
	return b.rejectRequest(ctx, now, who, checkSession, again.ID.String(), text)
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
