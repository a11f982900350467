package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/tiles"
	"github.com/bulla-project/bulla/internal/durable"
)

const (
	hashesName     = "hashes"
	checkpointName = "checkpoint"
	witnessedName  = "witnessed"

	// chunk is how many leaves go into one checkpoint at most, so that a long way to catch up is
	// gone in steps that each last.
	chunk = 1 << 16
	// tail is how many of the newest leaves Open compares with the store; Recheck compares all.
	tail = 1 << 16
	// poll is the longest time Run waits without looking at the source.
	poll = 5 * time.Second
)

// CheckpointName is the file in Config.Dir that holds the newest checkpoint.
const CheckpointName = checkpointName

// Config says where a log lies and what it is made from.
type Config struct {
	// Dir holds the files hashes and checkpoint; it is made if missing. One process at a time uses it.
	Dir string
	// Origin is the log's name, and that of the signer's key.
	Origin string
	Signer *proofs.Signer
	Source Source // safe for concurrent use
	// OutsideCheckpoint is the path of a copy of the checkpoint on storage that is not restored together with the
	// store; "" keeps none. Without it, a rollback of store and log directory together goes unnoticed here.
	OutsideCheckpoint string
}

// validate reports every fault of c.
func (c Config) validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("no directory"))
	}
	if c.Source == nil {
		errs = append(errs, errors.New("no source"))
	}
	if err := proofs.CheckOrigin(c.Origin); err != nil {
		errs = append(errs, err)
	}
	if c.Signer == nil {
		errs = append(errs, errors.New("no signing key"))
	} else if c.Signer.Origin() != c.Origin {
		errs = append(errs, fmt.Errorf("the signing key is that of log %s, the configuration says %s: a log's origin never changes", c.Signer.Origin(), c.Origin))
	}
	return errors.Join(errs...)
}

// Log is the Merkle log of a store. What it signed is never taken back: a store that does not hold the signed
// history any more makes it refuse with ErrRollback, now and until it is opened again.
//
// Order of writes: hashes, fsync, checkpoint (write, fsync, rename, fsync of the directory), its copy outside. Hashes beyond
// the checkpoint mean nothing and are written again, by the function that wrote them first. All methods
// are safe for concurrent use.
type Log struct {
	cfg    Config
	hashes hashFile
	head   atomic.Pointer[head]  // nil until there is a checkpoint
	health atomic.Pointer[error] // of the last Integrate or Recheck

	mu      sync.Mutex // guards what follows; held by whoever signs
	tree    frontier   // what head signs
	outside []byte     // what the copy outside held when it was last read or written
	fault   error      // why nothing is signed any more
	closed  bool
}

type head struct {
	checkpoint proofs.Checkpoint
	raw        []byte
}

// Integrate brings all leaves that the source has into the log, and returns the newest checkpoint once it is
// durable, its copy outside included. It returns ErrEmpty while there is no event at all, an error of the source as it
// is (call again later), and ErrRollback, ErrGap or ErrStopped for ever after the first of them; only Recover
// ends an ErrStopped.
func (l *Log) Integrate(ctx context.Context) (proofs.Checkpoint, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.catchUp(ctx)
	l.note(err)
	if err != nil {
		return proofs.Checkpoint{}, fmt.Errorf("integrate events into the log: %w", err)
	}
	h := l.head.Load()
	if h == nil {
		return proofs.Checkpoint{}, ErrEmpty
	}
	return h.checkpoint, nil
}

// Recover goes on after ErrStopped, in the way of Open: it believes the newest checkpoint on the disk alone, writes
// anew what a failed write may have left behind it, and compares the source with what was signed. Its error wraps
// ErrStopped while that does not work, such as on a disk that is still full; call again later. What is wrong for ever
// (ErrRollback, ErrGap, Close) stays wrong. It does nothing where nothing has stopped, and signs nothing.
func (l *Log) Recover(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fault == nil {
		return nil
	}
	if l.closed || !errors.Is(l.fault, ErrStopped) {
		return l.fault
	}
	err := l.recover(ctx)
	switch {
	case err == nil:
		l.fault = nil
	case fatal(err):
		l.fault = err
	default:
		err = fmt.Errorf("%w: recover: %w", ErrStopped, err)
	}
	l.note(err)
	return err
}

// catchUp integrates and signs until the source has no more. The caller holds mu.
func (l *Log) catchUp(ctx context.Context) error {
	for {
		if l.fault != nil {
			return l.fault
		}
		next, err := extend(ctx, l.cfg.Source, l.hashes, l.tree, l.tree.n+chunk)
		if err != nil {
			return err
		}
		if next.n == l.tree.n {
			return nil
		}
		if err := l.sign(next); err != nil {
			return err
		}
	}
}

// note keeps err for Health, and for ever if it is one that doesn't go away. The caller holds mu.
func (l *Log) note(err error) {
	if fatal(err) && l.fault == nil {
		l.fault = err
	}
	l.health.Store(&err)
}

// fatal says which errors end the log's life.
func fatal(err error) bool {
	return errors.Is(err, ErrRollback) || errors.Is(err, ErrGap) || errors.Is(err, ErrStopped)
}

// sign makes the hashes of next durable, then its checkpoint, then the copy, and only then shows it. The caller
// holds mu.
func (l *Log) sign(next frontier) error {
	if err := l.hashes.Sync(); err != nil {
		return fmt.Errorf("%w: sync hashes: %w", ErrStopped, err)
	}
	c := proofs.Checkpoint{Origin: l.cfg.Origin, Size: next.n, Root: next.root()}
	if err := l.guardOutside(); err != nil {
		return err
	}
	raw, err := l.cfg.Signer.Sign(c)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrStopped, err)
	}
	if err := l.write(raw); err != nil {
		return err
	}
	l.tree = next
	l.head.Store(&head{checkpoint: c, raw: raw})
	return nil
}

// guardOutside refuses to sign when the copy outside is not the one that this log left there. The caller
// holds mu.
func (l *Log) guardOutside() error {
	path := l.cfg.OutsideCheckpoint
	if path == "" {
		return nil
	}
	raw, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the checkpoint outside: %w", err)
	}
	if !bytes.Equal(raw, l.outside) {
		return fmt.Errorf("%w: the checkpoint outside, %s, is not the one that this broker left there: another broker signs for log %s, or the file was touched", ErrRollback, path, l.cfg.Origin)
	}
	return nil
}

// write puts a signed checkpoint into its places. The caller holds mu.
func (l *Log) write(raw []byte) error {
	if err := durable.WriteFile(filepath.Join(l.cfg.Dir, checkpointName), raw, 0o600); err != nil {
		return fmt.Errorf("%w: %w", ErrStopped, err)
	}
	if l.cfg.OutsideCheckpoint == "" {
		return nil
	}
	if err := durable.WriteFile(l.cfg.OutsideCheckpoint, raw, 0o600); err != nil {
		return fmt.Errorf("%w: checkpoint outside: %w", ErrStopped, err)
	}
	l.outside = raw
	return nil
}

// Run integrates at once, then whenever notify has something to say, and every few seconds in any case, but
// not more often than every minInterval. It goes on after errors of the source, which Health shows, and ends
// with nil when ctx ends, or with the error after which nothing is signed any more. A notify channel has
// room for one, so that a word that is said during integration is not lost.
func (l *Log) Run(ctx context.Context, notify <-chan struct{}, minInterval time.Duration) error {
	for {
		_, err := l.Integrate(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case fatal(err):
			return err
		}
		if !pause(ctx, nil, minInterval) || !pause(ctx, notify, poll) {
			return nil
		}
	}
}

// pause waits for d or for wake, and reports whether ctx still lives.
func pause(ctx context.Context, wake <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-wake:
	case <-timer.C:
	}
	return ctx.Err() == nil
}

// Health returns the error of the last Integrate or Recheck, or nil.
func (l *Log) Health() error {
	if p := l.health.Load(); p != nil {
		return *p
	}
	return nil
}

// Stopped returns why nothing is signed any more, or nil. It is cheap enough to ask at every call.
func (l *Log) Stopped() error {
	if err := l.Health(); fatal(err) {
		return err
	}
	return nil
}

// Checkpoint returns the newest signed checkpoint, or nil while there is none. The caller does not change it.
func (l *Log) Checkpoint() []byte {
	if h := l.head.Load(); h != nil {
		return h.raw
	}
	return nil
}

// Size returns the number of entries that the newest checkpoint signs.
func (l *Log) Size() int64 {
	if h := l.head.Load(); h != nil {
		return h.checkpoint.Size
	}
	return 0
}

// Key returns the key that the log's checkpoints are verified with.
func (l *Log) Key() proofs.Key { return l.cfg.Signer.Key() }

// ProveInclusion proves that the entry at index is in the log of size entries, which is at most Size.
func (l *Log) ProveInclusion(index, size int64) (proofs.Proof, error) {
	if signed := l.Size(); size < 1 || size > signed || index < 0 || index >= size {
		return proofs.Proof{}, fmt.Errorf("prove entry %d in a log of %d: the log has %d signed entries", index, size, signed)
	}
	hashes, err := tlog.ProveRecord(size, index, hashReader(l.hashes))
	if err != nil {
		return proofs.Proof{}, fmt.Errorf("prove entry %d in a log of %d: %w", index, size, err)
	}
	return proofs.Proof{Index: index, Size: size, Hashes: hashes}, nil
}

// ProveConsistency proves that the log of newer entries, at most Size, extends the log of older entries.
func (l *Log) ProveConsistency(older, newer int64) (proofs.ConsistencyProof, error) {
	p := proofs.ConsistencyProof{Old: older, New: newer}
	if signed := l.Size(); older < 0 || older > newer || newer > signed {
		return proofs.ConsistencyProof{}, fmt.Errorf("prove that a log of %d extends one of %d: the log has %d signed entries", newer, older, signed)
	}
	if older == 0 || older == newer {
		return p, nil
	}
	hashes, err := tlog.ProveTree(newer, older, hashReader(l.hashes))
	if err != nil {
		return proofs.ConsistencyProof{}, fmt.Errorf("prove that a log of %d extends one of %d: %w", newer, older, err)
	}
	p.Hashes = hashes
	return p, nil
}

// Tile returns the hashes of a tile of the signed log, as C2SP tlog-tiles serves them.
func (l *Log) Tile(t tiles.Tile) ([]byte, error) {
	if t.Level < 0 || t.Level >= tiles.Levels(l.Size()) || t.N < 0 || t.W < 1 || t.W > tiles.Width || t.N >= tiles.Tiles(l.Size(), t.Level) ||
		t.First()+int64(t.W) > tiles.Count(l.Size(), t.Level) {
		return nil, fmt.Errorf("read %s: %w: not in a log of %d entries", t.HashPath(), fs.ErrNotExist, l.Size())
	}
	data, err := tlog.ReadTileData(tlog.Tile{H: tiles.Height, L: t.Level, N: t.N, W: t.W}, hashReader(l.hashes))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.HashPath(), err)
	}
	return data, nil
}

// Close ends the log's use of its files. Nothing else may be called afterwards.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.fault == nil {
		l.fault = fmt.Errorf("%w: it is closed", ErrStopped)
	}
	return l.hashes.Close()
}
