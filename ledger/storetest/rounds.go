package storetest

import (
	"crypto/sha256"
	"errors"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
)

// IssueSplit is a delivery with custodians, and shares that lie beside it.
func IssueSplit(now time.Time, ttl time.Duration, source bool) ledger.Commit {
	c := Issue(now, ttl, 0)
	b := c.Event.Body.(event.SessionIssued)
	shares := append([]byte("sealed shares "), b.Session[:]...)
	b.Custody = &event.Custody{
		Split:  event.Split{Manifest: event.Digest{1}, Threshold: 2, Holders: []string{"spiffe://dev.bulla.test/a", "spiffe://dev.bulla.test/b"}},
		Source: source, Shares: sha256.Sum256(shares), Expires: event.NewTime(now.Add(ttl)),
	}
	c.Event.Body = b
	c.Blob = &ledger.Blob{Key: ledger.RoundBlob(b.Session), Data: shares, Digest: b.Custody.Shares}
	return c
}

// roundBlobs: shares go with the event that ends their round, be it in the batch that brought them; a manifest alone
// stays, and so does everything of an event that is refused.
func (s *suite) roundBlobs() {
	s.done(Foundation()...)
	closed := func(c ledger.Commit, bad ...string) ledger.Commit {
		return Plain(Principal, event.RoundClosed{Round: SessionOf(c), Bad: bad})
	}
	first, second := IssueSplit(Start, time.Hour, false), IssueSplit(Start, time.Hour, false)
	live, source := IssueSplit(Start, time.Hour, false), IssueSplit(Start, time.Hour, true)
	s.done(first, live, source)
	s.beside(first, true)
	s.done(second, closed(second), closed(first), closed(source))
	s.want(closed(live, "spiffe://dev.bulla.test/a"), ledger.ErrTransition) // who gave no share
	s.beside(first, false)
	s.beside(second, false)
	s.beside(source, true)
	s.beside(live, true)
}

// beside says whether what came with a commit has to be in the store.
func (s *suite) beside(c ledger.Commit, want bool) {
	s.Helper()
	s.view(func(v ledger.Snapshot) {
		data, err := v.Blob(s.Context(), c.Blob.Key)
		switch {
		case want && (err != nil || string(data) != string(c.Blob.Data)):
			s.Errorf("blob %s: %q, %v", c.Blob.Key, data, err)
		case !want && !errors.Is(err, ledger.ErrNotFound):
			s.Errorf("blob %s is there still: %v", c.Blob.Key, err)
		}
	})
}
