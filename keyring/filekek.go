package keyring

import (
	"context"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/bulla-project/bulla/internal/durable"
)

const (
	kekSize      = 32
	fileKEKLabel = "bulla-kek-file/v1"
	kekIDLabel   = "bulla-kek-file-id/v1"
)

// FileKEK is a key-encryption key in a local file: 32 random bytes, readable by its owner alone.
type FileKEK struct {
	id   string
	aead cipher.AEAD
}

// CreateFileKEK makes a new key file at path. It never replaces a file: one that exists is [fs.ErrExist].
func CreateFileKEK(path string) (*FileKEK, error) {
	raw := make([]byte, kekSize)
	defer clear(raw)
	_, _ = rand.Read(raw) // crypto/rand.Read never fails
	if err := durable.RemoveTemps(path); err != nil {
		return nil, fmt.Errorf("create key file: %w", err)
	}
	if err := durable.CreateFile(path, raw, 0o600); err != nil {
		return nil, fmt.Errorf("create key file: %w", err)
	}
	return newFileKEK(raw), nil
}

// OpenFileKEK reads the key file at path. It refuses a symbolic link, anything but a regular file, a file
// that belongs to another user (root's is fine), that group or others may touch, or of another length.
func OpenFileKEK(path string) (*FileKEK, error) {
	raw, err := readKEK(path)
	defer clear(raw)
	if err != nil {
		return nil, fmt.Errorf("read key file: %w", err)
	}
	return newFileKEK(raw), nil
}

func readKEK(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%s is a symbolic link: name the file itself", path)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// All checks are on the opened file, which can't be exchanged between them.
	switch owner, known := ownerOf(st); {
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no regular file", path)
	case st.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s has mode %04o, so others than its owner may use it: chmod 600 it, and replace the key if somebody may have read it", path, st.Mode().Perm())
	case known && owner != 0 && owner != os.Geteuid():
		return nil, fmt.Errorf("%s belongs to user %d, not to the user %d that this runs as: chown it", path, owner, os.Geteuid())
	case st.Size() != kekSize:
		return nil, fmt.Errorf("%s has %d bytes, a key has exactly %d: restore it from the backup", path, st.Size(), kekSize)
	}
	raw := make([]byte, kekSize)
	if _, err := io.ReadFull(f, raw); err != nil {
		return raw, fmt.Errorf("%s: %w", path, err)
	}
	if [kekSize]byte(raw) == ([kekSize]byte{}) {
		return raw, fmt.Errorf("%s holds nothing but zeros: restore it from the backup", path)
	}
	return raw, nil
}

func ownerOf(st fs.FileInfo) (uid int, known bool) {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(sys.Uid), true
}

// newFileKEK does not keep raw. The key that wraps and the ID are derived apart from each other, so the ID
// tells keys apart and gives nothing away.
func newFileKEK(raw []byte) *FileKEK {
	key, id := derive(raw, fileKEKLabel, kekSize), derive(raw, kekIDLabel, 8)
	defer clear(key)
	return &FileKEK{id: "file:" + hex.EncodeToString(id), aead: newGCM(key)}
}

// derive is HKDF-SHA-256 (RFC 5869) without a salt.
func derive(raw []byte, info string, size int) []byte {
	out, err := hkdf.Key(sha256.New, raw, nil, info, size)
	if err != nil {
		panic("keyring: internal error: " + err.Error())
	}
	return out
}

// ID is "file:" and 16 hexadecimal digits that depend on the key alone, not on where its file lies.
func (k *FileKEK) ID() string { return k.id }

// Wrap implements [KEK]. It has no error.
func (k *FileKEK) Wrap(_ context.Context, plaintext, aad []byte) ([]byte, error) {
	return k.aead.Seal(nil, nil, plaintext, append(appendField(nil, fileKEKLabel), aad...)), nil
}

// Unwrap implements [KEK]. Its only error is [ErrOpen].
func (k *FileKEK) Unwrap(_ context.Context, ciphertext, aad []byte) ([]byte, error) {
	pt, err := k.aead.Open(nil, nil, ciphertext, append(appendField(nil, fileKEKLabel), aad...))
	if err != nil {
		return nil, ErrOpen
	}
	return pt, nil
}

// Format prints no key, with whatever verb.
func (k *FileKEK) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "keyring.FileKEK("+k.id+")") }

// LocalConfig says where a ring under a [FileKEK] lies.
type LocalConfig struct {
	Path    string // the keyset file
	KEKFile string
	Create  bool // make what is missing, on a first start
}

// OpenLocal opens a ring whose key-encryption key is a file. With Create it makes both files where there is
// no keyset yet; a key file that is there is used. A keyset whose key file is missing is an error, never
// the occasion for a new key: nothing would open again.
func OpenLocal(ctx context.Context, c LocalConfig) (*Ring, error) {
	kek, err := OpenFileKEK(c.KEKFile)
	if errors.Is(err, fs.ErrNotExist) && c.Create {
		switch _, serr := os.Lstat(c.Path); {
		case serr == nil:
			return nil, fmt.Errorf("%w: the keyset %s can't be opened without it; restore it from the backup", err, c.Path)
		case errors.Is(serr, fs.ErrNotExist):
			kek, err = CreateFileKEK(c.KEKFile)
		default:
			err = serr
		}
	}
	if err != nil {
		return nil, err
	}
	return Open(ctx, Config{Path: c.Path, KEK: kek, Create: c.Create})
}
