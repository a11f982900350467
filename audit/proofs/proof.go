package proofs

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/bulla-project/bulla/ledger/event"
)

const (
	kindInclusion   = 1
	kindConsistency = 2

	proofHeader = 1 + 8 + 8
	maxHashes   = 64 // a tree of 2^48 leaves needs no more
)

// Proof shows that a leaf is the one at Index in the tree of Size leaves.
type Proof struct {
	Index  int64
	Size   int64
	Hashes []Hash
}

// Encode returns the canonical encoding: a kind byte, index and size as 64-bit big-endian numbers, hashes.
func (p Proof) Encode() []byte { return encodeProof(kindInclusion, p.Index, p.Size, p.Hashes) }

// ParseProof reads what Encode writes.
func ParseProof(b []byte) (Proof, error) {
	index, size, hashes, err := parseProof(kindInclusion, b)
	if err != nil {
		return Proof{}, err
	}
	if index >= size {
		return Proof{}, refuse("inclusion proof for index %d in a tree of %d leaves", index, size)
	}
	return Proof{Index: index, Size: size, Hashes: hashes}, nil
}

// Portable returns proof and checkpoint as one C2SP tlog-proof file, which other programs can check.
func (p Proof) Portable(checkpoint []byte) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "c2sp.org/tlog-proof@v1\nindex %d\n", p.Index)
	for _, h := range p.Hashes {
		b.WriteString(h.String() + "\n")
	}
	b.WriteString("\n")
	b.Write(checkpoint)
	return []byte(b.String())
}

// ConsistencyProof shows that the tree of New leaves extends the tree of Old leaves.
type ConsistencyProof struct {
	Old    int64
	New    int64
	Hashes []Hash
}

// Encode returns the canonical encoding: a kind byte, both sizes as 64-bit big-endian numbers, hashes.
func (p ConsistencyProof) Encode() []byte {
	return encodeProof(kindConsistency, p.Old, p.New, p.Hashes)
}

// ParseConsistencyProof reads what Encode writes.
func ParseConsistencyProof(b []byte) (ConsistencyProof, error) {
	older, newer, hashes, err := parseProof(kindConsistency, b)
	if err != nil {
		return ConsistencyProof{}, err
	}
	if older > newer {
		return ConsistencyProof{}, refuse("consistency proof from %d back to %d leaves", older, newer)
	}
	return ConsistencyProof{Old: older, New: newer, Hashes: hashes}, nil
}

func encodeProof(kind byte, a, b int64, hashes []Hash) []byte {
	out := make([]byte, 0, proofHeader+len(hashes)*tlog.HashSize)
	out = append(out, kind)
	out = binary.BigEndian.AppendUint64(out, uint64(a))
	out = binary.BigEndian.AppendUint64(out, uint64(b))
	for _, h := range hashes {
		out = append(out, h[:]...)
	}
	return out
}

func parseProof(kind byte, raw []byte) (a, b int64, hashes []Hash, err error) {
	if len(raw) < proofHeader || raw[0] != kind || (len(raw)-proofHeader)%tlog.HashSize != 0 {
		return 0, 0, nil, refuse("malformed proof")
	}
	ua, ub := binary.BigEndian.Uint64(raw[1:]), binary.BigEndian.Uint64(raw[9:])
	raw = raw[proofHeader:]
	if ua > MaxSize || ub > MaxSize || len(raw) > maxHashes*tlog.HashSize {
		return 0, 0, nil, refuse("proof larger than any log")
	}
	for ; len(raw) > 0; raw = raw[tlog.HashSize:] {
		hashes = append(hashes, Hash(raw[:tlog.HashSize]))
	}
	return int64(ua), int64(ub), hashes, nil
}

// VerifyInclusion opens checkpoint with key and checks that leaf is at index in the log it signs.
// It returns the checkpoint's content.
func VerifyInclusion(checkpoint []byte, key Key, index int64, leaf event.Leaf, proof Proof) (Checkpoint, error) {
	c, err := key.Open(checkpoint)
	if err != nil {
		return Checkpoint{}, err
	}
	if proof.Index != index || proof.Size != c.Size {
		return Checkpoint{}, refuse("the proof is for index %d of %d, expected index %d of %d", proof.Index, proof.Size, index, c.Size)
	}
	if index < 0 || index >= c.Size {
		return Checkpoint{}, refuse("index %d is not in a log of %d entries", index, c.Size)
	}
	if err := tlog.CheckRecord(proof.Hashes, c.Size, c.Root, index, LeafHash(leaf.Bytes())); err != nil {
		return Checkpoint{}, refuse("entry %d is not in the log as the checkpoint of size %d signs it", index, c.Size)
	}
	return c, nil
}

// VerifyConsistency opens both checkpoints with key and checks that the newer log extends the older one.
// It returns the newer checkpoint's content.
func VerifyConsistency(older, newer []byte, key Key, proof ConsistencyProof) (Checkpoint, error) {
	o, err := key.Open(older)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("older checkpoint: %w", err)
	}
	n, err := key.Open(newer)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("newer checkpoint: %w", err)
	}
	if err := Extends(o, n, proof); err != nil {
		return Checkpoint{}, err
	}
	return n, nil
}

// Extends checks that the log that the checkpoint n signs extends that of o. Both were opened before.
func Extends(o, n Checkpoint, proof ConsistencyProof) error {
	if proof.Old != o.Size || proof.New != n.Size {
		return refuse("the proof is for sizes %d and %d, the checkpoints have %d and %d", proof.Old, proof.New, o.Size, n.Size)
	}
	if o.Origin != n.Origin {
		return refuse("the checkpoints are of logs %s and %s", o.Origin, n.Origin)
	}
	hashes := proof.Hashes
	forked := refuse("the log of size %d does not extend the log of size %d: its history was rewritten", n.Size, o.Size)
	switch {
	case o.Size > n.Size:
		return refuse("the newer log has %d entries, the older one %d", n.Size, o.Size)
	case o.Size == 0 || o.Size == n.Size:
		// Nothing to prove: the empty tree has one root, and equal sizes have equal roots.
		want := n.Root
		if o.Size == 0 {
			want, _ = tlog.TreeHash(0, nil) // reads nothing
		}
		if len(hashes) != 0 {
			return refuse("consistency proof with needless hashes")
		}
		if o.Root != want {
			return forked
		}
		return nil
	}
	if err := tlog.CheckTree(hashes, n.Size, n.Root, o.Size, o.Root); err != nil {
		return forked
	}
	return nil
}
