package audit

import (
	"bytes"
	"errors"
	"io/fs"
	"testing"

	"filippo.io/torchwood"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/tiles"
	"github.com/bulla-project/bulla/ledger/event"
)

// growing is a log that was opened with one leaf and integrated after each further one, with every checkpoint.
type growing struct {
	signer      *proofs.Signer
	src         *ledgerFake
	log         *Log
	checkpoints [][]byte // by size
	roots       []proofs.Hash
}

// grow makes a log whose checkpoints exist for every size of sizes, in ascending order.
func grow(t testing.TB, sizes []int) *growing {
	t.Helper()
	g := &growing{signer: newSigner(t), src: &ledgerFake{}}
	g.log = openLog(t, t.TempDir(), g.signer, g.src)
	last := sizes[len(sizes)-1]
	g.checkpoints, g.roots = make([][]byte, last+1), make([]proofs.Hash, last+1)
	for _, size := range sizes {
		g.src.grow(t, g.signer.Key(), size)
		c, err := g.log.Integrate(t.Context())
		if err != nil {
			t.Fatalf("integrate %d: %v", size, err)
		}
		if c.Size != int64(size) || g.log.Size() != c.Size {
			t.Fatalf("integrated %d of %d", c.Size, size)
		}
		g.checkpoints[size], g.roots[size] = g.log.Checkpoint(), c.Root
	}
	return g
}

func sizesUpTo(n int, more ...int) []int {
	var sizes []int
	for i := 1; i <= n; i++ {
		sizes = append(sizes, i)
	}
	return append(sizes, more...)
}

// TestTree does every size to 70 and the borders of tiles: roots, inclusion of every leaf, and consistency of
// every pair, each confirmed by two other implementations.
func TestTree(t *testing.T) {
	sizes := sizesUpTo(70, 255, 256, 257, 511, 512, 513)
	if testing.Short() {
		sizes = sizesUpTo(9, 255, 256, 257)
	}
	g := grow(t, sizes)
	witness := newOracle(t, g)
	for _, size := range sizes {
		if want := oracleRoot(g.src.leaves[:size]); g.roots[size] != want {
			t.Fatalf("root of %d is %s, want %s", size, g.roots[size], want)
		}
		if want := witness.root(t, size); g.roots[size] != want {
			t.Fatalf("root of %d is %s, merkle says %s", size, g.roots[size], want)
		}
		for index := range size {
			witness.inclusion(t, index, size)
		}
		for _, older := range sizes {
			if older <= size {
				witness.consistency(t, older, size)
			}
		}
	}
}

// oracle holds the other implementations.
type oracle struct {
	*growing
	policy torchwood.Policy
	hasher *rfc6962.Hasher
}

func newOracle(t *testing.T, g *growing) oracle {
	t.Helper()
	v, err := note.NewVerifier(g.signer.Key().String())
	if err != nil {
		t.Fatal(err)
	}
	policy := torchwood.ThresholdPolicy(2, torchwood.OriginPolicy(testOrigin), torchwood.SingleVerifierPolicy(v))
	return oracle{growing: g, policy: policy, hasher: rfc6962.DefaultHasher}
}

// root computes the root with a compact range of transparency-dev/merkle, and reads the checkpoint with torchwood.
func (o oracle) root(t *testing.T, size int) proofs.Hash {
	t.Helper()
	factory := compact.RangeFactory{Hash: o.hasher.HashChildren}
	r := factory.NewEmptyRange(0)
	for _, e := range o.src.leaves[:size] {
		if err := r.Append(o.hasher.HashLeaf(e.Leaf.Bytes()), nil); err != nil {
			t.Fatal(err)
		}
	}
	root, err := r.GetRootHash(nil)
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := torchwood.VerifyCheckpoint(o.checkpoints[size], o.policy)
	if err != nil || c.N != int64(size) || c.Hash != proofs.Hash(root) || c.Origin != testOrigin {
		t.Fatalf("torchwood reads checkpoint %d as %+v: %v", size, c, err)
	}
	return proofs.Hash(root)
}

func (o oracle) inclusion(t *testing.T, index, size int) {
	t.Helper()
	leaf, key := o.src.leaves[index].Leaf, o.signer.Key()
	p, err := o.log.ProveInclusion(int64(index), int64(size))
	if err != nil {
		t.Fatal(err)
	}
	if p, err = proofs.ParseProof(p.Encode()); err != nil {
		t.Fatal(err)
	}
	if _, err := proofs.VerifyInclusion(o.checkpoints[size], key, int64(index), leaf, p); err != nil {
		t.Fatalf("inclusion of %d in %d: %v", index, size, err)
	}
	if err := torchwood.VerifyProof(o.policy, tlog.RecordHash(leaf.Bytes()), p.Portable(o.checkpoints[size])); err != nil {
		t.Fatalf("inclusion of %d in %d: torchwood: %v", index, size, err)
	}
	err = proof.VerifyInclusion(o.hasher, uint64(index), uint64(size), o.hasher.HashLeaf(leaf.Bytes()), raw(p.Hashes), o.roots[size][:])
	if err != nil {
		t.Fatalf("inclusion of %d in %d: merkle: %v", index, size, err)
	}
	if size > 70 && index%37 != 0 {
		return // flipping each hash of each leaf of the large trees takes long and shows nothing new
	}
	for i := range p.Hashes {
		bad := p
		bad.Hashes = append([]proofs.Hash(nil), p.Hashes...)
		bad.Hashes[i][(index+i)%32] ^= 1 << (size % 8)
		if _, err := proofs.VerifyInclusion(o.checkpoints[size], key, int64(index), leaf, bad); !errors.Is(err, proofs.ErrVerification) {
			t.Fatalf("inclusion of %d in %d with a flipped bit in hash %d: %v", index, size, i, err)
		}
	}
	bad := leaf
	bad.Reply[index%32] ^= 1
	if _, err := proofs.VerifyInclusion(o.checkpoints[size], key, int64(index), bad, p); !errors.Is(err, proofs.ErrVerification) {
		t.Fatalf("inclusion of another leaf than %d in %d: %v", index, size, err)
	}
}

func (o oracle) consistency(t *testing.T, older, newer int) {
	t.Helper()
	p, err := o.log.ProveConsistency(int64(older), int64(newer))
	if err != nil {
		t.Fatal(err)
	}
	if p, err = proofs.ParseConsistencyProof(p.Encode()); err != nil {
		t.Fatal(err)
	}
	if _, err := proofs.VerifyConsistency(o.checkpoints[older], o.checkpoints[newer], o.signer.Key(), p); err != nil {
		t.Fatalf("consistency of %d and %d: %v", older, newer, err)
	}
	err = proof.VerifyConsistency(o.hasher, uint64(older), uint64(newer), raw(p.Hashes), o.roots[older][:], o.roots[newer][:])
	if err != nil {
		t.Fatalf("consistency of %d and %d: merkle: %v", older, newer, err)
	}
	for i := range p.Hashes {
		bad := p
		bad.Hashes = append([]proofs.Hash(nil), p.Hashes...)
		bad.Hashes[i][(older+i)%32] ^= 1 << (newer % 8)
		if _, err := proofs.VerifyConsistency(o.checkpoints[older], o.checkpoints[newer], o.signer.Key(), bad); !errors.Is(err, proofs.ErrVerification) {
			t.Fatalf("consistency of %d and %d with a flipped bit in hash %d: %v", older, newer, i, err)
		}
	}
}

func raw(hashes []proofs.Hash) [][]byte {
	out := make([][]byte, 0, len(hashes))
	for _, h := range hashes {
		out = append(out, h[:])
	}
	return out
}

// TestOtherHistory: no proof makes a log with one other leaf an extension.
func TestOtherHistory(t *testing.T) {
	g := grow(t, []int{20, 40})
	fork := g.src.prefix(40)
	fork.leaves[7].Leaf.Event[0] ^= 1
	forked := openLog(t, t.TempDir(), g.signer, fork)
	if _, err := forked.Integrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, l := range []*Log{g.log, forked} {
		p, err := l.ProveConsistency(20, 40)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := proofs.VerifyConsistency(g.checkpoints[20], forked.Checkpoint(), g.signer.Key(), p); !errors.Is(err, proofs.ErrVerification) {
			t.Errorf("a rewritten history passes as an extension: %v", err)
		}
	}
}

func TestProveRefuses(t *testing.T) {
	g := grow(t, []int{5})
	for _, bad := range [][2]int64{{0, 0}, {5, 5}, {-1, 5}, {0, 6}, {3, 2}} {
		if _, err := g.log.ProveInclusion(bad[0], bad[1]); err == nil {
			t.Errorf("ProveInclusion%v", bad)
		}
	}
	for _, bad := range [][2]int64{{-1, 5}, {3, 2}, {0, 6}} {
		if _, err := g.log.ProveConsistency(bad[0], bad[1]); err == nil {
			t.Errorf("ProveConsistency%v", bad)
		}
	}
}

// TestTilesServed compares what a log serves as tiles with what an export has.
func TestTilesServed(t *testing.T) {
	g := grow(t, []int{600})
	files := readTree(t, export(t, g.signer, g.src))
	for level := range tiles.Levels(600) {
		for n := range tiles.Tiles(600, level) {
			tile := tiles.At(600, level, n)
			got, err := g.log.Tile(tile)
			if err != nil || !bytes.Equal(got, files[tile.HashPath()]) {
				t.Errorf("%s differs from the export: %v", tile.HashPath(), err)
			}
		}
	}
	for _, bad := range []tiles.Tile{{Level: 0, N: 3, W: 1}, {Level: 0, N: 2, W: 89}, {Level: 2, N: 0, W: 1}, {Level: -1, W: 1}, {N: -1, W: 1}, {W: 0}, {W: 257}} {
		if _, err := g.log.Tile(bad); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Tile(%+v): %v", bad, err)
		}
	}
}

// TestDelivery is what a client does with a delivery of its own: it kept the digest and the salt of the reply, and asks
// where the event is.
func TestDelivery(t *testing.T) {
	g := grow(t, []int{50})
	r := g.src.records[4]
	leaf := event.Leaf{Event: event.CommitEvent(r.Encoding, r.EventSalt), Reply: event.CommitReply(r.Reply, r.ReplySalt)}
	p, err := g.log.ProveInclusion(4, g.log.Size())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := proofs.VerifyInclusion(g.log.Checkpoint(), g.log.Key(), 4, leaf, p); err != nil {
		t.Error(err)
	}
	leaf.Reply = event.CommitReply(digest("another envelope"), r.ReplySalt)
	if _, err := proofs.VerifyInclusion(g.log.Checkpoint(), g.log.Key(), 4, leaf, p); !errors.Is(err, proofs.ErrVerification) {
		t.Errorf("a log that holds another reply: %v", err)
	}
}

func TestOpenReply(t *testing.T) {
	src := newLedger(t, newSigner(t).Key(), 4)
	for i, r := range src.records {
		e, err := event.Decode(r.Encoding)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := OpenReply(r.Leaf(), r.ReplySalt, e.Body); err != nil || got != r.Reply {
			t.Errorf("event %d: %s, %v; want %s", i, got, err, r.Reply)
		}
		if _, err := OpenReply(r.Leaf(), r.EventSalt, e.Body); !errors.Is(err, proofs.ErrVerification) {
			t.Errorf("event %d with another salt: %v", i, err)
		}
	}
}
