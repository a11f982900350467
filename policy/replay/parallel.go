package replay

import (
	"context"
	"iter"
	"runtime"
	"sync"
)

// How much work goes to a goroutine at once: a decision takes less time than waking one, a pair of a sweep far more.
const (
	manyAtOnce = 64
	oneAtOnce  = 1
)

// batch is a piece of the sequence. done is closed when out is whole.
type batch[In, Out any] struct {
	in   []In
	out  []Out
	done chan struct{}
}

// ordered calls f for everything in seq, size at once on workers of them at a time (0: on every core), and then take with each
// result in the order of seq. It ends with the first error, of seq or of take, and waits for what it started.
func ordered[In, Out any](
	ctx context.Context, workers, size int, seq iter.Seq2[In, error], f func(context.Context, In) Out, take func(Out) error,
) error {
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	queue, jobs := make(chan *batch[In, Out], 2*workers), make(chan *batch[In, Out], 2*workers)
	var running sync.WaitGroup
	for range workers { // long-lived, so that their stacks grow once
		running.Go(func() {
			for b := range jobs {
				for _, in := range b.in {
					if ctx.Err() != nil {
						break
					}
					b.out = append(b.out, f(ctx, in))
				}
				close(b.done)
			}
		})
	}
	var failed error // of seq; read after queue is closed
	running.Go(func() {
		defer close(queue)
		defer close(jobs)
		failed = produce(ctx, size, seq, queue, jobs)
	})
	err := consume(queue, take, stop)
	running.Wait()
	if err == nil {
		err = failed
	}
	if err == nil {
		err = ctx.Err()
	}
	return err
}

func produce[In, Out any](ctx context.Context, size int, seq iter.Seq2[In, error], queue, jobs chan<- *batch[In, Out]) error {
	b := &batch[In, Out]{done: make(chan struct{})}
	send := func() bool {
		if len(b.in) == 0 {
			return true
		}
		select {
		case jobs <- b:
		case <-ctx.Done():
			return false
		}
		queue <- b // consume takes everything
		b = &batch[In, Out]{done: make(chan struct{})}
		return true
	}
	for in, err := range seq {
		if err != nil {
			send()
			return err
		}
		if b.in = append(b.in, in); len(b.in) == size && !send() {
			return nil
		}
	}
	send()
	return nil
}

// consume takes results until the queue is closed; after an error it only empties it.
func consume[In, Out any](queue <-chan *batch[In, Out], take func(Out) error, stop func()) (err error) {
	for b := range queue {
		<-b.done
		for _, out := range b.out {
			if err == nil {
				if err = take(out); err != nil {
					stop()
				}
			}
		}
	}
	return err
}
