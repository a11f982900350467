package audit

import (
	"crypto/sha256"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

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

// BenchmarkVerifyFloor measures what no verification can do without: SHA-256 over each event twice (its commitment and
// its file), over each entry and tile, and over the nodes of the tree, on all processors that Verify uses.
func BenchmarkVerifyFloor(b *testing.B) {
	s := newSigner(b)
	src := newLedger(b, s.Key(), 20_000)
	workers := runtime.GOMAXPROCS(0)
	for b.Loop() {
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for i := w; i < len(src.records); i += workers {
					leaf := src.records[i].Leaf().Bytes() // two commitments
					sha256.Sum256(src.records[i].Encoding)
					sha256.Sum256(leaf)
					h := proofs.LeafHash(leaf)
					tlog.NodeHash(h, h)
				}
			})
		}
		wg.Wait()
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
