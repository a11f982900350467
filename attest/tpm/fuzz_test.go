package tpm

import (
	"bytes"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tpm/evidence"
	"github.com/bulla-project/bulla/attest/tpm/swtpm"
)

func FuzzVerify(f *testing.F) {
	r := gce(f, "go-tpm-tools/gce-cos-85-no-nonce.pb", tpm2.TPMAlgSHA256)
	f.Add(r.ev.Marshal())
	short := r.ev
	short.EventLog = nil
	f.Add(short.Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		ev, err := evidence.Parse(b)
		if err != nil {
			return
		}
		c, err := verify(ev, nil, r.device)
		if err != nil && !errors.Is(err, attest.ErrUnauthentic) {
			t.Errorf("error of another kind: %v", err)
		}
		if err == nil && !bytes.Equal(ev.Quote, r.ev.Quote) {
			t.Errorf("another quote was believed: %+v", c)
		}
	})
}

func FuzzEventLog(f *testing.F) {
	for _, name := range []string{
		"go-tpm-tools/arch-linux-workstation.bin", "go-attestation/short_no_action_eventlog",
		"go-attestation/ebs_event_missing_eventlog", "go-tpm-tools/eventlogwithsp800155.bin",
	} {
		f.Add(testdata(f, name))
	}
	f.Add(swtpm.EventLog())
	pcrs := swtpm.BootPCRs()
	want := attest.Features{MeasuredBoot: attest.True, Separators: attest.True, SecureBoot: attest.True, FirmwareDebugger: attest.False}
	f.Fuzz(func(t *testing.T, log []byte) {
		got, err := replay(log, pcrs)
		if err != nil || len(log) == 0 {
			return
		}
		// What replays to these PCRs can say less than the truth (unknown), never something else.
		if s := got.features.SecureBoot; s != want.SecureBoot && s != attest.Unknown {
			t.Errorf("secure boot is %s", s)
		}
	})
}

func FuzzKeysAndSignatures(f *testing.F) {
	r := gce(f, "go-tpm-tools/gce-cos-85-no-nonce.pb", tpm2.TPMAlgSHA256)
	f.Add(r.device.AKPublic, r.ev.Quote, r.ev.Signature)
	f.Add(tpm2.Marshal(evidence.AKTemplate()), r.ev.Quote, r.ev.Signature)
	f.Add(tpm2.Marshal(tpm2.RSAEKTemplate), []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, public, attested, signature []byte) {
		if p, err := parsePublic(public); err == nil {
			if ak, err := checkAK(p); err == nil {
				_, _ = ak.attested(attested, signature, tpm2.TPMSTAttestQuote, nil)
			}
		}
		if ek, err := checkEK(public); err == nil {
			_, _ = makeCredential(ek, make([]byte, 34), make([]byte, 32), rand.Reader)
		}
		_, _ = decode[tpm2.TPMSAttest](attested, evidence.MaxAttest, "attestation")
	})
}

func FuzzEKCertificate(f *testing.F) {
	block, _ := pem.Decode(testdata(f, "go-tpm-tools/pca_tpm_rsa_enc_cert.pem"))
	f.Add(block.Bytes)
	f.Fuzz(func(_ *testing.T, der []byte) {
		cert, err := parseCertificate(der)
		if err != nil {
			return
		}
		_, _ = checkEKChain([][]byte{der}, cert.PublicKey, nil, time.Unix(0, 0))
		_, _ = checkEKLeaf(cert, cert.PublicKey)
	})
}

func FuzzSAN(f *testing.F) {
	f.Add([]byte{0x30, 0x00})
	f.Fuzz(func(t *testing.T, der []byte) {
		var p attest.Platform
		if err := readSAN(der, &p); err == nil && bytes.ContainsAny([]byte(p.Manufacturer+p.Model+p.Version), "\x00\x1b\n") {
			t.Errorf("control characters: %+v", p)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	r := gce(b, "go-tpm-tools/gce-cos-85-no-nonce.pb", tpm2.TPMAlgSHA256)
	raw := r.ev.Marshal()
	for b.Loop() {
		ev, err := evidence.Parse(raw)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := verify(ev, nil, r.device); err != nil {
			b.Fatal(err)
		}
	}
}
