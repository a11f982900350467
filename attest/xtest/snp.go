package xtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"testing"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	spb "github.com/google/go-sev-guest/proto/sevsnp"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tsm"
)

// goodTCB is the TCB of the reference values: boot loader 3, tee 0, snp 8, microcode 115.
const goodTCB = uint64(115)<<56 | uint64(8)<<48 | 3

// SNPGuest is a report before it is signed and its certificate before it is issued.
type SNPGuest struct {
	Report  *spb.Report
	Name    string // common name of the signing certificate
	Product string
	HWID    []byte
	TCB     uint64 // of the certificate
	Change  func(*x509.Certificate)
}

func snpMachine(t testing.TB) *Machine {
	ca, stranger := NewCA(t, elliptic.P384(), "Milan"), NewCA(t, elliptic.P384(), "Milan")
	chip := bytes.Repeat([]byte{0xc1}, 64)
	guest := func(b attest.Binding) SNPGuest {
		data := b.ReportData()
		return SNPGuest{Name: "SEV-VCEK", Product: "Milan-B0", HWID: chip, TCB: goodTCB, Report: &spb.Report{
			Version: 2, Policy: 1<<17 | 1<<16, SignatureAlgo: 1, CurrentTcb: goodTCB, ReportedTcb: goodTCB, CommittedTcb: goodTCB, LaunchTcb: goodTCB,
			FamilyId: make([]byte, 16), ImageId: make([]byte, 16), ReportData: data[:], Measurement: measuredBytes(0, 48), HostData: measuredBytes(1, 32),
			IdKeyDigest: make([]byte, 48), AuthorKeyDigest: make([]byte, 48), ReportId: measuredBytes(2, 32), ReportIdMa: measuredBytes(3, 32),
			ChipId: chip, Signature: make([]byte, abi.SignatureSize),
		}}
	}
	with := func(change func(*SNPGuest)) func(testing.TB, attest.Binding) []byte {
		return func(t testing.TB, b attest.Binding) []byte {
			g := guest(b)
			change(&g)
			return g.evidence(t, ca)
		}
	}
	report := func(change func(*spb.Report)) func(testing.TB, attest.Binding) []byte {
		return with(func(g *SNPGuest) { change(g.Report) })
	}
	m := &Machine{Kind: attest.KindSEVSNP, Root: ca.Root, Evidence: with(func(*SNPGuest) {})}
	m.Values = map[string][]byte{attest.ValueMeasurement: measuredBytes(0, 48), attest.ValueChipID: chip}
	again := func(change func(*tsm.SEVSNP)) func(testing.TB, attest.Binding) []byte {
		return func(t testing.TB, b attest.Binding) []byte {
			e, err := tsm.ParseSEVSNP(m.Evidence(t, b))
			if err != nil {
				t.Fatal(err)
			}
			change(&e)
			return e.Marshal()
		}
	}
	m.Forgeries = append(commonForgeries(m),
		MachineForgery{"wrong root", "no chain to a root", func(t testing.TB, b attest.Binding) []byte { g := guest(b); return g.evidence(t, stranger) }},
		MachineForgery{"expired chain", "no chain to a root", with(func(g *SNPGuest) { g.Change = expired })},
		MachineForgery{"leaf is an authority", "one of an authority", with(func(g *SNPGuest) {
			g.Change = func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }
		})},
		MachineForgery{"debug", "allows debugging", report(func(r *spb.Report) { r.Policy |= 1 << 19 })},
		MachineForgery{"asked for by the host", "not asked for by the guest", report(func(r *spb.Report) { r.Vmpl = 0xffffffff })},
		MachineForgery{"other image", "another image", report(func(r *spb.Report) { r.Measurement = measuredBytes(9, 48) })},
		MachineForgery{"other chip", "another image or another chip", with(func(g *SNPGuest) {
			g.HWID = bytes.Repeat([]byte{0xc2}, 64)
			g.Report.ChipId = g.HWID
		})},
		MachineForgery{"key of another chip", "for another chip", with(func(g *SNPGuest) { g.HWID = bytes.Repeat([]byte{0xc2}, 64) })},
		MachineForgery{"key of other versions", "for other TCB versions", with(func(g *SNPGuest) { g.TCB-- })},
		MachineForgery{"no signature key", "not signed by VCEK or VLEK", report(func(r *spb.Report) { r.SignerInfo = 7 << 2 })},
		MachineForgery{"VLEK without its certificate", "no certificate for the VLEK", report(func(r *spb.Report) { r.SignerInfo = 1 << 2 })},
		MachineForgery{"unknown product", "unknown product name", with(func(g *SNPGuest) { g.Product = "Rome-A0" })},
		MachineForgery{"Turin", "is not known here", with(func(g *SNPGuest) { g.Product = "Turin-B0" })},
		MachineForgery{"bit of the report", "does not verify", again(func(e *tsm.SEVSNP) { e.Report = bytes.Clone(e.Report); e.Report[0x140] ^= 1 })},
		MachineForgery{"bit of the signature", "does not verify", again(func(e *tsm.SEVSNP) { e.Report = bytes.Clone(e.Report); e.Report[0x2a0] ^= 1 })},
		MachineForgery{"A14 report of another size", "report of", again(func(e *tsm.SEVSNP) { e.Report = append(bytes.Clone(e.Report), 0) })},
		MachineForgery{"A14 version of the future", "version", again(func(e *tsm.SEVSNP) { e.Report = bytes.Clone(e.Report); e.Report[0] = 99 })},
		MachineForgery{"A14 table that asks for 4 GiB", "an entry ends at", again(func(e *tsm.SEVSNP) {
			e.Table = append(bytes.Repeat([]byte{1}, 16), binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, 0x300), 0xfffffe00)...)
		})},
		MachineForgery{"A14 table without an end", "cut short", again(func(e *tsm.SEVSNP) { e.Table = []byte{1, 2, 3} })},
		MachineForgery{"A14 nine certificates", "list of more than", again(func(e *tsm.SEVSNP) {
			for range 8 {
				e.Certificates = append(e.Certificates, []byte{1})
			}
		})},
		MachineForgery{"no certificates", "no certificate for the report", again(func(e *tsm.SEVSNP) { e.Certificates = nil })},
	)
	old := goodTCB - 1<<56
	m.Old = with(func(g *SNPGuest) { g.TCB, g.Report.ReportedTcb = old, old })
	m.OtherImage = report(func(r *spb.Report) { r.HostData = measuredBytes(9, 32) })
	m.finish(t)
	return m
}

// kdsExtension is an extension of AMD's key distribution service.
func kdsExtension(value []byte, arc ...int) pkix.Extension {
	return pkix.Extension{Id: append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, arc...), Value: value}
}

func (g SNPGuest) extensions(t testing.TB) []pkix.Extension {
	t.Helper()
	der := func(v any, params string) []byte {
		b, err := asn1.MarshalWithParams(v, params)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	p := kds.DecomposeTCBVersion(kds.TCBVersion(g.TCB))
	out := []pkix.Extension{kdsExtension(der(0, ""), 1), kdsExtension(der(g.Product, "ia5"), 2), kdsExtension(g.HWID, 4)}
	for i, v := range []uint8{p.BlSpl, p.TeeSpl, p.SnpSpl, p.Spl4, p.Spl5, p.Spl6, p.Spl7, p.UcodeSpl} {
		out = append(out, kdsExtension(der(int(v), ""), 3, i+1))
	}
	return out
}

// evidence signs the report with a key that ca certifies.
func (g SNPGuest) evidence(t testing.TB, ca *CA) []byte {
	t.Helper()
	leaf, key := ca.BareLeaf(t, g.Name, g.Change, g.extensions(t)...)
	raw, err := abi.ReportToAbiBytes(g.Report)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha512.Sum384(abi.SignedComponent(raw))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	if err := abi.SetSignature(r, s, raw); err != nil {
		t.Fatal(err)
	}
	return tsm.SEVSNP{Report: raw, Certificates: [][]byte{leaf.Raw, ca.Between.Raw}}.Marshal()
}
