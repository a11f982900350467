package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// What auditors and responders ask is answered from the sessions and from two projections that deliveries and uses
// never write: where the denials are in the log, and which revision decided when.

// Denial is the projection of one denial: where its event is. What it says is read from there.
type Denial struct {
	Index int64 `json:"index"`
}

// Activation is the projection of one activation of a revision, which decided from the event Index on until the next.
type Activation struct {
	Sequence uint64       `json:"sequence"`
	Digest   event.Digest `json:"digest"`
	Index    int64        `json:"index"`
	At       event.Time   `json:"at"`
}

// Scope says of what the denials are looked for.
type Scope string

// The scopes. Denials that no policy judged have no secret and no device.
const (
	ScopeAll       Scope = "all"
	ScopePrincipal Scope = "principal"
	ScopeSecret    Scope = "secret"
	ScopeDevice    Scope = "device"
)

// maxScoped bounds a value that denials are found by, in bytes: SPIFFE IDs are the longest.
const maxScoped = 2048

// denialKey sorts the newest first.
func denialKey(scope Scope, value string, index int64) string {
	return fmt.Sprintf("%s%016x", denialPrefix(scope, value), math.MaxInt64-index)
}

// denialPrefix ends in a space, which no name, device and SPIFFE ID has: no prefix is the beginning of another's keys.
func denialPrefix(scope Scope, value string) string {
	if scope == ScopeAll {
		return string(scope) + "  "
	}
	return string(scope) + " " + value + " "
}

// denied notes where a denial is, under each thing that it is about. Strangers can make it happen: it is a row of a few
// bytes for each of these, beside an event that is many times as large, and the limiters count what comes too fast.
func (p projection) denied(principal string, signals json.RawMessage) error {
	about := aboutSignals(signals)
	for _, at := range []struct {
		scope Scope
		value string
	}{{ScopeAll, ""}, {ScopePrincipal, principal}, {ScopeSecret, about.Resource.Secret.Name}, {ScopeDevice, about.Attestation.DeviceID}} {
		if at.scope != ScopeAll && at.value == "" || len(at.value) > maxScoped || strings.ContainsAny(at.value, " \x00") {
			continue
		}
		if err := put(p, KindDenial, denialKey(at.scope, at.value, p.seq-1), Denial{p.seq - 1}); err != nil {
			return err
		}
	}
	return nil
}

// deniedAbout is what recorded signals say a decision was about.
type deniedAbout struct {
	Resource struct {
		Secret struct {
			Name string `json:"name"`
		} `json:"secret"`
	} `json:"resource"`
	Attestation struct {
		DeviceID string `json:"device_id"`
	} `json:"attestation"`
}

// aboutSignals never fails: a denial is recorded whatever its signals look like.
func aboutSignals(signals json.RawMessage) (out deniedAbout) {
	if err := json.Unmarshal(signals, &out); err != nil {
		return deniedAbout{}
	}
	return out
}

func activationKey(sequence uint64) string { return fmt.Sprintf("%016x", sequence) }

// Activations lists every activation of a revision, in order.
func (l *Ledger) Activations(ctx context.Context) ([]Activation, error) {
	return all[Activation](ctx, l, KindActivation, func(string) bool { return true })
}

// Denials lists the indexes of up to max denials of a scope from index from on and below index below, the newest first.
// The value is that of the scope; ScopeAll has none.
func (l *Ledger) Denials(ctx context.Context, scope Scope, value string, from, below int64, max int) ([]int64, error) {
	return with(ctx, l, func(s Snapshot) ([]int64, error) {
		prefix := denialPrefix(scope, value)
		rows, err := s.Rows(ctx, KindDenial, denialKey(scope, value, below), page(max))
		if err != nil {
			return nil, err
		}
		var out []int64
		for _, r := range rows {
			d, err := decode[Denial](r)
			if err != nil {
				return nil, err
			}
			if !strings.HasPrefix(r.Key, prefix) || d.Index < from {
				break
			}
			out = append(out, d.Index)
		}
		return out, nil
	})
}

// maxErasures is how many erasures are counted one by one.
const maxErasures = 10 * MaxPage

// Erased says how many events of the ledger were erased; all is false where there may be more.
func (l *Ledger) Erased(ctx context.Context) (events int64, all bool, err error) {
	_, err = with(ctx, l, func(s Snapshot) (struct{}, error) {
		after := ""
		for n := 0; n < maxErasures; {
			rows, err := s.Rows(ctx, KindErasure, after, MaxPage)
			if err != nil {
				return struct{}{}, err
			}
			if all = len(rows) == 0; all {
				break
			}
			for _, r := range rows {
				e, err := decode[Erasure](r)
				if err != nil {
					return struct{}{}, err
				}
				events += e.Events
			}
			n, after = n+len(rows), rows[len(rows)-1].Key
		}
		return struct{}{}, nil
	})
	return events, all, err
}

// Delivery is a session with the index of the event that opened it.
type Delivery struct {
	Index   int64
	Session session.Session
}

// Deliveries lists the sessions that match q, the newest first, with their place in the log.
func (l *Ledger) Deliveries(ctx context.Context, q SessionQuery) ([]Delivery, error) {
	if !q.ExpiresBefore.IsZero() || !q.LiveFrom.IsZero() || !q.ReceiptBefore.IsZero() {
		return nil, errors.New("list deliveries: they are listed in the order of the log")
	}
	return with(ctx, l, func(s Snapshot) ([]Delivery, error) {
		rows, err := s.Sessions(ctx, q)
		out := make([]Delivery, len(rows))
		for i, r := range rows {
			if out[i].Session, err = decode[session.Session](r); err != nil {
				return nil, err
			}
			out[i].Index = r.Opened
		}
		return out, err
	})
}

// Scan passes all sessions that match q to f, in no particular order: as many as there are, so it takes its time. Of q
// it knows Principal, Secret, Device, From and Below. An error of f ends it.
func (l *Ledger) Scan(ctx context.Context, q SessionQuery, f func(Brief) error) error {
	var ended error
	_, err := with(ctx, l, func(s Snapshot) (struct{}, error) {
		return struct{}{}, s.Scan(ctx, q, func(r Row) error {
			b, err := parseBrief(r.Value)
			if err != nil {
				return fmt.Errorf("%w: the session of event %d: %w", ErrTampered, r.Opened, err)
			}
			ended = f(b)
			return ended
		})
	})
	if ended != nil {
		return ended
	}
	return err
}

// Recipients passes each delivery of a secret from index from on and below index below to f: by principal, and for each
// by index. It reads nothing but an index of the store. An error of f ends it.
func (l *Ledger) Recipients(ctx context.Context, secret string, from, below int64, f func(principal string, index int64) error) error {
	_, err := with(ctx, l, func(s Snapshot) (struct{}, error) { return struct{}{}, s.Recipients(ctx, secret, from, below, f) })
	return err
}

// Positions returns for each time, in ascending order, the index of the first event that is not older; the size of the
// ledger if there is none. Events of one moment may stand in another order in the log, and clocks are set: a position is
// as exact as that.
func (l *Ledger) Positions(ctx context.Context, times ...time.Time) ([]int64, error) {
	return with(ctx, l, func(s Snapshot) ([]int64, error) {
		size, err := s.Size(ctx)
		if err != nil {
			return nil, err
		}
		opener, out, low := newOpener(l.keys, s), make([]int64, len(times)), int64(0)
		for i, t := range times {
			for high := size; low < high; {
				middle := low + (high-low)/2
				at, err := opener.time(ctx, middle)
				switch {
				case err != nil:
					return nil, err
				case at.Before(t):
					low = middle + 1
				default:
					high = middle
				}
			}
			out[i] = low
		}
		return out, nil
	})
}

// time is when the event was. Of one whose body can't be read it is what the id says, which may be a little ahead.
func (o *opener) time(ctx context.Context, index int64) (time.Time, error) {
	stored, err := o.snap.Events(ctx, index, 1)
	if err != nil {
		return time.Time{}, err
	}
	if len(stored) == 0 || stored[0].Index != index {
		return time.Time{}, fmt.Errorf("%w: event %d is missing", ErrTampered, index)
	}
	e, err := o.open(ctx, stored[0])
	if errors.Is(err, ErrTampered) || e.Erased != 0 {
		return stored[0].ID.Time(), nil
	}
	return e.Event.Time.Time(), err
}
