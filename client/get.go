package client

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/secret/keys"
)

// skew is how far the broker's clock may be ahead of this one.
const skew = 30 * time.Second

// GetOption changes what Get asks for. The policy's limits hold whatever is asked.
type GetOption func(*bullav1.DeliverRequest)

// WithVersion asks for a version other than the current one.
func WithVersion(v secret.Version) GetOption {
	return func(r *bullav1.DeliverRequest) { r.Version = uint32(v) }
}

// WithTTL asks for a session that ends sooner than policy would let it.
func WithTTL(d time.Duration) GetOption {
	return func(r *bullav1.DeliverRequest) { r.TtlSeconds = uint32(min(max(d/time.Second, 1), 1<<31)) }
}

// WithGrade asks for limits that are at least as hard as grade says: "open"; "gated", where each use takes a share
// that the broker counts; or "proxied", where the broker works with a key that never leaves it. What policy demands
// holds whatever is asked.
func WithGrade(grade string) GetOption {
	return func(r *bullav1.DeliverRequest) { r.Grade = grade }
}

// WithUses asks for a session of at most n uses.
func WithUses(n uint32) GetOption {
	return func(r *bullav1.DeliverRequest) { r.MaxUses = n }
}

// Get delivers a secret: it asks for it, attests the device and asks once more if the policy wants that,
// opens the envelope and hands in the receipt. A receipt that could not be handed in gives the secret
// together with ErrReceipt, unless the policy demands the receipt: then there is no secret. Where other people have to
// take part it waits for them, as long as ctx lets it: see Config.OnRound.
func (c *Client) Get(ctx context.Context, name string, opts ...GetOption) (*Secret, error) {
	parsed, err := secret.ParseName(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	q, err := c.question(parsed, opts)
	if err != nil {
		return nil, err
	}
	satisfied, approved := false, false
	for {
		s, err := c.deliver(ctx, q)
		var refused *Refusal
		if s != nil || !errors.As(err, &refused) {
			return s, err
		}
		switch {
		case !approved && refused.approvable():
			if err := c.awaitApproval(ctx, q); err != nil {
				return nil, err
			}
			satisfied, approved = false, true // an attestation may have become too old meanwhile
			continue
		case satisfied:
			return nil, err
		}
		factors, more, failed := c.satisfy(ctx, refused)
		switch {
		case failed != nil:
			return nil, failed
		case !more:
			return nil, err
		}
		satisfied = true
		if !approved { // approvals are for the very question that they were asked for
			if q, err = c.question(parsed, append(opts[:len(opts):len(opts)], withFactors(factors))); err != nil {
				return nil, err
			}
		}
	}
}

// withFactors shows tokens.
func withFactors(factors []*bullav1.Factor) GetOption {
	return func(r *bullav1.DeliverRequest) { r.Factors = factors }
}

// deliver asks once (with the retries of one request), opens and acknowledges. Where others have to take part, it waits
// for them.
func (c *Client) deliver(ctx context.Context, q *question) (*Secret, error) {
	ask, req := q.ask, q.req
	reply, err := call(ctx, c, bullav1.Broker_Deliver_FullMethodName, req, fixed(ask), c.broker.Deliver)
	if err != nil {
		return nil, err
	}
	opened, err := c.openEnvelope(reply, req, q.recipient)
	if err != nil {
		return nil, err
	}
	if got := opened.Context.SecretVersion; ask.GetVersion() != 0 && got != uint64(ask.GetVersion()) {
		opened.Wipe()
		return nil, fmt.Errorf("%w: version %d was asked for, and the envelope holds %d", ErrVerification, ask.GetVersion(), got)
	}
	if softer(opened.Context.Grade, envelope.Grade(ask.GetGrade())) {
		opened.Wipe()
		return nil, fmt.Errorf("%w: grade %s was asked for, and the envelope is of grade %s", ErrVerification, ask.GetGrade(), opened.Context.Grade)
	}
	if err := c.see(reply.GetCheckpoint()); err != nil {
		opened.Wipe()
		return nil, err
	}
	s, err := c.newSecret(q.name, reply, opened)
	if err != nil {
		opened.Wipe()
		return nil, err
	}
	s.shows = len(ask.GetFactors()) > 0
	late := c.acknowledge(ctx, s, opened)
	if late != nil && reply.GetReceiptRequired() {
		s.Close()
		return nil, fmt.Errorf("%w, and the policy demands it: %w", ErrReceipt, late)
	}
	if !opened.Context.Split.IsZero() {
		if err := c.finishSplit(ctx, s, q); err != nil {
			s.Close()
			return nil, fmt.Errorf("collect the shares of %s: %w", q.name, err)
		}
	}
	if late != nil {
		return s, fmt.Errorf("%w: %w", ErrReceipt, late)
	}
	return s, nil
}

// openEnvelope checks that the envelope is the answer to this very request, and opens it.
func (c *Client) openEnvelope(reply *bullav1.DeliverReply, req *sent, recipient *envelope.Recipient) (*envelope.Opened, error) {
	if req.keys == nil {
		return nil, fmt.Errorf("%w: the broker's signing keys are not known", ErrVerification)
	}
	opened, err := envelope.Open(reply.GetEnvelope(), req.keys.Lookup, recipient, envelope.Expectation{
		Request: req.id, Issuer: c.serverID.String(), Subject: c.ID().String(), Instance: c.thumbprint, Audience: c.ID().String(),
		Channels: req.channels, MinimumSuite: c.cfg.MinimumSuite, Now: c.cfg.Now(), Skew: skew,
	})
	if err != nil {
		return nil, fmt.Errorf("%w: open the envelope: %w", ErrVerification, err)
	}
	if opened.Context.Session != reply.GetSessionId() || event.Digest(opened.Context.Revision).String() != reply.GetPolicy().GetDigest() || opened.Context.Grade != envelope.Grade(reply.GetGrade()) || opened.Context.Uses != uint64(reply.GetUses()) {
		opened.Wipe()
		return nil, fmt.Errorf("%w: the reply says other things than its envelope", ErrVerification)
	}
	return opened, nil
}

// acknowledge hands in the receipt.
func (c *Client) acknowledge(ctx context.Context, s *Secret, opened *envelope.Opened) error {
	receipt, err := envelope.SignReceipt(opened, c.instance)
	if err != nil {
		return err
	}
	ack := &bullav1.AcknowledgeRequest{
		SessionId: receipt.Session, R: receipt.R[:], EnvelopeDigest: receipt.EnvelopeDigest[:], Signature: receipt.Signature,
	}
	reply, err := call(ctx, c, bullav1.Broker_Acknowledge_FullMethodName, &sent{id: newRequestID(c)}, fixed(ack), c.broker.Acknowledge)
	if err != nil {
		return err
	}
	s.Receipt = reply.GetState()
	return nil
}

// newSecret takes over the opened plaintext, or the gated body.
func (c *Client) newSecret(name secret.Name, reply *bullav1.DeliverReply, opened *envelope.Opened) (*Secret, error) {
	s := &Secret{
		Name: name.String(), Version: secret.Version(opened.Context.SecretVersion), SessionID: opened.Context.Session,
		Grade: string(opened.Context.Grade), Expires: time.Unix(opened.Context.Expires, 0).UTC(), UsesEnforcedBy: opened.Context.UsesEnforcedBy, Offline: uint32(opened.Context.Offline),
		Places: opened.Context.Places,
		Suite:  suiteName(opened), PolicyRevision: reply.GetPolicy().GetRevision(), PolicyDigest: reply.GetPolicy().GetDigest(),
		Attestation: reply.GetAttestation(), RiskScore: opened.Context.RiskScore, Receipt: ReceiptPending,
		EnvelopeDigest: event.Digest(opened.Digest).String(), LogIndex: reply.GetLogIndex(),
		client: c, value: opened.Secret(), opened: opened, counted: opened.Context.Uses > 0, left: uint32(opened.Context.Uses),
		done: make(chan struct{}), rotated: make(chan struct{}),
	}
	for _, f := range reply.GetRisk().GetFactors() {
		s.RiskFactors = append(s.RiskFactors, RiskFactor{Name: f.GetName(), Value: f.GetValue(), Points: int(f.GetPoints()), Reason: f.GetReason()})
	}
	copy(s.replySalt[:], reply.GetReplySalt())
	copy(s.leafEvent[:], reply.GetLeafEventCommitment())
	s.replyDigest = sha256.Sum256(reply.GetEnvelope())
	switch opened.Context.Grade {
	case envelope.GradeOpen:
		return s, nil
	case envelope.GradeGated:
		var err error
		if s.gated, err = opened.Gated(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrVerification, err)
		}
		return s, nil
	case envelope.GradeProxied:
		public, err := keys.ParsePublic(opened.Secret().Expose())
		if err != nil || public.Version != s.Version {
			return nil, fmt.Errorf("%w: the envelope of a proxied session holds no description of its key", ErrVerification)
		}
		s.public = public
		return s, nil
	}
	return nil, fmt.Errorf("%w: an envelope of grade %s, which this program does not know", ErrVerification, opened.Context.Grade)
}

// see keeps the newest checkpoint that the broker showed. With Config.LogKey it is checked first: that the log's
// key signed it, and that two of one size are the same tree. Replies overtake each other, so an older one is
// no fault; VerifyInclusion and `bulla audit verify --against` compare trees of different size.
func (c *Client) see(raw []byte) error {
	if len(raw) == 0 {
		return nil
	}
	c.seenMu.Lock()
	defer c.seenMu.Unlock()
	if c.cfg.LogKey.IsZero() {
		c.checkpoint = raw
		return nil
	}
	at, err := c.cfg.LogKey.Open(raw)
	if err != nil {
		return fmt.Errorf("%w: the broker's checkpoint: %w", ErrVerification, err)
	}
	if at.Size == c.seen.Size && at != c.seen {
		return fmt.Errorf("%w: the broker showed two trees of %d entries: keep both checkpoints and tell the auditor", ErrVerification, at.Size)
	}
	if at.Size > c.seen.Size {
		c.checkpoint, c.seen = raw, at
	}
	return nil
}

// softer says whether limits at grade a are less hard than those at b, of the grades that there are.
func softer(a, b envelope.Grade) bool {
	order := []envelope.Grade{envelope.GradeOpen, envelope.GradeGated, envelope.GradeProxied}
	return slices.Index(order, a) < slices.Index(order, b)
}

// suiteName is the suite that stands in the signed context.
func suiteName(o *envelope.Opened) string {
	s, err := envelope.SuiteByNumber(o.Context.Suite)
	if err != nil {
		return ""
	}
	return s.String()
}
