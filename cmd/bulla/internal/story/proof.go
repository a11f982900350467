package story

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/tiles"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

const revokeReason = "the demo is over"

// revoke ends the session, and the device with everything that relied on it.
func (t *teller) revoke(ctx context.Context) (string, error) {
	s, err := bullav1.NewSessionsClient(t.security.Conn()).RevokeSession(ctx, &bullav1.RevokeSessionRequest{Id: t.got.SessionID, Reason: revokeReason})
	if err != nil {
		return "", fmt.Errorf("revoke the session: %w", client.FromStatus(err))
	}
	if s.GetState() != string(session.Revoked) || s.GetReason() != revokeReason || s.GetRevokedAt() == nil {
		return "", fmt.Errorf("the session is %s", s.GetState())
	}
	id := t.server.Device().ID.String()
	d, err := bullav1.NewDevicesClient(t.security.Conn()).RevokeDevice(ctx, &bullav1.RevokeDeviceRequest{Id: id, Reason: revokeReason})
	if err != nil {
		return "", fmt.Errorf("revoke the device: %w", client.FromStatus(err))
	}
	if d.GetRevokedAt() == nil {
		return "", errors.New("the device lives on")
	}
	return "security revokes the session, and the device for good", nil
}

// refusedAfterRevoke shows that the session is over, that the device brings no new one, and that nothing else
// was harmed.
func (t *teller) refusedAfterRevoke(ctx context.Context) (string, error) {
	state, reason, err := t.got.State(ctx)
	if err != nil {
		return "", err
	}
	if state != string(session.Revoked) || reason != revokeReason {
		return "", fmt.Errorf("workload sees the session as %s", state)
	}
	if err := t.got.Release(ctx); !errors.Is(err, client.ErrEnded) {
		return "", fmt.Errorf("a revoked session can still be acknowledged: %w", err)
	}
	if err := t.got.Use(func([]byte) error { return nil }); !errors.Is(err, client.ErrEnded) {
		return "", errors.New("the plaintext was not wiped")
	}
	again, err := refusal(t.workload.Get(ctx, highSecret))
	if err != nil {
		return "", fmt.Errorf("workload asks for %s again: %w", highSecret, err)
	}
	s, err := t.bare.Get(ctx, standardSecret)
	if err != nil {
		return "", fmt.Errorf("%s is refused as well, which the revocation is not about: %w", standardSecret, err)
	}
	s.Close()
	return fmt.Sprintf("the session is %s and takes no further receipt; the device brings no new one (refused by the check %q); %s is delivered as before",
		state, again.Check, standardSecret), nil
}

// verifyLog exports the log, stops the broker, and verifies the export with the log's key alone.
func (t *teller) verifyLog(ctx context.Context) (string, error) {
	stream, err := bullav1.NewAuditClient(t.auditor.Conn()).CheckRebuild(ctx, &bullav1.CheckRebuildRequest{})
	var rebuilt *bullav1.CheckRebuildReply
	for err == nil && !rebuilt.GetReport() {
		rebuilt, err = stream.Recv()
	}
	if err != nil {
		return "", fmt.Errorf("rebuild the state: %w", client.FromStatus(err))
	}
	if len(rebuilt.GetDifferences()) > 0 {
		return "", fmt.Errorf("the state is not what the events make of it: %s", rebuilt.GetDifferences()[0])
	}
	t.exports = filepath.Join(t.dir, "export")
	if err := t.cfg.Export(ctx, t.auditor.Conn(), t.exports); err != nil {
		return "", fmt.Errorf("export the log: %w", client.FromStatus(err))
	}
	kept := t.workload.Checkpoint()
	if err := t.stop(); err != nil {
		return "", fmt.Errorf("stop the broker: %w", err)
	}
	report, err := audit.Verify(ctx, t.exports, t.key, audit.VerifyOptions{Against: kept})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("with the broker stopped, %d events verify against the log's key and the checkpoint that workload kept; state and events agree in %d rows",
		report.Size, rebuilt.GetRows()), nil
}

// detectTampering flips one bit in copies of the export: in the event of the delivery, and in the tree.
func (t *teller) detectTampering(ctx context.Context) (string, error) {
	forged := filepath.Join(t.dir, "forged")
	if err := os.CopyFS(forged, os.DirFS(t.exports)); err != nil {
		return "", err
	}
	before, err := audit.Verify(ctx, forged, t.key, audit.VerifyOptions{})
	if err != nil {
		return "", fmt.Errorf("the untouched copy: %w", err)
	}
	first := tiles.Tile{N: t.got.LogIndex / tiles.Width, W: int(min(tiles.Width, before.Size-t.got.LogIndex/tiles.Width*tiles.Width))}
	var places string
	for _, name := range []string{first.EventsPath(), first.HashPath()} {
		fault, err := t.flip(ctx, forged, name)
		if err != nil {
			return "", fmt.Errorf("one bit of %s: %w", name, err)
		}
		if places != "" {
			places += ", and "
		}
		places += fmt.Sprintf("%s, entry %d", fault.File, fault.Index)
	}
	return "one bit is flipped in a copy; verification fails and names the place: " + places, nil
}

// flip flips one bit in the middle of a file, verifies, and flips it back.
func (t *teller) flip(ctx context.Context, dir, name string) (*audit.Fault, error) {
	file := filepath.Join(dir, filepath.FromSlash(path.Clean(name)))
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	turn := func() error {
		data[len(data)/2] ^= 1
		return os.WriteFile(file, data, 0o600)
	}
	if err := turn(); err != nil {
		return nil, err
	}
	_, verdict := audit.Verify(ctx, dir, t.key, audit.VerifyOptions{})
	if err := turn(); err != nil {
		return nil, err
	}
	var fault *audit.Fault
	switch {
	case verdict == nil:
		return nil, errors.New("was not noticed")
	case !errors.As(verdict, &fault):
		return nil, fmt.Errorf("made verification fail in another way: %w", verdict)
	case fault.File != name || fault.Index < 0:
		return nil, fmt.Errorf("was found in another place: %w", fault)
	}
	return fault, nil
}

// seen is an event of the ledger.
type seen struct {
	index int64
	body  event.Body
}

// tail reads the ledger as the auditor, from an index on.
func (t *teller) tail(ctx context.Context, from int64) ([]seen, error) {
	stream, err := bullav1.NewAuditClient(t.auditor.Conn()).Tail(ctx, &bullav1.TailRequest{From: from})
	if err != nil {
		return nil, client.FromStatus(err)
	}
	var out []seen
	for {
		item, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, client.FromStatus(err)
		}
		e, err := event.Decode(item.GetEvent())
		if err != nil {
			return nil, err
		}
		out = append(out, seen{item.GetIndex(), e.Body})
	}
}

// nextIndex is the index of the next event.
func (t *teller) nextIndex(ctx context.Context) (int64, error) {
	last, err := t.tail(ctx, -1)
	if err != nil {
		return 0, fmt.Errorf("read the ledger as auditor: %w", err)
	}
	if len(last) == 0 {
		return 0, errors.New("the ledger shows no events")
	}
	return last[len(last)-1].index + 1, nil
}

// find returns the first event of a type that fits, and its index, or -1.
func find[B event.Body](events []seen, fits func(B) bool) (B, int64) {
	for _, s := range events {
		if b, ok := s.body.(B); ok && fits(b) {
			return b, s.index
		}
	}
	var none B
	return none, -1
}
