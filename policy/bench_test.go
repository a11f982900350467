package policy

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	shipped "github.com/bulla-project/bulla/rego"
)

// grants returns data/grants.yaml with n principals, of which workload is one.
func grants(n int) string {
	var b strings.Builder
	b.WriteString("spiffe://dev.bulla.test/workload: {read: {demo/: true}, devices: [\"*\"]}\n")
	for i := 1; i < n; i++ {
		fmt.Fprintf(&b, "spiffe://dev.bulla.test/app/%d: {read: {app/%d/: true}, devices: [\"*\"]}\n", i, i)
	}
	return b.String()
}

// cpu reports the processor time of the whole process per operation, garbage collection included: on a
// machine that is shared it says more than the time on the clock.
func cpu(b *testing.B) func() {
	spent := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	start := spent()
	return func() { b.ReportMetric(float64(spent()-start)/float64(b.N), "cpu-ns/op") }
}

// BenchmarkDecide is a whole decision (encoding, input, risk, evaluation, decoding) asked for by a fresh
// goroutine, as a gRPC server does. It must not depend on the number of grants.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{1, 10_000} {
		b.Run(fmt.Sprintf("grants=%d", n), func(b *testing.B) {
			rev := open(b, map[string]string{"data/grants.yaml": grants(n)})
			e := newEngine(b, Config{})
			s := attested(delivery("workload", "demo/key", "high"), "tpm2", "affirming", 90)
			b.ReportAllocs()
			defer cpu(b)()
			for b.Loop() {
				done := make(chan Effect)
				go func() { done <- e.Decide(b.Context(), rev, s).Effect }()
				if effect := <-done; effect != Permit {
					b.Fatal(effect)
				}
			}
		})
	}
}

func BenchmarkJudge(b *testing.B) {
	rev := open(b, nil)
	s := attested(delivery("workload", "demo/key", "high"), "tpm2", "affirming", 90)
	cancel, stop := endAfter(b.Context(), 1e12)
	defer stop()
	b.ReportAllocs()
	defer cpu(b)()
	for b.Loop() {
		if d := rev.judge(b.Context(), s, cancel); d.Effect != Permit {
			b.Fatal(describe(d))
		}
	}
}

// BenchmarkTrivial is the same with a policy that always gives one constant: what the evaluator, the input and
// the encoding cost by themselves, to hold beside BenchmarkJudge in the same run.
func BenchmarkTrivial(b *testing.B) {
	rev := open(b, answer(whole("PERMIT", "{}", "{}")))
	s := attested(delivery("workload", "demo/key", "high"), "tpm2", "affirming", 90)
	cancel, stop := endAfter(b.Context(), 1e12)
	defer stop()
	b.ReportAllocs()
	defer cpu(b)()
	for b.Loop() {
		if d := rev.judge(b.Context(), s, cancel); d.Effect != Permit {
			b.Fatal(describe(d))
		}
	}
}

func BenchmarkInput(b *testing.B) {
	rev := open(b, nil)
	s := attested(delivery("workload", "demo/key", "high"), "tpm2", "affirming", 90)
	b.ReportAllocs()
	defer cpu(b)()
	for b.Loop() {
		rev.Input(s)
	}
}

func BenchmarkEncode(b *testing.B) {
	s := attested(delivery("workload", "demo/key", "high"), "tpm2", "affirming", 90)
	b.ReportAllocs()
	defer cpu(b)()
	for b.Loop() {
		if _, err := s.Encode(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	archive := changed(b, nil)
	for b.Loop() {
		if _, err := Load(b.Context(), archive, site); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLoadLarge(b *testing.B) {
	archive := encodeArchive(bundleFiles(b, shipped.Development(), map[string]string{"data/grants.yaml": grants(10_000)}))
	for b.Loop() {
		if _, err := Load(b.Context(), archive, site); err != nil {
			b.Fatal(err)
		}
	}
}
