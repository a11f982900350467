package ledger_test

import (
	"testing"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
)

// Incarnations follow one another, each with a name and a key of its own.
func TestProjectRestored(t *testing.T) {
	tab := newTable(t)
	good := event.Restored{
		Incarnation: 2, Origin: "log/incarnation-2", LogKey: "key 2", Previous: "log",
		Known: event.KnownHead{Origin: "log", Size: 120, Root: "root", Signed: []byte("signed")},
	}
	refused := func(name string, from event.Restored, change func(b *event.Restored)) {
		t.Helper()
		change(&from)
		tab.refuse(t, from)
	}
	for name, change := range map[string]func(b *event.Restored){
		"the first":      func(b *event.Restored) { b.Incarnation = 1 },
		"no name":        func(b *event.Restored) { b.Origin = "" },
		"no key":         func(b *event.Restored) { b.LogKey = "" },
		"the same name":  func(b *event.Restored) { b.Origin = b.Previous },
		"after nothing":  func(b *event.Restored) { b.Previous = "" },
		"nothing known":  func(b *event.Restored) { b.Known = event.KnownHead{} },
		"of no entries":  func(b *event.Restored) { b.Known.Size = 0 },
		"without a sign": func(b *event.Restored) { b.Known.Signed = nil },
	} {
		refused(name, good, change)
	}
	tab.must(t, now(good))
	tab.refuse(t, good)
	if got, _ := row[ledger.Incarnation](t, tab, ledger.KindIncarnation, ledger.CurrentIncarnation); got.Number != 2 || got.LogKey != "key 2" || got.Origin != good.Origin {
		t.Errorf("%+v", got)
	}
	next := good
	next.Incarnation, next.Origin, next.LogKey, next.Previous = 5, "log/incarnation-5", "key 5", good.Origin
	refused("of the first log", next, func(b *event.Restored) { b.Previous = "log" })
	refused("the same key", next, func(b *event.Restored) { b.LogKey = "key 2" })
	tab.must(t, now(next))
	back := next
	back.Incarnation, back.Origin, back.LogKey, back.Previous = 3, "log/incarnation-3", "key 3", next.Origin
	tab.refuse(t, back)
}
