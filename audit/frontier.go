package audit

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/bulla-project/bulla/audit/proofs"
)

// frontier is what has to be known of a tree to add leaves to it: the roots of the complete subtrees along
// its right edge, of which there is one for each bit set in n.
type frontier struct {
	n    int64
	last proofs.Hash     // of the leaf n-1
	edge [49]proofs.Hash // as many as proofs.MaxSize has bits
}

// add puts a leaf's hash at the right end of the tree, and appends the hashes that complete with it to
// stored, in the order of tlog.StoredHashIndex.
func (f *frontier) add(leaf proofs.Hash, stored []byte) []byte {
	h, level := leaf, 0
	stored = append(stored, h[:]...)
	for ; f.n>>level&1 == 1; level++ {
		h = tlog.NodeHash(f.edge[level], h)
		stored = append(stored, h[:]...)
	}
	f.edge[level], f.last = h, leaf
	f.n++
	return stored
}

// root returns the root of the tree.
func (f *frontier) root() proofs.Hash {
	if f.n == 0 {
		h, _ := tlog.TreeHash(0, nil) // of no leaves: reads nothing
		return h
	}
	level := bits.TrailingZeros64(uint64(f.n))
	h := f.edge[level]
	for level++; f.n>>level > 0; level++ {
		if f.n>>level&1 == 1 {
			h = tlog.NodeHash(f.edge[level], h)
		}
	}
	return h
}

// loadFrontier reads the frontier of the tree of n leaves from its stored hashes.
func loadFrontier(n int64, r tlog.HashReader) (frontier, error) {
	f := frontier{n: n}
	if n == 0 {
		return f, nil
	}
	indexes, levels := []int64{tlog.StoredHashIndex(0, n-1)}, []int{}
	for level := 0; n>>level > 0; level++ {
		if n>>level&1 == 1 {
			indexes, levels = append(indexes, tlog.StoredHashIndex(level, n>>level-1)), append(levels, level)
		}
	}
	hashes, err := r.ReadHashes(indexes)
	if err != nil {
		return frontier{}, err
	}
	f.last = hashes[0]
	for i, level := range levels {
		f.edge[level] = hashes[i+1]
	}
	return f, nil
}

// hashFile holds the hashes of the tree, 32 bytes for each stored-hash index.
type hashFile interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Truncate(size int64) error
	Sync() error
}

// storedBytes returns how long the file is for a tree of n leaves.
func storedBytes(n int64) int64 { return tlog.StoredHashCount(n) * tlog.HashSize }

// hashReader reads stored hashes from f.
func hashReader(f io.ReaderAt) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]proofs.Hash, error) {
		out := make([]proofs.Hash, len(indexes))
		for i, index := range indexes {
			if _, err := f.ReadAt(out[i][:], index*tlog.HashSize); err != nil {
				return nil, fmt.Errorf("read hash %d of the log: %w", index, err)
			}
		}
		return out, nil
	})
}

// batch is how many leaves are asked of the source at once.
const batch = 4096

// extend adds the source's leaves to the tree from, up to upTo of them in all, and writes their hashes to
// f without syncing it. It asks for the last known leaf again, to see that the source still holds the history
// that the tree was made from. The tree that it returns is shorter than upTo where the source is.
func extend(ctx context.Context, src Source, f io.WriterAt, from frontier, upTo int64) (frontier, error) {
	tree := from
	var stored []byte
	for tree.n < upTo {
		first := max(0, tree.n-1)
		want := int(min(batch, upTo-first))
		entries, err := src.Leaves(ctx, first, want)
		if err != nil {
			return from, fmt.Errorf("read leaves from %d on: %w", first, err)
		}
		if err := contiguous(entries, first, want); err != nil {
			return from, err
		}
		if tree.n > 0 {
			if entries, err = overlap(entries, &tree); err != nil {
				return from, err
			}
		}
		if len(entries) == 0 {
			break
		}
		at := storedBytes(tree.n)
		stored = stored[:0]
		for _, e := range entries {
			stored = tree.add(proofs.LeafHash(e.Leaf.Bytes()), stored)
		}
		if _, err := f.WriteAt(stored, at); err != nil {
			return from, fmt.Errorf("%w: write hashes: %w", ErrStopped, err)
		}
	}
	return tree, nil
}

// contiguous refuses entries that are not those from index first on.
func contiguous(entries []Entry, first int64, want int) error {
	if len(entries) > want {
		return fmt.Errorf("%w: asked for %d entries from %d on and got %d", ErrGap, want, first, len(entries))
	}
	for i, e := range entries {
		if e.Index != first+int64(i) {
			return fmt.Errorf("%w: expected index %d and got %d", ErrGap, first+int64(i), e.Index)
		}
	}
	return nil
}

// overlap takes the first entry off, which must be the last leaf of the tree.
func overlap(entries []Entry, tree *frontier) ([]Entry, error) {
	if len(entries) == 0 {
		return nil, fmt.Errorf("%w: the store holds fewer than the %d events that the log has integrated", ErrRollback, tree.n)
	}
	if h := proofs.LeafHash(entries[0].Leaf.Bytes()); !bytes.Equal(h[:], tree.last[:]) {
		return nil, fmt.Errorf("%w: the event at index %d is not the one that the log has integrated", ErrRollback, tree.n-1)
	}
	return entries[1:], nil
}
