package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/tiles"
	"github.com/bulla-project/bulla/ledger/event"
)

// ExportConfig says what is exported. The checkpoint and the events may come over the network: Export believes neither
// and writes only what fits together.
type ExportConfig struct {
	Checkpoint []byte // signed; its size says how many events are exported
	Key        proofs.Key
	Events     EventSource
	// Revisions gives the archive of a policy revision that the events activate, so that whoever has the export can
	// judge its decisions again. nil: the export has none, and is of the layout that could not have them.
	Revisions func(ctx context.Context, digest event.Digest) ([]byte, error)
	// Witnessed is a checkpoint of the same log, of at most that size, with the cosignatures of witnesses; nil: none. It
	// has to be a prefix of what is exported.
	Witnessed []byte
	// Progress, if set, is called with the number of events written so far and that of all.
	Progress func(done, total int64)
}

// Export writes the log up to a checkpoint into a new directory: checkpoint, tile/… with hashes and entries as in
// C2SP tlog-tiles, events/… with what opens their commitments, revision/… with the policy
// bundles that they activate, and manifest. The directory appears only
// when it is complete, readable by its owner alone; it is not synced to stable storage. Events that do not make the
// tree that the checkpoint signs give proofs.ErrVerification.
//
// An export holds the bodies of all events: names, principals, reasons. Only tile/ and checkpoint are
// fit for the public.
func Export(ctx context.Context, dir string, cfg ExportConfig) (Manifest, error) {
	c, err := cfg.Key.Open(cfg.Checkpoint)
	if err != nil {
		return Manifest{}, fmt.Errorf("export the log: checkpoint: %w", err)
	}
	if c.Size == 0 {
		return Manifest{}, fmt.Errorf("export the log: %w", ErrEmpty)
	}
	dir = filepath.Clean(dir)
	if _, err := os.Lstat(dir); err == nil {
		return Manifest{}, fmt.Errorf("export the log: %s exists already: name a directory that does not", dir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return Manifest{}, fmt.Errorf("export the log: %w", err)
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".partial-*")
	if err != nil {
		return Manifest{}, fmt.Errorf("export the log: %w", err)
	}
	x := exporter{cfg: cfg, dir: temp, checkpoint: c, tree: newLevels(c.Size), list: newListing(c.Size)}
	m, err := x.run(ctx)
	if err == nil {
		err = os.Rename(temp, dir)
	}
	if err != nil {
		_ = os.RemoveAll(temp)
		return Manifest{}, fmt.Errorf("export the log: %w", err)
	}
	return m, nil
}

// exporter is one export under way.
type exporter struct {
	cfg        ExportConfig
	dir        string
	checkpoint proofs.Checkpoint
	tree       levels
	list       *listing
	made       string // the last directory that was made
	revisions  revisions

	// The bundle under way.
	hashes  []proofs.Hash
	entries []byte
	events  []byte
}

func (x *exporter) run(ctx context.Context) (Manifest, error) {
	size := x.checkpoint.Size
	for next := int64(0); next < size; {
		records, err := x.cfg.Events.Records(ctx, next, int(min(tiles.Width, size-next)))
		if err != nil {
			return Manifest{}, fmt.Errorf("read events from %d on: %w", next, err)
		}
		if len(records) == 0 {
			return Manifest{}, faultAt("events", next, "the checkpoint signs %d entries, but the events end here", size)
		}
		for _, r := range records[:min(int64(len(records)), size-next)] {
			if err := x.add(r, next); err != nil {
				return Manifest{}, err
			}
			next++
		}
		if x.cfg.Progress != nil {
			x.cfg.Progress(next, size)
		}
	}
	rest := x.hashes
	if len(rest) > 0 {
		if err := x.flush(); err != nil {
			return Manifest{}, err
		}
	}
	if root := x.tree.root(size, rest); root != x.checkpoint.Root {
		return Manifest{}, faultIn(checkpointName, "the events make a log with root %s, the checkpoint signs %s", root, x.checkpoint.Root)
	}
	if err := x.archives(ctx); err != nil {
		return Manifest{}, err
	}
	if x.cfg.Witnessed != nil {
		if err := x.witnessed(rest); err != nil {
			return Manifest{}, err
		}
	}
	return x.finish()
}

// witnessed writes the cosigned checkpoint, if it is one of the log that is exported. rest are the hashes after the last
// full bundle.
func (x *exporter) witnessed(rest []proofs.Hash) error {
	at, sigs, err := x.cfg.Key.OpenCosigned(x.cfg.Witnessed, nil)
	if err != nil {
		return faultIn(witnessedName, "%s", reason(err))
	}
	if len(sigs) == 0 {
		return faultIn(witnessedName, "no witness cosigned it")
	}
	read := func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(x.dir, filepath.FromSlash(name))) }
	if err := extends(witnessedName, at, x.checkpoint.Size, x.tree, rest, read); err != nil {
		return err
	}
	f, err := x.write(witnessedName, x.cfg.Witnessed)
	x.list.witnessed = &f
	return err
}

// add puts r, which has to be the record at index, into the bundle under way.
func (x *exporter) add(r Record, index int64) error {
	if r.Index != index {
		return fmt.Errorf("%w: expected event %d and got %d", ErrGap, index, r.Index)
	}
	if r.Erased != 0 {
		if r.Erased <= index || r.Erased >= x.checkpoint.Size {
			return faultAt("events", index, "it is said to be erased by event %d, which is none of the export that comes later", r.Erased)
		}
		x.list.erased++
	} else if err := x.read(r); err != nil {
		return faultAt("events", index, "%v", err)
	}
	leaf := r.Leaf().Bytes()
	entries, err := tiles.AppendEntry(x.entries, leaf)
	if err != nil {
		return err
	}
	x.entries, x.events = entries, appendLine(x.events, r)
	if x.hashes = append(x.hashes, proofs.LeafHash(leaf)); len(x.hashes) < tiles.Width {
		return nil
	}
	x.tree.add(fold(x.hashes))
	return x.flush()
}

// read notes what the event says that the export has to hold beside it.
func (x *exporter) read(r Record) error {
	e, err := event.Decode(r.Encoding)
	if err != nil {
		return err
	}
	if activated, ok := e.Body.(event.RevisionActivated); ok {
		x.revisions.note(activated.Digest)
	}
	return nil
}

// flush writes the files of the bundle under way and starts the next one.
func (x *exporter) flush() error {
	t := tiles.Tile{N: int64(len(x.list.events)), W: len(x.hashes)}
	hashes, err := x.write(t.HashPath(), joinHashes(x.hashes))
	if err != nil {
		return err
	}
	entries, err := x.write(t.EntriesPath(), x.entries)
	if err != nil {
		return err
	}
	events, err := x.write(t.EventsPath(), x.events)
	if err != nil {
		return err
	}
	x.list.tiles[0] = append(x.list.tiles[0], hashes)
	x.list.entries, x.list.events = append(x.list.entries, entries), append(x.list.events, events)
	x.hashes, x.entries, x.events = nil, x.entries[:0], x.events[:0]
	return nil
}

// finish writes the upper tiles, the checkpoint, and the manifest.
func (x *exporter) finish() (Manifest, error) {
	size := x.checkpoint.Size
	for level := 1; level < tiles.Levels(size); level++ {
		for n := range tiles.Tiles(size, level) {
			t := tiles.At(size, level, n)
			f, err := x.write(t.HashPath(), joinHashes(x.tree.tile(t)))
			if err != nil {
				return Manifest{}, err
			}
			x.list.tiles[level] = append(x.list.tiles[level], f)
		}
	}
	var err error
	if x.list.checkpoint, err = x.write(checkpointName, x.cfg.Checkpoint); err != nil {
		return Manifest{}, err
	}
	m := Manifest{Origin: x.checkpoint.Origin, Size: size, Root: x.checkpoint.Root, Erased: x.list.erased, Files: x.list.files(), Revisions: x.cfg.Revisions != nil}
	raw, err := m.Encode()
	if err != nil {
		return Manifest{}, err
	}
	_, err = x.write(manifestName, raw)
	return m, err
}

// write makes a new file of the export.
func (x *exporter) write(path string, content []byte) (File, error) {
	full := filepath.Join(x.dir, filepath.FromSlash(path))
	if parent := filepath.Dir(full); parent != x.made {
		if err := os.MkdirAll(parent, 0o700); err != nil {
			return File{}, err
		}
		x.made = parent
	}
	f, err := os.OpenFile(full, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return File{}, err
	}
	_, err = f.Write(content)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return listed(path, content), err
}
