package broker

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/envelope/split"
	"github.com/bulla-project/bulla/keyring"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/round"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/session"
)

// roundLife is how long a round waits for its custodians or approvers, at most.
const roundLife = 15 * time.Minute

// custody says who has to take part before the secret can be read: the holders of the policy, or those among whom
// the value was split before it came here. nil: nobody. unmet says why it can't be so.
func (p permit) custody(t target, grade envelope.Grade) (c *event.Split, unmet string) {
	demand := p.decision.Obligations.SplitKnowledge
	persons := map[string]string{}
	if demand != nil {
		persons = demand.Persons
		c = &event.Split{Threshold: uint32(demand.Threshold), Holders: demand.Holders}
	}
	if t.version.Split != nil {
		if demand != nil && !covers(t.version.Split, demand) {
			return nil, "the policy demands split_knowledge of other holders, or more of them, than this version was split among: put a new version"
		}
		c = t.version.Split
	}
	switch {
	case c == nil:
		return nil, ""
	case grade == envelope.GradeProxied:
		return nil, "the policy demands split_knowledge, which a key that never leaves the broker can't be kept under"
	}
	return c, distinct(p.signals.Principal.ID, c.Holders, persons)
}

// covers says whether a split is at least what a permit demands: as many holders needed, and none besides those named.
func covers(c *event.Split, demand *policy.SplitKnowledge) bool {
	if c == nil || int64(c.Threshold) < demand.Threshold {
		return false
	}
	return !slices.ContainsFunc(c.Holders, func(id string) bool { return !slices.Contains(demand.Holders, id) })
}

// distinct names the first holder who is nobody of its own: the requester, or the person behind another holder.
func distinct(requester string, holders []string, persons map[string]string) (unmet string) {
	if len(holders) > split.MaxHolders {
		return fmt.Sprintf("the policy demands split_knowledge of %d holders, and this broker takes %d at most", len(holders), split.MaxHolders)
	}
	person := func(id string) string {
		if p := persons[id]; p != "" {
			return "person " + p
		}
		return id
	}
	owners := map[string]string{person(requester): requester}
	for _, id := range holders {
		if _, err := certs.ParseID(id); err != nil {
			return fmt.Sprintf("the policy demands split_knowledge, and the holder %q is no SPIFFE ID", clip(id))
		}
		if other, twice := owners[person(id)]; twice {
			return fmt.Sprintf("split_knowledge: the holder %s is the same person as %s", id, other)
		}
		owners[person(id)] = id
	}
	return ""
}

// kept is what lies beside the ledger for a round: the manifest, and a share for each holder in its order, each sealed
// on its own. There are no shares where the holders have them already.
type kept struct {
	Manifest  []byte   `json:"manifest"`
	Key       []byte   `json:"key"`
	Signature []byte   `json:"signature"`
	Shares    [][]byte `json:"shares"`
}

// dealt is a secret that was divided for a delivery, and what has to be committed with it.
type dealt struct {
	custody  event.Custody
	blob     *ledger.Blob
	manifest envelope.Digest
}

// sealed is an envelope with what its delivery has to commit besides.
type sealed struct {
	envelope.Sealed
	dealt *dealt // nil: nobody else has to take part
}

// deal divides the value among the holders where the terms say so. What it returns goes into the envelope instead.
func (b *Broker) deal(now time.Time, who request, session string, t target, terms terms, value secret.Bytes) (secret.Bytes, *dealt, error) {
	if terms.custody == nil {
		return value, nil, nil
	}
	expires := terms.expires
	if last := now.Add(roundLife); last.Before(expires) {
		expires = last
	}
	out := &dealt{custody: event.Custody{
		Split: *terms.custody, Source: t.version.Split != nil, Expires: event.NewTime(expires), Request: who.signed(),
	}}
	var keep kept
	if !out.custody.Source {
		d, err := split.Divide(split.Input{
			ID: session, Secret: t.name, Version: t.version.Version, Threshold: terms.custody.Threshold, Holders: terms.custody.Holders,
			Value: value, Key: b.signer.Key().Public, Sign: b.signer.Sign,
		})
		if err != nil {
			return secret.Bytes{}, nil, fmt.Errorf("split %s: %w", t.name, err)
		}
		defer d.Zero()
		value = secret.NewBytes(d.Package)
		for i, h := range d.Manifest.Holders {
			share, err := b.ring.Seal(keyring.PurposeShare, d.Shares[i].Expose(), shareAAD(session, h.ID))
			if err != nil {
				return secret.Bytes{}, nil, err
			}
			keep.Shares = append(keep.Shares, share)
		}
	}
	p, err := split.ParsePackage(value.Expose())
	if err != nil {
		return secret.Bytes{}, nil, fmt.Errorf("split %s: %w", t.name, err)
	}
	if out.custody.Source && (event.Digest(p.Digest) != terms.custody.Manifest || p.Manifest.Threshold != terms.custody.Threshold || !slices.Equal(p.Manifest.IDs(), terms.custody.Holders)) {
		return secret.Bytes{}, nil, fmt.Errorf("split %s: %w: its manifest is not the one that was put", t.name, ledger.ErrTampered)
	}
	keep.Manifest, keep.Signature = p.Signed.Manifest, p.Signed.Signature
	if keep.Key, err = proof.MarshalInstanceKey(p.Signed.Key); err != nil {
		return secret.Bytes{}, nil, err
	}
	data, err := event.Marshal(keep)
	if err != nil {
		return secret.Bytes{}, nil, err
	}
	id, err := event.ParseID(session)
	if err != nil {
		return secret.Bytes{}, nil, err
	}
	out.manifest, out.custody.Manifest, out.custody.Shares = p.Digest, event.Digest(p.Digest), sha256.Sum256(data)
	out.blob = &ledger.Blob{Key: ledger.RoundBlob(id), Data: data, Digest: out.custody.Shares}
	return value, out, nil
}

// shareAAD binds a sealed share to its round and holder.
func shareAAD(round, holder string) []byte {
	return proof.Statement("bulla-round-share/v1", []byte(round), []byte(holder))
}

// kept reads what lies beside the ledger for a round.
func (b *Broker) kept(ctx context.Context, r round.Round) (kept, error) {
	data, err := b.ledger.Blob(ctx, ledger.RoundBlob(r.ID), r.Shares)
	if err != nil {
		return kept{}, fmt.Errorf("shares of round %s: %w", r.ID, err)
	}
	var k kept
	if err := event.Unmarshal(data, &k); err != nil {
		return kept{}, fmt.Errorf("shares of round %s: %w: %w", r.ID, ledger.ErrTampered, err)
	}
	return k, nil
}

// share opens a holder's share from rest.
func (k kept) share(b *Broker, r round.Round, holder string) (secret.Bytes, error) {
	i := slices.Index(r.Holders, holder)
	if i < 0 || i >= len(k.Shares) {
		return secret.Bytes{}, fmt.Errorf("round %s has no share for %s", r.ID, holder)
	}
	plain, err := b.ring.Open(keyring.PurposeShare, k.Shares[i], shareAAD(r.ID.String(), holder))
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("share of %s in round %s does not open from rest: %w", holder, r.ID, err)
	}
	return secret.NewBytes(plain), nil
}

// signed is the call as others can check it.
func (r request) signed() event.SignedCall {
	c := event.SignedCall{
		Method: r.method, RequestID: r.id, Nonce: r.nonce[:], Exporter: r.conn.exporter[:], Payload: r.payload, Signature: r.signature,
		Binding: r.instance.binding,
	}
	for _, cert := range r.conn.chain {
		c.Chain = append(c.Chain, cert.Raw)
	}
	return c
}

// approved asks the policy once more with the approvals that this very request has, where they are what is missing.
// What was approved for another request, key, version or caller is not looked at.
func (b *Broker) approved(ctx context.Context, now time.Time, who request, t target, v verdict) (verdict, error) {
	if v.decision.Effect != policy.StepUp || v.decision.Requires.Approval == nil {
		return v, nil
	}
	id, err := event.ParseID(who.id)
	if err != nil {
		return verdict{}, err
	}
	r, _, err := b.ledger.Round(ctx, id)
	if errors.Is(err, ledger.ErrNotFound) {
		return v, nil
	}
	if err != nil {
		return verdict{}, err
	}
	if r.Kind != round.Approval || r.Principal != who.caller.id.String() || r.Instance != who.instance.thumbprint ||
		r.Payload != sha256.Sum256(who.payload) || r.Secret != t.name || r.Version != t.version.Version || r.StateAt(now).Ended() {
		return v, nil
	}
	if v.signals.Approvals, err = b.approvals(ctx, r); err != nil {
		return verdict{}, err
	}
	return b.decide(ctx, v.active, v.signals, v.said)
}

// stillApproved is approved for a use: the approvals are those that the session's delivery consumed.
func (b *Broker) stillApproved(ctx context.Context, s session.Session, v verdict) (verdict, error) {
	if v.decision.Effect != policy.StepUp || v.decision.Requires.Approval == nil || s.Approval.IsZero() {
		return v, nil
	}
	r, _, err := b.ledger.Round(ctx, s.Approval)
	if err != nil {
		return verdict{}, err
	}
	if r.Session != s.ID || r.Principal != s.Principal || r.Instance != s.Instance || r.Secret != s.Secret || r.Version != s.Version {
		return verdict{}, fmt.Errorf("session %s: %w: the approvals of round %s were for another delivery", s.ID, ledger.ErrTampered, r.ID)
	}
	if v.signals.Approvals, err = b.approvals(ctx, r); err != nil {
		return verdict{}, err
	}
	return b.decide(ctx, v.active, v.signals, v.said)
}

// approvals are the yes of a round, as policy sees them: of the events that the row names, since whoever writes to the
// database can edit rows, and no events.
func (b *Broker) approvals(ctx context.Context, r round.Round) (out []policy.Approval, err error) {
	at, err := b.ledger.Find(ctx, r.Event)
	if err != nil {
		return nil, err
	}
	o, ok := at.Event.Body.(event.RoundOpened)
	if !ok || o.Round != r.ID || o.Principal != r.Principal || o.Instance != r.Instance || o.Secret != r.Secret || o.Version != r.Version || o.Payload != r.Payload {
		return nil, fmt.Errorf("round %s: %w: no event opened it like this", r.ID, ledger.ErrTampered)
	}
	for _, a := range r.Answers {
		if !a.Approved {
			continue
		}
		said, err := b.approval(ctx, r, a)
		if err != nil {
			return nil, err
		}
		out = append(out, policy.Approval{Principal: said.Holder, At: a.At.Time().UnixMicro()})
	}
	return out, nil
}

// approval is a holder's or approver's yes, from the event that recorded it.
func (b *Broker) approval(ctx context.Context, r round.Round, a round.Answer) (event.RoundApproved, error) {
	at, err := b.ledger.Find(ctx, a.Event)
	if err != nil {
		return event.RoundApproved{}, err
	}
	said, ok := at.Event.Body.(event.RoundApproved)
	if !ok || said.Round != r.ID || said.Holder != a.Holder {
		return event.RoundApproved{}, fmt.Errorf("event %s: %w: it is not the approval of %s in round %s", a.Event, ledger.ErrTampered, a.Holder, r.ID)
	}
	return said, nil
}

// consumes is the round of approvals that a permit stands on; zero: none.
func (p permit) consumes(requestID string) event.ID {
	if len(p.signals.Approvals) == 0 {
		return event.ID{}
	}
	id, _ := event.ParseID(requestID) // which approved has parsed
	return id
}

// custody and blob are what the delivery's commit brings along; nil: nothing.
func (s sealed) custody() *event.Custody {
	if s.dealt == nil {
		return nil
	}
	return &s.dealt.custody
}

func (s sealed) blob() *ledger.Blob {
	if s.dealt == nil {
		return nil
	}
	return s.dealt.blob
}

// divisible says why a value can't be split for this request. One that came split is a package already.
func (t terms) divisible(asked ask, value secret.Bytes) (unmet string) {
	switch {
	case t.custody == nil:
		return ""
	case len(asked.shown) > 0: // a bearer token must not be on the record, nor with custodians
		return "the policy demands split_knowledge, and custodians would see the token that this request shows: ask without one"
	case !t.custody.Manifest.IsZero() || value.Len() <= split.MaxSecret:
		return ""
	}
	return fmt.Sprintf("the policy demands split_knowledge, and a secret of more than %d bytes can't be split: put a key there, and encrypt the rest with it", split.MaxSecret)
}

// sourceSplit checks a value that was split before it came: a package whose manifest is of this secret, and signed by a
// key that the operator's SVID vouches for. Without a binding the value is the secret itself.
func sourceSplit(op operation, name secret.Name, value secret.Bytes, binding []byte) (*event.SourceSplit, error) {
	if len(binding) == 0 {
		return nil, nil
	}
	vouched, err := proof.VerifyBinding(binding, op.leaf, op.now)
	if err != nil {
		return nil, wrong("the binding of the key that signed the share manifest does not verify with this connection's SVID")
	}
	p, err := split.ParsePackage(value.Expose())
	if err != nil {
		return nil, wrong("the value is no split package: %v", err)
	}
	switch m := p.Manifest; {
	case !p.Signed.Key.Equal(vouched.InstanceKey):
		return nil, wrong("the share manifest is signed by another key than the binding vouches for")
	case !m.Source || m.Secret != name.String():
		return nil, wrong("the share manifest is not of %s, split at its source", name)
	}
	if unmet := distinct(op.id.String(), p.Manifest.IDs(), nil); unmet != "" {
		return nil, wrong("%s", unmet)
	}
	return &event.SourceSplit{
		Split:  event.Split{Manifest: event.Digest(p.Digest), Threshold: p.Manifest.Threshold, Holders: p.Manifest.IDs()},
		Signer: proof.Thumbprint(p.Signed.Key), Binding: binding,
	}, nil
}
