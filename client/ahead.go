package client

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"

	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/session"
)

// errOnlyAhead says that no share is left at the broker; some may be here.
var errOnlyAhead = errors.New("no share is left at the broker")

// shareAhead is a share that waits for a time without the broker.
type shareAhead struct {
	number uint32
	share  envelope.Share
}

// FetchAhead fetches n shares of a gated session ahead of their use, for a time when the broker can't be reached. It
// works only where the policy allows that (Offline of them in all), and the record shows it. The broker counts them as
// uses now. Until they are used they lie in this process: no revocation calls them back, and that they are not used
// after the end of the session is up to this program. Where the broker can be reached, Use asks it first.
func (s *Secret) FetchAhead(ctx context.Context, n uint32) error {
	for range n {
		if err := s.fetchAhead(ctx); err != nil {
			return fmt.Errorf("fetch uses of %s ahead: %w", s.Name, err)
		}
	}
	return nil
}

func (s *Secret) fetchAhead(ctx context.Context) error {
	s.mu.Lock()
	more := s.fetched < s.Offline
	if more {
		s.fetched++
	}
	s.mu.Unlock()
	if !more {
		return fmt.Errorf("%w: the policy allows %d of this session", ErrDenied, s.Offline)
	}
	ask, err := s.takeShare(true)
	if err == nil {
		reply, failed := s.getShare(ctx, ask)
		if failed == nil {
			return s.keepAhead(ask.number, reply.GetShare())
		}
		err = failed
	}
	s.mu.Lock()
	s.fetched--
	s.mu.Unlock()
	switch {
	case errors.Is(err, errOnlyAhead):
		return fmt.Errorf("%w: session %s has no uses left", ErrEnded, s.SessionID)
	case errors.Is(err, ErrDenied): // it was not given out: it may be, for a use now
		s.giveBack(s.newAsk(ask.number, false))
	case ask.req != nil && !errors.Is(err, ErrEnded):
		s.giveBack(ask)
	}
	return err
}

func (s *Secret) keepAhead(number uint32, share []byte) error {
	defer clear(share)
	if len(share) != envelope.ShareSize {
		return fmt.Errorf("%w: the broker's share has %d bytes", ErrVerification, len(share))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("%w: it was closed", ErrEnded)
	}
	s.ahead = append(s.ahead, shareAhead{number, envelope.Share(share)})
	return nil
}

// OfflineUses returns how many uses were made of shares that had been fetched ahead.
func (s *Secret) OfflineUses() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.offline
}

// openAhead opens the body with a share that is here, when no other is left. Where the broker can be reached, it has
// the last word.
func (s *Secret) openAhead(ctx context.Context) (secret.Bytes, error) {
	state, _, err := s.State(ctx)
	switch {
	case err == nil && session.State(state).Ended() && session.State(state) != session.Exhausted:
		return secret.Bytes{}, fmt.Errorf("%w: the session is %s", ErrEnded, state)
	case err != nil && !away(ctx, err):
		return secret.Bytes{}, err
	}
	if plain, ok := s.openOffline(); ok {
		return plain, nil
	}
	return secret.Bytes{}, fmt.Errorf("%w: session %s has no uses left", ErrEnded, s.SessionID)
}

// away says whether the broker could not be reached, or can't serve: it said neither yes nor no. A limit that was met,
// an identity that is not taken any more, and a caller of this program who gave up are no such thing.
func away(ctx context.Context, err error) bool {
	var r *Refusal
	if errors.As(err, &r) && r.Code != codes.Unavailable && r.Code != codes.DeadlineExceeded {
		return false
	}
	return errors.Is(err, ErrUnavailable) && !errors.Is(ctx.Err(), context.Canceled)
}

// openOffline opens the body with a share that was fetched ahead, if there is one and the session has not expired.
func (s *Secret) openOffline() (secret.Bytes, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.usable() != nil || len(s.ahead) == 0 {
		return secret.Bytes{}, false
	}
	last := len(s.ahead) - 1
	a := s.ahead[last]
	s.ahead[last] = shareAhead{}
	s.ahead = s.ahead[:last]
	plain, err := s.ungate(a.number, a.share)
	clear(a.share[:])
	if err != nil {
		return secret.Bytes{}, false
	}
	s.offline++
	return plain, true
}
