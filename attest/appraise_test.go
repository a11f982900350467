package attest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var (
	now  = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	good = Features{MeasuredBoot: True, Separators: True, SecureBoot: True, FirmwareDebugger: False}
)

func pcrValue(p int) [32]byte { return sha256.Sum256([]byte{byte(p)}) }

func hexPCR(p int) string {
	v := pcrValue(p)
	return hex.EncodeToString(v[:])
}

// testYAML allow-lists testDevice and wants secure boot.
func testYAML() string {
	return `version: "1"
source: "test"
valid_from: 2026-01-01T00:00:00Z
valid_until: 2027-01-01T00:00:00Z
development:
  accept: true
tpm2:
  ek_hashes: ["` + testDevice().IdentityHash + `"]
  features:
    secure_boot: true
  minimum_firmware:
    "*": "0x20"
  profiles:
    - name: "fleet"
      pcrs:
        0: ["` + hexPCR(99) + `", "` + hexPCR(0) + `"]
        7: ["` + hexPCR(7) + `"]
    - name: "lab"
      pcrs:
        4: ["` + hexPCR(44) + `"]
`
}

func testRefs(t testing.TB) References {
	t.Helper()
	refs, err := ParseReferences([]byte(testYAML()))
	if err != nil {
		t.Fatal(err)
	}
	return refs
}

func testClaims() Claims {
	c := Claims{
		Kind: KindTPM2, Device: testDevice(), Firmware: 0x20, Features: good, PCRs: map[int][32]byte{},
		Binding:       Binding{Principal: "spiffe://a/b", InstanceKey: []byte("instance"), RecipientKey: []byte("recipient")},
		InstanceInTPM: true, RecipientInTPM: true,
	}
	for p := range 8 {
		c.PCRs[p] = pcrValue(p)
	}
	return c
}

func TestAppraise(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Claims)
		status Tier
		score  int
		reason string
	}{
		"good":                     {func(*Claims) {}, Affirming, 95, "allow-listed"},
		"no recipient key":         {func(c *Claims) { c.RecipientInTPM = false }, Affirming, 94, "not certified"},
		"instance key in software": {func(c *Claims) { c.InstanceInTPM = false }, Warning, 88, "not certified to live in the TPM"},
		"old firmware":             {func(c *Claims) { c.Firmware = 0x1f }, Contraindicated, 0, "older than"},
		"rolled back":              {func(c *Claims) { c.RolledBack = true }, Contraindicated, 0, "rolled back"},
		"not enrolled":             {func(c *Claims) { c.Device.ID = DeviceID{} }, Contraindicated, 0, "no enrolled device"},
		"root removed":             {func(c *Claims) { c.Device.Anchor = strings.Repeat("0", 64) }, Contraindicated, 0, "vouches"},
		"not on the list":          {func(c *Claims) { c.Device.IdentityHash = strings.Repeat("0", 64) }, Contraindicated, 0, "vouches"},
		"secure boot off":          {func(c *Claims) { c.Features.SecureBoot = False }, Contraindicated, 0, "secure_boot is false, must be true"},
		"secure boot unknown":      {func(c *Claims) { c.Features.SecureBoot = Unknown }, Contraindicated, 0, "secure_boot is unknown, must be true"},
		"no separators":            {func(c *Claims) { c.Features.Separators = False }, Warning, 88, "did not close"},
		"debugger":                 {func(c *Claims) { c.Features.FirmwareDebugger = True }, Warning, 88, "debugger"},
		"debugger unknown":         {func(c *Claims) { c.Features.FirmwareDebugger = Unknown }, Warning, 85, "does not show"},
		"no log":                   {func(c *Claims) { c.Features.MeasuredBoot = Unknown }, Contraindicated, 0, "no event log"},
		"PCR not quoted":           {func(c *Claims) { delete(c.PCRs, 3) }, Contraindicated, 0, "PCR 3 was not quoted"},
		"PCR zero":                 {func(c *Claims) { c.PCRs[5] = [32]byte{} }, Contraindicated, 0, "PCR 5 is untouched"},
		"PCR 0 with locality 3":    {func(c *Claims) { c.PCRs[0] = [32]byte{31: 3} }, Contraindicated, 0, "PCR 0 is untouched"},
		"PCR ones":                 {func(c *Claims) { c.PCRs[5] = [32]byte([]byte(strings.Repeat("\xff", 32))) }, Contraindicated, 0, "PCR 5 is untouched"},
		"other boot":               {func(c *Claims) { c.PCRs[7] = pcrValue(8) }, Contraindicated, 0, "none of 2"},
		"second value":             {func(c *Claims) { c.PCRs[0] = pcrValue(99) }, Affirming, 95, `"fleet"`},
		"second profile":           {func(c *Claims) { c.PCRs[7], c.PCRs[4] = pcrValue(8), pcrValue(44) }, Affirming, 95, `"lab"`},
		"profile of the device":    {func(c *Claims) { c.Device.Profile = "lab" }, Contraindicated, 0, `do not match profile "lab"`},
	} {
		t.Run(name, func(t *testing.T) {
			claims := testClaims()
			c.change(&claims)
			r := Appraise(claims, testRefs(t), now)
			if r.Status != c.status || r.TrustScore != c.score {
				t.Errorf("%s, score %d, want %s, %d: %+v", r.Status, r.TrustScore, c.status, c.score, r.Reasons)
			}
			found := false
			for _, reason := range r.Reasons {
				found = found || strings.Contains(reason.Text, c.reason)
			}
			if !found {
				t.Errorf("no reason contains %q: %+v", c.reason, r.Reasons)
			}
		})
	}
}

func TestReferencesOutOfDate(t *testing.T) {
	for _, at := range []time.Time{now.AddDate(1, 0, 0), now.AddDate(-1, 0, 0)} {
		if r := Appraise(testClaims(), testRefs(t), at); r.Status != None || r.TrustScore != 0 || r.HardwareBound() {
			t.Errorf("at %s: %s, %d", at, r.Status, r.TrustScore)
		}
	}
	if r := Appraise(testClaims(), References{}, now); r.Status != None {
		t.Errorf("without reference values: %s", r.Status)
	}
}

// Less known is never better: making any feature unknown lowers neither the alarm nor raises the score.
func TestUnknownIsNeverBetter(t *testing.T) {
	rank := map[Tier]int{Affirming: 0, Warning: 1, None: 2, Contraindicated: 3}
	refs := testRefs(t)
	tri := rapid.SampledFrom([]Tri{True, False, Unknown})
	rapid.Check(t, func(t *rapid.T) {
		shown := testClaims()
		shown.Features = Features{tri.Draw(t, "measured"), tri.Draw(t, "separators"), tri.Draw(t, "secure"), tri.Draw(t, "debugger")}
		withheld := shown
		switch rapid.IntRange(0, 4).Draw(t, "withheld") {
		case 0:
			withheld.Features = Features{}
		case 1:
			withheld.Features.SecureBoot = Unknown
		case 2:
			withheld.Features.Separators = Unknown
		case 3:
			withheld.Features.FirmwareDebugger = Unknown
		case 4:
			withheld.InstanceInTPM = false
		}
		a, b := Appraise(shown, refs, now), Appraise(withheld, refs, now)
		if rank[b.Status] < rank[a.Status] || b.TrustScore > a.TrustScore {
			t.Fatalf("withheld %+v: %s %d, shown %+v: %s %d", withheld.Features, b.Status, b.TrustScore, shown.Features, a.Status, a.TrustScore)
		}
	})
}

func TestDevelopmentNeverAffirms(t *testing.T) {
	c := testClaims()
	c.Kind = KindDevelopment
	if r := Appraise(c, testRefs(t), now); r.Status != Warning || r.HardwareBound() {
		t.Errorf("%s, hardware bound %v", r.Status, r.HardwareBound())
	}
	refs, err := ParseReferences([]byte(strings.Replace(testYAML(), "accept: true", "accept: false", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if r := Appraise(c, refs, now); r.Status != Contraindicated {
		t.Errorf("not accepted: %s", r.Status)
	}
}

func TestTiers(t *testing.T) {
	for v, want := range map[TrustValue]Tier{
		-128: Contraindicated, -97: Contraindicated, -96: Warning, -33: Warning, -32: Affirming, -2: Affirming, -1: None, 0: None, 1: None,
		2: Affirming, 31: Affirming, 32: Warning, 95: Warning, 96: Contraindicated, 127: Contraindicated,
	} {
		if got := v.Tier(); got != want {
			t.Errorf("%d: %s, want %s", v, got, want)
		}
	}
}

func TestResultEncoding(t *testing.T) {
	r := Appraise(testClaims(), testRefs(t), now)
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeResult(b); err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for name, bad := range map[string]string{
		"better score":  strings.Replace(text, `"trust_score":95`, `"trust_score":100`, 1),
		"better status": strings.Replace(text, `"status":"affirming"`, `"status":"none"`, 1),
		"worse vector":  strings.Replace(text, `"hardware":3`, `"hardware":96`, 1),
		"spaces":        strings.Replace(text, ",", ", ", 1),
		"unknown field": strings.Replace(text, "{", `{"x":1,`, 1),
		"other kind":    strings.Replace(text, `"kind":"tpm2"`, `"kind":"development"`, 1),
		"number as tri": strings.Replace(text, `"secure_boot":"true"`, `"secure_boot":true`, 1),
		"tri of yes":    strings.Replace(text, `"secure_boot":"true"`, `"secure_boot":"yes"`, 1),
		"no principal":  strings.Replace(text, `"principal":"spiffe://a/b"`, `"principal":""`, 1),
		"other version": strings.Replace(text, `"version":1`, `"version":2`, 1),
		"PCRs twice":    strings.Replace(text, `{"pcr":1,`, `{"pcr":0,`, 1),
	} {
		if bad == text {
			t.Fatalf("%s: nothing changed", name)
		}
		if _, err := DecodeResult([]byte(bad)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if r.Age(now.Add(time.Minute)) != time.Minute || r.Age(now.Add(-time.Hour)) != 0 {
		t.Error("age")
	}
}

func TestReferencesRefused(t *testing.T) {
	for name, c := range map[string]struct{ yaml, because string }{
		"unknown key":     {testYAML() + "surprise: 1\n", "line 21: unknown key surprise"},
		"key twice":       {testYAML() + "version: \"2\"\n", "line 21"},
		"feature":         {strings.Replace(testYAML(), "secure_boot", "secure-boot", 1), "unknown feature"},
		"PCR 24":          {strings.Replace(testYAML(), "        7: [", "        24: [", 1), "PCR 24"},
		"upper-case hash": {strings.Replace(testYAML(), hexPCR(7), strings.ToUpper(hexPCR(7)), 1), "lower-case"},
		"window":          {strings.Replace(testYAML(), "2027", "2025", 1), "in this order"},
		"no source":       {strings.Replace(testYAML(), "\"test\"", "\"\"", 1), "source"},
		"firmware":        {strings.Replace(testYAML(), "0x20", "new", 1), "hexadecimal version"},
		"profile twice":   {strings.Replace(testYAML(), `"lab"`, `"fleet"`, 1), "a second profile"},
		"empty profile":   {testYAML() + "    - name: \"none\"\n", "at least one PCR"},
		"event log":       {testYAML() + "  event_log: maybe\n", "required or optional"},
		"roots":           {testYAML() + "  ek_roots: \"certificate\"\n", "no PEM block"},
		"documents":       {testYAML() + "---\nversion: \"2\"\n", "more than one"},
		"alias":           {"version: &a \"1\"\nsource: *a\n", "line 2: aliases"},
		"not YAML":        {"\t{", "reference values"},
		"empty":           {"", "reference values"},
		"huge":            {strings.Repeat("#", maxReferences+1), "at most"},
	} {
		_, err := ParseReferences([]byte(c.yaml))
		if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), c.because) {
			t.Errorf("%s: %v, want %q", name, err, c.because)
		}
	}
	both := strings.Replace(strings.Replace(testYAML(), "0x20", "new", 1), "\"test\"", "\"\"", 1)
	if _, err := ParseReferences([]byte(both)); !strings.Contains(err.Error(), "hexadecimal version") || !strings.Contains(err.Error(), "source") {
		t.Errorf("two faults, one told: %v", err)
	}
}

func FuzzReferences(f *testing.F) {
	f.Add([]byte(testYAML()))
	f.Add([]byte("version: 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := ParseReferences(b); err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("error of another kind: %v", err)
		}
	})
}

func FuzzRecords(f *testing.F) {
	d, err := testDevice().Encode()
	if err != nil {
		f.Fatal(err)
	}
	r, err := Appraise(testClaims(), testRefs(f), now).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(d)
	f.Add(r)
	f.Add([]byte(testDevice().ID.String()))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := DecodeDevice(b); err == nil {
			if again, err := d.Encode(); err != nil || string(again) != string(b) {
				t.Errorf("record: %v", err)
			}
		}
		if r, err := DecodeResult(b); err == nil {
			if again, err := r.Encode(); err != nil || string(again) != string(b) {
				t.Errorf("result: %v", err)
			}
		}
		if id, err := ParseDeviceID(string(b)); err == nil && id.String() != string(b) {
			t.Error("id has two spellings")
		}
	})
}

func FuzzUnpack(f *testing.F) {
	f.Add(Pack("label", []byte("a"), PackList([][]byte{[]byte("b"), nil})))
	f.Fuzz(func(t *testing.T, b []byte) {
		fields, err := Unpack("label", b, 10, 100)
		if err != nil {
			return
		}
		if string(Pack("label", fields...)) != string(b) {
			t.Error("two encodings")
		}
		if items, err := UnpackList(fields[1], 4, 20); err == nil && string(PackList(items)) != string(fields[1]) {
			t.Error("two encodings of a list")
		}
	})
}
