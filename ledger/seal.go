package ledger

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/bulla-project/bulla/keyring"
	"github.com/bulla-project/bulla/ledger/event"
)

const (
	bodyLabel = "bulla-ledger-body/v1"
	headSize  = 2*len(event.Salt{}) + len(event.Digest{}) // of a body: the salts and the reply's digest
	// maxSubjects bounds the keys kept in memory, about 1 KiB each.
	maxSubjects = 16384

	// What lies under one key is erased by one event, and that has to fit into it. Where the older part of what a
	// subject did is to go and the newer one to stay, it has to lie under another key.
	maxUnderKey = 1000
	maxKeyAge   = 24 * time.Hour
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
	// Erased is the index of the event that erased this one: of it nothing but Index, Leaf and the id is left. 0: it was not.
	Erased int64
}

// bodyAAD binds a sealed body to its event and subject.
func bodyAAD(id event.ID, subject string) []byte {
	out := make([]byte, 0, len(bodyLabel)+1+len(id)+len(subject))
	out = append(out, bodyLabel...)
	out = append(out, 0)
	out = append(out, id[:]...)
	return append(out, subject...)
}

// subjectKey is the key that a subject's events are sealed under at present.
type subjectKey struct {
	name    string // subject#id
	key     *keyring.SubjectKey
	wrapped []byte // nil: it is known to be in the store
	born    time.Time
	count   int // bodies that it sealed
}

// spent reports whether nothing more is sealed under the key.
func (k subjectKey) spent(now time.Time) bool {
	return k.count >= maxUnderKey || now.Sub(k.born) >= maxKeyAge
}

// subjectKeys keeps those keys in memory. None is taken up again after it was dropped: the subject gets a new one.
type subjectKeys struct {
	sync.Mutex
	m map[string]subjectKey // guarded; by subject
}

func newSubjectKeys() subjectKeys { return subjectKeys{m: map[string]subjectKey{}} }

// get counts one more body under a subject's key, unless that is spent.
func (s *subjectKeys) get(subject string, now time.Time) (subjectKey, bool) {
	s.Lock()
	defer s.Unlock()
	k, ok := s.m[subject]
	if !ok || k.spent(now) {
		return subjectKey{}, false
	}
	k.count++
	s.m[subject] = k
	return k, true
}

// add makes k the key of its subject. Callers that come together may each make one, and all are good.
func (s *subjectKeys) add(subject string, k subjectKey) {
	s.Lock()
	defer s.Unlock()
	if len(s.m) >= maxSubjects {
		for name := range s.m { // in random order, which is as good as any other
			delete(s.m, name)
			if len(s.m) <= maxSubjects*7/8 {
				break
			}
		}
	}
	s.m[subject] = k
}

// stored notes that the key with this name is durable.
func (s *subjectKeys) stored(name string) {
	s.Lock()
	defer s.Unlock()
	if k, ok := s.m[event.SubjectOf(name)]; ok && k.name == name {
		k.wrapped = nil
		s.m[event.SubjectOf(name)] = k
	}
}

// forget drops the key with this name.
func (s *subjectKeys) forget(name string) {
	s.Lock()
	defer s.Unlock()
	if s.m[event.SubjectOf(name)].name == name {
		delete(s.m, event.SubjectOf(name))
	}
}

// inUse reports whether more events may be sealed under the key with this name.
func (s *subjectKeys) inUse(name string) bool {
	s.Lock()
	defer s.Unlock()
	k := s.m[event.SubjectOf(name)]
	return k.name == name && !k.spent(time.Now())
}

// renew gives the subject a new key for what comes next.
func (s *subjectKeys) renew(subject string) {
	s.Lock()
	defer s.Unlock()
	delete(s.m, subject)
}

func (s *subjectKeys) clear() {
	s.Lock()
	defer s.Unlock()
	clear(s.m)
}

// subject returns the key that an event of subject is sealed under now.
func (l *Ledger) subject(subject string) (subjectKey, error) {
	now := time.Now()
	if k, ok := l.subjects.get(subject, now); ok {
		return k, nil
	}
	name := subject + "#" + event.NewRequestID(now).String()
	wrapped, key, err := l.keys.NewSubjectKey(name)
	if err != nil {
		return subjectKey{}, fmt.Errorf("key of subject %q: %w", subject, err)
	}
	k := subjectKey{name: name, key: key, wrapped: wrapped, born: now, count: 1}
	l.subjects.add(subject, k)
	return k, nil
}

// prepare encodes and seals the event of c, in the goroutine of the caller.
func (l *Ledger) prepare(c Commit) (*waiter, error) {
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
		record:    Record{Commit: c, Leaf: event.NewLeaf(plain[headSize:], eventSalt, c.Reply, replySalt)},
		replySalt: replySalt,
		plain:     plain,
		done:      make(chan struct{}),
	}
	return w, l.seal(w)
}

// seal makes the body of w under the key that its subject has now, or under the ledger's own where the event has to stay.
func (l *Ledger) seal(w *waiter) error {
	subject, id := w.record.Event.Subject, w.record.Event.ID
	if subject == "" || !event.Erasable(w.record.Event.Body) {
		body, err := l.keys.Seal(keyring.PurposeEventBody, w.plain, bodyAAD(id, ""))
		w.record.Body = body
		return err
	}
	k, err := l.subject(subject)
	if err != nil {
		return err
	}
	w.record.Subject, w.record.NewSubject = k.name, k.wrapped
	w.record.Body = k.key.Seal(w.plain, bodyAAD(id, k.name))
	return nil
}

// opener opens the events of one snapshot.
type opener struct {
	keys   *keyring.Ring
	snap   Snapshot
	opened map[string]*keyring.SubjectKey

	erasures map[string]*erased // by the name of the key
}

func newOpener(keys *keyring.Ring, snap Snapshot) *opener {
	return &opener{keys, snap, map[string]*keyring.SubjectKey{}, map[string]*erased{}}
}

func (o *opener) subject(ctx context.Context, subject string) (*keyring.SubjectKey, error) {
	if k, ok := o.opened[subject]; ok {
		return k, nil
	}
	wrapped, err := o.snap.SubjectKey(ctx, subject)
	if err != nil { // ErrNotFound: there is none
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
// ErrTampered and names the index; other errors are the store's. Of an event that was erased it returns what is left.
func (o *opener) open(ctx context.Context, s Stored) (Entry, error) {
	plain, err := o.decrypt(ctx, s)
	if errors.Is(err, ErrNotFound) {
		var by *erased
		if by, err = o.erasure(ctx, s); err == nil {
			return Entry{Index: s.Index, Leaf: s.Leaf, Event: event.Event{ID: s.ID}, Erased: by.index}, nil
		}
	}
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
	if e.Event.ID != s.ID || e.Event.Subject != event.SubjectOf(s.Subject) && (s.Subject != "" || event.Erasable(e.Event.Body)) {
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
