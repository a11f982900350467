package attest

import (
	"crypto/sha256"
	"fmt"
)

// Tri is true, false or unknown. Unknown stays unknown: it is never taken for false, nor for true.
type Tri int8

// The three values of a [Tri]; the zero value is Unknown.
const (
	Unknown Tri = 0
	True    Tri = 1
	False   Tri = -1
)

// TriOf gives True or False.
func TriOf(b bool) Tri {
	if b {
		return True
	}
	return False
}

// String gives "true", "false" or "unknown".
func (t Tri) String() string {
	switch t {
	case True:
		return "true"
	case False:
		return "false"
	}
	return "unknown"
}

// MarshalText implements encoding.TextMarshaler.
func (t Tri) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Tri) UnmarshalText(b []byte) error {
	switch string(b) {
	case "true":
		*t = True
	case "false":
		*t = False
	case "unknown":
		*t = Unknown
	default:
		return fmt.Errorf("%w: %q is not true, false or unknown", ErrMalformed, clip(string(b)))
	}
	return nil
}

// Features are what verified evidence says about how a device was started.
type Features struct {
	MeasuredBoot     Tri `json:"measured_boot"`     // an event log that replays to the quoted PCRs 0 to 7
	Separators       Tri `json:"separators"`        // firmware closed each of PCRs 0 to 7 before the operating system
	SecureBoot       Tri `json:"secure_boot"`       // UEFI Secure Boot was enforced
	FirmwareDebugger Tri `json:"firmware_debugger"` // a firmware debugger was attached
}

// get gives a feature by the name that reference values use.
func (f Features) get(name string) (value Tri, known bool) {
	switch name {
	case "measured_boot":
		return f.MeasuredBoot, true
	case "separators":
		return f.Separators, true
	case "secure_boot":
		return f.SecureBoot, true
	case "firmware_debugger":
		return f.FirmwareDebugger, true
	}
	return Unknown, false
}

// Claims are what verified evidence says: facts, not judgements. Only a [Verifier] makes them.
type Claims struct {
	Kind     Kind
	Device   Device  // the record that the evidence was verified with
	Binding  Binding // what the evidence is bound to
	Firmware uint64  // TPM firmware version, 0 if there is none
	// BootFirmware is the version that the platform's firmware measured of itself, "" if unknown. Text from
	// outside: escape it to show.
	BootFirmware   string
	Features       Features
	PCRs           map[int][sha256.Size]byte // SHA-256 bank, as quoted
	Counters       Counters
	ClockSafe      bool // the TPM's clock value was not shown before
	RolledBack     bool // Counters can't follow Device.Seen
	InstanceInTPM  bool // the instance key is certified to live in the device
	RecipientInTPM bool // so is the recipient key (for a hybrid key: its classical half)
	// Measured are the values that evidence of a confidential kind shows, Machine what else it says; else nil.
	Measured       []Named
	Machine        *Machine
	EvidenceDigest [sha256.Size]byte
}
