package attest

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// machines are the reference values of one confidential kind.
type machines struct {
	roots         []*x509.Certificate
	intermediates []*x509.Certificate
	profiles      []machineProfile
	minimum       map[string]map[string][]int // product → part → lowest security versions
	maxVMPL       int
	migration     bool
}

type machineProfile struct {
	name   string
	values map[string][]string
}

// machinesFile is the YAML form. Not all kinds have all fields.
type machinesFile struct {
	Roots          string                    `yaml:"roots"`
	Intermediates  string                    `yaml:"intermediates"`
	Profiles       []machineProfileFile      `yaml:"profiles"`
	MinimumTCB     map[string]map[string]svn `yaml:"minimum_tcb"`
	MaxVMPL        int                       `yaml:"max_vmpl"`
	AllowMigration bool                      `yaml:"allow_migration"`
}

type machineProfileFile struct {
	Name   string              `yaml:"name"`
	Values map[string][]string `yaml:"values"`
}

// svn is one security version number, or a list of them.
type svn []int

// UnmarshalYAML implements yaml.Unmarshaler.
func (s *svn) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.SequenceNode {
		return n.Decode((*[]int)(s))
	}
	var one int
	if err := n.Decode(&one); err != nil {
		return err
	}
	*s = svn{one}
	return nil
}

// measuredSizes are the values of a kind that a profile may name, with their size in bytes.
func measuredSizes(k Kind) map[string]int {
	sizes := map[string]int{}
	switch k {
	case KindNitro:
		for i := range MaxNitroPCR + 1 {
			sizes[fmt.Sprintf("pcr%d", i)] = 48
		}
	case KindSEVSNP:
		maps.Copy(sizes, map[string]int{
			ValueMeasurement: 48, ValueChipID: 64, "host_data": 32, "id_key_digest": 48, "author_key_digest": 48, "family_id": 16, "image_id": 16,
		})
	case KindTDX:
		maps.Copy(sizes, map[string]int{
			ValueMRTD: 48, "rtmr0": 48, "rtmr1": 48, "rtmr2": 48, "rtmr3": 48, "mrconfigid": 48, "mrowner": 48, "mrownerconfig": 48, "mrseam": 48, ValuePPID: 16,
		})
	}
	return sizes
}

// MaxNitroPCR is the highest PCR that a Nitro document can have.
const MaxNitroPCR = 31

// tcbParts are the parts of the trusted computing base whose versions evidence of a kind shows, and how many
// numbers each has. AWS shows none.
func tcbParts(k Kind) map[string]int {
	switch k {
	case KindSEVSNP:
		return map[string]int{"boot_loader": 1, "tee": 1, "snp": 1, "microcode": 1}
	case KindTDX:
		return map[string]int{"tee_tcb_svn": 16, "cpu_svn": 16, "pce_svn": 1, "qe_isv_svn": 1}
	}
	return nil
}

// parseMachines reads the part of the reference values that is about kind k.
func parseMachines(k Kind, f machinesFile) (machines, error) {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	m := machines{minimum: map[string]map[string][]int{}, maxVMPL: f.MaxVMPL, migration: f.AllowMigration}
	var err error
	if m.roots, err = parseRoots(f.Roots); err != nil {
		fault("roots: %w", err)
	}
	if m.intermediates, err = parseRoots(f.Intermediates); err != nil {
		fault("intermediates: %w", err)
	}
	if k != KindSEVSNP && (f.Intermediates != "" || f.MaxVMPL != 0) {
		fault("intermediates and max_vmpl belong to sev_snp only")
	}
	if k == KindNitro && (len(f.MinimumTCB) > 0 || f.AllowMigration) {
		fault("documents of Nitro show neither TCB versions nor migration: minimum_tcb and allow_migration can't be judged")
	}
	if f.MaxVMPL < 0 || f.MaxVMPL > 3 {
		fault("max_vmpl: %d, want 0 to 3", f.MaxVMPL)
	}
	for product, parts := range f.MinimumTCB {
		if m.minimum[product], err = parseMinimum(k, parts); err != nil {
			fault("minimum_tcb.%s: %w", clip(product), err)
		}
	}
	if len(f.Profiles) > maxProfiles {
		fault("profiles: %d, want at most %d", len(f.Profiles), maxProfiles)
	}
	for i, p := range f.Profiles {
		if err := p.check(k); err != nil {
			fault("profiles[%d]: %w", i, err)
		}
		if slices.ContainsFunc(m.profiles, func(q machineProfile) bool { return q.name == p.Name }) {
			fault("profiles[%d]: a second profile %q", i, clip(p.Name))
		}
		m.profiles = append(m.profiles, machineProfile{p.Name, p.Values})
	}
	return m, errors.Join(faults...)
}

// parseMinimum demands a number for every part: one that is left out would be unknown, and look like fine.
func parseMinimum(k Kind, parts map[string]svn) (map[string][]int, error) {
	out := map[string][]int{}
	for name, want := range tcbParts(k) {
		got, ok := parts[name]
		if !ok || len(got) != want || slices.ContainsFunc(got, func(n int) bool { return n < 0 || n > 0xffff }) {
			return nil, fmt.Errorf("%s: want %d numbers from 0 to 65535", name, want)
		}
		out[name] = got
	}
	for name := range parts {
		if _, known := out[name]; !known {
			return nil, fmt.Errorf("unknown part %q", clip(name))
		}
	}
	return out, nil
}

// check demands that a profile names at least what the image is made of: with less, any image would match it.
func (p machineProfileFile) check(k Kind) error {
	if p.Name == "" {
		return errors.New("a profile needs a name")
	}
	sizes := measuredSizes(k)
	for name, values := range p.Values {
		size, known := sizes[name]
		if !known {
			return fmt.Errorf("%q is nothing that evidence of kind %s shows", clip(name), k)
		}
		if len(values) == 0 || len(values) > maxValues {
			return fmt.Errorf("%s: %d values, want 1 to %d", name, len(values), maxValues)
		}
		for _, v := range values {
			if raw, err := hex.DecodeString(v); err != nil || len(raw) != size || strings.ToLower(v) != v {
				return fmt.Errorf("%s: %q is not %d bytes in lower-case hexadecimal", name, clip(v), size)
			}
		}
	}
	needed, _ := imageParts(k)
	for _, name := range slices.Sorted(maps.Keys(needed)) {
		if len(p.Values[name]) == 0 {
			return fmt.Errorf("it has to name %s", name)
		}
	}
	return nil
}

func (p machineProfile) matches(measured []Named) bool {
	for name, allowed := range p.values {
		value, shown := lookUp(measured, name)
		if !shown || !slices.Contains(allowed, value) {
			return false
		}
	}
	return true
}

// Anchored gives d the roots that may vouch for its evidence; of kinds that are not confidential it returns d as
// it is. Without roots in the reference values nothing can vouch for it.
func (r References) Anchored(d Device) Device {
	if m, ok := r.machines[d.Kind]; ok {
		d.Roots, d.Intermediates = slices.Clone(m.roots), slices.Clone(m.intermediates)
	}
	return d
}

// Accepts says whether the reference values name a root for confidential machines of kind k.
func (r References) Accepts(k Kind) bool { return len(r.machines[k].roots) > 0 }
