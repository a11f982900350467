package server

import (
	"context"
	"errors"
	"log/slog"

	"github.com/bulla-project/bulla/broker/config"
)

// RestoreCut is RestoreStopped with Confirm by a process that ends with the error of before, which is asked ahead of each
// step: nothing is undone.
func RestoreCut(ctx context.Context, cfg config.Config, before func(step int) error) (err error) {
	s, err := openStores(ctx, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	r := &restorer{stores: s, cfg: cfg}
	if err := r.look(ctx, nil); err != nil {
		return err
	}
	for i, step := range r.steps() {
		if err := before(i); err != nil {
			return err
		}
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}
