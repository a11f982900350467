package ledger

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"sync"

	"github.com/bulla-project/bulla/keyring"
	"github.com/bulla-project/bulla/ledger/event"
)

const (
	bodyLabel = "bulla-ledger-body/v1"
	headSize  = 2*len(event.Salt{}) + len(event.Digest{}) // of a body: the salts and the reply's digest
	// maxSubjects bounds the keys kept in memory, about 1 KiB each.
	maxSubjects = 16384
)

// Entry is an event as the ledger shows it to those who may read it.
type Entry struct {
	Index     int64
	Leaf      event.Leaf
	Event     event.Event
	EventSalt event.Salt
	ReplySalt event.Salt
	Reply     event.Digest // zero: there was none
	Encoding  []byte
}

// bodyAAD binds a sealed body to its event and subject.
func bodyAAD(id event.ID, subject string) []byte {
	out := make([]byte, 0, len(bodyLabel)+1+len(id)+len(subject))
	out = append(out, bodyLabel...)
	out = append(out, 0)
	out = append(out, id[:]...)
	return append(out, subject...)
}

// subjectKey is a subject's key with its wrapped form, as long as the store may not hold that yet.
type subjectKey struct {
	key     *keyring.SubjectKey
	wrapped []byte // nil: it is known to be in the store
}

// subjectKeys keeps the keys of subjects in memory, so that each subject has one, and it is opened once.
type subjectKeys struct {
	sync.Mutex
	m map[string]subjectKey // guarded
}

func newSubjectKeys() subjectKeys { return subjectKeys{m: map[string]subjectKey{}} }

func (s *subjectKeys) get(subject string) (subjectKey, bool) {
	s.Lock()
	defer s.Unlock()
	k, ok := s.m[subject]
	return k, ok
}

// add keeps k unless there is a key already, which it returns instead.
func (s *subjectKeys) add(subject string, k subjectKey) subjectKey {
	s.Lock()
	defer s.Unlock()
	if old, ok := s.m[subject]; ok {
		return old
	}
	if len(s.m) >= maxSubjects {
		for name := range s.m { // in random order, which is as good as any other
			delete(s.m, name)
			if len(s.m) <= maxSubjects*7/8 {
				break
			}
		}
	}
	s.m[subject] = k
	return k
}

// stored notes that the key with this wrapped form is durable.
func (s *subjectKeys) stored(subject string, wrapped []byte) {
	s.Lock()
	defer s.Unlock()
	if k, ok := s.m[subject]; ok && subtle.ConstantTimeCompare(k.wrapped, wrapped) == 1 {
		k.wrapped = nil
		s.m[subject] = k
	}
}

func (s *subjectKeys) forget(subject string) {
	s.Lock()
	defer s.Unlock()
	delete(s.m, subject)
}

func (s *subjectKeys) clear() {
	s.Lock()
	defer s.Unlock()
	clear(s.m)
}

// subject returns the key of a subject: from memory, from the store, or a new one.
func (l *Ledger) subject(ctx context.Context, subject string) (subjectKey, error) {
	if k, ok := l.subjects.get(subject); ok {
		return k, nil
	}
	snap, err := l.store.Snapshot(ctx)
	if err != nil {
		return subjectKey{}, fmt.Errorf("%w: %w: %w", ErrUnavailable, ErrNotApplied, err)
	}
	defer snap.Close()
	wrapped, err := snap.SubjectKey(ctx, subject)
	switch {
	case err == nil:
		key, err := l.keys.OpenSubjectKey(wrapped, subject)
		if err != nil {
			return subjectKey{}, fmt.Errorf("%w: key of subject %q: %w", ErrTampered, subject, err)
		}
		return l.subjects.add(subject, subjectKey{key: key}), nil
	case !errors.Is(err, ErrNotFound):
		return subjectKey{}, fmt.Errorf("%w: %w: %w", ErrUnavailable, ErrNotApplied, err)
	}
	wrapped, key, err := l.keys.NewSubjectKey(subject)
	if err != nil {
		return subjectKey{}, fmt.Errorf("key of subject %q: %w", subject, err)
	}
	return l.subjects.add(subject, subjectKey{key, wrapped}), nil
}

// prepare encodes and seals the event of c, in the goroutine of the caller.
func (l *Ledger) prepare(ctx context.Context, c Commit) (*waiter, error) {
	eventSalt, replySalt := event.NewSalt(), event.NewSalt()
	head := make([]byte, 0, headSize)
	head = append(head, eventSalt[:]...)
	head = append(head, replySalt[:]...)
	head = append(head, c.Reply[:]...)
	plain, err := c.Event.AppendEncoding(head)
	if err != nil {
		return nil, err
	}
	w := &waiter{
		record:    Record{Commit: c, Leaf: event.NewLeaf(plain[headSize:], eventSalt, c.Reply, replySalt), Subject: c.Event.Subject},
		replySalt: replySalt,
		plain:     plain,
		done:      make(chan struct{}),
	}
	return w, l.seal(ctx, w)
}

// seal makes the body of w under the key that its subject has now.
func (l *Ledger) seal(ctx context.Context, w *waiter) error {
	subject, aad := w.record.Subject, bodyAAD(w.record.Event.ID, w.record.Subject)
	if subject == "" {
		body, err := l.keys.Seal(keyring.PurposeEventBody, w.plain, aad)
		w.record.Body = body
		return err
	}
	k, err := l.subject(ctx, subject)
	if err != nil {
		return err
	}
	w.record.Body, w.record.NewSubject = k.key.Seal(w.plain, aad), k.wrapped
	return nil
}

// opener opens the events of one snapshot.
type opener struct {
	keys   *keyring.Ring
	snap   Snapshot
	opened map[string]*keyring.SubjectKey
}

func newOpener(keys *keyring.Ring, snap Snapshot) *opener {
	return &opener{keys, snap, map[string]*keyring.SubjectKey{}}
}

func (o *opener) subject(ctx context.Context, subject string) (*keyring.SubjectKey, error) {
	if k, ok := o.opened[subject]; ok {
		return k, nil
	}
	wrapped, err := o.snap.SubjectKey(ctx, subject)
	if errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("%w: subject %q has no key", ErrTampered, subject)
	}
	if err != nil {
		return nil, err
	}
	k, err := o.keys.OpenSubjectKey(wrapped, subject)
	if err != nil {
		return nil, fmt.Errorf("%w: key of subject %q: %w", ErrTampered, subject, err)
	}
	if len(o.opened) >= maxSubjects {
		clear(o.opened)
	}
	o.opened[subject] = k
	return k, nil
}

// open decrypts s and checks it against its leaf, id and subject. What is wrong with the stored bytes wraps
// ErrTampered and names the index; other errors are the store's.
func (o *opener) open(ctx context.Context, s Stored) (Entry, error) {
	plain, err := o.decrypt(ctx, s)
	if err != nil {
		return Entry{}, fmt.Errorf("event %d: %w", s.Index, err)
	}
	e := Entry{Index: s.Index, Leaf: s.Leaf, Encoding: plain[headSize:]}
	copy(e.EventSalt[:], plain)
	copy(e.ReplySalt[:], plain[len(e.EventSalt):])
	copy(e.Reply[:], plain[headSize-len(e.Reply):])
	if event.NewLeaf(e.Encoding, e.EventSalt, e.Reply, e.ReplySalt) != s.Leaf {
		return Entry{}, fmt.Errorf("%w: event %d is not what its leaf commits to", ErrTampered, s.Index)
	}
	if e.Event, err = event.Decode(e.Encoding); err != nil {
		return Entry{}, fmt.Errorf("%w: event %d: %w", ErrTampered, s.Index, err)
	}
	if e.Event.ID != s.ID || e.Event.Subject != s.Subject {
		return Entry{}, fmt.Errorf("%w: event %d lies under another id or subject than its own", ErrTampered, s.Index)
	}
	return e, nil
}

func (o *opener) decrypt(ctx context.Context, s Stored) (plain []byte, err error) {
	aad := bodyAAD(s.ID, s.Subject)
	if s.Subject == "" {
		plain, err = o.keys.Open(keyring.PurposeEventBody, s.Body, aad)
	} else {
		var k *keyring.SubjectKey
		if k, err = o.subject(ctx, s.Subject); err != nil {
			return nil, err
		}
		plain, err = k.Open(s.Body, aad)
	}
	if err != nil || len(plain) < headSize {
		return nil, fmt.Errorf("%w: the body does not open", ErrTampered)
	}
	return plain, nil
}
