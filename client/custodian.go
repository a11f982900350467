package client

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/envelope"
	reqproof "github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/envelope/split"
	"github.com/bulla-project/bulla/secret"
)

// maxRequestAge is how old a request may be that a custodian approves.
const maxRequestAge = time.Hour

// Round is a round as those see it who may answer it.
type Round struct {
	ID        string
	Kind      string // split or approval
	State     string
	Requester string // SPIFFE ID
	Secret    string
	Version   secret.Version
	Needed    uint32
	Approvals uint32
	Role      string   // of those who may approve
	Holders   []string // who has a share
	Source    bool     // the holders have their shares already
	Opened    time.Time
	Expires   time.Time
	Answered  string // by this client: approved, rejected or ""
}

func newRound(r *bullav1.Round) Round {
	return Round{
		ID: r.GetId(), Kind: r.GetKind(), State: r.GetState(), Requester: r.GetPrincipal(), Secret: r.GetSecret(),
		Version: secret.Version(r.GetVersion()), Needed: r.GetNeeded(), Approvals: r.GetApprovals(), Role: r.GetRole(), Holders: r.GetHolders(),
		Source: r.GetSource(), Opened: r.GetOpenedAt().AsTime(), Expires: r.GetExpiresAt().AsTime(), Answered: r.GetAnswered(),
	}
}

// Rounds lists the rounds that wait for this client, the newest first.
func (c *Client) Rounds(ctx context.Context) ([]Round, error) {
	reply, err := c.rounds.ListRounds(ctx, &bullav1.ListRoundsRequest{})
	if err != nil {
		return nil, FromStatus(err)
	}
	out := []Round{}
	for _, r := range reply.GetRounds() {
		out = append(out, newRound(r))
	}
	return out, nil
}

// Reject says no, and why.
func (c *Client) Reject(ctx context.Context, id, reason string) (Round, error) {
	got, err := c.rounds.GetRound(ctx, &bullav1.GetRoundRequest{Id: id})
	if err != nil {
		return Round{}, FromStatus(err)
	}
	return c.answer(ctx, newRound(got), "rejected", &bullav1.AnswerRoundRequest{RoundId: id, Reject: reason})
}

// Approve checks what the requester signed, by this client's own trust bundle, and says yes to exactly that. In a
// split it gets the share and seals it to the requester's key; a share that was handed out when the secret was put
// comes from its file.
func (c *Client) Approve(ctx context.Context, id string, file *split.File) (Round, error) {
	got, err := c.rounds.GetRound(ctx, &bullav1.GetRoundRequest{Id: id})
	if err != nil {
		return Round{}, FromStatus(err)
	}
	r := newRound(got)
	to, payload, err := c.verifyRequest(got)
	if err != nil {
		return r, fmt.Errorf("%w: round %s: %w", ErrVerification, id, err)
	}
	word := split.Approval{
		Round: id, Secret: r.Secret, Version: uint32(r.Version), Requester: r.Requester, Instance: payload.instance,
		Request: got.GetRequest().GetRequestId(), Payload: envelope.DigestOf(payload.signed), Holder: c.ID().String(), Expires: r.Expires.UnixMicro(),
	}
	in := &bullav1.AnswerRoundRequest{RoundId: id}
	if r.Kind == "split" {
		share, digest, err := c.shareFor(ctx, got, file)
		if err != nil {
			return r, err
		}
		defer share.Zero()
		word.Manifest = digest
		if in.Share, word, err = word.Reseal(to, share); err != nil {
			return r, err
		}
	} else if file != nil {
		return r, fmt.Errorf("%w: round %s wants an approval and no share", ErrInvalid, id)
	}
	if in.Approval, err = word.Sign(c.instance); err != nil {
		return r, fmt.Errorf("sign the approval: %w", err)
	}
	return c.answer(ctx, r, "approved", in)
}

func (c *Client) answer(ctx context.Context, r Round, answered string, in *bullav1.AnswerRoundRequest) (Round, error) {
	reply, err := call(ctx, c, bullav1.Rounds_AnswerRound_FullMethodName, &sent{id: newRequestID(c)}, fixed(in), c.rounds.AnswerRound)
	if err != nil {
		return r, err
	}
	r.State, r.Answered = reply.GetState(), answered
	if answered == "approved" {
		r.Approvals++
	}
	return r, nil
}

// wanted is what a requester signed.
type wanted struct {
	signed   []byte // the DeliverRequest
	instance string
}

// verifyRequest checks the requester's signed call without believing the broker: who signed it, when, and that it asks
// for the secret of the round. It returns the key that the requester wants the secret sealed to.
func (c *Client) verifyRequest(r *bullav1.Round) (to envelope.RecipientKey, w wanted, err error) {
	in := r.GetRequest()
	made, err := requestTime(in.GetRequestId())
	if err != nil {
		return to, w, err
	}
	if now := c.cfg.Now(); made.Before(now.Add(-maxRequestAge)) || made.After(now.Add(envelope.MaxSkew)) {
		return to, w, fmt.Errorf("the request was made at %s, and is too old or from the future", made.Format(time.RFC3339))
	}
	// An SVID that is newer than the request's id vouches for it as well, as long as it holds by now.
	if len(in.GetChain()) > 0 {
		if leaf, err := x509.ParseCertificate(in.GetChain()[0]); err == nil && made.Before(leaf.NotBefore) && leaf.NotBefore.Before(c.cfg.Now().Add(skew)) {
			made = leaf.NotBefore
		}
	}
	by, err := c.vouched(in.GetChain(), in.GetBinding(), made)
	if err != nil {
		return to, w, fmt.Errorf("who asked can't be verified: %w", err)
	}
	if by.SPIFFEID != r.GetPrincipal() {
		return to, w, fmt.Errorf("the request is by %s, and the round says %s", by.SPIFFEID, r.GetPrincipal())
	}
	if len(in.GetNonce()) != 32 || len(in.GetExporter()) != 32 {
		return to, w, fmt.Errorf("nonce or exporter of the request has a wrong length")
	}
	if err := reqproof.VerifyRequest(by.InstanceKey, reqproof.Request{
		Method: in.GetMethod(), Nonce: [32]byte(in.GetNonce()), Exporter: [32]byte(in.GetExporter()), RequestID: in.GetRequestId(),
		PayloadSHA256: sha256.Sum256(in.GetPayload()),
	}, in.GetSignature()); err != nil {
		return to, w, fmt.Errorf("the request: %w", err)
	}
	w = wanted{signed: in.GetPayload(), instance: reqproof.Thumbprint(by.InstanceKey)}
	switch {
	case r.GetKind() == "split" && in.GetMethod() == bullav1.Broker_Deliver_FullMethodName:
	case r.GetKind() == "approval" && in.GetMethod() == bullav1.Rounds_OpenRound_FullMethodName && in.GetRequestId() == r.GetId():
		var opening bullav1.OpenRoundRequest
		if err := proto.Unmarshal(in.GetPayload(), &opening); err != nil {
			return to, w, fmt.Errorf("the request is no OpenRoundRequest")
		}
		w.signed = opening.GetDeliver()
	default:
		return to, w, fmt.Errorf("the request is a call of %s, which opens no round of kind %s", in.GetMethod(), r.GetKind())
	}
	to, err = c.checkAsked(w.signed, r)
	return to, w, err
}

// checkAsked compares what the requester asked for with what the round says.
func (c *Client) checkAsked(payload []byte, r *bullav1.Round) (envelope.RecipientKey, error) {
	var asked bullav1.DeliverRequest
	if err := proto.Unmarshal(payload, &asked); err != nil {
		return envelope.RecipientKey{}, fmt.Errorf("the request is no DeliverRequest")
	}
	if asked.GetName() != r.GetSecret() || asked.GetVersion() != 0 && asked.GetVersion() != r.GetVersion() {
		return envelope.RecipientKey{}, fmt.Errorf("the request asks for %s version %d, and the round is about %s version %d", asked.GetName(), asked.GetVersion(), r.GetSecret(), r.GetVersion())
	}
	suite, err := envelope.ParseSuite(asked.GetSuite())
	if err != nil {
		return envelope.RecipientKey{}, err
	}
	if !suite.AtLeast(c.cfg.MinimumSuite) {
		return envelope.RecipientKey{}, fmt.Errorf("the request's key is for suite %s, which is weaker than this client takes", suite)
	}
	return envelope.ParseRecipientKey(suite, asked.GetRecipientKey())
}

// shareFor gets this holder's share of a round, and the digest of the manifest that it belongs to.
func (c *Client) shareFor(ctx context.Context, r *bullav1.Round, file *split.File) (secret.Bytes, envelope.Digest, error) {
	if r.GetSource() {
		return c.shareFrom(file, r)
	}
	if file != nil {
		return secret.Bytes{}, envelope.Digest{}, fmt.Errorf("%w: the broker keeps the shares of round %s: approve it without a file", ErrInvalid, r.GetId())
	}
	recipient, err := envelope.GenerateRecipient(envelope.SuiteHybridX25519())
	if err != nil {
		return secret.Bytes{}, envelope.Digest{}, err
	}
	req := &sent{id: newRequestID(c)}
	in := &bullav1.FetchShareRequest{RoundId: r.GetId(), Suite: recipient.Suite().String(), RecipientKey: recipient.PublicKey()}
	reply, err := call(ctx, c, bullav1.Rounds_FetchShare_FullMethodName, req, fixed(in), c.rounds.FetchShare)
	if err != nil {
		return secret.Bytes{}, envelope.Digest{}, err
	}
	opened, err := envelope.Open(reply.GetEnvelope(), req.keys.Lookup, recipient, envelope.Expectation{
		Request: req.id, Issuer: c.serverID.String(), Subject: c.ID().String(), Instance: c.thumbprint, Audience: c.ID().String(),
		Channels: req.channels, MinimumSuite: c.cfg.MinimumSuite, Now: c.cfg.Now(), Skew: skew,
	})
	if err != nil {
		return secret.Bytes{}, envelope.Digest{}, fmt.Errorf("%w: open the share's envelope: %w", ErrVerification, err)
	}
	defer opened.Wipe()
	m, err := c.manifestOf(opened, r.GetManifest())
	if err != nil {
		return secret.Bytes{}, envelope.Digest{}, err
	}
	if m.Source || m.ID != r.GetId() || m.Secret != r.GetSecret() || m.SecretVersion != r.GetVersion() {
		return secret.Bytes{}, envelope.Digest{}, fmt.Errorf("%w: the share manifest is of another delivery", ErrVerification)
	}
	share := secret.NewBytes(append([]byte(nil), opened.Secret().Expose()...))
	if err := m.Check(c.ID().String(), share); err != nil {
		share.Zero()
		return secret.Bytes{}, envelope.Digest{}, fmt.Errorf("%w: %w", ErrVerification, err)
	}
	return share, opened.Context.Split, nil
}

// shareFrom takes the share that this holder was handed when the secret was put.
func (c *Client) shareFrom(file *split.File, r *bullav1.Round) (secret.Bytes, envelope.Digest, error) {
	switch {
	case file == nil:
		return secret.Bytes{}, envelope.Digest{}, fmt.Errorf("%w: this secret was split before the broker got it: name the file of your share", ErrInvalid)
	case file.Holder != c.ID().String():
		return secret.Bytes{}, envelope.Digest{}, fmt.Errorf("%w: the share in the file is that of %s, not of %s", ErrInvalid, file.Holder, c.ID())
	case envelope.DigestOf(r.GetManifest().GetManifest()) != file.Digest() || file.Manifest().Secret != r.GetSecret():
		return secret.Bytes{}, envelope.Digest{}, fmt.Errorf("%w: the share in the file belongs to another manifest than round %s", ErrInvalid, r.GetId())
	}
	return secret.NewBytes(append([]byte(nil), file.Share.Expose()...)), file.Digest(), nil
}

// SplitAtSource splits a value among holders in this process, for a put that brings the broker ciphertext alone. It
// returns the package and the binding to put, and a file for each holder.
func (c *Client) SplitAtSource(ctx context.Context, name secret.Name, threshold uint32, holders []string, value secret.Bytes) (pkg, binding []byte, files []*split.File, err error) {
	public, err := reqproof.InstancePublic(c.instance)
	if err != nil {
		return nil, nil, nil, err
	}
	d, err := split.Divide(split.Input{
		ID: newRequestID(c), Source: true, Secret: name.String(), Threshold: threshold, Holders: holders, Value: value,
		Key: public, Sign: func(message []byte) ([]byte, error) { return reqproof.SignES256(c.instance, message) },
	})
	if err != nil {
		return nil, nil, nil, err
	}
	defer d.Zero()
	if _, _, err := c.challenge(ctx, &sent{}); err != nil { // the connection's SVID vouches for the key
		return nil, nil, nil, err
	}
	if binding, err = c.binding(c.wire.channel()); err != nil {
		return nil, nil, nil, err
	}
	for i, h := range d.Manifest.Holders {
		f, err := split.NewFile(d.Package, h.ID, d.Shares[i])
		if err != nil {
			return nil, nil, nil, err
		}
		files = append(files, f)
	}
	return d.Package, binding, files, nil
}
