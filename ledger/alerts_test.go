package ledger_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/ledger/storetest"
)

// signal is a signal of a transmitter about targets, that came so long after the start.
func signal(after time.Duration, name, kind, level string, life time.Duration, targets ...string) event.Event {
	at := storetest.Start.Add(after)
	b := event.SignalReceived{
		Transmitter: name, Issuer: "https://idp.test", TokenID: "j", Token: event.Digest{1}, Kind: kind, IssuedAt: event.NewTime(at),
		Targets: targets, Level: level, Revokes: kind == "session-revoked",
	}
	if b.Level != "" || b.Revokes {
		b.Expires = event.NewTime(at.Add(life))
	}
	return event.New(at, "", b)
}

// worst is the worst level of a target at a time: 0 none, 1 raised, 2 high.
func worst(t rapid.TB, tab *table, target string, after time.Duration) (level int) {
	found, _ := row[ledger.Alerts](t, tab, ledger.KindAlerts, target)
	for _, a := range found.Alerts {
		if storetest.Start.Add(after).Before(a.Expires.Time()) {
			level = max(level, map[string]int{"": 0, "raised": 1, "high": 2}[a.Level])
		}
	}
	return level
}

// TestAlertsOnlyRaise: whatever a transmitter says, at no later time is the level lower than it would have been
// without it, and what it said of one target changes no other.
func TestAlertsOnlyRaise(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		tab, at := newTable(t), time.Duration(0)
		for range rapid.IntRange(1, 12).Draw(t, "signals") {
			at += time.Duration(rapid.IntRange(0, 5).Draw(t, "later")) * time.Second
			var before [20]int
			for n := range before {
				before[n] = worst(t, tab, "principal/a", at+time.Duration(n)*time.Second)
			}
			_, other := row[ledger.Alerts](t, tab, ledger.KindAlerts, "principal/b")
			tab.must(t, signal(at, rapid.SampledFrom([]string{"x", "y"}).Draw(t, "name"), rapid.SampledFrom([]string{"risk-level-change", "session-revoked"}).Draw(t, "kind"),
				rapid.SampledFrom([]string{"", "raised", "high"}).Draw(t, "level"), time.Duration(rapid.IntRange(1, 15).Draw(t, "life"))*time.Second, "principal/a"))
			for n := range before {
				if now := worst(t, tab, "principal/a", at+time.Duration(n)*time.Second); now < before[n] {
					t.Fatalf("%d s later the level is %d, and was to be %d", n, now, before[n])
				}
			}
			if _, seq := row[ledger.Alerts](t, tab, ledger.KindAlerts, "principal/b"); seq != other {
				t.Fatal("another target changed")
			}
			if found, _ := row[ledger.Alerts](t, tab, ledger.KindAlerts, "principal/a"); len(found.Alerts) > 2*2*3 {
				t.Fatalf("%d alerts: they are not bounded", len(found.Alerts))
			}
		}
	})
}

// TestAlertsSettle: a revocation is pending until it is settled, and what is settled stays so.
func TestAlertsSettle(t *testing.T) {
	t.Parallel()
	tab := newTable(t)
	state := func() ledger.Revocation {
		found, _ := row[ledger.Alerts](t, tab, ledger.KindAlerts, "device/d")
		if len(found.Alerts) != 1 {
			t.Fatalf("%+v", found)
		}
		return found.Alerts[0].Revokes
	}
	first := signal(0, "x", "session-revoked", "", time.Second, "device/d")
	tab.must(t, first)
	if s := state(); s != ledger.RevocationPending {
		t.Errorf("it is %q", s)
	}
	second := signal(2*time.Second, "y", "risk-level-change", "high", time.Second, "device/d")
	tab.must(t, second)
	found, _ := row[ledger.Alerts](t, tab, ledger.KindAlerts, "device/d")
	if len(found.Alerts) != 2 {
		t.Errorf("a pending revocation was forgotten at its end: %+v", found)
	}
	settled := func(e event.Event, held bool) event.Event {
		return event.New(storetest.Start.Add(time.Minute), "", event.SignalSettled{Signal: e.ID, Transmitter: "x", Target: "device/d", Held: held})
	}
	tab.must(t, settled(first, true))
	tab.must(t, signal(time.Minute, "x", "session-revoked", "", time.Second, "device/d"))
	if s := state(); s != ledger.RevocationPending {
		t.Errorf("after a newer signal it is %q", s)
	}
	tab.must(t, settled(first, false)) // of one that a newer signal replaced
	if s := state(); s != ledger.RevocationPending {
		t.Errorf("settled by an older signal's word: %q", s)
	}
}

func TestAlertsRefuse(t *testing.T) {
	t.Parallel()
	tab := newTable(t)
	tab.refuse(t, event.SignalReceived{})
	tab.refuse(t, event.SignalReceived{Transmitter: "x", TokenID: "j", Token: event.Digest{1}, Level: "high", Targets: []string{"principal/a"}})
	tab.must(t, signal(0, "x", "risk-level-change", "", time.Second, "principal/a"))
	if _, seq := row[ledger.Alerts](t, tab, ledger.KindAlerts, "principal/a"); seq != 0 {
		t.Error("good news changed a row")
	}
}
