package tdx

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-tdx-guest/abi"
	"github.com/google/go-tdx-guest/pcs"
	tpb "github.com/google/go-tdx-guest/proto/tdx"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/chain"
	"github.com/bulla-project/bulla/attest/tsm"
)

// A Quote is evidence parsed, and not verified.
type Quote struct {
	raw      []byte
	fields   *tpb.QuoteV4
	certs    []*x509.Certificate // of the certification key, the leaf first
	platform *pcs.PckExtensions
}

// Sizes of the parts of a quote that are signed, in bytes.
const (
	headerSize = 0x30
	bodySize   = 0x248
)

// Parse takes a quote apart. It is read by its library, whose panics on odd bytes become errors, and must be the
// only form of what was read. Zeros may follow it, as some drivers hand out whole pages.
func Parse(evidence []byte) (q Quote, err error) {
	defer func() {
		if p := recover(); p != nil {
			q, err = Quote{}, fmt.Errorf("the quote can't be decoded: %v", p)
		}
	}()
	if len(evidence) == 0 || len(evidence) > tsm.MaxReport {
		return Quote{}, fmt.Errorf("quote of %d bytes, want 1 to %d", len(evidence), tsm.MaxReport)
	}
	parsed, err := abi.QuoteToProto(evidence)
	if err != nil {
		return Quote{}, err
	}
	fields, ok := parsed.(*tpb.QuoteV4)
	if !ok {
		return Quote{}, fmt.Errorf("not a quote of version 4")
	}
	if len(bytes.Trim(fields.GetExtraBytes(), "\x00")) > 0 {
		return Quote{}, fmt.Errorf("%d bytes after the quote", len(fields.GetExtraBytes()))
	}
	if again, err := abi.QuoteToAbiBytes(fields); err != nil || !bytes.Equal(again, evidence) {
		return Quote{}, fmt.Errorf("the quote is not in canonical form")
	}
	q = Quote{raw: evidence, fields: fields}
	pck := q.certification().GetPckCertificateChainData().GetPckCertChain()
	if q.certs, err = chain.ParsePEM(pck); err != nil {
		return Quote{}, fmt.Errorf("certificates of the platform: %w", err)
	}
	if q.platform, err = pcs.PckCertificateExtensions(q.certs[0]); err != nil {
		return Quote{}, fmt.Errorf("extensions of the certificate of the platform: %w", err)
	}
	return q, nil
}

func (q Quote) certification() *tpb.QEReportCertificationData {
	return q.fields.GetSignedData().GetCertificationData().GetQeReportCertificationData()
}

// Values are what the quote shows by their names, sorted.
func (q Quote) Values() []attest.Named {
	body := q.fields.GetTdQuoteBody()
	out := []attest.Named{
		named(attest.ValueMRTD, body.GetMrTd()), named("mrconfigid", body.GetMrConfigId()), named("mrowner", body.GetMrOwner()),
		named("mrownerconfig", body.GetMrOwnerConfig()), named("mrseam", body.GetMrSeam()),
		{Name: attest.ValuePPID, Value: q.platform.PPID},
	}
	for i, value := range body.GetRtmrs() {
		out = append(out, named(fmt.Sprintf("rtmr%d", i), value))
	}
	slices.SortFunc(out, func(a, b attest.Named) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func named(name string, value []byte) attest.Named {
	return attest.Named{Name: name, Value: hex.EncodeToString(value)}
}

// tcb are the security versions that the quote shows: of the TDX module, and of the platform and its quoting
// enclave as the certificate and the report of the enclave put them.
func (q Quote) tcb() []attest.SVN {
	list := func(b []byte) []int {
		out := make([]int, len(b))
		for i, v := range b {
			out[i] = int(v)
		}
		return out
	}
	return []attest.SVN{
		{Name: "tee_tcb_svn", Values: list(q.fields.GetTdQuoteBody().GetTeeTcbSvn())},
		{Name: "cpu_svn", Values: list(q.platform.TCB.CPUSvnComponents)},
		{Name: "pce_svn", Values: []int{int(q.platform.TCB.PCESvn)}},
		{Name: "qe_isv_svn", Values: []int{int(q.certification().GetQeReport().GetIsvSvn())}},
	}
}
