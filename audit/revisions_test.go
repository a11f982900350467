package audit

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
)

// withRevisions is an export of a log that activated two revisions, one of them twice, with their archives.
func withRevisions(t *testing.T) (files map[string][]byte, archives [2][]byte, cfg ExportConfig) {
	t.Helper()
	archives = [2][]byte{[]byte("one"), []byte("two")}
	s := newSigner(t)
	src := newLedger(t, s.Key(), 40)
	for i, n := range []int{0, 1, 0} {
		d := event.Digest(sha256.Sum256(archives[n]))
		src.add(t, event.New(testStart.Add(time.Duration(50+i)*time.Second), "", event.RevisionActivated{Digest: d, Sequence: uint64(i + 1), Source: "test"}))
	}
	cfg = ExportConfig{Checkpoint: sign(t, s, src), Key: s.Key(), Events: src, Revisions: func(_ context.Context, digest event.Digest) ([]byte, error) {
		for _, a := range archives {
			if sha256.Sum256(a) == digest {
				return a, nil
			}
		}
		return nil, errors.New("none")
	}}
	dir := filepath.Join(t.TempDir(), "export")
	if _, err := Export(t.Context(), dir, cfg); err != nil {
		t.Fatal(err)
	}
	return readTree(t, dir), archives, cfg
}

// TestExportHoldsRevisions: an export has the archive of each revision that its events activate, once and no other, and
// what is not the very archive is found.
func TestExportHoldsRevisions(t *testing.T) {
	t.Parallel()
	files, archives, cfg := withRevisions(t)
	one, two := archiveName(sha256.Sum256(archives[0])), archiveName(sha256.Sum256(archives[1]))
	dir := writeTree(t, files)
	var seen int64
	report, err := Verify(t.Context(), dir, cfg.Key, VerifyOptions{Event: func(index int64, _ event.Event) error {
		if index != seen {
			t.Errorf("event %d, want %d", index, seen)
		}
		seen++
		return nil
	}})
	if err != nil || report.Files != len(files) || seen != 43 {
		t.Errorf("%+v, %d events, %v", report, seen, err)
	}
	if got, err := ReadRevision(dir, sha256.Sum256(archives[1])); err != nil || string(got) != "two" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := ReadRevision(dir, event.Digest{1}); !errors.Is(err, ErrNoRevision) {
		t.Errorf("another revision: %v", err)
	}
	stop := errors.New("stop")
	if _, err := Verify(t.Context(), dir, cfg.Key, VerifyOptions{Event: func(int64, event.Event) error { return stop }}); !errors.Is(err, stop) {
		t.Errorf("it goes on: %v", err)
	}
	for name, c := range map[string]struct {
		edit func(map[string][]byte)
		file string
	}{
		"altered": {func(f map[string][]byte) { f[one] = []byte("onf") }, one},
		"longer":  {func(f map[string][]byte) { f[two] = append([]byte("two"), make([]byte, maxRevision)...) }, two},
		"swapped": {func(f map[string][]byte) { f[one], f[two] = f[two], f[one] }, ""},
		"missing": {func(f map[string][]byte) { delete(f, one) }, one},
		"one more": {func(f map[string][]byte) {
			f[archiveName(sha256.Sum256([]byte("three")))] = []byte("three")
		}, archiveName(sha256.Sum256([]byte("three")))},
		"another name": {func(f map[string][]byte) {
			f[revisionsDir+"/"+strings.ToUpper(one[len(revisionsDir)+1:])] = archives[0]
		}, ""},
		"a layout without, and they are there": {func(f map[string][]byte) {
			f[manifestName] = []byte(strings.Replace(string(f[manifestName]), ExportFormat, exportFormatOld, 1))
		}, ""},
		"a layout without, and they are listed": {func(f map[string][]byte) {
			f[manifestName] = []byte(strings.Replace(string(f[manifestName]), ExportFormat, exportFormatOld, 1))
			delete(f, one)
			delete(f, two)
		}, manifestName},
	} {
		bad := maps.Clone(files)
		c.edit(bad)
		_, err := Verify(t.Context(), writeTree(t, bad), cfg.Key, VerifyOptions{})
		var fault *Fault
		if !errors.As(err, &fault) || c.file != "" && fault.File != c.file {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestExportRefusesOtherArchives: what the broker gives is not believed.
func TestExportRefusesOtherArchives(t *testing.T) {
	t.Parallel()
	_, _, cfg := withRevisions(t)
	for name, find := range map[string]func(context.Context, event.Digest) ([]byte, error){
		"another archive": func(context.Context, event.Digest) ([]byte, error) { return []byte("three"), nil },
		"none":            func(context.Context, event.Digest) ([]byte, error) { return nil, fmt.Errorf("gone") },
	} {
		cfg.Revisions = find
		dir := filepath.Join(t.TempDir(), "export")
		if _, err := Export(t.Context(), dir, cfg); err == nil {
			t.Errorf("%s: it was exported", name)
		}
	}
}
