package broker

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics counts outcomes. No label ever holds a name, a principal or anything else that a peer chooses.
type metrics struct {
	registry                                                   *prometheus.Registry
	deliveries, uses, operations, denials, refusals, sweptDone prometheus.Counter
	signals, signalsRefused, signalSessions                    prometheus.Counter
	shadowCompared, shadowDropped, shadowDiffered              prometheus.Counter
}

func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "bulla", Name: name, Help: help})
		m.registry.MustRegister(c)
		return c
	}
	m.deliveries = counter("deliveries_total", "Envelopes that left the broker.")
	m.uses = counter("uses_total", "Shares of gated sessions that left the broker.")
	m.operations = counter("operations_total", "Operations with keys of proxied sessions.")
	m.denials = counter("denials_total", "Calls that the policy did not permit.")
	m.refusals = counter("refusals_total", "Calls that a limiter refused.")
	m.sweptDone = counter("sessions_swept_total", "Sessions that the sweeper ended or marked.")
	m.shadowCompared = counter("shadow_compared_total", "Decisions that a shadow judged again.")
	m.shadowDropped = counter("shadow_dropped_total", "Decisions that a shadow could not follow, or had no time for.")
	m.shadowDiffered = counter("shadow_differences_total", "Decisions that a shadow would have made otherwise.")
	m.signals = counter("signals_total", "External signals that were accepted.")
	m.signalsRefused = counter("signals_refused_total", "External signals that were not believed, or came too fast.")
	m.signalSessions = counter("signal_sessions_total", "Sessions that external signals ended.")
	return m
}

// Metrics serves the counters in the Prometheus text format.
func (b *Broker) Metrics() http.Handler {
	return promhttp.HandlerFor(b.metrics.registry, promhttp.HandlerOpts{})
}
