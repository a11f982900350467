package audit

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/ledger/event"
)

// life is an incarnation of the ledger: its log, and the index of the event that began it.
type life struct {
	number uint32
	origin string
	key    string
	from   int64
	known  proofs.Checkpoint // of a log before, where it is not the first one
}

// restored takes in the event at index, with which a new incarnation begins: it follows the one before, has a name and a
// key of its own, and carries a checkpoint of an earlier log that says what it says.
func (h *history) restored(b event.Restored, index int64) error {
	last := h.lives[len(h.lives)-1]
	base, _ := proofs.SplitIncarnation(last.origin)
	key, err := proofs.ParseKey(b.LogKey)
	switch {
	case b.Previous != last.origin:
		return fmt.Errorf("it goes on from log %q, but this was %q", b.Previous, last.origin)
	case b.Incarnation <= last.number || b.Origin != proofs.Incarnation(base, b.Incarnation):
		return fmt.Errorf("log %q with the number %d is no incarnation after number %d of %q", b.Origin, b.Incarnation, last.number, base)
	case err != nil || key.Origin() != b.Origin:
		return fmt.Errorf("it names no key of log %q", b.Origin)
	case slices.ContainsFunc(h.lives, func(l life) bool { return l.key == b.LogKey }):
		return fmt.Errorf("its log key was that of an earlier log")
	}
	known, err := h.known(b.Known.Signed)
	if err != nil {
		return fmt.Errorf("the checkpoint that it carries: %w", err)
	}
	family, n := proofs.SplitIncarnation(known.Origin)
	said := event.KnownHead{Origin: known.Origin, Size: known.Size, Root: known.Root.String(), Signed: b.Known.Signed}
	if family != base || n >= b.Incarnation || said.Origin != b.Known.Origin || said.Size != b.Known.Size || said.Root != b.Known.Root {
		return fmt.Errorf("the checkpoint that it carries is %d entries of log %q with root %s", known.Size, known.Origin, known.Root)
	}
	h.lives = append(h.lives, life{b.Incarnation, b.Origin, b.LogKey, index, known})
	return nil
}

// known reads a checkpoint of an earlier log, with its key where that stands in this history. A log of another copy of the
// store may have begun and be gone: the key of that one is not known here.
func (h *history) known(signed []byte) (proofs.Checkpoint, error) {
	c, err := proofs.Peek(signed)
	if err != nil {
		return c, err
	}
	for _, l := range h.lives {
		if l.origin != c.Origin {
			continue
		}
		key, err := proofs.ParseKey(l.key)
		if err != nil {
			return c, err
		}
		c, _, err = key.OpenCosigned(signed, nil)
		return c, err
	}
	return c, nil
}

// named refuses a history that is not the key's log, at the event that says whose it is.
func (h *history) named() error {
	if len(h.lives) == 0 {
		return nil // of no events
	}
	last := h.lives[len(h.lives)-1]
	what := "genesis"
	if last.number > 1 {
		what = "newest restore"
	}
	switch {
	case last.origin != h.key.Origin():
		return &misplaced{last.from, fmt.Sprintf("the %s is that of log %q, expected %q", what, last.origin, h.key.Origin())}
	case last.key != h.key.String():
		return &misplaced{last.from, fmt.Sprintf("the %s names another log key", what)}
	}
	return nil
}

// ended is a log that a restore has ended: its key, and how many of its entries are kept.
type ended struct {
	key proofs.Key
	end int64
}

// before returns the log before the last one that a checkpoint says it is of, or nil.
func (h *history) before(signed []byte) *ended {
	c, err := proofs.Peek(signed)
	if err != nil || len(h.lives) == 0 {
		return nil
	}
	for i, l := range h.lives[:len(h.lives)-1] {
		if l.origin != c.Origin {
			continue
		}
		if key, err := proofs.ParseKey(l.key); err == nil {
			return &ended{key, h.lives[i+1].from}
		}
	}
	return nil
}

// Restore is the beginning of an incarnation that is not the first one.
type Restore struct {
	Index       int64  `json:"index"` // of its event; the entries before are those of the log before
	Incarnation uint32 `json:"incarnation"`
	Origin      string `json:"origin"`
	// Known is how many entries of log KnownOrigin there had been, as far as was known.
	Known       int64  `json:"known"`
	KnownOrigin string `json:"known_origin"`
}

// restores tells of the lives after the first one.
func (h *history) restores() []Restore {
	out := []Restore{}
	for _, l := range h.lives[min(1, len(h.lives)):] {
		out = append(out, Restore{l.from, l.number, l.origin, l.known.Size, l.known.Origin})
	}
	return out
}

// Measure makes the tree of everything that a source has, writes nothing, and returns its size. Roots has the roots over
// the first so many leaves, for those of sizes that the source reaches.
func Measure(ctx context.Context, src Source, sizes ...int64) (size int64, roots map[int64]proofs.Hash, err error) {
	roots = map[int64]proofs.Hash{}
	var tree frontier
	for _, upTo := range append(slices.Sorted(slices.Values(sizes)), math.MaxInt64) {
		if tree, err = extend(ctx, src, nowhere{}, tree, upTo); err != nil {
			return 0, nil, fmt.Errorf("measure the store: %w", err)
		}
		roots[tree.n] = tree.root()
	}
	return tree.n, roots, nil
}
