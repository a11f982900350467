// Package ledger is the choke point of the broker: nothing leaves and nothing changes unless an event that
// says so has been committed here, durably, together with the state that it changes.
//
// A [Ledger] stands above a [Store]. It encodes each event, makes its leaf for the Merkle log, seals the
// body under the key of its subject, and gathers what waits into batches (group commit), each of which the
// store applies in one transaction. [Ledger.Commit] returns when the event is durable, or says why nothing
// happened, or that it does not know. The commit carries what the decision was based on (rows, counters, the
// request key); where that moved on, the commit refuses. It can only refuse, never permit.
//
// The state are projections: rows that [Project], a pure function, makes from events alone. [Check] makes
// them again from the events of a snapshot and names every difference, so that an edited row shows.
//
// A body is sealed as eventSalt ‖ replySalt ‖ reply digest ‖ encoding, all that opens the leaf's commitments,
// with the event's id and the name of the key as associated data. What one principal did lies under keys of its own, a
// new one every so often; all else lies under the ledger's. Where a subject's key is destroyed, which an event says, its
// events can't be read any more while the log still proves them.
//
// What it does not do: it decides nothing, it builds no tree (package audit integrates the leaves), it does
// not seal secret values (package keyring) and does not check receipts or signatures. Rows and ciphertexts
// are not authentic by themselves: blobs are checked against the digest in their event, rows by Check.
// One process at a time works on an embedded store.
package ledger

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/bulla-project/bulla/keyring"
	"github.com/bulla-project/bulla/ledger/event"
)

// Config says what a ledger stands on. Zero values of the numbers mean their defaults.
type Config struct {
	Store Store         // owned by the Ledger from Open on, which closes it
	Keys  *keyring.Ring // wraps the subjects' keys
	// MaxDelay is how long a batch may wait for more commits when many are under way (default 5 ms). A few
	// callers are never delayed.
	MaxDelay time.Duration
	MaxBatch int // commits in a batch (default 256)
	// MaxQueue is how many commits may wait; more are refused at once (default 4096).
	MaxQueue int
	Log      *slog.Logger // nil: silent
}

// Ledger commits events and reads what they made. It is safe for concurrent use.
type Ledger struct {
	store Store
	keys  *keyring.Ring
	log   *slog.Logger

	subjects subjectKeys
	cache    rowCache
	queue    queue
	recent   recent

	stop context.CancelFunc
	done chan struct{} // closed when the committer has ended

	state struct {
		sync.Mutex
		size  int64         // guarded: events known to be durable
		grown chan struct{} // guarded: closed and replaced when size grows
		sick  error         // guarded: why the store can't be used; nil: it can
	}
}

// Expect says that n more calls are under way that may commit; fewer, if n is negative. With many of them a batch waits for
// others a little, so that they share what a transaction costs.
func (l *Ledger) Expect(n int64) { l.queue.expected.Add(n) }

// Open starts a ledger on cfg.Store. When it fails, the store stays the caller's.
func Open(ctx context.Context, cfg Config) (*Ledger, error) {
	if cfg.Store == nil || cfg.Keys == nil {
		return nil, errors.New("open ledger: a store and a keyring are both needed")
	}
	if cfg.MaxDelay == 0 {
		cfg.MaxDelay = 5 * time.Millisecond
	}
	if cfg.MaxBatch <= 0 {
		cfg.MaxBatch = 256
	}
	if cfg.MaxQueue <= 0 {
		cfg.MaxQueue = 4096
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l := &Ledger{
		store: cfg.Store, keys: cfg.Keys, log: cfg.Log, done: make(chan struct{}),
		subjects: newSubjectKeys(), cache: newRowCache(), queue: newQueue(cfg.MaxDelay, cfg.MaxBatch, cfg.MaxQueue),
	}
	l.state.grown = make(chan struct{})
	if err := l.begin(ctx); err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stop = stop
	go l.commitLoop(run)
	return l, nil
}

// begin reads the size, and the first event: a keyring that does not belong to this ledger shows at once.
func (l *Ledger) begin(ctx context.Context) error {
	snap, err := l.store.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer snap.Close()
	if l.state.size, err = snap.Size(ctx); err != nil || l.state.size == 0 {
		return err
	}
	first, err := snap.Events(ctx, 0, 1)
	if err != nil {
		return err
	}
	if len(first) != 1 {
		return fmt.Errorf("%w: %d events, but none has index 0", ErrTampered, l.state.size)
	}
	if _, err := newOpener(l.keys, snap).open(ctx, first[0]); err != nil {
		return fmt.Errorf("the first event does not open with this keyring: %w", err)
	}
	return nil
}

// Close waits for the commits that wait, then closes the store. New commits are refused.
func (l *Ledger) Close() error {
	l.queue.close()
	<-l.done
	l.stop()
	return l.store.Close()
}

// Health says whether commits are possible; the error says since what they are not. It asks no disk: an
// unhealthy ledger tries by itself to recover.
func (l *Ledger) Health(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.state.Lock()
	defer l.state.Unlock()
	if l.state.sick != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, l.state.sick)
	}
	return nil
}

// Committed returns the number of events that are durable, and a channel that is closed when there are more.
func (l *Ledger) Committed() (size int64, more <-chan struct{}) {
	l.state.Lock()
	defer l.state.Unlock()
	return l.state.size, l.state.grown
}

func (l *Ledger) grow(size int64) {
	l.state.Lock()
	defer l.state.Unlock()
	if size > l.state.size {
		l.state.size = size
		close(l.state.grown)
		l.state.grown = make(chan struct{})
	}
}

// setSick notes why the store can't be used, or (nil) that it can.
func (l *Ledger) setSick(err error) {
	l.state.Lock()
	defer l.state.Unlock()
	l.state.sick = err
}

// Commit makes c durable and returns where its event stands, or an error that wraps one of the sentinels.
// Without ErrUnavailable an error means that nothing took effect; with it, ErrNotApplied says the same.
//
// When ctx ends first, a commit that still waits is withdrawn (ErrNotApplied); one that is under way goes
// on, and the error wraps ErrUnavailable: its outcome is found with Request.
func (l *Ledger) Commit(ctx context.Context, c Commit) (Result, error) {
	if err := c.validate(); err != nil {
		return Result{}, fmt.Errorf("commit: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return Result{}, fmt.Errorf("commit %s: %w: %w: %w", c.Event.Body.EventType(), ErrUnavailable, ErrNotApplied, err)
	}
	w, err := l.prepare(c)
	if err == nil {
		err = l.queue.put(w)
	}
	if err != nil {
		return Result{}, fmt.Errorf("commit %s: %w", c.Event.Body.EventType(), err)
	}
	select {
	case <-w.done:
	case <-ctx.Done():
		if l.queue.withdraw(w) {
			return Result{}, fmt.Errorf("commit %s: %w: %w: %w", c.Event.Body.EventType(), ErrUnavailable, ErrNotApplied, ctx.Err())
		}
		return Result{}, fmt.Errorf("commit %s: %w: its outcome is not known yet: %w", c.Event.Body.EventType(), ErrUnavailable, ctx.Err())
	}
	if w.err != nil {
		return Result{}, fmt.Errorf("commit %s: %w", c.Event.Body.EventType(), w.err)
	}
	return Result{Index: w.index, Leaf: w.record.Leaf, ReplySalt: w.replySalt}, nil
}

// BlobFor returns what has to lie beside the ledger for an event, if anything: its key and its digest.
func BlobFor(b event.Body) (key string, digest event.Digest, ok bool) {
	switch b := b.(type) {
	case event.SecretPut:
		return SecretBlob(b.RecordID), b.CiphertextDigest, true
	case event.RevisionActivated:
		return RevisionBlob(b.Digest), b.Digest, true
	case event.RevisionStaged:
		return RevisionBlob(b.Digest), b.Digest, true
	case event.SessionIssued:
		if b.Custody != nil {
			return RoundBlob(b.Session), b.Custody.Shares, true
		}
	}
	return "", event.Digest{}, false
}

// SecretBlob is the key of the blob that holds a sealed secret value.
func SecretBlob(record event.ID) string { return "secret/" + record.String() }

// RevisionBlob is the key of the blob that holds a policy bundle's archive; digest is the archive's SHA-256.
func RevisionBlob(digest event.Digest) string { return "revision/" + digest.String() }

func (c Commit) validate() error {
	if c.Event.Body == nil {
		return errors.New("the event has no body")
	}
	if c.Event.Time.IsZero() || c.Event.ID.IsZero() {
		return fmt.Errorf("%s: the event has no id or time", c.Event.Body.EventType())
	}
	key, digest, need := BlobFor(c.Event.Body)
	switch {
	case need != (c.Blob != nil):
		return fmt.Errorf("%s: a blob is needed: %t", c.Event.Body.EventType(), need)
	case need && (c.Blob.Key != key || c.Blob.Digest != digest || sha256.Sum256(c.Blob.Data) != digest):
		return fmt.Errorf("%s: the blob is not the one that the event names, %q", c.Event.Body.EventType(), key)
	}
	if r := c.Request; r != nil && (r.Key == "" || r.Expires.IsZero()) {
		return fmt.Errorf("%s: the request has no key or no end", c.Event.Body.EventType())
	}
	for _, k := range c.Counters {
		if k.Key == "" || k.Length <= 0 {
			return fmt.Errorf("%s: counter %q has no key or no length", c.Event.Body.EventType(), k.Key)
		}
	}
	return nil
}
