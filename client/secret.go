package client

import (
	"context"
	"fmt"
	"sync"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/secret/keys"
)

// ReceiptPending is Secret.Receipt while the broker has not acknowledged it; afterwards it is "confirmed".
const ReceiptPending = "pending"

// RiskFactor is one thing that risk looked at.
type RiskFactor struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Points int    `json:"points"`
	Reason string `json:"reason"`
}

// Secret is one delivered version of a secret: a session. Its exported fields don't change. The plaintext is
// shown by Use alone, and wiped by Close. At grade proxied there is none: see Sign, Verify, MAC, VerifyMAC, Encrypt and
// Decrypt.
type Secret struct {
	Name           string
	Version        secret.Version
	SessionID      string
	Grade          string
	Suite          string
	Expires        time.Time
	UsesEnforcedBy string   // who counts the uses, "client" or "broker"; "" where they are not counted
	Offline        uint32   // of the uses, those that FetchAhead may fetch
	Places         []string // countries that it is bound to, as the broker sees the connection; none: not bound
	RiskScore      int
	RiskFactors    []RiskFactor
	PolicyRevision uint64
	PolicyDigest   string
	Attestation    []byte // JSON of the attestation result, or nil
	Receipt        string
	EnvelopeDigest string
	LogIndex       int64

	client      *Client
	opened      *envelope.Opened
	public      keys.Public // at grade proxied
	replySalt   event.Salt
	replyDigest event.Digest
	shows       bool // the policy wanted a token: uses show one at once
	leafEvent   [32]byte

	mu      sync.Mutex // guards what follows
	value   secret.Bytes
	gated   *envelope.Gated // nil: value is the plaintext
	key     secret.Bytes    // of a split, at grade gated: what the gate gives is a package
	counted bool
	left    uint32
	taken   uint32     // shares that were asked for, at grade gated
	pending []shareAsk // of them, those whose answer did not come
	ahead   []shareAhead
	fetched uint32               // shares that were asked for ahead
	offline uint32               // uses that were made of them
	undone  map[[32]byte]workAsk // operations whose answer did not come, by what they were
	closed  bool
	cause   error          // why it ended, as far as it is known
	newest  secret.Version // that is known of beyond its own; 0: none

	done, rotated chan struct{} // closed when it has ended, and when it has a newer version
}

// Use calls f with the plaintext, and counts it where uses are limited. f must not keep the slice. It returns
// ErrEnded when the session has expired, its uses are spent, or Close was called; f is not called then.
//
// At grade gated it asks the broker, which decides afresh and counts: see UseContext.
func (s *Secret) Use(f func(plaintext []byte) error) error {
	if s.Grade == string(envelope.GradeGated) {
		ctx, cancel := context.WithTimeout(s.client.run, useTimeout)
		defer cancel()
		return s.UseContext(ctx, f)
	}
	if s.Grade == string(envelope.GradeProxied) {
		return fmt.Errorf("use %s: %w", s.Name, ErrProxied)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	if s.counted {
		s.left--
	}
	return f(s.value.Expose())
}

// usable says why the secret can't be used; the caller holds mu.
func (s *Secret) usable() error {
	switch {
	case s.closed && s.cause != nil:
		return fmt.Errorf("use %s: %w", s.Name, s.cause)
	case s.closed:
		return fmt.Errorf("use %s: %w: it was closed", s.Name, ErrEnded)
	case !s.client.cfg.Now().Before(s.Expires):
		return fmt.Errorf("use %s: %w: session %s expired at %s", s.Name, ErrEnded, s.SessionID, s.Expires.Format(time.RFC3339))
	case s.counted && s.left == 0 && len(s.ahead) == 0:
		return fmt.Errorf("use %s: %w: session %s has no uses left", s.Name, ErrEnded, s.SessionID)
	}
	return nil
}

// UsesLeft returns how many uses are left, those that were fetched ahead among them, and false where they are not
// limited.
func (s *Secret) UsesLeft() (n uint32, limited bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left + uint32(len(s.ahead)), s.counted
}

// State asks the broker how the session stands: confirmed, revoked, expired, …
func (s *Secret) State(ctx context.Context) (state, reason string, err error) {
	reply, err := call(ctx, s.client, bullav1.Broker_Status_FullMethodName, &sent{id: newRequestID(s.client)},
		fixed(&bullav1.StatusRequest{SessionId: s.SessionID}), s.client.broker.Status)
	if err != nil {
		return "", "", err
	}
	return reply.GetState(), reply.GetReason(), nil
}

// Release tells the broker that the session is over, and wipes the plaintext whatever it answers.
func (s *Secret) Release(ctx context.Context) error {
	s.Close()
	_, err := call(ctx, s.client, bullav1.Broker_Acknowledge_FullMethodName, &sent{id: newRequestID(s.client)},
		fixed(&bullav1.AcknowledgeRequest{SessionId: s.SessionID, Close: true}), s.client.broker.Acknowledge)
	return err
}

// Close wipes the plaintext in memory. The session goes on until it ends by itself; see Release.
func (s *Secret) Close() {
	s.end(fmt.Errorf("%w: it was closed", ErrEnded))
	s.client.watch.drop(s)
}

// zero wipes it; the caller holds mu.
func (s *Secret) zero() {
	if !s.closed {
		close(s.done)
	}
	s.closed = true
	clear(s.ahead)
	s.ahead = nil
	s.value.Zero()
	s.key.Zero()
	s.opened.Wipe()
}

// Reply is what of the delivery can be kept to hold it against the record later: see proofs.Reply.
func (s *Secret) Reply() proofs.Reply {
	id, _ := event.ParseID(s.SessionID) // the envelope's context holds it
	return proofs.Reply{
		Session: id, Index: s.LogIndex, EnvelopeDigest: s.replyDigest, ReplySalt: s.replySalt, EventCommitment: s.leafEvent,
	}
}

// VerifyInclusion asks the log for the proof that this delivery is in it, as it was delivered, and checks it
// with Config.LogKey, and that the tree extends the newest one that this client has seen. A broker that left the
// delivery out, or began another log, can't answer.
func (s *Secret) VerifyInclusion(ctx context.Context) (proofs.Checkpoint, error) {
	c := s.client
	if c.cfg.LogKey.IsZero() {
		return proofs.Checkpoint{}, fmt.Errorf("%w: no LogKey: it is in the broker's log.pub", ErrConfig)
	}
	c.seenMu.Lock()
	older, seen := c.checkpoint, c.seen
	c.seenMu.Unlock()
	reply, err := c.audit.Prove(ctx, &bullav1.ProveRequest{Index: s.LogIndex, OldSize: seen.Size})
	if err != nil {
		return proofs.Checkpoint{}, FromStatus(err)
	}
	inclusion, err := proofs.ParseProof(reply.GetInclusion())
	if err != nil {
		return proofs.Checkpoint{}, fmt.Errorf("%w: %w", ErrVerification, err)
	}
	leaf := event.Leaf{Event: s.leafEvent, Reply: event.CommitReply(s.replyDigest, s.replySalt)}
	at, err := proofs.VerifyInclusion(reply.GetCheckpoint(), c.cfg.LogKey, s.LogIndex, leaf, inclusion)
	if err != nil {
		return proofs.Checkpoint{}, fmt.Errorf("%w: %w", ErrVerification, err)
	}
	if seen.Size > 0 {
		consistency, err := proofs.ParseConsistencyProof(reply.GetConsistency())
		if err == nil {
			_, err = proofs.VerifyConsistency(older, reply.GetCheckpoint(), c.cfg.LogKey, consistency)
		}
		if err != nil {
			return proofs.Checkpoint{}, fmt.Errorf("%w: the log does not extend the one of %d entries that the broker showed before: %w", ErrVerification, seen.Size, err)
		}
	}
	return at, c.see(reply.GetCheckpoint())
}
