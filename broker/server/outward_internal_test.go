package server

import (
	"context"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/audit/witness"
	"github.com/bulla-project/bulla/audit/witness/xtest"
	"github.com/bulla-project/bulla/ledger/event"
)

// growing is a store of leaves that nobody can open.
type growing struct {
	mu  sync.Mutex
	all []audit.Entry
}

func (l *growing) Leaves(_ context.Context, from int64, most int) ([]audit.Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	rest := l.all[min(int(from), len(l.all)):]
	return rest[:min(most, len(rest))], nil
}

// grow adds leaves and signs them.
func (l *growing) grow(t *testing.T, log *audit.Log, n int) {
	t.Helper()
	l.mu.Lock()
	for range n {
		l.all = append(l.all, audit.Entry{Index: int64(len(l.all)), Leaf: event.Leaf{Event: event.NewSalt(), Reply: event.NewSalt()}})
	}
	l.mu.Unlock()
	if _, err := log.Integrate(t.Context()); err != nil {
		t.Error(err)
	}
}

// The first witnessed checkpoint is of a smaller log than what was shown while there was none: nobody is shown a log that
// has become smaller.
func TestShownNeverShrinks(t *testing.T) {
	skey, vkey, err := proofs.NewLogKey("test.example/bulla")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := proofs.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	source, dir := &growing{}, t.TempDir()
	log, err := audit.Open(t.Context(), audit.Config{Dir: filepath.Join(dir, "log"), Origin: signer.Origin(), Signer: signer, Source: source})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	source.grow(t, log, 5)
	one := xtest.Start(t, "witness.example/w", vkey)
	key, err := proofs.ParseWitnessKey(one.Key)
	if err != nil {
		t.Fatal(err)
	}
	o := &outward{tree: log}
	o.circle, err = witness.Open(witness.Config{
		Log: log, Witnesses: []witness.Witness{{Key: key, URL: one.URL}}, Quorum: 1, File: filepath.Join(dir, "witnessed"), Every: time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	one.Break(func(http.ResponseWriter, *http.Request) bool {
		if one.Calls() == 1 { // while the witness thinks, the log grows, and is shown
			source.grow(t, log, 2)
			if _, size := o.newest(); size != 7 {
				t.Errorf("%d entries are shown, want 7", size)
			}
			return false
		}
		// It has cosigned five entries by now, and is asked about seven.
		raw, size := o.newest()
		at, err := log.Key().Open(raw)
		if seen, _ := o.circle.Status(); err != nil || size != 7 || at.Size != 7 || len(seen) != 1 || seen[0].Size != 5 {
			t.Errorf("%d entries are shown, of %d cosigned; want 7 and 5: %v", size, seen[0].Size, err)
		}
		cancel()
		return false
	})
	o.circle.Run(ctx)
	if one.Calls() < 2 {
		t.Errorf("the witness was asked %d times", one.Calls())
	}
}
