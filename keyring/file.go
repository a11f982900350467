package keyring

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/bulla-project/bulla/internal/durable"
)

const (
	fileFormat  = "bulla-keyset/v1"     // what the sealed part is bound to; also the file's first field
	dataKeyInfo = "bulla-keyset-key/v1" // what the wrapped data key is bound to
	maxFile     = 1 << 20               // bytes; some 10,000 keys
	ringIDSize  = 16
)

// keysetFile is the file: canonical JSON and a newline. Everything in it is authenticated: the key-encryption
// key binds the ring's id, and the data key binds all fields before sealed.
//
// The data key is drawn anew for each writing, and wrapped instead of the keys themselves, so that the
// ring may outgrow the 4096 bytes that AWS KMS encrypts at once.
type keysetFile struct {
	Format  string `json:"format"`
	Ring    string `json:"ring"`
	KEK     string `json:"kek"`
	DataKey string `json:"data_key"` // base64
	Sealed  string `json:"sealed"`   // base64
}

func (f keysetFile) encode() []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(f); err != nil {
		panic("keyring: internal error: " + err.Error())
	}
	return b.Bytes()
}

// dataKeyAAD is what the KEK binds; sealedAAD what the data key binds.
func (f keysetFile) dataKeyAAD() []byte {
	return appendField(appendField(nil, dataKeyInfo), f.Ring)
}

func (f keysetFile) sealedAAD() []byte {
	return appendField(appendField(appendField(nil, fileFormat), f.Ring), f.KEK)
}

// parseFile refuses everything that encode does not give.
func parseFile(data []byte) (f keysetFile, dataKey, sealed []byte, err error) {
	fail := func(why string) (keysetFile, []byte, []byte, error) {
		return keysetFile{}, nil, nil, fmt.Errorf("%w (%s)", ErrCorrupt, why)
	}
	if len(data) > maxFile {
		return fail("too large")
	}
	if err := json.Unmarshal(data, &f); err != nil {
		return fail("not JSON of a keyset")
	}
	if f.Format != fileFormat {
		return fail("not of format " + fileFormat)
	}
	if !bytes.Equal(f.encode(), data) {
		return fail("not in its canonical form")
	}
	if id, err := hex.DecodeString(f.Ring); err != nil || len(id) != ringIDSize || hex.EncodeToString(id) != f.Ring {
		return fail("no ring id")
	}
	strict := base64.StdEncoding.Strict()
	if dataKey, err = strict.DecodeString(f.DataKey); err != nil || strict.EncodeToString(dataKey) != f.DataKey {
		return fail("data_key is not base64")
	}
	if sealed, err = strict.DecodeString(f.Sealed); err != nil || strict.EncodeToString(sealed) != f.Sealed {
		return fail("sealed is not base64")
	}
	return f, dataKey, sealed, nil
}

// readFile reads at most one byte more than a keyset file may have.
func readFile(path string) ([]byte, error) {
	// Non-blocking, so that a named pipe in its place can't hold up the start.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file: name the keyset file itself", path)
	}
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

// create makes a ring with one key and writes its file, unless somebody else did meanwhile.
func create(ctx context.Context, c Config) (*Ring, error) {
	var id [ringIDSize]byte
	_, _ = rand.Read(id[:]) // crypto/rand.Read never fails
	r := &Ring{path: c.Path, id: hex.EncodeToString(id[:]), now: time.Now}
	s, err := newSealed(c.KEK, r.now())
	if err != nil {
		return nil, fmt.Errorf("create keyset %s: %w", c.Path, err)
	}
	file, err := encodeSealed(ctx, r.id, s)
	if err != nil {
		return nil, fmt.Errorf("create keyset %s: %w", c.Path, err)
	}
	if err := durable.RemoveTemps(c.Path); err != nil {
		return nil, fmt.Errorf("create keyset: %w", err)
	}
	switch err := durable.CreateFile(c.Path, file, 0o600); {
	case errors.Is(err, fs.ErrExist):
		return nil, fmt.Errorf("create keyset %s: %w", c.Path, ErrChanged)
	case err != nil:
		return nil, fmt.Errorf("create keyset: %w", err)
	}
	s.digest = sha256.Sum256(file)
	r.state.Store(s)
	return r, nil
}

// load opens the content of the file.
func load(ctx context.Context, c Config, data []byte) (*Ring, error) {
	f, wrapped, box, err := parseFile(data)
	if err != nil {
		return nil, fmt.Errorf("read keyset %s: %w", c.Path, err)
	}
	if f.KEK != c.KEK.ID() {
		return nil, fmt.Errorf("read keyset %s: %w: it needs %q, the configuration gives %q", c.Path, ErrWrongKEK, f.KEK, c.KEK.ID())
	}
	s, err := openSealed(ctx, c.KEK, f, wrapped, box)
	if err != nil {
		return nil, fmt.Errorf("read keyset %s: %w", c.Path, err)
	}
	s.digest = sha256.Sum256(data)
	r := &Ring{path: c.Path, id: f.Ring, now: time.Now}
	r.state.Store(s)
	return r, nil
}

func openSealed(ctx context.Context, kek KEK, f keysetFile, wrapped, box []byte) (*sealed, error) {
	dataKey, err := kek.Unwrap(ctx, wrapped, f.dataKeyAAD())
	defer clear(dataKey)
	if err != nil {
		return nil, err
	}
	if len(dataKey) != subjectKeySize {
		return nil, ErrOpen
	}
	content, err := newGCM(dataKey).Open(nil, nil, box, f.sealedAAD())
	defer clear(content)
	if err != nil {
		return nil, ErrOpen
	}
	s, err := parseContent(content)
	if err != nil {
		return nil, err
	}
	s.kek = kek
	return s, nil
}

// encodeSealed returns the file for s. It has the KEK unwrap what it wrapped: a file that can be written
// and not read again is found out before it stands in the place of one that could.
func encodeSealed(ctx context.Context, ringID string, s *sealed) ([]byte, error) {
	f := keysetFile{Format: fileFormat, Ring: ringID, KEK: s.kek.ID()}
	dataKey := make([]byte, subjectKeySize)
	defer clear(dataKey)
	_, _ = rand.Read(dataKey) // crypto/rand.Read never fails
	wrapped, err := s.kek.Wrap(ctx, dataKey, f.dataKeyAAD())
	if err != nil {
		return nil, err
	}
	back, err := s.kek.Unwrap(ctx, wrapped, f.dataKeyAAD())
	defer clear(back)
	if err != nil {
		return nil, fmt.Errorf("the key-encryption key does not unwrap what it has just wrapped: %w", err)
	}
	if subtle.ConstantTimeCompare(dataKey, back) != 1 {
		return nil, fmt.Errorf("the key-encryption key does not unwrap what it has just wrapped: %w", ErrKEKRefused)
	}
	content, err := encodeContent(s)
	defer clear(content)
	if err != nil {
		return nil, err
	}
	f.DataKey = base64.StdEncoding.EncodeToString(wrapped)
	f.Sealed = base64.StdEncoding.EncodeToString(newGCM(dataKey).Seal(nil, nil, content, f.sealedAAD()))
	file := f.encode()
	if len(file) > maxFile {
		return nil, fmt.Errorf("the keyset would have %d bytes, more than the %d allowed", len(file), maxFile)
	}
	// What a KEK's ID or answer may break is found here, not at the next start.
	if _, _, _, err := parseFile(file); err != nil {
		return nil, fmt.Errorf("the key-encryption key's ID %q can't be stored: %w", f.KEK, err)
	}
	return file, nil
}

// replace makes next the content of the file, and of the ring once that is durable. While the file's fate
// is unknown the ring goes on with what it had: every file that can be there holds those keys.
func (r *Ring) replace(ctx context.Context, next *sealed) error {
	file, err := encodeSealed(ctx, r.id, next)
	if err != nil {
		return err
	}
	unlock, err := r.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := durable.RemoveTemps(r.path); err != nil {
		return err
	}
	if err := durable.WriteFile(r.path, file, 0o600); err != nil {
		return err
	}
	next.digest = sha256.Sum256(file)
	r.state.Store(next)
	return nil
}

// lock keeps other processes from replacing the file, and makes sure that none did since this ring read it:
// a key that the other process added would be lost.
func (r *Ring) lock() (unlock func(), err error) {
	f, err := os.Open(r.path)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, ErrChanged
	}
	// Read by its name, not through f: the name may have got a new file before the lock was taken.
	data, err := readFile(r.path)
	if err == nil && sha256.Sum256(data) != r.state.Load().digest {
		err = ErrChanged
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil // which gives up the lock
}

// Rotate adds a new primary key. Data sealed before still opens. It returns once the new key is durably in
// the file; on an error the ring seals with the key it had.
func (r *Ring) Rotate(ctx context.Context) error {
	r.write.Lock()
	defer r.write.Unlock()
	next, err := r.state.Load().withNewPrimary(r.now())
	if err == nil {
		err = r.replace(ctx, next)
	}
	if err != nil {
		return fmt.Errorf("rotate keyset %s: %w", r.path, err)
	}
	return nil
}

// Rewrap puts the keyset under another key-encryption key, after making sure that it unwraps. The keys stay
// the same: copies of the old file still open with the old key-encryption key.
func (r *Ring) Rewrap(ctx context.Context, kek KEK) error {
	r.write.Lock()
	defer r.write.Unlock()
	next := *r.state.Load()
	next.kek = kek
	if err := r.replace(ctx, &next); err != nil {
		return fmt.Errorf("rewrap keyset %s under %q: %w", r.path, kek.ID(), err)
	}
	return nil
}
