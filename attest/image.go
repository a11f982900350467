package attest

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A confidential machine (an enclave, a virtual machine in encrypted memory) has no key of its own that could name it
// for good: it comes and goes, and what stays is the image that it was started from. So the device of such a
// kind is an image, by the measurements that the hardware took at its launch, and, where the operator pins it,
// the one platform (processor) that it may run on. Its id is derived from these values; each evidence must show
// all of them, or it is evidence of something else.

// A Named is a value by the name that evidence and reference values use for it.
type Named struct {
	Name  string `json:"name"`
	Value string `json:"value"` // lower-case hexadecimal
}

// An Image is what a device of a confidential kind is: sorted by name, each name once.
type Image []Named

// imageLabel starts the digest that names an image.
const imageLabel = "bulla-attestation-image/v1"

// The names that images are made of.
const (
	ValueMeasurement = "measurement" // sev-snp: launch digest
	ValueChipID      = "chip_id"     // sev-snp: the processor
	ValueMRTD        = "mrtd"        // tdx: launch digest of the trust domain
	ValuePPID        = "ppid"        // tdx: the platform, by its provisioning id
)

// imageParts says for each kind which values an image has to have, and which it may have.
func imageParts(k Kind) (needed, optional map[string]int) {
	switch k {
	case KindNitro:
		return map[string]int{"pcr0": 48, "pcr1": 48, "pcr2": 48}, nil
	case KindSEVSNP:
		return map[string]int{ValueMeasurement: 48}, map[string]int{ValueChipID: 64}
	case KindTDX:
		return map[string]int{ValueMRTD: 48}, map[string]int{ValuePPID: 16}
	}
	return nil, nil
}

// Confidential says whether devices of kind k are images of confidential machines.
func (k Kind) Confidential() bool {
	needed, _ := imageParts(k)
	return needed != nil
}

// NewImage takes from values what an image of kind k is made of, with the platform or without. It refuses one
// that is all zeros: such a machine was started for debugging, or shows nothing.
func NewImage(k Kind, values []Named, platform bool) (Image, error) {
	needed, optional := imageParts(k)
	var image Image
	for _, v := range values {
		_, isNeeded := needed[v.Name]
		_, isOptional := optional[v.Name]
		if isNeeded || isOptional && platform {
			image = append(image, v)
		}
	}
	slices.SortFunc(image, func(a, b Named) int { return strings.Compare(a.Name, b.Name) })
	if platform && len(optional) > 0 && len(image) != len(needed)+len(optional) {
		return nil, fmt.Errorf("%w: the evidence does not say which platform it is from, so the image can't be pinned to it", ErrMalformed)
	}
	return image, image.Validate(k)
}

// Validate joins all faults of an image.
func (m Image) Validate(k Kind) error {
	needed, optional := imageParts(k)
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	for i, v := range m {
		size, known := needed[v.Name]
		if !known {
			size, known = optional[v.Name]
		}
		raw, err := hex.DecodeString(v.Value)
		switch {
		case !known:
			fault("%q is no part of an image of kind %s", clip(v.Name), clip(string(k)))
		case err != nil || len(raw) != size || hex.EncodeToString(raw) != v.Value:
			fault("%s is not %d bytes in lower-case hexadecimal", v.Name, size)
		case allZero(raw):
			fault("%s is all zeros: the machine was started for debugging, or hides it", v.Name)
		}
		if i > 0 && m[i-1].Name >= v.Name {
			fault("values are not sorted by name, or one is there twice")
		}
	}
	for name := range needed {
		if _, ok := m.Get(name); !ok {
			fault("%s is missing", name)
		}
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("%w: image: %w", ErrMalformed, err)
	}
	return nil
}

// Get returns a value by its name.
func (m Image) Get(name string) (string, bool) { return lookUp(m, name) }

// Pinned says whether the image is tied to one platform. Where it is not, many machines may be this device.
func (m Image) Pinned(k Kind) bool {
	_, optional := imageParts(k)
	for name := range optional {
		if _, ok := m.Get(name); ok {
			return true
		}
	}
	return false
}

// Digest names an image: SHA-256 over the label, the kind and the values, each with its length before it.
func (m Image) Digest(k Kind) [sha256.Size]byte {
	fields := [][]byte{[]byte(k)}
	for _, v := range m {
		fields = append(fields, []byte(v.Name), []byte(v.Value))
	}
	return sha256.Sum256(Pack(imageLabel, PackList(fields)))
}

// ID is the id of the device that the image is.
func (m Image) ID(k Kind) (DeviceID, error) {
	if err := m.Validate(k); err != nil {
		return DeviceID{}, err
	}
	return NewDeviceID(k, m.Digest(k))
}

// Shown says whether values hold everything that the image is made of.
func (m Image) Shown(values []Named) bool {
	for _, want := range m {
		got, ok := lookUp(values, want.Name)
		if !ok || subtle.ConstantTimeCompare([]byte(got), []byte(want.Value)) != 1 {
			return false
		}
	}
	return len(m) > 0
}

func lookUp(values []Named, name string) (string, bool) {
	for _, v := range values {
		if v.Name == name {
			return v.Value, true
		}
	}
	return "", false
}

func allZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// Machine is what evidence says of a confidential machine besides what was measured.
type Machine struct {
	Product    string `json:"product"`    // processor line (Milan), or FMSPC in hexadecimal; "" = unknown
	Platform   string `json:"platform"`   // chip id or PPID in hexadecimal, or the id of a Nitro module; "" = unknown
	Endorser   string `json:"endorser"`   // which key signed: VCEK, VLEK, PCK, or "nitro"
	Debug      Tri    `json:"debug"`      // the host may look into it: never True here, such evidence is refused
	Migratable Tri    `json:"migratable"` // it may be moved to another machine by an agent
	SMT        Tri    `json:"smt"`        // it may share a core with a sibling thread
	Encrypted  Tri    `json:"encrypted"`  // its memory is encrypted by the hardware
	Hardened   Tri    `json:"hardened"`   // tdx: page faults on removed memory can't be injected (SEPT_VE_DISABLE)
	VMPL       int    `json:"vmpl"`       // sev-snp: privilege level that asked for the report; 0 is the highest
	TCB        []SVN  `json:"tcb"`        // security versions; empty = unknown
}

// SVN are the security version numbers of a part of the trusted computing base.
type SVN struct {
	Name   string `json:"name"`
	Values []int  `json:"values"`
}

// Enrol makes the record of an image. It allows no principals yet. Nothing proves the values at this point: the
// operator vouches for them, and every attestation has to show them.
func (m Image) Enrol(k Kind) (Device, error) {
	id, err := m.ID(k)
	if err != nil {
		return Device{}, err
	}
	sum := m.Digest(k)
	return Device{
		ID: id, Kind: k, IdentityHash: hex.EncodeToString(sum[:]), Image: slices.Clone(m), Platform: Platform{Type: string(k)},
	}, nil
}

const (
	enrolmentLabel = "bulla-image-enrolment/v1"
	maxImageValues = 4
	maxImageText   = 256
)

// EnrolRequest is what the enrolment of an image starts with. There is no challenge after it.
func (m Image) EnrolRequest() []byte {
	var fields [][]byte
	for _, v := range m {
		fields = append(fields, []byte(v.Name), []byte(v.Value))
	}
	return Pack(enrolmentLabel, PackList(fields))
}

// ParseImage takes apart what [Image.EnrolRequest] made.
func ParseImage(k Kind, request []byte) (Image, error) {
	f, err := Unpack(enrolmentLabel, request, 2*maxImageValues*(maxImageText+4))
	if err != nil {
		return nil, err
	}
	items, err := UnpackList(f[0], 2*maxImageValues, maxImageText)
	if err != nil {
		return nil, err
	}
	if len(items)%2 != 0 {
		return nil, fmt.Errorf("%w: a name without a value", ErrMalformed)
	}
	var image Image
	for pair := range slices.Chunk(items, 2) {
		image = append(image, Named{string(pair[0]), string(pair[1])})
	}
	return image, image.Validate(k)
}

// LocateImages gives the ids that evidence with these values could be enrolled under: the image on its platform
// first, then the image anywhere.
func LocateImages(k Kind, values []Named) ([]DeviceID, error) {
	var ids []DeviceID
	for _, platform := range []bool{true, false} {
		image, err := NewImage(k, values, platform)
		if err != nil && platform {
			continue // it hides its platform
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnauthentic, err)
		}
		id, err := image.ID(k)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnauthentic, err)
		}
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
