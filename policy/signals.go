package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/bulla-project/bulla/internal/canonical"
)

// MaxSignalsSize is the largest encoding of signals in bytes.
const MaxSignalsSize = 64 << 10

// SignalsVersion is the version of the encoding that this package writes and reads.
const SignalsVersion = 1

// ErrSignals says that recorded signals are malformed or not in canonical form.
var ErrSignals = errors.New("signals refused")

// Action names what is asked for. The names are part of the policy language.
type Action string

// The actions.
const (
	ActionDeliver        Action = "deliver"
	ActionSecretPut      Action = "secret.put"
	ActionSecretShow     Action = "secret.show"
	ActionSecretList     Action = "secret.list"
	ActionSessionList    Action = "session.list"
	ActionSessionShow    Action = "session.show"
	ActionSessionRevoke  Action = "session.revoke"
	ActionDeviceEnroll   Action = "device.enroll"
	ActionDeviceList     Action = "device.list"
	ActionDeviceShow     Action = "device.show"
	ActionDeviceRevoke   Action = "device.revoke"
	ActionPolicyPush     Action = "policy.push"
	ActionPolicyPromote  Action = "policy.promote"
	ActionPolicyRollback Action = "policy.rollback"
	ActionPolicyShadow   Action = "policy.shadow"
	ActionPolicyList     Action = "policy.list"
	ActionPolicyShow     Action = "policy.show"
	ActionPolicyCheck    Action = "policy.check"
	ActionAuditTail      Action = "audit.tail"
	ActionAuditExport    Action = "audit.export"
	ActionAuditRebuild   Action = "audit.rebuild"
	ActionAuditQuery     Action = "audit.query"
	ActionAuditBlast     Action = "audit.blast-radius"
	ActionSecretUsage    Action = "secret.usage"
	ActionDoctor         Action = "doctor"
	ActionShareList      Action = "share.list"
	ActionShareShow      Action = "share.show"
	ActionShareFetch     Action = "share.fetch"
	ActionShareApprove   Action = "share.approve"
	ActionShareReject    Action = "share.reject"
	ActionSessionProof   Action = "session.proof"
	ActionAuditErase     Action = "audit.erase"
	ActionAuditHold      Action = "audit.hold"
	ActionAuditHolds     Action = "audit.holds"
)

// Actions returns every action, in the order above.
func Actions() []Action {
	return []Action{
		ActionDeliver, ActionSecretPut, ActionSecretShow, ActionSecretList, ActionSessionList, ActionSessionShow,
		ActionSessionRevoke, ActionDeviceEnroll, ActionDeviceList, ActionDeviceShow, ActionDeviceRevoke,
		ActionPolicyPush, ActionPolicyPromote, ActionPolicyRollback, ActionPolicyShadow, ActionPolicyList, ActionPolicyShow, ActionPolicyCheck, ActionAuditTail,
		ActionAuditExport, ActionAuditRebuild, ActionAuditQuery, ActionAuditBlast, ActionSecretUsage, ActionDoctor,
		ActionShareList, ActionShareShow, ActionShareFetch, ActionShareApprove, ActionShareReject, ActionSessionProof,
		ActionAuditErase, ActionAuditHold, ActionAuditHolds,
	}
}

// The values of Principal.Level, worst first.
const (
	LevelBasic         = "BASIC"
	LevelEnhanced      = "ENHANCED"
	LevelHighAssurance = "HIGH_ASSURANCE"
)

// The values of Principal.Type.
const (
	TypeService   = "SERVICE"
	TypeUser      = "USER"
	TypeContainer = "CONTAINER"
	TypeFunction  = "FUNCTION"
	TypePipeline  = "PIPELINE"
)

// The values of Resource.Kind; the part of Resource with the same name is then set.
const (
	KindSecret   = "secret"
	KindSession  = "session"
	KindDevice   = "device"
	KindRevision = "revision"
	KindAudit    = "audit"
	KindSystem   = "system"
	KindRound    = "round"
)

// Signals are the raw facts of one request, as they are recorded: nothing in them depends on the policy.
// Times are microseconds since 1970 in UTC, durations are seconds, numbers are integers. A pointer that is
// nil says that there is no such thing (not that it is unknown to be bad); risk counts it as the worst.
type Signals struct {
	Version     int          `json:"v"`
	Now         int64        `json:"now"`
	Action      Action       `json:"action"`
	Principal   Principal    `json:"principal"`
	Instance    string       `json:"instance"` // thumbprint of the instance key, "" if the call has none
	Resource    Resource     `json:"resource"`
	Attestation *Attestation `json:"attestation"`
	Network     Network      `json:"network"`
	Place       *Place       `json:"place,omitempty"`
	Recipient   *Recipient   `json:"recipient"`
	History     *History     `json:"history"`
	Request     Request      `json:"request"`
	// What came later is left out where there is none, so that what was recorded before stays canonical.
	Factors  []Factor         `json:"factors,omitempty"`
	External []ExternalSignal `json:"external,omitempty"`
	// Approvals are those of this very request.
	Approvals []Approval `json:"approvals,omitempty"`
}

// Factor is a token that the caller showed inside a signed request and that was verified: what its issuer says, not
// what follows from it. Whether it counts for the caller is for the revision to say.
type Factor struct {
	Kind      string              `json:"kind"` // oidc, jwt_svid
	Issuer    string              `json:"issuer"`
	Subject   string              `json:"subject"`
	Type      string              `json:"type,omitempty"` // principal type, by the issuer's configuration from a claim
	IssuedAt  int64               `json:"issued_at,omitempty"`
	ExpiresAt int64               `json:"expires_at"`
	Token     string              `json:"token_sha256"`
	Claims    map[string][]string `json:"claims,omitempty"` // those that the issuer's configuration names
}

// The values of Factor.Kind.
const (
	FactorOIDC    = "oidc"
	FactorJWTSVID = "jwt_svid"
)

// ExternalSignal is what a configured transmitter said about the caller, its device or its trust domain, and that has
// not ended at Now.
type ExternalSignal struct {
	Transmitter string `json:"transmitter"`
	Type        string `json:"type"`  // such as risk-level-change
	Level       string `json:"level"` // raised, high
	Received    int64  `json:"received"`
	Expires     int64  `json:"expires"`
}

// Principal is the verified caller.
type Principal struct {
	ID          string `json:"id"` // SPIFFE ID
	TrustDomain string `json:"trust_domain"`
	Path        string `json:"path"`
	Type        string `json:"type"`
	Level       string `json:"level"`
	NotBefore   int64  `json:"svid_not_before"`
	NotAfter    int64  `json:"svid_not_after"`
}

// Resource is what the action is about. At most the part that Kind names is set; an action on no single
// thing (a list) has the kind and no part.
type Resource struct {
	Kind     string    `json:"kind"`
	Secret   *Secret   `json:"secret"`
	Session  *Session  `json:"session"`
	Device   *Device   `json:"device"`
	Revision *NewRules `json:"revision"`
	Round    *Round    `json:"round,omitempty"`
}

// Secret is a secret by name, in the canonical form of package secret, with what the broker knows of it.
type Secret struct {
	Name    string `json:"name"`
	Exists  bool   `json:"exists"`
	Class   string `json:"class"`   // "" if it does not exist
	Version int64  `json:"version"` // 0 if it does not exist
	// Exposure is the grade of the weakest release of this version so far: open, gated, proxied, leased,
	// or none.
	Exposure string `json:"exposure"`
	// NewClass is the class that a put asks for.
	NewClass string `json:"new_class"`
	// Type is that of a key that the broker made, "" for an opaque secret; NewType is what a put asks for.
	Type    string `json:"type,omitempty"`
	NewType string `json:"new_type,omitempty"`
}

// Session is the session that an administrative action is about.
type Session struct {
	ID        string `json:"id"`
	State     string `json:"state"`
	Principal string `json:"principal"`
	Secret    string `json:"secret"`
}

// Device is the device that an administrative action is about.
type Device struct {
	ID        string `json:"id"`
	Kind      string `json:"kind"`
	Principal string `json:"principal"`
}

// NewRules is the revision that an administrative action is about.
type NewRules struct {
	Digest string `json:"digest"`
	Name   string `json:"name"`
}

// Attestation is the valid result of an appraisal of the device on which the caller's instance runs.
type Attestation struct {
	Kind      string   `json:"kind"` // as in attest.Kind
	DeviceID  string   `json:"device_id"`
	Tier      string   `json:"tier"` // none, affirming, warning, contraindicated
	Score     int64    `json:"score"`
	IssuedAt  int64    `json:"issued_at"`
	KeysBound bool     `json:"keys_bound"` // this instance's keys are bound to the device
	Hardware  bool     `json:"recipient_in_hardware"`
	Reasons   []string `json:"reasons"`
}

// Network is the connection as the broker sees it.
type Network struct {
	Peer string `json:"peer"` // address and port of the connection, never a claimed one
	// Proxy is the configured proxy that passed the connection on, and whose word Peer is.
	Proxy       string `json:"proxy,omitempty"`
	TLSGroup    string `json:"tls_group"`
	PostQuantum bool   `json:"post_quantum"`
	Channel     string `json:"channel"` // TLS exporter value
}

// Place is where the peer's address is, as the database of places says. Without a database there is none.
type Place struct {
	Country   string `json:"country"` // ISO 3166-1 alpha-2, "" if the database does not know
	Continent string `json:"continent,omitempty"`
	Point     *Point `json:"point,omitempty"`
	Source    string `json:"source"`   // SHA-256 of the database's file, in hexadecimal
	BuiltAt   int64  `json:"built_at"` // when the database was built
}

// Point is a position in thousandths of a degree, and how exact it is.
type Point struct {
	LatitudeMilli  int64 `json:"latitude_milli"`
	LongitudeMilli int64 `json:"longitude_milli"`
	RadiusKM       int64 `json:"radius_km"`
}

// Recipient is the key to which an envelope would be sealed.
type Recipient struct {
	Suite      int64 `json:"suite"` // number of the HPKE suite
	InHardware bool  `json:"in_hardware"`
}

// History holds the aggregates of package risk at Now.
type History struct {
	RateMilli        int64 `json:"rate_milli"`
	DenialsMilli     int64 `json:"denials_milli"`
	UnconfirmedMilli int64 `json:"unconfirmed_milli"`
	Novel            bool  `json:"novel"` // this principal never had this secret
	// Travel is for identities that are at one place at a time: a USER, and a device.
	Travel *Travel `json:"travel,omitempty"`
}

// Travel compares the place with those from which the identity was permitted before.
type Travel struct {
	NewCountry bool `json:"new_country"` // none of them was in this country
	// DistanceKM is how far it is from the last of them at least, the longest way on Earth where one of the two is
	// not known, and Seconds the time since then. Both are 0 if there is none.
	DistanceKM int64 `json:"distance_km"`
	Seconds    int64 `json:"seconds"`
}

// Request is what the caller asked for beyond the action and the resource. 0 and "" mean not asked for.
type Request struct {
	Grade      string `json:"grade"`
	MaxUses    int64  `json:"max_uses"`
	TTLSeconds int64  `json:"ttl_seconds"`
	// Operation is what is to be done with a proxied key; "" for a delivery and for everything else.
	Operation string `json:"operation,omitempty"`
}

// Encode returns the canonical encoding, which is what the ledger records. Text that is not UTF-8 and an
// encoding above MaxSignalsSize are refused.
func (s Signals) Encode() ([]byte, error) {
	s.Version = SignalsVersion
	if s.Attestation != nil && s.Attestation.Reasons == nil {
		a := *s.Attestation
		a.Reasons = []string{}
		s.Attestation = &a
	}
	out, err := canonical.Append(make([]byte, 0, 1024), s)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSignals, err)
	}
	if len(out) > MaxSignalsSize {
		return nil, fmt.Errorf("%w: they have %d bytes, at most %d are allowed", ErrSignals, len(out), MaxSignalsSize)
	}
	// The encoder replaces what is not UTF-8, and two different facts must not have one record.
	if bytes.Contains(out, []byte(`\ufffd`)) || bytes.ContainsRune(out, utf8.RuneError) {
		return nil, fmt.Errorf("%w: a text in them is not UTF-8", ErrSignals)
	}
	return out, nil
}

// ParseSignals reads recorded signals and refuses every encoding but the canonical one.
func ParseSignals(text []byte) (Signals, error) {
	if len(text) > MaxSignalsSize {
		return Signals{}, fmt.Errorf("%w: they have %d bytes, at most %d are allowed", ErrSignals, len(text), MaxSignalsSize)
	}
	s, err := decodeSignals(text)
	if err != nil {
		return Signals{}, err
	}
	if s.Version != SignalsVersion {
		return Signals{}, fmt.Errorf("%w: version %d, this program reads version %d", ErrSignals, s.Version, SignalsVersion)
	}
	again, err := s.Encode()
	if err != nil {
		return Signals{}, err
	}
	if !bytes.Equal(again, text) {
		return Signals{}, fmt.Errorf("%w: they are not in canonical form", ErrSignals)
	}
	return s, nil
}

// decodeSignals decodes strictly but leaves the form and missing fields alone; canaries use it.
func decodeSignals(text []byte) (Signals, error) {
	var s Signals
	if canonical.Read(text, &s) {
		return s, nil
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return Signals{}, fmt.Errorf("%w: %w", ErrSignals, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Signals{}, fmt.Errorf("%w: text after the end", ErrSignals)
	}
	return s, nil
}
