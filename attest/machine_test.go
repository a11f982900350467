package attest

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func hexOf(n byte, size int) string { return hex.EncodeToString(bytes.Repeat([]byte{n}, size)) }

const machinesYAML = `version: "1"
source: "test"
valid_from: 2026-01-01T00:00:00Z
valid_until: 2027-01-01T00:00:00Z
`

func snpYAML() string {
	return machinesYAML + `sev_snp:
  minimum_tcb:
    Milan: {boot_loader: 3, tee: 0, snp: [8], microcode: 115}
  profiles:
    - name: "web"
      values:
        measurement: ["` + hexOf(1, 48) + `"]
        host_data: ["` + hexOf(2, 32) + `"]
`
}

func tdxYAML() string {
	return machinesYAML + `tdx:
  minimum_tcb:
    50806f000000:
      tee_tcb_svn: [3, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
      cpu_svn: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
      pce_svn: 11
      qe_isv_svn: 4
  profiles:
    - name: "web"
      values:
        mrtd: ["` + hexOf(1, 48) + `"]
`
}

func nitroYAML() string {
	return machinesYAML + `nitro:
  profiles:
    - name: "web"
      values:
        pcr0: ["` + hexOf(1, 48) + `"]
        pcr1: ["` + hexOf(1, 48) + `"]
        pcr2: ["` + hexOf(1, 48) + `"]
`
}

func machineRefs(t testing.TB, text string) References {
	t.Helper()
	refs, err := ParseReferences([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return refs
}

// machineClaims are those of a machine of kind k that is as it should be, enrolled on its platform.
func machineClaims(t testing.TB, k Kind) Claims {
	t.Helper()
	c := Claims{Kind: k, Binding: Binding{Principal: "spiffe://a/b", InstanceKey: []byte("instance")}}
	c.Machine = &Machine{Product: "Milan", Endorser: "VCEK", Debug: False, Migratable: False, Encrypted: True, TCB: []SVN{
		{"boot_loader", []int{3}}, {"tee", []int{0}}, {"snp", []int{8}}, {"microcode", []int{115}},
	}}
	switch k {
	case KindNitro:
		c.Measured = []Named{{"pcr0", hexOf(1, 48)}, {"pcr1", hexOf(1, 48)}, {"pcr2", hexOf(1, 48)}}
		c.Machine = &Machine{Debug: False, Endorser: "nitro", Platform: "i-1-enc1", TCB: []SVN{}}
	case KindSEVSNP:
		c.Measured = []Named{{ValueChipID, hexOf(9, 64)}, {"host_data", hexOf(2, 32)}, {ValueMeasurement, hexOf(1, 48)}}
	case KindTDX:
		c.Measured = []Named{{ValueMRTD, hexOf(1, 48)}, {ValuePPID, hexOf(9, 16)}}
		c.Machine.Product, c.Machine.Hardened = "50806f000000", True
		c.Machine.TCB = []SVN{{"tee_tcb_svn", []int{3, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}, {"cpu_svn", make([]int, 16)}, {"pce_svn", []int{11}}, {"qe_isv_svn", []int{4}}}
	}
	image, err := NewImage(k, c.Measured, true)
	if err != nil {
		t.Fatal(err)
	}
	if c.Device, err = image.Enrol(k); err != nil {
		t.Fatal(err)
	}
	c.Device.EnrolledAt = now
	return c
}

func TestAppraiseMachines(t *testing.T) {
	yaml := map[Kind]string{KindNitro: nitroYAML(), KindSEVSNP: snpYAML(), KindTDX: tdxYAML()}
	for _, c := range []struct {
		name   string
		kind   Kind
		change func(*Claims)
		edit   func(string) string
		status Tier
		score  int
		reason string
	}{
		{"good", KindSEVSNP, nil, nil, Affirming, 96, "TCB of Milan at least as demanded"},
		{"good", KindTDX, nil, nil, Affirming, 96, "TCB of 50806f000000 at least as demanded"},
		{"good", KindNitro, nil, nil, Affirming, 91, "AWS shows no version"},
		{"on any platform", KindSEVSNP, func(c *Claims) { c.Device.Image = c.Device.Image[1:] }, nil, Affirming, 94, "on any machine"},
		{"old microcode", KindSEVSNP, func(c *Claims) { c.Machine.TCB[3].Values[0]-- }, nil, Contraindicated, 0, "microcode is 114, must be at least 115"},
		{"a part is not shown", KindSEVSNP, func(c *Claims) { c.Machine.TCB = c.Machine.TCB[:3] }, nil, Contraindicated, 0, "not show all parts"},
		{"no minimum for the product", KindSEVSNP, func(c *Claims) { c.Machine.Product = "Genoa" }, nil, Warning, 79, "up to date is unknown"},
		{"no minimum for the product", KindTDX, func(c *Claims) { c.Machine.Product = "00a06d080000" }, nil, Warning, 79, "up to date is unknown"},
		{"old module", KindTDX, func(c *Claims) { c.Machine.TCB[0].Values[0] = 2 }, nil, Contraindicated, 0, "tee_tcb_svn is 2 0 5"},
		{"other host data", KindSEVSNP, func(c *Claims) { c.Measured[1].Value = hexOf(3, 32) }, nil, Contraindicated, 0, "none of 1 reference profiles"},
		{"no profiles", KindNitro, nil, func(s string) string { return strings.Split(s, "  profiles")[0] + "  profiles: []\n" }, Warning, 80, "no reference profiles"},
		{"debug", KindSEVSNP, func(c *Claims) { c.Machine.Debug = True }, nil, Contraindicated, 0, "not known to be off"},
		{"debug unknown", KindTDX, func(c *Claims) { c.Machine.Debug = Unknown }, nil, Contraindicated, 0, "not known to be off"},
		{"migratable", KindTDX, func(c *Claims) { c.Machine.Migratable = True }, nil, Contraindicated, 0, "may be migrated"},
		{"migratable unknown", KindSEVSNP, func(c *Claims) { c.Machine.Migratable = Unknown }, nil, Contraindicated, 0, "migratable is unknown"},
		{"migration tolerated", KindTDX, func(c *Claims) { c.Machine.Migratable = True }, func(s string) string { return s + "  allow_migration: true\n" }, Warning, 89, "may be migrated"},
		{"asked for at VMPL 2", KindSEVSNP, func(c *Claims) { c.Machine.VMPL = 2 }, nil, Contraindicated, 0, "VMPL 2, at most 0"},
		{"VMPL 2 accepted", KindSEVSNP, func(c *Claims) { c.Machine.VMPL = 2 }, func(s string) string { return s + "  max_vmpl: 2\n" }, Affirming, 96, "no migration"},
		{"page faults", KindTDX, func(c *Claims) { c.Machine.Hardened = False }, nil, Warning, 89, "SEPT_VE_DISABLE is false"},
		{"profile of the device", KindNitro, func(c *Claims) { c.Device.Profile = "lab" }, nil, Contraindicated, 0, "match none"},
	} {
		t.Run(string(c.kind)+" "+c.name, func(t *testing.T) {
			claims, text := machineClaims(t, c.kind), yaml[c.kind]
			if c.change != nil {
				c.change(&claims)
			}
			if c.edit != nil {
				text = c.edit(text)
			}
			r := Appraise(claims, machineRefs(t, text), now)
			if r.Status != c.status || r.TrustScore != c.score || r.HardwareBound() != (c.status == Affirming) {
				t.Errorf("%s, score %d, bound %v, want %s, %d: %+v", r.Status, r.TrustScore, r.HardwareBound(), c.status, c.score, r.Reasons)
			}
			if !slices.ContainsFunc(r.Reasons, func(x Reason) bool { return strings.Contains(x.Text, c.reason) }) {
				t.Errorf("no reason contains %q: %+v", c.reason, r.Reasons)
			}
			if r.Keys.InstanceInHardware || r.Keys.RecipientInHardware || !r.Keys.Enclosed {
				t.Errorf("keys: %+v", r.Keys)
			}
			encoded, err := r.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := DecodeResult(encoded); err != nil || cmp.Diff(r.Machine, got.Machine) != "" || cmp.Diff(r.Measured, got.Measured) != "" || got.Keys != r.Keys {
				t.Errorf("%v: %+v", err, got)
			}
		})
	}
}

// A result of a TPM is written as before there were machines, and none of one kind passes for the other.
func TestMachineResults(t *testing.T) {
	encoded, err := Appraise(testClaims(), testRefs(t), now).Encode()
	if err != nil || bytes.Contains(encoded, []byte("machine")) || bytes.Contains(encoded, []byte("enclosed")) {
		t.Errorf("%s, %v", encoded, err)
	}
	r := Appraise(testClaims(), testRefs(t), now)
	r.Machine = &Machine{}
	if _, err := r.Encode(); !errors.Is(err, ErrMalformed) {
		t.Errorf("a TPM as a machine: %v", err)
	}
	r = Appraise(machineClaims(t, KindNitro), machineRefs(t, nitroYAML()), now)
	r.Machine = nil
	if _, err := r.Encode(); !errors.Is(err, ErrMalformed) {
		t.Errorf("a machine as a TPM: %v", err)
	}
}

func TestImages(t *testing.T) {
	for _, k := range Kinds() {
		if !k.Confidential() {
			continue
		}
		d := machineClaims(t, k).Device
		encoded, err := d.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeDevice(encoded); err != nil || got.ID != d.ID || cmp.Diff(d.Image, got.Image) != "" {
			t.Errorf("%s: %v: %+v", k, err, got)
		}
		image, err := ParseImage(k, d.Image.EnrolRequest())
		if err != nil || cmp.Diff(image, d.Image) != "" {
			t.Errorf("%s: %v", k, err)
		}
		if id, err := ParseDeviceID(d.ID.String()); err != nil || id.Kind() != k {
			t.Errorf("%s: %v, %v", k, id, err)
		}
		for name, change := range map[string]func(*Device){
			"without an image":     func(d *Device) { d.Image = nil },
			"another value":        func(d *Device) { d.Image[0].Value = hexOf(7, len(d.Image[0].Value)/2) },
			"zeros":                func(d *Device) { d.Image[0].Value = hexOf(0, len(d.Image[0].Value)/2) },
			"upper case":           func(d *Device) { d.Image[0].Value = strings.Repeat("A", len(d.Image[0].Value)) },
			"a value of no image":  func(d *Device) { d.Image[0].Name = "pcr17" },
			"a value twice":        func(d *Device) { d.Image = append(d.Image, d.Image[len(d.Image)-1]) },
			"the image of a TPM":   func(d *Device) { d.Kind, d.AKPublic = KindTPM2, []byte("ak") },
			"the id of another":    func(d *Device) { d.IdentityHash = hexOf(1, 32) },
			"a value is left out":  func(d *Device) { d.Image = d.Image[:len(d.Image)-1] },
			"values in disorder":   func(d *Device) { slices.Reverse(d.Image) },
			"short of some digits": func(d *Device) { d.Image[0].Value = d.Image[0].Value[2:] },
		} {
			odd := d
			odd.Image = slices.Clone(d.Image)
			change(&odd)
			if _, err := odd.Encode(); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s, %s: %v", k, name, err)
			}
		}
	}
	if _, err := NewImage(KindSEVSNP, []Named{{ValueMeasurement, hexOf(1, 48)}}, true); err == nil {
		t.Error("pinned an image to a platform that is not known")
	}
}

func TestMachineReferencesRefused(t *testing.T) {
	for name, c := range map[string]struct{ text, because string }{
		"a part of the TCB is left out": {strings.Replace(snpYAML(), ", microcode: 115", "", 1), "microcode: want 1 numbers"},
		"an unknown part":               {strings.Replace(snpYAML(), "tee: 0", "tee: 0, sgx: 1", 1), "unknown part"},
		"too few numbers":               {strings.Replace(tdxYAML(), "[3, 0, 5, ", "[3, 5, ", 1), "want 16 numbers"},
		"a profile without the image":   {strings.Replace(snpYAML(), "measurement", "id_key_digest", 1), "has to name measurement"},
		"a value of another kind":       {strings.Replace(snpYAML(), "host_data", "rtmr1", 1), "is nothing that evidence"},
		"a short value":                 {strings.Replace(snpYAML(), hexOf(2, 32), hexOf(2, 31), 1), "is not 32 bytes"},
		"TCB of Nitro":                  {nitroYAML() + "  minimum_tcb: {x: {}}\n", "neither TCB versions"},
		"VMPL of TDX":                   {tdxYAML() + "  max_vmpl: 1\n", "belong to sev_snp only"},
		"VMPL 4":                        {snpYAML() + "  max_vmpl: 4\n", "want 0 to 3"},
		"roots that are none":           {snpYAML() + "  roots: text\n", "no PEM block"},
		"an unknown key":                {snpYAML() + "  debug: true\n", "unknown key"},
		"two profiles of a name": {snpYAML() + `    - name: "web"
      values: {measurement: ["` + hexOf(1, 48) + `"]}
`, "a second profile"},
	} {
		if _, err := ParseReferences([]byte(c.text)); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), c.because) {
			t.Errorf("%s: %v, want %q", name, err, c.because)
		}
	}
}

// The 64 bytes of a report are another digest than that of a TPM's quote, and follow every field.
func TestReportData(t *testing.T) {
	b := Binding{Principal: "ab", InstanceKey: []byte("c")}
	data, digest := b.ReportData(), b.Digest()
	if bytes.Equal(data[:32], digest[:]) {
		t.Error("not separated from the digest of the binding")
	}
	b.Principal = "ac"
	if data == b.ReportData() {
		t.Error("the same for another principal")
	}
}

func FuzzParseImage(f *testing.F) {
	for _, k := range []Kind{KindNitro, KindSEVSNP, KindTDX} {
		f.Add(machineClaims(f, k).Device.Image.EnrolRequest())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, k := range Kinds() {
			if image, err := ParseImage(k, b); err == nil && !bytes.Equal(image.EnrolRequest(), b) {
				t.Errorf("a second form: %x", b)
			}
		}
	})
}
