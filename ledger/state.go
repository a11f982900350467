package ledger

import (
	"encoding/json"

	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/secret"
)

// Secret is the projection of a secret's metadata: never a value.
type Secret struct {
	Name     string          `json:"name"`
	Class    string          `json:"class"`
	Exposure string          `json:"exposure,omitempty"` // the softest grade that a version left at
	Versions []SecretVersion `json:"versions"`           // the newest last
}

// SecretVersion is one version's metadata.
type SecretVersion struct {
	Version          uint32       `json:"version"`
	Stage            secret.Stage `json:"stage"`
	RecordID         event.ID     `json:"record_id"`
	Class            string       `json:"class"`
	Owner            string       `json:"owner"`
	Policy           event.Digest `json:"policy"`
	CiphertextDigest event.Digest `json:"ciphertext_digest"`
	Created          event.Time   `json:"created_at"`
	Exposure         string       `json:"exposure,omitempty"`   // the softest grade that it left at: open, once, is open for ever
	Type             string       `json:"type,omitempty"`       // of a key that the broker made; none: opaque
	PublicKey        []byte       `json:"public_key,omitempty"` // JWK of a signature key
	// Split is set where the value was split before it came: the broker has ciphertext alone. Shared, never changed.
	Split *event.Split `json:"split,omitempty"`
}

// Device is the projection of an enrolled device.
type Device struct {
	ID       string          `json:"id"`
	Record   json.RawMessage `json:"record"`
	Enrolled event.Time      `json:"enrolled_at"`
	Failed   event.Time      `json:"failed_at,omitzero"` // last appraisal that it failed
	Revoked  event.Time      `json:"revoked_at,omitzero"`
	Reason   string          `json:"reason,omitempty"`
}

// DeviceCounter is the projection of a device's newest authentic evidence: the TPM's clock values that the
// next evidence must not fall behind.
type DeviceCounter struct {
	Device   string               `json:"device"`
	Counters event.DeviceCounters `json:"counters"`
	At       event.Time           `json:"at"`
}

// Passport is the projection of the newest appraisal for an instance of a principal.
type Passport struct {
	Principal string          `json:"principal"`
	Instance  string          `json:"instance"`
	Device    string          `json:"device"`
	Result    json.RawMessage `json:"result"`
	At        event.Time      `json:"at"`
}

// Revision is the projection of an activated policy bundle.
type Revision struct {
	Digest    event.Digest `json:"digest"`
	Sequence  uint64       `json:"sequence"`
	Source    string       `json:"source"`
	Note      string       `json:"note,omitempty"`
	Activated event.Time   `json:"activated_at"`
	By        string       `json:"by,omitempty"`
	Rollback  bool         `json:"rollback,omitempty"` // it was active before
	Key       string       `json:"key,omitempty"`      // bundle key under which its signature verified
	Report    event.Digest `json:"report,omitzero"`
	Kept      bool         `json:"report_kept,omitempty"` // its event has a report's text, or that of its proposal
	NoReport  string       `json:"no_report,omitempty"`   // why there is none
}

// Key is the projection of an envelope signing key.
type Key struct {
	ID         string     `json:"id"`
	Use        string     `json:"use"`
	Public     []byte     `json:"public"`
	Introduced event.Time `json:"introduced_at"`
	Retired    event.Time `json:"retired_at,omitzero"`
}

// InstanceKey is the key of KindPassport rows; SPIFFE IDs hold no '#'.
func InstanceKey(principal, instance string) string { return principal + "#" + instance }
