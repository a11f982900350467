package event

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
)

const (
	eventLabel = "bulla-event-commitment/v1"
	replyLabel = "bulla-reply-commitment/v1"
)

// LeafSize is the length of every leaf of the log, in bytes.
const LeafSize = 1 + 2*sha256.Size

// Salt makes a commitment hiding: without it, an event can't be guessed from its leaf.
type Salt [32]byte

// NewSalt returns a fresh random salt.
func NewSalt() Salt {
	var s Salt
	_, _ = rand.Read(s[:]) // never fails since Go 1.24
	return s
}

// Leaf is what the Merkle log holds for an event: a commitment to its encoding, and one to the digest
// that the client got in its reply, each under a salt of its own. Type, time and subject show in neither,
// so that the log can be public.
type Leaf struct{ Event, Reply [sha256.Size]byte }

// NewLeaf commits to the encoding of an event and to the digest of the reply (zero: there was none).
func NewLeaf(encoding []byte, eventSalt Salt, reply Digest, replySalt Salt) Leaf {
	return Leaf{Event: CommitEvent(encoding, eventSalt), Reply: CommitReply(reply, replySalt)}
}

// CommitEvent is SHA-256(label ‖ 0 ‖ salt ‖ encoding).
func CommitEvent(encoding []byte, salt Salt) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte(eventLabel + "\x00"))
	h.Write(salt[:])
	h.Write(encoding)
	return [sha256.Size]byte(h.Sum(nil))
}

// CommitReply is SHA-256(label ‖ 0 ‖ salt ‖ digest). A client that kept digest and salt finds its own
// deliveries in the log with it.
func CommitReply(reply Digest, salt Salt) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte(replyLabel + "\x00"))
	h.Write(salt[:])
	h.Write(reply[:])
	return [sha256.Size]byte(h.Sum(nil))
}

// Bytes returns the leaf's encoding: a version byte and the two commitments.
func (l Leaf) Bytes() []byte {
	out := make([]byte, 0, LeafSize)
	out = append(out, Version)
	out = append(out, l.Event[:]...)
	return append(out, l.Reply[:]...)
}

// ParseLeaf reads what Bytes writes.
func ParseLeaf(b []byte) (Leaf, error) {
	if len(b) != LeafSize || b[0] != Version {
		return Leaf{}, fmt.Errorf("%w: a leaf is %d bytes and starts with %d", ErrMalformed, LeafSize, Version)
	}
	var l Leaf
	copy(l.Event[:], b[1:])
	copy(l.Reply[:], b[1+sha256.Size:])
	return l, nil
}
