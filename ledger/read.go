package ledger

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// What these methods return is shared: callers read it and change nothing. The number beside a value is its
// row's Seq, for preconditions; it is 0 together with ErrNotFound. Unless said otherwise errors wrap
// ErrNotFound, ErrTampered or ErrUnavailable.

// Session returns a session by its id.
func (l *Ledger) Session(ctx context.Context, id event.ID) (session.Session, int64, error) {
	return read[session.Session](ctx, l, KindSession, id.String())
}

// Secret returns a secret's metadata by its name.
func (l *Ledger) Secret(ctx context.Context, name string) (Secret, int64, error) {
	return read[Secret](ctx, l, KindSecret, name)
}

// Device returns an enrolled device, also a revoked one.
func (l *Ledger) Device(ctx context.Context, id string) (Device, int64, error) {
	return read[Device](ctx, l, KindDevice, id)
}

// DeviceCounter returns the clock values of a device's newest evidence.
func (l *Ledger) DeviceCounter(ctx context.Context, device string) (DeviceCounter, int64, error) {
	return read[DeviceCounter](ctx, l, KindDeviceCounter, device)
}

// Passport returns the newest appraisal for an instance of a principal, by its InstanceKey.
func (l *Ledger) Passport(ctx context.Context, key string) (Passport, int64, error) {
	return read[Passport](ctx, l, KindPassport, key)
}

// ActiveRevision returns the revision that decides now.
func (l *Ledger) ActiveRevision(ctx context.Context) (Revision, int64, error) {
	return read[Revision](ctx, l, KindRevision, ActiveRevision)
}

// Revision returns the newest activation of the bundle with this digest, in hexadecimal.
func (l *Ledger) Revision(ctx context.Context, digest string) (Revision, int64, error) {
	return read[Revision](ctx, l, KindRevision, digest)
}

// Key returns a signing key, also a retired one.
func (l *Ledger) Key(ctx context.Context, id string) (Key, int64, error) {
	return read[Key](ctx, l, KindKey, id)
}

// Keys lists all signing keys by id.
func (l *Ledger) Keys(ctx context.Context) ([]Key, error) {
	return all[Key](ctx, l, KindKey, func(string) bool { return true })
}

// Secrets lists up to max secrets whose name is greater than after, by name.
func (l *Ledger) Secrets(ctx context.Context, after string, max int) ([]Secret, error) {
	return list[Secret](ctx, l, KindSecret, after, max)
}

// Devices lists up to max devices whose id is greater than after, by id.
func (l *Ledger) Devices(ctx context.Context, after string, max int) ([]Device, error) {
	return list[Device](ctx, l, KindDevice, after, max)
}

// Revisions lists up to max revisions that were ever active, each with its newest activation, the newest
// first.
func (l *Ledger) Revisions(ctx context.Context, max int) ([]Revision, error) {
	out, err := all[Revision](ctx, l, KindRevision, func(key string) bool { return key != ActiveRevision })
	slices.SortFunc(out, func(a, b Revision) int { return cmp.Compare(b.Sequence, a.Sequence) })
	return out[:min(len(out), page(max))], err
}

// Sessions lists the sessions that match q, the newest first.
func (l *Ledger) Sessions(ctx context.Context, q SessionQuery) ([]session.Session, error) {
	return with(ctx, l, func(s Snapshot) ([]session.Session, error) {
		rows, err := s.Sessions(ctx, q)
		if err != nil {
			return nil, err
		}
		return decodeRows[session.Session](rows)
	})
}

// Request returns what is stored under a request key: whose it is and how long it holds is for the caller
// to check, since only the caller knows who asks.
func (l *Ledger) Request(ctx context.Context, key string) (Request, error) {
	return with(ctx, l, func(s Snapshot) (Request, error) { return s.Request(ctx, key) })
}

// Blob returns the blob under key if its SHA-256 is digest, which stands in the event that brought it; else
// the error wraps ErrTampered.
func (l *Ledger) Blob(ctx context.Context, key string, digest event.Digest) ([]byte, error) {
	if b, ok := l.cache.blob(blobKey{key, digest}); ok {
		return b, nil
	}
	return with(ctx, l, func(s Snapshot) ([]byte, error) {
		data, err := s.Blob(ctx, key)
		if err != nil {
			return nil, fmt.Errorf("blob %q: %w", key, err)
		}
		if sha256.Sum256(data) != digest {
			return nil, fmt.Errorf("%w: blob %q does not have the digest that its event names", ErrTampered, key)
		}
		l.cache.addBlob(blobKey{key, digest}, data)
		return data, nil
	})
}

// Size returns the number of events.
func (l *Ledger) Size(ctx context.Context) (int64, error) {
	return with(ctx, l, func(s Snapshot) (int64, error) { return s.Size(ctx) })
}

// Events returns up to max events from index from, opened, and checked against their leaves. Of those that were erased it
// returns what is left: see Entry.
func (l *Ledger) Events(ctx context.Context, from int64, max int) ([]Entry, error) {
	return with(ctx, l, func(s Snapshot) ([]Entry, error) {
		stored, err := s.Events(ctx, from, page(max))
		if err != nil {
			return nil, err
		}
		opener, out := newOpener(l.keys, s), make([]Entry, len(stored))
		for i, e := range stored {
			if e.Index != from+int64(i) {
				return nil, fmt.Errorf("%w: event %d is missing", ErrTampered, from+int64(i))
			}
			if out[i], err = opener.open(ctx, e); err != nil {
				return nil, err
			}
		}
		return out, nil
	})
}

// Leaves returns up to max leaves from index from.
func (l *Ledger) Leaves(ctx context.Context, from int64, max int) ([]event.Leaf, error) {
	return with(ctx, l, func(s Snapshot) ([]event.Leaf, error) {
		stored, err := s.Leaves(ctx, from, page(max))
		out := make([]event.Leaf, len(stored))
		for i, e := range stored {
			if e.Index != from+int64(i) {
				return nil, fmt.Errorf("%w: event %d is missing", ErrTampered, from+int64(i))
			}
			out[i] = e.Leaf
		}
		return out, err
	})
}

// Find returns the event with this id, opened and checked against its leaf, or ErrErased.
func (l *Ledger) Find(ctx context.Context, id event.ID) (Entry, error) {
	return with(ctx, l, func(s Snapshot) (Entry, error) {
		stored, err := s.Find(ctx, id)
		if err != nil {
			return Entry{}, fmt.Errorf("event %s: %w", id, err)
		}
		e, err := newOpener(l.keys, s).open(ctx, stored)
		if err == nil && e.Erased != 0 {
			return Entry{}, fmt.Errorf("event %s: %w by event %d", id, ErrErased, e.Erased)
		}
		return e, err
	})
}

// Result returns again what Commit returned for the event with this index, or ErrErased.
func (l *Ledger) Result(ctx context.Context, index int64) (Result, error) {
	entries, err := l.Events(ctx, index, 1)
	if err != nil {
		return Result{}, err
	}
	if len(entries) == 0 {
		return Result{}, fmt.Errorf("event %d: %w", index, ErrNotFound)
	}
	if entries[0].Erased != 0 {
		return Result{}, fmt.Errorf("event %d: %w by event %d", index, ErrErased, entries[0].Erased)
	}
	return Result{Index: index, Leaf: entries[0].Leaf, ReplySalt: entries[0].ReplySalt}, nil
}

// Check compares the state with the events; see the function Check.
func (l *Ledger) Check(ctx context.Context, progress func(done, total int64)) (Report, error) {
	return with(ctx, l, func(s Snapshot) (Report, error) { return Check(ctx, s, l.keys, progress) })
}

func page(max int) int {
	if max <= 0 || max > MaxPage {
		return MaxPage
	}
	return max
}

// with runs f on a snapshot. An error that is none of the sentinels is the store's: ErrUnavailable.
func with[T any](ctx context.Context, l *Ledger, f func(Snapshot) (T, error)) (T, error) {
	var zero T
	snap, err := l.store.Snapshot(ctx)
	if err != nil {
		return zero, fmt.Errorf("read ledger: %w: %w", ErrUnavailable, err)
	}
	defer snap.Close()
	v, err := f(snap)
	switch {
	case err == nil:
		return v, nil
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrTampered), errors.Is(err, ErrErased), errors.Is(err, ErrHeld), errors.Is(err, ErrTransition):
		return zero, err
	}
	return zero, fmt.Errorf("read ledger: %w: %w", ErrUnavailable, err)
}

func read[T any](ctx context.Context, l *Ledger, kind Kind, key string) (v T, seq int64, err error) {
	at := RowKey{kind, key}
	row, ok, epoch := l.cache.get(at)
	if !ok {
		if row, err = l.row(ctx, at); err != nil {
			return v, 0, err
		}
		l.cache.add(at, row, epoch)
	}
	if row.Seq == 0 {
		return v, 0, fmt.Errorf("%s %q: %w", kind, key, ErrNotFound)
	}
	if v, err = decode[T](row); err != nil {
		return v, 0, err
	}
	return v, row.Seq, nil
}

// row reads a row past the cache; a row that is not there has Seq 0.
func (l *Ledger) row(ctx context.Context, key RowKey) (Row, error) {
	return with(ctx, l, func(s Snapshot) (Row, error) {
		row, err := s.Row(ctx, key)
		if errors.Is(err, ErrNotFound) {
			return Row{RowKey: key}, nil
		}
		return NewRow(key, row.Value, row.Seq), err
	})
}

func list[T any](ctx context.Context, l *Ledger, kind Kind, after string, max int) ([]T, error) {
	return with(ctx, l, func(s Snapshot) ([]T, error) {
		rows, err := s.Rows(ctx, kind, after, page(max))
		if err != nil {
			return nil, err
		}
		return decodeRows[T](rows)
	})
}

// all lists every row of a kind that is never numerous, on one snapshot.
func all[T any](ctx context.Context, l *Ledger, kind Kind, keep func(key string) bool) ([]T, error) {
	return with(ctx, l, func(s Snapshot) ([]T, error) {
		var kept []Row
		for after := ""; ; {
			rows, err := s.Rows(ctx, kind, after, MaxPage)
			if err != nil {
				return nil, err
			}
			for _, r := range rows {
				if keep(r.Key) {
					kept = append(kept, r)
				}
			}
			if len(rows) < MaxPage {
				return decodeRows[T](kept)
			}
			after = rows[len(rows)-1].Key
		}
	})
}

func decodeRows[T any](rows []Row) ([]T, error) {
	out := make([]T, len(rows))
	for i, r := range rows {
		var err error
		if out[i], err = decode[T](r); err != nil {
			return nil, err
		}
	}
	return out, nil
}
