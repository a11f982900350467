package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/tiles"
	"github.com/bulla-project/bulla/ledger/event"
)

// bundle is what came out of the verification of up to 256 entries, with their tile and events.
type bundle struct {
	tile    tiles.Tile
	err     error
	hashes  []proofs.Hash
	root    proofs.Hash     // of a full bundle
	decoded []event.Event   // without a body where they were erased
	erased  map[int64]int64 // by index: the index of the event that says so; nil: none

	hashFile, entryFile, eventFile File
}

// bundle verifies one bundle by itself: that entries, tile and events say the same. It runs beside others and
// only reads from v.
func (v *verifier) bundle(t tiles.Tile) bundle {
	b := bundle{tile: t}
	leaves, err := v.entries(&b)
	if err == nil {
		err = v.events(&b, leaves)
	}
	if err != nil {
		return bundle{tile: t, err: err}
	}
	if t.W == tiles.Width {
		b.root = fold(b.hashes)
	}
	return b
}

// entries verifies the entries of b against its tile.
func (v *verifier) entries(b *bundle) ([]event.Leaf, error) {
	t := b.tile
	tile, err := v.read(t.HashPath(), tiles.Width*tlog.HashSize)
	if err != nil {
		return nil, err
	}
	if len(tile) != t.W*tlog.HashSize {
		return nil, faultIn(t.HashPath(), "it has %d bytes, its %d hashes have %d", len(tile), t.W, t.W*tlog.HashSize)
	}
	content, err := v.read(t.EntriesPath(), tiles.Width*(2+tiles.MaxEntry))
	if err != nil {
		return nil, err
	}
	b.hashFile, b.entryFile = listed(t.HashPath(), tile), listed(t.EntriesPath(), content)
	entries, parseErr := tiles.ParseEntries(content)
	claimed := splitHashes(tile)
	leaves := make([]event.Leaf, 0, t.W)
	for i, entry := range entries[:min(len(entries), t.W)] {
		leaf, err := event.ParseLeaf(entry)
		if err != nil {
			return nil, faultAt(t.EntriesPath(), t.First()+int64(i), "%v", err)
		}
		h := proofs.LeafHash(entry)
		if h != claimed[i] {
			return nil, faultAt(v.blame(b.hashFile, b.entryFile), t.First()+int64(i), "the entry in %s does not have the hash in %s", t.EntriesPath(), t.HashPath())
		}
		leaves, b.hashes = append(leaves, leaf), append(b.hashes, h)
	}
	if len(leaves) < t.W {
		return nil, faultAt(t.EntriesPath(), t.First()+int64(len(leaves)), "the entry is missing or cut")
	}
	if parseErr != nil || len(entries) > t.W {
		return nil, faultAt(t.EntriesPath(), t.First()+int64(t.W), "there is more than the %d entries", t.W)
	}
	return leaves, nil
}

// blame returns which of two files that disagree was altered, if the manifest says so; else the second.
func (v *verifier) blame(first, second File) string {
	said := func(f File) bool {
		for _, m := range v.manifest.Files {
			if m.Path == f.Path {
				return m == f
			}
		}
		return false
	}
	if !said(first) && said(second) {
		return first.Path
	}
	return second.Path
}

// events verifies the events of b against the leaves that commit to them.
func (v *verifier) events(b *bundle, leaves []event.Leaf) error {
	name := b.tile.EventsPath()
	f, err := v.open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	counted := counter{hash: sha256.New()}
	lines := bufio.NewScanner(io.TeeReader(f, &counted))
	lines.Buffer(make([]byte, 0, 64<<10), maxLine+1)
	lines.Split(splitLines)
	b.decoded = make([]event.Event, 0, b.tile.W)
	index := b.tile.First()
	for ; lines.Scan(); index++ {
		if index == b.tile.First()+int64(b.tile.W) {
			return faultAt(name, index, "there is more than the %d events", b.tile.W)
		}
		e, erased, err := openLine(lines.Bytes(), index, leaves[index-b.tile.First()])
		if err != nil {
			return faultAt(name, index, "%v", err)
		}
		if erased != 0 {
			if b.erased == nil {
				b.erased = map[int64]int64{}
			}
			b.erased[index] = erased
		}
		b.decoded = append(b.decoded, e)
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return faultAt(name, index, "the line is longer than %d bytes", maxLine)
	} else if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if index < b.tile.First()+int64(b.tile.W) {
		return faultAt(name, index, "the event is missing")
	}
	b.eventFile = File{Path: name, Size: counted.size, SHA256: event.Digest(counted.hash.Sum(nil))}
	return nil
}

// openLine reads the event at index and checks it against its leaf, or returns the index of the event that erased it.
func openLine(line []byte, index int64, leaf event.Leaf) (e event.Event, erased int64, err error) {
	r, err := parseLine(line)
	if err != nil {
		return event.Event{}, 0, err
	}
	if r.Index != index {
		return event.Event{}, 0, fmt.Errorf("its place is taken by the line of event %d", r.Index)
	}
	if r.Erased != 0 {
		return event.Event{}, r.Erased, nil
	}
	if r.Leaf() != leaf {
		return event.Event{}, 0, errors.New("it is not the event, salt or reply that the entry commits to")
	}
	if e, err = event.Decode(r.Encoding); err != nil {
		return event.Event{}, 0, err
	}
	if delivered(e.Body) != r.Reply {
		return event.Event{}, 0, errors.New("the reply that the client got is not the one that the event records")
	}
	return e, 0, nil
}

// splitLines cuts after each newline, and keeps it; what comes after the last one is a line too.
func splitLines(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i+1], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

// counter hashes and counts what is written to it.
type counter struct {
	hash hash.Hash
	size int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.size += int64(len(p))
	return c.hash.Write(p)
}
