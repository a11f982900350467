package tdx

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/chain"
)

// recorded is a real quote, and the record of its image below Intel's root.
func recorded(t testing.TB) ([]byte, attest.Device) {
	t.Helper()
	file := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("testdata", "go-tdx-guest", name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	raw := file("tdx_prod_quote_SPR_E4.dat")
	if _, err := Parse(raw); err == nil || !strings.Contains(err.Error(), "after the quote") {
		t.Errorf("the file has a text after the quote, and parsing it gives %v", err)
	}
	raw, _, _ = bytes.Cut(raw, []byte("\nextra bytes(only"))
	roots, err := chain.ParsePEM(file("trusted_root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	q, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	image, err := attest.NewImage(attest.KindTDX, q.Values(), true)
	if err != nil {
		t.Fatal(err)
	}
	d, err := image.Enrol(attest.KindTDX)
	if err != nil {
		t.Fatal(err)
	}
	d.Roots = roots
	return raw, d
}

// year is when the certificates were valid.
var year = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

func TestRecorded(t *testing.T) {
	raw, dev := recorded(t)
	q, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	data := [attest.ReportSize]byte(q.fields.GetTdQuoteBody().GetReportData())
	if err := q.check(data, dev); err != nil {
		t.Error(err)
	}
	if err := q.verify(dev, year); err != nil {
		t.Fatal(err)
	}
	if m := q.machine(); m.Debug != attest.False || m.Product != "50806f000000" || m.Migratable != attest.False || len(m.TCB) != 4 {
		t.Errorf("%+v", m)
	}
	data[0] ^= 1
	if err := q.check(data, dev); err == nil {
		t.Error("believed for another challenge")
	}
	if err := q.verify(dev, year.AddDate(50, 0, 0)); err == nil {
		t.Error("believed with certificates that ended")
	}
	other := dev
	other.Roots = []*x509.Certificate{q.certs[1]}
	if err := q.verify(dev, year); err != nil {
		t.Error(err)
	}
	other.Roots = nil
	if err := q.verify(other, year); err == nil {
		t.Error("believed without a root")
	}
}

// What the signatures cover can't be changed.
func TestRecordedFlips(t *testing.T) {
	raw, dev := recorded(t)
	for i := 0; i < 0x27c+0x80+6+0x1c0; i += 7 {
		odd := bytes.Clone(raw)
		odd[i] ^= 1
		q, err := Parse(odd)
		if err != nil {
			continue // a length or a reserved field
		}
		if err := q.verify(dev, year); err == nil {
			t.Errorf("byte %#x: believed", i)
		}
	}
}
