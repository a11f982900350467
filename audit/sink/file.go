package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/bulla-project/bulla/internal/durable"
)

// File appends lines to a file, and returns when they are on the disk. The file may be rotated: when another one, or none,
// has its name, the next lines go to a new one. A line that a crash cut off is ended, so that it spoils no other: it is
// no JSON, and its event comes again.
type File struct {
	path string
	mu   sync.Mutex // guards f, which is nil when it has to be opened
	f    *os.File
}

// NewFile returns a sink; the file is opened, or made, with the first lines.
func NewFile(path string) *File { return &File{path: path} }

// Write implements Sink.
func (s *File) Write(_ context.Context, lines []Line) ([]Refusal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(); err != nil {
		return nil, err
	}
	_, err := s.f.Write(join(lines))
	if err == nil {
		err = s.f.Sync()
	}
	if err != nil { // what is in the file now is for open to see
		err = errors.Join(fmt.Errorf("append: %w", err), s.drop())
	}
	return nil, err
}

// open makes sure that f is the file that has the name now. The caller holds mu.
func (s *File) open() error {
	if s.f != nil {
		named, err := os.Stat(s.path)
		have, failure := s.f.Stat()
		if err == nil && failure == nil && os.SameFile(named, have) {
			return nil
		}
		if err := s.drop(); err != nil {
			return err
		}
	}
	// Not blocking: a FIFO without a reader would be waited for.
	f, err := os.OpenFile(s.path, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	if err := settle(f, s.path); err != nil {
		return errors.Join(err, f.Close())
	}
	s.f = f
	return nil
}

// settle refuses what is no file, ends a line that was cut off, and makes the file's name durable.
func settle(f *os.File, path string) error {
	about, err := f.Stat()
	if err != nil {
		return err
	}
	if !about.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file", path)
	}
	if about.Size() > 0 {
		var last [1]byte
		if _, err := f.ReadAt(last[:], about.Size()-1); err != nil {
			return fmt.Errorf("read the end of %s: %w", path, err)
		}
		if last[0] != '\n' {
			if _, err := f.Write([]byte("\n")); err != nil {
				return fmt.Errorf("append: %w", err)
			}
		}
	}
	return durable.SyncDir(filepath.Dir(path))
}

// drop closes the file. The caller holds mu.
func (s *File) drop() error {
	f := s.f
	s.f = nil
	if f == nil {
		return nil
	}
	return f.Close()
}

// Close implements Sink.
func (s *File) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drop()
}

// Stream writes lines to a stream. What it took counts as arrived; a file behind it is synced. A line that a failure cut
// off is ended before anything else is written, as in a File. Its methods may be called by one goroutine at a time.
type Stream struct {
	W io.Writer

	cut bool // W ends within a line
}

// Write implements Sink.
func (s *Stream) Write(_ context.Context, lines []Line) ([]Refusal, error) {
	text := join(lines)
	if s.cut {
		text = append([]byte("\n"), text...)
	}
	n, err := s.W.Write(text)
	if n = min(max(n, 0), len(text)); n > 0 {
		s.cut = text[n-1] != '\n'
	}
	if err != nil {
		return nil, err
	}
	if f, ok := s.W.(*os.File); ok {
		if err := f.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) { // a pipe or a terminal
			return nil, err
		}
	}
	return nil, nil
}

// Close implements Sink; the stream is the caller's.
func (s *Stream) Close() error { return nil }

func join(lines []Line) []byte {
	size := 0
	for _, l := range lines {
		size += len(l.JSON) + 1
	}
	out := make([]byte, 0, size)
	for _, l := range lines {
		out = append(append(out, l.JSON...), '\n')
	}
	return out
}
