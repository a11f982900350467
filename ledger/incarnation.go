package ledger

import (
	"context"

	"github.com/bulla-project/bulla/ledger/event"
)

// CurrentIncarnation is the key of the one KindIncarnation row.
const CurrentIncarnation = "current"

// Incarnation is the projection of the newest restore: which of its lives the ledger is in, and whose log signs it.
type Incarnation struct {
	Number uint32     `json:"number"`
	Origin string     `json:"origin"`
	LogKey string     `json:"log_key"`
	Began  event.Time `json:"began_at"`
}

func (p projection) restored(b event.Restored) error {
	now, ok, err := get[Incarnation](p, KindIncarnation, CurrentIncarnation)
	if err != nil {
		return err
	}
	if !ok {
		now.Number = 1
	}
	switch {
	case b.Incarnation <= now.Number:
		return refuse("incarnation %d does not follow incarnation %d", b.Incarnation, now.Number)
	case b.Origin == "" || b.LogKey == "" || b.Origin == b.Previous || b.LogKey == now.LogKey:
		return refuse("incarnation %d: it needs a name and a key of its own", b.Incarnation)
	case b.Previous == "" || ok && b.Previous != now.Origin:
		return refuse("incarnation %d follows the log %q, not %q", b.Incarnation, now.Origin, b.Previous)
	case b.Known.Origin == "" || b.Known.Size < 1 || len(b.Known.Signed) == 0:
		return refuse("incarnation %d: it names no checkpoint of the log before", b.Incarnation)
	}
	return put(p, KindIncarnation, CurrentIncarnation, Incarnation{b.Incarnation, b.Origin, b.LogKey, p.time})
}

// Incarnation returns the newest restore, or ErrNotFound where there was none.
func (l *Ledger) Incarnation(ctx context.Context) (Incarnation, int64, error) {
	return read[Incarnation](ctx, l, KindIncarnation, CurrentIncarnation)
}
