package audit

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/bulla-project/bulla/audit/proofs"
)

// TestFrontier compares with the library's way to the same stored hashes.
func TestFrontier(t *testing.T) {
	var f frontier
	var ours []byte
	var theirs []proofs.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]proofs.Hash, error) {
		var out []proofs.Hash
		for _, i := range indexes {
			out = append(out, theirs[i])
		}
		return out, nil
	})
	for n := range int64(1030) {
		h := proofs.LeafHash([]byte{byte(n), byte(n >> 8)})
		ours = f.add(h, ours)
		stored, err := tlog.StoredHashesForRecordHash(n, h, reader)
		if err != nil {
			t.Fatal(err)
		}
		theirs = append(theirs, stored...)
		if root, err := tlog.TreeHash(n+1, reader); err != nil || root != f.root() {
			t.Fatalf("root of %d: %v", n+1, err)
		}
		if again, err := loadFrontier(n+1, reader); err != nil || again.root() != f.root() || again.last != h {
			t.Fatalf("frontier of %d read again: %v", n+1, err)
		}
	}
	if !bytes.Equal(ours, joinHashes(theirs)) {
		t.Error("stored hashes differ")
	}
}

// TestLevels compares roots at random sizes of a large tree with the frontier's.
func TestLevels(t *testing.T) {
	const size = 70_000
	var f frontier
	l := newLevels(size)
	roots := make([]proofs.Hash, size+1)
	hashes := make([]proofs.Hash, size)
	for n := range size {
		hashes[n] = proofs.LeafHash([]byte{byte(n), byte(n >> 8), byte(n >> 16)})
		f.add(hashes[n], nil)
		roots[n+1] = f.root()
		if (n+1)%256 == 0 {
			l.add(fold(hashes[n-255 : n+1]))
		}
	}
	for _, n := range append([]int{1, 255, 256, 257, 65535, 65536, 65537, size}, rand.Perm(size)[:500]...) {
		if n > 0 && l.root(int64(n), hashes[n/256*256:n]) != roots[n] {
			t.Errorf("root of %d differs", n)
		}
	}
}
