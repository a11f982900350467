package abuse

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// export is what the auditor's Export stream gave.
type export struct {
	Checkpoint []byte
	Witnessed  []byte
	Key        proofs.Key
	Records    []audit.Record
}

// Records implements audit.EventSource.
type records []audit.Record

func (r records) Records(_ context.Context, from int64, most int) ([]audit.Record, error) {
	rest := r[from:]
	return rest[:min(most, len(rest))], nil
}

// exported takes an export over the wire.
func exported(t *testing.T, r *rig.Rig) export {
	t.Helper()
	stream, err := bullav1.NewAuditClient(r.Client("auditor").Conn()).Export(t.Context(), &bullav1.ExportRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var out export
	for {
		item, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(item.GetCheckpoint()) > 0 {
			out.Checkpoint, out.Witnessed = item.GetCheckpoint(), item.GetWitnessed()
			if out.Key, err = proofs.ParseKey(item.GetLogKey()); err != nil {
				t.Fatal(err)
			}
		}
		for _, rec := range item.GetRecords() {
			a := audit.Record{Index: rec.GetIndex(), Encoding: rec.GetEncoding(), EventSalt: event.Salt(rec.GetEventSalt()), ReplySalt: event.Salt(rec.GetReplySalt())}
			if len(rec.GetReply()) > 0 {
				a.Reply = event.Digest(rec.GetReply())
			}
			out.Records = append(out.Records, a)
		}
	}
}

// write makes the directory of an export.
func (x export) write(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "export")
	_, err := audit.Export(t.Context(), dir, audit.ExportConfig{Checkpoint: x.Checkpoint, Key: x.Key, Events: records(x.Records)})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// fault verifies the export in dir and returns what is wrong with it.
func fault(t *testing.T, dir string, key proofs.Key, opts audit.VerifyOptions) *audit.Fault {
	t.Helper()
	_, err := audit.Verify(t.Context(), dir, key, opts)
	var f *audit.Fault
	if err != nil && !errors.As(err, &f) {
		t.Fatalf("verify: %v", err)
	}
	return f
}

// history makes a broker with some deliveries, refusals and a revocation, and exports its log.
func history(t *testing.T) (*rig.Rig, export) {
	t.Helper()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "hello")
	w := r.Raw("workload")
	for range 3 {
		_, o := opened(t, w, "demo/hello")
		if _, err := acknowledge(t, w, receipt(t, w, o)); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := r.Raw("stranger").Deliver(t.Context(), "demo/hello"); err == nil {
		t.Fatal("the stranger got it")
	}
	return r, exported(t, r)
}

// exportFiles lists the files of an export.
func exportFiles(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, path)
		}
		return err
	})
	if err != nil || len(out) < 5 {
		t.Fatalf("files of the export: %v, %v", out, err)
	}
	return out
}

// eventsFile is the one with the events of a small export, and its lines.
func eventsFile(t *testing.T, dir string) (path string, lines []string) {
	t.Helper()
	for _, f := range exportFiles(t, dir) {
		if strings.Contains(f, "/events/") {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			return f, strings.SplitAfter(strings.TrimSuffix(string(text), "\n"), "\n")
		}
	}
	t.Fatal("the export has no events")
	return "", nil
}

func overwrite(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Every byte of an export counts, and verification names the file.
func TestAbuse_A29_one_byte(t *testing.T) {
	_, x := history(t)
	dir := x.write(t)
	if f := fault(t, dir, x.Key, audit.VerifyOptions{}); f != nil {
		t.Fatal(f)
	}
	step := 97
	if long() {
		step = 1
	}
	for _, path := range exportFiles(t, dir) {
		name, err := filepath.Rel(dir, path)
		if err != nil {
			t.Fatal(err)
		}
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(good); i += step {
			bad := append([]byte{}, good...)
			bad[i] ^= 1
			overwrite(t, path, bad)
			f := fault(t, dir, x.Key, audit.VerifyOptions{})
			if f == nil {
				t.Fatalf("byte %d of %s was changed, and the export verifies", i, name)
			}
			// The manifest lists every file, so either of the two may be named where it speaks of the other.
			if f.File != name && name != "manifest" && f.File != "manifest" {
				t.Errorf("byte %d of %s was changed, and %s is named: %v", i, name, f.File, f)
			}
		}
		overwrite(t, path, good)
	}
	if f := fault(t, dir, x.Key, audit.VerifyOptions{}); f != nil {
		t.Fatal(f)
	}
}

// What is taken out, swapped, cut off or added is named with the place where it begins.
func TestAbuse_A29_removed_swapped_cut(t *testing.T) {
	_, x := history(t)
	last := int64(len(x.Records) - 1)
	for name, c := range map[string]struct {
		change func(lines []string) []string
		index  int64
	}{
		"an event removed":   {func(l []string) []string { return append(append([]string{}, l[:4]...), l[5:]...) }, 4},
		"two events swapped": {func(l []string) []string { l[3], l[4] = l[4], l[3]; return l }, 3},
		"the tail cut":       {func(l []string) []string { return l[:len(l)-1] }, last},
		"an event doubled":   {func(l []string) []string { return append(l, l[len(l)-1]) }, last + 1},
	} {
		t.Run(name, func(t *testing.T) {
			dir := x.write(t)
			path, lines := eventsFile(t, dir)
			lines[len(lines)-1] = strings.TrimSuffix(lines[len(lines)-1], "\n") + "\n"
			overwrite(t, path, []byte(strings.Join(c.change(lines), "")))
			f := fault(t, dir, x.Key, audit.VerifyOptions{})
			if f == nil || f.Index != c.index || !strings.Contains(f.File, "events") {
				t.Errorf("named: %v, want event %d", f, c.index)
			}
		})
	}
	t.Run("a file removed", func(t *testing.T) {
		for i := range exportFiles(t, x.write(t)) {
			dir := x.write(t)
			path := exportFiles(t, dir)[i]
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			name, _ := filepath.Rel(dir, path)
			if _, err := audit.Verify(t.Context(), dir, x.Key, audit.VerifyOptions{}); err == nil || !strings.Contains(err.Error(), filepath.Base(name)) {
				t.Errorf("%s was removed: %v", name, err)
			}
		}
	})
	t.Run("a file added", func(t *testing.T) {
		dir := x.write(t)
		overwrite(t, filepath.Join(dir, "tile", "extra"), []byte("x"))
		if f := fault(t, dir, x.Key, audit.VerifyOptions{}); f == nil || f.File != "tile/extra" {
			t.Errorf("named: %v", f)
		}
	})
	t.Run("what the stream gave, changed on its way", func(t *testing.T) {
		for name, change := range map[string]func(r []audit.Record) []audit.Record{
			"removed": func(r []audit.Record) []audit.Record { return append(r[:4], r[5:]...) },
			"swapped": func(r []audit.Record) []audit.Record { r[3], r[4] = r[4], r[3]; return r },
			"cut":     func(r []audit.Record) []audit.Record { return r[:len(r)-1] },
			"salted":  func(r []audit.Record) []audit.Record { r[4].EventSalt[0] ^= 1; return r },
			"reply":   func(r []audit.Record) []audit.Record { r[4].Reply[0] ^= 1; return r },
		} {
			changed := change(append([]audit.Record{}, x.Records...))
			_, err := audit.Export(t.Context(), filepath.Join(t.TempDir(), "export"), audit.ExportConfig{Checkpoint: x.Checkpoint, Key: x.Key, Events: records(changed)})
			if err == nil {
				t.Errorf("%s: it was exported", name)
			}
		}
	})
}

// Whoever rewrites the whole history, with a tree of their own over it, has not the log's key; and whoever has
// the key can't make the new tree fit a checkpoint that was seen before.
func TestAbuse_A29_rewritten(t *testing.T) {
	r, x := history(t)
	other := rig.Start(t, rig.Config{})
	other.Put("demo/hello", "standard", "hello")
	for range 40 {
		_, _ = opened(t, other.Raw("workload"), "demo/hello")
	}
	y := exported(t, other)
	if f := fault(t, y.write(t), x.Key, audit.VerifyOptions{}); f == nil || f.File != "checkpoint" {
		t.Errorf("another history under another key: %v", f)
	}
	// The same key: the history goes on, is cut back to what an auditor saw, and grows another way.
	r.Stop()
	fork := copyOf(t, r.Config.DataDir)
	r.Run()
	r.Put("demo/second", "standard", "one")
	seen := exported(t, r)
	r.Stop()
	restore(t, fork, r.Config.DataDir)
	r.Run()
	for range 8 {
		r.Put("demo/other", "standard", "two")
	}
	z := exported(t, r)
	if len(z.Records) < len(seen.Records) {
		t.Fatal("the fork is too short to be compared")
	}
	dir := z.write(t)
	if f := fault(t, dir, x.Key, audit.VerifyOptions{}); f != nil {
		t.Fatalf("the fork by itself is consistent, and signed: %v", f)
	}
	if f := fault(t, dir, x.Key, audit.VerifyOptions{Against: x.Checkpoint}); f != nil {
		t.Errorf("a checkpoint from before the fork: %v", f)
	}
	f := fault(t, dir, x.Key, audit.VerifyOptions{Against: seen.Checkpoint})
	if f == nil || !strings.Contains(f.What, "not") {
		t.Errorf("a checkpoint that the other branch signed: %v", f)
	}
	// An older export is no proof of what came since.
	if f := fault(t, x.write(t), x.Key, audit.VerifyOptions{Against: seen.Checkpoint}); f == nil {
		t.Error("a tail is missing, and nothing says so")
	}
}

// Every event that was committed has its index, without a gap, in the log as in the ledger.
func TestAbuse_A51_every_event_has_an_index(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "hello")
	w := r.Raw("workload")
	told := map[int64]string{} // event id by the index that the client was told
	requests := signed(w, "demo/hello", 64)
	type answer struct {
		reply *bullav1.DeliverReply
		err   error
	}
	answers := make(chan answer, len(requests))
	for _, q := range requests {
		go func() {
			reply, err := w.Broker.Deliver(t.Context(), q)
			answers <- answer{reply, err}
		}()
	}
	for range requests {
		a := <-answers
		if a.err != nil {
			t.Fatal(a.err)
		}
		if was, twice := told[a.reply.GetLogIndex()]; twice {
			t.Fatalf("index %d was given to %s and %s", a.reply.GetLogIndex(), was, a.reply.GetEventId())
		}
		told[a.reply.GetLogIndex()] = a.reply.GetEventId()
	}
	x := exported(t, r)
	head, err := x.Key.Open(x.Checkpoint)
	if err != nil || head.Size != int64(len(x.Records)) {
		t.Fatalf("the checkpoint signs %d entries, the export has %d events (%v)", head.Size, len(x.Records), err)
	}
	ids := map[string]bool{}
	for i, rec := range x.Records {
		e, err := event.Decode(rec.Encoding)
		if err != nil || rec.Index != int64(i) || ids[e.ID.String()] {
			t.Fatalf("place %d holds event %s with index %d (%v)", i, e.ID, rec.Index, err)
		}
		ids[e.ID.String()] = true
		if want, ok := told[rec.Index]; ok && want != e.ID.String() {
			t.Errorf("index %d: the client was told event %s, the log has %s", rec.Index, want, e.ID)
		}
		delete(told, rec.Index)
	}
	if len(told) > 0 {
		t.Errorf("deliveries without a place in the log: %v", told)
	}
	r.Check()
}
