package event

import "encoding/json"

// Decision is a recorded judgement, with all that is needed to compute it again. Signals is the canonical
// JSON of policy.Signals, Result that of policy.Decision; what the log is searched by stands beside them.
type Decision struct {
	RequestID string          `json:"request_id,omitempty"`
	Action    string          `json:"action"`
	Effect    string          `json:"effect"`
	Revision  Digest          `json:"revision"`
	Sequence  uint64          `json:"sequence"`
	Signals   json.RawMessage `json:"signals"`
	Result    json.RawMessage `json:"result"`
}

// Genesis is the first event of every ledger. Security and Auditors are the site's invariants, which no
// policy bundle can change: see policy.Invariants.
type Genesis struct {
	Origin       string   `json:"origin"`
	LogKey       string   `json:"log_key"`
	TrustDomains []string `json:"trust_domains"`
	Security     []string `json:"security"`
	Auditors     []string `json:"auditors"`
	Product      string   `json:"product"`
	// BundleKeys are the ids of the keys under which policy bundles have to be signed; their introduction follows.
	BundleKeys []string `json:"bundle_keys,omitempty"`
}

// KeyIntroduced starts the life of a public key; Public is its PKIX DER. Use is "envelope" for a key that signs
// envelopes, and "bundle" for one that signs policy bundles, whose private half the broker never has.
type KeyIntroduced struct {
	KeyID  string `json:"key_id"`
	Use    string `json:"use"`
	Public []byte `json:"public"`
}

// KeyRetired ends the life of a key; the private half of an envelope key is destroyed.
type KeyRetired struct {
	KeyID string `json:"key_id"`
}

// RevisionActivated makes a policy bundle the one that decides.
type RevisionActivated struct {
	Digest   Digest    `json:"digest"`
	Sequence uint64    `json:"sequence"`
	Previous Digest    `json:"previous,omitzero"`
	Source   string    `json:"source"`
	Note     string    `json:"note,omitempty"`
	By       *Decision `json:"by,omitempty"`
	// Rollback says that the bundle was active before. Key is the bundle key under which its signature verified,
	// Proposal the event with the first person's word where a second one was wanted, and Report the digest of what
	// was said about its effect, by whoever activated it or else by the first person.
	Rollback bool   `json:"rollback,omitempty"`
	Key      string `json:"key,omitempty"`
	Proposal ID     `json:"proposal,omitzero"`
	Report   Digest `json:"report,omitzero"`
	// Text is the report itself, where it is a what-if that whoever activated it brought, and NoReport says why
	// there is none.
	Text     []byte `json:"report_text,omitempty"`
	NoReport string `json:"no_report,omitempty"`
}

// SecretPut adds a version of a secret; the value lies beside the ledger, sealed, under RecordID.
type SecretPut struct {
	Name             string    `json:"name"`
	Class            string    `json:"class"`
	Version          uint32    `json:"version"`
	RecordID         ID        `json:"record_id"`
	Owner            string    `json:"owner"`
	Policy           Digest    `json:"policy"` // revision that permitted it
	CiphertextDigest Digest    `json:"ciphertext_digest"`
	By               *Decision `json:"by,omitempty"`
	Type             string    `json:"type,omitempty"`       // of a key that the broker made; none: opaque
	PublicKey        []byte    `json:"public_key,omitempty"` // JWK of a signature key

	Split *SourceSplit `json:"split,omitempty"` // nil: the broker can read it
}

// InstanceBound keeps the evidence that an SVID vouched for an instance key: the binding as in package
// envelope/proof, and the certificate chain (DER, the leaf first). Trust names the bundle by which it was judged, of
// which a TrustObserved event tells; events from before there were any have none.
type InstanceBound struct {
	Principal string   `json:"principal"`
	Instance  string   `json:"instance"`
	Binding   []byte   `json:"binding"`
	Chain     [][]byte `json:"chain"`
	Trust     Digest   `json:"trust,omitzero"`
}

// DeviceEnrolled admits a device; Record is the canonical JSON of attest.Device.
type DeviceEnrolled struct {
	Device string          `json:"device"`
	Record json.RawMessage `json:"record"`
	By     *Decision       `json:"by,omitempty"`
}

// DeviceRevoked ends a device's admission for good.
type DeviceRevoked struct {
	Device string    `json:"device"`
	Reason string    `json:"reason"`
	By     *Decision `json:"by,omitempty"`
}

// AttestationAppraised records authentic evidence and what was made of it; Result is the canonical JSON
// of attest.Result. Counters are what the evidence showed; the next must not fall behind the latest ever shown. Failed says
// that the device is contraindicated: every earlier appraisal of it is void with that.
type AttestationAppraised struct {
	Principal string          `json:"principal"`
	Instance  string          `json:"instance"`
	Device    string          `json:"device"`
	Result    json.RawMessage `json:"result"`
	Counters  *DeviceCounters `json:"counters,omitempty"`
	Failed    bool            `json:"failed,omitempty"`
	Revision  Digest          `json:"revision"`
}

// DeviceCounters are a device's own notion of time, as a TPM quotes it (TPM 2.0 Part 2, TPMS_CLOCK_INFO).
type DeviceCounters struct {
	ResetCount   uint32 `json:"reset_count"`
	RestartCount uint32 `json:"restart_count"`
	Clock        uint64 `json:"clock"` // milliseconds
}

// Later gives the later of c and next.
func (c DeviceCounters) Later(next DeviceCounters) DeviceCounters {
	if next.ResetCount > c.ResetCount || next.ResetCount == c.ResetCount && next.Clock > c.Clock {
		return next
	}
	return c
}

// AttestationRefused records evidence that was not authentic. It changes nothing: anybody can make it up.
type AttestationRefused struct {
	Principal string `json:"principal"`
	Instance  string `json:"instance"`
	Kind      string `json:"kind"`
	Reason    string `json:"reason"`
}

// SessionIssued is a delivery: the permit and the session that it opens.
type SessionIssued struct {
	Session        ID       `json:"session"`
	Principal      string   `json:"principal"`
	Instance       string   `json:"instance"`
	Device         string   `json:"device,omitempty"`
	Secret         string   `json:"secret"`
	Version        uint32   `json:"version"`
	Class          string   `json:"class"`
	Grade          string   `json:"grade"`
	Suite          string   `json:"suite"`
	KeyID          string   `json:"key_id"`
	EnvelopeDigest Digest   `json:"envelope_digest"`
	ReceiptLock    Digest   `json:"receipt_lock"`
	Expires        Time     `json:"expires"`
	ReceiptBy      Time     `json:"receipt_by,omitzero"`
	Uses           uint32   `json:"uses,omitempty"`
	Epoch          string   `json:"epoch,omitempty"`       // of the use shares, at grade gated
	Offline        uint32   `json:"offline,omitempty"`     // of the uses, those that may be fetched ahead
	InHardware     bool     `json:"in_hardware,omitempty"` // the recipient key, as the device certified it
	Place          *Place   `json:"place,omitempty"`       // where it was delivered to; nil: not known
	Places         []string `json:"places,omitempty"`      // countries that it is bound to; none: not bound
	Reattest       uint32   `json:"reattest,omitempty"`    // seconds: how old the device's attestation may become
	Decision       Decision `json:"decision"`

	Custody  *Custody `json:"custody,omitempty"` // the round that the requester needs to read it
	Approval ID       `json:"approval,omitzero"` // the round of approvals that this delivery consumed
}

// DecisionDenied is a DENY or STEP_UP, and what it was about stands in the decision's signals.
//
// Unmet says which obligation of a PERMIT could not be kept, or why what the policy permitted or left to a second person
// can't be done; nothing was released or changed then either.
type DecisionDenied struct {
	Principal string   `json:"principal"`
	Unmet     string   `json:"unmet,omitempty"`
	Decision  Decision `json:"decision"`
}

// OperationPermitted is a permitted administrative read.
type OperationPermitted struct {
	Principal string   `json:"principal"`
	Decision  Decision `json:"decision"`
}

// SessionConfirmed carries the receipt: R opens the session's lock, Signature is the instance key's.
type SessionConfirmed struct {
	Session   ID     `json:"session"`
	R         []byte `json:"r"`
	Signature []byte `json:"signature"`
}

// SessionUsed says that a use share of a gated session was given out, on the decision to permit that. The rest is
// what the instance key signed: see package envelope/proof, with the decision's request id. It is the receipt, and
// it is there before the share moves.
type SessionUsed struct {
	Session       ID       `json:"session"`
	Number        uint32   `json:"number"`          // of the share, from 1; not the order of uses
	Ahead         bool     `json:"ahead,omitempty"` // fetched for a time without the broker: when it is used, if ever, is not known
	Nonce         []byte   `json:"nonce"`
	Exporter      []byte   `json:"exporter"`
	PayloadSHA256 Digest   `json:"payload_sha256"`
	Signature     []byte   `json:"signature"`
	Decision      Decision `json:"decision"`
}

// SessionRevoked ends a session by somebody's will.
type SessionRevoked struct {
	Session ID        `json:"session"`
	Reason  string    `json:"reason"`
	By      *Decision `json:"by,omitempty"`
}

// SessionClosed ends a session by its holder's will.
type SessionClosed struct {
	Session ID `json:"session"`
}

// SessionsExpired is the sweeper's word that these sessions are over.
type SessionsExpired struct {
	Sessions []ID `json:"sessions"`
}

// SessionsUnconfirmed is the sweeper's word that no receipt came in time for these sessions.
type SessionsUnconfirmed struct {
	Sessions []ID `json:"sessions"`
}

// RefusalsCounted stands for the refusals of a limiter within a span of time.
type RefusalsCounted struct {
	Principal string `json:"principal"`
	Limit     string `json:"limit"`
	Count     uint64 `json:"count"`
	From      Time   `json:"from"`
	To        Time   `json:"to"`
}

// RequestRefused records a call that failed before any policy was asked: a proof that does not fit, or a
// session that is not the caller's. Check names what failed.
type RequestRefused struct {
	Principal string `json:"principal"`
	Instance  string `json:"instance,omitempty"`
	Method    string `json:"method"`
	Check     string `json:"check"`
	Target    string `json:"target,omitempty"`
}

// The types of events.
const (
	TypeGenesis              Type = "log.genesis"
	TypeKeyIntroduced        Type = "key.introduced"
	TypeKeyRetired           Type = "key.retired"
	TypeRevisionActivated    Type = "revision.activated"
	TypeSecretPut            Type = "secret.put"
	TypeInstanceBound        Type = "instance.bound"
	TypeDeviceEnrolled       Type = "device.enrolled"
	TypeDeviceRevoked        Type = "device.revoked"
	TypeAttestationAppraised Type = "attestation.appraised"
	TypeAttestationRefused   Type = "attestation.refused"
	TypeSessionIssued        Type = "session.issued"
	TypeDecisionDenied       Type = "decision.denied"
	TypeOperationPermitted   Type = "operation.permitted"
	TypeSessionConfirmed     Type = "session.confirmed"
	TypeSessionRevoked       Type = "session.revoked"
	TypeSessionClosed        Type = "session.closed"
	TypeSessionUsed          Type = "session.used"
	TypeSessionsExpired      Type = "sessions.expired"
	TypeSessionsUnconfirmed  Type = "sessions.unconfirmed"
	TypeRefusalsCounted      Type = "refusals.counted"
	TypeRequestRefused       Type = "request.refused"
)

// EventType implements Body.
func (Genesis) EventType() Type { return TypeGenesis }

// EventType implements Body.
func (KeyIntroduced) EventType() Type { return TypeKeyIntroduced }

// EventType implements Body.
func (KeyRetired) EventType() Type { return TypeKeyRetired }

// EventType implements Body.
func (RevisionActivated) EventType() Type { return TypeRevisionActivated }

// EventType implements Body.
func (SecretPut) EventType() Type { return TypeSecretPut }

// EventType implements Body.
func (InstanceBound) EventType() Type { return TypeInstanceBound }

// EventType implements Body.
func (DeviceEnrolled) EventType() Type { return TypeDeviceEnrolled }

// EventType implements Body.
func (DeviceRevoked) EventType() Type { return TypeDeviceRevoked }

// EventType implements Body.
func (AttestationAppraised) EventType() Type { return TypeAttestationAppraised }

// EventType implements Body.
func (AttestationRefused) EventType() Type { return TypeAttestationRefused }

// EventType implements Body.
func (SessionIssued) EventType() Type { return TypeSessionIssued }

// EventType implements Body.
func (DecisionDenied) EventType() Type { return TypeDecisionDenied }

// EventType implements Body.
func (OperationPermitted) EventType() Type { return TypeOperationPermitted }

// EventType implements Body.
func (SessionConfirmed) EventType() Type { return TypeSessionConfirmed }

// EventType implements Body.
func (SessionRevoked) EventType() Type { return TypeSessionRevoked }

// EventType implements Body.
func (SessionClosed) EventType() Type { return TypeSessionClosed }

// EventType implements Body.
func (SessionUsed) EventType() Type { return TypeSessionUsed }

// EventType implements Body.
func (SessionsExpired) EventType() Type { return TypeSessionsExpired }

// EventType implements Body.
func (SessionsUnconfirmed) EventType() Type { return TypeSessionsUnconfirmed }

// EventType implements Body.
func (RefusalsCounted) EventType() Type { return TypeRefusalsCounted }

// EventType implements Body.
func (RequestRefused) EventType() Type { return TypeRequestRefused }
