package server

import (
	"context"
	"errors"
	"log/slog"

	"github.com/bulla-project/bulla/broker/config"
)

// ErrCut says that RestoreCut stopped where it was told to.
var ErrCut = errors.New("cut")

// RestoreCut is RestoreStopped with Confirm by a process that ends after so many steps: nothing is undone.
func RestoreCut(ctx context.Context, cfg config.Config, steps int) (err error) {
	s, err := openStores(ctx, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	r := &restorer{stores: s, cfg: cfg}
	if err := r.look(ctx, nil); err != nil {
		return err
	}
	for _, step := range r.steps() {
		if steps == 0 {
			return ErrCut
		}
		steps--
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}
