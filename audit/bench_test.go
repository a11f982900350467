package audit

import (
	"path/filepath"
	"testing"

	"github.com/bulla-project/bulla/audit/proofs"
)

// BenchmarkIntegrate measures leaves that go into the log, checkpoints and fsync included.
func BenchmarkIntegrate(b *testing.B) {
	s := newSigner(b)
	src := newLedger(b, s.Key(), 20_000)
	for b.Loop() {
		b.StopTimer()
		dir := b.TempDir()
		b.StartTimer()
		l := openLog(b, dir, s, src)
		if _, err := l.Integrate(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	perSecond(b, len(src.leaves))
}

// BenchmarkVerify measures the whole verification of an export, events included.
func BenchmarkVerify(b *testing.B) {
	s := newSigner(b)
	src := newLedger(b, s.Key(), 20_000)
	dir := export(b, s, src)
	for b.Loop() {
		if _, err := Verify(b.Context(), dir, s.Key(), VerifyOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	perSecond(b, len(src.leaves))
}

func BenchmarkExport(b *testing.B) {
	s := newSigner(b)
	src := newLedger(b, s.Key(), 20_000)
	raw := sign(b, s, src)
	for b.Loop() {
		if _, err := Export(b.Context(), filepath.Join(b.TempDir(), "x"), ExportConfig{Checkpoint: raw, Key: s.Key(), Events: src}); err != nil {
			b.Fatal(err)
		}
	}
	perSecond(b, len(src.leaves))
}

func BenchmarkProve(b *testing.B) {
	s := newSigner(b)
	src := newLedger(b, s.Key(), 20_000)
	l := openLog(b, b.TempDir(), s, src)
	if _, err := l.Integrate(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Run("prove", func(b *testing.B) {
		for i := int64(0); b.Loop(); i++ {
			if _, err := l.ProveInclusion(i%l.Size(), l.Size()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("check", func(b *testing.B) {
		p, err := l.ProveInclusion(777, l.Size())
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, err := proofs.VerifyInclusion(l.Checkpoint(), s.Key(), 777, src.leaves[777].Leaf, p); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// perSecond reports how many of n entries per iteration were handled in a second.
func perSecond(b *testing.B, n int) {
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
