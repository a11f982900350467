package sessionproof

import (
	"fmt"
	"time"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/ledger/event"
)

// Report is what a verification showed, and what it did not.
type Report struct {
	Session        event.ID     `json:"session"`
	State          string       `json:"state"` // by the events in the proof
	Principal      string       `json:"principal"`
	Instance       string       `json:"instance"`
	Secret         string       `json:"secret"`
	Version        uint32       `json:"version"`
	Grade          string       `json:"grade"`
	Issued         event.Time   `json:"issued_at"`
	EnvelopeDigest event.Digest `json:"envelope_digest"`
	PolicyDigest   event.Digest `json:"policy_digest"`
	PolicySequence uint64       `json:"policy_sequence"`

	Origin  string `json:"origin"`
	Size    int64  `json:"size"` // entries that the checkpoint signs
	Root    string `json:"root"`
	Against *int64 `json:"against"` // size of the checkpoint that it was shown to extend, or null
	// Witnesses lists all cosignatures; those that were not asked for are not verified.
	Witnesses []proofs.Cosignature `json:"witnesses"`
	Events    []Line               `json:"events"`
	Shown     []string             `json:"shown"`
	NotShown  []string             `json:"not_shown"`
}

// Line is an event of the proof.
type Line struct {
	Index int64      `json:"index"`
	Time  event.Time `json:"time"`
	Type  event.Type `json:"type"`
}

func (v *verifier) report() Report {
	b := v.issued
	r := Report{
		Session: v.proof.Session, State: string(v.session.State), Principal: b.Principal, Instance: b.Instance, Secret: b.Secret,
		Version: b.Version, Grade: b.Grade, Issued: v.issuedAt.Time, EnvelopeDigest: b.EnvelopeDigest,
		PolicyDigest: b.Decision.Revision, PolicySequence: b.Decision.Sequence,
		Origin: v.checkpoint.Origin, Size: v.checkpoint.Size, Root: v.checkpoint.Root.String(), Witnesses: v.cosigned,
	}
	if r.Witnesses == nil {
		r.Witnesses = []proofs.Cosignature{}
	}
	for _, e := range v.events {
		r.Events = append(r.Events, Line{e.index, e.Time, e.Body.EventType()})
	}
	if v.kept != nil {
		r.Against = &v.kept.Size
	}
	v.tell(&r)
	return r
}

// tell says in sentences what holds and what is not known.
func (v *verifier) tell(r *Report) {
	shown := func(format string, args ...any) { r.Shown = append(r.Shown, fmt.Sprintf(format, args...)) }
	missing := func(format string, args ...any) { r.NotShown = append(r.NotShown, fmt.Sprintf(format, args...)) }

	shown("log %s holds these %d events, unchanged, among its first %d", r.Origin, len(r.Events), r.Size)
	if v.restored != nil {
		shown("the ledger was restored from a backup by entry %d: what had happened since that backup is not in this log", v.restored.index)
	}
	shown("version %d of %s was delivered to %s at grade %s, in the envelope with SHA-256 %s", r.Version, r.Secret, r.Principal, r.Grade, r.EnvelopeDigest)
	shown("revision %d of the policy (%s) was activated before, and is the one that the decision names", r.PolicySequence, r.PolicyDigest)
	if v.unvouched == 0 {
		shown("at the times of the events, the certificate chains of %s led to the trust bundle in the log, and vouched for the instance key", r.Principal)
	} else {
		missing("the trust bundle of that time: %d of the bindings were recorded before the log kept bundles", v.unvouched)
	}
	if len(v.opts.Authorities) > 0 {
		shown("the chains lead to the authorities that were given, too")
	} else {
		missing("that the trust bundle was that of the trust domain, and not of the broker's making: give --bundle with its authorities")
	}
	if v.receipts > 0 {
		shown("the holder of the instance key opened the envelope or asked for uses: %d signed receipts or requests", v.receipts)
	} else {
		missing("that the envelope was opened: there is no receipt")
	}
	if v.requests > 0 {
		shown("the holder of the instance key signed %d further requests for uses, each of which is counted once", v.requests)
		missing("that these %d requests name this session, and not another one of the same instance: the log has only hashes of what was asked", v.requests)
	}
	v.tellTime(r, shown, missing)
	if v.replyOpened {
		shown("the recipient got the very envelope that the record names")
	} else {
		missing("that the recipient got the same reply: give --reply with what it kept")
	}
	if v.others > 0 {
		missing("the signatures of custodians or approvers: their %d events are in the log as they stand", v.others)
	}
	if !v.session.State.Ended() {
		missing("the end of the session: what came after entry %d is not in this proof", r.Size-1)
	}
	missing("that no further event about the session, its envelope key or its policy was left out: an export of the whole log shows that")
	missing("whether the policy was right to permit it: that is a matter of replaying the decision")
}

// tellTime says what is known of the time and of the rest of the log.
func (v *verifier) tellTime(r *Report, shown, missing func(string, ...any)) {
	seen, _ := proofs.VerifiedBy(v.cosigned, v.opts.Witnesses)
	for _, c := range seen {
		shown("witness %s saw this log of %d entries by %s, and nothing before that contradicts it", c.Witness, r.Size, c.Time.Format(time.RFC3339))
	}
	if len(seen) == 0 {
		missing("the times, other than by the broker's clock, and that everybody is shown the same log: give --witness with a witness's key")
	}
	if v.kept != nil {
		shown("the log is, or extends, the one of %d entries whose checkpoint was given", v.kept.Size)
	} else {
		missing("freshness, and that the log extends what was seen of it before: give --against with a checkpoint that was kept")
	}
}
