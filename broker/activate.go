package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
)

// activation is a loaded bundle that is to decide, and why.
type activation struct {
	next         candidate
	source, note string
	rollback     bool     // it was active before
	key          string   // bundle key under which its signature verified
	grounds      grounds  // what was said about its effect
	proposal     event.ID // the first person's word, where a second one was wanted
	require      []ledger.Precondition
	op           *operation // who asked for it; nil: the broker itself
}

// activate makes a loaded bundle the one that decides, by an event on top of the revision that is active.
func (b *Broker) activate(ctx context.Context, now time.Time, a activation) (ledger.Revision, error) {
	before, err := b.current(ctx)
	if err != nil {
		return ledger.Revision{}, err
	}
	subject := ""
	if a.op != nil { // on top of the very revision that permitted it
		before, subject = a.op.permit.active, a.op.id.String()
	}
	digest := event.Digest(a.next.revision.Digest())
	body := event.RevisionActivated{
		Digest: digest, Sequence: before.sequence + 1, Previous: before.digest, Source: a.source, Note: a.note,
		Rollback: a.rollback, Key: a.key, Report: a.grounds.digest, Proposal: a.proposal,
		Text: a.grounds.text, NoReport: a.grounds.none,
	}
	if a.op != nil {
		body.By = a.op.by()
	}
	commit := ledgerCommit(event.New(now, subject, body))
	commit.Require = append([]ledger.Precondition{before.unchanged()}, a.require...)
	commit.Blob = revisionBlob(a.next)
	if _, err := b.ledger.Commit(ctx, commit); err != nil {
		return ledger.Revision{}, err
	}
	b.logger.Info("policy revision activated", "digest", digest.String(), "sequence", body.Sequence, "source", a.source, "rollback", a.rollback)
	activated, _, err := b.ledger.Revision(ctx, digest.String())
	return activated, err
}

// revisionBlob is a bundle's archive as it lies beside the ledger.
func revisionBlob(c candidate) *ledger.Blob {
	digest := event.Digest(c.revision.Digest())
	return &ledger.Blob{Key: ledger.RevisionBlob(digest), Data: c.revision.Archive(), Digest: digest}
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
	before, key, err := b.previous(ctx, active)
	if err != nil || before == nil {
		return err
	}
	source := fmt.Sprintf(breaker+"revision %d kept running into its time limit", active.sequence)
	_, err = b.activate(ctx, b.now(), activation{next: *before, source: source, rollback: true, key: key})
	return err
}

// previous loads the newest revision that is older than the active one, nil if there is none, with every check that a
// person's rollback makes: also its signature has to count now.
func (b *Broker) previous(ctx context.Context, active *active) (*candidate, string, error) {
	rows, err := b.ledger.Revisions(ctx, maxPage)
	if err != nil {
		return nil, "", err
	}
	var newest *ledger.Revision
	for _, r := range rows {
		if r.Digest != active.digest && r.Sequence < active.sequence && (newest == nil || r.Sequence > newest.Sequence) {
			newest = &r
		}
	}
	if newest == nil {
		return nil, "", nil
	}
	staged, _, err := b.ledger.Staged(ctx, newest.Digest.String())
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return nil, "", err
	}
	archive, err := b.ledger.Blob(ctx, ledger.RevisionBlob(newest.Digest), newest.Digest)
	if err != nil {
		return nil, "", err
	}
	loaded, key, err := b.checked(ctx, archive, staged.Signature)
	if err != nil {
		return nil, "", fmt.Errorf("revision %d can't be put back: %w", newest.Sequence, err)
	}
	return &loaded, key, nil
}

// stored loads a bundle that lies beside the ledger, with every check.
func (b *Broker) stored(ctx context.Context, digest event.Digest) (candidate, error) {
	archive, err := b.ledger.Blob(ctx, ledger.RevisionBlob(digest), digest)
	if err != nil {
		return candidate{}, err
	}
	return b.load(ctx, archive)
}

// Reload activates a bundle that was read from a directory: for development servers, where the files are the
// administrator. It does nothing when the bundle is the active one.
func (b *Broker) Reload(ctx context.Context, archive []byte, source string) error {
	if b.bundleKeys.required {
		return errors.New("a directory is not taken up where bundles are signed: push it with its signature")
	}
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
	_, _, known := b.ledger.Revision(ctx, event.Digest(loaded.revision.Digest()).String())
	_, err = b.activate(ctx, b.now(), activation{next: loaded, source: source, rollback: known == nil})
	if errors.Is(err, ledger.ErrPrecondition) {
		return nil // somebody else activated a revision meanwhile: the next reload sees it
	}
	return err
}

// StageFetched keeps a bundle of the configured bundle server, if it is signed and passes every check. It is for
// brokers with bundle keys alone: nobody decides on it but the signature. It does nothing when the bundle is known.
func (b *Broker) StageFetched(ctx context.Context, archive, signature []byte, source string) error {
	if !b.bundleKeys.required {
		return errors.New("a bundle server is of use only where bundles are signed: introduce a key with `bulla server bundle-key`")
	}
	digest := event.Digest(policy.ArchiveDigest(archive))
	staged, seq, err := b.ledger.Staged(ctx, digest.String())
	if err == nil && slices.ContainsFunc(b.bundleKeys.live, func(k policy.BundleKey) bool { return k.ID == staged.Key }) {
		return nil
	}
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return err
	}
	loaded, key, err := b.checked(ctx, archive, signature)
	if err != nil {
		return err
	}
	commit := ledgerCommit(event.New(b.now(), "", event.RevisionStaged{
		Digest: digest, Name: loaded.revision.Name(), Source: source, Signature: signature, Key: key,
	}))
	commit.Require = []ledger.Precondition{{RowKey: ledger.RowKey{Kind: ledger.KindStaged, Key: digest.String()}, Seq: seq}}
	commit.Blob = revisionBlob(loaded)
	if _, err := b.ledger.Commit(ctx, commit); err != nil {
		return err
	}
	b.logger.Info("policy revision staged", "digest", digest.String(), "source", source, "key", key)
	return nil
}
