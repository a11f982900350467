package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/tiles"
	"github.com/bulla-project/bulla/ledger/event"
)

// VerifyOptions are the choices of Verify; the zero value is useful.
type VerifyOptions struct {
	// Against is a signed checkpoint of the same log that the auditor got in another way. The export must hold at least
	// its entries, unchanged.
	Against []byte
	// Witnesses have to have cosigned the log, all of them: the export's own witnessed checkpoint, or Against.
	Witnesses []proofs.WitnessKey
	// Progress, if set, is called with the number of entries verified so far and that of all.
	Progress func(done, total int64)
	// Event, if set, gets each event, in the order of their indexes, as soon as it is found to be what its leaf commits
	// to. Whether the log's key signed that leaf is only known when Verify returns. An error ends the verification.
	Event func(index int64, e event.Event) error
}

// Report is what a successful verification showed.
type Report struct {
	Origin  string `json:"origin"`
	Size    int64  `json:"size"` // entries, each with its event
	Root    string `json:"root"`
	Files   int    `json:"files"` // the manifest included
	Bytes   int64  `json:"bytes"`
	Against *int64 `json:"against"` // size of the checkpoint that it was compared with, or null
	// Witnessed is the size of the checkpoint in the export that carries cosignatures, or null, whoever made them;
	// Witnesses are the cosignatures of those that were asked for, verified.
	Witnessed *int64               `json:"witnessed"`
	Witnesses []proofs.Cosignature `json:"witnesses"`
	// Restores are the events by which the ledger went on from a backup, in a log of another name.
	Restores []Restore `json:"restores"`
	// Erased is how many entries can't be read, each by an event of the log that says so.
	Erased int64 `json:"erased"`
	// ManifestSHA256 stands for every byte of the export.
	ManifestSHA256 event.Digest `json:"manifest_sha256"`
	// Summary is the result in one sentence.
	Summary string `json:"summary"`
}

// Verify reads every file of the export in dir and reports whether all of it is what the log's key signed. It needs
// neither broker nor network. What is wrong is a *Fault (it wraps proofs.ErrVerification) that names the
// place; other errors are those of reading.
//
// It checks the checkpoint's signature; the root, from the entries upwards; each tile; each event against
// the commitments of its leaf, that it names the reply that it commits to, and that it is canonical; that the events can
// have happened in this order; that there is no file that need not be there, and that each is, byte for byte, what its
// content is written as.
func Verify(ctx context.Context, dir string, key proofs.Key, opts VerifyOptions) (Report, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Report{}, fmt.Errorf("verify export: %w", err)
	}
	defer func() { _ = root.Close() }()
	v := verifier{root: root, key: key, opts: opts, history: newHistory(key)}
	report, err := v.run(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("verify export %s: %w", dir, err)
	}
	return report, nil
}

// verifier is one verification under way.
type verifier struct {
	root *os.Root
	key  proofs.Key
	opts VerifyOptions

	checkpoint  proofs.Checkpoint
	manifest    Manifest // as it says; not believed
	rawManifest []byte
	list        *listing      // as it was found
	tree        levels        // computed from the entries
	rest        []proofs.Hash // of the leaves in the last, partial bundle
	history     *history
	revisions   revisions            // of the events
	witnessed   *proofs.Checkpoint   // in the export; nil: none
	older       *proofs.Checkpoint   // of the auditor; nil: none
	cosigned    []proofs.Cosignature // of both
	saw         []proofs.Cosignature // those that verify; known before the events are read
}

func (v *verifier) run(ctx context.Context) (Report, error) {
	steps := []func(context.Context) error{
		v.readHead, v.walk, v.whoSaw, v.bundles, v.settled, v.upperTiles, v.archives, v.readWitnessed, v.against, v.compareManifest, v.witnesses,
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return Report{}, err
		}
	}
	return v.report(), nil
}

// readHead reads checkpoint and manifest.
func (v *verifier) readHead(context.Context) error {
	raw, err := v.read(checkpointName, proofs.MaxCheckpoint)
	if err != nil {
		return err
	}
	if v.checkpoint, err = v.key.Open(raw); err != nil {
		return faultIn(checkpointName, "%s", reason(err))
	}
	size := v.checkpoint.Size
	if size == 0 {
		return faultIn(checkpointName, "it signs an empty log, but every log has its genesis")
	}
	v.tree, v.list = newLevels(size), newListing(size)
	v.list.checkpoint = listed(checkpointName, raw)

	if v.rawManifest, err = v.read(manifestName, maxManifest); err != nil {
		return err
	}
	if v.manifest, err = ParseManifest(v.rawManifest); err != nil {
		return faultIn(manifestName, "%v", err)
	}
	if m := v.manifest; m.Origin != v.checkpoint.Origin || m.Size != size || m.Root != v.checkpoint.Root {
		return faultIn(manifestName, "it is about %d entries of log %s with root %s, the checkpoint about %d of %s with %s",
			m.Size, m.Origin, m.Root, size, v.checkpoint.Origin, v.checkpoint.Root)
	}
	// Whoever has the log's key can sign any size: work and memory go by what is there, not by what is signed.
	if n := int64(len(v.manifest.Files)); n < fewest(size) {
		return faultIn(manifestName, "it lists %d files, and an export of %d entries has %d at least", n, size, fewest(size))
	}
	return nil
}

// reason returns the text of a verification error without the words that Fault says again.
func reason(err error) string {
	return strings.TrimPrefix(err.Error(), proofs.ErrVerification.Error()+": ")
}

// walk refuses everything in the directory that an export of this size does not have. Whether what it has are files is
// seen when they are opened.
func (v *verifier) walk(ctx context.Context) error {
	needed := v.directories()
	return fs.WalkDir(v.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case d.IsDir():
			if _, ok := needed[name]; !ok {
				return faultIn(name, "a directory that does not belong to an export of %d entries", v.checkpoint.Size)
			}
			return nil
		case name != checkpointName && name != manifestName && name != witnessedName && !tiles.Has(v.checkpoint.Size, name) && !v.mayBeArchive(name):
			return faultIn(name, "a file that does not belong to an export of %d entries", v.checkpoint.Size)
		}
		return nil
	})
}

// directories returns the directories that the export has.
func (v *verifier) directories() map[string]struct{} {
	needed := map[string]struct{}{".": {}}
	if v.manifest.Revisions {
		needed[revisionsDir] = struct{}{}
	}
	last := "" // of consecutive files most share a directory
	note := func(file string) {
		dir := path.Dir(file)
		if dir == last {
			return
		}
		for last = dir; dir != "."; dir = path.Dir(dir) {
			needed[dir] = struct{}{}
		}
	}
	size := v.checkpoint.Size
	for level := range tiles.Levels(size) {
		for n := range tiles.Tiles(size, level) {
			note(tiles.At(size, level, n).HashPath())
		}
	}
	for n := range tiles.Tiles(size, 0) {
		note(tiles.At(size, 0, n).EntriesPath())
	}
	for n := range tiles.Tiles(size, 0) {
		note(tiles.At(size, 0, n).EventsPath())
	}
	return needed
}

// read returns the content of a file of at most limit bytes.
func (v *verifier) read(name string, limit int64) ([]byte, error) {
	f, err := v.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var content bytes.Buffer
	if _, err := content.ReadFrom(io.LimitReader(f, limit+1)); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(content.Len()) > limit {
		return nil, faultIn(name, "it is longer than %d bytes", limit)
	}
	return content.Bytes(), nil
}

// open opens a file that has to be there, and to be one: no link, no pipe.
func (v *verifier) open(name string) (*os.File, error) {
	info, err := v.root.Lstat(name)
	if err == nil && !info.Mode().IsRegular() {
		return nil, faultIn(name, "it is not a regular file (%s)", info.Mode().Type())
	}
	var f *os.File
	if err == nil {
		f, err = v.root.Open(name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, faultIn(name, "the file is missing")
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return f, nil
}

// bundles verifies entries and events, several bundles at a time, and takes their results in order.
func (v *verifier) bundles(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	size := v.checkpoint.Size
	workers := runtime.GOMAXPROCS(0)
	results := make(chan chan bundle, 2*workers)
	free := make(chan struct{}, workers)
	go func() {
		defer close(results)
		for n := range tiles.Tiles(size, 0) {
			result := make(chan bundle, 1)
			select {
			case <-ctx.Done():
				return
			case results <- result:
			}
			free <- struct{}{}
			go func() {
				defer func() { <-free }()
				result <- v.bundle(tiles.At(size, 0, n))
			}()
		}
	}()
	// Whatever ends this loop, the goroutines are waited for: they read from v.
	var err error
	for result := range results {
		if b := <-result; err == nil {
			if err = v.take(b); err != nil {
				stop()
			}
		}
	}
	if err != nil {
		return err
	}
	return ctx.Err() // not nil: it was cancelled before the end
}

// take adds the result of the next bundle.
func (v *verifier) take(b bundle) error {
	if b.err != nil {
		return b.err
	}
	for i, e := range b.decoded {
		index := b.tile.First() + int64(i)
		if err := v.history.add(e, b.erased[index]); err != nil {
			return v.blamed(b.tile, index, err)
		}
		if err := v.late(index, e); err != nil {
			return v.blamed(b.tile, index, err)
		}
		if activated, ok := e.Body.(event.RevisionActivated); ok {
			v.revisions.note(activated.Digest)
		}
		if v.opts.Event == nil {
			continue
		}
		if err := v.opts.Event(b.tile.First()+int64(i), e); err != nil {
			return err
		}
	}
	v.list.erased += int64(len(b.erased))
	v.list.tiles[0] = append(v.list.tiles[0], b.hashFile)
	v.list.entries, v.list.events = append(v.list.entries, b.entryFile), append(v.list.events, b.eventFile)
	if b.tile.W == tiles.Width {
		v.tree.add(b.root)
	} else {
		v.rest = b.hashes
	}
	if v.opts.Progress != nil {
		v.opts.Progress(b.tile.First()+int64(b.tile.W), v.checkpoint.Size)
	}
	return nil
}

// settled makes sure that every entry that is called erased was erased by the event that is said to have done so.
func (v *verifier) settled(context.Context) error {
	if err := v.history.settled(); err != nil {
		return v.blamed(tiles.Tile{}, 0, err)
	}
	return nil
}

// blamed is the fault of err: at the entry that it names, else at index in t.
func (v *verifier) blamed(t tiles.Tile, index int64, err error) *Fault {
	var at *misplaced
	if errors.As(err, &at) {
		index, t = at.index, tiles.At(v.checkpoint.Size, 0, at.index/tiles.Width)
	}
	return faultAt(t.EventsPath(), index, "%v", err)
}

// upperTiles verifies the tiles above level 0, and the root.
func (v *verifier) upperTiles(context.Context) error {
	size := v.checkpoint.Size
	claimed := newLevels(size)
	var wrong *Fault // the first tile that the entries do not make
	for level := 1; level < tiles.Levels(size); level++ {
		for n := range tiles.Tiles(size, level) {
			t := tiles.At(size, level, n)
			data, err := v.read(t.HashPath(), tiles.Width*tlog.HashSize)
			if err != nil {
				return err
			}
			if len(data) != t.W*tlog.HashSize {
				return faultIn(t.HashPath(), "it has %d bytes, its %d hashes have %d", len(data), t.W, t.W*tlog.HashSize)
			}
			v.list.tiles[level] = append(v.list.tiles[level], listed(t.HashPath(), data))
			claimed[level] = append(claimed[level], splitHashes(data)...)
			if wrong == nil && !bytes.Equal(data, joinHashes(v.tree.tile(t))) {
				wrong = faultIn(t.HashPath(), "its hashes are not those of the entries below it")
			}
		}
	}
	if v.tree.root(size, v.rest) == v.checkpoint.Root {
		if wrong != nil {
			return wrong
		}
		return nil
	}
	return v.rewritten(claimed)
}

// rewritten finds out which entries were replaced, together with their events and tiles, when the entries don't
// make the signed root: where the upper tiles still make it, they are right and say where to look.
func (v *verifier) rewritten(claimed levels) *Fault {
	size := v.checkpoint.Size
	if claimed.root(size, v.rest) != v.checkpoint.Root {
		return faultIn(checkpointName, "it signs the root %s, the entries make %s: the history was rewritten, or the checkpoint is that of another one", v.checkpoint.Root, v.tree.root(size, v.rest))
	}
	for level := len(claimed) - 1; level > 1; level-- {
		for j, h := range claimed[level] {
			t := tiles.At(size, level-1, int64(j))
			if fold(claimed.tile(t)) != h {
				return faultIn(t.HashPath(), "its hashes do not make the one in the tile above it")
			}
		}
	}
	for j, h := range claimed[1] {
		if t := tiles.At(size, 0, int64(j)); v.tree[1][j] != h {
			return faultAt(t.EntriesPath(), t.First(), "this entry or one of the %d after it was replaced, with its event and tile: the signed root holds others", t.W-1)
		}
	}
	return faultIn(checkpointName, "it signs the root %s, the entries make %s", v.checkpoint.Root, v.tree.root(size, v.rest))
}

// compareManifest makes the manifest again and compares it with the one that is there.
func (v *verifier) compareManifest(context.Context) error {
	files := v.list.files()
	for i, said := range v.manifest.Files {
		if i >= len(files) {
			return faultIn(manifestName, "it lists %s, which does not belong to the export", said.Path)
		}
		if found := files[i]; said != found {
			return faultIn(manifestName, "it says %s, %d bytes, SHA-256 %s where the export has %s, %d bytes, %s",
				said.Path, said.Size, said.SHA256, found.Path, found.Size, found.SHA256)
		}
	}
	if len(files) > len(v.manifest.Files) {
		return faultIn(manifestName, "it does not list %s", files[len(v.manifest.Files)].Path)
	}
	again, err := Manifest{Origin: v.checkpoint.Origin, Size: v.checkpoint.Size, Root: v.checkpoint.Root, Erased: v.list.erased, Files: files, Revisions: v.manifest.Revisions}.Encode()
	if err != nil {
		return err
	}
	if !bytes.Equal(again, v.rawManifest) {
		return faultIn(manifestName, "it is not the manifest of this export")
	}
	return nil
}

func (v *verifier) report() Report {
	r := Report{
		Origin: v.checkpoint.Origin, Size: v.checkpoint.Size, Root: v.checkpoint.Root.String(),
		Files: len(v.manifest.Files) + 1, Bytes: int64(len(v.rawManifest)), ManifestSHA256: sha256.Sum256(v.rawManifest), Erased: v.list.erased,
	}
	for _, f := range v.manifest.Files {
		r.Bytes += f.Size
	}
	erased := ""
	if r.Erased > 0 {
		erased = fmt.Sprintf(", %d of them erased", r.Erased)
	}
	r.Summary = fmt.Sprintf("consistent up to %d%s, freshness not shown", r.Size, erased)
	if v.older != nil {
		r.Against = &v.older.Size
		r.Summary = fmt.Sprintf("consistent up to %d%s, and extends the checkpoint of size %d", r.Size, erased, v.older.Size)
		if v.older.Origin != r.Origin {
			r.Summary += " of log " + v.older.Origin
		}
	}
	r.Restores = v.history.restores()
	for _, b := range r.Restores {
		r.Summary += fmt.Sprintf("; restored from a backup by entry %d, when %d entries of %s were known", b.Index, b.Known, b.KnownOrigin)
	}
	if v.witnessed != nil {
		r.Witnessed = &v.witnessed.Size
	}
	if r.Witnesses, _ = proofs.VerifiedBy(v.cosigned, v.opts.Witnesses); r.Witnesses == nil {
		r.Witnesses = []proofs.Cosignature{}
	}
	for _, w := range r.Witnesses {
		r.Summary += fmt.Sprintf("; witness %s saw %d entries of it by %s", w.Witness, w.Size, w.Time.Format(time.RFC3339))
	}
	return r
}
