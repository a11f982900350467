package sink

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/bulla-project/bulla/internal/durable"
	"github.com/bulla-project/bulla/ledger/event"
)

// maxPosition is the largest position file that is read, in bytes.
const maxPosition = 4 << 10

const positionVersion = 1

// position is how far a pump came: Next is the first index that has not been written, and Last the id of the event before
// it, by which a log is known again; without one that event was erased, and its id not told.
type position struct {
	Version int      `json:"v"`
	Origin  string   `json:"origin"`
	Next    int64    `json:"next"`
	Last    event.ID `json:"last,omitzero"`
}

// parsePosition takes only what encode writes.
func parsePosition(data []byte) (position, error) {
	var p position
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if len(data) > maxPosition || dec.Decode(&p) != nil || p.Version != positionVersion || p.Next < 0 || p.Next == 0 && !p.Last.IsZero() {
		return position{}, errors.New("it is damaged, or another kind of file")
	}
	if again, err := p.encode(); err != nil || !bytes.Equal(again, data) {
		return position{}, errors.New("it is damaged, or another kind of file")
	}
	return p, nil
}

func (p position) encode() ([]byte, error) {
	out, err := json.Marshal(p)
	return append(out, '\n'), err
}

// keeper keeps a position in a file, and others from it.
type keeper struct {
	path string // "": nowhere
	lock *os.File
}

// openKeeper locks the position at path, against another process that writes to the same sink.
func openKeeper(path string) (*keeper, error) {
	k := &keeper{path: path}
	if path == "" {
		return k, nil
	}
	var err error
	if k.lock, err = os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(k.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another process exports with the position in %s: end it first, or give each its own", path), k.lock.Close())
	}
	if err := durable.RemoveTemps(path); err != nil {
		return nil, errors.Join(err, k.lock.Close())
	}
	return k, nil
}

// load returns the position, and false where there is none yet.
func (k *keeper) load() (position, bool, error) {
	if k.path == "" {
		return position{}, false, nil
	}
	f, err := os.Open(k.path)
	if errors.Is(err, fs.ErrNotExist) {
		return position{}, false, nil
	}
	if err != nil {
		return position{}, false, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPosition+1))
	if err != nil {
		return position{}, false, fmt.Errorf("read %s: %w", k.path, err)
	}
	p, err := parsePosition(data)
	if err != nil {
		return position{}, false, fmt.Errorf("%w: %s: %w", ErrPosition, k.path, err)
	}
	return p, true, nil
}

func (k *keeper) save(p position) error {
	if k.path == "" {
		return nil
	}
	data, err := p.encode()
	if err != nil {
		return err
	}
	return durable.WriteFile(k.path, data, 0o600)
}

func (k *keeper) close() error {
	if k.lock == nil {
		return nil
	}
	return k.lock.Close() // the lock goes with it
}
