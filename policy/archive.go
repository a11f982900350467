package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strconv"
)

// Limits of a bundle.
const (
	MaxArchiveSize = 15 << 17 // below the broker's largest message, 2 MiB
	MaxFileSize    = 3 << 19
	MaxFiles       = 256
	maxRegoSize    = 256 << 10
)

// ErrArchive says that a bundle's files or its archive are malformed.
var ErrArchive = errors.New("policy bundle refused")

const archiveLabel = "bulla-revision/v1\n"

// The single files of a bundle; all of them are required.
const (
	fileManifest   = "manifest.yaml"
	fileRisk       = "risk.yaml"
	fileZones      = "zones.yaml"
	fileReferences = "references.yaml"
	fileCanaries   = "canaries.yaml"
)

var (
	regoName = regexp.MustCompile(`^rego/[a-z][a-z0-9_]{0,63}\.rego$`)
	dataName = regexp.MustCompile(`^data/([a-z][a-z0-9_]{0,63})\.yaml$`)
)

// Pack reads a bundle from a file system and returns its canonical archive. The bundle consists of
// manifest.yaml, risk.yaml, zones.yaml, references.yaml, canaries.yaml, rego/*.rego and data/*.yaml; any
// other file is refused, so that nothing that looks like policy is silently left out; only SignatureFile, which
// ReadSignature reads, is no part of the archive, so that a digest is that of the content. Pack does not judge
// the content, Load does.
//
// The archive is a label line, then each file in the order of the names: "NAME SIZE\n", the bytes, "\n".
func Pack(fsys fs.FS) ([]byte, error) {
	files := map[string][]byte{}
	total := 0
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if name != "." && name != "rego" && name != "data" {
				return fmt.Errorf("%w: %s: a bundle has the folders rego and data only", ErrArchive, name)
			}
			return nil
		case !d.Type().IsRegular():
			return fmt.Errorf("%w: %s is not a regular file", ErrArchive, name)
		}
		if name == SignatureFile { // it is about the files, and none of them
			return nil
		}
		if err := checkName(name); err != nil {
			return err
		}
		text, err := readCapped(fsys, name)
		if err != nil {
			return err
		}
		files[name] = text
		if total += len(text); total > MaxArchiveSize || len(files) > MaxFiles {
			return fmt.Errorf("%w: more than %d files or %d bytes", ErrArchive, MaxFiles, MaxArchiveSize)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the policy bundle: %w", err)
	}
	return packFiles(files)
}

// packFiles makes the archive of files whose names and sizes were checked.
func packFiles(files map[string][]byte) ([]byte, error) {
	if err := checkComplete(files); err != nil {
		return nil, err
	}
	archive := encodeArchive(files)
	if len(archive) > MaxArchiveSize {
		return nil, fmt.Errorf("%w: the archive has %d bytes, at most %d are allowed", ErrArchive, len(archive), MaxArchiveSize)
	}
	return archive, nil
}

func readCapped(fsys fs.FS, name string) (text []byte, err error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	text, err = io.ReadAll(io.LimitReader(f, MaxFileSize+1))
	if err != nil {
		return nil, err
	}
	if len(text) > MaxFileSize {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrArchive, name, MaxFileSize)
	}
	return text, nil
}

func checkName(name string) error {
	switch name {
	case fileManifest, fileRisk, fileZones, fileReferences, fileCanaries:
		return nil
	}
	if regoName.MatchString(name) || dataName.MatchString(name) {
		return nil
	}
	return fmt.Errorf("%w: %q is not a file of a bundle: it has manifest.yaml, risk.yaml, zones.yaml, "+
		"references.yaml, canaries.yaml, rego/NAME.rego and data/NAME.yaml (NAME: a-z, 0-9, _)", ErrArchive, name)
}

func checkComplete(files map[string][]byte) error {
	var faults []error
	for _, name := range []string{fileCanaries, fileManifest, fileReferences, fileRisk, fileZones} {
		if _, ok := files[name]; !ok {
			faults = append(faults, fmt.Errorf("%w: %s is missing", ErrArchive, name))
		}
	}
	return errors.Join(faults...)
}

func encodeArchive(files map[string][]byte) []byte {
	var buf bytes.Buffer
	buf.WriteString(archiveLabel)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(&buf, "%s %d\n", name, len(files[name]))
		buf.Write(files[name])
		buf.WriteByte('\n')
	}
	return buf.Bytes()
}

// Unpack returns the files of an archive by name, and refuses every archive that Pack would not have made.
func Unpack(archive []byte) (map[string][]byte, error) {
	if len(archive) > MaxArchiveSize {
		return nil, fmt.Errorf("%w: the archive has %d bytes, at most %d are allowed", ErrArchive, len(archive), MaxArchiveSize)
	}
	rest, ok := bytes.CutPrefix(archive, []byte(archiveLabel))
	if !ok {
		return nil, fmt.Errorf("%w: it is not an archive of a policy bundle", ErrArchive)
	}
	files := map[string][]byte{}
	for len(rest) > 0 {
		name, text, tail, err := nextFile(rest)
		if err != nil {
			return nil, err
		}
		if len(files) == MaxFiles {
			return nil, fmt.Errorf("%w: more than %d files", ErrArchive, MaxFiles)
		}
		files[name] = text
		rest = tail
	}
	if err := checkComplete(files); err != nil {
		return nil, err
	}
	if !bytes.Equal(encodeArchive(files), archive) {
		return nil, fmt.Errorf("%w: the archive is not in canonical form", ErrArchive)
	}
	return files, nil
}

func nextFile(rest []byte) (name string, text, tail []byte, err error) {
	const maxHeader = 128
	end := bytes.IndexByte(rest[:min(len(rest), maxHeader)], '\n')
	if end < 0 {
		return "", nil, nil, fmt.Errorf("%w: a file header has no end", ErrArchive)
	}
	before, after, ok := bytes.Cut(rest[:end], []byte(" "))
	size, convErr := strconv.ParseUint(string(after), 10, 31)
	if !ok || convErr != nil || size > MaxFileSize {
		return "", nil, nil, fmt.Errorf("%w: file header %q", ErrArchive, rest[:end])
	}
	if err := checkName(string(before)); err != nil {
		return "", nil, nil, err
	}
	rest = rest[end+1:]
	if uint64(len(rest)) < size+1 || rest[size] != '\n' {
		return "", nil, nil, fmt.Errorf("%w: %s is cut off", ErrArchive, before)
	}
	return string(before), bytes.Clone(rest[:size]), rest[size+1:], nil
}
