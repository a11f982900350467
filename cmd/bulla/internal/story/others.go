package story

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/broker/devserver"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// proxied shows a key that never leaves the broker.
func (t *teller) proxied(ctx context.Context) (string, error) {
	_, err := bullav1.NewSecretsClient(t.operator.Conn()).GenerateSecret(ctx, &bullav1.GenerateSecretRequest{
		Name: proxiedSecret, Class: "standard", Type: "ed25519", RequestId: event.NewID(time.Now()).String(),
	})
	if err != nil {
		return "", fmt.Errorf("generate %s: %w", proxiedSecret, client.FromStatus(err))
	}
	s, err := t.bare.Get(ctx, proxiedSecret, client.WithUses(2))
	if err != nil {
		return "", err
	}
	defer s.Close()
	if s.Grade != "proxied" || s.UsesEnforcedBy != "broker" {
		return "", fmt.Errorf("the session is of grade %s, its uses are counted by the %s", s.Grade, s.UsesEnforcedBy)
	}
	message := random()
	signature, err := s.Sign(ctx, message)
	if err != nil {
		return "", err
	}
	signature[0] ^= 1
	if err := s.Verify(ctx, message, signature); !errors.Is(err, client.ErrNotAuthentic) {
		return "", fmt.Errorf("a signature with one bit flipped: %w", errors.Join(errors.New("want that it is not authentic"), err))
	}
	if _, err := s.Sign(ctx, message); !errors.Is(err, client.ErrEnded) {
		return "", errors.New("a third operation, of two, was done")
	}
	return fmt.Sprintf("the broker makes %s, an Ed25519 key; workload gets its public half, has one message signed and one forgery found out, and a third operation refused",
		proxiedSecret), nil
}

// split shows a secret that takes two of three custodians, one of whom says no.
func (t *teller) split(ctx context.Context) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var custodians [3]*client.Client
	for i := range custodians {
		var err error
		if custodians[i], err = t.connect(ctx, t.server.Client(fmt.Sprintf("custodian-%d", i+1))); err != nil {
			return "", err
		}
		if _, err := refusal(custodians[i].Get(ctx, splitSecret)); err != nil {
			return "", fmt.Errorf("custodian-%d asks for %s: %w", i+1, splitSecret, err)
		}
	}
	type answer struct {
		s   *client.Secret
		err error
	}
	got := make(chan answer, 1)
	var asking sync.WaitGroup
	asking.Go(func() {
		s, err := t.bare.Get(ctx, splitSecret)
		got <- answer{s, err}
	})
	defer asking.Wait()
	for i, c := range custodians {
		id, err := waiting(ctx, c)
		if err != nil {
			cancel()
			return "", fmt.Errorf("custodian-%d: %w", i+1, err)
		}
		if len(got) > 0 {
			return "", errors.New("it was delivered below the threshold")
		}
		if i == 0 {
			_, err = c.Reject(ctx, id, "the demo wants a no as well")
		} else {
			_, err = c.Approve(ctx, id, nil)
		}
		if err != nil {
			cancel()
			return "", fmt.Errorf("custodian-%d answers: %w", i+1, err)
		}
	}
	a := <-got
	if a.err != nil {
		return "", a.err
	}
	defer a.s.Close()
	if err := t.same(a.s); err != nil {
		return "", err
	}
	return fmt.Sprintf("workload asks for %s, whose key is shared among three custodians: custodian-1 says no, custodian-2 and custodian-3 check the request and re-seal their shares to it; two are enough, and none of them could read it",
		splitSecret), nil
}

// waiting returns the round that waits for a custodian, as soon as there is one.
func waiting(ctx context.Context, c *client.Client) (string, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		rounds, err := c.Rounds(ctx)
		if err != nil {
			return "", err
		}
		for _, r := range rounds {
			if r.Secret == splitSecret && r.Answered == "" && r.Requester == devserver.ID("workload") {
				return r.ID, nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// pushed shows a revocation that reaches the client by itself, and that the client confirms.
func (t *teller) pushed(ctx context.Context) (string, error) {
	s, err := t.bare.Get(ctx, standardSecret)
	if err != nil {
		return "", err
	}
	defer s.Close()
	done := s.Done()
	begin := time.Now()
	sessions := bullav1.NewSessionsClient(t.security.Conn())
	if _, err := sessions.RevokeSession(ctx, &bullav1.RevokeSessionRequest{Id: s.SessionID, Reason: "the demo tells the client"}); err != nil {
		return "", client.FromStatus(err)
	}
	select {
	case <-done:
	case <-ctx.Done():
		return "", errors.New("the client was not told")
	}
	told := time.Since(begin)
	if err := s.Use(func([]byte) error { return nil }); !errors.Is(err, client.ErrEnded) || s.Cause() == nil {
		return "", errors.New("the plaintext was not wiped")
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		shown, err := sessions.GetSession(ctx, &bullav1.GetSessionRequest{Id: s.SessionID})
		if err != nil {
			return "", client.FromStatus(err)
		}
		if shown.GetState() == string(session.Revoked) && shown.GetStanding() == "confirmed" {
			return fmt.Sprintf("security revokes a session that is in use; %d ms later workload has wiped the plaintext without having asked, and the broker has its word for that",
				told.Milliseconds()), nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", fmt.Errorf("the session is %s, and its client's confirmation is %q", shown.GetState(), shown.GetStanding())
		}
	}
}
