package audit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bulla-project/bulla/ledger/event"
)

const (
	// revisionsDir holds a file for each revision that the events activate: its archive, named by its SHA-256.
	revisionsDir = "revision"
	// maxRevision is the largest archive that is read, in bytes: above what package policy packs.
	maxRevision = 2 << 20
)

// revisions are the digests of those that events activate.
type revisions map[event.Digest]struct{}

func (r *revisions) note(d event.Digest) {
	if *r == nil {
		*r = revisions{}
	}
	(*r)[d] = struct{}{}
}

func (r revisions) sorted() []event.Digest {
	out := make([]event.Digest, 0, len(r))
	for d := range r {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b event.Digest) int { return strings.Compare(a.String(), b.String()) })
	return out
}

func archiveName(d event.Digest) string { return revisionsDir + "/" + d.String() }

// archives writes the revisions that the events activate.
func (x *exporter) archives(ctx context.Context) error {
	if x.cfg.Revisions == nil {
		return nil
	}
	for _, d := range x.revisions.sorted() {
		archive, err := x.cfg.Revisions(ctx, d)
		if err != nil {
			return fmt.Errorf("policy revision %s: %w", d, err)
		}
		if sha256.Sum256(archive) != d {
			return faultIn(archiveName(d), "it does not have this SHA-256")
		}
		f, err := x.write(archiveName(d), archive)
		if err != nil {
			return err
		}
		x.list.revisions = append(x.list.revisions, f)
	}
	return nil
}

// mayBeArchive says whether a file can be that of a revision. Which there have to be is known after the events.
func (v *verifier) mayBeArchive(name string) bool {
	text, ok := strings.CutPrefix(name, revisionsDir+"/")
	raw, err := hex.DecodeString(text)
	return ok && v.manifest.Revisions && err == nil && len(raw) == sha256.Size && hex.EncodeToString(raw) == text
}

// archives verifies that there is exactly one archive for each revision that the events activate, with its digest.
func (v *verifier) archives(context.Context) error {
	if !v.manifest.Revisions {
		return nil
	}
	for _, d := range v.revisions.sorted() {
		archive, err := v.read(archiveName(d), maxRevision)
		if err != nil {
			return err
		}
		if sha256.Sum256(archive) != d {
			return faultIn(archiveName(d), "it does not have this SHA-256: it is not the revision that was activated")
		}
		v.list.revisions = append(v.list.revisions, listed(archiveName(d), archive))
	}
	return fs.WalkDir(v.root.FS(), revisionsDir, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && d.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(v.list.revisions, func(f File) bool { return f.Path == name }) {
			return faultIn(name, "no event activates a revision of this digest")
		}
		return nil
	})
}

// ErrNoRevision says that an export has no archive of a revision.
var ErrNoRevision = errors.New("the export has no archive of the revision")

// ReadRevision reads the archive of a revision from an export, and believes nothing but its digest.
func ReadRevision(dir string, digest event.Digest) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("read revision: %w", err)
	}
	defer func() { _ = root.Close() }() // nothing was written
	f, err := root.Open(filepath.FromSlash(archiveName(digest)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w %s", ErrNoRevision, digest)
	}
	if err != nil {
		return nil, fmt.Errorf("read revision: %w", err)
	}
	defer func() { _ = f.Close() }() // nothing was written
	archive, err := io.ReadAll(io.LimitReader(f, maxRevision+1))
	if err != nil {
		return nil, fmt.Errorf("read revision: %w", err)
	}
	if sha256.Sum256(archive) != digest {
		return nil, faultIn(archiveName(digest), "it does not have this SHA-256")
	}
	return archive, nil
}
