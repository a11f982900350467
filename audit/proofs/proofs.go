// Package proofs holds what a client of the log needs to check it by itself: signed checkpoints
// (C2SP tlog-checkpoint, a signed note of origin, size and root), the log's Ed25519 keys in note format,
// and proofs of inclusion and of consistency (RFC 6962).
//
// Everything here is canonical: a checkpoint is three lines and exactly one signature line, that of the
// log; other lines, other signatures and other spellings of the same value are refused, so that no byte
// of a checkpoint or proof can change unnoticed. The package stores nothing, reads no files and knows no
// events; it does not say whether a checkpoint is fresh, only whether two of them fit together.
package proofs

import (
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// ErrVerification is wrapped by every refusal of a checkpoint, a proof or an export: what was shown is not
// what the log's key vouches for. Failing to read a file is not one of them.
var ErrVerification = errors.New("verification failed")

// MaxSize is the largest number of leaves that is accepted in a checkpoint or proof. It is far beyond any
// log, and small enough that arithmetic on tree sizes can't overflow.
const MaxSize = 1 << 48

// Hash is a node of the Merkle tree: SHA-256 with the domain separation of RFC 6962.
type Hash = tlog.Hash

// LeafHash returns the tree's hash of an encoded leaf.
func LeafHash(leaf []byte) Hash { return tlog.RecordHash(leaf) }

// refuse makes an error that wraps ErrVerification.
func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrVerification, fmt.Sprintf(format, args...))
}
