package sessionproof

import (
	"crypto/x509"
	"errors"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// Options are the choices of Verify. Only Key is needed.
type Options struct {
	Key proofs.Key
	// Against is a signed checkpoint that was kept from before: the proof's checkpoint has to extend it.
	Against []byte
	// Witnesses have to have cosigned the checkpoint, all of them.
	Witnesses []proofs.WitnessKey
	// Authorities are certificates of the principal's trust domain, got in another way: the chains have to lead to them.
	Authorities []*x509.Certificate
	// Reply is what the recipient kept of the delivery.
	Reply *proofs.Reply
}

// Verify checks everything that a proof says, and reports what is shown by it and what is not. What does not hold is an
// *audit.Fault with its place.
func Verify(p Proof, opts Options) (Report, error) {
	v := verifier{proof: p, opts: opts, trust: map[event.Digest]event.TrustObserved{}, nonces: map[string]bool{}}
	steps := []func() error{v.head, v.since, v.against, v.inclusion, v.foundation, v.life, v.reply, v.witnesses}
	for _, step := range steps {
		if err := step(); err != nil {
			return Report{}, err
		}
	}
	return v.report(), nil
}

// located is an event of the proof, decoded.
type located struct {
	event.Event
	index int64
}

// verifier is one verification under way.
type verifier struct {
	proof Proof
	opts  Options

	checkpoint  proofs.Checkpoint
	cosigned    []proofs.Cosignature
	older       *proofs.Checkpoint // in the proof; the checkpoint extends it
	kept        *proofs.Checkpoint // by the auditor
	events      []located
	trust       map[event.Digest]event.TrustObserved
	bindings    []bound
	restored    *located // began the newest life of the ledger; nil: it was never restored
	issued      *event.SessionIssued
	issuedAt    located
	session     session.Session
	receipts    int             // what the instance key signed about this session: receipts and requests for shares
	requests    int             // signed requests of which the log does not tell which session they name
	nonces      map[string]bool // of the signed requests
	unvouched   int             // bindings without a trust bundle in the log
	others      int             // events of custodians and approvers
	replyOpened bool
}

// head opens the checkpoint.
func (v *verifier) head() error {
	if v.opts.Key.IsZero() {
		return fault(checkpointName, "no key to verify the checkpoint with")
	}
	if v.proof.LogKey != v.opts.Key.String() {
		return fault(fileName, "it names the log key %.80q, and the one that was given is %s", v.proof.LogKey, v.opts.Key)
	}
	var err error
	if v.checkpoint, v.cosigned, err = v.opts.Key.OpenCosigned(v.proof.Checkpoint, v.opts.Witnesses); err != nil {
		return fault(checkpointName, "%s", reason(err))
	}
	return nil
}

// reason is the text of a verification error without the words that a Fault says again.
func reason(err error) string {
	return strings.TrimPrefix(err.Error(), proofs.ErrVerification.Error()+": ")
}

// since opens the older checkpoint in the proof, and checks that the newer one extends it.
func (v *verifier) since() error {
	if len(v.proof.Since) == 0 {
		if len(v.proof.Consistency) > 0 {
			return fault(sinceName, "there are hashes of consistency, and no older checkpoint that they are about")
		}
		return nil
	}
	old, err := v.opts.Key.Open(v.proof.Since)
	if err != nil {
		return fault(sinceName, "%s", reason(err))
	}
	if err := proofs.Extends(old, v.checkpoint, proofs.ConsistencyProof{Old: old.Size, New: v.checkpoint.Size, Hashes: v.proof.Consistency}); err != nil {
		return fault(sinceName, "%s", reason(err))
	}
	v.older = &old
	return nil
}

// against compares with the checkpoint that was kept from before: it has to be one of the two in the proof.
func (v *verifier) against() error {
	if v.opts.Against == nil {
		return nil
	}
	kept, _, err := v.opts.Key.OpenCosigned(v.opts.Against, nil)
	if err != nil {
		return fault(checkpointName, "the checkpoint to compare with can't be used: %s", reason(err))
	}
	for _, has := range []*proofs.Checkpoint{&v.checkpoint, v.older} {
		switch {
		case has == nil || has.Size != kept.Size:
		case *has != kept:
			return fault(checkpointName, "it signs root %s over %d entries, and the one to compare with %s: the history was rewritten", has.Root, has.Size, kept.Root)
		default:
			v.kept = &kept
			return nil
		}
	}
	return fault(checkpointName, "the proof does not link its %d entries to the %d of the checkpoint to compare with: have it made with --since and that checkpoint", v.checkpoint.Size, kept.Size)
}

// inclusion checks that each event is in the log, at its place.
func (v *verifier) inclusion() error {
	next := int64(0)
	for _, e := range v.proof.Entries {
		if e.Index < next {
			return faultAt(e.Index, "events are not in the order of their indexes, or one comes twice")
		}
		if next = e.Index + 1; next > v.checkpoint.Size {
			return faultAt(e.Index, "the checkpoint signs %d entries: this is none of them", v.checkpoint.Size)
		}
		decoded, err := event.Decode(e.Encoding)
		if err != nil {
			return faultAt(e.Index, "%v", err)
		}
		leaf := e.Leaf()
		if err := tlog.CheckRecord(e.Inclusion, v.checkpoint.Size, v.checkpoint.Root, e.Index, proofs.LeafHash(leaf.Bytes())); err != nil {
			return faultAt(e.Index, "the log does not hold this event, salt or reply at this place")
		}
		if reply, err := audit.OpenReply(leaf, e.ReplySalt, decoded.Body); err != nil {
			return faultAt(e.Index, "%s", reason(err))
		} else if reply != e.Reply {
			return faultAt(e.Index, "the reply is not that of the event")
		}
		v.events = append(v.events, located{decoded, e.Index})
	}
	return nil
}

// foundation checks what comes before the session: whose log it is, and that key, revision and bindings that the
// session rests on are there.
func (v *verifier) foundation() error {
	for _, e := range v.events {
		if b, ok := e.Body.(event.SessionIssued); ok && b.Session == v.proof.Session && v.issued == nil {
			v.issued, v.issuedAt = &b, e
		}
	}
	if v.issued == nil {
		return fault(entriesName, "there is no event that issued session %s", v.proof.Session)
	}
	first, ok := v.events[0].Body.(event.Genesis)
	if v.events[0].index != 0 || !ok {
		return faultAt(v.events[0].index, "it is not the genesis of a log")
	}
	if err := v.whose(first); err != nil {
		return err
	}
	key, revision := false, false
	for _, e := range v.events[1:] {
		var err error
		before := e.index < v.issuedAt.index
		switch b := e.Body.(type) {
		case event.TrustObserved:
			err = v.addTrust(e, b)
		case event.InstanceBound:
			err = v.addBinding(e, b)
		case event.KeyIntroduced:
			if !before || b.KeyID != v.issued.KeyID {
				err = errors.New("it introduces another key than the one that signed the envelope, or came too late")
			} else {
				key = true
			}
		case event.RevisionActivated:
			if !before || b.Digest != v.issued.Decision.Revision || b.Sequence != v.issued.Decision.Sequence {
				err = errors.New("it activates another revision than the one that decided, or came too late")
			} else {
				revision = true
			}
		}
		if err != nil {
			return faultAt(e.index, "%s", reason(err))
		}
	}
	switch {
	case !key:
		return fault(entriesName, "no event before the delivery introduces the envelope key %.60q", v.issued.KeyID)
	case !revision:
		return fault(entriesName, "no event before the delivery activates the revision %s that decided", v.issued.Decision.Revision)
	}
	return nil
}

// whose checks that the log is the key's: by its genesis or, where the ledger was restored from a backup, by the event that
// began its newest life.
func (v *verifier) whose(first event.Genesis) error {
	what, at, origin, key := "genesis", int64(0), first.Origin, first.LogKey
	for _, e := range v.events[1:] {
		b, ok := e.Body.(event.Restored)
		if !ok {
			continue
		}
		if v.restored != nil {
			return faultAt(e.index, "a second restore: the newest one is enough")
		}
		v.restored = &e
		what, at, origin, key = "newest restore", e.index, b.Origin, b.LogKey
	}
	if origin != v.opts.Key.Origin() || key != v.opts.Key.String() {
		return faultAt(at, "it is not the %s of log %s with its key", what, v.opts.Key.Origin())
	}
	return nil
}

// reply holds what the recipient kept against the record.
func (v *verifier) reply() error {
	kept := v.opts.Reply
	if kept == nil {
		return nil
	}
	for _, e := range v.proof.Entries {
		if e.Index != v.issuedAt.index {
			continue
		}
		if kept.Session != v.proof.Session || kept.Index != e.Index {
			return faultAt(e.Index, "the recipient kept the reply of session %s at place %d", kept.Session, kept.Index)
		}
		opened, err := audit.OpenReply(e.Leaf(), kept.ReplySalt, *v.issued)
		if err != nil || opened != kept.EnvelopeDigest {
			return faultAt(e.Index, "the recipient got the envelope %s, and that is not what the record commits to", kept.EnvelopeDigest)
		}
		if kept.Leaf() != e.Leaf() {
			return faultAt(e.Index, "the broker showed the recipient another event than the one in the record")
		}
		v.replyOpened = true
	}
	return nil
}

// witnesses checks that all witnesses that were named have cosigned, and after all that they vouch for.
func (v *verifier) witnesses() error {
	seen, missing := proofs.VerifiedBy(v.cosigned, v.opts.Witnesses)
	if len(missing) > 0 {
		return fault(checkpointName, "witness %s did not cosign it", strings.Join(missing, ", "))
	}
	for _, c := range seen {
		for _, e := range v.events {
			if e.Time.Time().After(c.Time.Add(audit.ClockSlack)) {
				return faultAt(e.index, "it says that it happened at %s, and witness %s saw it already at %s", e.Time, c.Witness, c.Time.Format(time.RFC3339))
			}
		}
	}
	return nil
}
