package broker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/internal/durable"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
)

const (
	// retainEvery is how often the broker looks for what is old enough: it goes through all events for that.
	retainEvery = 24 * time.Hour
	// maxRetained is how many keys one such look destroys at most; the rest is the next one's.
	maxRetained = 1000
)

// Retention erases by itself what is over for longer than Age, after an export that holds it was written into ExportDir and
// verified. The zero value keeps everything.
type Retention struct {
	Age       time.Duration
	ExportDir string
}

// records gives an export the events of the ledger.
type records struct{ ledger *ledger.Ledger }

// Records implements audit.EventSource.
func (r records) Records(ctx context.Context, from int64, most int) ([]audit.Record, error) {
	entries, err := r.ledger.Events(ctx, from, most)
	if err != nil {
		return nil, err
	}
	out := make([]audit.Record, len(entries))
	for i, e := range entries {
		out[i] = audit.Record{
			Index: e.Index, Encoding: e.Encoding, EventSalt: e.EventSalt, ReplySalt: e.ReplySalt, Reply: e.Reply, Erased: e.Erased, Left: e.Leaf,
		}
	}
	return out, nil
}

// retain calls Retain at once and then every day, until ctx ends.
func (b *Broker) retain(ctx context.Context) {
	tick := time.NewTicker(retainEvery)
	defer tick.Stop()
	for {
		n, err := b.Retain(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			b.logger.Error("what is older than the retention could not be erased", "error", err)
		case n > 0:
			b.logger.Info("erased what is older than the retention", "events", n)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Retain erases what is over for longer than the retention, and returns how many events that were. Run calls it; it is
// exported for tests. Nothing is erased that no verified export holds, and each event that erases names the export.
func (b *Broker) Retain(ctx context.Context) (erased int64, err error) {
	if b.retention.Age <= 0 {
		return 0, nil
	}
	now := b.now()
	plan, err := b.ledger.PlanErasure(ctx, ledger.EraseQuery{Before: now.Add(-b.retention.Age)}, now, nil)
	if err != nil || len(plan.Erasures) == 0 {
		return 0, err
	}
	export, err := b.exportAll(ctx, now)
	if err != nil {
		return 0, fmt.Errorf("export before removal: %w", err)
	}
	for _, planned := range plan.Erasures[:min(len(plan.Erasures), maxRetained)] {
		e := planned.Body
		if last := e.Indexes[len(e.Indexes)-1]; last >= export.Size {
			return erased, nil
		}
		e.Reason, e.Export = "it is over for longer than the retention of "+b.retention.Age.String(), export
		commit := ledgerCommit(event.New(b.now(), "", e))
		commit.Require = planned.Require
		_, err := b.ledger.Commit(ctx, commit)
		switch {
		case errors.Is(err, ledger.ErrPrecondition), errors.Is(err, ledger.ErrTransition):
			// It moved on, or was held meanwhile, and what comes after it may go on with its sessions: the next look
			// judges all of it again.
			return erased, nil
		case err != nil:
			return erased, err
		}
		b.forget(e.Subject)
		erased += int64(len(e.Indexes))
	}
	return erased, nil
}

// exportAll writes an export of all that is signed, verifies it, and makes it durable.
func (b *Broker) exportAll(ctx context.Context, now time.Time) (*event.ErasedExport, error) {
	head, err := b.tree.Integrate(ctx)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(b.retention.ExportDir, 0o700); err != nil {
		return nil, err
	}
	dir := filepath.Join(b.retention.ExportDir, fmt.Sprintf("%s-%d", now.UTC().Format("20060102T150405.000000Z"), head.Size))
	revision := func(ctx context.Context, digest event.Digest) ([]byte, error) {
		return b.ledger.Blob(ctx, ledger.RevisionBlob(digest), digest)
	}
	cfg := audit.ExportConfig{Checkpoint: b.tree.Checkpoint(), Key: b.tree.Key(), Events: records{b.ledger}, Revisions: revision}
	if _, err := audit.Export(ctx, dir, cfg); err != nil {
		return nil, err
	}
	report, err := audit.Verify(ctx, dir, b.tree.Key(), audit.VerifyOptions{})
	if err != nil {
		return nil, err
	}
	if err := syncTree(dir); err != nil {
		return nil, err
	}
	return &event.ErasedExport{Manifest: report.ManifestSHA256, Size: report.Size, Root: report.Root}, durable.SyncDir(b.retention.ExportDir)
}

// syncTree makes every file and directory below dir durable.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return durable.SyncDir(path)
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}
