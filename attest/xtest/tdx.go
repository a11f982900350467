package xtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"testing"

	"github.com/google/go-tdx-guest/abi"
	tpb "github.com/google/go-tdx-guest/proto/tdx"

	"github.com/bulla-project/bulla/attest"
)

// TDXDomain is a quote before it is signed and its certificate before it is issued.
type TDXDomain struct {
	Quote  *tpb.QuoteV4
	FMSPC  []byte
	PPID   []byte
	PCESvn int
	Change func(*x509.Certificate)
	// Vouched replaces what the report of the quoting enclave says of the attestation key.
	Vouched []byte
}

func (d *TDXDomain) body() *tpb.TDQuoteBody { return d.Quote.GetTdQuoteBody() }

func (d *TDXDomain) qe() *tpb.EnclaveReport {
	return d.Quote.GetSignedData().GetCertificationData().GetQeReportCertificationData().GetQeReport()
}

func tdxMachine(t testing.TB) *Machine {
	ca, stranger := NewCA(t, elliptic.P256(), "SGX"), NewCA(t, elliptic.P256(), "SGX")
	ppid := bytes.Repeat([]byte{0xd1}, 16)
	with := func(change func(*TDXDomain)) func(testing.TB, attest.Binding) []byte {
		return func(t testing.TB, b attest.Binding) []byte {
			d := tdxDomain(t, b, ppid)
			change(&d)
			return d.evidence(t, ca)
		}
	}
	m := &Machine{Kind: attest.KindTDX, Root: ca.Root, Evidence: with(func(*TDXDomain) {})}
	m.Values = map[string][]byte{attest.ValueMRTD: measuredBytes(0, 48), attest.ValuePPID: ppid}
	bit := func(at int) func(testing.TB, attest.Binding) []byte {
		return func(t testing.TB, b attest.Binding) []byte {
			ev := m.Evidence(t, b)
			ev[at] ^= 1
			return ev
		}
	}
	m.Forgeries = append(commonForgeries(m),
		MachineForgery{"wrong root", "no chain to a root", func(t testing.TB, b attest.Binding) []byte {
			d := tdxDomain(t, b, ppid)
			return d.evidence(t, stranger)
		}},
		MachineForgery{"expired chain", "no chain to a root", with(func(d *TDXDomain) { d.Change = expired })},
		MachineForgery{"leaf is an authority", "one of an authority", with(func(d *TDXDomain) { d.Change = func(c *x509.Certificate) { c.IsCA = true } })},
		MachineForgery{"debug", "started for debugging", with(func(d *TDXDomain) { d.body().TdAttributes[0] |= 1 })},
		MachineForgery{"module of another signer", "not Intel's", with(func(d *TDXDomain) { d.body().MrSignerSeam[0] = 1 })},
		MachineForgery{"module for debugging", "one for debugging", with(func(d *TDXDomain) { d.body().SeamAttributes[7] = 0x80 })},
		MachineForgery{"quoting enclave of another signer", "quoting enclave is not Intel's", with(func(d *TDXDomain) { d.qe().MrSigner = measuredBytes(1, 32) })},
		MachineForgery{"another enclave of Intel", "quoting enclave is not Intel's", with(func(d *TDXDomain) { d.qe().IsvProdId = 1 })},
		MachineForgery{"quoting enclave for debugging", "quoting enclave was started for debugging", with(func(d *TDXDomain) { d.qe().Attributes[0] |= 2 })},
		MachineForgery{"other image", "another image", with(func(d *TDXDomain) { d.body().MrTd = measuredBytes(9, 48) })},
		MachineForgery{"other platform", "another platform", with(func(d *TDXDomain) { d.PPID = bytes.Repeat([]byte{0xd2}, 16) })},
		MachineForgery{"attestation key of nobody", "another attestation key", with(func(d *TDXDomain) { d.Vouched = make([]byte, 64) })},
		MachineForgery{"bit of the body", "does not verify", bit(0x30 + 0x88 + 48)}, // mrconfigid
		MachineForgery{"bit of the quote's signature", "does not verify", bit(0x27c)},
		MachineForgery{"bit of the enclave's report", "does not verify", bit(0x27c + 0x80 + 6)}, // cpu svn
		MachineForgery{"bit of the enclave's signature", "report does not verify", bit(0x27c + 0x80 + 6 + 0x180)},
		MachineForgery{"A14 version 5", "not supported", bit(0)},
		MachineForgery{"A14 length lie", "", bit(0x27a)},
	)
	m.Old = with(func(d *TDXDomain) { d.PCESvn = 10 })
	m.OtherImage = with(func(d *TDXDomain) { d.body().Rtmrs[2] = measuredBytes(9, 48) })
	m.finish(t)
	return m
}

func tdxDomain(t testing.TB, b attest.Binding, ppid []byte) TDXDomain {
	t.Helper()
	data := b.ReportData()
	signer, err := hex.DecodeString("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
	if err != nil {
		t.Fatal(err)
	}
	return TDXDomain{FMSPC: []byte{0x50, 0x80, 0x6f, 0, 0, 0}, PPID: ppid, PCESvn: 11, Quote: &tpb.QuoteV4{
		Header: &tpb.Header{Version: 4, AttestationKeyType: 2, TeeType: 0x81, PceSvn: []byte{11, 0}, QeSvn: []byte{4, 0}, QeVendorId: vendor(t), UserData: make([]byte, 20)},
		TdQuoteBody: &tpb.TDQuoteBody{
			TeeTcbSvn: []byte{3, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, MrSeam: measuredBytes(5, 48), MrSignerSeam: make([]byte, 48), SeamAttributes: make([]byte, 8),
			TdAttributes: []byte{0, 0, 0, 0x10, 0, 0, 0, 0}, Xfam: make([]byte, 8), MrTd: measuredBytes(0, 48), MrConfigId: make([]byte, 48),
			MrOwner: make([]byte, 48), MrOwnerConfig: make([]byte, 48), ReportData: data[:],
			Rtmrs: [][]byte{measuredBytes(0, 48), measuredBytes(1, 48), measuredBytes(2, 48), measuredBytes(3, 48)},
		},
		SignedData: &tpb.Ecdsa256BitQuoteV4AuthData{CertificationData: &tpb.CertificationData{CertificateDataType: 6, QeReportCertificationData: &tpb.QEReportCertificationData{
			QeReport: &tpb.EnclaveReport{
				CpuSvn: make([]byte, 16), Reserved1: make([]byte, 28), Attributes: append([]byte{0x11}, make([]byte, 15)...), MrEnclave: measuredBytes(7, 32),
				Reserved2: make([]byte, 32), MrSigner: signer, Reserved3: make([]byte, 96), IsvProdId: 2, IsvSvn: 4, Reserved4: make([]byte, 60), ReportData: make([]byte, 64),
			},
			QeAuthData: &tpb.QeAuthData{ParsedDataSize: 32, Data: measuredBytes(8, 32)},
		}}},
	}}
}

// vendor is the id of Intel's quoting enclaves.
func vendor(t testing.TB) []byte {
	t.Helper()
	id, err := hex.DecodeString("939a7233f79c4ca9940a0db3957f0607")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// sgxOID is an arc below Intel's SGX extension.
func sgxOID(arc ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}, arc...)
}

type sgxBytes struct {
	ID    asn1.ObjectIdentifier
	Value []byte
}

type sgxInt struct {
	ID    asn1.ObjectIdentifier
	Value int
}

func (d TDXDomain) extension(t testing.TB) pkix.Extension {
	t.Helper()
	der := func(v any) asn1.RawValue {
		b, err := asn1.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return asn1.RawValue{FullBytes: b}
	}
	var tcb []asn1.RawValue
	for i, v := range []int{5, 5, 2, 2, 3, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0} {
		tcb = append(tcb, der(sgxInt{sgxOID(2, i+1), v}))
	}
	tcb = append(tcb, der(sgxInt{sgxOID(2, 17), d.PCESvn}), der(sgxBytes{sgxOID(2, 18), make([]byte, 16)}))
	all := []asn1.RawValue{
		der(sgxBytes{sgxOID(1), d.PPID}),
		der(struct {
			ID    asn1.ObjectIdentifier
			Value []asn1.RawValue
		}{sgxOID(2), tcb}),
		der(sgxBytes{sgxOID(3), []byte{0, 0}}), der(sgxBytes{sgxOID(4), d.FMSPC}),
	}
	return pkix.Extension{Id: sgxOID(), Value: der(all).FullBytes}
}

// evidence signs the quote with a fresh attestation key, and that with one that ca certifies.
func (d TDXDomain) evidence(t testing.TB, ca *CA) []byte {
	t.Helper()
	leaf, pck := ca.Leaf(t, "Intel SGX PCK Certificate", d.Change, d.extension(t))
	chain := PEM(leaf, ca.Between, ca.Root)
	attestation := newKey(t, elliptic.P256())
	point, err := attestation.PublicKey.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	signed := d.Quote.GetSignedData()
	signed.EcdsaAttestationKey = point.Bytes()[1:]
	certification := signed.GetCertificationData().GetQeReportCertificationData()
	certification.PckCertificateChainData = &tpb.PCKCertificateChainData{CertificateDataType: 5, Size: uint32(len(chain)), PckCertChain: chain}
	vouched := sha256.Sum256(append(bytes.Clone(signed.GetEcdsaAttestationKey()), certification.GetQeAuthData().GetData()...))
	if copy(certification.GetQeReport().ReportData, vouched[:]); d.Vouched != nil {
		certification.QeReport.ReportData = d.Vouched
	}
	report, err := abi.EnclaveReportToAbiBytes(certification.GetQeReport())
	if err != nil {
		t.Fatal(err)
	}
	certification.QeReportSignature = rs(t, pck, report)
	signed.GetCertificationData().Size = uint32(0x180 + 0x40 + 2 + len(certification.GetQeAuthData().GetData()) + 6 + len(chain))
	d.Quote.SignedDataSize = 0x80 + 6 + signed.GetCertificationData().GetSize()
	head, err := abi.HeaderToAbiBytes(d.Quote.GetHeader())
	if err != nil {
		t.Fatal(err)
	}
	body, err := abi.TdQuoteBodyToAbiBytes(d.Quote.GetTdQuoteBody())
	if err != nil {
		t.Fatal(err)
	}
	signed.Signature = rs(t, attestation, append(head, body...))
	raw, err := abi.QuoteToAbiBytes(d.Quote)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// rs is a signature in the form r, s of 32 bytes each.
func rs(t testing.TB, key *ecdsa.PrivateKey, message []byte) []byte {
	t.Helper()
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
}
