package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/broker/server"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// behind makes a broker with a checkpoint outside that has a delivery, was copied, went on and is rolled back.
func behind(t *testing.T) *rig.Rig {
	t.Helper()
	r := rig.Start(t, rig.Config{Edit: func(c *config.Config) {
		c.Log.CheckpointCopy = filepath.Join(filepath.Dir(c.DataDir), "outside")
	}})
	r.Put("demo/hello", "standard", "one")
	if _, _, err := r.Raw("workload").Deliver(t.Context(), "demo/hello"); err != nil {
		t.Fatal(err)
	}
	r.Stop()
	old := t.TempDir()
	copyTo(t, r.Config.DataDir, old)
	r.Run()
	r.Put("demo/hello", "standard", "two")
	r.Stop()
	replace(t, old, r.Config.DataDir)
	return r
}

// copyTo copies what is in a directory that nobody writes to.
func copyTo(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, path)
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), text, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func replace(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	copyTo(t, from, to)
}

// opens tries to start a broker, and says why it does not.
func opens(t *testing.T, r *rig.Rig) error {
	t.Helper()
	s, err := server.Open(t.Context(), r.Config, server.Options{DevelopmentKey: r.Authority.DeviceKeyPublic()})
	if err == nil {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_ = s.Serve(ctx)
	}
	return err
}

// A restore that ends after any of its steps leaves a broker that does not start, says so, and is finished by the next
// run of the command, with one event of it in the log.
func TestRestoreIsTakenUp(t *testing.T) {
	r := behind(t)
	data, outside := t.TempDir(), r.Config.Log.CheckpointCopy
	copyTo(t, r.Config.DataDir, data)
	newest, err := os.ReadFile(outside)
	if err != nil {
		t.Fatal(err)
	}
	steps := 0
	for cut := true; cut; steps++ {
		beside, err := filepath.Glob(outside + "*")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range beside {
			_ = os.Remove(f)
		}
		replace(t, data, r.Config.DataDir)
		if err := os.WriteFile(outside, newest, 0o600); err != nil {
			t.Fatal(err)
		}
		errCut := errors.New("cut")
		err = server.RestoreCut(t.Context(), r.Config, func(step int) error {
			if step == steps {
				return errCut
			}
			return nil
		})
		if cut = err != nil; cut && !errors.Is(err, errCut) {
			t.Fatalf("after %d steps: %v", steps, err)
		}
		if cut {
			if err := opens(t, r); !errors.Is(err, audit.ErrRollback) && !errors.Is(err, server.ErrLogKey) {
				t.Errorf("after %d steps the broker starts, or: %v", steps, err)
			}
			if err := server.Init(t.Context(), r.Config, "test", nil); !errors.Is(err, server.ErrInitialised) && !errors.Is(err, server.ErrLogKey) {
				t.Errorf("after %d steps init goes on: %v", steps, err)
			}
			found, err := server.RestoreStopped(t.Context(), r.Config, server.RestoreOptions{})
			if want := map[bool]server.RestoreState{true: server.RestoreBehind, false: server.RestoreBegun}[steps < 2]; err != nil || found.State != want || found.Next != 2 {
				t.Errorf("after %d steps: %+v, %v", steps, found, err)
			}
			if found, err = server.RestoreStopped(t.Context(), r.Config, server.RestoreOptions{Confirm: true}); err != nil || found.State != server.RestoreDone || found.Incarnation != 2 {
				t.Fatalf("taken up after %d steps: %+v, %v", steps, found, err)
			}
		}
		checkRestored(t, r, newest)
	}
	if steps < 7 {
		t.Errorf("there were %d steps", steps)
	}
}

// checkRestored wants a whole second incarnation, without any session, and starts it.
func checkRestored(t *testing.T, r *rig.Rig, newest []byte) {
	t.Helper()
	outside := r.Config.Log.CheckpointCopy
	found, err := server.RestoreStopped(t.Context(), r.Config, server.RestoreOptions{})
	if err != nil || found.State != server.RestoreWhole || found.Incarnation != 2 || found.Live != 0 || len(found.Known) != 2 {
		t.Errorf("%+v, %v", found, err)
	}
	for _, k := range found.Known {
		if k.Incarnation != 2 || !k.Verified || !k.Held || k.Size != found.Size {
			t.Errorf("checkpoint %+v, of %d entries", k, found.Size)
		}
	}
	beside, _ := filepath.Glob(outside + ".incarnation-1.size-*")
	if len(beside) != 1 {
		t.Errorf("kept outside: %v", beside)
	} else if kept, err := os.ReadFile(beside[0]); err != nil || string(kept) != string(newest) {
		t.Errorf("kept outside: %q, %v", kept, err)
	}
	if logs, _ := filepath.Glob(filepath.Join(r.Config.DataDir, "log.incarnation-1.size-*", "checkpoint")); len(logs) != 1 {
		t.Errorf("kept logs: %v", logs)
	}
	if _, err := os.Stat(filepath.Join(r.Config.DataDir, "log.key.next")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the next key is still there: %v", err)
	}
	r.Run()
	defer r.Stop()
	restores, ended := 0, 0
	for _, e := range r.Events() {
		switch b := e.Body.(type) {
		case event.Restored:
			restores++
		case event.SessionsRevoked:
			ended += len(b.Sessions)
		}
	}
	if restores != 1 || ended != 1 {
		t.Errorf("%d restores, %d sessions have ended", restores, ended)
	}
	key, err := os.ReadFile(filepath.Join(r.Config.DataDir, "log.pub"))
	if err != nil || string(key) != r.Server.LogKey()+"\n" || !strings.HasPrefix(string(key), rig.TrustDomain+"/bulla/incarnation-2+") {
		t.Errorf("log.pub is %q, %v", key, err)
	}
}

// What stands in the way of a step is named, nothing is overwritten, and the command goes on once it is gone.
func TestRestoreOverwritesNothing(t *testing.T) {
	r := behind(t)
	found, err := server.RestoreStopped(t.Context(), r.Config, server.RestoreOptions{})
	if err != nil || found.State != server.RestoreBehind || found.Lost < 1 || found.Live != 1 {
		t.Fatalf("%+v, %v", found, err)
	}
	if len(found.Known) != 2 || found.Known[1].Held || !found.Known[0].Held {
		t.Errorf("%+v", found.Known)
	}
	outside := r.Config.Log.CheckpointCopy
	evidence, _ := filepath.Glob(outside + ".*")
	if len(evidence) != 0 {
		t.Fatal(evidence)
	}
	raw, err := os.ReadFile(outside)
	if err != nil {
		t.Fatal(err)
	}
	c, err := proofs.Peek(raw)
	if err != nil {
		t.Fatal(err)
	}
	confirm := func() error {
		_, err := server.RestoreStopped(t.Context(), r.Config, server.RestoreOptions{Confirm: true})
		return err
	}
	blocked := func(path string) {
		t.Helper()
		if err := os.WriteFile(path, []byte("somebody's"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := confirm(); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "run the command again") {
			t.Errorf("with %s in the way: %v", path, err)
		}
		if text, err := os.ReadFile(path); err != nil || string(text) != "somebody's" {
			t.Errorf("%s now holds %q, %v", path, text, err)
		}
		if err := opens(t, r); err == nil {
			t.Errorf("with %s in the way the broker starts", path)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	blocked(outside + ".incarnation-1.size-" + size(c.Size))
	blocked(filepath.Join(r.Config.DataDir, "log.incarnation-1.size-"+size(found.Known[0].Size)))
	if err := confirm(); err != nil {
		t.Fatal(err)
	}
	checkRestored(t, r, raw)
	if err := confirm(); !errors.Is(err, server.ErrWhole) {
		t.Errorf("once more: %v", err)
	}
}

func size(n int64) string { return strconv.FormatInt(n, 10) }

// A checkpoint that is damaged, or of another log, is no reason to restore, and no restore begins over it.
func TestRestoreRefusesForeignCheckpoints(t *testing.T) {
	r := behind(t)
	outside := r.Config.Log.CheckpointCopy
	good, err := os.ReadFile(outside)
	if err != nil {
		t.Fatal(err)
	}
	skey, _, err := proofs.NewLogKey(r.Config.Log.Origin)
	if err != nil {
		t.Fatal(err)
	}
	other, err := proofs.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := other.Sign(proofs.Checkpoint{Origin: r.Config.Log.Origin, Size: 1000})
	if err != nil {
		t.Fatal(err)
	}
	before := tree(t, r.Config.DataDir)
	for name, raw := range map[string][]byte{
		"no checkpoint": []byte("x"), "an empty file": {}, "of another log": []byte(strings.Replace(string(good), rig.TrustDomain, "other.example", 1)),
		"of another key": forged, "altered": bytes.Replace(good, []byte("bulla\n"), []byte("bulla\n1"), 1),
	} {
		for _, given := range []bool{false, true} {
			opts := server.RestoreOptions{Confirm: true}
			if given {
				opts.Checkpoint, raw = raw, good
			}
			if err := os.WriteFile(outside, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			if found, err := server.RestoreStopped(t.Context(), r.Config, opts); !errors.Is(err, proofs.ErrVerification) {
				t.Errorf("%s, given %t: %+v, %v", name, given, found, err)
			}
		}
	}
	if after := tree(t, r.Config.DataDir); !maps.Equal(before, after) {
		t.Error("something changed")
	}
}

// tree is all of a directory.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		out[path] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Another broker that signs while a restore is under way is found out, and nothing of its own is overwritten. A key that
// came with the backup is not used.
func TestRestoreNotices(t *testing.T) {
	r := behind(t)
	outside := r.Config.Log.CheckpointCopy
	stale := filepath.Join(r.Config.DataDir, "log.key.next")
	if err := os.WriteFile(stale, []byte("from the backup"), 0o600); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(filepath.Join(r.Config.DataDir, "log", "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	err = server.RestoreCut(t.Context(), r.Config, func(step int) error {
		if step == 5 {
			return os.WriteFile(outside, old, 0o600)
		}
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "has changed meanwhile") {
		t.Errorf("with a checkpoint outside that changes: %v", err)
	}
	if now, err := os.ReadFile(outside); err != nil || !bytes.Equal(now, old) {
		t.Errorf("the checkpoint outside is %q, %v", now, err)
	}
	first, err := os.ReadFile(stale)
	if err != nil || string(first) == "from the backup" {
		t.Errorf("the next key is %q, %v", first, err)
	}
	if err := opens(t, r); !errors.Is(err, server.ErrLogKey) {
		t.Errorf("the broker starts, or: %v", err)
	}
	if _, err := server.RestoreStopped(t.Context(), r.Config, server.RestoreOptions{Confirm: true}); err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(filepath.Join(r.Config.DataDir, "log.key")); err != nil || !bytes.Equal(now, first) {
		t.Errorf("the log key is not the one that the event names: %v", err)
	}
}

// Exports go on after a restore that brought their positions back with the ledger, and under the log's first name.
func TestRestoreKeepsExports(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events.jsonl")
	r := rig.Start(t, rig.Config{Edit: func(c *config.Config) {
		c.Log.CheckpointCopy = filepath.Join(filepath.Dir(c.DataDir), "outside")
		c.Export = config.Export{Sinks: []config.ExportSink{{Name: "file", File: file}}}
	}})
	codes := func() map[string]string { // of what has arrived, by uid: the last page comes again after a stop
		text, _ := os.ReadFile(file)
		out := map[string]string{}
		for line := range strings.Lines(string(text)) {
			var o struct {
				Metadata struct {
					UID  string `json:"uid"`
					Code string `json:"event_code"`
				}
			}
			if json.Unmarshal([]byte(line), &o) == nil {
				out[o.Metadata.UID] = o.Metadata.Code
			}
		}
		return out
	}
	// arrived waits until all that the ledger has is in the file, each under its index and id.
	arrived := func() {
		for i, e := range r.Events() {
			uid := fmt.Sprintf("%s#%d#%s", r.Config.Log.Origin, i, e.ID)
			eventually(t, uid+" arrives", func() bool { return codes()[uid] == string(e.Body.EventType()) })
		}
	}
	r.Put("demo/hello", "standard", "one")
	arrived()
	r.Stop()
	old := t.TempDir()
	copyTo(t, r.Config.DataDir, old)
	r.Run()
	r.Put("demo/hello", "standard", "two")
	arrived()
	r.Stop()
	replace(t, old, r.Config.DataDir)
	if _, err := server.RestoreStopped(t.Context(), r.Config, server.RestoreOptions{Confirm: true}); err != nil {
		t.Fatal(err)
	}
	r.Run()
	r.Put("demo/hello", "standard", "three")
	arrived()
	if !slices.Contains(slices.Collect(maps.Values(codes())), string(event.TypeRestored)) {
		t.Error("the restore is not in the export")
	}
}
