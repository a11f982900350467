package audit

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/tiles"
	"github.com/bulla-project/bulla/ledger/event"
)

const (
	// ExportFormat names the layout of an export with the archives of its revisions, and entries that may be erased.
	ExportFormat = "bulla-export/v2"
	// erasedFormat is the same without the archives, exportFormatOld without erased entries as well. Both are read.
	erasedFormat    = "bulla-export/v3"
	exportFormatOld = "bulla-export/v1"

	manifestName = "manifest"
	maxManifest  = 1 << 28 // room for about 400 million entries
)

// ErrManifest says that bytes are not a manifest in its canonical spelling.
var ErrManifest = errors.New("malformed manifest")

// File is one file of an export.
type File struct {
	Path   string       `json:"path"`
	Size   int64        `json:"size"`
	SHA256 event.Digest `json:"sha256"`
}

// Manifest lists what an export consists of. It holds nothing that can't be computed from the other files, so that
// the verifier makes it again and compares it byte for byte.
type Manifest struct {
	Origin string
	Size   int64
	Root   proofs.Hash
	Erased int64  // events that were erased
	Files  []File // all but the manifest: checkpoint, witnessed if there is one, tiles by level, entries, events, revisions
	// Revisions says that the archives of the revisions that the events activate are there.
	Revisions bool
}

// The parts of a manifest between its head and its files, and after them.
const (
	filesKey    = `,"files":[`
	manifestEnd = "\n]}\n"
)

// manifestHead is the first line of a manifest.
type manifestHead struct {
	Format       string      `json:"format"`
	EventVersion int         `json:"event_version"`
	Origin       string      `json:"origin"`
	Size         int64       `json:"size"`
	Root         proofs.Hash `json:"root"`
	Erased       int64       `json:"erased,omitempty"`
}

// Encode returns the canonical encoding: one JSON object, with a line for each file.
func (m Manifest) Encode() ([]byte, error) {
	format := ExportFormat
	switch {
	case m.Revisions:
	case m.Erased != 0:
		format = erasedFormat
	default:
		format = exportFormatOld
	}
	head, err := event.Marshal(manifestHead{format, event.Version, m.Origin, m.Size, m.Root, m.Erased})
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	var out bytes.Buffer
	out.Write(bytes.TrimSuffix(head, []byte("}")))
	out.WriteString(filesKey)
	for i, f := range m.Files {
		line, err := event.Marshal(f)
		if err != nil {
			return nil, fmt.Errorf("encode manifest: %w", err)
		}
		if i > 0 {
			out.WriteByte(',')
		}
		out.WriteByte('\n')
		out.Write(line)
	}
	out.WriteString(manifestEnd)
	return out.Bytes(), nil
}

// parseFile reads the line of a file. That it is canonical is looked at line by line as well, so that what is
// made of a hostile manifest is never much larger than the manifest.
func parseFile(line []byte) (f File, err error) {
	if err := event.Unmarshal(line, &f); err != nil {
		return File{}, err
	}
	again, err := event.Marshal(f)
	if err == nil && !bytes.Equal(again, line) {
		err = errors.New("not in its canonical spelling")
	}
	return f, err
}

// ParseManifest reads what Encode writes and nothing else.
func ParseManifest(data []byte) (Manifest, error) {
	if len(data) > maxManifest {
		return Manifest{}, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrManifest, len(data), maxManifest)
	}
	head, rest, found := bytes.Cut(data, []byte(filesKey))
	lines, ended := bytes.CutSuffix(rest, []byte(manifestEnd))
	if !found || !ended {
		return Manifest{}, fmt.Errorf("%w: no list of files", ErrManifest)
	}
	var h manifestHead
	if err := event.Unmarshal(append(head[:len(head):len(head)], '}'), &h); err != nil {
		return Manifest{}, fmt.Errorf("%w: %v", ErrManifest, err)
	}
	known := h.Format == ExportFormat || h.Format == erasedFormat || h.Format == exportFormatOld
	if !known || h.EventVersion != event.Version || h.Erased < 0 {
		return Manifest{}, fmt.Errorf("%w: format %.40q with events of version %d, this program reads %q with %d", ErrManifest, h.Format, h.EventVersion, ExportFormat, event.Version)
	}
	m := Manifest{Origin: h.Origin, Size: h.Size, Root: h.Root, Erased: h.Erased, Revisions: h.Format == ExportFormat}
	for line := range bytes.SplitSeq(lines, []byte("\n")) {
		if len(line) == 0 { // before the first one
			continue
		}
		f, err := parseFile(bytes.TrimSuffix(line, []byte(",")))
		if err != nil {
			return Manifest{}, fmt.Errorf("%w: file %d: %v", ErrManifest, len(m.Files), err)
		}
		m.Files = append(m.Files, f)
	}
	again, err := m.Encode()
	if err != nil {
		return Manifest{}, fmt.Errorf("%w: %v", ErrManifest, err)
	}
	if !bytes.Equal(again, data) {
		return Manifest{}, fmt.Errorf("%w: not in its canonical spelling", ErrManifest)
	}
	return m, nil
}

// listing collects the files of an export while they are written or read. Its order is that of the manifest.
type listing struct {
	checkpoint File
	witnessed  *File    // nil: there is none
	tiles      [][]File // by level
	entries    []File
	events     []File
	revisions  []File // by digest
	erased     int64
}

func newListing(size int64) *listing {
	return &listing{tiles: make([][]File, tiles.Levels(size))}
}

// fewest is how many files an export of size entries has at least, beside the manifest.
func fewest(size int64) int64 {
	n := 1 + 2*tiles.Tiles(size, 0) // the checkpoint, entries and events
	for level := range tiles.Levels(size) {
		n += tiles.Tiles(size, level)
	}
	return n
}

// files returns all files in the order of the manifest.
func (l *listing) files() []File {
	all := []File{l.checkpoint}
	if l.witnessed != nil {
		all = append(all, *l.witnessed)
	}
	for _, level := range l.tiles {
		all = append(all, level...)
	}
	all = append(all, l.entries...)
	all = append(all, l.events...)
	return append(all, l.revisions...)
}

// listed is the entry of a file with this content.
func listed(path string, content []byte) File {
	return File{Path: path, Size: int64(len(content)), SHA256: sha256.Sum256(content)}
}
