package keyring_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bulla-project/bulla/keyring"
)

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustWrite(t testing.TB, path string, data []byte, perm fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, data, perm); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, perm); err != nil { // whatever the umask
		t.Fatal(err)
	}
}

func TestFilesAreTheirOwnersAlone(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	r, c := newRing(t)
	if err := r.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{c.Path, c.KEKFile} {
		st, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != 0o600 {
			t.Errorf("%s has mode %v", filepath.Base(path), st.Mode())
		}
	}
	if n := len(mustRead(t, c.KEKFile)); n != 32 {
		t.Errorf("the key file has %d bytes", n)
	}
	if got := entries(t, filepath.Dir(c.Path)); len(got) != 2 {
		t.Errorf("left behind: %v", got)
	}
}

func entries(t testing.TB, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

// Every byte of the keyset file counts: altered, it opens nothing.
func TestKeysetFileRefusesEveryAlteration(t *testing.T) {
	_, c := newRing(t)
	kek, err := keyring.OpenFileKEK(c.KEKFile)
	if err != nil {
		t.Fatal(err)
	}
	everyAlteration(mustRead(t, c.Path), func(what string, altered []byte) {
		if strings.Contains(what, "bit") && !strings.HasPrefix(what, "bit 0") && !strings.HasPrefix(what, "bit 5") {
			return // the lowest bit, and the one between upper and lower case
		}
		mustWrite(t, c.Path, altered, 0o600)
		r, err := keyring.Open(t.Context(), keyring.Config{Path: c.Path, KEK: kek, Create: true})
		if r != nil || !errors.Is(err, keyring.ErrCorrupt) && !errors.Is(err, keyring.ErrWrongKEK) && !errors.Is(err, keyring.ErrOpen) {
			t.Errorf("%s: %v, %v", what, r, err)
		}
		if err != nil && (!strings.Contains(err.Error(), c.Path) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s: the error is no sentence that names the file: %v", what, err)
		}
	})
}

func TestKeysetFilesOfTwoRingsDoNotMix(t *testing.T) {
	a, ca := newRing(t)
	kek, err := keyring.OpenFileKEK(ca.KEKFile)
	if err != nil {
		t.Fatal(err)
	}
	other := ca.Path + "2"
	if _, err := keyring.Open(t.Context(), keyring.Config{Path: other, KEK: kek, Create: true}); err != nil {
		t.Fatal(err)
	}
	// The same key-encryption key wraps both; each part of one file is put into the other.
	parts := func(path string) []string { return strings.Split(string(mustRead(t, path)), `","`) }
	pa, pb := parts(ca.Path), parts(other)
	for i := range pa {
		if pa[i] == pb[i] {
			continue
		}
		mixed := append([]string(nil), pa...)
		mixed[i] = pb[i]
		mustWrite(t, ca.Path, []byte(strings.Join(mixed, `","`)), 0o600)
		if _, err := keyring.OpenLocal(t.Context(), ca); !errors.Is(err, keyring.ErrOpen) {
			t.Errorf("with %.20s… of another ring: %v", pb[i], err)
		}
	}
	if err := a.Rotate(t.Context()); !errors.Is(err, keyring.ErrChanged) {
		t.Errorf("rotation over a file that was altered: %v", err)
	}
}

func TestKeyFileIsRefused(t *testing.T) {
	dir := t.TempDir()
	good := bytes.Repeat([]byte{7}, 32)
	for _, c := range []struct {
		name string
		make func(path string) error
		want string
	}{
		{"group", func(p string) error { mustWrite(t, p, good, 0o640); return nil }, "has mode 0640"},
		{"world", func(p string) error { mustWrite(t, p, good, 0o604); return nil }, "has mode 0604"},
		{"world-writable", func(p string) error { mustWrite(t, p, good, 0o602); return nil }, "has mode 0602"},
		{"short", func(p string) error { mustWrite(t, p, good[:31], 0o600); return nil }, "has 31 bytes, a key has exactly 32"},
		{"long", func(p string) error { mustWrite(t, p, append(good, '\n'), 0o600); return nil }, "has 33 bytes"},
		{"empty", func(p string) error { mustWrite(t, p, nil, 0o600); return nil }, "has 0 bytes"},
		{"zeros", func(p string) error { mustWrite(t, p, make([]byte, 32), 0o600); return nil }, "nothing but zeros"},
		{"directory", func(p string) error { return os.Mkdir(p, 0o700) }, "is no regular file"},
		{"pipe", func(p string) error { return syscall.Mkfifo(p, 0o600) }, "is no regular file"},
		{"missing", func(string) error { return nil }, "no such file"},
		{"link", func(p string) error {
			mustWrite(t, p+".target", good, 0o600)
			return os.Symlink(p+".target", p)
		}, "is a symbolic link"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, c.name)
			if err := c.make(path); err != nil {
				t.Fatal(err)
			}
			_, err := keyring.OpenFileKEK(path)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want one that names the file and says %q", err, c.want)
			}
		})
	}
}

func TestKeyFileOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	path := filepath.Join(t.TempDir(), "kek")
	mustWrite(t, path, bytes.Repeat([]byte{7}, 32), 0o600)
	if err := os.Chown(path, 12345, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := keyring.OpenFileKEK(path); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
		t.Errorf("error %v", err)
	}
}

func TestFileKEK(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek")
	k, err := keyring.CreateFileKEK(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keyring.CreateFileKEK(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a key file was replaced: %v", err)
	}
	again, err := keyring.OpenFileKEK(path)
	if err != nil {
		t.Fatal(err)
	}
	if k.ID() != again.ID() || len(k.ID()) != len("file:")+16 {
		t.Errorf("IDs %s and %s", k.ID(), again.ID())
	}
	wrapped, err := k.Wrap(t.Context(), []byte("key"), []byte("aad"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := again.Unwrap(t.Context(), wrapped, []byte("aad")); err != nil || string(got) != "key" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := again.Unwrap(t.Context(), wrapped, []byte("aae")); !errors.Is(err, keyring.ErrOpen) {
		t.Errorf("other aad: %v", err)
	}
	everyAlteration(wrapped, func(what string, altered []byte) {
		if _, err := k.Unwrap(t.Context(), altered, []byte("aad")); !errors.Is(err, keyring.ErrOpen) {
			t.Errorf("%s: %v", what, err)
		}
	})
}

func TestOpenWithoutFiles(t *testing.T) {
	_, c := newRing(t)
	keysetGone, kekGone := c, c
	keysetGone.Path += "x"
	kekGone.KEKFile += "x"
	if _, err := keyring.OpenLocal(t.Context(), keysetGone); !errors.Is(err, keyring.ErrNoKeyset) {
		t.Errorf("no keyset: %v", err)
	}
	// Also with Create a new key is never made for a keyset that needs the old one.
	kekGone.Create = true
	if _, err := keyring.OpenLocal(t.Context(), kekGone); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "restore it from the backup") {
		t.Errorf("no key file: %v", err)
	}
	if _, err := os.Lstat(kekGone.KEKFile); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a new key file was made beside a keyset that needs the old one")
	}
	if _, err := keyring.Open(t.Context(), keyring.Config{Path: c.Path}); err == nil {
		t.Error("opened without a key-encryption key")
	}
	other, err := keyring.CreateFileKEK(c.KEKFile + "y")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keyring.Open(t.Context(), keyring.Config{Path: c.Path, KEK: other, Create: true}); !errors.Is(err, keyring.ErrWrongKEK) {
		t.Errorf("another key file: %v", err)
	}
}

func TestKeysetPathThatIsNoFile(t *testing.T) {
	_, c := newRing(t)
	kek, err := keyring.OpenFileKEK(c.KEKFile)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	huge := filepath.Join(dir, "huge")
	mustWrite(t, huge, nil, 0o600)
	if err := os.Truncate(huge, 1<<40); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{dir: "is no regular file", pipe: "is no regular file", huge: "too large", filepath.Join(c.Path, "x"): "not a directory"} {
		if _, err := keyring.Open(t.Context(), keyring.Config{Path: path, KEK: kek, Create: true}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", filepath.Base(path), err, want)
		}
	}
}

// A first start that was cut off after any of its steps is finished by the next one.
func TestFirstStartCutOff(t *testing.T) {
	_, whole := newRing(t)
	kek := mustRead(t, whole.KEKFile)
	for name, prepare := range map[string]func(dir string){
		"nothing":           func(string) {},
		"half a key file":   func(dir string) { mustWrite(t, filepath.Join(dir, ".kek.0123456789abcdef.tmp"), kek[:9], 0o600) },
		"key file":          func(dir string) { mustWrite(t, filepath.Join(dir, "kek"), kek, 0o600) },
		"key file, 2 names": func(dir string) { linkTwice(t, dir, kek) },
		"half a keyset": func(dir string) {
			mustWrite(t, filepath.Join(dir, "kek"), kek, 0o600)
			mustWrite(t, filepath.Join(dir, ".keyset.0123456789abcdef.tmp"), mustRead(t, whole.Path)[:100], 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			prepare(dir)
			c := keyring.LocalConfig{Path: filepath.Join(dir, "keyset"), KEKFile: filepath.Join(dir, "kek"), Create: true}
			r, err := keyring.OpenLocal(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			ct := seal(t, r, keyring.PurposeSecret, "v", "")
			if _, err := reopen(t, c).Open(keyring.PurposeSecret, ct, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

// linkTwice is the moment between the two steps of giving a file its name.
func linkTwice(t *testing.T, dir string, kek []byte) {
	temp := filepath.Join(dir, ".kek.0123456789abcdef.tmp")
	mustWrite(t, temp, kek, 0o600)
	if err := os.Link(temp, filepath.Join(dir, "kek")); err != nil {
		t.Fatal(err)
	}
}

// Of many first starts at once on one directory, those that succeed share one ring.
func TestFirstStartsAtOnce(t *testing.T) {
	dir := t.TempDir()
	kek, err := keyring.CreateFileKEK(filepath.Join(dir, "kek"))
	if err != nil {
		t.Fatal(err)
	}
	c := keyring.Config{Path: filepath.Join(dir, "keyset"), KEK: kek, Create: true}
	ids := make(chan string, 8)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if r, err := keyring.Open(context.Background(), c); err == nil {
				ids <- r.ID()
			}
		})
	}
	wg.Wait()
	close(ids)
	r, err := keyring.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for id := range ids {
		if n++; id != r.ID() {
			t.Errorf("ring %s was handed out, the file holds %s", id, r.ID())
		}
	}
	if n == 0 {
		t.Error("none succeeded")
	}
}

// A rotation that can't be written leaves the ring and the file as they were.
func TestRotateThatCannotWrite(t *testing.T) {
	r, c := newRing(t)
	before := mustRead(t, c.Path)
	moved := filepath.Dir(c.Path) + ".moved"
	if err := os.Rename(filepath.Dir(c.Path), moved); err != nil {
		t.Fatal(err)
	}
	if err := r.Rotate(t.Context()); err == nil {
		t.Fatal("rotated into a directory that is away")
	}
	if err := os.Rename(moved, filepath.Dir(c.Path)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, mustRead(t, c.Path)) || len(r.Keys()) != 1 {
		t.Error("something was changed")
	}
	ct := seal(t, r, keyring.PurposeSecret, "v", "")
	if _, err := reopen(t, c).Open(keyring.PurposeSecret, ct, nil); err != nil {
		t.Errorf("what was sealed after the failure: %v", err)
	}
	if err := r.Rotate(t.Context()); err != nil {
		t.Errorf("the next rotation: %v", err)
	}
}

// The child process of the test below is this test binary, started again.
const envChild = "KEYRING_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(envChild); dir != "" {
		rotateForEver(dir)
	}
	os.Exit(m.Run())
}

// rotateForEver reports each key once it may be used, and never returns.
func rotateForEver(dir string) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	r, err := keyring.OpenLocal(context.Background(), keyring.LocalConfig{Path: filepath.Join(dir, "keyset"), KEKFile: filepath.Join(dir, "kek"), Create: true})
	fail(err)
	for {
		keys := r.Keys()
		fmt.Println(keys[len(keys)-1].ID)
		fail(r.Rotate(context.Background()))
	}
}

// Killed at any moment, the first start included, the next start finds every key that was ever in use.
func TestKilledWhileRotating(t *testing.T) {
	dir := t.TempDir()
	c := keyring.LocalConfig{Path: filepath.Join(dir, "keyset"), KEKFile: filepath.Join(dir, "kek"), Create: true}
	used := map[string]bool{}
	for round := range 10 {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), envChild+"="+dir)
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		kill := func() { _ = child.Process.Kill() }
		lines, seen := bufio.NewScanner(out), 0
		if round < 4 { // somewhere in the start
			time.AfterFunc(time.Duration(rand.IntN(20_000))*time.Microsecond, kill)
		}
		for lines.Scan() {
			used[lines.Text()] = true
			if seen++; seen == 3 {
				time.AfterFunc(time.Duration(rand.IntN(2000))*time.Microsecond, kill)
			}
		}
		_ = child.Wait() // it was killed
		have := map[string]bool{}
		for _, k := range reopen(t, c).Keys() {
			have[fmt.Sprint(k.ID)] = true
		}
		for id := range used {
			if !have[id] {
				t.Fatalf("round %d: key %s was in use and is gone", round, id)
			}
		}
	}
	if len(used) < 6*2 { // six children got to three keys each, the first of which may be known already
		t.Errorf("only %d keys were ever in use", len(used))
	}
}
