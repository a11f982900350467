// Package keyring keeps secrets, event bodies and private keys encrypted at rest.
//
// A [Ring] is a set of versioned AES-256-GCM keys (a Tink keyset) and one key for keyed hashes. New data is
// sealed under the primary key; data sealed under older keys still opens. The ring lies in one file, sealed
// under a data key that a key-encryption key wraps: [FileKEK], or AWS KMS (package awskms). The KEK is asked
// when the file is read or written, never per operation.
//
// What a ciphertext is for is part of its associated data: each [Purpose] has a label of its own, and
// callers bind what the row says besides ([SecretAAD]), so that an altered or swapped row does not open.
// Every failure to open anything is [ErrOpen] and says no more: not which key, not how far it got.
//
// Event bodies are sealed under one key per subject ([SubjectKey]), which the ring wraps; where the wrapped
// key is destroyed, the subject's bodies are erased, in every copy of the log.
//
// What it does not do: it does not hide lengths or which key sealed something (Tink ciphertexts start with
// the key's id). It does not notice that the whole file was put back to an older one, as long as that opens.
// It does not re-encrypt what is stored elsewhere after a rotation. Go's garbage collector may have copied
// key bytes before they are wiped; the package wipes what it can reach. Losing the KEK or the file loses
// everything sealed under it: both belong into the backup, apart from each other.
package keyring

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// What can go wrong, as far as a caller can act on it.
var (
	// ErrOpen: a ciphertext does not open. It was altered, or sealed by another ring, for another purpose
	// or with other associated data.
	ErrOpen = errors.New("does not open: altered, or sealed under another key or for something else")
	// ErrNoKeyset: there is no keyset file, and Config.Create was not set.
	ErrNoKeyset = errors.New("there is no keyset file")
	// ErrCorrupt: the keyset file is not one that a ring has written.
	ErrCorrupt = errors.New("the keyset file is damaged or was altered: restore it from the backup")
	// ErrWrongKEK: the keyset file is wrapped under another key-encryption key than the configured one.
	ErrWrongKEK = errors.New("the keyset is wrapped under another key-encryption key")
	// ErrChanged: another process has written the keyset file since this ring read it. Nothing was written.
	ErrChanged = errors.New("the keyset file was changed by another process: restart, then try again")
	// ErrKEKUnavailable: the key-encryption key can't be asked now. Trying again later may help.
	ErrKEKUnavailable = errors.New("the key-encryption key is not available now")
	// ErrKEKRefused: the key-encryption key will not serve until somebody changes something.
	ErrKEKRefused = errors.New("the key-encryption key refuses")
)

// KEK is a key-encryption key. Implementations are safe for concurrent use. Their errors are
// [ErrKEKUnavailable] where trying again may help, [ErrKEKRefused] where it does not, and [ErrOpen] where
// the ciphertext or aad is not what was wrapped.
type KEK interface {
	// ID names the key, stably and in one line; it stands in the keyset file, so it is no secret.
	ID() string
	// Wrap encrypts a key of at most 4096 bytes, bound to aad, which is not secret.
	Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error)
	// Unwrap reverses Wrap for the same aad.
	Unwrap(ctx context.Context, ciphertext, aad []byte) ([]byte, error)
}

// Purpose is what a ciphertext is for. One sealed for one purpose does not open for another.
type Purpose uint8

// The purposes of [Ring.Seal]. The zero Purpose is invalid.
const (
	PurposeSecret    Purpose = iota + 1 // the value of a secret version
	PurposeEventBody                    // the body of an event that concerns no subject
	PurposeKey                          // a private key of the broker
	PurposeShare                        // a holder's share that waits for it
	purposeSubjectKey
	purposeEnd
)

// label returns the text that the associated data of every ciphertext of this purpose starts with.
func (p Purpose) label() string {
	switch p {
	case PurposeSecret:
		return "bulla-secret-at-rest/v1"
	case PurposeEventBody:
		return "bulla-event-body/v1"
	case PurposeKey:
		return "bulla-key/v1"
	case PurposeShare:
		return "bulla-round-share/v1"
	case purposeSubjectKey:
		return "bulla-subject-key/v1"
	}
	panic(fmt.Sprintf("keyring: internal error: purpose %d", uint8(p)))
}

// bind returns the associated data aad of this purpose.
func (p Purpose) bind(aad []byte) []byte {
	label := p.label()
	out := make([]byte, 0, 4+len(label)+len(aad))
	return append(appendField(out, label), aad...)
}

const nameHashLabel = "bulla-secret-name/v1"

// Config says where a ring lies and what opens it.
type Config struct {
	Path   string // the keyset file
	KEK    KEK
	Create bool // make a new ring where there is no file yet
}

// Ring holds the keys. It is safe for concurrent use. One process at a time may rotate or rewrap a file;
// a second one is refused with [ErrChanged], and readers that opened the file before don't see the new key.
type Ring struct {
	path  string
	id    string                 // names the ring in its file; set once
	now   func() time.Time       // real time; set once
	state atomic.Pointer[sealed] // what is durably in the file; replaced whole
	write sync.Mutex             // guards the file: held while it is replaced
}

// sealed is one content of the file. Nothing in it changes once a Ring holds it.
type sealed struct {
	kek     KEK
	handle  *keyset.Handle
	aead    tink.AEAD
	mac     []byte // for keyed hashes, macSize bytes
	created map[uint32]int64
	digest  [sha256.Size]byte // of the file
}

// Open reads the ring from its file, or makes one and writes it before it returns. A file that exists is
// never replaced by Open, whatever is wrong with it.
func Open(ctx context.Context, c Config) (*Ring, error) {
	if c.Path == "" || c.KEK == nil {
		return nil, errors.New("keyring: the path of the keyset file and its key-encryption key are both needed")
	}
	file, err := readFile(c.Path)
	switch {
	case err == nil:
		return load(ctx, c, file)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read keyset: %w", err)
	case !c.Create:
		return nil, fmt.Errorf("read keyset %s: %w", c.Path, ErrNoKeyset)
	}
	return create(ctx, c)
}

// Seal encrypts plaintext for purpose p under the primary key. The result opens only with the same purpose
// and aad; it is 33 bytes longer than plaintext. One key may seal 2^32 messages: rotate before.
func (r *Ring) Seal(p Purpose, plaintext, aad []byte) ([]byte, error) {
	ct, err := r.state.Load().aead.Encrypt(plaintext, p.bind(aad))
	if err != nil {
		return nil, fmt.Errorf("keyring: seal: %w", err) // only for more than 64 GiB
	}
	return ct, nil
}

// Open reverses [Ring.Seal]. Its only error is [ErrOpen].
func (r *Ring) Open(p Purpose, ciphertext, aad []byte) ([]byte, error) {
	pt, err := r.state.Load().aead.Decrypt(ciphertext, p.bind(aad))
	if err != nil {
		return nil, ErrOpen
	}
	return pt, nil
}

// NameHash returns the keyed hash (HMAC-SHA-256) of a secret's name: equal names give equal hashes for the
// life of the ring, over rotations too, and nobody without the ring can try names against one.
func (r *Ring) NameHash(name string) [sha256.Size]byte {
	h := hmac.New(sha256.New, r.state.Load().mac)
	h.Write(appendField(nil, nameHashLabel))
	h.Write([]byte(name))
	return [sha256.Size]byte(h.Sum(nil))
}

// ID names the ring: 32 hexadecimal digits, drawn when it was made. It is no secret.
func (r *Ring) ID() string { return r.id }

// KEKID names the key-encryption key that the file is wrapped under.
func (r *Ring) KEKID() string { return r.state.Load().kek.ID() }

// Status says what a key is used for.
type Status string

// The states of a key.
const (
	StatusPrimary Status = "primary" // seals and opens
	StatusEnabled Status = "enabled" // opens what it sealed before
)

// Key describes one key of the ring, not its bytes.
type Key struct {
	ID      uint32
	Status  Status
	Created time.Time // UTC, whole seconds
}

// Keys lists the ring's keys, oldest first.
func (r *Ring) Keys() []Key {
	s := r.state.Load()
	keys := make([]Key, s.handle.Len())
	for i := range keys {
		e, err := s.handle.Entry(i)
		if err != nil {
			panic("keyring: internal error: " + err.Error())
		}
		keys[i] = Key{ID: e.KeyID(), Status: StatusEnabled, Created: time.Unix(s.created[e.KeyID()], 0).UTC()}
		if e.IsPrimary() {
			keys[i].Status = StatusPrimary
		}
	}
	return keys
}

// Format prints no key, with whatever verb.
func (r *Ring) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "keyring.Ring(REDACTED)") }

// SecretAAD is what binds the ciphertext of a secret version to its row: whoever edits one of these in the
// store, or puts the ciphertext into another row, makes it unreadable.
type SecretAAD struct {
	RecordID     string
	Name         string
	Version      uint64
	Class        string
	PolicyDigest [sha256.Size]byte // of the access policy
	Owner        string
	Type         string // of a key that the broker made; "": opaque, and then it is not in the encoding
}

// Bytes returns the canonical encoding: each text with its length before it (uint32, big endian), the
// version as uint64, in the order of the fields. Different values never give the same bytes.
func (a SecretAAD) Bytes() []byte {
	out := make([]byte, 0, 4*4+8+len(a.PolicyDigest)+len(a.RecordID)+len(a.Name)+len(a.Class)+len(a.Owner))
	out = appendField(out, a.RecordID)
	out = appendField(out, a.Name)
	out = binary.BigEndian.AppendUint64(out, a.Version)
	out = appendField(out, a.Class)
	out = append(out, a.PolicyDigest[:]...)
	out = appendField(out, a.Owner)
	if a.Type == "" {
		return out // as before there were types
	}
	return appendField(out, a.Type)
}

// appendField appends s with its length before it.
func appendField[T string | []byte](out []byte, s T) []byte {
	if uint64(len(s)) > 1<<32-1 {
		panic("keyring: internal error: a field of more than 4 GiB")
	}
	out = binary.BigEndian.AppendUint32(out, uint32(len(s)))
	return append(out, s...)
}
