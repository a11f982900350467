package ocsf

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/bulla-project/bulla/ledger/event"
)

// body writes what a type of events has of its own.
func (o *object) body(body event.Body) {
	switch b := body.(type) {
	case event.SessionIssued:
		o.issued(b)
	case event.DecisionDenied:
		o.denied(b)
	case event.OperationPermitted:
		o.decided(b.Decision)
		o.Activity = apiRead
	case event.RequestRefused:
		o.refused(b)
	case event.RefusalsCounted:
		o.StatusID, o.Count, o.other = statusFailure, b.Count, "Limit"
		if !b.From.IsZero() {
			o.StartTime, o.EndTime = b.From.Time().UnixMilli(), b.To.Time().UnixMilli()
		}
		o.StatusCode = text(b.Limit)
		o.principal(b.Principal, "")
	case event.InstanceBound:
		o.principal(b.Principal, b.Instance)
	case event.AttestationAppraised:
		o.appraised(b)
	case event.AttestationRefused:
		o.principal(b.Principal, b.Instance)
		o.StatusID, o.StatusDetail = statusFailure, text(b.Reason)
		o.note("evidence_kind", b.Kind)
	case event.SignalReceived:
		o.signal(b)
	case event.SignalSettled:
		o.note("transmitter", b.Transmitter)
		o.note("target", b.Target)
		o.note("signal", b.Signal)
		o.note("sessions_ended", b.Ended)
		if b.Held {
			o.SeverityID, o.StatusID, o.Status = high, statusOther, "Held"
		}
	case event.SignalRefused:
		o.StatusID, o.StatusDetail = statusFailure, text(b.Reason)
		o.note("transmitter", b.Transmitter)
	default:
		if !o.rounds(body) && !o.uses(body) && !o.sessions(body) && !o.revisions(body) {
			o.administration(body)
		}
	}
}

// rounds is body for what others had to do with a delivery.
func (o *object) rounds(body event.Body) bool {
	switch b := body.(type) {
	case event.RoundOpened:
		o.round(b.Round)
		o.decided(b.Decision)
		o.principal(b.Principal, b.Instance)
		o.Resources = []resource{secretResource(b.Secret, int64(b.Version), b.Class)}
		o.note("role", b.Role)
		o.note("approvals_wanted", b.Count)
		o.note("expires", b.Expires)
	case event.ShareIssued:
		o.round(b.Round)
		o.decided(b.Decision)
		o.principal(b.Holder, b.Instance)
		o.note("suite", b.Suite)
		o.note("envelope_sha256", b.EnvelopeDigest)
	case event.RoundApproved:
		o.round(b.Round)
		o.decided(b.Decision)
		o.principal(b.Holder, b.Instance)
	case event.RoundRejected:
		o.round(b.Round)
		o.decided(b.Decision)
		o.principal(b.Holder, "")
		o.note("reason", b.Reason)
	case event.RoundClosed:
		o.round(b.Round)
		o.note("combined", b.Combined)
		o.texts("bad_shares_of", b.Bad)
		if len(b.Bad) > 0 {
			o.SeverityID = medium
		}
	case event.RoundExpired:
		o.round(b.Round)
	default:
		return false
	}
	return true
}

func (o *object) round(id event.ID) {
	o.Metadata.CorrelationUID = id.String()
	o.note("round", id)
}

// uses is body for what was done with a secret.
func (o *object) uses(body event.Body) bool {
	switch b := body.(type) {
	case event.SessionConfirmed:
		o.session(b.Session)
	case event.SessionUsed:
		o.session(b.Session)
		o.bucket(o.decided(b.Decision))
		o.note("use", b.Number)
		o.note("ahead", b.Ahead)
	case event.SessionOperated:
		o.session(b.Session)
		o.bucket(o.decided(b.Decision))
		switch b.Operation {
		case "encrypt":
			o.Activity = dataEncrypt
		case "decrypt":
			o.Activity = dataDecrypt
		}
		o.other = text(b.Operation)
		o.note("operation", b.Operation)
		o.note("object_sha256", b.Object)
		if b.Refuted {
			o.SeverityID, o.StatusID, o.StatusDetail = medium, statusFailure, "the signature, MAC or ciphertext is not of this key"
		}
	default:
		return false
	}
	return true
}

// session puts an event to its session.
func (o *object) session(id event.ID) {
	o.Metadata.CorrelationUID = id.String()
	o.user()
	o.Actor.Session = &session{UID: id.String(), Issuer: o.origin}
}

// bucket names the secret that was used.
func (o *object) bucket(s signals) {
	r := s.Resource.Secret
	if r == nil || r.Name == "" {
		return
	}
	o.Databucket = &store{Name: text(r.Name), UID: text(r.Name), Type: "secret", TypeID: typeOther}
	if r.Version > 0 {
		o.Unmapped["secret_version"] = r.Version
	}
}

// sessions is body for what became of sessions.
func (o *object) sessions(body event.Body) bool {
	switch b := body.(type) {
	case event.SessionRevoked:
		o.endedBy(b.Session, b.Reason)
		o.by(b.By)
	case event.SessionClosed:
		o.endedBy(b.Session, "")
	case event.SessionsExpired:
		o.many(b.Sessions)
	case event.SessionsUnconfirmed:
		o.many(b.Sessions)
	case event.SessionsRevoked:
		o.many(b.Sessions)
		o.Comment = text(b.Reason)
		o.note("revocation", b.Revocation)
		o.note("unreceipted", b.Unreceipted)
	case event.SessionsWiped:
		o.many(b.Sessions)
		o.note("instance", b.Instance)
	default:
		return false
	}
	return true
}

func (o *object) endedBy(id event.ID, reason string) {
	o.Metadata.CorrelationUID = id.String()
	o.Entity = &entity{UID: id.String(), Type: "session", TypeID: typeOther}
	o.Comment = text(reason)
}

// many is about sessions that met the same fate.
func (o *object) many(ids []event.ID) {
	if len(ids) == 1 {
		o.endedBy(ids[0], "")
		return
	}
	var list []string
	for _, id := range ids[:min(len(ids), maxIDs)] {
		list = append(list, id.String())
	}
	o.Entity = &entity{Name: fmt.Sprintf("%d sessions", len(ids)), Type: "session", TypeID: typeOther, Data: map[string]any{"sessions": list}}
	o.Count = uint64(len(ids))
	o.left("sessions", len(ids)-len(list))
}

// principal says whose event it is, where the body knows better than the event's subject.
func (o *object) principal(id, instance string) {
	if id != "" {
		o.user().UID = text(id)
		if o.Src != nil && o.Src.UID == "" {
			o.Src.UID = text(id)
		}
	}
	if o.Src != nil && instance != "" {
		o.Src.InstanceUID = text(instance)
	}
}

func (o *object) issued(b event.SessionIssued) {
	o.session(b.Session)
	if !b.Expires.IsZero() {
		o.Actor.Session.ExpirationTime = b.Expires.Time().UnixMilli()
	}
	o.decided(b.Decision)
	o.principal(b.Principal, b.Instance)
	o.Resources = []resource{secretResource(b.Secret, int64(b.Version), b.Class)}
	o.note("grade", b.Grade)
	o.note("suite", b.Suite)
	o.note("envelope_sha256", b.EnvelopeDigest)
	o.note("device", b.Device)
	o.note("receipt_by", b.ReceiptBy)
	o.note("uses", b.Uses)
	o.note("uses_offline", b.Offline)
	o.note("recipient_in_hardware", b.InHardware)
	o.note("reattest_seconds", b.Reattest)
	o.note("approval", b.Approval)
	o.texts("bound_to_countries", b.Places)
	if b.Custody != nil {
		o.texts("custodians", b.Custody.Holders)
		o.note("custodians_wanted", b.Custody.Threshold)
	}
}

func (o *object) denied(b event.DecisionDenied) {
	o.decided(b.Decision)
	o.principal(b.Principal, "")
	o.Activity = activityOf(b.Decision.Action)
	o.other = text(b.Decision.Action)
	o.StatusID, o.StatusCode = statusFailure, text(b.Decision.Effect)
	if b.Decision.Effect == "STEP_UP" {
		o.SeverityID, o.StatusID, o.Status = informational, statusOther, "Step up"
	}
	o.note("unmet", b.Unmet)
}

func (o *object) refused(b event.RequestRefused) {
	o.principal(b.Principal, b.Instance)
	o.API.Operation, o.API.Response = text(b.Method), &response{Error: word(b.Check)}
	o.StatusID, o.StatusCode, o.other = statusFailure, text(b.Check), "Refused"
	if b.Target != "" {
		o.Resources = []resource{{UID: text(b.Target), Type: "target"}}
	}
}

// appraisal is what is written of an attest.Result.
type appraisal struct {
	Kind       string `json:"kind"`
	Status     string `json:"status"`
	TrustScore int    `json:"trust_score"`
}

func (o *object) appraised(b event.AttestationAppraised) {
	o.principal(b.Principal, b.Instance)
	var a appraisal
	if json.Unmarshal(orNull(b.Result), &a) != nil {
		o.note("result_unreadable", true)
	}
	o.Resources = []resource{{UID: word(b.Device), Type: "device"}}
	o.note("evidence_kind", a.Kind)
	o.note("tier", a.Status)
	o.Unmapped["trust_score"] = a.TrustScore
	o.note("revision", b.Revision)
	if b.Failed {
		o.SeverityID, o.StatusID, o.StatusDetail = high, statusFailure, "the device is contraindicated: its earlier appraisals are void"
	}
}

func (o *object) signal(b event.SignalReceived) {
	o.API.Request = &request{UID: text(b.TokenID)}
	if b.TokenID == "" {
		o.API.Request = nil
	}
	for _, target := range b.Targets[:min(len(b.Targets), maxList)] {
		o.Resources = append(o.Resources, resource{UID: word(target), Type: "target"})
	}
	o.left("targets", len(b.Targets)-maxList)
	o.note("transmitter", b.Transmitter)
	o.note("issuer", b.Issuer)
	o.note("kind", b.Kind)
	o.note("level", b.Level)
	o.note("revokes", b.Revokes)
	o.note("expires", b.Expires)
	o.note("token_sha256", b.Token)
	switch {
	case b.Level == "high" || b.Revokes:
		o.SeverityID = high
	case b.Level != "":
		o.SeverityID = medium
	}
}

// revisions is body for what became of policy revisions.
func (o *object) revisions(body event.Body) bool {
	switch b := body.(type) {
	case event.RevisionActivated:
		o.revision(b.Digest, b.Sequence)
		o.by(b.By)
		o.Comment = text(b.Note)
		o.note("source", b.Source)
		o.note("previous", b.Previous)
	case event.RevisionSwept:
		o.revision(b.Digest, b.Sequence)
		o.by(b.By)
		o.Comment = text(b.Reason)
		o.note("outcome", b.Outcome)
		o.note("sessions_examined", b.Examined)
		o.note("sessions_ending", b.Ending)
		if b.Outcome == event.SweepHeld {
			o.SeverityID, o.StatusID, o.Status = high, statusOther, "Held"
		}
	case event.RevisionStaged:
		o.revision(b.Digest, 0)
		o.by(b.By)
		o.Comment = text(b.Note)
		o.note("source", b.Source)
		o.note("bundle_key", b.Key)
	case event.RevisionProposed:
		o.revision(b.Digest, b.Sequence)
		o.by(b.By)
		o.Comment = text(b.Note)
		o.note("rollback", b.Rollback)
		o.note("expires", b.Expires)
	case event.ShadowStarted:
		o.revision(b.Digest, 0)
		o.by(b.By)
		o.note("until", b.Until)
	case event.ShadowDiffered:
		o.revision(b.Digest, 0)
		o.note("active_effect", b.Decision.Effect)
		o.note("shadow_effect", b.Effect)
	case event.ShadowEnded:
		o.revision(b.Digest, 0)
		o.by(b.By)
		o.Comment = text(b.Reason)
		o.note("decisions_compared", b.Compared)
		o.note("decisions_dropped", b.Dropped)
	default:
		return false
	}
	return true
}

// administration is body for what is kept besides sessions and revisions.
func (o *object) administration(body event.Body) {
	switch b := body.(type) {
	case event.Genesis:
		o.entity("ledger", b.Origin, b.Origin)
		o.texts("trust_domains", b.TrustDomains)
		o.texts("site_security", b.Security)
		o.texts("site_auditors", b.Auditors)
		o.note("product", b.Product)
	case event.Restored:
		o.entity("ledger", b.Origin, b.Origin)
		o.note("incarnation", b.Incarnation)
		o.note("previous", b.Previous)
		o.note("known_entries", uint64(max(0, b.Known.Size)))
	case event.KeyIntroduced:
		o.entity("signing key", b.Use, b.KeyID)
	case event.KeyRetired:
		o.entity("signing key", "", b.KeyID)
	case event.TrustObserved:
		o.entity("trust bundle", b.TrustDomain, b.Bundle.String())
	case event.SubjectErased:
		o.entity(event.ByPrincipal, b.Subject, "")
		o.by(b.By)
		o.Comment, o.Count = text(b.Reason), uint64(len(b.Indexes))
	case event.HoldPlaced:
		o.entity(b.Selector, b.Value, "")
		o.by(b.By)
		o.Comment = text(b.Reason)
	case event.HoldReleased:
		o.entity(b.Selector, b.Value, "")
		o.by(b.By)
		o.Comment = text(b.Reason)
	case event.SecretPut:
		o.put(b)
	case event.DeviceEnrolled:
		o.device(b.Device)
		o.by(b.By)
	case event.DeviceRevoked:
		o.device(b.Device)
		o.by(b.By)
		o.Comment = text(b.Reason)
	case event.AttestationDemanded:
		o.device(b.Device)
		o.Comment = text(b.Reason)
		o.note("principal", b.Principal)
		o.note("instance", b.Instance)
		o.note("by", b.By)
	case event.RevocationOrdered:
		o.entity(b.Selector, b.Value, "")
		o.by(b.By)
		o.Comment = text(b.Reason)
	case event.RevocationCompleted:
		o.entity(b.Selector, b.Value, "")
		o.note("revocation", b.Revocation)
		o.note("sessions_ended", b.Sessions)
	}
}

func (o *object) entity(kind, name, uid string) {
	o.Entity = &entity{Name: text(name), UID: text(uid), Type: word(kind), TypeID: typeOther}
	if name == "" {
		o.Entity.UID = word(uid)
	}
}

func (o *object) revision(digest event.Digest, sequence uint64) {
	p := policy{Name: "bulla", UID: word(digest.String())}
	if sequence > 0 { // it decides, or would
		p.Version = strconv.FormatUint(sequence, 10)
	}
	o.Entity = &entity{Name: p.Name, UID: p.UID, Type: "Policy", TypeID: typePolicy, Version: p.Version, Policy: &p}
}

func (o *object) device(id string) {
	o.Entity = &entity{UID: word(id), Type: "Device", TypeID: typeDevice, Device: &device{UID: word(id), Type: "attested device", TypeID: typeOther}}
}

func (o *object) put(b event.SecretPut) {
	o.entity("secret", b.Name, b.Name)
	o.Entity.Version = strconv.FormatUint(uint64(b.Version), 10)
	if b.Version == 1 {
		o.Activity = entityCreate
	}
	o.by(b.By)
	o.note("class", b.Class)
	o.note("owner", b.Owner)
	o.note("secret_type", b.Type)
	o.note("ciphertext_sha256", b.CiphertextDigest)
	o.note("revision", b.Policy)
	if b.Split != nil {
		o.texts("custodians", b.Split.Holders)
		o.note("custodians_wanted", b.Split.Threshold)
	}
}
