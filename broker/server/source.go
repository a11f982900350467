package server

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/policy/remote"
)

const defaultPoll = time.Minute

// bundleSource makes what fetches bundles, nil where no server is configured.
func bundleSource(c config.BundleServer) (*remote.Source, error) {
	if c.URL == "" {
		return nil, nil
	}
	s, err := remote.New(remote.Config{URL: c.URL, CAFile: c.CAFile, BearerFile: c.BearerTokenFile})
	if err != nil {
		return nil, fmt.Errorf("%w: policy.bundle_server: %w", config.ErrInvalid, err)
	}
	return s, nil
}

// fetchPolicy stages what the bundle server has, each time that it has something else, until ctx ends. What it has is
// never activated by that. A server that is away, or has something that is refused, is told once.
func (s *Server) fetchPolicy(ctx context.Context) {
	if s.bundles == nil {
		return
	}
	every := s.bundleServer.Poll
	if every == 0 {
		every = defaultPoll
	}
	said := ""
	for ctx.Err() == nil {
		err := s.fetchOnce(ctx)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text != said && err != nil && ctx.Err() == nil {
			s.log.Error("no new policy from the bundle server: the active revision stays", "url", s.bundleServer.URL, "error", err)
		}
		said = text
		wait(ctx, every-time.Duration(rand.Int64N(int64(every)/10+1)), nil) // brokers don't ask in step
	}
}

func (s *Server) fetchOnce(ctx context.Context) error {
	archive, signature, err := s.bundles.Fetch(ctx)
	if err != nil || archive == nil {
		return err
	}
	err = s.Broker.StageFetched(ctx, archive, signature, s.bundleServer.URL)
	if errors.Is(err, ledger.ErrUnavailable) || errors.Is(err, ledger.ErrPrecondition) {
		s.bundles.Forget() // the same bundle will do next time
	}
	return err
}
