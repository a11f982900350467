package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/bulla-project/bulla/session"
)

// refreshAt is the part of a session's life after which a Follower gets the next one.
const refreshAt = 2.0 / 3

// maxRetry is the longest pause after refreshes that failed.
const maxRetry = time.Minute

// Follower keeps one secret delivered: in the background it gets a new session before the old one ends, and at once
// when the broker says that it was revoked or that there is a newer version (see Secret.Done). At each call of Current
// it asks the broker besides whether the session still lives. A Secret that was refreshed stays usable until the next
// refresh, or its end. Close ends it all.
type Follower struct {
	client *Client
	name   string
	opts   []GetOption
	stop   context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex // guards what follows
	current  *Secret
	previous *Secret // the one before, refreshed while somebody may have been about to use it
	failure  error
	closed   bool
}

// Follow gets a secret and keeps it delivered until Close, of the Follower or of the Client.
func (c *Client) Follow(ctx context.Context, name string, opts ...GetOption) (*Follower, error) {
	first, err := c.Get(ctx, name, opts...)
	if first == nil {
		return nil, err
	}
	run, stop := context.WithCancel(c.run)
	f := &Follower{client: c, name: name, opts: opts, stop: stop, done: make(chan struct{}), current: first}
	c.wg.Add(1)
	go f.refresh(run)
	return f, nil
}

// Current returns the secret as it is now. A session that was revoked or has ended is noticed here at the
// latest: its plaintext is wiped, and a new delivery is asked for, which the policy decides on afresh. While
// the broker can't be reached, the last secret is returned as long as its session lives.
func (f *Follower) Current(ctx context.Context) (*Secret, error) {
	f.mu.Lock()
	s, failure := f.current, f.failure
	f.mu.Unlock()
	if s == nil {
		return f.replace(ctx, nil, failure)
	}
	state, reason, err := s.State(ctx)
	switch {
	case err == nil && !session.State(state).Ended():
		return s, nil
	case err == nil:
		return f.replace(ctx, s, fmt.Errorf("%w: session %s is %s: %s", ErrEnded, s.SessionID, state, reason))
	case errors.Is(err, ErrUnavailable) && f.client.cfg.Now().Before(s.Expires):
		return s, nil
	default:
		return f.replace(ctx, s, err)
	}
}

// replace wipes old and gets a new session; why says what was wrong with old.
func (f *Follower) replace(ctx context.Context, old *Secret, why error) (*Secret, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, fmt.Errorf("follow %s: %w: it was closed", f.name, ErrEnded)
	}
	if f.current != old && f.current != nil {
		return f.current, nil // somebody else was quicker
	}
	if old != nil {
		old.Close()
	}
	next, err := f.client.Get(ctx, f.name, f.opts...)
	if next == nil {
		f.current, f.failure = nil, err
		return nil, errors.Join(err, why)
	}
	f.current, f.failure = next, nil
	return next, nil
}

// refresh gets the next session when most of the current one's life is over. After a failure it asks less and
// less often: a denial is an event in the ledger, and counts against the caller.
func (f *Follower) refresh(ctx context.Context) {
	defer f.client.wg.Done()
	defer close(f.done)
	var failed *Secret // the one that could not be refreshed: its rotation is no news
	for retry := time.Second; ; {
		f.mu.Lock()
		s := f.current
		f.mu.Unlock()
		wait := retry
		var ended, rotated <-chan struct{}
		if s != nil {
			wait = max(time.Duration(float64(s.Expires.Sub(f.client.cfg.Now()))*refreshAt), retry)
			if ended = s.Done(); s != failed {
				rotated = s.Rotated()
			}
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-ended:
			t.Stop()
			if _, err := f.replace(ctx, s, s.Cause()); err != nil {
				f.client.cfg.Log.Warn("a secret that ended could not be had again", "secret", f.name, "error", err)
			}
			continue
		case <-rotated:
			t.Stop()
		case <-t.C:
		}
		next, err := f.client.Get(ctx, f.name, f.opts...)
		if next == nil {
			retry, failed = min(2*retry, maxRetry), s
			f.client.cfg.Log.Warn("a secret could not be refreshed", "secret", f.name, "error", err)
			continue
		}
		retry = time.Second
		f.mu.Lock()
		if f.previous != nil {
			f.previous.Close()
		}
		f.previous, f.current, f.failure = f.current, next, nil
		f.mu.Unlock()
	}
}

// Close ends the background work and wipes the secret.
func (f *Follower) Close() {
	f.stop()
	<-f.done
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, s := range []*Secret{f.current, f.previous} {
		if s != nil {
			s.Close()
		}
	}
	f.current, f.previous = nil, nil
}
