package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/tiles"
	"github.com/bulla-project/bulla/ledger/event"
)

// ClockSlack is how far the clocks of broker and witness may be apart.
const ClockSlack = 5 * time.Minute

// whoSaw finds what the witnesses that were named cosigned, before the events are read: of what a witness has seen nothing
// happens later. What is wrong with a checkpoint is said after.
func (v *verifier) whoSaw(context.Context) error {
	var all []proofs.Cosignature
	witnessed, _ := v.read(witnessedName, proofs.MaxCosigned) // there may be none
	for _, raw := range [][]byte{witnessed, v.opts.Against} {
		if _, sigs, err := v.key.OpenCosigned(raw, v.opts.Witnesses); err == nil {
			all = append(all, sigs...)
		}
	}
	for _, c := range all {
		if c.Verified {
			v.saw = append(v.saw, c)
		}
	}
	return nil
}

// late is the fault of an event that says that it happened after a witness had seen it, or nil.
func (v *verifier) late(index int64, e event.Event) error {
	for _, c := range v.saw {
		if index < c.Size && e.Time.Time().After(c.Time.Add(ClockSlack)) {
			return fmt.Errorf("it says that it happened at %s, and witness %s saw it already at %s", e.Time, c.Witness, c.Time.Format(time.RFC3339))
		}
	}
	return nil
}

// readWitnessed reads the checkpoint with cosignatures, if the export has one.
func (v *verifier) readWitnessed(context.Context) error {
	if _, err := v.root.Lstat(witnessedName); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	raw, err := v.read(witnessedName, proofs.MaxCosigned)
	if err != nil {
		return err
	}
	at, sigs, err := v.key.OpenCosigned(raw, v.opts.Witnesses)
	if err != nil {
		return faultIn(witnessedName, "%s", reason(err))
	}
	if len(sigs) == 0 {
		return faultIn(witnessedName, "no witness cosigned it")
	}
	if err := v.extends(witnessedName, at); err != nil {
		return err
	}
	f := listed(witnessedName, raw)
	v.list.witnessed, v.witnessed, v.cosigned = &f, &at, append(v.cosigned, sigs...)
	return nil
}

// against compares with the checkpoint that the auditor had.
func (v *verifier) against(context.Context) error {
	if v.opts.Against == nil {
		return nil
	}
	key, end := v.key, v.checkpoint.Size
	before := v.history.before(v.opts.Against)
	if before != nil {
		key, end = before.key, before.end
	}
	old, sigs, err := key.OpenCosigned(v.opts.Against, v.opts.Witnesses)
	if err != nil {
		return faultIn(checkpointName, "the checkpoint to compare with can't be used: %s", reason(err))
	}
	if before != nil && old.Size > end {
		return faultAt(checkpointName, end, "the ledger was restored here, from a backup: of the %d entries of log %s that the checkpoint to compare with signs, those from %d on are not in this log. Keep it as it is: it proves that they were there",
			old.Size, old.Origin, end)
	}
	if err := v.extends(checkpointName, old); err != nil {
		return err
	}
	v.older, v.cosigned = &old, append(v.cosigned, sigs...)
	return nil
}

// extends checks that the export holds what another checkpoint of its log signs. Its tiles were verified before; their
// bytes are compared with the manifest after.
func (v *verifier) extends(name string, old proofs.Checkpoint) error {
	read := func(path string) ([]byte, error) {
		data, err := v.read(path, tiles.Width*tlog.HashSize)
		if err == nil && listed(path, data) != v.list.tiles[0][old.Size/tiles.Width] {
			err = faultIn(path, "it changed while it was verified")
		}
		return data, err
	}
	return extends(name, old, v.checkpoint.Size, v.tree, v.rest, read)
}

// extends checks that a tree of size leaves begins with the one that old signs. read reads a tile of level 0.
func extends(name string, old proofs.Checkpoint, size int64, tree levels, rest []proofs.Hash, read func(path string) ([]byte, error)) error {
	if old.Size > size {
		return faultAt(name, size, "the export ends before this entry, but the log had %d already: its tail was cut, or it is older than that checkpoint", old.Size)
	}
	if n := old.Size / tiles.Width; old.Size%tiles.Width != 0 { // leaves after the last full bundle of the older log
		if n < tiles.Count(size, 1) {
			data, err := read(tiles.At(size, 0, n).HashPath())
			if err != nil {
				return err
			}
			rest = splitHashes(data)
		}
		rest = rest[:old.Size%tiles.Width]
	} else {
		rest = nil
	}
	if tree.root(old.Size, rest) != old.Root {
		return faultIn(name, "the first %d entries are not those that the checkpoint to compare with signs: the history was rewritten", old.Size)
	}
	return nil
}

// witnesses checks that all that were named have cosigned.
func (v *verifier) witnesses(context.Context) error {
	if _, missing := proofs.VerifiedBy(v.cosigned, v.opts.Witnesses); len(missing) > 0 {
		return faultIn(witnessedName, "witness %s cosigned neither a checkpoint of this export nor the one to compare with", strings.Join(missing, ", "))
	}
	return nil
}
