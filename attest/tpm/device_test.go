package tpm_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tpm"
	"github.com/bulla-project/bulla/attest/tpm/device"
	"github.com/bulla-project/bulla/attest/tpm/evidence"
	"github.com/bulla-project/bulla/attest/tpm/swtpm"
	"github.com/bulla-project/bulla/attest/xtest"
)

const workload = "spiffe://dev.bulla.test/workload"

// hardwareBinding is a binding whose keys live in the rig's TPM.
func hardwareBinding(t *testing.T, r *xtest.Rig) (attest.Binding, *device.InstanceKey, *device.RecipientKey) {
	t.Helper()
	instance, err := r.TPM.NewInstanceKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	recipient, err := r.TPM.NewRecipientKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, _ := xtest.NewBinding(t, workload)
	if b.InstanceKey, err = instance.SPKI(); err != nil {
		t.Fatal(err)
	}
	b.RecipientKey = recipient.PublicKey().Bytes()
	return b, instance, recipient
}

func refused(t *testing.T, ev []byte, b attest.Binding, d attest.Device, because string) {
	t.Helper()
	c, err := tpm.Verifier{}.Verify(context.Background(), ev, b, d)
	if !errors.Is(err, attest.ErrUnauthentic) {
		t.Fatalf("want unauthentic, got %v", err)
	}
	if !strings.Contains(err.Error(), because) {
		t.Errorf("reason %q does not contain %q", err, because)
	}
	if c.Kind != "" || c.InstanceInTPM || c.Device.ID != (attest.DeviceID{}) {
		t.Errorf("claims beside an error: %+v", c)
	}
}

// TestTPM shares one software TPM, since making one takes seconds.
func TestTPM(t *testing.T) {
	r := xtest.NewRig(t)
	for name, test := range map[string]func(*testing.T, *xtest.Rig){
		"WholeStory":              testWholeStory,
		"WithheldLog":             testWithheldLog,
		"KeysInTheTPM":            testKeysInTheTPM,
		"HybridRecipient":         testHybridRecipient,
		"ForgeriesOfRealEvidence": testForgeriesOfRealEvidence,
		"TwoDevices":              testTwoDevices,
		"PendingIsSpentOnce":      testPendingIsSpentOnce,
		"AllowList":               testAllowList,
		"Shared":                  testShared,
	} {
		t.Run(name, func(t *testing.T) { test(t, r) })
	}
}

func testWholeStory(t *testing.T, r *xtest.Rig) {
	if r.Device.ID.Kind() != attest.KindTPM2 || r.Device.Anchor == "" || r.Device.Platform.Manufacturer == "" {
		t.Errorf("record: %+v", r.Device)
	}
	raw, err := r.Device.Encode()
	if err != nil {
		t.Fatal(err)
	}
	dev, err := attest.DecodeDevice(raw)
	if err != nil {
		t.Fatal(err)
	}
	b, instance, recipient := hardwareBinding(t, r)
	ev, err := r.TPM.Attest(t.Context(), b, instance, recipient)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := tpm.Verifier{}.Verify(t.Context(), ev, b, dev)
	if err != nil {
		t.Fatal(err)
	}
	want := attest.Features{MeasuredBoot: attest.True, Separators: attest.True, SecureBoot: attest.True, FirmwareDebugger: attest.False}
	if claims.Features != want || !claims.InstanceInTPM || !claims.RecipientInTPM || claims.Firmware == 0 ||
		claims.BootFirmware != "Bulla software TPM, development boot 1" || claims.RolledBack {
		t.Errorf("claims: %+v", claims)
	}
	result := attest.Appraise(claims, r.References, time.Now())
	if result.Status != attest.Affirming || !result.HardwareBound() || result.TrustScore < 90 || result.Profile != "software-tpm" {
		t.Errorf("result: %+v", result)
	}
	if !result.For(workload, b.InstanceKey) || result.For("spiffe://dev.bulla.test/stranger", b.InstanceKey) {
		t.Error("the result is not the passport of this instance alone")
	}
	encoded, err := result.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := attest.DecodeResult(encoded); err != nil || again.TrustScore != result.TrustScore {
		t.Errorf("decode: %v", err)
	}
}

// Withholding the event log must never be better than showing it, whatever it shows.
func testWithheldLog(t *testing.T, r *xtest.Rig) {
	b, instance, recipient := hardwareBinding(t, r)
	ev, err := r.TPM.Attest(t.Context(), b, instance, recipient)
	if err != nil {
		t.Fatal(err)
	}
	ev = xtest.Tamper(t, ev, func(e *evidence.Evidence) { e.EventLog = nil })
	claims, err := tpm.Verifier{}.Verify(t.Context(), ev, b, r.Device)
	if err != nil {
		t.Fatal(err)
	}
	if claims.Features != (attest.Features{}) {
		t.Errorf("features without a log: %+v", claims.Features)
	}
	if got := attest.Appraise(claims, r.References, time.Now()); got.Status != attest.Contraindicated || got.TrustScore != 0 {
		t.Errorf("status %s, score %d", got.Status, got.TrustScore)
	}
}

func testKeysInTheTPM(t *testing.T, r *xtest.Rig) {
	_, instance, recipient := hardwareBinding(t, r)

	digest := sha256.Sum256([]byte("message"))
	signature, err := instance.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	public, ok := instance.Public().(*ecdsa.PublicKey)
	if !ok || !ecdsa.VerifyASN1(public, digest[:], signature) {
		t.Error("signature of the instance key does not verify")
	}
	if _, err := instance.Sign(rand.Reader, digest[:20], crypto.SHA1); err == nil {
		t.Error("signed a SHA-1 digest")
	}

	private, err := hpke.NewDHKEMPrivateKey(recipient)
	if err != nil {
		t.Fatal(err)
	}
	key, err := hpke.DHKEM(ecdh.P256()).NewPublicKey(recipient.PublicKey().Bytes())
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := hpke.Seal(key, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte("info"), []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	opened, err := hpke.Open(private, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte("info"), sealed)
	if err != nil || string(opened) != "secret" {
		t.Errorf("open: %q, %v", opened, err)
	}
}

// A hybrid recipient key has its classical half in the TPM.
func testHybridRecipient(t *testing.T, r *xtest.Rig) {
	b, instance, recipient := hardwareBinding(t, r)
	pq := make([]byte, 1184)
	if _, err := rand.Read(pq); err != nil {
		t.Fatal(err)
	}
	b.RecipientKey = append(pq, b.RecipientKey...)
	ev, err := r.TPM.Attest(t.Context(), b, instance, recipient)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := tpm.Verifier{}.Verify(t.Context(), ev, b, r.Device)
	if err != nil || !claims.RecipientInTPM {
		t.Errorf("recipient in TPM: %v, %v", claims.RecipientInTPM, err)
	}
}

func testForgeriesOfRealEvidence(t *testing.T, r *xtest.Rig) {
	b, instance, recipient := hardwareBinding(t, r)
	ev, err := r.TPM.Attest(t.Context(), b, instance, recipient)
	if err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(ev)
	for _, f := range xtest.Forgeries() {
		t.Run(f.Name, func(t *testing.T) { refused(t, f.Forge(t, ev), b, r.Device, f.Because) })
	}
	if !bytes.Equal(before, ev) {
		t.Fatal("a forgery changed the original")
	}
	t.Run("A12_other_nonce", func(t *testing.T) {
		other := b
		other.Nonce[0] ^= 1
		refused(t, ev, other, r.Device, "another challenge")
	})
	t.Run("A44_other_channel", func(t *testing.T) {
		other := b
		other.Channel[31] ^= 1
		refused(t, ev, other, r.Device, "another challenge")
	})
	t.Run("A44_other_principal", func(t *testing.T) {
		other := b
		other.Principal = "spiffe://dev.bulla.test/stranger"
		refused(t, ev, other, r.Device, "another challenge")
	})
	t.Run("A44_other_instance", func(t *testing.T) {
		other := b
		fresh, _ := xtest.NewBinding(t, workload)
		other.InstanceKey = fresh.InstanceKey
		refused(t, ev, other, r.Device, "another challenge")
	})
	t.Run("A44_other_recipient", func(t *testing.T) {
		other := b
		other.RecipientKey = append(bytes.Clone(b.RecipientKey), 1)
		refused(t, ev, other, r.Device, "another challenge")
	})
	t.Run("A44_not_enrolled_for_principal", func(t *testing.T) {
		d := r.Device
		d.Principals = []string{"spiffe://dev.bulla.test/operator"}
		refused(t, ev, b, d, "not enrolled for this principal")
	})
	t.Run("A15_enrolment_of_another_key", func(t *testing.T) {
		refused(t, ev, b, xtest.NewForger(t).Device(t), "does not verify")
	})
	t.Run("A16_unknown_event_type", func(t *testing.T) {
		unknown := xtest.Tamper(t, ev, func(e *evidence.Evidence) { e.EventLog = xtest.UnknownEventLog(e.EventLog) })
		if _, err := (tpm.Verifier{}).Verify(t.Context(), unknown, b, r.Device); err != nil {
			t.Errorf("an event of unknown type in a PCR that is not looked at: %v", err)
		}
	})
}

func testTwoDevices(t *testing.T, r *xtest.Rig) {
	a, other := r, xtest.NewRig(t)
	if a.Device.ID == other.Device.ID {
		t.Fatal("two TPMs, one id")
	}
	b, instance, _ := hardwareBinding(t, a)
	b.RecipientKey = nil
	ev, err := a.TPM.Attest(t.Context(), b, instance, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("A44_evidence_of_A_for_B", func(t *testing.T) { refused(t, ev, b, other.Device, "does not verify") })
	t.Run("A15_quote_by_another_TPM", func(t *testing.T) {
		theirs, err := other.TPM.Attest(t.Context(), b, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		refused(t, theirs, b, a.Device, "does not verify")
		mixed := xtest.Tamper(t, ev, func(e *evidence.Evidence) {
			p, err := evidence.Parse(theirs)
			if err != nil {
				t.Fatal(err)
			}
			e.Instance.Attest, e.Instance.Signature = p.Quote, p.Signature
		})
		refused(t, mixed, b, a.Device, "instance key")
	})
	t.Run("A15_EK_of_one_AK_of_another", func(t *testing.T) {
		chain, err := a.Software.ChainPEM()
		if err != nil {
			t.Fatal(err)
		}
		mine, err := a.TPM.EnrolRequest(t.Context(), chain)
		if err != nil {
			t.Fatal(err)
		}
		forger := xtest.NewForger(t)
		mine.AKPublic = tpm2.Marshal(forger.Public)
		challenge, pending, err := tpm.BeginEnrolment(mine, a.References, "caller", time.Now(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if secret, err := a.TPM.Activate(t.Context(), challenge); err == nil {
			t.Fatalf("the TPM gave out the secret for a key it does not hold: %x", secret)
		}
		if _, err := pending.Finish("caller", make([]byte, 32), time.Now()); !errors.Is(err, attest.ErrUnauthentic) {
			t.Errorf("finished without the secret: %v", err)
		}
	})
	t.Run("A15_certificate_of_another_EK", func(t *testing.T) {
		mine, err := a.TPM.EnrolRequest(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := other.TPM.EnrolRequest(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		mine.Certificates = theirs.Certificates
		_, _, err = tpm.BeginEnrolment(mine, a.References, "caller", time.Now(), rand.Reader)
		if !errors.Is(err, attest.ErrUnauthentic) || !strings.Contains(err.Error(), "another key") {
			t.Errorf("begin: %v", err)
		}
	})
	t.Run("unknown_maker", func(t *testing.T) {
		chain, err := a.Software.ChainPEM()
		if err != nil {
			t.Fatal(err)
		}
		req, err := a.TPM.EnrolRequest(t.Context(), chain)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = tpm.BeginEnrolment(req, other.References, "caller", time.Now(), rand.Reader)
		if !errors.Is(err, attest.ErrUnauthentic) || !strings.Contains(err.Error(), "no chain") {
			t.Errorf("begin: %v", err)
		}
	})
}

func testPendingIsSpentOnce(t *testing.T, r *xtest.Rig) {
	chain, err := r.Software.ChainPEM()
	if err != nil {
		t.Fatal(err)
	}
	req, err := r.TPM.EnrolRequest(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	begin := func() (*tpm.Pending, []byte) {
		t.Helper()
		challenge, pending, err := tpm.BeginEnrolment(req, r.References, "caller", now, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := evidence.ParseChallenge(challenge.Marshal())
		if err != nil {
			t.Fatal(err)
		}
		secret, err := r.TPM.Activate(t.Context(), parsed)
		if err != nil {
			t.Fatal(err)
		}
		return pending, secret
	}
	finish := func(p *tpm.Pending, caller string, secret []byte, at time.Time, because string) {
		t.Helper()
		_, err := p.Finish(caller, secret, at)
		if !errors.Is(err, attest.ErrUnauthentic) || !strings.Contains(err.Error(), because) {
			t.Errorf("finish: %v, want %q", err, because)
		}
	}
	p, secret := begin()
	finish(p, "thief", secret, now, "another caller")
	finish(p, "caller", secret, now, "answered already")
	p, secret = begin()
	finish(p, "caller", secret, now.Add(tpm.PendingLife+time.Second), "expired")
	p, secret = begin()
	finish(p, "caller", secret[1:], now, "wrong answer")
	p, secret = begin()
	if _, err := p.Finish("caller", secret, now); err != nil {
		t.Error(err)
	}
	finish(p, "caller", secret, now, "answered already")
}

// A TPM without a certificate is enrolled by the allow-list, and distrusted again when it is taken off.
func testAllowList(t *testing.T, r *xtest.Rig) {
	req, err := r.TPM.EnrolRequest(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Certificates = nil
	_, _, err = tpm.BeginEnrolment(req, r.References, "caller", time.Now(), rand.Reader)
	if !errors.Is(err, attest.ErrUnauthentic) || !strings.Contains(err.Error(), r.Device.IdentityHash) {
		t.Fatalf("begin without a certificate: %v", err)
	}
	yaml := slices.Concat(r.YAML, []byte("  ek_hashes: [\""+r.Device.IdentityHash+"\"]\n"))
	refs, err := attest.ParseReferences(yaml)
	if err != nil {
		t.Fatal(err)
	}
	challenge, pending, err := tpm.BeginEnrolment(req, refs, "caller", time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := r.TPM.Activate(t.Context(), challenge)
	if err != nil {
		t.Fatal(err)
	}
	d, err := pending.Finish("caller", secret, time.Now())
	if err != nil || d.ID != r.Device.ID || d.Anchor != "" {
		t.Fatalf("finish: %+v, %v", d, err)
	}
	b, instance, recipient := hardwareBinding(t, r)
	ev, err := r.TPM.Attest(t.Context(), b, instance, recipient)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := tpm.Verifier{}.Verify(t.Context(), ev, b, d)
	if err != nil {
		t.Fatal(err)
	}
	if got := attest.Appraise(claims, refs, time.Now()); got.Status != attest.Affirming {
		t.Errorf("on the list: %+v", got)
	}
	if got := attest.Appraise(claims, r.References, time.Now()); got.Status != attest.Contraindicated {
		t.Errorf("off the list: %+v", got)
	}
}

// Identity and attestation key survive a restart, the counters grow, and a rolled-back TPM is found out.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	first := xtest.StartRig(t, dir)
	d := first.Enrol(t, first.References)
	b, _ := xtest.NewBinding(t, workload)
	attestOnce := func(r *xtest.Rig, d attest.Device) attest.Claims {
		t.Helper()
		ev, err := r.TPM.Attest(t.Context(), b, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		c, err := tpm.Verifier{}.Verify(t.Context(), ev, b, d)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	before := attestOnce(first, d)
	if err := first.Software.Close(); err != nil {
		t.Fatal(err)
	}
	second := xtest.StartRig(t, dir)
	d.Seen = before.Counters
	after := attestOnce(second, d)
	if after.Counters.ResetCount <= before.Counters.ResetCount || after.RolledBack {
		t.Errorf("counters %+v after %+v", after.Counters, before.Counters)
	}
	d.Seen = after.Counters
	d.Seen.ResetCount++
	back := attestOnce(second, d)
	if got := attest.Appraise(back, second.References, time.Now()); !back.RolledBack || got.Status != attest.Contraindicated {
		t.Errorf("rolled back: %v, %s", back.RolledBack, got.Status)
	}
}

// Several clients share a TPM that serves one connection at a time.
func testShared(t *testing.T, r *xtest.Rig) {
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			client, err := device.Open(t.Context(), r.Software.Address())
			if err != nil {
				t.Error(err)
				return
			}
			for range 3 {
				b, _ := xtest.NewBinding(t, workload)
				ev, err := client.Attest(t.Context(), b, nil, nil)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := (tpm.Verifier{}).Verify(t.Context(), ev, b, r.Device); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
}

func TestBootIsWhatTheReferencesSay(t *testing.T) {
	refs, err := attest.ParseReferences(swtpm.ReferenceYAML(nil, time.Unix(0, 0), time.Unix(1, 0)))
	if err != nil || !refs.AcceptsDevelopment() {
		t.Errorf("references: %v", err)
	}
}
