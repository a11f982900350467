package sevsnp

import (
	"bytes"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/chain"
	"github.com/bulla-project/bulla/attest/tsm"
)

// recorded is a real report with its certificates, and the record of its image below AMD's root.
func recorded(t testing.TB) (tsm.SEVSNP, attest.Device) {
	t.Helper()
	file := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("testdata", "go-sev-guest", name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	authorities, err := chain.ParsePEM(file("milan.testcer"))
	if err != nil || len(authorities) != 2 {
		t.Fatal(len(authorities), err)
	}
	// The key may have been written as DER or as PEM.
	vcek := file("vcek.testcer")
	if block, _ := pem.Decode(vcek); block != nil {
		vcek = block.Bytes
	}
	ev := tsm.SEVSNP{Report: file("attestation.bin"), Certificates: [][]byte{vcek, authorities[0].Raw}}
	r, err := Parse(ev.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	image, err := attest.NewImage(attest.KindSEVSNP, r.Values(), true)
	if err != nil {
		t.Fatal(err)
	}
	d, err := image.Enrol(attest.KindSEVSNP)
	if err != nil {
		t.Fatal(err)
	}
	d.Roots = authorities[1:]
	return ev, d
}

// year is when the certificates were valid.
var year = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

func TestRecorded(t *testing.T) {
	ev, dev := recorded(t)
	r, err := Parse(ev.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	data := [attest.ReportSize]byte(r.fields.GetReportData())
	// The guest was started so that its host may debug it. Whatever else holds, that is refused.
	if err := r.check(data, dev); err == nil || !strings.Contains(err.Error(), "debugging") {
		t.Errorf("of a guest that may be debugged: %v", err)
	}
	r.policy.Debug = false
	if err := r.check(data, dev); err != nil {
		t.Error(err)
	}
	product, err := r.verify(dev, year)
	if err != nil || product != "Milan" {
		t.Fatalf("%q, %v", product, err)
	}
	if m := r.machine(product); m.Platform != dev.Image[0].Value || m.Endorser != "VCEK" || len(m.TCB) != 4 {
		t.Errorf("%+v", m)
	}
	data[0] ^= 1
	if err := r.check(data, dev); err == nil {
		t.Error("believed for another challenge")
	}
	if _, err := r.verify(dev, year.AddDate(50, 0, 0)); err == nil {
		t.Error("believed with certificates that ended")
	}
	other := dev
	other.Roots = nil
	if _, err := r.verify(other, year); err == nil {
		t.Error("believed without a root")
	}
}

// What the signature covers can't be changed: each byte of it.
func TestRecordedFlips(t *testing.T) {
	ev, dev := recorded(t)
	good := ev.Report
	for i := 0; i < 0x2a0; i += 5 {
		ev.Report = bytes.Clone(good)
		ev.Report[i] ^= 1
		r, err := Parse(ev.Marshal())
		if err != nil {
			continue // a reserved field
		}
		if _, err := r.verify(dev, year); err == nil {
			t.Errorf("byte %#x: believed", i)
		}
	}
}

// The same certificates may come in the table that the host gives.
func TestTable(t *testing.T) {
	ev, dev := recorded(t)
	ev.Table, ev.Certificates = certTable(ev.Certificates), nil
	r, err := Parse(ev.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.verify(dev, year); err != nil {
		t.Error(err)
	}
	ev.Table[len(ev.Table)-1] ^= 1
	if r, err = Parse(ev.Marshal()); err == nil {
		_, err = r.verify(dev, year)
	}
	if err == nil {
		t.Error("believed with an odd certificate")
	}
	if _, err := (Verifier{}).Locate(nil); !errors.Is(err, attest.ErrUnauthentic) {
		t.Error(err)
	}
}
