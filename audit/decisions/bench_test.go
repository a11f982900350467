package decisions_test

import (
	"runtime"
	"syscall"
	"testing"

	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/policy/replay"
)

// spent is the processor time of the whole process in nanoseconds: on a machine that is shared it says more than the
// time on the clock.
func spent(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkReplay replays a record of mixed kinds, encoded events to verdicts, on all cores. Its ratio is the processor
// time of one replayed decision over that of one evaluation of the same signals by policy.Judge, in the same run.
func BenchmarkReplay(b *testing.B) {
	defer runtime.KeepAlive(make([]byte, 64<<20)) // as the command does (cmd/bulla/memory.go)
	w := newWorld(b)
	const n = 4096
	record := w.record(b, n)
	library := w.library()
	var signals []policy.Signals
	for r, err := range read(record) {
		if err != nil {
			b.Fatal(err)
		}
		s, err := policy.ParseSignals(r.Signals)
		if err != nil {
			b.Fatal(err)
		}
		signals = append(signals, s)
	}
	before := spent(b)
	for _, s := range signals {
		w.rev.Judge(b.Context(), s)
	}
	one := float64(spent(b)-before) / float64(len(signals))
	decisions := 0
	before = spent(b)
	for b.Loop() {
		err := replay.Run(b.Context(), replay.Options{Library: library}, read(record), func(r replay.Result) error {
			if decisions++; r.Verdict != replay.Match {
				b.Fatal(r.Verdict, r.Why)
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	each := float64(spent(b)-before) / float64(decisions)
	b.ReportMetric(1e9/each, "decisions/s/core")
	b.ReportMetric(each, "cpu-ns/decision")
	b.ReportMetric(each/one, "evaluations")
}

// BenchmarkWhatIf compares the same record with a candidate that is the revision itself: what it costs to watch what
// evaluations read.
func BenchmarkWhatIf(b *testing.B) {
	w := newWorld(b)
	record := w.record(b, 2048)
	library := w.library()
	decisions := uint64(0)
	before := spent(b)
	for b.Loop() {
		r, err := replay.WhatIf(b.Context(), replay.WhatIfOptions{Library: library, Candidate: w.rev}, read(record), func() (replay.Base, error) {
			return replay.Base{Active: w.rev}, nil
		})
		if err != nil || len(r.Groups) > 0 {
			b.Fatal(err, r.Groups)
		}
		decisions += r.Decisions
	}
	b.ReportMetric(1e9*float64(decisions)/float64(spent(b)-before), "decisions/s/core")
}
