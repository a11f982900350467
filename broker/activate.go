package broker

import (
	"context"
	"errors"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
)

// activate makes a loaded bundle the one that decides, by an event on top of the revision that is active.
func (b *Broker) activate(ctx context.Context, now time.Time, next candidate, source, note string, op *operation) (ledger.Revision, error) {
	before, err := b.current(ctx)
	if err != nil {
		return ledger.Revision{}, err
	}
	subject := ""
	if op != nil { // on top of the very revision that permitted it
		before, subject = op.permit.active, op.id.String()
	}
	digest := event.Digest(next.revision.Digest())
	body := event.RevisionActivated{Digest: digest, Sequence: before.sequence + 1, Previous: before.digest, Source: source, Note: note}
	if op != nil {
		body.By = op.by()
	}
	commit := ledgerCommit(event.New(now, subject, body))
	commit.Require = []ledger.Precondition{before.unchanged()}
	commit.Blob = &ledger.Blob{Key: ledger.RevisionBlob(digest), Data: next.revision.Archive(), Digest: digest}
	if _, err := b.ledger.Commit(ctx, commit); err != nil {
		return ledger.Revision{}, err
	}
	b.logger.Info("policy revision activated", "digest", digest.String(), "sequence", body.Sequence, "source", source)
	activated, _, err := b.ledger.Revision(ctx, digest.String())
	return activated, err
}

// Reload activates a bundle that was read from a directory: for development servers, where the files are the
// administrator. It does nothing when the bundle is the active one.
func (b *Broker) Reload(ctx context.Context, archive []byte, source string) error {
	loaded, err := b.load(ctx, archive)
	if err != nil {
		return err
	}
	active, err := b.current(ctx)
	if err != nil {
		return err
	}
	if active.digest == event.Digest(loaded.revision.Digest()) {
		return nil
	}
	_, err = b.activate(ctx, b.now(), loaded, source, "", nil)
	if errors.Is(err, ledger.ErrPrecondition) {
		return nil // somebody else activated a revision meanwhile: the next reload sees it
	}
	return err
}
