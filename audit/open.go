package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/internal/durable"
)

// Open opens the log in cfg.Dir, or starts it. It repairs what a crash left, from the source; compares the store
// with what was signed, by the checkpoint in Dir, by the copy outside, and leaf by leaf for the newest
// 65,536; and returns ErrRollback when the store is shorter or another history. It signs nothing.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(cfg.Dir, hashesName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	l := &Log{cfg: cfg, hashes: f}
	if err := l.recover(ctx); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open log %s: %w", cfg.Origin, err)
	}
	return l, nil
}

// recover brings tree and files to the newest checkpoint that was ever signed, as far as is known. Nobody else
// has l yet, so mu is not needed.
func (l *Log) recover(ctx context.Context) error {
	inside, err := l.read(filepath.Join(l.cfg.Dir, checkpointName))
	if err != nil {
		return err
	}
	outside, err := l.read(l.cfg.OutsideCheckpoint)
	if err != nil {
		return err
	}
	newest := inside
	if outside.checkpoint.Size > inside.checkpoint.Size {
		newest = outside
	}
	signed := []proofs.Checkpoint{inside.checkpoint, outside.checkpoint}
	err = l.restore(ctx, inside.checkpoint, signed)
	if errors.Is(err, ErrRollback) && l.sourceMakes(ctx, signed) {
		// It is not the store that is wrong but the file of hashes: make it anew.
		err = l.restore(ctx, proofs.Checkpoint{}, signed)
	}
	if err != nil {
		return err
	}
	return l.settle(inside, outside, newest)
}

// read reads a signed checkpoint, or nothing if there is none.
func (l *Log) read(path string) (head, error) {
	if path == "" {
		return head{}, nil
	}
	if err := durable.RemoveTemps(path); err != nil {
		return head{}, err
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return head{}, nil
	}
	if err != nil {
		return head{}, err
	}
	c, err := l.Key().Open(raw)
	if err != nil {
		if is, unread := proofs.Peek(raw); unread == nil && is.Origin != l.cfg.Origin {
			return head{}, fmt.Errorf("%w: the checkpoint in %s is of log %s, and this is %s: one of them is from before a restore", ErrRollback, path, is.Origin, l.cfg.Origin)
		}
		return head{}, fmt.Errorf("checkpoint in %s: %w", path, err)
	}
	if c.Size == 0 {
		return head{}, fmt.Errorf("checkpoint in %s: %w: it signs an empty log, which is never done", path, ErrRollback)
	}
	return head{checkpoint: c, raw: raw}, nil
}

// restore makes tree and hashes those of the largest of the signed checkpoints: it takes the hashes that base signs if
// they are whole, drops the rest, integrates from the source whatever is missing, and compares with all that was
// signed.
func (l *Log) restore(ctx context.Context, base proofs.Checkpoint, signed []proofs.Checkpoint) error {
	size := max(signed[0].Size, signed[1].Size)
	tree, err := loadFrontier(base.Size, hashReader(l.hashes))
	if err != nil || tree.root() != base.Root {
		tree = frontier{} // no checkpoint, or the hashes are not those that it signs: start over
	}
	if err := l.hashes.Truncate(storedBytes(tree.n)); err != nil {
		return err
	}
	if tree, err = extend(ctx, l.cfg.Source, l.hashes, tree, size); err != nil {
		return err
	}
	if tree.n < size {
		return fmt.Errorf("%w: the store holds %d events, the log has signed %d; put the newest copy of the store back, or begin a new incarnation of the log", ErrRollback, tree.n, size)
	}
	for _, c := range signed {
		if err := l.holds(c); err != nil {
			return err
		}
	}
	if err := l.compare(ctx, max(0, size-tail), size); err != nil {
		return err
	}
	l.tree = tree
	return l.hashes.Sync()
}

// sourceMakes reports whether the source by itself makes the trees that were signed. It writes nothing.
func (l *Log) sourceMakes(ctx context.Context, signed []proofs.Checkpoint) bool {
	for _, c := range signed {
		tree, err := extend(ctx, l.cfg.Source, nowhere{}, frontier{}, c.Size)
		if err != nil || tree.n != c.Size || c.Size > 0 && tree.root() != c.Root {
			return false
		}
	}
	return true
}

// nowhere forgets what is written to it.
type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// holds refuses when the restored tree does not extend the one that c signs.
func (l *Log) holds(c proofs.Checkpoint) error {
	if c.Size == 0 {
		return nil
	}
	root, err := tlog.TreeHash(c.Size, hashReader(l.hashes))
	if err != nil {
		return err
	}
	if root != c.Root {
		return fmt.Errorf("%w: the first %d events of the store are not those that the log has signed", ErrRollback, c.Size)
	}
	return nil
}

// compare reads the leaves from and up to to from the source again, and compares them with the tree.
func (l *Log) compare(ctx context.Context, from, to int64) error {
	for from < to {
		want := int(min(batch, to-from))
		entries, err := l.cfg.Source.Leaves(ctx, from, want)
		if err != nil {
			return fmt.Errorf("read leaves from %d on: %w", from, err)
		}
		if err := contiguous(entries, from, want); err != nil {
			return err
		}
		if len(entries) == 0 {
			return fmt.Errorf("%w: the store holds %d events, the log has signed %d", ErrRollback, from, to)
		}
		// Hashes of leaves lie in order, with those of inner nodes between them.
		start := tlog.StoredHashIndex(0, from)
		stored := make([]byte, (tlog.StoredHashIndex(0, from+int64(len(entries))-1)+1-start)*tlog.HashSize)
		if _, err := l.hashes.ReadAt(stored, start*tlog.HashSize); err != nil {
			return fmt.Errorf("read hashes of the log: %w", err)
		}
		for _, e := range entries {
			at := (tlog.StoredHashIndex(0, e.Index) - start) * tlog.HashSize
			if proofs.LeafHash(e.Leaf.Bytes()) != proofs.Hash(stored[at:at+tlog.HashSize]) {
				return fmt.Errorf("%w: the event at index %d is not the one that was signed", ErrRollback, e.Index)
			}
		}
		from += int64(len(entries))
	}
	return nil
}

// settle makes both checkpoints the newest one, and shows it.
func (l *Log) settle(inside, outside, newest head) error {
	l.outside = outside.raw
	if newest.raw == nil {
		return durable.SyncDir(l.cfg.Dir)
	}
	stale := l.cfg.OutsideCheckpoint != "" && outside.checkpoint != newest.checkpoint
	if stale || inside.checkpoint != newest.checkpoint {
		if err := l.write(newest.raw); err != nil {
			return err
		}
	}
	l.head.Store(&newest)
	return nil
}

// Recheck compares every leaf of the store with the signed log: about a second for a million. It is for the
// time after the start, beside the work; the log stops signing when it finds a difference.
func (l *Log) Recheck(ctx context.Context) error {
	err := l.compare(ctx, 0, l.Size())
	if err == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.note(err)
	return fmt.Errorf("compare the store with the log: %w", err)
}
