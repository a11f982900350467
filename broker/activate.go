package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
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

// breaker begins the source of a revision that Trip put back.
const breaker = "breaker: "

// Trip goes back to the revision before the active one, by an event: it is for a revision that keeps running into
// its time limit, and so denies everything. It does nothing when another revision is active by now, or when
// there is none before.
func (b *Broker) Trip(ctx context.Context, runaway *policy.Revision) error {
	active, err := b.current(ctx)
	if err != nil {
		return err
	}
	row, _, err := b.ledger.ActiveRevision(ctx)
	if err != nil || active.digest != event.Digest(runaway.Digest()) || strings.HasPrefix(row.Source, breaker) {
		return err // what the breaker itself put back stays: two slow revisions must not take turns
	}
	before, err := b.previous(ctx, active)
	if err != nil || before == nil {
		return err
	}
	source := fmt.Sprintf(breaker+"revision %d kept running into its time limit", active.sequence)
	_, err = b.activate(ctx, b.now(), *before, source, "", nil)
	return err
}

// previous loads the newest revision that is older than the active one, nil if there is none.
func (b *Broker) previous(ctx context.Context, active *active) (*candidate, error) {
	rows, err := b.ledger.Revisions(ctx, maxPage)
	if err != nil {
		return nil, err
	}
	var newest *ledger.Revision
	for _, r := range rows {
		if r.Digest != active.digest && r.Sequence < active.sequence && !strings.HasPrefix(r.Source, breaker) && (newest == nil || r.Sequence > newest.Sequence) {
			newest = &r
		}
	}
	if newest == nil {
		return nil, nil
	}
	archive, err := b.ledger.Blob(ctx, ledger.RevisionBlob(newest.Digest), newest.Digest)
	if err != nil {
		return nil, err
	}
	loaded, err := b.load(ctx, archive)
	return &loaded, err
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
