package main

import (
	"fmt"
	"io"
	"runtime"
	"text/tabwriter"
	"time"
)

// table is everything that was measured.
type table struct {
	primitives primitives
	rows       []row
	ready      time.Duration
	resident   int64
}

func (t table) print(w io.Writer) {
	p := t.primitives
	fmt.Fprintf(w, "%s %s/%s, %d processors. CPU is the server's, per operation.\n\n", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	t.kind(out, "deliveries", func(r row) (load, load, load, time.Duration) {
		return r.deliver, r.idleDeliver, r.bareDeliver, p.floor(r.idleDeliver.cpu)
	})
	fmt.Fprintln(w)
	t.kind(out, "gated uses", func(r row) (load, load, load, time.Duration) {
		return r.use, r.idleUse, r.bareUse, p.useFloor(r.idleUse.cpu)
	})
	fmt.Fprintf(w, "\nsum = 2 bare mTLS gRPC calls + 2 ES256 verifications (%s each) + 1 decision (%s) + 1 hybrid seal (%s)\n"+
		"        + 1 ES256 signature (%s) + 2 durable appends (%s each at 64 callers; one write and fsync takes %s)\n",
		short(p.verify), short(p.evaluate), short(p.seal), short(p.sign), short(p.append), short(p.fsync))
	fmt.Fprintf(w, "sum of a gated use = 1 bare call + 1 ES256 verification + 1 decision + 1 durable append\n"+
		"        (with a bare SQLite transaction of event, count and reply in its place, %s at 64 callers:", short(p.transact))
	for _, r := range t.rows {
		fmt.Fprintf(w, " %.2f", ratio(r.use.cpu, p.useFloor(r.idleUse.cpu)-p.append+p.transact))
	}
	fmt.Fprintf(w, " times the sum)\n")
	fmt.Fprintf(w, "bare work = a bare server that does the same in its handlers, under the same load\n")
	fmt.Fprintf(w, "p50 ratio = p50 / (p50 of the bare calls + one fsync); a confirmed delivery has two calls and two commits\n")
	fmt.Fprintf(w, "ready after %s, %d MiB resident at the end\n", short(t.ready), t.resident>>20)
}

// kind prints the rows of one kind of call: what the broker took, what the bare server took, and the sum of primitives.
func (t table) kind(out *tabwriter.Writer, name string, of func(row) (broker, idle, bare load, sum time.Duration)) {
	fmt.Fprintf(out, "callers\t%s/s\tp50\tp99\tCPU\tbare calls\tsum\tbare work\tCPU/sum\tCPU/bare work\tp50 ratio\tp99/p50\n", name)
	for _, r := range t.rows {
		b, idle, bare, sum := of(r)
		fmt.Fprintf(out, "%d\t%.0f\t%s\t%s\t%s\t%s\t%s\t%s\t%.2f\t%.2f\t%.2f\t%.1f\n", r.callers, b.rate, short(b.p50), short(b.p99), short(b.cpu),
			short(idle.cpu), short(sum), short(bare.cpu), ratio(b.cpu, sum), ratio(b.cpu, bare.cpu), ratio(b.p50, idle.p50+t.primitives.fsync), ratio(b.p99, b.p50))
	}
	_ = out.Flush() // to the terminal: nothing to do about it
}

func ratio(a, b time.Duration) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

func short(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%d µs", d.Microseconds())
	}
	return d.Round(100 * time.Microsecond).String()
}
