package sqlite

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/ledger/storetest"
)

// BenchmarkGrowth compares a delivery with its receipt, and the query for a novel pair, in an empty ledger
// and in one with 200,000 live sessions of 1,000 principals over 10,000 secrets.
func BenchmarkGrowth(b *testing.B) {
	for _, sessions := range []int{0, 200_000} {
		path, ring := filepath.Join(b.TempDir(), "ledger.db"), storetest.Ring(b)
		l := storetest.Founded(b, openAt(b, path), ring)
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
		grow(b, path, sessions)
		l = storetest.Open(b, openAt(b, path), ring)
		b.Run(fmt.Sprintf("sessions=%d/deliver", sessions), func(b *testing.B) {
			measure(b, 8, func() {
				c := storetest.Issue(time.Now(), time.Hour, time.Minute)
				storetest.Commit(b, l, c)
				storetest.Commit(b, l, storetest.Plain(storetest.Principal, event.SessionConfirmed{Session: storetest.SessionOf(c), R: []byte("r")}))
			})
		})
		b.Run(fmt.Sprintf("sessions=%d/novel", sessions), func(b *testing.B) {
			for b.Loop() {
				q := ledger.SessionQuery{Principal: "spiffe://dev.bulla.test/p7", Secret: "demo/never", Max: 1}
				if _, err := l.Sessions(b.Context(), q); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// grow puts sessions into the tables, past the ledger: only their number matters here.
func grow(b *testing.B, path string, n int) {
	db, err := connect(path, "synchronous(OFF)")
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // a benchmark
	base := storetest.Start.Add(-time.Hour)
	_, err = db.ExecContext(b.Context(), `
		WITH RECURSIVE n (i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < ? + 99)
		INSERT INTO sessions SELECT i, printf('%08x-0000-7000-8000-%012x', i / 1000, i), i, 'spiffe://dev.bulla.test/p' || (i % 1000),
			'demo/s' || (i * 7919 % 10000), 'device-' || (i % 1000), 'issued', ? + i, ? + i, zeroblob(900) FROM n LIMIT ?`,
		n, base.UnixMicro(), base.UnixMicro(), n)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := db.ExecContext(b.Context(), "INSERT INTO events SELECT 100 + ?, zeroblob(16), zeroblob(65), '', x'' WHERE ? > 0", n, n); err != nil {
		b.Fatal(err)
	}
}
