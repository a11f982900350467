package policy

import (
	"bytes"
	"context"
	"encoding/hex"
	"strings"
)

// Reopen makes a revision of an archive for judging what is recorded, and never for deciding: it compiles, and runs no
// tests, canaries or invariants, which a revision that once decided has passed and which may ask for more by now.
// Faults are a *LoadError, as with Load.
func Reopen(ctx context.Context, archive []byte) (*Revision, error) {
	files, err := Unpack(archive)
	if err != nil {
		return nil, refuse(Fault{Check: "files", Message: err.Error()})
	}
	b, faults := readBundle(files)
	if len(faults) > 0 {
		return nil, refuse(faults...)
	}
	rev, faults := b.build(ctx)
	if len(faults) > 0 {
		return nil, refuse(faults...)
	}
	rev.archive, rev.digest = bytes.Clone(archive), ArchiveDigest(archive)
	rev.digestHex = hex.EncodeToString(rev.digest[:])
	return rev, nil
}

// Judge is Replay for signals that were parsed, or made up.
func (r *Revision) Judge(ctx context.Context, s Signals) Decision {
	cancel, stop := endAfter(ctx, replayLimit)
	defer stop()
	return r.judge(ctx, s, cancel)
}

// JudgeRecorded is Replay, and returns the signals as well.
func (r *Revision) JudgeRecorded(ctx context.Context, recorded []byte) (Signals, Decision, error) {
	if len(recorded) > MaxSignalsSize {
		_, err := ParseSignals(recorded)
		return Signals{}, Decision{}, err
	}
	s, err := decodeSignals(recorded)
	if err != nil {
		return Signals{}, Decision{}, err
	}
	d := r.Judge(ctx, s)
	if s.Version != SignalsVersion || !bytes.Equal(d.Signals, recorded) { // judging has encoded them: not once more
		if _, err := ParseSignals(recorded); err != nil {
			return Signals{}, Decision{}, err
		}
	}
	return s, d, nil
}

// OfEngine says that a fault was the evaluator's own, and not the policy's: it says nothing about the policy, and a
// replay need not meet it again.
func OfEngine(fault string) bool {
	return strings.HasPrefix(fault, faultClosed) || strings.HasPrefix(fault, faultPanic)
}
