package attest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Appraise judges verified claims by reference values. It is pure: the same arguments give the same result.
//
// What is not shown is never better than the worst of what is tolerated, a requirement that is not known to be
// met is not met, and reference values outside their window judge nothing (tier none).
func Appraise(c Claims, refs References, now time.Time) Result {
	r := Result{
		Version: ResultVersion, Kind: c.Kind, DeviceID: c.Device.ID, Principal: c.Binding.Principal,
		Platform: c.Device.Platform, BootFirmware: c.BootFirmware, Features: c.Features, Counters: c.Counters,
		Keys: Keys{
			Instance: Thumbprint(c.Binding.InstanceKey), InstanceInHardware: c.InstanceInTPM,
			Recipient: Thumbprint(c.Binding.RecipientKey), RecipientInHardware: c.RecipientInTPM, Enclosed: c.Machine != nil,
		},
		Measured: c.Measured, Machine: c.Machine,
		EvidenceDigest:  hex.EncodeToString(c.EvidenceDigest[:]),
		ReferenceDigest: hex.EncodeToString(refs.digest[:]),
		IssuedAt:        now.UTC().Truncate(time.Millisecond),
	}
	if c.Kind == KindTPM2 {
		r.Firmware = fmt.Sprintf("%016x", c.Firmware)
	}
	for _, p := range slices.Sorted(maps.Keys(c.PCRs)) {
		v := c.PCRs[p]
		r.Measurements = append(r.Measurements, Measurement{p, hex.EncodeToString(v[:])})
	}
	a := appraisal{claims: c, refs: refs, result: &r}
	switch {
	case !refs.ValidAt(now):
		a.outOfDate()
	case c.Kind == KindTPM2:
		a.identity()
		a.hardware()
		a.executables()
		a.configuration()
		a.storage()
	case c.Machine != nil:
		a.machine()
	case c.Kind == KindDevelopment:
		a.development()
	}
	r.TrustScore, r.Status = judge(r.Vector)
	return r
}

// appraisal fills one result, a claim at a time.
type appraisal struct {
	claims Claims
	refs   References
	result *Result
}

func (a *appraisal) set(claim string, field *TrustValue, v TrustValue, format string, args ...any) {
	*field = v
	a.result.Reasons = append(a.result.Reasons, Reason{claim, v, fmt.Sprintf(format, args...)})
}

func (a *appraisal) outOfDate() {
	from, until := a.refs.Window()
	text := fmt.Sprintf("reference values are only valid from %s to %s", from.Format(time.RFC3339), until.Format(time.RFC3339))
	v := &a.result.Vector
	a.set("hardware", &v.Hardware, ValueMalfunction, "%s", text)
	a.set("executables", &v.Executables, ValueMalfunction, "%s", text)
	a.set("configuration", &v.Configuration, ValueMalfunction, "%s", text)
}

func (a *appraisal) identity() {
	field := &a.result.Vector.InstanceIdentity
	switch {
	case a.claims.RolledBack:
		a.set("instance-identity", field, ValueRefused, "the TPM was cleared or rolled back: %d resets at %d ms, after %d resets at %d ms had been seen",
			a.claims.Counters.ResetCount, a.claims.Counters.Clock, a.claims.Device.Seen.ResetCount, a.claims.Device.Seen.Clock)
	case a.claims.Device.ID.IsZero():
		a.set("instance-identity", field, ValueUntrusted, "no enrolled device")
	default:
		a.set("instance-identity", field, ValueApproved, "quote by the enrolled attestation key")
	}
}

func (a *appraisal) hardware() {
	field := &a.result.Vector.Hardware
	maker := a.claims.Device.Platform.Manufacturer
	least, bounded := a.refs.firmware[maker]
	if !bounded {
		least, bounded = a.refs.firmware["*"]
	}
	switch {
	case !a.refs.stillAnchored(a.claims.Device):
		a.set("hardware", field, ValueUntrusted, "neither a trusted root nor the allow-list vouches for the endorsement key")
	case bounded && a.claims.Firmware < least:
		a.set("hardware", field, ValueRefused, "TPM firmware %016x is older than %016x", a.claims.Firmware, least)
	case a.claims.Device.Anchor == "":
		a.set("hardware", field, ValueApprovedWeak, "endorsement key is allow-listed, without a maker's certificate")
	default:
		a.set("hardware", field, ValueApproved, "endorsement key certified by a trusted maker")
	}
}

func (a *appraisal) executables() {
	field := &a.result.Vector.Executables
	for _, p := range a.refs.required {
		value, quoted := a.claims.PCRs[p]
		switch {
		case !quoted:
			a.set("executables", field, ValueRefused, "PCR %d was not quoted", p)
			return
		case untouched(value) && !slices.Contains(a.refs.zero, p):
			a.set("executables", field, ValueRefused, "PCR %d is untouched: nothing was measured into it", p)
			return
		}
	}
	if a.refs.eventLog && a.claims.Features.MeasuredBoot != True {
		a.set("executables", field, ValueRefused, "no event log explains the PCRs")
		return
	}
	if len(a.refs.profiles) == 0 {
		a.set("executables", field, ValueUnrecognised, "there are no reference profiles to compare with")
		return
	}
	for _, p := range a.refs.profiles {
		if (a.claims.Device.Profile == "" || a.claims.Device.Profile == p.name) && p.matches(a.claims.PCRs) {
			a.result.Profile = p.name
			a.set("executables", field, ValueApprovedWeak, "PCRs match profile %q (boot time, not run time)", p.name)
			return
		}
	}
	if name := a.claims.Device.Profile; name != "" {
		a.set("executables", field, ValueRefused, "PCRs do not match profile %q of the device", name)
		return
	}
	a.set("executables", field, ValueRefused, "PCRs match none of %d reference profiles", len(a.refs.profiles))
}

func (a *appraisal) configuration() {
	field := &a.result.Vector.Configuration
	for _, f := range a.refs.features {
		if got, _ := a.claims.Features.get(f.name); got != f.want {
			a.set("configuration", field, ValueRefused, "%s is %s, must be %s", f.name, got, f.want)
			return
		}
	}
	f := a.claims.Features
	switch {
	case f.Separators == False:
		a.set("configuration", field, ValueUnsafe, "firmware did not close PCRs 0 to 7")
	case f.SecureBoot == False:
		a.set("configuration", field, ValueUnsafe, "secure boot is off")
	case f.FirmwareDebugger == True:
		a.set("configuration", field, ValueUnsafe, "a firmware debugger was attached")
	case f.Separators == Unknown || f.SecureBoot == Unknown || f.FirmwareDebugger == Unknown:
		a.set("configuration", field, ValueWithheld, "the event log does not show how the device was started")
	default:
		a.set("configuration", field, ValueApproved, "secure boot, no debugger, PCRs closed by firmware")
	}
}

func (a *appraisal) storage() {
	field := &a.result.Vector.StorageOpaque
	switch {
	case !a.claims.InstanceInTPM:
		a.set("storage-opaque", field, ValueUnsafe, "the instance key is not certified to live in the TPM")
	case !a.claims.RecipientInTPM:
		a.set("storage-opaque", field, ValueApprovedWeak, "the instance key lives in the TPM, a recipient key is not certified")
	default:
		a.set("storage-opaque", field, ValueApproved, "instance and recipient keys live in the TPM")
	}
}

// development never lets a tier rise above warning: there is no hardware behind such a device.
func (a *appraisal) development() {
	v := &a.result.Vector
	if !a.refs.development {
		a.set("hardware", &v.Hardware, ValueUntrusted, "development devices are not accepted by the reference values")
		return
	}
	a.set("instance-identity", &v.InstanceIdentity, ValueUnsafe, "vouched for by the development authority only")
	a.set("hardware", &v.Hardware, ValueUnsafe, "a software device: keys can be copied")
	a.set("executables", &v.Executables, ValueUnrecognised, "nothing is measured")
	a.set("configuration", &v.Configuration, ValueWithheld, "nothing is known about how it was started")
	a.set("storage-opaque", &v.StorageOpaque, ValueUnsafe, "keys live in files and memory")
}

// judge derives score and status from a vector. Five claims carry points: instance-identity and hardware 25
// each, executables 20, configuration and storage-opaque 15 each. An affirmed claim earns them (on weaker
// grounds nine tenths), 32 earns half, another warning a third, no claim nothing; one contraindicated claim
// makes the score 0. The status is the worst tier among the claims, and none while one of the five is missing.
func judge(v Vector) (score int, status Tier) {
	weights := [8]int{25, 15, 20, 0, 25, 0, 15, 0}
	status = Affirming
	thirtieths := 0
	for i, value := range v.values() {
		switch value.Tier() {
		case Contraindicated:
			return 0, Contraindicated
		case Warning:
			if status == Affirming {
				status = Warning
			}
			share := 10
			if value == ValueUnsafe {
				share = 15
			}
			thirtieths += weights[i] * share
		case None:
			if weights[i] > 0 {
				status = None
			}
		case Affirming:
			share := 30
			if value != ValueApproved {
				share = 27
			}
			thirtieths += weights[i] * share
		}
	}
	return thirtieths / 30, status
}

func (p profile) matches(pcrs map[int][sha256.Size]byte) bool {
	for n, allowed := range p.pcrs {
		value, quoted := pcrs[n]
		if !quoted || !slices.Contains(allowed, value) {
			return false
		}
	}
	return true
}

// untouched says whether a PCR still has a value from before any measurement: all ones, or all zeros but for the
// locality of the start-up command, which PCR 0 begins with.
func untouched(v [sha256.Size]byte) bool {
	ones := [sha256.Size]byte{}
	for i := range ones {
		ones[i] = 0xff
	}
	if v == ones {
		return true
	}
	locality := v[len(v)-1]
	v[len(v)-1] = 0
	return v == [sha256.Size]byte{} && locality <= 4
}
