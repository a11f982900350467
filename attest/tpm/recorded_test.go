package tpm

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tpm/evidence"
)

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// fields takes one protobuf message apart: field number → values in order (of numbers: their bytes).
func fields(t testing.TB, b []byte) map[int][][]byte {
	t.Helper()
	out := map[int][][]byte{}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		b = b[n:]
		var v []byte
		switch typ {
		case protowire.BytesType:
			v, n = protowire.ConsumeBytes(b)
		case protowire.VarintType:
			var u uint64
			u, n = protowire.ConsumeVarint(b)
			v = protowire.AppendVarint(nil, u)
		default:
			t.Fatalf("field of type %d", typ)
		}
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		b = b[n:]
		out[int(num)] = append(out[int(num)], v)
	}
	return out
}

type recorded struct {
	ev     evidence.Evidence
	device attest.Device
	akCert []byte
}

// gce reads the quote over one bank of a recorded attestation.
func gce(t testing.TB, name string, bank tpm2.TPMAlgID) recorded {
	t.Helper()
	msg := fields(t, testdata(t, name))
	r := recorded{device: attest.Device{Kind: attest.KindTPM2, AKPublic: msg[1][0]}, akCert: msg[6][0]}
	ak, err := tpm2.Unmarshal[tpm2.TPMTPublic](msg[1][0])
	if err != nil {
		t.Fatal(err)
	}
	name2, err := tpm2.ObjectName(ak)
	if err != nil {
		t.Fatal(err)
	}
	r.device.AKName = name2.Buffer
	r.ev.EventLog = msg[3][0]
	for _, q := range msg[2] {
		quote := fields(t, q)
		pcrs := fields(t, quote[3][0])
		if alg, _ := protowire.ConsumeVarint(pcrs[1][0]); tpm2.TPMAlgID(alg) != bank {
			continue
		}
		r.ev.Quote, r.ev.Signature, r.ev.PCRs = quote[1][0], quote[2][0], map[int][sha256.Size]byte{}
		for _, entry := range pcrs[2] {
			kv := fields(t, entry)
			index := uint64(0)
			if len(kv[1]) > 0 {
				index, _ = protowire.ConsumeVarint(kv[1][0])
			}
			var v [sha256.Size]byte
			copy(v[:], kv[2][0])
			r.ev.PCRs[int(index)] = v
		}
	}
	if len(r.ev.Quote) == 0 {
		t.Fatalf("%s has no quote over bank %#x", name, uint16(bank))
	}
	return r
}

func TestRecordedGCE(t *testing.T) {
	for name, nonce := range map[string][]byte{
		"go-tpm-tools/gce-cos-85-no-nonce.pb":       nil,
		"go-tpm-tools/gce-cos-85-nonce9009.pb":      {0x90, 0x09},
		"go-tpm-tools/gce-cos-85-no-nonce.pb wrong": {1},
	} {
		t.Run(name, func(t *testing.T) {
			file, wrong := strings.CutSuffix(name, " wrong")
			r := gce(t, file, tpm2.TPMAlgSHA256)
			parsed, err := evidence.Parse(r.ev.Marshal())
			if err != nil {
				t.Fatal(err)
			}
			c, err := verify(parsed, nonce, r.device)
			if wrong {
				if !errors.Is(err, attest.ErrUnauthentic) {
					t.Errorf("another nonce: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := attest.Features{MeasuredBoot: attest.True, Separators: attest.True, SecureBoot: attest.True, FirmwareDebugger: attest.False}
			if c.Features != want || c.BootFirmware != "GCE Virtual Firmware v1" {
				t.Errorf("claims: %+v, firmware %q", c.Features, c.BootFirmware)
			}
			cert, err := x509.ParseCertificate(r.akCert)
			if err != nil {
				t.Fatal(err)
			}
			ak, err := enrolledAK(r.device)
			if err != nil || !sameKey(cert.PublicKey, ak.key) {
				t.Errorf("the certificate is not for the attestation key: %v", err)
			}
		})
	}
}

func TestRecordedSHA1BankIsRefused(t *testing.T) {
	r := gce(t, "go-tpm-tools/gce-cos-85-no-nonce.pb", tpm2.TPMAlgSHA1)
	if _, err := verify(r.ev, nil, r.device); !errors.Is(err, attest.ErrUnauthentic) || !strings.Contains(err.Error(), "want SHA-256") {
		t.Errorf("quote over the SHA-1 bank: %v", err)
	}
}

// A quote signed with SHA-1 over the SHA-1 bank, by a Windows machine. Its key must be refused as well as it.
func TestRecordedSHA1QuoteIsRefused(t *testing.T) {
	var dump struct {
		AK    struct{ Public string }
		Quote struct{ Quote, Signature string }
		Log   struct{ Raw string }
	}
	if err := json.Unmarshal(testdata(t, "go-attestation/windows_gcp_shielded_vm.json"), &dump); err != nil {
		t.Fatal(err)
	}
	raw := func(s string) []byte {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	public, err := parsePublic(raw(dump.AK.Public))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := checkAK(public); err == nil || !strings.Contains(err.Error(), "with hash 0x4") {
		t.Errorf("attestation key with SHA-1: %v", err)
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		t.Fatal(err)
	}
	d := attest.Device{Kind: attest.KindTPM2, AKPublic: raw(dump.AK.Public), AKName: name.Buffer}
	ev := evidence.Evidence{Quote: raw(dump.Quote.Quote), Signature: raw(dump.Quote.Signature), EventLog: raw(dump.Log.Raw)}
	if _, err := verify(ev, nil, d); !errors.Is(err, attest.ErrUnauthentic) {
		t.Errorf("quote with SHA-1: %v", err)
	}
}

// Logs of real machines parse, and do not explain PCRs that are not theirs.
func TestRecordedLogs(t *testing.T) {
	files, err := filepath.Glob("testdata/*/*")
	if err != nil {
		t.Fatal(err)
	}
	logs := 0
	for _, file := range files {
		if !strings.HasSuffix(file, ".bin") && !strings.HasSuffix(file, "_eventlog") {
			continue
		}
		logs++
		log := testdata(t, strings.TrimPrefix(file, "testdata/"))
		if _, err := replay(log, map[int][sha256.Size]byte{0: {1}}); !errors.Is(err, attest.ErrUnauthentic) {
			t.Errorf("%s replays to anything: %v", file, err)
		}
	}
	if logs < 8 {
		t.Errorf("%d logs", logs)
	}
}

func TestEndorsementCertificate(t *testing.T) {
	block, _ := pem.Decode(testdata(t, "go-tpm-tools/pca_tpm_rsa_enc_cert.pem"))
	for name, der := range map[string][]byte{
		"as it is":         block.Bytes,
		"padded with ones": append(append([]byte{}, block.Bytes...), 0xff, 0xff, 0xff),
		"padded":           append(append([]byte{}, block.Bytes...), make([]byte, 400)...),
		"wrapped":          append([]byte{0x10, 0x01, 0x00, byte(len(block.Bytes) >> 8), byte(len(block.Bytes))}, block.Bytes...),
	} {
		if _, err := parseCertificate(der); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, der := range map[string][]byte{
		"empty":   nil,
		"cut":     block.Bytes[:len(block.Bytes)-1],
		"tail":    append(append([]byte{}, block.Bytes...), 0x30),
		"huge":    make([]byte, evidence.MaxCertificate+1),
		"wrapped": append([]byte{0x10, 0x01, 0x00, 0xff, 0xff}, block.Bytes...),
	} {
		if _, err := parseCertificate(der); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	cert, err := parseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := checkEKChain([][]byte{block.Bytes}, cert.PublicKey, nil, time.Now()); err == nil {
		t.Error("a certificate without any root was accepted")
	}
	if _, err := checkEKChain([][]byte{block.Bytes}, cert.PublicKey, []*x509.Certificate{cert}, time.Now()); err == nil {
		t.Error("an endorsement certificate vouched for itself")
	}
	many := make([][]byte, evidence.MaxCertificates+1)
	if _, err := checkEKChain(many, cert.PublicKey, nil, time.Now()); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("A14 deep chain: %v", err)
	}
}

// A directoryName holds maker, model and version in one relative name, or in three.
func TestReadSAN(t *testing.T) {
	attribute := func(arc int, value string) pkix.AttributeTypeAndValue {
		return pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 23, 133, 2, arc}, Value: value}
	}
	maker, model, version := attribute(1, "id:494E5443"), attribute(2, "Spark"), attribute(3, "id:00020000")
	encode := func(names pkix.RDNSequence) []byte {
		dn, err := asn1.Marshal(names)
		if err != nil {
			t.Fatal(err)
		}
		san, err := asn1.Marshal([]asn1.RawValue{
			{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte("example.test")},
			{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: dn},
		})
		if err != nil {
			t.Fatal(err)
		}
		return san
	}
	want := attest.Platform{Manufacturer: "id:494E5443", Model: "Spark", Version: "id:00020000"}
	for name, names := range map[string]pkix.RDNSequence{
		"one":   {{maker, model, version}},
		"three": {{maker}, {model}, {version}},
	} {
		var got attest.Platform
		if err := readSAN(encode(names), &got); err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	good := encode(pkix.RDNSequence{{maker, model}})
	for name, der := range map[string][]byte{
		"empty":             nil,
		"cut":               good[:len(good)-1],
		"tail":              append(append([]byte{}, good...), 0),
		"indefinite length": {0x30, 0x80},
		"escape sequence":   encode(pkix.RDNSequence{{attribute(1, "\x1b[31mred")}}),
		"long text":         encode(pkix.RDNSequence{{attribute(2, strings.Repeat("x", 65))}}),
	} {
		if err := readSAN(der, new(attest.Platform)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
