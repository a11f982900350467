package audit

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/tiles"
	"github.com/bulla-project/bulla/ledger/event"
)

// a29Entries is the size of the exports of these tests, a29Flips how many bits are changed in the long run.
const (
	a29Entries = 10_000
	a29Flips   = 10_000
	entryWidth = 2 + event.LeafSize
)

// most is how many of n cases are tried: all of them with BULLA_TEST_LONG=1.
func most(n, sample int) int {
	if os.Getenv("BULLA_TEST_LONG") == "1" {
		return n
	}
	return min(n, sample)
}

// large is an export of a29Entries, on the disk and in memory.
func large(t *testing.T) (dir string, files map[string][]byte, key proofs.Key) {
	t.Helper()
	s := newSigner(t)
	dir = export(t, s, newLedger(t, s.Key(), a29Entries))
	return dir, readTree(t, dir), s.Key()
}

// entryAt is the entry that a byte of a file belongs to, or -1 where it is about none.
func entryAt(name string, content []byte, at int) int64 {
	digits := strings.SplitN(strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(name, "events/"), "tile/entries/"), "tile/0/"), ".p/", 2)[0]
	first := int64(0)
	for _, c := range digits {
		first = first*10 + int64(c-'0')
	}
	first *= tiles.Width
	switch {
	case strings.HasPrefix(name, "events/"):
		return first + int64(bytes.Count(content[:at], []byte("\n")))
	case strings.HasPrefix(name, "tile/entries/"):
		return first + int64(at/entryWidth)
	case strings.HasPrefix(name, "tile/0/"):
		return first + int64(at/32)
	}
	return -1
}

// Whatever single bit of an export of 10,000 entries changes, verification names the file, and the entry where the byte is
// about one.
func TestAbuse_A29_randomBits(t *testing.T) {
	dir, files, key := large(t)
	names := slices.Sorted(maps.Keys(files))
	total := 0
	for _, name := range names {
		total += len(files[name])
	}
	random := rand.New(rand.NewPCG(29, a29Entries))
	for range most(a29Flips, 40) {
		at, name := random.IntN(total), ""
		for _, name = range names {
			if at < len(files[name]) {
				break
			}
			at -= len(files[name])
		}
		bad := bytes.Clone(files[name])
		bad[at] ^= 1 << random.IntN(8)
		writeFile(t, filepath.Join(dir, name), bad)
		_, fault := verify(t, dir, key, VerifyOptions{})
		// A newline that is none any more, or a new one, moves the border between two lines.
		border := strings.HasPrefix(name, "events/") && (files[name][at] == '\n' || bad[at] == '\n')
		switch want := entryAt(name, files[name], at); {
		case fault == nil:
			t.Fatalf("%s, byte %d: a flipped bit went unnoticed", name, at)
		case fault.File != name:
			t.Errorf("%s, byte %d: the fault is said to be in %s: %v", name, at, fault.File, fault)
		case want >= 0 && fault.Index != want && !border:
			t.Errorf("%s, byte %d: entry %d is blamed, and it is that of %d: %v", name, at, fault.Index, want, fault)
		}
		writeFile(t, filepath.Join(dir, name), files[name])
	}
	if _, fault := verify(t, dir, key, VerifyOptions{}); fault != nil {
		t.Fatalf("the export is no longer whole: %v", fault)
	}
}

// Whichever of 10,000 entries is removed, swapped with the next, or the first that is cut off: it is named.
func TestAbuse_A29_eachEntry(t *testing.T) {
	dir, files, key := large(t)
	all := rand.New(rand.NewPCG(29, 29)).Perm(a29Entries)
	edits := map[string]func(parts [][]byte, i int) [][]byte{
		"removed": func(p [][]byte, i int) [][]byte { return slices.Delete(p, i, i+1) },
		"swapped": func(p [][]byte, i int) [][]byte { p[i], p[i+1] = p[i+1], p[i]; return p },
		"cut":     func(p [][]byte, i int) [][]byte { return p[:i] },
	}
	split := map[string]func(content []byte) [][]byte{
		"events": func(content []byte) [][]byte {
			lines := bytes.SplitAfter(content, []byte("\n"))
			return lines[:len(lines)-1]
		},
		"tile/entries": func(content []byte) [][]byte { return slices.Collect(slices.Chunk(content, entryWidth)) },
	}
	for _, index := range all[:most(a29Entries, 4)] {
		tile := tiles.At(a29Entries, 0, int64(index/tiles.Width))
		for kind, cut := range split {
			name := tile.EventsPath()
			if kind == "tile/entries" {
				name = tile.EntriesPath()
			}
			for edit, change := range edits {
				at := index % tiles.Width
				if edit == "swapped" && at == tile.W-1 {
					at-- // the last of a file goes with the one before it
				}
				want := tile.First() + int64(at)
				writeFile(t, filepath.Join(dir, name), bytes.Join(change(slices.Clone(cut(files[name])), at), nil))
				_, fault := verify(t, dir, key, VerifyOptions{})
				if fault == nil || fault.File != name || fault.Index != want {
					t.Errorf("%s %d %s: %v, want it named in %s", kind, want, edit, fault, name)
				}
				writeFile(t, filepath.Join(dir, name), files[name])
			}
		}
	}
	if _, fault := verify(t, dir, key, VerifyOptions{}); fault != nil {
		t.Fatalf("the export is no longer whole: %v", fault)
	}
}
