package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/internal/durable"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
)

// restoredReason is why sessions end that lived when a backup was made.
const restoredReason = "the ledger was restored from a backup"

// steps are those of a new incarnation, in an order in which a crash after each of them leaves a broker that does not
// start, until the last one: from the event on it is the wrong key that keeps it from starting.
func (r *restorer) steps() []func(context.Context) error {
	finish := []func(context.Context) error{r.endSessions, r.setLogAside, r.keepOutside, r.makeLog, r.switchKey}
	if r.found.State == RestoreBegun {
		return finish
	}
	return append([]func(context.Context) error{r.keepOutside, r.begin}, finish...)
}

// begin makes the new log's key, and commits the event that names it.
func (r *restorer) begin(ctx context.Context) (err error) {
	known := r.newest()
	if known == nil {
		return errors.New("no checkpoint is known of the log before: name one that somebody kept")
	}
	_, seq, err := r.ledger.Incarnation(ctx)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return err
	}
	// Always a new key: one that lies there may have come with the backup, and be another copy's as well.
	if r.next, err = r.makeLogKey(r.path(nextKeyFile), r.found.NextOrigin); err != nil {
		return err
	}
	body := event.Restored{
		Incarnation: r.found.Next, Origin: r.found.NextOrigin, LogKey: r.next.Key().String(), Previous: r.life.Origin,
		Known: event.KnownHead{Origin: known.Origin, Size: known.Size, Root: known.Root, Signed: known.raw},
	}
	_, err = r.ledger.Commit(ctx, ledger.Commit{
		Event:   event.New(time.Now(), "", body),
		Require: []ledger.Precondition{{RowKey: ledger.RowKey{Kind: ledger.KindIncarnation, Key: ledger.CurrentIncarnation}, Seq: seq}},
	})
	return err
}

// endSessions ends what lives.
func (r *restorer) endSessions(ctx context.Context) error {
	return r.live(ctx, func(ids []event.ID) error {
		_, err := r.ledger.RevokeSessions(ctx, time.Now(), ids, restoredReason, event.ID{})
		return err
	})
}

// setLogAside gives the directory of the log before another name. It says what was signed; nothing reads it.
func (r *restorer) setLogAside(context.Context) error {
	dir := r.path(logDir)
	raw, err := os.ReadFile(filepath.Join(dir, audit.CheckpointName))
	if errors.Is(err, fs.ErrNotExist) || err == nil && r.ours(raw) {
		return nil
	}
	if err != nil {
		return err
	}
	to, err := besides(dir, raw)
	if err != nil {
		return err
	}
	if err := os.Rename(dir, to); err != nil { // over nothing but an empty directory
		return err
	}
	r.found.Kept = append(r.found.Kept, to)
	return durable.SyncDir(r.cfg.DataDir)
}

// keepOutside copies the old checkpoint outside to beside itself.
func (r *restorer) keepOutside(context.Context) error {
	raw, err := r.outside()
	if err != nil || raw == nil || r.ours(raw) {
		return err
	}
	to, err := besides(r.cfg.Log.CheckpointCopy, raw)
	if err != nil {
		return err
	}
	err = durable.CreateFile(to, raw, 0o600)
	if errors.Is(err, fs.ErrExist) {
		there, unread := os.ReadFile(to)
		if unread != nil || !bytes.Equal(there, raw) {
			return fmt.Errorf("%s is there already, with something else in it: move it away", to)
		}
		err = nil
	}
	if err == nil && !slices.Contains(r.found.Kept, to) {
		r.found.Kept = append(r.found.Kept, to)
	}
	return err
}

// makeLog integrates what the ledger has into the new log, and replaces the checkpoint outside in one step: at no time
// is there none, by which another copy of the store could start.
func (r *restorer) makeLog(ctx context.Context) (err error) {
	tree, err := audit.Open(ctx, audit.Config{Dir: r.path(logDir), Origin: r.next.Origin(), Signer: r.next, Source: leaves{r.ledger}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	if _, err := tree.Integrate(ctx); err != nil {
		return err
	}
	if r.cfg.Log.CheckpointCopy == "" {
		return nil
	}
	now, err := r.outside()
	if err != nil {
		return err
	}
	if !bytes.Equal(now, r.seenOutside()) && !r.ours(now) {
		return fmt.Errorf("the checkpoint outside, %s, has changed meanwhile: another broker signs for this log; stop it", r.cfg.Log.CheckpointCopy)
	}
	return durable.WriteFile(r.cfg.Log.CheckpointCopy, tree.Checkpoint(), 0o600)
}

// switchKey puts the new key into its place, over the old one, which nobody needs again. With that the restore is done.
func (r *restorer) switchKey(context.Context) error {
	if err := os.Rename(r.path(nextKeyFile), r.path(logKeyFile)); err != nil {
		return err
	}
	if err := durable.SyncDir(r.cfg.DataDir); err != nil {
		return err
	}
	r.logKey = r.next
	f := &r.found
	f.State, f.Incarnation, f.Origin, f.LogKey = RestoreDone, f.Next, f.NextOrigin, r.next.Key().String()
	return r.publish(r.cfg.DataDir)
}

// outside reads the checkpoint outside; nil: there is none.
func (r *restorer) outside() ([]byte, error) {
	if r.cfg.Log.CheckpointCopy == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(r.cfg.Log.CheckpointCopy)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return raw, err
}

// seenOutside is the checkpoint outside as look found it.
func (r *restorer) seenOutside() []byte {
	for _, k := range r.found.Known {
		if k.Where == r.cfg.Log.CheckpointCopy {
			return k.raw
		}
	}
	return nil
}

// ours says whether a checkpoint is one of the new log.
func (r *restorer) ours(raw []byte) bool {
	if r.next == nil {
		return false
	}
	_, err := r.next.Key().Open(raw)
	return err == nil
}

// besides is where a file or directory with a checkpoint is kept.
func besides(path string, raw []byte) (string, error) {
	c, err := proofs.Peek(raw)
	if err != nil {
		return "", err
	}
	_, n := proofs.SplitIncarnation(c.Origin)
	return fmt.Sprintf("%s.incarnation-%d.size-%d", path, n, c.Size), nil
}
