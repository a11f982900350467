package broker

import (
	"context"
	"fmt"
	"slices"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/secret/keys"
	"github.com/bulla-project/bulla/session"
)

// live is a session that its own instance asks for something, and that has not ended.
type live struct {
	session session.Session
	seq     int64                 // of the session's row
	rows    []ledger.Precondition // what says that it was not overtaken: orders, and its device, which need not be today's
	shown   []*bullav1.Factor     // with the request
	ahead   bool                  // the request is for a share before its use
}

// liveSession finds a session of the caller's instance; one of another instance looks like none. One that its last use ended
// counts until it expires, since the answer to that use may have got lost.
func (b *Broker) liveSession(ctx context.Context, now time.Time, who request, id string, shown []*bullav1.Factor) (live, error) {
	s, seq, err := b.ownSessionAt(ctx, now, who, id)
	if err != nil {
		return live{}, err
	}
	ended, rows, err := b.overtaken(ctx, s)
	if err != nil {
		return live{}, err
	}
	state := s.StateAt(now)
	lastUse := state == session.Exhausted && now.Before(s.Expires.Time())
	if ended || state.Ended() && !lastUse {
		return live{}, b.rejectRequest(ctx, now, who, checkSession, s.ID.String(), fmt.Sprintf("the session is %s: get the secret again", state))
	}
	return live{session: s, seq: seq, rows: rows, shown: shown}, nil
}

// ruling is what was decided about a live session, as things are now.
type ruling struct {
	now     time.Time
	active  *active
	target  target
	verdict verdict
	permit  permit   // unless denied or unmet is set
	denied  *verdict // by the policy
	unmet   string   // the obligation that the session does not meet
	// rows is what the ruling saw, for the commit to demand.
	rows []ledger.Precondition
}

// decideAgain is the middle of the release path, for a session that was delivered before: factors, attestation, context,
// risk and policy as they are now, and the obligations of a permit held against the session.
func (b *Broker) decideAgain(ctx context.Context, now time.Time, who request, l live, operation keys.Operation) (ruling, error) {
	factors, err := b.factors(ctx, now, who, l.shown) // tokens of other issuers
	if err != nil {
		return ruling{}, err
	}
	active, err := b.current(ctx) // the revision that decides now
	if err != nil {
		return ruling{}, err
	}
	device, err := b.passport(ctx, active, who) // attestation, as it is now
	if err != nil {
		return ruling{}, err
	}
	now = device.notBefore(now)
	asked, err := askedBy(l.session)
	if err != nil {
		return ruling{}, err
	}
	asked.operation, asked.factors = operation, factors
	target, err := b.target(ctx, asked) // the version that was delivered, or that there is none any more
	if err != nil {
		return ruling{}, err
	}
	said, err := b.external(ctx, now, who, device.id, l.session.Device) // by transmitters of signals
	if err != nil {
		return ruling{}, err
	}
	signals := b.signals(ctx, now, who, asked, recipientOf(l.session), device, target, said) // context
	verdict, err := b.decide(ctx, active, signals, said)                                     // risk and policy
	if err != nil {
		return ruling{}, err
	}
	if verdict, err = b.stillApproved(ctx, l.session, verdict); err != nil { // with what others said to the delivery
		return ruling{}, err
	}
	r := ruling{now: now, active: active, target: target, verdict: verdict}
	if r.permit, r.denied = verdict.permit(); r.denied == nil {
		r.unmet = r.permit.stillMet(now, l.session, l.ahead) // obligations
	}
	r.rows = slices.Concat(l.rows, device.unchanged(), said.unchanged(), []ledger.Precondition{target.unchanged(), active.unchanged()})
	return r, nil
}

// refused is the denial that a ruling is, nil for a permit whose obligations are met.
func (b *Broker) refused(ctx context.Context, who request, r ruling) error {
	switch {
	case r.denied != nil:
		return b.deny(ctx, r.now, who, r.denied, r.target)
	case r.unmet != "":
		return b.unmet(ctx, r.now, who, r.permit, r.unmet)
	}
	return nil
}

// prior finds the event that an earlier answer to the same request stands on, for as long as the answer may be given
// again: it is kept, the session lives or was ended by that very use, and the caller is not at another place than the
// session is bound to. With only set, what another revision permitted does not count.
func (b *Broker) prior(ctx context.Context, who request, l live, r ruling, before ledger.Request, eventID string, only *active) (at ledger.Entry, ok bool, err error) {
	if !r.now.Before(before.Expires) || r.verdict.misplaced(l.session.Places) != "" {
		return ledger.Entry{}, false, nil
	}
	id, err := event.ParseID(eventID)
	if err != nil {
		return ledger.Entry{}, false, err
	}
	if at, err = b.ledger.Find(ctx, id); err != nil {
		return ledger.Entry{}, false, err
	}
	var decided event.Decision
	switch body := at.Event.Body.(type) {
	case event.SessionUsed:
		decided = body.Decision
	case event.SessionOperated:
		decided = body.Decision
	default:
		return ledger.Entry{}, false, nil
	}
	if only != nil && decided.Sequence != only.sequence {
		return ledger.Entry{}, false, nil
	}
	again, _, err := b.ledger.Session(ctx, l.session.ID) // it may have ended since it was read
	if err != nil {
		return ledger.Entry{}, false, err
	}
	if state := again.StateAt(r.now); state.Ended() && state != session.Exhausted {
		return ledger.Entry{}, false, b.rejectRequest(ctx, r.now, who, checkSession, again.ID.String(), fmt.Sprintf("the session is %s: get the secret again", state))
	}
	return at, true, nil
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
func (p permit) stillMet(now time.Time, s session.Session, ahead bool) (unmet string) {
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
	case ahead && (o.UsageLimit == nil || int64(s.Ahead) >= min(o.UsageLimit.Offline, int64(s.Offline))):
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
