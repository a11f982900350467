package attest

import (
	"fmt"
	"slices"
	"strings"
)

// machine judges a confidential machine. What its evidence can't show is no claim: which files it reads, and for
// Nitro whether its memory is encrypted.
func (a *appraisal) machine() {
	refs := a.refs.machines[a.claims.Kind]
	a.image()
	a.platform(refs)
	a.measured(refs)
	a.started(refs)
	a.memory()
}

func (a *appraisal) image() {
	field := &a.result.Vector.InstanceIdentity
	switch {
	case a.claims.Device.ID.IsZero():
		a.set("instance-identity", field, ValueUntrusted, "no enrolled device")
	case a.claims.Device.Shared():
		a.set("instance-identity", field, ValueApprovedWeak, "the enrolled image, on any machine")
	default:
		a.set("instance-identity", field, ValueApproved, "the enrolled image on its machine")
	}
}

// platform compares security versions. Without a minimum for this product nobody said what is good enough: that
// is unknown, and not fine.
func (a *appraisal) platform(refs machines) {
	field := &a.result.Vector.Hardware
	m := a.claims.Machine
	if a.claims.Kind == KindNitro {
		a.set("hardware", field, ValueApprovedWeak, "signed below a trusted root; AWS shows no version of what is below the enclave")
		return
	}
	minimum, ok := refs.minimum[m.Product]
	if !ok {
		a.set("hardware", field, ValueWithheld, "the reference values name no minimum_tcb for %q: whether its TCB is up to date is unknown", clip(m.Product))
		return
	}
	for _, part := range m.TCB {
		for i, least := range minimum[part.Name] {
			if i >= len(part.Values) || part.Values[i] < least {
				a.set("hardware", field, ValueRefused, "TCB of %s: %s is %s, must be at least %s", clip(m.Product), part.Name, numbers(part.Values), numbers(minimum[part.Name]))
				return
			}
		}
	}
	if len(m.TCB) != len(minimum) {
		a.set("hardware", field, ValueRefused, "the evidence does not show all parts of the TCB")
		return
	}
	a.set("hardware", field, ValueApproved, "signed by %s below a trusted root, TCB of %s at least as demanded", m.Endorser, clip(m.Product))
}

func (a *appraisal) measured(refs machines) {
	field := &a.result.Vector.Executables
	if len(refs.profiles) == 0 {
		a.set("executables", field, ValueUnrecognised, "there are no reference profiles to compare with")
		return
	}
	for _, p := range refs.profiles {
		if (a.claims.Device.Profile == "" || a.claims.Device.Profile == p.name) && p.matches(a.claims.Measured) {
			a.result.Profile = p.name
			a.set("executables", field, ValueApprovedWeak, "measurements match profile %q (start, not run time)", p.name)
			return
		}
	}
	a.set("executables", field, ValueRefused, "the measurements match none of %d reference profiles", len(refs.profiles))
}

func (a *appraisal) started(refs machines) {
	field := &a.result.Vector.Configuration
	m := a.claims.Machine
	switch {
	case m.Debug != False:
		a.set("configuration", field, ValueRefused, "debugging is not known to be off")
	case m.Migratable != False && a.claims.Kind != KindNitro && !refs.migration:
		a.set("configuration", field, ValueRefused, "it may be migrated to another machine (migratable is %s)", m.Migratable)
	case m.VMPL > refs.maxVMPL:
		a.set("configuration", field, ValueRefused, "the report was asked for at VMPL %d, at most %d is accepted", m.VMPL, refs.maxVMPL)
	case m.Migratable == True:
		a.set("configuration", field, ValueUnsafe, "it may be migrated to another machine")
	case a.claims.Kind == KindTDX && m.Hardened != True:
		a.set("configuration", field, ValueUnsafe, "the host may inject page faults (SEPT_VE_DISABLE is %s)", m.Hardened)
	case a.claims.Kind == KindNitro:
		a.set("configuration", field, ValueApproved, "debugging is off")
	default:
		a.set("configuration", field, ValueApproved, "debugging is off, no migration")
	}
}

// memory is about where the keys of the instance live: in the memory of the machine, no deeper.
func (a *appraisal) memory() {
	v := &a.result.Vector
	a.set("storage-opaque", &v.StorageOpaque, ValueApprovedWeak, "the instance key lives in the memory of the machine that was measured, not in a chip")
	if a.claims.Machine.Encrypted == True {
		a.set("runtime-opaque", &v.RuntimeOpaque, ValueApproved, "memory is encrypted against the host")
	}
}

func numbers(values []int) string {
	return strings.Trim(fmt.Sprint(values), "[]")
}

// checkMeasured says what is wrong with the measured values of a result.
func checkMeasured(k Kind, values []Named, m *Machine) error {
	if !k.Confidential() {
		if len(values) > 0 || m != nil {
			return fmt.Errorf("a confidential machine, with kind %s", clip(string(k)))
		}
		return nil
	}
	if m == nil || len(values) == 0 {
		return fmt.Errorf("no machine, with kind %s", clip(string(k)))
	}
	if !slices.IsSortedFunc(values, func(a, b Named) int { return strings.Compare(a.Name, b.Name) }) {
		return fmt.Errorf("measured values are not sorted by name")
	}
	return nil
}
