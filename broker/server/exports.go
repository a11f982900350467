package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bulla-project/bulla/audit/sink"
	"github.com/bulla-project/bulla/audit/sink/cloudwatch"
	"github.com/bulla-project/bulla/broker"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/ledger"
)

const (
	// exportDir is the folder in data_dir that keeps how far each sink is.
	exportDir = "export"
	// gatherEvery is how long events gather for a sink that is up to date: each page costs syncs of the ledger's disk.
	gatherEvery = 500 * time.Millisecond
)

// export is a sink of this broker, and the pump that feeds it.
type export struct {
	name string
	pump *sink.Pump
}

// openExports makes the pumps that the configuration names. It opens no file and calls nobody: a sink that is not there is
// for its pump to wait for, while the broker serves.
func (s *Server) openExports(ctx context.Context, cfg config.Config, origin string) ([]export, error) {
	if len(cfg.Export.Sinks) == 0 {
		return nil, nil
	}
	dir := filepath.Join(cfg.DataDir, exportDir)
	if err := mkdir(dir); err != nil {
		return nil, err
	}
	events := events{s.stores.ledger}
	var out []export
	for _, c := range cfg.Export.Sinks {
		to, err := openSink(ctx, c)
		if err != nil {
			return nil, fmt.Errorf("%w: export %s: %w", config.ErrInvalid, c.Name, err)
		}
		out = append(out, export{c.Name, sink.New(sink.Config{
			Source: events, Sink: to, Origin: origin, State: filepath.Join(dir, c.Name+".json"), From: c.From,
			Gather: gatherEvery, Gentle: true, Size: events.size, Log: s.log.With("export", c.Name),
		})})
	}
	return out, nil
}

func openSink(ctx context.Context, c config.ExportSink) (sink.Sink, error) {
	switch {
	case c.File != "":
		return sink.NewFile(c.File), nil
	case c.Stdout:
		return &sink.Stream{W: os.Stdout}, nil
	case c.CloudWatch != nil:
		w := c.CloudWatch
		return cloudwatch.New(ctx, cloudwatch.Config{Group: w.Group, Stream: w.Stream, Region: w.Region, Endpoint: w.Endpoint})
	}
	return nil, errors.New("it names no sink")
}

// runExports feeds the sinks while ctx lives.
func (s *Server) runExports(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, e := range s.exports {
		wg.Go(func() {
			if err := e.pump.Run(ctx); err != nil {
				s.log.Error("the export ended", "export", e.name, "error", err)
			}
		})
	}
}

// exportChecks says how far the sinks are.
func (s *Server) exportChecks() []broker.Check {
	var out []broker.Check
	for _, e := range s.exports {
		st := e.pump.Status(time.Now())
		c := broker.Check{Name: "export " + e.name, Err: st.Err, Fine: fmt.Sprintf("%d events have arrived, %d are to come", st.Next, st.Behind)}
		if st.Refused > 0 {
			c.Fine += fmt.Sprintf(", %d were refused for good since the start, the last one event %d: %s", st.Refused, st.Last.Index, st.Last.Reason)
		}
		c.Hint = fmt.Sprintf("%d events wait, the oldest for %s; none is lost, and nothing else waits for them", st.Behind, st.Lag.Truncate(time.Second))
		if st.Ended {
			c.Hint = "it does not try any more: see docs/export.md, mend it and start the broker again"
		}
		out = append(out, c)
	}
	return out
}

// exportCollectors measure the sinks. The label is a name of the configuration.
func (s *Server) exportCollectors() (out []prometheus.Collector) {
	for _, e := range s.exports {
		status := func() sink.Status { return e.pump.Status(time.Now()) }
		gauge := func(name, help string, value func() float64) {
			out = append(out, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Namespace: "bulla", Name: name, Help: help, ConstLabels: prometheus.Labels{"sink": e.name},
			}, value))
		}
		counter := func(name, help string, value func() float64) {
			out = append(out, prometheus.NewCounterFunc(prometheus.CounterOpts{
				Namespace: "bulla", Name: name, Help: help, ConstLabels: prometheus.Labels{"sink": e.name},
			}, value))
		}
		gauge("export_lag_events", "Events that have not arrived at the sink.", func() float64 { return float64(status().Behind) })
		gauge("export_lag_seconds", "Age of the oldest event that has not arrived at the sink.", func() float64 { return status().Lag.Seconds() })
		counter("export_events_total", "Events that arrived at the sink.", func() float64 { return float64(status().Written) })
		counter("export_refused_total", "Events that the sink refused for good.", func() float64 { return float64(status().Refused) })
	}
	return out
}

// events is the ledger as a source of events.
type events struct{ ledger *ledger.Ledger }

func (e events) size() int64 {
	size, _ := e.ledger.Committed()
	return size
}

// Next implements sink.Source.
func (e events) Next(ctx context.Context, from int64, most int) ([]sink.Entry, error) {
	for {
		size, more := e.ledger.Committed()
		if from < size {
			break
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-more:
		}
	}
	found, err := e.ledger.Follow(ctx, from, most)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("event %d is missing", from)
	}
	out := make([]sink.Entry, len(found))
	for i, c := range found {
		out[i] = sink.Entry{Index: c.Index, Event: c.Event}
	}
	return out, nil
}
