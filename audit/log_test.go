package audit

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bulla-project/bulla/audit/proofs"
)

// check verifies everything that must hold of a log's directory at any time: what is signed is the history of src, and
// whoever opens the log comes to the files want, which an undisturbed log of all of src has.
func check(t *testing.T, dir, outside string, s *proofs.Signer, src *ledgerFake, want map[string][]byte) {
	t.Helper()
	for _, path := range []string{filepath.Join(dir, checkpointName), outside} {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // not there yet
		}
		c, err := s.Key().Open(raw)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if c.Root != oracleRoot(src.leaves[:c.Size]) {
			t.Fatalf("%s signs a root of %d that is not that of the store", path, c.Size)
		}
	}
	l, err := Open(t.Context(), Config{Dir: dir, Origin: testOrigin, Signer: s, Source: src, OutsideCheckpoint: outside})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := l.Integrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Recheck(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := readTree(t, dir)
	if len(got) != 2 || !bytes.Equal(got[hashesName], want[hashesName]) || !bytes.Equal(got[checkpointName], want[checkpointName]) {
		t.Fatalf("the files differ from those of an undisturbed log: %d files, %d bytes of hashes (want %d)", len(got), len(got[hashesName]), len(want[hashesName]))
	}
	if outside != "" {
		if raw, err := os.ReadFile(outside); err != nil || !bytes.Equal(raw, want[checkpointName]) {
			t.Fatalf("the checkpoint outside differs: %v", err)
		}
	}
}

// reference integrates src without disturbance and returns the files.
func reference(t *testing.T, s *proofs.Signer, src *ledgerFake) map[string][]byte {
	t.Helper()
	dir := t.TempDir()
	l := openLog(t, dir, s, src)
	if _, err := l.Integrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return readTree(t, dir)
}

// TestCrash makes every state that a crash can leave between the log of 300 entries and that of 341: hashes
// written in part, torn, or as garbage; checkpoint written beside; inside without outside; and checks each.
func TestCrash(t *testing.T) {
	s := newSigner(t)
	src := newLedger(t, s.Key(), 341)
	older, newer := reference(t, s, src.prefix(300)), reference(t, s, src)
	want := newer
	garbage := bytes.Repeat([]byte{0xdb}, 4096)
	type state struct {
		name            string
		hashes          []byte
		inside, outside []byte
		temp            []byte // a temporary checkpoint left behind
	}
	oldHead, newHead := older[checkpointName], newer[checkpointName]
	states := []state{
		{"before", older[hashesName], oldHead, oldHead, nil},
		{"hashes written", newer[hashesName], oldHead, oldHead, nil},
		{"checkpoint in a temporary file", newer[hashesName], oldHead, oldHead, newHead},
		{"half a temporary file", newer[hashesName], oldHead, oldHead, newHead[:50]},
		{"inside written", newer[hashesName], newHead, oldHead, nil},
		{"outside written", newer[hashesName], newHead, newHead, nil},
		{"garbage after the end", append(bytes.Clone(older[hashesName]), garbage...), oldHead, oldHead, nil},
		{"zeros after the end", append(bytes.Clone(older[hashesName]), make([]byte, 500)...), oldHead, oldHead, nil},
		{"the first checkpoint was never written", garbage, nil, nil, nil},
		{"first checkpoint inside only", newer[hashesName], newHead, nil, nil},
		{"hashes lost", nil, newHead, newHead, nil},
		{"hashes torn", newer[hashesName][:len(newer[hashesName])-7], newHead, newHead, nil},
		{"hashes damaged", append(garbage[:64:64], newer[hashesName][64:]...), newHead, newHead, nil},
		{"log directory restored, copy outside newer", older[hashesName], oldHead, newHead, nil},
		{"log directory lost, copy outside kept", nil, nil, newHead, nil},
	}
	for n := len(older[hashesName]); n < len(newer[hashesName]); n += 89 {
		states = append(states, state{"hashes in part", newer[hashesName][:n], oldHead, oldHead, nil})
	}
	for _, st := range states {
		t.Run(st.name, func(t *testing.T) {
			dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "checkpoint")
			for path, content := range map[string][]byte{
				filepath.Join(dir, hashesName): st.hashes, filepath.Join(dir, checkpointName): st.inside, outside: st.outside,
				filepath.Join(dir, ".checkpoint.0123456789abcdef.tmp"): st.temp,
			} {
				if content != nil {
					writeFile(t, path, content)
				}
			}
			check(t, dir, outside, s, src, want)
			check(t, dir, outside, s, src, want)
		})
	}
}

// failing is a hash file that fails at a chosen call, after having done a part of the work or all of it.
type failing struct {
	hashFile
	write, sync int // which call fails, counting from 1; 0: none
	keep        float64
}

var errDisk = errors.New("input/output error")

func (f *failing) WriteAt(p []byte, off int64) (int, error) {
	if f.write--; f.write != 0 {
		return f.hashFile.WriteAt(p, off)
	}
	n, _ := f.hashFile.WriteAt(p[:int(float64(len(p))*f.keep)], off)
	return n, errDisk
}

func (f *failing) Sync() error {
	if f.sync--; f.sync != 0 {
		return f.hashFile.Sync()
	}
	return errDisk
}

// TestFailedWrites: a log whose write failed signs nothing more until it is opened again, and loses nothing.
func TestFailedWrites(t *testing.T) {
	s := newSigner(t)
	src := newLedger(t, s.Key(), 300)
	src2 := src.prefix(300)
	src2.grow(t, s.Key(), 9000) // more than one batch
	want := reference(t, s, src2)
	for name, disturb := range map[string]func(t *testing.T, l *Log){
		"nothing of the hashes written":   func(_ *testing.T, l *Log) { l.hashes = &failing{hashFile: l.hashes, write: 1} },
		"half of the hashes written":      func(_ *testing.T, l *Log) { l.hashes = &failing{hashFile: l.hashes, write: 1, keep: 0.51} },
		"all written, error all the same": func(_ *testing.T, l *Log) { l.hashes = &failing{hashFile: l.hashes, write: 1, keep: 1} },
		"the second batch fails":          func(_ *testing.T, l *Log) { l.hashes = &failing{hashFile: l.hashes, write: 2, keep: 0.3} },
		"fsync fails":                     func(_ *testing.T, l *Log) { l.hashes = &failing{hashFile: l.hashes, sync: 1} },
		"the checkpoint can't be replaced": func(t *testing.T, l *Log) {
			block(t, filepath.Join(l.cfg.Dir, checkpointName))
		},
		"the copy outside can't be written": func(t *testing.T, l *Log) {
			l.outside = nil // as if it had never been there
			l.cfg.OutsideCheckpoint = filepath.Join(l.cfg.Dir, "no", "such", "directory")
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "checkpoint")
			now := src.prefix(300)
			l, err := Open(t.Context(), Config{Dir: dir, Origin: testOrigin, Signer: s, Source: now, OutsideCheckpoint: outside})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := l.Integrate(t.Context()); err != nil {
				t.Fatal(err)
			}
			before := l.Checkpoint()
			disturb(t, l)
			now.records, now.leaves = src2.records, src2.leaves
			for range 2 {
				if _, err := l.Integrate(t.Context()); !errors.Is(err, ErrStopped) {
					t.Fatalf("Integrate: %v, want ErrStopped", err)
				}
			}
			if !errors.Is(l.Health(), ErrStopped) {
				t.Errorf("Health: %v", l.Health())
			}
			if !bytes.Equal(before, l.Checkpoint()) {
				t.Error("a checkpoint was shown that may not be durable")
			}
			if _, err := l.ProveInclusion(299, 300); err != nil {
				t.Errorf("what was signed can't be proved any more: %v", err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if err := l.Recover(t.Context()); !errors.Is(err, ErrStopped) {
				t.Errorf("Recover of a closed log: %v", err)
			}
			unblock(t, filepath.Join(dir, checkpointName))
			check(t, dir, outside, s, now, want)
		})
	}
}

// TestRecover: a log that has stopped goes on in place once writing works again, with what Open would have made; it
// says that it has stopped until then, and what was signed stays provable.
func TestRecover(t *testing.T) {
	s := newSigner(t)
	src := newLedger(t, s.Key(), 300)
	grown := src.prefix(300)
	grown.grow(t, s.Key(), 900)
	want := reference(t, s, grown)
	for name, hashes := range map[string]*failing{
		"nothing of the hashes written": {write: 1}, "half of them": {write: 1, keep: 0.51}, "fsync fails": {sync: 1}, "the checkpoint": nil,
	} {
		t.Run(name, func(t *testing.T) {
			dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "checkpoint")
			now := src.prefix(300)
			l, err := Open(t.Context(), Config{Dir: dir, Origin: testOrigin, Signer: s, Source: now, OutsideCheckpoint: outside})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := l.Integrate(t.Context()); err != nil || l.Recover(t.Context()) != nil || l.Stopped() != nil {
				t.Fatalf("a log that works: %v", err)
			}
			if hashes != nil {
				hashes.hashFile = l.hashes
				l.hashes = hashes
			} else {
				block(t, filepath.Join(dir, checkpointName))
			}
			now.records, now.leaves = grown.records, grown.leaves
			if _, err := l.Integrate(t.Context()); !errors.Is(err, ErrStopped) || !errors.Is(l.Stopped(), ErrStopped) {
				t.Fatalf("Integrate: %v, Stopped: %v", err, l.Stopped())
			}
			if hashes == nil {
				if err := l.Recover(t.Context()); !errors.Is(err, ErrStopped) || !errors.Is(l.Stopped(), ErrStopped) {
					t.Errorf("Recover while writing still fails: %v", err)
				}
			}
			unblock(t, filepath.Join(dir, checkpointName))
			if err := l.Recover(t.Context()); err != nil || l.Stopped() != nil {
				t.Fatalf("Recover: %v", err)
			}
			if got, err := l.Integrate(t.Context()); err != nil || got.Size != int64(len(grown.leaves)) {
				t.Errorf("Integrate: %+v, %v", got, err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			check(t, dir, outside, s, now, want)
		})
	}
	t.Run("a rollback stays one", func(t *testing.T) {
		now := grown.prefix(900)
		l := openLog(t, t.TempDir(), s, now)
		if _, err := l.Integrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		now.records, now.leaves = src.records, src.leaves
		if _, err := l.Integrate(t.Context()); !errors.Is(err, ErrRollback) {
			t.Fatal(err)
		}
		if err := l.Recover(t.Context()); !errors.Is(err, ErrRollback) || !errors.Is(l.Stopped(), ErrRollback) {
			t.Errorf("Recover: %v", err)
		}
	})
}

// block puts a directory that is not empty in the place of a file, so that no rename replaces it; unblock undoes it.
func block(t *testing.T, path string) {
	t.Helper()
	if err := os.Rename(path, path+".kept"); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(path, "file"), nil)
}

func unblock(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Stat(path + ".kept"); err != nil {
		return
	}
	if err := errors.Join(os.RemoveAll(path), os.Rename(path+".kept", path)); err != nil {
		t.Fatal(err)
	}
}

// TestAbuse_A49_rollback: a store or log directory from an old snapshot, or another history, is not signed in silence.
func TestAbuse_A49_rollback(t *testing.T) {
	s := newSigner(t)
	src := newLedger(t, s.Key(), 600)
	want := reference(t, s, src)
	other := src.prefix(300)
	other.grow(t, s.Key(), 900)
	early := src.prefix(600)
	early.leaves[3].Leaf.Event[5] ^= 1
	swapped := src.prefix(600)
	swapped.leaves[10].Leaf, swapped.leaves[11].Leaf = swapped.leaves[11].Leaf, swapped.leaves[10].Leaf
	for name, now := range map[string]*ledgerFake{
		"smaller": src.prefix(599), "much smaller": src.prefix(20), "empty": {}, "rolled back and gone on": other, "an early event edited": early, "two events swapped": swapped,
	} {
		t.Run(name, func(t *testing.T) {
			for _, lost := range []string{"nothing", "hashes", "log directory"} {
				dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "checkpoint")
				check(t, dir, outside, s, src, want)
				switch lost {
				case "hashes":
					_ = os.Remove(filepath.Join(dir, hashesName))
				case "log directory":
					dir = t.TempDir()
				}
				_, err := Open(t.Context(), Config{Dir: dir, Origin: testOrigin, Signer: s, Source: now, OutsideCheckpoint: outside})
				if !errors.Is(err, ErrRollback) {
					t.Errorf("Open with %s lost: %v", lost, err)
				}
				raw, err := os.ReadFile(outside)
				if c, err2 := s.Key().Open(raw); err != nil || err2 != nil || c.Root != oracleRoot(src.leaves) {
					t.Errorf("the copy outside was touched: %v, %v", err, err2)
				}
			}
		})
	}
}

// TestAbuse_A49_running: the store is replaced under a running log.
func TestAbuse_A49_running(t *testing.T) {
	s := newSigner(t)
	src := newLedger(t, s.Key(), 600)
	other := src.prefix(300)
	other.grow(t, s.Key(), 900)
	for name, now := range map[string]*ledgerFake{"smaller": src.prefix(599), "empty": {}, "rolled back and gone on": other} {
		live := src.prefix(600)
		l := openLog(t, t.TempDir(), s, live)
		if _, err := l.Integrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		live.records, live.leaves = now.records, now.leaves
		if _, err := l.Integrate(t.Context()); !errors.Is(err, ErrRollback) {
			t.Errorf("%s: %v", name, err)
		}
		live.records, live.leaves = src.records, src.leaves
		if _, err := l.Integrate(t.Context()); !errors.Is(err, ErrRollback) {
			t.Errorf("%s, and undone: a log that has refused once goes on: %v", name, err)
		}
	}
	early := src.prefix(600)
	l := openLog(t, t.TempDir(), s, early)
	if _, err := l.Integrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	early.leaves[3].Leaf.Event[5] ^= 1
	if err := l.Recheck(t.Context()); !errors.Is(err, ErrRollback) || !strings.Contains(err.Error(), "index 3") {
		t.Errorf("Recheck with an edited event: %v", err)
	}
	if _, err := l.Integrate(t.Context()); !errors.Is(err, ErrRollback) {
		t.Errorf("the log goes on after a failed Recheck: %v", err)
	}
}

// TestAbuse_A49_twins: two brokers from one snapshot share the copy outside; the second to sign has to notice.
func TestAbuse_A49_twins(t *testing.T) {
	s := newSigner(t)
	a := newLedger(t, s.Key(), 300)
	b := a.prefix(300)
	outside := filepath.Join(t.TempDir(), "checkpoint")
	var logs []*Log
	for _, src := range []*ledgerFake{a, b} {
		l, err := Open(t.Context(), Config{Dir: t.TempDir(), Origin: testOrigin, Signer: s, Source: src, OutsideCheckpoint: outside})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		logs = append(logs, l)
	}
	if _, err := logs[0].Integrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.grow(t, s.Key(), 310)
	b.grow(t, s.Key(), 320)
	if _, err := logs[1].Integrate(t.Context()); !errors.Is(err, ErrRollback) {
		t.Errorf("the twin: %v", err)
	}
	if _, err := logs[0].Integrate(t.Context()); err != nil {
		t.Errorf("the first one: %v", err)
	}
	if err := os.Remove(outside); err != nil {
		t.Fatal(err)
	}
	a.grow(t, s.Key(), 330)
	if _, err := logs[0].Integrate(t.Context()); !errors.Is(err, ErrRollback) {
		t.Errorf("with the copy outside taken away: %v", err)
	}
}

// TestAbuse_A51_skippedIndex: a source that skips, repeats, swaps or invents an index is not integrated.
func TestAbuse_A51_skippedIndex(t *testing.T) {
	s := newSigner(t)
	for name, disturb := range map[string]func(all []Entry) []Entry{
		"skipped":       func(all []Entry) []Entry { return append(all[:5:5], all[6:]...) },
		"first skipped": func(all []Entry) []Entry { return all[1:] },
		"repeated":      func(all []Entry) []Entry { return append(append(all[:5:5], all[4]), all[5:]...) },
		"swapped":       func(all []Entry) []Entry { return append(all[:5:5], append([]Entry{all[6], all[5]}, all[7:]...)...) },
		"negative":      func(all []Entry) []Entry { return append([]Entry{{Index: -1}}, all...) },
	} {
		src := newLedger(t, s.Key(), 20)
		src.leaves = disturb(src.leaves)
		dir := t.TempDir()
		l := openLog(t, dir, s, src)
		if _, err := l.Integrate(t.Context()); !errors.Is(err, ErrGap) {
			t.Errorf("%s: %v", name, err)
		}
		if l.Checkpoint() != nil {
			t.Errorf("%s: something was signed", name)
		}
	}
	if err := contiguous(make([]Entry, 3), 0, 2); !errors.Is(err, ErrGap) {
		t.Errorf("more than was asked for: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	s, other := newSigner(t), newSigner(t)
	src := newLedger(t, s.Key(), 10)
	good := Config{Dir: t.TempDir(), Origin: testOrigin, Signer: s, Source: src}
	for name, edit := range map[string]func(c *Config){
		"no directory": func(c *Config) { c.Dir = "" }, "no signer": func(c *Config) { c.Signer = nil }, "no source": func(c *Config) { c.Source = nil },
		"other origin": func(c *Config) { c.Origin = "other.example/log" }, "bad origin": func(c *Config) { c.Origin = "a b" },
		"outside in no directory": func(c *Config) { c.OutsideCheckpoint = filepath.Join(c.Dir, "no", "such") },
	} {
		c := good
		edit(&c)
		if _, err := Open(t.Context(), c); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	l := openLog(t, good.Dir, s, src)
	if _, err := l.Integrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := good
	c.Signer = other
	if _, err := Open(t.Context(), c); !errors.Is(err, proofs.ErrVerification) {
		t.Errorf("another key: %v", err)
	}
	empty, err := s.Sign(proofs.Checkpoint{Origin: testOrigin, Root: oracleRoot(nil)})
	if err != nil {
		t.Fatal(err)
	}
	c = good
	c.Dir = t.TempDir()
	writeFile(t, filepath.Join(c.Dir, checkpointName), empty)
	if _, err := Open(t.Context(), c); !errors.Is(err, ErrRollback) {
		t.Errorf("a checkpoint of an empty log: %v", err)
	}
}

func TestEmptyLog(t *testing.T) {
	s := newSigner(t)
	l := openLog(t, t.TempDir(), s, &ledgerFake{})
	if _, err := l.Integrate(t.Context()); !errors.Is(err, ErrEmpty) {
		t.Errorf("Integrate of nothing: %v", err)
	}
	if l.Checkpoint() != nil || l.Size() != 0 || l.Health() != nil {
		t.Errorf("an empty log has checkpoint %q, size %d, health %v", l.Checkpoint(), l.Size(), l.Health())
	}
}

// TestRun: Run integrates at the start, when told, and after a while by itself; it outlives a source's error, and
// ends with its context or with the log.
func TestRun(t *testing.T) {
	s := newSigner(t)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		src := newLedger(t, s.Key(), 10)
		l := openLog(t, dir, s, src)
		defer func() { _ = l.Close() }()
		ctx, cancel := context.WithCancel(t.Context())
		notify, done := make(chan struct{}, 1), make(chan error, 1)
		go func() { done <- l.Run(ctx, notify, 100*time.Millisecond) }()
		after := func(d time.Duration, want int64) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if l.Size() != want {
				t.Errorf("size %d, want %d", l.Size(), want)
			}
		}
		after(0, 10)
		src.grow(t, s.Key(), 20)
		notify <- struct{}{}
		after(99*time.Millisecond, 10) // not before minInterval
		after(2*time.Millisecond, 20)
		src.grow(t, s.Key(), 30)
		after(poll+200*time.Millisecond, 30) // untold
		src.mu.Lock()
		src.err = errDisk
		src.mu.Unlock()
		notify <- struct{}{}
		after(time.Second, 30)
		if !errors.Is(l.Health(), errDisk) {
			t.Errorf("Health: %v", l.Health())
		}
		src.mu.Lock()
		src.err = nil
		src.mu.Unlock()
		src.grow(t, s.Key(), 40)
		after(poll+time.Second, 40)
		if l.Health() != nil {
			t.Errorf("Health: %v", l.Health())
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		src.mu.Lock()
		src.leaves = src.leaves[:30]
		src.mu.Unlock()
		if err := l.Run(t.Context(), notify, 0); !errors.Is(err, ErrRollback) {
			t.Errorf("Run over a store that was rolled back: %v", err)
		}
	})
}
