package sevsnp

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	spb "github.com/google/go-sev-guest/proto/sevsnp"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/chain"
	"github.com/bulla-project/bulla/attest/tsm"
)

// A Report is evidence parsed, and not verified.
type Report struct {
	raw    []byte
	fields *spb.Report
	signer abi.SignerInfo
	policy abi.SnpPolicy
	certs  []*x509.Certificate
}

// Parse takes evidence apart.
func Parse(evidence []byte) (Report, error) {
	e, err := tsm.ParseSEVSNP(evidence)
	if err != nil {
		return Report{}, err
	}
	r, err := ParseReport(e.Report)
	if err != nil {
		return Report{}, err
	}
	r.certs, err = certificates(e)
	return r, err
}

// ParseReport reads a report without its certificates. It is read by its library, whose panics on odd bytes become
// errors, and must be the only form of what was read.
func ParseReport(raw []byte) (r Report, err error) {
	defer func() {
		if p := recover(); p != nil {
			r, err = Report{}, fmt.Errorf("the report can't be decoded: %v", p)
		}
	}()
	r.raw = raw
	if len(r.raw) != abi.ReportSize {
		return Report{}, fmt.Errorf("report of %d bytes, want %d", len(r.raw), abi.ReportSize)
	}
	if err := abi.ValidateReportFormat(r.raw); err != nil {
		return Report{}, err
	}
	if r.fields, err = abi.ReportToProto(r.raw); err != nil {
		return Report{}, err
	}
	if again, err := abi.ReportToAbiBytes(r.fields); err != nil || !bytes.Equal(again, r.raw) {
		return Report{}, fmt.Errorf("the report is not in canonical form")
	}
	if r.signer, err = abi.ParseSignerInfo(r.fields.GetSignerInfo()); err != nil {
		return Report{}, err
	}
	r.policy, err = abi.ParseSnpPolicy(r.fields.GetPolicy())
	return r, err
}

// certificates collects those that came along: from the table that the host gives to the guest, and from the
// guest itself. The root is never among them, it comes from the reference values.
func certificates(e tsm.SEVSNP) ([]*x509.Certificate, error) {
	ders, err := table(e.Table)
	if err != nil {
		return nil, fmt.Errorf("certificate table: %w", err)
	}
	ders = append(ders, e.Certificates...)
	if len(ders) == 0 {
		return nil, fmt.Errorf("no certificate for the report: the host gave none, and the guest has none")
	}
	return chain.Parse(ders)
}

// table takes VCEK, VLEK and ASK from a table of entries (GUID, offset, length), which one of zeros ends. It is read
// here and not by the library: that adds offset and length in 32 bits, and so can be made to allocate 4 GiB.
func table(b []byte) ([][]byte, error) {
	var ders [][]byte
	for at := 0; len(b) > 0; at += abi.CertTableEntrySize {
		if len(b)-at < abi.CertTableEntrySize {
			return nil, fmt.Errorf("cut short after %d bytes", at)
		}
		entry := b[at : at+abi.CertTableEntrySize]
		if len(bytes.Trim(entry, "\x00")) == 0 {
			return ders, nil
		}
		offset, length := binary.LittleEndian.Uint32(entry[16:]), binary.LittleEndian.Uint32(entry[20:])
		if end := uint64(offset) + uint64(length); end > uint64(len(b)) {
			return nil, fmt.Errorf("an entry ends at %d, the table at %d", end, len(b))
		}
		guid := hex.EncodeToString(entry[:16])
		for _, wanted := range []string{abi.VcekGUID, abi.VlekGUID, abi.AskGUID} {
			if guid == strings.ReplaceAll(wanted, "-", "") && length > 0 {
				ders = append(ders, b[offset:offset+length])
			}
		}
	}
	return ders, nil
}

// Values are what the report shows by their names, sorted. A chip id of zeros is a hidden one.
func (r Report) Values() []attest.Named {
	f := r.fields
	out := []attest.Named{
		named("author_key_digest", f.GetAuthorKeyDigest()), named("family_id", f.GetFamilyId()), named("host_data", f.GetHostData()),
		named("id_key_digest", f.GetIdKeyDigest()), named("image_id", f.GetImageId()), named(attest.ValueMeasurement, f.GetMeasurement()),
	}
	if r.hasChip() {
		out = append(out, named(attest.ValueChipID, f.GetChipId()))
	}
	slices.SortFunc(out, func(a, b attest.Named) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (r Report) hasChip() bool { return len(bytes.Trim(r.fields.GetChipId(), "\x00")) > 0 }

func named(name string, value []byte) attest.Named {
	return attest.Named{Name: name, Value: hex.EncodeToString(value)}
}

// leaf finds the certificate of the key that signed, by its name, and gives the others.
func (r Report) leaf() (*x509.Certificate, []*x509.Certificate, error) {
	if r.signer.SigningKey != abi.VcekReportSigner && r.signer.SigningKey != abi.VlekReportSigner {
		return nil, nil, fmt.Errorf("the report is not signed by VCEK or VLEK, but by %q", r.signer.SigningKey)
	}
	name := "SEV-" + r.signer.SigningKey.String()
	var found *x509.Certificate
	var others []*x509.Certificate
	for _, c := range r.certs {
		switch {
		case c.Subject.CommonName != name:
			others = append(others, c)
		case found != nil && !found.Equal(c):
			return nil, nil, fmt.Errorf("two certificates for %s", r.signer.SigningKey)
		default:
			found = c
		}
	}
	if found == nil {
		return nil, nil, fmt.Errorf("no certificate for the %s that signed", r.signer.SigningKey)
	}
	return found, others, nil
}

// product is the processor line. Newer reports say it themselves; for older ones the certificate does.
func (r Report) product(ext *kds.Extensions) (string, error) {
	line := ""
	if fms := r.fields.GetCpuid1EaxFms(); fms != 0 {
		line = kds.ProductLineFromFms(fms)
	} else {
		product, err := kds.ParseProductName(ext.ProductName, r.signer.SigningKey)
		if err != nil {
			return "", err
		}
		line = kds.ProductLine(product)
	}
	if line != "Milan" && line != "Genoa" {
		return "", fmt.Errorf("processor line %q is not known here: its TCB may be laid out in another way", line)
	}
	return line, nil
}

// tcb is the lowest of the versions that the report names: those that its signing key stands for, those of now,
// and those that the guest was launched under.
func (r Report) tcb() []attest.SVN {
	lowest := kds.DecomposeTCBVersion(kds.TCBVersion(r.fields.GetReportedTcb()))
	for _, v := range []uint64{r.fields.GetCurrentTcb(), r.fields.GetLaunchTcb()} {
		next := kds.DecomposeTCBVersion(kds.TCBVersion(v))
		lowest.BlSpl, lowest.TeeSpl = min(lowest.BlSpl, next.BlSpl), min(lowest.TeeSpl, next.TeeSpl)
		lowest.SnpSpl, lowest.UcodeSpl = min(lowest.SnpSpl, next.SnpSpl), min(lowest.UcodeSpl, next.UcodeSpl)
	}
	return []attest.SVN{
		{Name: "boot_loader", Values: []int{int(lowest.BlSpl)}},
		{Name: "tee", Values: []int{int(lowest.TeeSpl)}},
		{Name: "snp", Values: []int{int(lowest.SnpSpl)}},
		{Name: "microcode", Values: []int{int(lowest.UcodeSpl)}},
	}
}
