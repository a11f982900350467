package broker

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/policy"
)

// external is what transmitters of signals say about a caller, with the rows that say so.
type external struct {
	signals []policy.ExternalSignal
	rows    []ledger.Precondition
}

// unchanged demands that no further signal came when a commit takes effect.
func (e external) unchanged() []ledger.Precondition { return e.rows }

// The targets of signals, as package event names them.
func targetPrincipal(id string) string  { return "principal/" + id }
func targetDevice(id string) string     { return "device/" + id }
func targetDomain(domain string) string { return "domain/" + domain }

// external returns the signals about the caller, its trust domain and its devices that have not ended: the one that it
// shows now, and that of the session that it goes on with, which it must not get rid of by showing another one or none.
// What a transmitter said that is not configured any more does not count.
func (b *Broker) external(ctx context.Context, now time.Time, who request, devices ...string) (external, error) {
	if b.senders.none() {
		return external{}, nil
	}
	targets := []string{targetPrincipal(who.caller.id.String()), targetDomain(who.caller.id.TrustDomain().Name())}
	for _, id := range devices {
		if id != "" {
			targets = append(targets, targetDevice(id))
		}
	}
	var out external
	for _, target := range slices.Compact(targets) {
		found, seq, err := b.ledger.Alerts(ctx, target)
		if err != nil && !errors.Is(err, ledger.ErrNotFound) {
			return external{}, err
		}
		out.rows = append(out.rows, ledger.Precondition{RowKey: ledger.RowKey{Kind: ledger.KindAlerts, Key: target}, Seq: seq})
		for _, a := range found.Alerts {
			if _, configured := b.senders.all[a.Transmitter]; !configured || a.Level == "" || !now.Before(a.Expires.Time()) {
				continue
			}
			out.signals = append(out.signals, policy.ExternalSignal{
				Transmitter: a.Transmitter, Type: a.Kind, Level: a.Level,
				Received: a.At.Time().UnixMicro(), Expires: a.Expires.Time().UnixMicro(),
			})
		}
	}
	return out, nil
}

// Targets names principals, devices and trust domains as the ledger does.
func Targets(principals, devices, domains []string) []string {
	var out []string
	for _, p := range principals {
		out = append(out, targetPrincipal(p))
	}
	for _, d := range devices {
		out = append(out, targetDevice(d))
	}
	for _, d := range domains {
		out = append(out, targetDomain(d))
	}
	return out
}
