package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	eventlog "github.com/google/go-attestation/attest"
	"github.com/google/go-tpm/tpm2"

	"github.com/bulla-project/bulla/attest"
)

// An authority issues endorsement certificates of any shape.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *authority) issue(t *testing.T, c *x509.Certificate, public crypto.PublicKey, self *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	parent, signer := c, self
	if a != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, public, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func caTemplate(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0), KeyUsage: x509.KeyUsageCertSign,
	}
}

func ekTemplate(t *testing.T) *x509.Certificate {
	t.Helper()
	dn, err := asn1.Marshal(pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 1}, Value: "id:42554C4C"}}})
	if err != nil {
		t.Fatal(err)
	}
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: dn}})
	if err != nil {
		t.Fatal(err)
	}
	return &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0), KeyUsage: x509.KeyUsageKeyAgreement,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}}, BasicConstraintsValid: true,
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}},
	}
}

func TestEKChain(t *testing.T) {
	rootKey, middleKey, ekKey := newKey(t), newKey(t), newKey(t)
	root := &authority{(*authority)(nil).issue(t, caTemplate("root"), &rootKey.PublicKey, rootKey), rootKey}
	middle := &authority{root.issue(t, caTemplate("middle"), &middleKey.PublicKey, nil), middleKey}
	roots, now := []*x509.Certificate{root.cert}, time.Unix(1<<31, 0)
	ek := middle.issue(t, ekTemplate(t), &ekKey.PublicKey, nil)
	v, err := checkEKChain([][]byte{ek.Raw, middle.cert.Raw}, &ekKey.PublicKey, roots, now)
	if err != nil || v.platform.Manufacturer != "id:42554C4C" {
		t.Fatalf("a good chain: %+v, %v", v, err)
	}
	leaf := func(change func(*x509.Certificate)) [][]byte {
		c := ekTemplate(t)
		change(c)
		return [][]byte{middle.issue(t, c, &ekKey.PublicKey, nil).Raw, middle.cert.Raw}
	}
	bigKey, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weak := middle.issue(t, ekTemplate(t), &bigKey.PublicKey, nil)
	for name, c := range map[string]struct {
		certs   [][]byte
		at      time.Time
		because string
	}{
		"no intermediate": {[][]byte{ek.Raw}, now, "no chain"},
		"expired":         {[][]byte{ek.Raw, middle.cert.Raw}, time.Unix(1<<33, 0), "no chain"},
		"an authority's":  {leaf(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }), now, "of an authority"},
		"a TLS certificate": {leaf(func(c *x509.Certificate) {
			c.UnknownExtKeyUsage, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}), now, "extended key usage"},
		"a signing key's": {leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), now, "(key usage)"},
		"unknown critical": {leaf(func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true})
		}), now, "unhandled critical"},
		"signed by the leaf":  {[][]byte{(&authority{ek, ekKey}).issue(t, ekTemplate(t), &ekKey.PublicKey, nil).Raw, ek.Raw, middle.cert.Raw}, now, "no chain"},
		"weak RSA":            {[][]byte{weak.Raw, middle.cert.Raw}, now, "want 2048 to 4096"},
		"weak RSA in between": {[][]byte{ek.Raw, weak.Raw, middle.cert.Raw}, now, "certificate 1: RSA key of 1024 bits"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := checkEKChain(c.certs, &ekKey.PublicKey, roots, c.at); err == nil || !strings.Contains(err.Error(), c.because) {
				t.Errorf("%v, want %q", err, c.because)
			}
		})
	}
}

func TestEndorsementKeyAttributes(t *testing.T) {
	key := newKey(t)
	point, err := key.PublicKey.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	raw := point.Bytes()
	public := func(change func(*tpm2.TPMTPublic)) []byte {
		p := tpm2.ECCEKTemplate
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: raw[1:33]},
			Y: tpm2.TPM2BECCParameter{Buffer: raw[33:]},
		})
		change(&p)
		return tpm2.Marshal(p)
	}
	if _, err := checkEK(public(func(*tpm2.TPMTPublic) {})); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*tpm2.TPMTPublic){
		"unrestricted": func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false },
		"signs":        func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt = true },
		"no decrypt":   func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = false },
		"may leave":    func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false },
		"may move":     func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedParent = false },
		"imported":     func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false },
		"weak name":    func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 },
	} {
		if _, err := checkEK(public(change)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := checkRSA(&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2047), E: 3}); err == nil {
		t.Error("RSA exponent 3 was accepted")
	}
	// The same key with other claims about it is the same device.
	first, err := checkEK(public(func(*tpm2.TPMTPublic) {}))
	if err != nil {
		t.Fatal(err)
	}
	second, err := checkEK(public(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.NoDA = true }))
	if err != nil {
		t.Fatal(err)
	}
	a, errA := spki(first)
	b, errB := spki(second)
	if errA != nil || errB != nil || string(a) != string(b) {
		t.Error("attributes change what a device is known by")
	}
}

// secureBootEvent is the measurement of the SecureBoot variable.
func secureBootEvent(value byte) eventlog.Event {
	data := []byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	data = binary.LittleEndian.AppendUint64(data, 10)
	data = binary.LittleEndian.AppendUint64(data, 1)
	for _, c := range []byte("SecureBoot") {
		data = append(data, c, 0)
	}
	return measuredEvent(evEFIVariable, append(data, value))
}

func measuredEvent(kind eventlog.EventType, data []byte) eventlog.Event {
	digest := sha256.Sum256(data)
	return eventlog.Event{Index: 7, Type: kind, Data: data, Digest: digest[:]}
}

func TestSecureBoot(t *testing.T) {
	on, off, end := secureBootEvent(1), secureBootEvent(0), measuredEvent(4, []byte{0, 0, 0, 0})
	lie := off
	lie.Data = on.Data // the digest stays that of "off"
	debug := measuredEvent(0x80000007, []byte(debuggerAction))
	disguised := end
	disguised.Type, disguised.Data = evEFIVariable, []byte("something else")
	for name, c := range map[string]struct {
		events            []eventlog.Event
		enabled, debugger attest.Tri
	}{
		"on":                          {[]eventlog.Event{on, end}, attest.True, attest.False},
		"off":                         {[]eventlog.Event{off, end}, attest.False, attest.False},
		"no variable":                 {[]eventlog.Event{end}, attest.Unknown, attest.False},
		"nothing":                     {nil, attest.Unknown, attest.Unknown},
		"no separator":                {[]eventlog.Event{on}, attest.Unknown, attest.Unknown},
		"a value of two":              {[]eventlog.Event{secureBootEvent(2), end}, attest.Unknown, attest.False},
		"twice":                       {[]eventlog.Event{on, on, end}, attest.Unknown, attest.False},
		"off, then on":                {[]eventlog.Event{off, on, end}, attest.Unknown, attest.False},
		"after the separator":         {[]eventlog.Event{end, on}, attest.Unknown, attest.False},
		"off, on after the separator": {[]eventlog.Event{off, end, on}, attest.False, attest.False},
		"data that was not measured":  {[]eventlog.Event{lie, end}, attest.Unknown, attest.Unknown},
		"beside what is not believed": {[]eventlog.Event{lie, on, end}, attest.Unknown, attest.Unknown},
		"separator in disguise":       {[]eventlog.Event{disguised, on, end}, attest.Unknown, attest.False},
		"debugger":                    {[]eventlog.Event{debug, on, end}, attest.True, attest.True},
	} {
		enabled, debugger := secureBoot(c.events)
		if enabled != c.enabled || debugger != c.debugger {
			t.Errorf("%s: secure boot %s, debugger %s, want %s, %s", name, enabled, debugger, c.enabled, c.debugger)
		}
	}
}

// What the library panics on becomes an error.
func TestPanicsBecomeErrors(t *testing.T) {
	if _, err := decode[tpm2.TPMTPublic](make([]byte, 3), 10, "public area"); err == nil {
		t.Error("decoded nothing")
	}
	if _, err := makeCredential(&tpm2.TPMTPublic{Type: tpm2.TPMAlgRSA}, nil, nil, rand.Reader); err == nil {
		t.Error("made a credential for an empty key")
	}
	if _, err := enrolledAK(attest.Device{Kind: attest.KindTPM2}); !errors.Is(err, attest.ErrUnauthentic) {
		t.Errorf("empty record: %v", err)
	}
}
