package xtest

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/attest"
)

// A Machine is a confidential machine that a test makes up, with an authority of its own in place of the maker's.
type Machine struct {
	Kind      attest.Kind
	Root      *x509.Certificate
	Values    map[string][]byte // what the image is made of, the platform included
	Evidence  func(t testing.TB, b attest.Binding) []byte
	Forgeries []MachineForgery
	// Old is authentic evidence of a TCB below the minimum; nil where evidence shows none.
	Old func(t testing.TB, b attest.Binding) []byte
	// OtherImage is authentic evidence of the enrolled image that no profile matches.
	OtherImage func(t testing.TB, b attest.Binding) []byte
	// Open is a Nitro document whose outermost map has an open length; nil of the other kinds.
	Open func(t testing.TB, b attest.Binding) []byte

	Image  attest.Image // pinned to the platform, where there is one
	Loose  attest.Image // on any platform
	Device attest.Device
}

// A MachineForgery is evidence that must be refused as unauthentic.
type MachineForgery struct {
	Name    string
	Because string // part of the reason that a verifier gives
	Forge   func(t testing.TB, b attest.Binding) []byte
}

// Machines makes one machine of each confidential kind.
func Machines(t testing.TB) []*Machine {
	t.Helper()
	return []*Machine{nitroMachine(t), snpMachine(t), tdxMachine(t)}
}

// MachineOf makes a machine of kind k.
func MachineOf(t testing.TB, k attest.Kind) *Machine {
	t.Helper()
	switch k {
	case attest.KindNitro:
		return nitroMachine(t)
	case attest.KindSEVSNP:
		return snpMachine(t)
	}
	return tdxMachine(t)
}

// commonForgeries are those that need no knowledge of the form.
func commonForgeries(m *Machine) []MachineForgery {
	spoil := func(change func(ev []byte) []byte) func(testing.TB, attest.Binding) []byte {
		return func(t testing.TB, b attest.Binding) []byte { return change(bytes.Clone(m.Evidence(t, b))) }
	}
	swap := func(change func(*attest.Binding)) func(testing.TB, attest.Binding) []byte {
		return func(t testing.TB, b attest.Binding) []byte {
			change(&b)
			return m.Evidence(t, b)
		}
	}
	return []MachineForgery{
		{"A12 another nonce", "is not that of this challenge", swap(func(b *attest.Binding) { b.Nonce[0] ^= 1 })},
		{"A44 another channel", "is not that of this challenge", swap(func(b *attest.Binding) { b.Channel[0] ^= 1 })},
		{"A44 another principal", "is not that of this challenge", swap(func(b *attest.Binding) { b.Principal += "x" })},
		{"A44 another recipient key", "is not that of this challenge", swap(func(b *attest.Binding) { b.RecipientKey = append(bytes.Clone(b.RecipientKey), 1) })},
		{"A14 empty", "", spoil(func([]byte) []byte { return nil })},
		{"A14 cut in half", "", spoil(func(ev []byte) []byte { return ev[:len(ev)/2] })},
		{"A14 cut by one", "", spoil(func(ev []byte) []byte { return ev[:len(ev)-1] })},
		{"A14 tail", "", spoil(func(ev []byte) []byte { return append(ev, 1) })},
		{"A14 oversized", "bytes", spoil(func(ev []byte) []byte { return append(ev, make([]byte, 256<<10)...) })},
	}
}

// finish derives what follows from Values.
func (m *Machine) finish(t testing.TB) {
	t.Helper()
	var values []attest.Named
	for name, v := range m.Values {
		values = append(values, attest.Named{Name: name, Value: hex.EncodeToString(v)})
	}
	var err error
	if m.Image, err = attest.NewImage(m.Kind, values, true); err != nil {
		t.Fatal(err)
	}
	if m.Loose, err = attest.NewImage(m.Kind, values, false); err != nil {
		t.Fatal(err)
	}
	m.Device = m.Enrolled(t, m.Image)
}

// Enrolled is the record of an image, anchored in the root of the machine.
func (m *Machine) Enrolled(t testing.TB, image attest.Image) attest.Device {
	t.Helper()
	d, err := image.Enrol(m.Kind)
	if err != nil {
		t.Fatal(err)
	}
	d.EnrolledAt, d.Roots = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), []*x509.Certificate{m.Root}
	return d
}

// MachineYAML are reference values that accept machines. edit may change the text of a kind's part.
func MachineYAML(machines []*Machine, edit func(k attest.Kind, part string) string) []byte {
	var out strings.Builder
	fmt.Fprintf(&out, "version: machines-1\nsource: test\nvalid_from: %s\nvalid_until: %s\n",
		time.Now().Add(-time.Hour).UTC().Format(time.RFC3339), time.Now().Add(24*time.Hour).UTC().Format(time.RFC3339))
	for _, m := range machines {
		part := m.part()
		if edit != nil {
			part = edit(m.Kind, part)
		}
		out.WriteString(part)
	}
	return []byte(out.String())
}

func (m *Machine) part() string {
	var out strings.Builder
	key := strings.ReplaceAll(string(m.Kind), "-", "_")
	fmt.Fprintf(&out, "%s:\n  roots: |\n", key)
	for line := range strings.Lines(string(PEM(m.Root))) {
		out.WriteString("    " + line)
	}
	out.WriteString("  profiles:\n    - name: good\n      values:\n")
	for _, v := range m.Loose {
		fmt.Fprintf(&out, "        %s: [\"%s\"]\n", v.Name, v.Value)
	}
	switch m.Kind {
	case attest.KindNitro:
		fmt.Fprintf(&out, "        pcr4: [\"%x\"]\n", measuredBytes(4, 48))
	case attest.KindSEVSNP:
		fmt.Fprintf(&out, "        host_data: [\"%x\"]\n", measuredBytes(1, 32))
		out.WriteString("  minimum_tcb:\n    Milan: {boot_loader: 3, tee: 0, snp: 8, microcode: 115}\n")
	case attest.KindTDX:
		fmt.Fprintf(&out, "        rtmr2: [\"%x\"]\n", measuredBytes(2, 48))
		out.WriteString("  minimum_tcb:\n    50806f000000:\n      tee_tcb_svn: [3, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]\n" +
			"      cpu_svn: [5, 5, 2, 2, 3, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0]\n      pce_svn: 11\n      qe_isv_svn: 4\n")
	}
	return out.String()
}
