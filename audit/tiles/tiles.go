// Package tiles is the file layout of C2SP tlog-tiles with tiles of height 8: which files a log of a given
// size has, what they are called, and how entries lie in a bundle. It hashes nothing and touches no disk.
//
// Level L holds the hashes of the complete subtrees of 256^L leaves, 256 to a tile; the last tile of a level
// may be partial. Next to tile/<L>/ lie the entries (tile/entries/), and, which the standard does not
// know, the events (events/), both in bundles that match the tiles of level 0.
package tiles

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const (
	// Height is the number of tree levels in a tile.
	Height = 8
	// Width is the number of hashes in a full tile, and of entries in a full bundle.
	Width = 1 << Height
	// maxNumber bounds the numbers of tiles while they are read: a log of 2^48 entries has fewer.
	maxNumber = 1 << 48
	// MaxEntry is the largest entry that fits into a bundle, in bytes.
	MaxEntry = 1<<16 - 1
)

// ErrMalformed says that bytes are not an entry bundle.
var ErrMalformed = errors.New("malformed entry bundle")

// Tile names one tile or bundle: the N'th of its level, with the first W of its Width items.
type Tile struct {
	Level int // 0 for the bundles of entries and events
	N     int64
	W     int
}

// First returns the index of the tile's first item within its level.
func (t Tile) First() int64 { return t.N * Width }

// HashPath returns the path of the tile's hashes.
func (t Tile) HashPath() string { return "tile/" + strconv.Itoa(t.Level) + "/" + t.number() }

// EntriesPath returns the path of the bundle of entries that belongs to a tile of level 0.
func (t Tile) EntriesPath() string { return "tile/entries/" + t.number() }

// EventsPath returns the path of the bundle of events that belongs to a tile of level 0.
func (t Tile) EventsPath() string { return "events/" + t.number() }

// number writes N in groups of three digits, all but the last marked with an x, and the width of a
// partial tile.
func (t Tile) number() string {
	s := fmt.Sprintf("%03d", t.N%1000)
	for n := t.N / 1000; n > 0; n /= 1000 {
		s = fmt.Sprintf("x%03d/%s", n%1000, s)
	}
	if t.W < Width {
		s += ".p/" + strconv.Itoa(t.W)
	}
	return s
}

// Levels returns the number of levels that the tree of size leaves has tiles for.
func Levels(size int64) int {
	levels := 0
	for ; size > 0; size /= Width {
		levels++
	}
	return levels
}

// Count returns the number of items on a level of the tree of size leaves.
func Count(size int64, level int) int64 { return size >> (Height * level) }

// Tiles returns how many tiles a level of the tree of size leaves has, the partial one included.
func Tiles(size int64, level int) int64 { return (Count(size, level) + Width - 1) / Width }

// At returns the N'th tile of a level in the tree of size leaves; N is below Tiles(size, level).
func At(size int64, level int, n int64) Tile {
	return Tile{Level: level, N: n, W: int(min(Width, Count(size, level)-n*Width))}
}

// Has reports whether path is a file that a log of size leaves has: hashes, entries or events.
func Has(size int64, path string) bool {
	for _, kind := range []struct {
		prefix string
		level  int
	}{{"tile/entries/", 0}, {"events/", 0}} {
		if rest, ok := strings.CutPrefix(path, kind.prefix); ok {
			return hasNumber(size, kind.level, rest)
		}
	}
	rest, ok := strings.CutPrefix(path, "tile/")
	if !ok {
		return false
	}
	digits, rest, ok := strings.Cut(rest, "/")
	level, err := strconv.Atoi(digits)
	if !ok || err != nil || strconv.Itoa(level) != digits || level < 0 || level >= Levels(size) {
		return false
	}
	return hasNumber(size, level, rest)
}

// Parse reads the path of hashes, or of a bundle of entries (then entries is set), as HashPath and EntriesPath write it:
// of whatever log, and of whatever width.
func Parse(path string) (t Tile, entries, ok bool) {
	rest, ok := strings.CutPrefix(path, "tile/")
	kind, number, found := strings.Cut(rest, "/")
	if !ok || !found {
		return Tile{}, false, false
	}
	t.W = Width
	if entries = kind == "entries"; !entries {
		level, err := strconv.ParseUint(kind, 10, 6)
		if err != nil {
			return Tile{}, false, false
		}
		t.Level = int(level)
	}
	plain, width, partial := strings.Cut(number, ".p/")
	if partial {
		w, err := strconv.ParseUint(width, 10, 8)
		if err != nil || w == 0 {
			return Tile{}, false, false
		}
		t.W = int(w)
	}
	for group := range strings.SplitSeq(plain, "/") {
		v, err := strconv.ParseUint(strings.TrimPrefix(group, "x"), 10, 10)
		if err != nil || t.N > maxNumber {
			return Tile{}, false, false
		}
		t.N = t.N*1000 + int64(v)
	}
	// Whatever was read loosely shows when it is written again.
	if entries {
		return t, true, t.EntriesPath() == path
	}
	return t, false, t.HashPath() == path
}

func hasNumber(size int64, level int, number string) bool {
	plain, _, _ := strings.Cut(number, ".p/")
	var n int64
	for group := range strings.SplitSeq(plain, "/") {
		group = strings.TrimPrefix(group, "x")
		v, err := strconv.ParseUint(group, 10, 10)
		if err != nil || n > size {
			return false
		}
		n = n*1000 + int64(v)
	}
	// Whatever was read loosely shows when it is written again.
	return n < Tiles(size, level) && At(size, level, n).number() == number
}

// AppendEntry adds an entry to a bundle: its length as a 16-bit big-endian number, then its bytes.
func AppendEntry(bundle, entry []byte) ([]byte, error) {
	if len(entry) > MaxEntry {
		return nil, fmt.Errorf("%w: entry of %d bytes, at most %d are allowed", ErrMalformed, len(entry), MaxEntry)
	}
	bundle = binary.BigEndian.AppendUint16(bundle, uint16(len(entry)))
	return append(bundle, entry...), nil
}

// ParseEntries reads a bundle; the entries share its memory. A bundle holds 1 to Width entries and nothing
// after them, so that writing them again gives the same bytes. With an error come the entries before the fault.
func ParseEntries(bundle []byte) ([][]byte, error) {
	var entries [][]byte
	for rest := bundle; len(rest) > 0; {
		if len(entries) == Width {
			return entries, fmt.Errorf("%w: more than %d entries", ErrMalformed, Width)
		}
		if len(rest) < 2 {
			return entries, fmt.Errorf("%w: entry %d is cut", ErrMalformed, len(entries))
		}
		n := int(binary.BigEndian.Uint16(rest))
		if rest = rest[2:]; len(rest) < n {
			return entries, fmt.Errorf("%w: entry %d is cut", ErrMalformed, len(entries))
		}
		entries = append(entries, rest[:n:n])
		rest = rest[n:]
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("%w: no entries", ErrMalformed)
	}
	return entries, nil
}
