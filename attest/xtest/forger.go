package xtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tpm/evidence"
	"github.com/bulla-project/bulla/attest/tpm/swtpm"
)

// A Forger is an attestation key whose private half the test holds: it signs what no TPM would.
type Forger struct {
	Public tpm2.TPMTPublic
	key    crypto.Signer
	ekHash [sha256.Size]byte
}

// NewForger makes a forger with a P-256 key and the attributes of a real attestation key.
func NewForger(t testing.TB) *Forger {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	f := &Forger{Public: evidence.AKTemplate(), key: key, ekHash: sha256.Sum256([]byte(t.Name()))}
	f.Public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, eccPoint(t, &key.PublicKey))
	return f
}

// NewRSAForger makes a forger with an RSA key (RSASSA, SHA-256).
func NewRSAForger(t testing.TB, bits int) *Forger {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return &Forger{Public: RSAPublic(key.N.Bytes(), uint16(bits)), key: key, ekHash: sha256.Sum256([]byte(t.Name()))}
}

// RSAPublic is the public area of an RSA attestation key with this modulus, which need not be a good one.
func RSAPublic(modulus []byte, bits uint16) tpm2.TPMTPublic {
	p := evidence.AKTemplate()
	p.Type = tpm2.TPMAlgRSA
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
		KeyBits: tpm2.TPMKeyBits(bits),
		Scheme: tpm2.TPMTRSAScheme{
			Scheme:  tpm2.TPMAlgRSASSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256}),
		},
	})
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: modulus})
	return p
}

func eccPoint(t testing.TB, key *ecdsa.PublicKey) *tpm2.TPMSECCPoint {
	t.Helper()
	point, err := key.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	raw := point.Bytes()
	return &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: raw[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: raw[33:]},
	}
}

// Device is the record of an enrolled device whose attestation key is the forger's.
func (f *Forger) Device(t testing.TB) attest.Device {
	t.Helper()
	id, err := attest.NewDeviceID(attest.KindTPM2, f.ekHash)
	if err != nil {
		t.Fatal(err)
	}
	name, err := tpm2.ObjectName(&f.Public)
	if err != nil {
		t.Fatal(err)
	}
	return attest.Device{
		ID: id, Kind: attest.KindTPM2, IdentityHash: hex.EncodeToString(f.ekHash[:]),
		AKPublic: tpm2.Marshal(f.Public), AKName: name.Buffer,
		Platform: attest.Platform{Type: "tpm2"}, EnrolledAt: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	}
}

// A Quote says what to quote. The zero value, with PCRs, is one that holds.
type Quote struct {
	PCRs      map[int][sha256.Size]byte
	Banks     []tpm2.TPMAlgID // default SHA-256 only
	Magic     tpm2.TPMGenerated
	Type      tpm2.TPMST
	Counters  attest.Counters
	Firmware  uint64
	WrongHash bool // the PCR digest is another one
}

// Sign makes a TPMS_ATTEST for q over extra and signs it.
func (f *Forger) Sign(t testing.TB, q Quote, extra []byte) (attested, signature []byte) {
	t.Helper()
	if q.Magic == 0 {
		q.Magic = tpm2.TPMGeneratedValue
	}
	if q.Banks == nil {
		q.Banks = []tpm2.TPMAlgID{tpm2.TPMAlgSHA256}
	}
	h := sha256.New()
	var selected []uint
	for p := range uint(evidence.NumPCRs) {
		if v, ok := q.PCRs[int(p)]; ok {
			h.Write(v[:])
			selected = append(selected, p)
		}
	}
	if q.WrongHash {
		h.Write([]byte{1})
	}
	var banks []tpm2.TPMSPCRSelection
	for _, b := range q.Banks {
		banks = append(banks, tpm2.TPMSPCRSelection{Hash: b, PCRSelect: tpm2.PCClientCompatible.PCRs(selected...)})
	}
	a := tpm2.TPMSAttest{
		Magic: q.Magic, Type: tpm2.TPMSTAttestQuote,
		ExtraData: tpm2.TPM2BData{Buffer: extra},
		ClockInfo: tpm2.TPMSClockInfo{
			Clock: q.Counters.Clock, ResetCount: q.Counters.ResetCount, RestartCount: q.Counters.RestartCount, Safe: true,
		},
		FirmwareVersion: q.Firmware,
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
			PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: banks},
			PCRDigest: tpm2.TPM2BDigest{Buffer: h.Sum(nil)},
		}),
	}
	if q.Type != 0 {
		a.Type = q.Type
		a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{})
	}
	attested = tpm2.Marshal(a)
	return attested, f.signature(t, attested)
}

func (f *Forger) signature(t testing.TB, message []byte) []byte {
	t.Helper()
	digest := sha256.Sum256(message)
	switch key := f.key.(type) {
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return ECDSASignature(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32)))
	case *rsa.PrivateKey:
		sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return tpm2.Marshal(tpm2.TPMTSignature{
			SigAlg:    tpm2.TPMAlgRSASSA,
			Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA, &tpm2.TPMSSignatureRSA{Hash: tpm2.TPMAlgSHA256, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: sig}}),
		})
	}
	t.Fatalf("key of type %T", f.key)
	return nil
}

// ECDSASignature is a TPMT_SIGNATURE tagged as ECDSA with SHA-256.
func ECDSASignature(r, s []byte) []byte {
	return tpm2.Marshal(tpm2.TPMTSignature{
		SigAlg: tpm2.TPMAlgECDSA,
		Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash: tpm2.TPMAlgSHA256, SignatureR: tpm2.TPM2BECCParameter{Buffer: r}, SignatureS: tpm2.TPM2BECCParameter{Buffer: s},
		}),
	})
}

// Evidence is evidence for b with the quote q and the event log.
func (f *Forger) Evidence(t testing.TB, b attest.Binding, q Quote, log []byte) []byte {
	t.Helper()
	digest := b.Digest()
	ev := evidence.Evidence{PCRs: q.PCRs, EventLog: log}
	ev.Quote, ev.Signature = f.Sign(t, q, digest[:])
	return ev.Marshal()
}

// Certify makes the certification of a software key as one that lives in the TPM, after change made it odd.
func (f *Forger) Certify(t testing.TB, b attest.Binding, template tpm2.TPMTPublic, key *ecdsa.PublicKey, change func(*tpm2.TPMTPublic)) evidence.Certified {
	t.Helper()
	template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, eccPoint(t, key))
	if change != nil {
		change(&template)
	}
	name, err := tpm2.ObjectName(&template)
	if err != nil {
		t.Fatal(err)
	}
	digest := b.Digest()
	attested := tpm2.Marshal(tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestCertify, ExtraData: tpm2.TPM2BData{Buffer: digest[:]},
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: *name}),
	})
	return evidence.Certified{Public: tpm2.Marshal(template), Attest: attested, Signature: f.signature(t, attested)}
}

// GoodPCRs are those of the software TPM's boot, with the other quoted ones untouched.
func GoodPCRs() map[int][sha256.Size]byte {
	pcrs := swtpm.BootPCRs()
	for _, p := range []int{11, 12, 13} {
		pcrs[p] = [sha256.Size]byte{}
	}
	return pcrs
}

// NewBinding is a binding with a random nonce and channel and a fresh instance key.
func NewBinding(t testing.TB, principal string) (attest.Binding, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b := attest.Binding{Principal: principal}
	if b.InstanceKey, err = x509.MarshalPKIXPublicKey(&key.PublicKey); err != nil {
		t.Fatal(err)
	}
	for _, field := range [][]byte{b.Nonce[:], b.Channel[:]} {
		if _, err := rand.Read(field); err != nil {
			t.Fatal(err)
		}
	}
	return b, key
}
