package audit

import (
	"golang.org/x/mod/sumdb/tlog"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/tiles"
)

// levels holds the tree by levels of tiles: levels[1] the roots of all full bundles of 256 leaves, levels[2] those
// of all full groups of 256 of these, and so on. Level 0 is left out; it is read bundle by bundle.
type levels [][]proofs.Hash

func newLevels(size int64) levels { return make(levels, max(1, tiles.Levels(size))) }

// add takes the root of the next full bundle, and folds full groups upwards.
func (l levels) add(h proofs.Hash) {
	for level := 1; level < len(l); level++ {
		l[level] = append(l[level], h)
		n := len(l[level])
		if n%tiles.Width != 0 {
			return
		}
		h = fold(l[level][n-tiles.Width:])
	}
}

// tile returns the hashes of a tile of level 1 or above.
func (l levels) tile(t tiles.Tile) []proofs.Hash {
	return l[t.Level][t.First() : t.First()+int64(t.W)]
}

// root returns the root of the tree of the first size leaves, where rest holds the hashes of the leaves after
// the last full bundle, size%256 of them.
func (l levels) root(size int64, rest []proofs.Hash) proofs.Hash {
	var roots []proofs.Hash // of complete subtrees, from left to right
	for level := tiles.Levels(size) - 1; level >= 0; level-- {
		hashes := rest
		if level > 0 {
			hashes = l[level][tiles.Count(size, level+1)*tiles.Width : tiles.Count(size, level)]
		}
		for width := tiles.Width / 2; width > 0; width /= 2 {
			if len(hashes)&width != 0 {
				roots = append(roots, fold(hashes[:width]))
				hashes = hashes[width:]
			}
		}
	}
	if len(roots) == 0 {
		h, _ := tlog.TreeHash(0, nil) // of no leaves: reads nothing
		return h
	}
	h := roots[len(roots)-1]
	for i := len(roots) - 2; i >= 0; i-- {
		h = tlog.NodeHash(roots[i], h)
	}
	return h
}

// fold returns the root over a power of two of hashes.
func fold(hashes []proofs.Hash) proofs.Hash {
	if len(hashes) == 1 {
		return hashes[0]
	}
	half := len(hashes) / 2
	return tlog.NodeHash(fold(hashes[:half]), fold(hashes[half:]))
}

// joinHashes and splitHashes convert between hashes and the content of a tile.
func joinHashes(hashes []proofs.Hash) []byte {
	out := make([]byte, 0, len(hashes)*tlog.HashSize)
	for _, h := range hashes {
		out = append(out, h[:]...)
	}
	return out
}

func splitHashes(data []byte) []proofs.Hash {
	out := make([]proofs.Hash, 0, len(data)/tlog.HashSize)
	for ; len(data) >= tlog.HashSize; data = data[tlog.HashSize:] {
		out = append(out, proofs.Hash(data[:tlog.HashSize]))
	}
	return out
}
