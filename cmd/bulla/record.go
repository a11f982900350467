package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/decisions"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy/replay"
)

// recordFlags say where a command reads the record: from a broker, or from an export.
type recordFlags struct {
	export, logKey, since string
}

// addRecord gives a command the flags of one that reads the record.
func (a *app) addRecord(c *cobra.Command, f *recordFlags) {
	c.Flags().StringVar(&f.export, "export", "", "read this export instead of asking a broker: wholly offline")
	c.Flags().StringVar(&f.logKey, "log-key", "", "log.pub, against which the export is verified (with --export)")
	a.addIdentity(c)
}

// indexed is an event with its place in the log.
type indexed struct {
	index int64
	event event.Event
}

// record is the record of one broker.
type record struct {
	events   iter.Seq2[indexed, error]
	archives replay.Archives
	alive    func() // says that the work goes on
	// conn is the broker's, nil for an export.
	conn *grpc.ClientConn
}

// withRecord runs f over the record. An export is verified while it is read: what f made of one that does not verify
// must not be shown, so that f returns before anything is printed.
func (a *app) withRecord(c *cobra.Command, flags recordFlags, f func(context.Context, record) error) error {
	defer runtime.KeepAlive(ballast(whileReading))
	if flags.export == "" {
		if flags.logKey != "" {
			return usage("--log-key belongs to --export: what comes from the broker is not verified here")
		}
		return a.withStream(c, a.timeout, func(ctx context.Context, conn *grpc.ClientConn, alive func()) error {
			return f(ctx, record{events: tailed(ctx, conn, alive), archives: fetched(conn), alive: alive, conn: conn})
		})
	}
	if flags.logKey == "" {
		return usage("--export needs --log-key: name the file with the log's key, which the broker writes as log.pub")
	}
	if err := checkDir(flags.export); err != nil {
		return err
	}
	key, err := readLogKey("--log-key", flags.logKey)
	if err != nil {
		return err
	}
	ctx, cancel := a.offline(c)
	defer cancel()
	archives := func(_ context.Context, digest replay.Digest) ([]byte, error) {
		archive, err := audit.ReadRevision(flags.export, digest)
		if errors.Is(err, audit.ErrNoRevision) {
			return nil, fmt.Errorf("%w: %w", replay.ErrNoRevision, err)
		}
		return archive, err
	}
	return f(ctx, record{events: exported(ctx, flags.export, key), archives: archives, alive: func() {}})
}

// tailed are the events of a broker, from the first one to the newest.
func tailed(ctx context.Context, conn *grpc.ClientConn, alive func()) iter.Seq2[indexed, error] {
	return func(yield func(indexed, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := bullav1.NewAuditClient(conn).Tail(ctx, new(bullav1.TailRequest))
		if err != nil {
			yield(indexed{}, err)
			return
		}
		for next := int64(0); ; next++ {
			e, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return
			}
			if err == nil && e.GetIndex() != next {
				err = fmt.Errorf("%w: the broker sent event %d where %d is due", client.ErrVerification, e.GetIndex(), next)
			}
			if err != nil {
				yield(indexed{}, err)
				return
			}
			alive()
			if e.GetErased() != 0 {
				if !yield(indexed{e.GetIndex(), event.Event{}}, nil) {
					return
				}
				continue
			}
			decoded, err := event.Decode(e.GetEvent())
			if err != nil {
				err = status.Errorf(codes.Internal, "event %d of the broker can't be read: %v", e.GetIndex(), err)
			}
			if !yield(indexed{e.GetIndex(), decoded}, err) || err != nil {
				return
			}
		}
	}
}

// errEnough ends the reading of an export.
var errEnough = errors.New("enough was read")

// exported are the events of an export, verified. A fault of it is the last thing that comes.
func exported(ctx context.Context, dir string, key proofs.Key) iter.Seq2[indexed, error] {
	return func(yield func(indexed, error) bool) {
		_, err := audit.Verify(ctx, dir, key, audit.VerifyOptions{Event: func(index int64, e event.Event) error {
			if !yield(indexed{index, e}, nil) {
				return errEnough
			}
			return nil
		}})
		if err != nil && !errors.Is(err, errEnough) {
			yield(indexed{}, err)
		}
	}
}

// fetched asks a broker for revisions.
func fetched(conn *grpc.ClientConn) replay.Archives {
	return func(ctx context.Context, digest replay.Digest) ([]byte, error) {
		reply, err := bullav1.NewPoliciesClient(conn).GetRevision(ctx, &bullav1.GetRevisionRequest{Digest: hex.EncodeToString(digest[:])})
		if status.Code(err) == codes.NotFound {
			return nil, fmt.Errorf("%w: the broker has none of this digest", replay.ErrNoRevision)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: the broker does not give it: %w", replay.ErrNoRevision, client.FromStatus(err))
		}
		return reply.GetArchive(), nil
	}
}

// decided are the decisions in events since a moment, of which keep wants to have. Reader follows all events.
func decided(
	events iter.Seq2[indexed, error], reader *decisions.Reader, since time.Time, keep func(replay.Recorded) bool,
) iter.Seq2[replay.Recorded, error] {
	return func(yield func(replay.Recorded, error) bool) {
		var at time.Time // of an erased event, the one before it
		for e, err := range events {
			if err != nil {
				yield(replay.Recorded{}, err)
				return
			}
			if e.event.Body != nil {
				at = e.event.Time.Time()
			}
			found := reader.Add(e.index, e.event)
			if at.Before(since) {
				continue
			}
			for _, d := range found {
				if keep(d) && !yield(d, nil) {
					return
				}
			}
		}
	}
}

// parseSince reads how far back to look: 24h, 7d, a day in UTC such as 2026-01-31, or a moment such as
// 2026-01-31T12:00:00Z. "" is all of it.
func parseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil && n > 0 {
			return now.AddDate(0, 0, -int(n)), nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d > 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usage("--since is %q: say how far back, such as 24h or 7d, or from when on: a day (2026-01-31) or a moment (2026-01-31T12:00:00Z)", text)
}

// counting shows progress in decisions.
func (a *app) counting(verb string) (count func(), done func()) {
	progress := show.NewProgress(a.stderr, isTerminal(a.stderr), verb)
	n := int64(0)
	return func() { n++; progress.Set(n, 0) }, progress.Clear
}
