package e2e

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// exportShape is the answer of `audit export`, verifiedShape that of a verification that holds.
func exportShape(dir string) fields {
	return fields{"dir": is(dir), "origin": is("dev.bulla.test/log"), "size": whole, "root": base64Text, "files": whole, "log_key": word}
}

func verifiedShape() fields {
	return fields{
		"ok": is(true), "origin": is("dev.bulla.test/log"), "size": whole, "root": base64Text, "files": whole, "bytes": whole,
		"against": orNull(anyObject), "witnessed": is(nil), "witnesses": list(anyObject), "restores": list(anyObject), "erased": whole, "manifest_sha256": matching(digestPattern), "summary": word,
	}
}

// TestExportsProveThemselves exports twice, verifies offline, and then spoils copies in every way that a person
// without the key could.
func TestExportsProveThemselves(t *testing.T) {
	t.Parallel()
	d := shared(t)
	d.put(t, "demo/audit", "high", "audit-canary-8f1d")
	d.get(t, d.as(t, "workload"), "demo/audit")
	auditor, base := d.as(t, "auditor"), t.TempDir()
	first, second, key := filepath.Join(base, "first"), filepath.Join(base, "second"), d.path("log.pub")
	made := run(t, auditor, "audit", "export", "--out", first, "--log-key", key, "-o", "json").want(t, done).object(t, exportShape(first))
	for _, name := range []string{"checkpoint", "tile", "manifest"} {
		if !exists(filepath.Join(first, name)) {
			t.Errorf("the export has no %s", name)
		}
	}
	verified := run(t, nil, "audit", "verify", first, "--key", key, "-o", "json").want(t, done).object(t, verifiedShape())
	if verified["size"] != made["size"] || verified["root"] != made["root"] {
		t.Errorf("exported %v, verified %v", made, verified)
	}
	d.put(t, "demo/audit", "high", "audit-canary-8f1d-2")
	run(t, auditor, "audit", "export", "--out", second).want(t, done)
	run(t, nil, "audit", "verify", "--against", filepath.Join(first, "checkpoint"), second, "--key", key).want(t, done)
	// Someone hands out an old export: only the checkpoint that was kept shows it.
	run(t, nil, "audit", "verify", first, "--key", key, "--against", filepath.Join(second, "checkpoint")).want(t, verification)
	run(t, auditor, "audit", "export", "--out", first).want(t, wrongUsage).says(t, "exists already")

	for name, text := range exportFiles(t, second) {
		if strings.Contains(text, "audit-canary") {
			t.Errorf("%s holds a secret", name)
		}
	}
	spoil(t, second, key)
	otherKey := filepath.Join(base, "other.pub")
	write(t, otherKey, "dev.bulla.test/log+91e2aa53+AR2blOf8OWYXzUQ2wBNEBdEH8Xz0aWaqFkBnLCCvFBOa\n", 0o600)
	if r := run(t, nil, "audit", "verify", second, "--key", otherKey); r.code != verification && r.code != wrongUsage {
		t.Errorf("another key: exit code %d: %s", r.code, r.stderr)
	}
}

// exportFiles are all files of an export.
func exportFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			out[name] = read(t, filepath.Join(dir, name))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// spoil changes copies of an export, one place at a time; each has to fail with exit code 5 and name the place.
func spoil(t *testing.T, good, key string) {
	t.Helper()
	fault := fields{"ok": is(false), "fault": object(fields{"file": word, "index": whole, "what": word})}
	try := func(what string, change func(dir string) error) {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "copy")
			if err := os.CopyFS(dir, os.DirFS(good)); err != nil {
				t.Fatal(err)
			}
			if err := change(dir); err != nil {
				t.Fatal(err)
			}
			run(t, nil, "audit", "verify", dir, "--key", key, "-o", "json").want(t, verification).object(t, fault)
		})
	}
	files := exportFiles(t, good)
	for name, text := range files {
		for place, at := range map[string]int{"first": 0, "middle": len(text) / 2, "last": len(text) - 1} {
			try("bit of "+place+" byte of "+name, func(dir string) error {
				data := []byte(text)
				data[at] ^= 1
				return os.WriteFile(filepath.Join(dir, name), data, 0o600)
			})
		}
		try("without "+name, func(dir string) error { return os.Remove(filepath.Join(dir, name)) })
	}
	try("one file more", func(dir string) error { return os.WriteFile(filepath.Join(dir, "tile", "more"), nil, 0o600) })
	try("one signature more", func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "checkpoint"), []byte(files["checkpoint"]+"— example.org AAAAAAAA\n"), 0o600)
	})
	try("a link in place of a file", func(dir string) error {
		path := filepath.Join(dir, "checkpoint")
		if err := os.Rename(path, dir+".checkpoint"); err != nil {
			return err
		}
		return os.Symlink(dir+".checkpoint", path)
	})
}

// TestRebuild compares state and events: live by those who may, and on the data directory of a stopped broker.
func TestRebuild(t *testing.T) {
	t.Parallel()
	d := ownDev(t)
	d.put(t, "demo/rebuild", "standard", "x")
	d.get(t, d.as(t, "workload"), "demo/rebuild")
	report := fields{"ok": is(true), "events": whole, "rows": whole, "differences": list(word)}
	for _, who := range []string{"operator", "auditor"} {
		run(t, d.as(t, who), "audit", "rebuild", "--check", "-o", "json").want(t, done).object(t, report)
	}
	stopped := []string{"audit", "rebuild", "--check", "--data", d.path("broker"), "--kek-file", d.path("kek"), "-o", "json"}
	run(t, nil, stopped...).want(t, failed)
	events := len(strings.Split(strings.TrimSpace(run(t, d.as(t, "auditor"), "audit", "tail").want(t, done).stdout), "\n"))
	d.stop(t)
	got := run(t, nil, stopped...).want(t, done).object(t, report)
	if n, err := got["events"].(json.Number).Int64(); err != nil || n < int64(events) {
		t.Errorf("the stopped store has %v events, and %d were read from it", got["events"], events)
	}
	wrong := filepath.Join(t.TempDir(), "kek")
	write(t, wrong, strings.Repeat("k", 32), 0o600)
	run(t, nil, "audit", "rebuild", "--check", "--data", d.path("broker"), "--kek-file", wrong).want(t, failed)
	run(t, nil, "audit", "rebuild", "--check", "--data", d.path("broker")).want(t, wrongUsage).says(t, "--kek-file")
	run(t, nil, "audit", "rebuild", "--check", "--data", t.TempDir(), "--kek-file", d.path("kek")).want(t, failed)
	run(t, nil, "audit", "rebuild").want(t, wrongUsage).says(t, "--check")
}

// TestTailFollows prints what comes until it is interrupted.
func TestTailFollows(t *testing.T) {
	t.Parallel()
	d := shared(t)
	p := launch(t, d.as(t, "auditor"), "audit", "tail", "--follow", "--from", "-1", "-o", "json")
	until(t, "the follower prints what there is", func() bool { return strings.Contains(p.stdout.String(), `"audit.tail"`) })
	d.put(t, "demo/tail", "standard", "x")
	until(t, "the follower prints what comes", func() bool { return strings.Contains(p.stdout.String(), `"demo/tail"`) })
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	p.exit(t, done)
	for _, line := range strings.Split(strings.TrimSuffix(p.stdout.String(), "\n"), "\n") {
		if !json.Valid([]byte(line)) {
			t.Errorf("a line is not JSON: %s", line)
		}
	}
}
