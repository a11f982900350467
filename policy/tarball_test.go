package policy

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// header is a block of a tar archive in the format of POSIX, for what archive/tar reads and does not write.
func header(name string, kind byte, size int) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", size))
	copy(b[136:], "00000000000\x00        ")
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// sparse is a tar archive under gzip with files of size bytes of which it holds none.
func sparse(t *testing.T, names []string, size int) []byte {
	t.Helper()
	var out bytes.Buffer
	zipped := gzip.NewWriter(&out)
	for _, name := range names {
		records := ""
		for _, r := range []string{"GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.numblocks=1", "GNU.sparse.map=0,0", fmt.Sprintf("GNU.sparse.size=%d", size)} {
			n := len(r) + 4 // two digits, a space and the end of the line
			records += fmt.Sprintf("%d %s\n", n, r)
		}
		block := make([]byte, 512)
		copy(block, records)
		for _, b := range [][]byte{header("x", 'x', len(records)), block, header(name, '0', 0)} {
			if _, err := zipped.Write(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(func() error { _, err := zipped.Write(make([]byte, 1024)); return err }(), zipped.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// What a tar archive says its files hold counts, also where it holds nothing of it: 256 files of zeros would fill the
// memory before the bundle is found to be too large, and they come from a bundle server before any signature is checked.
func TestTarballOfHoles(t *testing.T) {
	t.Parallel()
	var names []string
	for i := range MaxFiles {
		names = append(names, fmt.Sprintf("data/f%d.yaml", i))
	}
	bomb := sparse(t, names, MaxFileSize)
	if len(bomb) > 64<<10 {
		t.Fatalf("it has %d bytes", len(bomb))
	}
	_, _, err := FromTarball(bomb)
	if !errors.Is(err, ErrArchive) || !strings.Contains(err.Error(), "unpacks to more than") {
		t.Errorf("%d bytes of holes: %v", MaxFiles*MaxFileSize, err)
	}
	_, _, err = FromTarball(sparse(t, names[:1], MaxFileSize+1))
	if !errors.Is(err, ErrArchive) || !strings.Contains(err.Error(), "has more than") {
		t.Errorf("one large hole: %v", err)
	}
}
