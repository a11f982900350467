package rig

import (
	"testing"
)

// BenchmarkConfirmedDelivery is client and broker in one process, for profiles; test/bench has the figures that
// count.
func BenchmarkConfirmedDelivery(b *testing.B) {
	r := Start(b, Config{})
	r.Put("demo/plain", "standard", "x")
	c := r.Client("workload")
	if _, err := c.Get(b.Context(), "demo/plain"); err != nil {
		b.Fatal(err)
	}
	b.SetParallelism(32)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			s, err := c.Get(b.Context(), "demo/plain")
			if err != nil {
				b.Error(err)
				return
			}
			s.Close()
		}
	})
}
