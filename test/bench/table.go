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
	fmt.Fprintln(out, "callers\tdeliveries/s\tp50\tp99\tCPU\tbare call CPU\tfloor CPU\tCPU ratio\tp50 ratio\tp99/p50")
	for _, r := range t.rows {
		floor := p.floor(r.simple.cpu)
		fmt.Fprintf(out, "%d\t%.0f\t%s\t%s\t%s\t%s\t%s\t%.2f\t%.2f\t%.1f\n", r.callers, r.deliver.rate, short(r.deliver.p50), short(r.deliver.p99),
			short(r.deliver.cpu), short(r.simple.cpu), short(floor), ratio(r.deliver.cpu, floor), ratio(r.deliver.p50, r.simple.p50+p.fsync),
			ratio(r.deliver.p99, r.deliver.p50))
	}
	_ = out.Flush() // to the terminal: nothing to do about it
	fmt.Fprintln(w)
	fmt.Fprintln(out, "callers\tgated uses/s\tp50\tp99\tCPU\tbare call CPU\tfloor CPU\tCPU ratio\tp50 ratio\tp99/p50")
	for _, r := range t.rows {
		floor := p.useFloor(r.simple.cpu)
		fmt.Fprintf(out, "%d\t%.0f\t%s\t%s\t%s\t%s\t%s\t%.2f\t%.2f\t%.1f\n", r.callers, r.use.rate, short(r.use.p50), short(r.use.p99),
			short(r.use.cpu), short(r.simple.cpu), short(floor), ratio(r.use.cpu, floor), ratio(r.use.p50, r.simple.p50+p.fsync),
			ratio(r.use.p99, r.use.p50))
	}
	_ = out.Flush()
	fmt.Fprintf(w, "\nfloor = 2 bare mTLS gRPC calls + 2 ES256 verifications (%s each) + 1 decision (%s) + 1 hybrid seal (%s)\n"+
		"        + 1 ES256 signature (%s) + 2 durable appends (%s each at 64 callers; one write and fsync takes %s)\n",
		short(p.verify), short(p.evaluate), short(p.seal), short(p.sign), short(p.append), short(p.fsync))
	fmt.Fprintf(w, "floor of a gated use = 1 bare call + 1 ES256 verification + 1 decision + 1 durable append\n")
	fmt.Fprintf(w, "p50 ratio = p50 of a confirmed delivery (two calls, two commits) / (p50 of a bare call + one fsync)\n")
	fmt.Fprintf(w, "ready after %s, %d MiB resident at the end\n", short(t.ready), t.resident>>20)
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
