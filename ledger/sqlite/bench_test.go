package sqlite

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/ledger/storetest"
)

// BenchmarkCommit commits deliveries (an event of 1.2 KB, a stored reply of 3.3 KB, a session, preconditions
// on four rows) from 1, 8 and 64 callers; each session is confirmed by a second commit, so an op is two
// durable commits. BenchmarkFloor is the same number of bytes, appended to a file with an fsync per group:
// compare within one run only. The metric cpu-µs/op is that of the whole process.
//
// Two cores shared with other work, ratios to the floor: CPU 2.0–2.6 at 1 caller, 2.8–3.8 at 8, 2.5–3.2 at
// 64 (280 µs, of which 20 are the sealing of the bodies and the making of the test's events); of the rest a
// third is SQLite's statements, a quarter its writes and syncs, a sixth JSON, a tenth the checkpoints. A hot
// row is read in 0.2–0.3 µs, one that is not in memory in 35–50 µs.
func BenchmarkCommit(b *testing.B) {
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			l := storetest.Founded(b, openTest(b), storetest.Ring(b))
			storetest.Commit(b, l, storetest.Issue(storetest.Start, time.Hour, 0))
			require := basis(b, l)
			measure(b, callers, func() {
				c := storetest.Issue(storetest.Start, time.Hour, time.Minute)
				c.Require = require
				storetest.Commit(b, l, c)
				confirm := event.SessionConfirmed{Session: storetest.SessionOf(c), R: make([]byte, 32), Signature: make([]byte, 64)}
				storetest.Commit(b, l, storetest.Plain(storetest.Principal, confirm))
			})
		})
	}
}

// BenchmarkUse commits uses of gated sessions of a thousand uses each, one for each caller: an event of 2.6 KB, a
// session row that changes, an idempotency row and preconditions on two rows.
func BenchmarkUse(b *testing.B) {
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			l := storetest.Founded(b, openTest(b), storetest.Ring(b))
			storetest.Commit(b, l, storetest.IssueGated(storetest.Start, time.Hour))
			require := basis(b, l)[:2]
			shares := make(chan share, 1024)
			measure(b, callers, func() {
				var s share
				select {
				case s = <-shares:
				default:
				}
				if s.number++; s.number == 1 || s.number > storetest.Uses {
					c := storetest.IssueGated(storetest.Start, time.Hour)
					storetest.Commit(b, l, c)
					s = share{storetest.SessionOf(c), 1}
				}
				c := storetest.Use(s.session, s.number)
				c.Require = require
				storetest.Commit(b, l, c)
				shares <- s
			})
		})
	}
}

type share struct {
	session event.ID
	number  uint32
}

func basis(b *testing.B, l *ledger.Ledger) []ledger.Precondition {
	keys := []ledger.RowKey{
		{Kind: ledger.KindSecret, Key: storetest.Secret},
		{Kind: ledger.KindRevision, Key: ledger.ActiveRevision},
		{Kind: ledger.KindDevice, Key: storetest.Device},
		{Kind: ledger.KindPassport, Key: ledger.InstanceKey(storetest.Principal, storetest.Instance)},
	}
	_, secret, err1 := l.Secret(b.Context(), keys[0].Key)
	_, active, err2 := l.ActiveRevision(b.Context())
	_, device, err3 := l.Device(b.Context(), keys[2].Key)
	_, passport, err4 := l.Passport(b.Context(), keys[3].Key)
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			b.Fatal(err)
		}
	}
	var out []ledger.Precondition
	for i, seq := range []int64{secret, active, device, passport} {
		out = append(out, ledger.Precondition{RowKey: keys[i], Seq: seq})
	}
	return out
}

// BenchmarkFloor is the least that durability costs: group commit on a bare file.
func BenchmarkFloor(b *testing.B) {
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			f := newFloor(b)
			delivery, receipt := make([]byte, 1200+3300+900), make([]byte, 500+900)
			measure(b, callers, func() {
				f.append(delivery)
				f.append(receipt)
			})
		})
	}
}

// floor is a file that is appended to in groups: whoever finds no group under way syncs the next one.
type floor struct {
	b    *testing.B
	file *os.File
	mu   sync.Mutex
	cur  *group // guarded by mu
	sync sync.Mutex
}

type group struct {
	data []byte
	once sync.Once
	done chan struct{}
}

func newFloor(b *testing.B) *floor {
	file, err := os.Create(filepath.Join(b.TempDir(), "floor"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = file.Close() })
	return &floor{b: b, file: file, cur: &group{done: make(chan struct{})}}
}

func (f *floor) append(data []byte) {
	f.mu.Lock()
	g := f.cur
	g.data = append(g.data, data...)
	f.mu.Unlock()
	g.once.Do(func() {
		f.sync.Lock()
		defer f.sync.Unlock()
		f.mu.Lock()
		f.cur = &group{done: make(chan struct{})}
		f.mu.Unlock()
		if _, err := f.file.Write(g.data); err != nil {
			f.b.Error(err)
		}
		if err := f.file.Sync(); err != nil {
			f.b.Error(err)
		}
		close(g.done)
	})
	<-g.done
}

func measure(b *testing.B, callers int, op func()) {
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	before := cpu(b)
	b.ResetTimer()
	for range callers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				op()
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/1000/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

func cpu(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkReadHot reads a secret's metadata as a delivery does.
func BenchmarkReadHot(b *testing.B) {
	l := storetest.Founded(b, openTest(b), storetest.Ring(b))
	for b.Loop() {
		if _, _, err := l.Secret(b.Context(), storetest.Secret); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadCold reads a session that is not in memory: one query.
func BenchmarkReadCold(b *testing.B) {
	store := openTest(b)
	ring := storetest.Ring(b)
	c := storetest.Issue(storetest.Start, time.Hour, 0)
	first := storetest.Founded(b, keepOpen{store}, ring)
	storetest.Commit(b, first, c)
	if err := first.Close(); err != nil {
		b.Fatal(err)
	}
	l := storetest.Open(b, store, ring)
	for b.Loop() {
		if _, _, err := l.Session(b.Context(), storetest.SessionOf(c)); err != nil {
			b.Fatal(err)
		}
	}
}

type keepOpen struct{ ledger.Store }

func (keepOpen) Close() error { return nil }
