package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/secret"
)

// useTimeout is how long Use may take to get a share.
const useTimeout = 10 * time.Second

// shareAsk is a request for one share. The same one may be sent again: the broker counts it once.
type shareAsk struct {
	number uint32
	req    *sent
	shown  *shown
	again  bool // it was sent before, and the answer did not come
	ahead  bool // for a time without the broker
}

// UseContext is Use with a context. At grade gated it gets one share from the broker, which asks the policy again and
// counts the use before the share moves; it attests the device where the policy wants that. The plaintext exists
// while f runs, in memory of its own, and is wiped afterwards. A use whose answer got lost is asked for again by the
// next call, and burns nothing. When the broker can't be reached, a share is taken that FetchAhead fetched. Calls may
// run side by side.
func (s *Secret) UseContext(ctx context.Context, f func(plaintext []byte) error) error {
	if s.Grade != string(envelope.GradeGated) {
		return s.Use(f)
	}
	plain, err := s.openOnce(ctx)
	if err != nil {
		return fmt.Errorf("use %s: %w", s.Name, err)
	}
	defer plain.Zero()
	return f(plain.Expose())
}

// openOnce gets a share and opens the body with it.
func (s *Secret) openOnce(ctx context.Context) (secret.Bytes, error) {
	for {
		ask, err := s.takeShare(false)
		if errors.Is(err, errOnlyAhead) {
			return s.openAhead(ctx)
		}
		if err != nil {
			return secret.Bytes{}, err
		}
		reply, err := s.getShare(ctx, ask)
		switch {
		case err == nil:
			return s.openWith(ask.number, reply)
		case away(ctx, err):
			s.giveBack(ask)
			if plain, ok := s.openOffline(); ok {
				return plain, nil
			}
			return secret.Bytes{}, err
		case !errors.Is(err, ErrEnded):
			s.giveBack(ask)
			return secret.Bytes{}, err
		case !ask.again:
			return secret.Bytes{}, err
		}
		// The broker keeps an answer for some minutes only: that share is gone. The next one will say how the session stands.
	}
}

// takeShare picks the share to ask for: one whose answer did not come, or the next. A question that was sent is asked
// again as it was, so one for a use now is never made one for a share ahead. With errOnlyAhead all were asked for.
func (s *Secret) takeShare(ahead bool) (shareAsk, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return shareAsk{}, err
	}
	for i := len(s.pending) - 1; i >= 0; i-- {
		if ask := s.pending[i]; ask.ahead || !ahead {
			s.pending = slices.Delete(s.pending, i, i+1)
			s.left--
			return ask, nil
		}
	}
	if int(s.left) == len(s.pending) {
		return shareAsk{}, errOnlyAhead
	}
	s.left--
	s.taken++
	return s.newAsk(s.taken, ahead), nil
}

func (s *Secret) newAsk(number uint32, ahead bool) shareAsk {
	return shareAsk{number: number, req: &sent{id: newRequestID(s.client)}, shown: new(shown), ahead: ahead}
}

// giveBack keeps a share whose answer did not come for the next use.
func (s *Secret) giveBack(ask shareAsk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ask.again = true
	s.pending = append(s.pending, ask)
	s.left++
}

// getShare asks the broker, and once more with what the policy wants besides.
func (s *Secret) getShare(ctx context.Context, ask shareAsk) (*bullav1.UseReply, error) {
	return persuade(ctx, s, ask.req, ask.shown, ask.again, func() (*bullav1.UseReply, error) {
		in := &bullav1.UseRequest{SessionId: s.SessionID, Number: ask.number, Ahead: ask.ahead, Factors: ask.shown.factors}
		return call(ctx, s.client, bullav1.Broker_Use_FullMethodName, ask.req, fixed(in), s.client.broker.Use)
	})
}

// openWith opens the body, unless Close was quicker.
func (s *Secret) openWith(number uint32, reply *bullav1.UseReply) (secret.Bytes, error) {
	defer clear(reply.Share)
	if len(reply.GetShare()) != envelope.ShareSize {
		return secret.Bytes{}, fmt.Errorf("%w: the broker's share has %d bytes", ErrVerification, len(reply.GetShare()))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return secret.Bytes{}, fmt.Errorf("%w: it was closed", ErrEnded)
	}
	plain, err := s.ungate(number, envelope.Share(reply.GetShare()))
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("%w: %w", ErrVerification, err)
	}
	return plain, nil
}
