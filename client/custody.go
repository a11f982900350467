package client

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/envelope/split"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/secret"
	"google.golang.org/protobuf/proto"
)

const (
	// pollAway is how long a waiting client lets pass when it could not ask.
	pollAway = time.Second
	// closeTime is how long a client that gives up takes to say so.
	closeTime = 2 * time.Second
)

// RoundProgress is how a round stands for which Get waits.
type RoundProgress struct {
	ID        string
	Kind      string // split or approval
	Approvals uint32
	Needed    uint32
	Expires   time.Time
	Bad       []string // holders whose shares did not fit
}

// question is one request for a secret. Asked again, it gets the same answer.
type question struct {
	name      secret.Name
	ask       *bullav1.DeliverRequest
	recipient *envelope.Recipient
	req       *sent
}

func (c *Client) question(name secret.Name, opts []GetOption) (*question, error) {
	recipient, err := c.recipientKey()
	if err != nil {
		return nil, err
	}
	q := &question{
		name: name, recipient: recipient, req: &sent{id: newRequestID(c)},
		ask: &bullav1.DeliverRequest{Name: name.String(), Suite: recipient.Suite().String(), RecipientKey: recipient.PublicKey()},
	}
	for _, o := range opts {
		o(q.ask)
	}
	return q, nil
}

// payload is what call sends for the question, byte for byte.
func (q *question) payload() ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(q.ask)
}

// awaitApproval asks for the approvals that the policy wants for this very question, and waits for them.
func (c *Client) awaitApproval(ctx context.Context, q *question) error {
	deliver, err := q.payload()
	if err != nil {
		return err
	}
	opened, err := call(ctx, c, bullav1.Rounds_OpenRound_FullMethodName, q.req, fixed(&bullav1.OpenRoundRequest{Deliver: deliver}), c.rounds.OpenRound)
	if err != nil {
		return fmt.Errorf("ask for approvals: %w", err)
	}
	if opened.GetRoundId() != q.req.id {
		return fmt.Errorf("%w: the broker opened round %s for request %s", ErrVerification, opened.GetRoundId(), q.req.id)
	}
	return c.await(ctx, opened.GetRoundId(), "approval", func(r *bullav1.RoundStatusReply) (bool, []string, error) {
		return r.GetState() == "approved", nil, nil
	})
}

// await asks how a round stands until done says that it is enough: when the watch says that something happened, and now
// and then where it does not. Where it is not enough, the round is given up.
func (c *Client) await(ctx context.Context, id, kind string, done func(*bullav1.RoundStatusReply) (ok bool, bad []string, err error)) (err error) {
	told := RoundProgress{}
	var bad []string
	news := c.watch.follow(id) // before the first question, so that nothing falls between
	defer c.watch.unfollow(id)
	defer func() {
		if err != nil {
			c.giveUp(ctx, id, bad)
		}
	}()
	for {
		reply, err := call(ctx, c, bullav1.Rounds_RoundStatus_FullMethodName, &sent{id: newRequestID(c)},
			fixed(&bullav1.RoundStatusRequest{RoundId: id}), c.rounds.RoundStatus)
		if errors.Is(err, ErrUnavailable) && ctx.Err() == nil { // it may come back, and the round is in its ledger
			if err := pauseFor(ctx, min(c.poll, pollAway), news); err != nil {
				return fmt.Errorf("round %s: %w", id, err)
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("round %s: %w", id, err)
		}
		var ok bool
		ok, bad, err = done(reply)
		now := RoundProgress{ID: id, Kind: kind, Approvals: reply.GetApprovals(), Needed: reply.GetNeeded(), Expires: reply.GetExpiresAt().AsTime(), Bad: bad}
		if c.cfg.OnRound != nil && (now.Approvals != told.Approvals || len(now.Bad) != len(told.Bad) || told.ID == "") {
			c.cfg.OnRound(now)
		}
		told = now
		switch {
		case ok || err != nil:
			return err
		case reply.GetState() != "open" && reply.GetState() != "approved":
			return fmt.Errorf("round %s: %w", id, &RoundError{State: reply.GetState(), Rejections: rejections(reply), Bad: bad})
		}
		if err := pauseFor(ctx, c.poll, news); err != nil {
			return fmt.Errorf("round %s has %d of %d approvals: %w", id, now.Approvals, now.Needed, err)
		}
	}
}

// giveUp tells the broker that nobody waits any more; the round ends by itself if it does not hear of it.
func (c *Client) giveUp(ctx context.Context, id string, bad []string) {
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
	defer cancel()
	if err := c.closeRound(last, id, false, bad); err != nil {
		c.cfg.Log.Debug("a round could not be cancelled", "round", id, "error", err)
	}
}

func (c *Client) closeRound(ctx context.Context, id string, combined bool, bad []string) error {
	_, err := call(ctx, c, bullav1.Rounds_CloseRound_FullMethodName, &sent{id: newRequestID(c)},
		fixed(&bullav1.CloseRoundRequest{RoundId: id, Combined: combined, Bad: bad}), c.rounds.CloseRound)
	return err
}

// RoundError says why a round ended without what it was for.
type RoundError struct {
	State      string   // rejected, cancelled or expired
	Rejections []string // who said no, and why
	Bad        []string // holders whose shares did not fit
}

// Error implements error.
func (e *RoundError) Error() string {
	text := "it was " + e.State
	if e.State == "expired" {
		text = "it has expired"
	}
	if len(e.Rejections) > 0 {
		text += ": " + strings.Join(e.Rejections, "; ")
	}
	if len(e.Bad) > 0 {
		text += ": the shares of these holders did not fit: " + strings.Join(e.Bad, ", ")
	}
	return text
}

// Is makes it a denial: others had to take part, and did not.
func (e *RoundError) Is(target error) bool { return target == ErrDenied }

func rejections(r *bullav1.RoundStatusReply) (out []string) {
	for _, a := range r.GetAnswers() {
		if !a.GetApproved() {
			out = append(out, fmt.Sprintf("%s rejected it (%s)", a.GetHolder(), a.GetReason()))
		}
	}
	return out
}

// collect waits for the shares of a split delivery and combines them: the key that opens the package. Whoever's share
// does not fit is named, and made up for by another holder's.
func (c *Client) collect(ctx context.Context, s *Secret, q *question) (secret.Bytes, error) {
	w := &collection{client: c, question: q, of: s, shares: map[string]secret.Bytes{}, seen: map[string]bool{}}
	defer w.zero()
	err := c.await(ctx, s.SessionID, "split", w.take)
	if err != nil {
		return secret.Bytes{}, err
	}
	if err := c.closeRound(ctx, s.SessionID, true, w.bad); err != nil {
		c.cfg.Log.Debug("the broker did not hear that the shares were combined", "round", s.SessionID, "error", err)
	}
	return w.key, nil
}

// collection is what came in of one round.
type collection struct {
	client   *Client
	question *question
	of       *Secret

	manifest *split.Manifest
	shares   map[string]secret.Bytes
	seen     map[string]bool
	bad      []string
	key      secret.Bytes // set when it is complete
}

func (w *collection) zero() {
	for _, s := range w.shares {
		s.Zero()
	}
}

// take looks at the answers that are new, and says whether the key is complete.
func (w *collection) take(reply *bullav1.RoundStatusReply) (bool, []string, error) {
	if w.manifest == nil && reply.GetManifest() == nil { // the round has ended
		return false, w.bad, nil
	}
	if w.manifest == nil {
		m, err := w.client.manifestOf(w.of.opened, reply.GetManifest())
		if err != nil {
			return false, nil, err
		}
		if m.Secret != w.of.Name || !m.Source && (m.ID != w.of.SessionID || m.SecretVersion != uint32(w.of.Version)) {
			return false, nil, fmt.Errorf("%w: the share manifest is of another delivery", ErrVerification)
		}
		w.manifest = &m
	}
	no := 0
	for _, a := range reply.GetAnswers() {
		if !a.GetApproved() {
			no++
		}
		if !a.GetApproved() || w.seen[a.GetHolder()] || len(a.GetShare()) == 0 {
			continue
		}
		w.seen[a.GetHolder()] = true
		share, err := w.share(a, reply.GetExpiresAt().AsTime())
		if err != nil {
			w.client.cfg.Log.Warn("a share does not fit", "round", w.of.SessionID, "holder", a.GetHolder(), "error", err)
			w.bad = append(w.bad, a.GetHolder())
			continue
		}
		w.shares[a.GetHolder()] = share
	}
	if len(w.shares) >= int(w.manifest.Threshold) {
		key, err := w.manifest.Combine(w.shares)
		if err != nil {
			return false, w.bad, fmt.Errorf("%w: %w", ErrVerification, err)
		}
		w.key = key
		return true, w.bad, nil
	}
	if left := len(w.manifest.Holders) - no - len(w.bad); left < int(w.manifest.Threshold) {
		return false, w.bad, &RoundError{State: "rejected", Rejections: rejections(reply), Bad: w.bad}
	}
	return false, w.bad, nil
}

// share checks one holder's answer by this client's own trust bundle, and opens the share in it.
func (w *collection) share(a *bullav1.RoundAnswer, expires time.Time) (secret.Bytes, error) {
	c, payload := w.client, []byte(nil)
	payload, err := w.question.payload()
	if err != nil {
		return secret.Bytes{}, err
	}
	word := split.Approval{
		Round: w.of.SessionID, Manifest: w.of.opened.Context.Split, Secret: w.of.Name, Version: uint32(w.of.Version), Requester: c.ID().String(),
		Instance: c.thumbprint, Request: w.question.req.id, Payload: envelope.DigestOf(payload), Holder: a.GetHolder(),
		Expires: expires.UnixMicro(), Share: envelope.DigestOf(a.GetShare()),
	}
	at := a.GetAt().AsTime()
	if now := c.cfg.Now(); at.After(now.Add(skew)) || at.Before(now.Add(-maxRequestAge)) {
		return secret.Bytes{}, &split.ShareError{Holder: a.GetHolder(), Why: "it was not given in this round's time"}
	}
	said, err := c.vouched(a.GetChain(), a.GetBinding(), at)
	if err != nil {
		return secret.Bytes{}, &split.ShareError{Holder: a.GetHolder(), Why: "who gave it can't be verified: " + err.Error()}
	}
	if said.SPIFFEID != a.GetHolder() {
		return secret.Bytes{}, &split.ShareError{Holder: a.GetHolder(), Why: "it was given by " + said.SPIFFEID}
	}
	if err := word.Verify(said.InstanceKey, a.GetApproval()); err != nil {
		return secret.Bytes{}, &split.ShareError{Holder: a.GetHolder(), Why: "the approval is not signed for this request"}
	}
	share, err := word.OpenShare(w.question.recipient, a.GetShare())
	if err != nil {
		return secret.Bytes{}, err
	}
	if err := w.manifest.Check(a.GetHolder(), share); err != nil {
		share.Zero()
		return secret.Bytes{}, err
	}
	return share, nil
}

// manifestOf checks that a manifest is the one that an envelope names, and reads it. One that was made at the delivery
// is signed with the envelope's own key.
func (c *Client) manifestOf(opened *envelope.Opened, in *bullav1.SignedManifest) (split.Manifest, error) {
	if envelope.DigestOf(in.GetManifest()) != opened.Context.Split {
		return split.Manifest{}, fmt.Errorf("%w: the share manifest is not the one that the envelope names", ErrVerification)
	}
	key, err := proof.ParseInstanceKey(in.GetKey())
	if err != nil {
		return split.Manifest{}, fmt.Errorf("%w: the share manifest: %w", ErrVerification, err)
	}
	m, err := split.Signed{Manifest: in.GetManifest(), Key: key, Signature: in.GetSignature()}.Verify()
	if err != nil {
		return split.Manifest{}, fmt.Errorf("%w: the share manifest: %w", ErrVerification, err)
	}
	if broker := c.keys().Lookup(opened.KeyID); !m.Source && (broker == nil || !broker.Equal(key)) {
		return split.Manifest{}, fmt.Errorf("%w: the share manifest is not signed by the broker", ErrVerification)
	}
	return m, nil
}

// vouched checks an SVID's word for an instance key, as of then, against this client's own trust bundle.
func (c *Client) vouched(chain [][]byte, binding []byte, at time.Time) (*proof.Binding, error) {
	var parsed []*x509.Certificate
	for _, der := range chain {
		if len(parsed) == 8 { // certs takes no more
			return nil, certs.ErrUntrusted
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", certs.ErrUntrusted, err)
		}
		parsed = append(parsed, cert)
	}
	if len(parsed) == 0 {
		return nil, certs.ErrUntrusted
	}
	id, err := certs.Verify(parsed, c.source, at)
	if err != nil {
		return nil, err
	}
	b, err := proof.VerifyBinding(binding, parsed[0], at)
	if err != nil {
		return nil, err
	}
	if b.SPIFFEID != id.String() {
		return nil, certs.ErrUntrusted
	}
	return b, nil
}

// finishSplit turns what a split delivery brought into the secret. At grade gated the package is inside the gate, so
// the key is kept for each use.
func (c *Client) finishSplit(ctx context.Context, s *Secret, q *question) error {
	key, err := c.collect(ctx, s, q)
	if err != nil {
		return err
	}
	if s.Grade == string(envelope.GradeGated) {
		s.key = key
		return nil
	}
	defer key.Zero()
	s.value, err = openSplit(s.value, s.opened.Context.Split, key)
	return err
}

// ungate opens the gated body with a share of the broker, and what custodians hold a part of with the key of theirs.
// The caller holds mu.
func (s *Secret) ungate(number uint32, share envelope.Share) (secret.Bytes, error) {
	data, err := s.gated.Open(number, share)
	if err != nil || s.opened.Context.Split.IsZero() {
		return data, err
	}
	defer data.Zero()
	return openSplit(data, s.opened.Context.Split, s.key)
}

// openSplit opens the package that a delivery holds, which has to be that of the manifest whose shares were combined.
func openSplit(data secret.Bytes, manifest envelope.Digest, key secret.Bytes) (secret.Bytes, error) {
	p, err := split.ParsePackage(data.Expose())
	if err == nil && p.Digest != manifest {
		err = errors.New("the package is of another manifest than the envelope names")
	}
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("%w: %w", ErrVerification, err)
	}
	plain, err := p.Open(key)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("%w: %w", ErrVerification, err)
	}
	return plain, nil
}

// requestTime is when a request was made, by the requester's own signed word.
func requestTime(id string) (time.Time, error) {
	parsed, err := event.ParseID(id)
	if err != nil {
		return time.Time{}, err
	}
	return parsed.Time(), nil
}
