package client

import (
	"context"
	"time"
)

// pollEvery is how often a client that waits for a round asks how it stands where the watch tells it nothing.
const pollEvery = 3 * time.Second

// follow returns a channel that has something in it whenever it is worth asking how a round stands. The client watches
// until unfollow. What the stream can't tell, because it was away or another one took its place, is made up for when
// it is ready again, and by asking now and then: it only says when to ask, and nothing relies on it.
func (w *watch) follow(round string) <-chan struct{} {
	news := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.client.run.Err() == nil {
		w.rounds[round] = news
		w.start()
	}
	return news
}

func (w *watch) unfollow(round string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.rounds, round)
	w.rest()
}

// wake tells whoever follows a round.
func (w *watch) wake(round string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	notify(w.rounds[round])
}

// wakeAll tells everybody who follows a round.
func (w *watch) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, news := range w.rounds {
		notify(news)
	}
}

// notify puts something into news unless there is; never into no channel.
func notify(news chan<- struct{}) {
	select {
	case news <- struct{}{}:
	default:
	}
}

// pauseFor waits for news, for d at most, or says why ctx ended before.
func pauseFor(ctx context.Context, d time.Duration, news <-chan struct{}) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
	case <-news:
	}
	return nil
}
