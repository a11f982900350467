package durable_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bulla-project/bulla/internal/durable"
)

// names returns what the directory of the file under test holds.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func mustRead(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestWriteFileReplacesContentAndMode(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, step := range []struct {
		data string
		perm fs.FileMode
	}{{"first, and longer", 0o600}, {"second", 0o644}, {"", 0o640}} {
		if err := durable.WriteFile(path, []byte(step.data), step.perm); err != nil {
			t.Fatal(err)
		}
		if got := mustRead(t, path); got != step.data {
			t.Errorf("content %q, want %q", got, step.data)
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != step.perm {
			t.Errorf("mode %v, want %v whatever the umask", st.Mode().Perm(), step.perm)
		}
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
}

func TestWriteFileReplacesALinkInsteadOfFollowingIt(t *testing.T) {
	dir := t.TempDir()
	target, path := filepath.Join(dir, "target"), filepath.Join(dir, "f")
	if err := os.WriteFile(target, []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(path, []byte("ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := mustRead(t, target); got != "theirs" {
		t.Errorf("the link was followed: target now holds %q", got)
	}
	if got := mustRead(t, path); got != "ours" {
		t.Errorf("content %q", got)
	}
}

func TestCreateFileNeverReplaces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := durable.CreateFile(path, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := durable.CreateFile(path, []byte("second"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("second create: %v, want fs.ErrExist", err)
	}
	if got := mustRead(t, path); got != "first" {
		t.Errorf("content %q", got)
	}
	dangling := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "nowhere"), dangling); err != nil {
		t.Fatal(err)
	}
	if err := durable.CreateFile(dangling, []byte("x"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("create over a dangling link: %v, want fs.ErrExist", err)
	}
	if got := names(t, dir); len(got) != 2 {
		t.Errorf("left behind: %v", got)
	}
}

func TestCreateFileHasOneWinner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	var wg sync.WaitGroup
	won := make(chan string, 32)
	for i := range 32 {
		wg.Go(func() {
			mine := strconv.Itoa(i)
			switch err := durable.CreateFile(path, []byte(mine), 0o600); {
			case err == nil:
				won <- mine
			case !errors.Is(err, fs.ErrExist):
				t.Errorf("create: %v", err)
			}
		})
	}
	wg.Wait()
	close(won)
	var winners []string
	for w := range won {
		winners = append(winners, w)
	}
	if len(winners) != 1 || mustRead(t, path) != winners[0] {
		t.Fatalf("winners %v, content %q", winners, mustRead(t, path))
	}
}

func TestErrorsNameThePath(t *testing.T) {
	dir := t.TempDir()
	occupied := filepath.Join(dir, "d")
	if err := os.MkdirAll(filepath.Join(occupied, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"no directory": durable.WriteFile(filepath.Join(dir, "none", "f"), nil, 0o600),
		"a directory":  durable.WriteFile(occupied, nil, 0o600),
		"mode":         durable.WriteFile(filepath.Join(dir, "m"), nil, 0o600|fs.ModeSetuid),
		"sync":         durable.SyncDir(filepath.Join(dir, "none")),
		"temps":        durable.RemoveTemps(filepath.Join(dir, "none", "f")),
	} {
		if err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: error %v should name the path", name, err)
		}
		if errors.Is(err, durable.ErrNotDurable) {
			t.Errorf("%s: %v claims that the new content is in place", name, err)
		}
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
}

func TestRemoveTempsTakesOnlyItsOwn(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	keep := []string{"f", "f.tmp", ".f.tmp", ".f.0123.tmp", ".f.x.0123456789abcdef.tmp", ".g.0123456789abcdef.tmp", ".f.0123456789abcdeg.tmp"}
	for _, n := range append(keep, ".f.0123456789abcdef.tmp", ".f.ffffffffffffffff.tmp") {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := durable.RemoveTemps(path); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); len(got) != len(keep) {
		t.Errorf("left %v, want %v", got, keep)
	}
}

// The child processes of the tests below are this test binary, started again with these variables.
const (
	envChild = "DURABLE_TEST_CHILD"
	envPath  = "DURABLE_TEST_PATH"
)

func TestMain(m *testing.M) {
	switch os.Getenv(envChild) {
	case "":
		os.Exit(m.Run())
	case "loop":
		childLoop(os.Getenv(envPath))
	case "full":
		childFull(os.Getenv(envPath))
	}
}

// content is a file whose every line repeats its number: a mixture of two is noticed.
func content(n int) []byte {
	return bytes.Repeat(fmt.Appendf(nil, "%d\n", n), 4000+n%7*500)
}

// childLoop writes content(0), content(1), … and reports each number once it is durable, until killed.
func childLoop(path string) {
	for n := 0; ; n++ {
		if err := durable.WriteFile(path, content(n), 0o600); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(n)
	}
}

// childFull replaces the file while the system refuses to let files grow, as a full disk does.
func childFull(path string) {
	signal.Ignore(syscall.SIGXFSZ)
	limit := syscall.Rlimit{Cur: 1000, Max: 1000}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		fmt.Println("setrlimit:", err)
		return
	}
	fmt.Println(durable.WriteFile(path, content(1), 0o600))
}

func child(t *testing.T, mode, path string) *exec.Cmd {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), envChild+"="+mode, envPath+"="+path)
	c.Stderr = os.Stderr
	return c
}

func TestFullDiskLeavesTheOldFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := durable.WriteFile(path, content(0), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := child(t, "full", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), "file too large") {
		t.Fatalf("write on a full disk answered %q", out)
	}
	if mustRead(t, path) != string(content(0)) {
		t.Error("the old content is gone")
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
}

func TestKilledWriterLeavesAWholeFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for round := range 12 {
		killWriterOnce(t, path, time.Duration(rand.IntN(3000))*time.Microsecond)
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	if err := durable.RemoveTemps(path); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
}

// killWriterOnce kills a writer some time after its third file and checks what is there.
func killWriterOnce(t *testing.T, path string, after time.Duration) {
	t.Helper()
	c := child(t, "loop", path)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	acked := -1
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if acked, err = strconv.Atoi(lines.Text()); err != nil {
			t.Fatal(err)
		}
		if acked == 2 {
			time.AfterFunc(after, func() { _ = c.Process.Kill() })
		}
	}
	_ = c.Wait() // it was killed
	got := mustRead(t, path)
	first, _, _ := strings.Cut(got, "\n")
	n, err := strconv.Atoi(first)
	if err != nil || got != string(content(n)) {
		t.Errorf("the file is none that was written: it starts with %q and has %d bytes", first, len(got))
	}
	if n < acked || n > acked+1 {
		t.Errorf("the file is number %d, the last one reported as durable was %d", n, acked)
	}
}
