package abuse

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/broker/server"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/sqlite"
	"github.com/bulla-project/bulla/test/rig"
)

// copyOf copies a directory that nobody writes to.
func copyOf(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return os.Chmod(path, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// restore puts a copy in the place of a directory.
func restore(t *testing.T, from, dir string) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(dir), os.CopyFS(dir, os.DirFS(from))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ledger.db", "ledger.db-wal", "ledger.db-shm", "keyring", "log.key", "envelope.key"} {
		if err := os.Chmod(filepath.Join(dir, name), 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// only restores one entry of a copy.
func only(t *testing.T, from, dir, name string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
	src := filepath.Join(from, name)
	info, err := os.Stat(src)
	if err != nil {
		t.Fatal(err)
	}
	if info.IsDir() {
		err = os.CopyFS(filepath.Join(dir, name), os.DirFS(src))
	} else {
		var text []byte
		if text, err = os.ReadFile(src); err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o600)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// refusesToStart demands that a broker on the rig's data ends at once, and says why.
func refusesToStart(t *testing.T, r *rig.Rig, want error) {
	t.Helper()
	s, err := server.Open(t.Context(), r.Config, server.Options{DevelopmentKey: r.Authority.DeviceKeyPublic()})
	if err == nil {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		t.Fatal("it started", s.Serve(ctx))
	}
	if !errors.Is(err, want) {
		t.Errorf("it did not start: %v, want %v", err, want)
	}
}

// rolled makes a broker that keeps its checkpoint outside, stops it, copies its data and lets it go on for a while.
func rolled(t *testing.T, outside bool) (r *rig.Rig, old string) {
	t.Helper()
	r = rig.Start(t, rig.Config{Edit: func(c *config.Config) {
		if outside {
			c.Log.CheckpointCopy = filepath.Join(filepath.Dir(c.DataDir), "outside")
		}
	}})
	r.Put("demo/hello", "standard", "one")
	r.Stop()
	old = copyOf(t, r.Config.DataDir)
	r.Run()
	r.Put("demo/hello", "standard", "two")
	if _, _, err := r.Raw("workload").Deliver(t.Context(), "demo/hello"); err != nil {
		t.Fatal(err)
	}
	r.Stop()
	return r, old
}

// The whole data directory rolled back: only the checkpoint outside shows it, and the broker refuses to start.
func TestAbuse_A49_data_rolled_back(t *testing.T) {
	r, old := rolled(t, true)
	newest := copyOf(t, r.Config.DataDir)
	restore(t, old, r.Config.DataDir)
	refusesToStart(t, r, audit.ErrRollback)
	refusesToStart(t, r, audit.ErrRollback) // the refusal repaired nothing
	restore(t, newest, r.Config.DataDir)
	r.Run()
	r.Check()
}

// The database alone rolled back: the log beside it is ahead.
func TestAbuse_A49_database_rolled_back(t *testing.T) {
	r, old := rolled(t, false)
	for _, name := range []string{"ledger.db-wal", "ledger.db-shm"} {
		_ = os.Remove(filepath.Join(r.Config.DataDir, name))
	}
	only(t, old, r.Config.DataDir, "ledger.db")
	refusesToStart(t, r, audit.ErrRollback)
}

// The log alone rolled back loses nothing: it is made again from the events, and goes on from there.
func TestAbuse_A49_log_rolled_back(t *testing.T) {
	r, old := rolled(t, true)
	only(t, old, r.Config.DataDir, "log")
	r.Run()
	x := exported(t, r)
	outside, err := os.ReadFile(r.Config.Log.CheckpointCopy)
	if err != nil {
		t.Fatal(err)
	}
	if f := fault(t, x.write(t), x.Key, audit.VerifyOptions{Against: outside}); f != nil {
		t.Error(f)
	}
	r.Check()
}

// A second broker on the same data is refused while the first one runs, and the first one runs on.
func TestAbuse_A49_two_brokers_one_directory(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "one")
	refusesToStart(t, r, sqlite.ErrLocked)
	if _, _, err := r.Raw("workload").Deliver(t.Context(), "demo/hello"); err != nil {
		t.Errorf("the first broker: %v", err)
	}
	r.Check()
}

// Two brokers from one snapshot: both know the checkpoint outside, and the second to sign finds that it is not
// its own. It says so, signs nothing more and is not ready; the first goes on.
func TestAbuse_A49_two_brokers_one_snapshot(t *testing.T) {
	r, _ := rolled(t, true)
	clone := copyOf(t, r.Config.DataDir)
	cfg := r.Config
	cfg.DataDir, cfg.Listen = clone, "127.0.0.1:0"
	second, err := server.Open(t.Context(), cfg, server.Options{DevelopmentKey: r.Authority.DeviceKeyPublic()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- second.Serve(ctx) }()
	defer func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	}()
	r.Run() // the first, on the original
	r.Put("demo/hello", "standard", "three")
	head := func() int64 {
		raw, err := os.ReadFile(r.Config.Log.CheckpointCopy)
		if err != nil {
			t.Fatal(err)
		}
		key := exported(t, r).Key
		c, err := key.Open(raw)
		if err != nil {
			t.Fatal(err)
		}
		return c.Size
	}
	signedByFirst := head()

	conn := r.Client("operator", func(c *client.Config) { c.Address = second.Addr().String() }).Conn()
	_, err = bullav1.NewSecretsClient(conn).PutSecret(t.Context(), &bullav1.PutSecretRequest{Name: "demo/fork", Class: "standard", Value: []byte("x"), RequestId: requestID()})
	if err != nil {
		t.Fatalf("the ledger of the clone can't know yet: %v", err)
	}
	eventually(t, "the clone finds out", func() bool {
		for _, c := range second.Broker.Health(t.Context()) {
			if c.Name == "log" && c.Err != nil {
				if !errors.Is(c.Err, audit.ErrRollback) {
					t.Fatalf("health of the clone's log: %v", c.Err)
				}
				return true
			}
		}
		return false
	})
	inside, err := os.ReadFile(filepath.Join(clone, "log", "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	key := exported(t, r).Key
	if c, err := key.Open(inside); err != nil || c.Size > signedByFirst {
		t.Errorf("the clone signed on: %+v, %v", c, err)
	}
	w := r.RawAt("workload", second.Addr().String())
	reply, _, err := w.Deliver(t.Context(), "demo/hello")
	wantCode(t, "a delivery that no signed log will ever hold", err, codes.Unavailable, "ledger")
	if len(reply.GetEnvelope()) > 0 {
		t.Error("and it came with an envelope")
	}
	r.Put("demo/hello", "standard", "four")
	r.Check()
}
