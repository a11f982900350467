package sink

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func lines(indexes ...int64) (out []Line) {
	for _, i := range indexes {
		out = append(out, Line{Index: i, Time: at, JSON: fmt.Appendf(nil, `{"metadata":{"sequence":%d}}`, i)})
	}
	return out
}

// sequences reads the indexes of a file; a line that is no JSON is -1.
func sequences(t *testing.T, path string) (out []int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	scan := bufio.NewScanner(f)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		var l struct {
			Metadata struct{ Sequence *int64 }
		}
		if json.Unmarshal(scan.Bytes(), &l) != nil || l.Metadata.Sequence == nil {
			out = append(out, -1)
			continue
		}
		out = append(out, *l.Metadata.Sequence)
	}
	return out
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	s := NewFile(path)
	write := func(indexes ...int64) {
		t.Helper()
		if _, err := s.Write(t.Context(), lines(indexes...)); err != nil {
			t.Fatal(err)
		}
	}
	write(0, 1)
	if about, err := os.Stat(path); err != nil || about.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", about.Mode(), err)
	}
	if err := os.Rename(path, path+".1"); err != nil { // rotated
		t.Fatal(err)
	}
	write(2)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write(3)
	if err := os.Truncate(path, 0); err != nil { // rotated by copying
		t.Fatal(err)
	}
	write(4)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"metadata":{"seq`); err != nil { // a crash cut a line off
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	write(5)
	if got := fmt.Sprint(sequences(t, path+".1"), sequences(t, path)); got != "[0 1] [4 -1 5]" {
		t.Error(got)
	}
}

func TestFileRefusesWhatIsNone(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, dir, "/dev/null", filepath.Join(dir, "no", "such")} {
		_, err := NewFile(path).Write(t.Context(), lines(0))
		if err == nil {
			t.Errorf("%s was written to", path)
		}
		if about, failure := os.Stat(path); failure == nil && !about.IsDir() && !strings.Contains(err.Error(), "no regular file") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// full is a stream that takes nothing.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestStream(t *testing.T) {
	var b strings.Builder
	if _, err := (&Stream{W: &b}).Write(t.Context(), lines(1, 2)); err != nil || strings.Count(b.String(), "\n") != 2 {
		t.Errorf("%q, %v", b.String(), err)
	}
	if _, err := (&Stream{W: full{}}).Write(t.Context(), lines(1)); err == nil {
		t.Error("a full stream is no error")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := (&Stream{W: w}).Write(t.Context(), lines(1)); err != nil {
		t.Errorf("a pipe can't be synced, and that is no error: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// narrow is a stream that takes so many bytes and is full then.
type narrow struct {
	strings.Builder
	room int
}

func (n *narrow) Write(b []byte) (int, error) {
	if len(b) <= n.room {
		n.room -= len(b)
		return n.Builder.Write(b)
	}
	took, _ := n.Builder.Write(b[:n.room])
	n.room = 0
	return took, syscall.ENOSPC
}

// A line that was cut off spoils no other: the events of the page that come again are all there.
func TestStreamEndsWhatWasCutOff(t *testing.T) {
	whole := len(join(lines(0)))
	for room := range 2*whole + 1 {
		w := &narrow{room: room}
		s := &Stream{W: w}
		if _, err := s.Write(t.Context(), lines(0, 1, 2)); err == nil {
			t.Fatalf("%d bytes of room are enough", room)
		}
		w.room = 1 << 10
		if _, err := s.Write(t.Context(), lines(0, 1, 2)); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "stream")
		if err := os.WriteFile(path, []byte(w.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(sequences(t, path)); !strings.HasSuffix(got, "0 1 2]") && got != "[0 1 2]" {
			t.Errorf("after %d bytes: %s in %q", room, got, w.String())
		}
	}
}
