package tsm

import "github.com/bulla-project/bulla/attest"

const (
	snpLabel = "bulla-sev-snp-evidence/v1"

	// MaxReport is the largest report or quote, in bytes.
	MaxReport = 16 << 10

	maxTable        = 32 << 10
	maxCertificates = 8
	maxCertificate  = 4 << 10
)

// SEVSNP is the evidence of a guest under SEV-SNP.
type SEVSNP struct {
	Report       []byte   // ATTESTATION_REPORT
	Table        []byte   // certificates that the host gives, as in the GHCB specification; may be empty
	Certificates [][]byte // further ones that the guest has itself, in DER
}

// Marshal frames the evidence.
func (e SEVSNP) Marshal() []byte {
	return attest.Pack(snpLabel, e.Report, e.Table, attest.PackList(e.Certificates))
}

// ParseSEVSNP takes apart what Marshal made. It only frames.
func ParseSEVSNP(b []byte) (SEVSNP, error) {
	f, err := attest.Unpack(snpLabel, b, MaxReport, maxTable, maxCertificates*(maxCertificate+4))
	if err != nil {
		return SEVSNP{}, err
	}
	certs, err := attest.UnpackList(f[2], maxCertificates, maxCertificate)
	return SEVSNP{f[0], f[1], certs}, err
}
