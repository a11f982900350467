package policy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// maxTarball bounds a compressed bundle, and maxUnpacked all that is read of it: tar pads each file to 512 bytes.
const (
	maxTarball  = MaxArchiveSize
	maxUnpacked = MaxArchiveSize + MaxFiles<<11
)

// FromTarball reads a bundle as bundle servers serve it and OPA builds it: a tar archive under gzip, with the files of
// a bundle directory at its root, and SignatureFile if it is signed. It returns the canonical archive and the content
// of SignatureFile, nil if there is none; nothing is verified yet.
func FromTarball(tarball []byte) (archive, signature []byte, err error) {
	if len(tarball) > maxTarball {
		return nil, nil, fmt.Errorf("%w: the tar archive has more than %d bytes", ErrArchive, maxTarball)
	}
	zipped, err := gzip.NewReader(bytes.NewReader(tarball))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: not a tar archive under gzip: %w", ErrArchive, err)
	}
	zipped.Multistream(false)
	unpacked := &io.LimitedReader{R: zipped, N: maxUnpacked}
	files, err := readTar(tar.NewReader(unpacked))
	if err == nil {
		_, err = io.Copy(io.Discard, unpacked) // the checksum comes last
	}
	if unpacked.N <= 0 {
		return nil, nil, fmt.Errorf("%w: the tar archive unpacks to more than %d bytes", ErrArchive, maxUnpacked)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: tar archive: %w", ErrArchive, err)
	}
	signature = files[SignatureFile]
	delete(files, SignatureFile)
	archive, err = packFiles(files)
	return archive, signature, err
}

func readTar(r *tar.Reader) (map[string][]byte, error) {
	files := map[string][]byte{}
	total := 0 // what is read of r bounds it not: a sparse file holds less than it gives
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		name := strings.TrimPrefix(strings.TrimPrefix(h.Name, "."), "/")
		if strings.HasPrefix(h.Name, ".") && !strings.HasPrefix(h.Name, "./") { // .signatures.json
			name = h.Name
		}
		switch {
		case h.Typeflag != tar.TypeReg:
			return nil, fmt.Errorf("%q is not a regular file", h.Name)
		case !fs.ValidPath(name) || path.Clean(name) != name:
			return nil, fmt.Errorf("%q is not a path in a bundle", h.Name)
		case files[name] != nil:
			return nil, fmt.Errorf("%q is there twice", h.Name)
		case name != SignatureFile && checkName(name) != nil:
			return nil, checkName(name)
		case len(files) > MaxFiles:
			return nil, fmt.Errorf("more than %d files", MaxFiles)
		}
		text, err := io.ReadAll(io.LimitReader(r, MaxFileSize+1))
		if err != nil {
			return nil, err
		}
		if len(text) > MaxFileSize {
			return nil, fmt.Errorf("%s has more than %d bytes", name, MaxFileSize)
		}
		if total += len(text); total > maxUnpacked {
			return nil, fmt.Errorf("it unpacks to more than %d bytes", maxUnpacked)
		}
		files[name] = text
	}
}

// ReadSignature returns the content of a bundle directory's SignatureFile, nil if there is none.
func ReadSignature(fsys fs.FS) ([]byte, error) {
	text, err := readCapped(fsys, SignatureFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return text, err
}
