package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit/sink"
	"github.com/bulla-project/bulla/ledger/event"
)

const (
	// tailAhead is how many events are received before they are asked for.
	tailAhead = 256
	// maxTailed is the largest message with one, in bytes: so many of them wait in memory.
	maxTailed = event.MaxSize + 1<<10
)

// tailSource gives the events of a broker, as `audit tail` gets them. A stream that ends is opened again where it ended,
// if more is to be waited for. It is used by one goroutine.
type tailSource struct {
	app     *app
	command *cobra.Command
	follow  bool

	stream    *tailStream // nil: none is open
	next      int64       // what the stream gives next
	connected bool        // a stream has given something: what fails later may be over soon
}

// tailStream is one stream; a goroutine receives it.
type tailStream struct {
	events chan *bullav1.AuditEvent // closed after the last one
	err    error                    // why there are no more; to be read after events is closed
	cancel context.CancelFunc
}

// Next implements sink.Source.
func (s *tailSource) Next(ctx context.Context, from int64, most int) ([]sink.Entry, error) {
	if s.stream == nil || s.next != from {
		s.close()
		s.open(from)
	}
	first, err := s.first(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]sink.Entry, 0, most)
	for e := first; ; {
		decoded, err := event.Event{}, error(nil)
		if e.GetErased() == 0 {
			decoded, err = event.Decode(e.GetEvent())
		}
		if err != nil {
			return nil, sink.Final(fmt.Errorf("event %d of the broker can't be read: %w: is this program older than the broker?", e.GetIndex(), err))
		}
		out = append(out, sink.Entry{Index: e.GetIndex(), Event: decoded})
		s.next = e.GetIndex() + 1
		if len(out) == most {
			return out, nil
		}
		more := false
		select {
		case e, more = <-s.stream.events:
		default:
		}
		if !more { // why the stream ended is for the next call
			return out, nil
		}
	}
}

// first waits for an event.
func (s *tailSource) first(ctx context.Context) (*bullav1.AuditEvent, error) {
	var silent <-chan time.Time // while one follows, silence is no fault
	if !s.follow {
		timer := time.NewTimer(s.app.timeout)
		defer timer.Stop()
		silent = timer.C
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-silent:
		return nil, sink.Final(fmt.Errorf("the broker was silent for %s: %w", s.app.timeout, errTimeout))
	case e, ok := <-s.stream.events:
		if ok {
			s.connected = true
			return e, nil
		}
	}
	err := s.stream.err
	s.close()
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return nil, io.EOF
	case s.follow && s.connected && (streamEnded(err) || judge(err).code == exitUnavailable):
		return nil, err
	}
	return nil, sink.Final(err)
}

// open begins a stream.
func (s *tailSource) open(from int64) {
	ctx, cancel := context.WithCancel(s.command.Context())
	stream := &tailStream{events: make(chan *bullav1.AuditEvent, tailAhead), cancel: cancel}
	s.stream, s.next = stream, from
	in := &bullav1.TailRequest{From: from, Follow: s.follow}
	go func() {
		defer close(stream.events)
		stream.err = s.app.withStream(s.command, 0, func(streaming context.Context, conn *grpc.ClientConn, _ func()) error {
			return receiveTail(ctx, streaming, conn, in, stream.events)
		})
	}()
}

// receiveTail hands on what comes, until ctx ends.
func receiveTail(ctx, streaming context.Context, conn *grpc.ClientConn, in *bullav1.TailRequest, to chan<- *bullav1.AuditEvent) error {
	streaming, cancel := context.WithCancel(streaming)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	tail, err := bullav1.NewAuditClient(conn).Tail(streaming, in, grpc.MaxCallRecvMsgSize(maxTailed))
	if err != nil {
		return err
	}
	for {
		e, err := tail.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case to <- e:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// close ends the stream and waits for its goroutine.
func (s *tailSource) close() {
	if s.stream == nil {
		return
	}
	s.stream.cancel()
	for range s.stream.events { // to be thrown away
		continue
	}
	s.stream = nil
}
