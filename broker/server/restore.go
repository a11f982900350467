package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
)

// ErrWhole says that no restore is needed, as far as is known.
var ErrWhole = errors.New("nothing is lost, as far as is known: the broker can be started as it is. If a newer checkpoint was kept elsewhere (by a client, an auditor, a witness), name it")

// RestoreOptions are the choices of RestoreStopped.
type RestoreOptions struct {
	// Checkpoint is a signed checkpoint of the log that somebody kept; nil: none.
	Checkpoint []byte
	// Confirm begins a new incarnation where one is needed, and finishes one that was begun. Without it nothing changes.
	Confirm bool
	Log     *slog.Logger // nil: silent
}

// RestoreState is how a store stands to what is known of its log.
type RestoreState string

// The states of a store.
const (
	RestoreWhole  RestoreState = "whole"  // it has all that is known to have been signed
	RestoreBehind RestoreState = "behind" // it has not, and the broker does not start
	RestoreBegun  RestoreState = "begun"  // a new incarnation was begun and not finished
	RestoreDone   RestoreState = "done"   // a new incarnation is finished
)

// KnownCheckpoint is a checkpoint of the ledger's log that was found.
type KnownCheckpoint struct {
	Where       string // a path, or "given"
	Origin      string
	Incarnation uint32
	Size        int64
	Root        string
	Verified    bool // signed by a key that the store knows
	Held        bool // the store has what it signs, or the ledger says already that it was lost

	raw  []byte
	root proofs.Hash
}

// Restoration is what RestoreStopped found and did. With RestoreDone, Incarnation and Origin are those of the new one.
type Restoration struct {
	State       RestoreState
	Incarnation uint32
	Origin      string
	Size        int64
	Root        string
	Known       []KnownCheckpoint
	Lost        int64 // events, at least
	Live        int   // sessions that a new incarnation ends, or has ended
	Next        uint32
	NextOrigin  string
	LogKey      string   // of the new incarnation, once it is done
	Kept        []string // where the old checkpoint and log were put
}

// RestoreStopped says how the store of a stopped broker stands to the newest checkpoints that are known of its log. With
// Confirm it begins a new incarnation of a ledger that was rolled back: the events that are there go on in a log of
// another name with another key, an event says which entries had been known, and the sessions that live end. Nothing
// else is revoked, rotated or delivered. What a crash cuts short is taken up by the next call.
func RestoreStopped(ctx context.Context, cfg config.Config, opts RestoreOptions) (_ Restoration, err error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	open := lookAtStores
	if opts.Confirm {
		open = openStores
	}
	s, err := open(ctx, cfg, opts.Log)
	if err != nil {
		return Restoration{}, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	r := &restorer{stores: s, cfg: cfg}
	if err := r.look(ctx, opts.Checkpoint); err != nil {
		return Restoration{}, err
	}
	if !opts.Confirm {
		return r.found, nil
	}
	if r.found.State == RestoreWhole {
		return r.found, ErrWhole
	}
	for _, step := range r.steps() {
		if err := step(ctx); err != nil {
			return r.found, fmt.Errorf("restore: %w\nThe broker does not start like this: mend that, and run the command again", err)
		}
	}
	return r.found, nil
}

// restorer is one restore under way.
type restorer struct {
	*stores
	cfg   config.Config
	found Restoration
	next  *proofs.Signer // of the incarnation that was begun; nil: none was
}

func (r *restorer) path(name string) string { return filepath.Join(r.cfg.DataDir, name) }

// look finds out how things are, and changes nothing.
func (r *restorer) look(ctx context.Context, given []byte) error {
	genesis, err := r.first(ctx)
	if err != nil {
		return err
	}
	if genesis.Origin != r.cfg.Log.Origin {
		return fmt.Errorf("%w: log.origin is %s, and this ledger is that of %s", config.ErrInvalid, r.cfg.Log.Origin, genesis.Origin)
	}
	if err := r.gather(genesis.Origin, given); err != nil {
		return err
	}
	if err := r.measure(ctx); err != nil {
		return err
	}
	err = r.live(ctx, func(ids []event.ID) error { r.found.Live += len(ids); return nil })
	if err != nil {
		return err
	}
	return r.judge(genesis.Origin)
}

// judge says what is to be done.
func (r *restorer) judge(base string) (err error) {
	f := &r.found
	f.State, f.Incarnation, f.Origin, f.Next = RestoreWhole, r.life.Number, r.life.Origin, r.life.Number
	if r.logKey.Key().String() != r.life.LogKey {
		f.State = RestoreBehind
		if r.next, err = r.readLogKey(r.path(nextKeyFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if r.next != nil && r.next.Key().String() == r.life.LogKey {
			f.State = RestoreBegun
		}
		_, n := proofs.SplitIncarnation(r.logKey.Origin())
		f.Next = max(f.Next, n)
	}
	for _, k := range f.Known {
		f.Next = max(f.Next, k.Incarnation)
		if !k.Held {
			f.State, f.Lost = RestoreBehind, max(f.Lost, k.Size-f.Size, 1)
		}
	}
	if f.State != RestoreBegun {
		r.next = nil
		f.Next++
	}
	f.NextOrigin = proofs.Incarnation(base, f.Next)
	if _, n := proofs.SplitIncarnation(f.NextOrigin); n != f.Next {
		return fmt.Errorf("there can be no incarnation %d", f.Next)
	}
	return proofs.CheckOrigin(f.NextOrigin)
}

// gather reads the checkpoints that are known.
func (r *restorer) gather(base string, given []byte) error {
	for _, path := range []string{filepath.Join(r.path(logDir), audit.CheckpointName), r.cfg.Log.CheckpointCopy} {
		if path == "" {
			continue
		}
		raw, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = r.add(base, path, raw)
		}
		if err != nil {
			return fmt.Errorf("checkpoint in %s: %w", path, err)
		}
	}
	if given == nil {
		return nil
	}
	if err := r.add(base, "given", given); err != nil {
		return fmt.Errorf("the checkpoint that was given: %w", err)
	}
	return nil
}

// add takes in a checkpoint. One of an incarnation whose key is known has to be signed by it.
func (r *restorer) add(base, where string, raw []byte) error {
	c, err := proofs.Peek(raw)
	if err != nil {
		return err
	}
	its, n := proofs.SplitIncarnation(c.Origin)
	if its != base || c.Size == 0 {
		return fmt.Errorf("%w: it signs %d entries of log %s, and this ledger is that of %s", proofs.ErrVerification, c.Size, c.Origin, base)
	}
	k := KnownCheckpoint{Where: where, Origin: c.Origin, Incarnation: n, Size: c.Size, Root: c.Root.String(), raw: raw, root: c.Root}
	for _, text := range []string{r.life.LogKey, r.logKey.Key().String()} {
		key, err := proofs.ParseKey(text)
		if err != nil {
			return err
		}
		if key.Origin() != c.Origin {
			continue
		}
		if _, _, err := key.OpenCosigned(raw, nil); err != nil {
			return err
		}
		k.Verified = true
	}
	r.found.Known = append(r.found.Known, k)
	return nil
}

// measure compares the store with the checkpoints. One of an incarnation before this one says nothing new.
func (r *restorer) measure(ctx context.Context) error {
	f := &r.found
	var sizes []int64
	for _, k := range f.Known {
		sizes = append(sizes, k.Size)
	}
	size, roots, err := audit.Measure(ctx, leaves{r.ledger}, sizes...)
	if err != nil {
		return err
	}
	f.Size, f.Root = size, roots[size].String()
	for i := range f.Known {
		k := &f.Known[i]
		root, reached := roots[k.Size]
		k.Held = k.Incarnation < r.life.Number || k.Origin == r.life.Origin && reached && root == k.root
	}
	return nil
}

// newest is the checkpoint that goes furthest, of the newest incarnation; nil: none is known.
func (r *restorer) newest() *KnownCheckpoint {
	if len(r.found.Known) == 0 {
		return nil
	}
	k := slices.MaxFunc(r.found.Known, func(a, b KnownCheckpoint) int {
		return cmp.Or(cmp.Compare(a.Incarnation, b.Incarnation), cmp.Compare(a.Size, b.Size))
	})
	return &k
}

// live goes through the sessions that have not ended, whatever the clock says.
func (s *stores) live(ctx context.Context, f func([]event.ID) error) error {
	q := ledger.SessionQuery{LiveFrom: time.UnixMicro(1), Max: ledger.MaxPage}
	for {
		page, err := s.ledger.Sessions(ctx, q)
		if err != nil || len(page) == 0 {
			return err
		}
		ids := make([]event.ID, len(page))
		for i, found := range page {
			ids[i] = found.ID
		}
		if err := f(ids); err != nil {
			return err
		}
		last := page[len(page)-1]
		q.LiveFrom, q.LiveAfter = last.Expires.Time(), last.ID.String()
	}
}
