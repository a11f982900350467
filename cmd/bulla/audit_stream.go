package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"google.golang.org/grpc"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/cmd/bulla/internal/show"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy/replay"
)

// mustNotExist makes sure that a path is free, in a directory that is there.
func mustNotExist(flag, path string) error {
	_, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(filepath.Dir(path)); err != nil {
			return usage("%s: %v", flag, err)
		}
		return nil
	case err != nil:
		return usage("%s: %v", flag, err)
	}
	return usage("%s: %s exists already: name a directory that does not", flag, path)
}

// exportTarget says where an export goes, and what belongs to it.
type exportTarget struct {
	out       string
	pinned    proofs.Key // zero: none
	revisions func(context.Context, event.Digest) ([]byte, error)
}

// revisionsOf gives archives by the digests that events have.
func revisionsOf(find replay.Archives) func(context.Context, event.Digest) ([]byte, error) {
	return func(ctx context.Context, digest event.Digest) ([]byte, error) { return find(ctx, digest) }
}

// receiveExport writes what the broker streams. Nothing of it is believed: audit.Export checks that the events
// make the tree that the checkpoint signs.
func receiveExport(
	ctx context.Context, stream grpc.ServerStreamingClient[bullav1.ExportItem], to exportTarget, alive func(), progress *show.Progress,
) (audit.Manifest, proofs.Key, error) {
	first, err := stream.Recv()
	if err != nil {
		return audit.Manifest{}, proofs.Key{}, err
	}
	alive()
	key, err := proofs.ParseKey(first.GetLogKey())
	if err != nil {
		return audit.Manifest{}, proofs.Key{}, fmt.Errorf("%w: the key that the broker sent: %w", client.ErrVerification, err)
	}
	if !to.pinned.IsZero() && to.pinned.String() != key.String() {
		return audit.Manifest{}, proofs.Key{}, fmt.Errorf("%w: the broker's log has the key %s, and --log-key is %s", client.ErrVerification, key, to.pinned)
	}
	source := &exportSource{stream: stream, alive: alive, ready: first.GetRecords()}
	m, err := audit.Export(ctx, to.out, audit.ExportConfig{
		Checkpoint: first.GetCheckpoint(), Witnessed: first.GetWitnessed(), Key: key, Events: source, Revisions: to.revisions, Progress: progress.Set,
	})
	if source.failure != nil {
		return audit.Manifest{}, key, source.failure // as gRPC gave it, with its status
	}
	return m, key, err
}

// exportSource makes an audit.EventSource of the broker's stream. It goes forward only, as Export does.
type exportSource struct {
	stream  grpc.ServerStreamingClient[bullav1.ExportItem]
	alive   func()
	ready   []*bullav1.AuditRecord
	next    int64
	failure error
}

// Records implements audit.EventSource.
func (s *exportSource) Records(_ context.Context, from int64, limit int) ([]audit.Record, error) {
	if from != s.next {
		panic("bulla: internal error: the export does not go forward")
	}
	for len(s.ready) == 0 {
		item, err := s.stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: the broker's stream ends at event %d", client.ErrVerification, s.next)
		}
		if err != nil {
			s.failure = err
			return nil, err
		}
		s.alive()
		s.ready = item.GetRecords()
	}
	take := s.ready[:min(limit, len(s.ready))]
	s.ready = s.ready[len(take):]
	s.next += int64(len(take))
	out := make([]audit.Record, 0, len(take))
	for _, r := range take {
		parsed, err := parseRecord(r)
		if err != nil {
			return nil, err
		}
		out = append(out, parsed)
	}
	return out, nil
}

// parseRecord takes a record as it came over the wire.
func parseRecord(r *bullav1.AuditRecord) (audit.Record, error) {
	out := audit.Record{Index: r.GetIndex(), Encoding: r.GetEncoding()}
	if r.GetErased() != 0 {
		leaf, err := event.ParseLeaf(r.GetLeaf())
		if err != nil {
			return out, fmt.Errorf("%w: event %d, which was erased: %w", client.ErrVerification, r.GetIndex(), err)
		}
		return audit.Record{Index: r.GetIndex(), Erased: r.GetErased(), Left: leaf}, nil
	}
	if len(r.GetEventSalt()) != len(event.Salt{}) || len(r.GetReplySalt()) != len(event.Salt{}) {
		return out, fmt.Errorf("%w: event %d came with salts of a wrong length", client.ErrVerification, r.GetIndex())
	}
	out.EventSalt, out.ReplySalt = event.Salt(r.GetEventSalt()), event.Salt(r.GetReplySalt())
	switch len(r.GetReply()) {
	case 0:
	case len(event.Digest{}):
		out.Reply = event.Digest(r.GetReply())
	default:
		return out, fmt.Errorf("%w: event %d came with a digest of a wrong length", client.ErrVerification, r.GetIndex())
	}
	return out, nil
}
