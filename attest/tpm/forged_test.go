package tpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tpm"
	"github.com/bulla-project/bulla/attest/tpm/evidence"
	"github.com/bulla-project/bulla/attest/tpm/swtpm"
	"github.com/bulla-project/bulla/attest/xtest"
)

// A forger holds the private half of the enrolled key, so that what is refused here is refused for what it
// says, not for its signature.

func TestForgerIsOtherwiseBelieved(t *testing.T) {
	for name, f := range map[string]*xtest.Forger{
		"P-256": xtest.NewForger(t), "RSA-2048": xtest.NewRSAForger(t, 2048),
	} {
		b, _ := xtest.NewBinding(t, workload)
		ev := f.Evidence(t, b, xtest.Quote{PCRs: xtest.GoodPCRs()}, swtpm.EventLog())
		c, err := tpm.Verifier{}.Verify(t.Context(), ev, b, f.Device(t))
		if err != nil || c.Features.SecureBoot != attest.True || c.InstanceInTPM || c.RecipientInTPM {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

func TestForgedQuotes(t *testing.T) {
	f := xtest.NewForger(t)
	good := xtest.GoodPCRs()
	without := func(p int) map[int][sha256.Size]byte {
		pcrs := xtest.GoodPCRs()
		delete(pcrs, p)
		return pcrs
	}
	for name, c := range map[string]struct {
		quote   xtest.Quote
		because string
	}{
		"not made by a TPM":     {xtest.Quote{PCRs: good, Magic: 0xff544346}, "attestation"},
		"certify for quote":     {xtest.Quote{PCRs: good, Type: tpm2.TPMSTAttestCertify}, "of type"},
		"two banks":             {xtest.Quote{PCRs: good, Banks: []tpm2.TPMAlgID{tpm2.TPMAlgSHA256, tpm2.TPMAlgSHA1}}, "2 PCR banks"},
		"no bank":               {xtest.Quote{PCRs: good, Banks: []tpm2.TPMAlgID{}}, "0 PCR banks"},
		"the SHA-1 bank":        {xtest.Quote{PCRs: good, Banks: []tpm2.TPMAlgID{tpm2.TPMAlgSHA1}}, "want SHA-256"},
		"other digest":          {xtest.Quote{PCRs: good, WrongHash: true}, "not those that were quoted"},
		"PCR 0 left out":        {xtest.Quote{PCRs: without(0)}, "leaves out PCR 0"},
		"PCR 7 left out":        {xtest.Quote{PCRs: without(7)}, "leaves out PCR 7"},
		"nothing quoted at all": {xtest.Quote{}, "leaves out PCR 0"},
	} {
		t.Run(name, func(t *testing.T) {
			b, _ := xtest.NewBinding(t, workload)
			refused(t, f.Evidence(t, b, c.quote, nil), b, f.Device(t), c.because)
		})
	}
}

// A15: a key of other attributes is never an attestation key, although it signs the same.
func TestAttestationKeyAttributes(t *testing.T) {
	b, _ := xtest.NewBinding(t, workload)
	for name, change := range map[string]func(*tpm2.TPMTPublic){
		"A15_unrestricted":      func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false },
		"may be duplicated":     func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false },
		"may change its parent": func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedParent = false },
		"made outside":          func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false },
		"decrypts too":          func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = true },
		"does not sign":         func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt = false },
		"weak name":             func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 },
		"SHA-1 signatures":      func(p *tpm2.TPMTPublic) { p.Parameters = ecdsaWith(tpm2.TPMECCNistP256, tpm2.TPMAlgSHA1) },
		"no scheme":             func(p *tpm2.TPMTPublic) { p.Parameters = evidence.RecipientTemplate().Parameters },
		"odd curve":             func(p *tpm2.TPMTPublic) { p.Parameters = ecdsaWith(tpm2.TPMECCNistP521, tpm2.TPMAlgSHA256) },
		"point off the curve": func(p *tpm2.TPMTPublic) {
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: bytes.Repeat([]byte{1}, 32)}, Y: tpm2.TPM2BECCParameter{Buffer: bytes.Repeat([]byte{2}, 32)},
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := xtest.NewForger(t)
			change(&f.Public)
			refused(t, f.Evidence(t, b, xtest.Quote{PCRs: xtest.GoodPCRs()}, nil), b, f.Device(t), "attestation key")
		})
	}
}

func ecdsaWith(curve tpm2.TPMECCCurve, hash tpm2.TPMAlgID) tpm2.TPMUPublicParms {
	return tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		CurveID: curve,
		Scheme: tpm2.TPMTECCScheme{
			Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash}),
		},
	})
}

// A14: a key is refused for its size before anything is computed with it.
func TestHugeRSAKey(t *testing.T) {
	f := xtest.NewForger(t)
	b, _ := xtest.NewBinding(t, workload)
	ev := f.Evidence(t, b, xtest.Quote{PCRs: xtest.GoodPCRs()}, nil)
	for name, c := range map[string]struct {
		modulus []byte
		bits    uint16
		because string
	}{
		"A14_6144_bits": {bytes.Repeat([]byte{0xff}, 768), 6144, "want 2048 to 4096"},
		"A14_too_large": {bytes.Repeat([]byte{0xff}, 2048), 16384, "want 1 to 1024"},
		"1024_bits":     {bytes.Repeat([]byte{0xff}, 128), 1024, "want 2048 to 4096"},
		"bits_lie":      {bytes.Repeat([]byte{0xff}, 512), 2048, "modulus of 4096 bits"},
	} {
		t.Run(name, func(t *testing.T) {
			d := f.Device(t)
			public := xtest.RSAPublic(c.modulus, c.bits)
			d.AKPublic = tpm2.Marshal(public)
			name, err := tpm2.ObjectName(&public)
			if err != nil {
				t.Fatal(err)
			}
			d.AKName = name.Buffer
			refused(t, ev, b, d, c.because)
		})
	}
}

// A16: an ECDSA-tagged signature by an RSA key crashed a well-known library.
func TestAbuseA16MixedSignature(t *testing.T) {
	rsaForger, ecForger := xtest.NewRSAForger(t, 2048), xtest.NewForger(t)
	b, _ := xtest.NewBinding(t, workload)
	q := xtest.Quote{PCRs: xtest.GoodPCRs()}
	refused(t, ecForger.Evidence(t, b, q, nil), b, rsaForger.Device(t), "scheme")
	refused(t, rsaForger.Evidence(t, b, q, nil), b, ecForger.Device(t), "scheme")
}

func TestRecordOfAnotherName(t *testing.T) {
	f := xtest.NewForger(t)
	b, _ := xtest.NewBinding(t, workload)
	ev := f.Evidence(t, b, xtest.Quote{PCRs: xtest.GoodPCRs()}, nil)
	d := f.Device(t)
	d.AKName = bytes.Clone(d.AKName)
	d.AKName[5] ^= 1
	refused(t, ev, b, d, "another name")
	d = f.Device(t)
	d.Kind = attest.KindDevelopment
	refused(t, ev, b, d, `of kind "development"`)
}

func TestCertifiedKeys(t *testing.T) {
	f := xtest.NewForger(t)
	good, key := xtest.NewBinding(t, workload)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := other.PublicKey.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	good.RecipientKey = point.Bytes()
	with := func(t *testing.T, b attest.Binding, instance, recipient func(*tpm2.TPMTPublic)) []byte {
		t.Helper()
		return xtest.Tamper(t, f.Evidence(t, b, xtest.Quote{PCRs: xtest.GoodPCRs()}, nil), func(e *evidence.Evidence) {
			e.Instance = f.Certify(t, b, evidence.InstanceTemplate(), &key.PublicKey, instance)
			e.Recipient = f.Certify(t, b, evidence.RecipientTemplate(), &other.PublicKey, recipient)
		})
	}
	c, err := tpm.Verifier{}.Verify(t.Context(), with(t, good, nil, nil), good, f.Device(t))
	if err != nil || !c.InstanceInTPM || !c.RecipientInTPM {
		t.Fatalf("good keys: %+v, %v", c, err)
	}
	for name, change := range map[string]func(*tpm2.TPMTPublic){
		"may leave":           func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false },
		"may change parent":   func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedParent = false },
		"imported":            func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false },
		"restricted":          func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = true },
		"signs and decrypts":  func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt, p.ObjectAttributes.Decrypt = true, true },
		"weakly named":        func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 },
		"neither of the uses": func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt, p.ObjectAttributes.Decrypt = false, false },
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, with(t, good, change, nil), good, f.Device(t), "instance key")
			refused(t, with(t, good, nil, change), good, f.Device(t), "recipient key")
		})
	}
	t.Run("the other's", func(t *testing.T) {
		b, _ := xtest.NewBinding(t, workload)
		b.RecipientKey = good.RecipientKey
		refused(t, with(t, b, nil, nil), b, f.Device(t), "not the instance key")
		b = good
		b.RecipientKey = bytes.Clone(good.RecipientKey)
		b.RecipientKey[20] ^= 1
		refused(t, with(t, b, nil, nil), b, f.Device(t), "not the recipient key")
		b.RecipientKey = good.RecipientKey[1:]
		refused(t, with(t, b, nil, nil), b, f.Device(t), "recipient key of 64 bytes")
	})
	t.Run("certified by another key", func(t *testing.T) {
		stranger := xtest.NewForger(t)
		ev := xtest.Tamper(t, with(t, good, nil, nil), func(e *evidence.Evidence) {
			e.Instance = stranger.Certify(t, good, evidence.InstanceTemplate(), &key.PublicKey, nil)
		})
		refused(t, ev, good, f.Device(t), "does not verify")
	})
	t.Run("certification of another key", func(t *testing.T) {
		ev := xtest.Tamper(t, with(t, good, nil, nil), func(e *evidence.Evidence) {
			e.Instance.Public = f.Certify(t, good, evidence.InstanceTemplate(), &other.PublicKey, nil).Public
		})
		refused(t, ev, good, f.Device(t), "another key was certified")
	})
	t.Run("half a certification", func(t *testing.T) {
		ev := xtest.Tamper(t, with(t, good, nil, nil), func(e *evidence.Evidence) { e.Instance = evidence.Certified{Public: e.Instance.Public} })
		refused(t, ev, good, f.Device(t), "instance key")
	})
}

// A15: authentic quotes over PCRs that nothing was measured into are contraindicated, with the reason.
func TestUntouchedPCRs(t *testing.T) {
	f := xtest.NewForger(t)
	b, _ := xtest.NewBinding(t, workload)
	zero := map[int][sha256.Size]byte{}
	for p := range 8 {
		zero[p] = [sha256.Size]byte{}
	}
	c, err := tpm.Verifier{}.Verify(t.Context(), f.Evidence(t, b, xtest.Quote{PCRs: zero}, nil), b, f.Device(t))
	if err != nil {
		t.Fatal(err)
	}
	refs, err := attest.ParseReferences(swtpm.ReferenceYAML(nil, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	r := attest.Appraise(c, refs, time.Now())
	if r.Status != attest.Contraindicated || r.Vector.Executables != attest.ValueRefused || r.TrustScore != 0 {
		t.Errorf("result: %+v", r)
	}
	// A log that goes with them explains nothing either.
	refused(t, f.Evidence(t, b, xtest.Quote{PCRs: zero}, swtpm.EventLog()), b, f.Device(t), "does not replay")
}

// A bit flipped anywhere in a log never changes what is believed into something better.
func TestFlippedLog(t *testing.T) {
	f := xtest.NewForger(t)
	b, _ := xtest.NewBinding(t, workload)
	log := swtpm.EventLog()
	ev := f.Evidence(t, b, xtest.Quote{PCRs: xtest.GoodPCRs()}, log)
	good, err := tpm.Verifier{}.Verify(t.Context(), ev, b, f.Device(t))
	if err != nil {
		t.Fatal(err)
	}
	replayed := 0
	for i := range log {
		flipped := xtest.Tamper(t, ev, func(e *evidence.Evidence) { e.EventLog = bytes.Clone(e.EventLog); e.EventLog[i] ^= 0x10 })
		c, err := tpm.Verifier{}.Verify(t.Context(), flipped, b, f.Device(t))
		if err != nil {
			continue
		}
		replayed++
		if got := c.Features; got.SecureBoot == attest.False || got.FirmwareDebugger == attest.True || got.Separators != attest.True {
			t.Errorf("byte %d flipped: %+v", i, got)
		}
		if c.BootFirmware != good.BootFirmware && c.BootFirmware != "" {
			t.Errorf("byte %d flipped: firmware %q", i, c.BootFirmware)
		}
	}
	if replayed == len(log) {
		t.Error("no flip was noticed")
	}
}
