package replay

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/bulla-project/bulla/policy"
)

// Digest is the SHA-256 of a revision's archive, or of a decision.
type Digest = [32]byte

// Recorded is one decision as the record has it.
type Recorded struct {
	Index int64     // in the log
	Event string    // id
	Time  time.Time // of the event
	Kind  string    // type of the event, such as session.issued

	// What the event says beside the decision, which has to agree with it. What is empty is not compared.
	Principal string
	Secret    string
	Session   string
	RequestID string
	Action    string
	Effect    policy.Effect
	// Wants are the effects that a decision of an event of this kind can have.
	Wants []policy.Effect

	Revision Digest
	Sequence uint64
	Signals  []byte // canonical, as policy.Signals.Encode wrote them
	Result   []byte // canonical, as policy.Decision.Canonical wrote it
	// Sum stands for Result where only its SHA-256 was kept.
	Sum Digest

	// Wrong says what contradicts the rest of the record, "" if nothing does.
	Wrong string
	// Gap says why there is nothing to judge, "" if there is. Count is how many decisions it stands for.
	Gap   string
	Count uint64
}

// Target is what the decision is about, for people: the secret, or else the action.
func (r Recorded) Target() string {
	if r.Secret != "" {
		return r.Secret
	}
	return r.Action
}

// ErrNoRevision says that the archive of a revision is not to be had.
var ErrNoRevision = errors.New("the revision is missing")

// Archives finds the archive of a revision, or says ErrNoRevision. What it gives is not believed.
type Archives func(ctx context.Context, digest Digest) ([]byte, error)

// Library opens revisions once. It is safe for concurrent use.
type Library struct {
	find Archives

	mu   sync.Mutex // guards open
	open map[Digest]*volume
}

// volume is a revision, or why there is none.
type volume struct {
	once sync.Once
	rev  *policy.Revision
	err  error
}

// NewLibrary returns one that knows where to look.
func NewLibrary(find Archives) *Library { return &Library{find: find, open: map[Digest]*volume{}} }

// Revision returns the revision whose archive has the digest.
func (l *Library) Revision(ctx context.Context, digest Digest) (*policy.Revision, error) {
	l.mu.Lock()
	v := l.open[digest]
	if v == nil {
		v = new(volume)
		l.open[digest] = v
	}
	l.mu.Unlock()
	v.once.Do(func() { v.rev, v.err = l.load(ctx, digest) })
	return v.rev, v.err
}

func (l *Library) load(ctx context.Context, digest Digest) (*policy.Revision, error) {
	archive, err := l.find(ctx, digest)
	if err != nil {
		return nil, err
	}
	if got := policy.ArchiveDigest(archive); got != digest {
		return nil, fmt.Errorf("%w: its archive has the digest %x, and %x was recorded", ErrNoRevision, got, digest)
	}
	rev, err := policy.Reopen(ctx, archive)
	if err != nil {
		return nil, fmt.Errorf("revision %s does not compile under %s: %w", hex.EncodeToString(digest[:6]), policy.EngineVersion(), err)
	}
	return rev, nil
}
