package ledger

import (
	"context"
	"slices"

	"github.com/bulla-project/bulla/ledger/event"
)

// Alerts is the projection of what external signals say of one target, as package event names it.
type Alerts struct {
	Target string  `json:"target"`
	Alerts []Alert `json:"alerts"`
}

// Alert is the newest signal of one transmitter, kind and level. It counts until Expires, the latest end that any such
// signal had: what is said later can't make it end sooner.
type Alert struct {
	Signal      event.ID   `json:"signal"`
	Transmitter string     `json:"transmitter"`
	Kind        string     `json:"kind"`
	Level       string     `json:"level,omitempty"`
	Revokes     Revocation `json:"revokes,omitempty"`
	At          event.Time `json:"at"`
	Expires     event.Time `json:"expires"`
}

// Revocation is how far the ending of sessions that a signal asked for has come.
type Revocation string

// The states of a revocation; "" where the signal asked for none.
const (
	RevocationPending Revocation = "pending"
	RevocationDone    Revocation = "done"
	RevocationHeld    Revocation = "held" // the transmitter's limit was reached
)

// Alerts returns what signals say of a target.
func (l *Ledger) Alerts(ctx context.Context, target string) (Alerts, int64, error) {
	return read[Alerts](ctx, l, KindAlerts, target)
}

// AllAlerts lists up to max targets whose name is greater than after, by name.
func (l *Ledger) AllAlerts(ctx context.Context, after string, max int) ([]Alerts, error) {
	return list[Alerts](ctx, l, KindAlerts, after, max)
}

func (p projection) signalReceived(b event.SignalReceived, ev event.Event) error {
	if b.Transmitter == "" || b.TokenID == "" || b.Token.IsZero() {
		return refuse("signal: transmitter, token id and digest are needed")
	}
	if b.Level == "" && !b.Revokes {
		return nil // it tells, and changes nothing
	}
	if !p.time.Time().Before(b.Expires.Time()) {
		return refuse("signal %s: it needs an end after its start", b.TokenID)
	}
	for _, target := range b.Targets {
		if err := p.alert(target, b, ev.ID); err != nil {
			return err
		}
	}
	return nil
}

// alert adds a signal to what is known of a target, and drops what is over.
func (p projection) alert(target string, b event.SignalReceived, id event.ID) error {
	was, _, err := get[Alerts](p, KindAlerts, target)
	if err != nil {
		return err
	}
	now := Alert{Signal: id, Transmitter: b.Transmitter, Kind: b.Kind, Level: b.Level, At: p.time, Expires: b.Expires}
	if b.Revokes {
		now.Revokes = RevocationPending
	}
	var kept []Alert
	for _, a := range was.Alerts {
		switch {
		case a.Transmitter == now.Transmitter && a.Kind == now.Kind && a.Level == now.Level:
			if now.Expires.Time().Before(a.Expires.Time()) {
				now.Expires = a.Expires
			}
		case p.time.Time().Before(a.Expires.Time()) || a.Revokes == RevocationPending:
			kept = append(kept, a)
		}
	}
	return put(p, KindAlerts, target, Alerts{target, append(kept, now)})
}

func (p projection) signalSettled(b event.SignalSettled) error {
	was, ok, err := get[Alerts](p, KindAlerts, b.Target)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(was.Alerts, func(a Alert) bool { return a.Signal == b.Signal })
	if !ok || at < 0 || was.Alerts[at].Revokes != RevocationPending {
		return nil // a newer signal took its place, and is settled by itself
	}
	alerts := slices.Clone(was.Alerts)
	alerts[at].Revokes = RevocationDone
	if b.Held {
		alerts[at].Revokes = RevocationHeld
	}
	return put(p, KindAlerts, b.Target, Alerts{b.Target, alerts})
}
