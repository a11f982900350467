package place

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// defaultPoll is how often a file is looked at.
const defaultPoll = 2 * time.Second

// Config names the file.
type Config struct {
	File string
	Poll time.Duration // how often to look whether it was replaced; 0: every two seconds
	Log  *slog.Logger  // nil: silent
}

// Source is a database that follows its file. A new file takes the place of the one before as a whole, or, where
// it is refused, not at all. It is safe for concurrent use.
type Source struct {
	cfg     Config
	current atomic.Pointer[Database]
	stop    chan struct{}
	once    sync.Once
	tasks   sync.WaitGroup

	mu      sync.Mutex  // guards what follows
	seen    os.FileInfo // of the file that was read last, refused or not
	verdict error       // on what was seen
	fault   error       // why what lies there now is not in use
}

// Open reads the file, and fails where it is refused. Close ends the looking.
func Open(cfg Config) (*Source, error) {
	if cfg.Poll <= 0 {
		cfg.Poll = defaultPoll
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Source{cfg: cfg, stop: make(chan struct{})}
	if err := s.Refresh(); err != nil {
		return nil, err
	}
	s.tasks.Go(s.poll)
	return s, nil
}

// Close ends the looking and waits for that. The database can be asked still.
func (s *Source) Close() error {
	s.once.Do(func() { close(s.stop) })
	s.tasks.Wait()
	return nil
}

// Database is the one in use: what is asked of one value comes from one file.
func (s *Source) Database() *Database { return s.current.Load() }

// Find returns the place of an address, and the database that said so.
func (s *Source) Find(addr netip.Addr) (Place, *Database) {
	d := s.current.Load()
	return d.Find(addr), d
}

// Fault says why the file is not the database in use; nil: it is.
func (s *Source) Fault() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault
}

func (s *Source) poll() {
	ticker := time.NewTicker(s.cfg.Poll)
	defer ticker.Stop()
	said := ""
	for {
		select {
		case <-s.stop:
			return
		case <-ticker.C:
		}
		before := s.current.Load()
		err := s.Refresh()
		if after := s.current.Load(); after != before {
			s.cfg.Log.Info("the database of places was replaced", "path", s.cfg.File, "digest", after.digest, "built", after.Built())
		}
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text != said && text != "" {
			s.cfg.Log.Error("the new database of places is not taken: the one before stays in use", "path", s.cfg.File, "error", err)
		}
		said = text
	}
}

// Refresh looks at the file now, and says why it is not the database in use, if so. A file that has not changed
// since it was looked at is not read again.
func (s *Source) Refresh() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = s.refresh()
	return s.fault
}

// refresh is Refresh; the caller holds mu.
func (s *Source) refresh() error {
	before, err := os.Stat(s.cfg.File)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrDatabase, err)
	case same(before, s.seen):
		return s.verdict
	case !before.Mode().IsRegular() || before.Size() > MaxSize:
		return fmt.Errorf("%w: %s is no regular file of at most %d bytes", ErrDatabase, s.cfg.File, MaxSize)
	}
	f, err := os.Open(s.cfg.File)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDatabase, err)
	}
	defer func() { _ = f.Close() }() // opened for reading: nothing to lose
	data := make([]byte, before.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		return fmt.Errorf("%w: read %s: %w", ErrDatabase, s.cfg.File, err)
	}
	after, err := f.Stat()
	if err != nil || !same(before, after) {
		return fmt.Errorf("%w: %s changes while it is read: put a new file in its place with a rename", ErrDatabase, s.cfg.File)
	}
	s.seen, s.verdict = after, nil
	d, err := Parse(data)
	if err != nil {
		s.verdict = fmt.Errorf("%s: %w", s.cfg.File, err)
		return s.verdict
	}
	s.current.Store(d)
	return nil
}

// same says whether two looks saw the same file, unchanged.
func same(a, b os.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
