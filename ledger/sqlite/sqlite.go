// Package sqlite is the ledger's embedded store: one SQLite file (pure Go, no cgo), in write-ahead mode with
// an fsync per transaction, written by one connection and read by several.
//
// A batch is one transaction. What its records demand is checked against the rows as the records before
// them leave them, in memory; only what was accepted is written, each row once. So a refused record leaves
// nothing without a savepoint, and any error while writing undoes the whole batch. Since no other process
// may open the file (a lock file says so), the writer keeps hot rows in memory.
//
// Checkpoints of the write-ahead log run beside the commits, not in them. Deleted rows are overwritten
// (secure_delete). Recover opens the file anew after an error that leaves in doubt what is on the disk.
//
// What it does not do: it encrypts nothing (package ledger does), makes no backups, and does not work on
// network file systems, whose locks and shared memory can't be relied on.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"modernc.org/sqlite"

	"github.com/bulla-project/bulla/internal/durable"
	"github.com/bulla-project/bulla/ledger"
)

// What Open can find.
var (
	// ErrLocked: another process has the ledger open.
	ErrLocked = errors.New("another process has this ledger open")
	// ErrForeign: the file is not a ledger of this product and version.
	ErrForeign = errors.New("not a ledger that this version of bulla can open")
)

// pageSize is that of a new file. Events and stored replies take 2 to 5 KB each: of the default pages of 4 KiB each would
// take one or two and leave much of them empty, and what a commit costs is the pages that it writes, twice.
const pageSize = "page_size(8192)"

// busyTimeout is how long a statement waits for another connection, in milliseconds.
const busyTimeout = "busy_timeout(5000)"

// readers is how many snapshots can be open at a time; more wait.
const readers = 8

var _ ledger.Store = (*Store)(nil)

// Store implements ledger.Store on a SQLite file.
type Store struct {
	path string
	lock *os.File
	gate chan struct{} // a slot for each open snapshot

	write  sync.Mutex // held by whoever writes: Append, Sweep, Recover, the end of a checkpoint
	w      *writer    // guarded by write; nil after a failed Recover, and after Close
	broken error      // guarded by write: why nothing is written until Recover
	closed bool       // guarded by write

	read sync.Mutex
	r    *reader // guarded by read; nil after Close

	checkpoints *checkpointer
}

// Open opens the ledger in the file at path, or makes it, with its directory, if there is none.
func Open(ctx context.Context, path string) (*Store, error) {
	s, err := open(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("open ledger %s: %w", path, err)
	}
	return s, nil
}

func open(ctx context.Context, path string) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	s := &Store{path: path, lock: lock, gate: make(chan struct{}, readers)}
	if err = prepareFile(path); err == nil {
		err = s.start(ctx)
	}
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	s.checkpoints = startCheckpoints(s)
	return s, nil
}

// lockFile takes the lock that keeps a second process out; the system drops it when this one ends.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: stop it first", ErrLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// prepareFile makes an empty file that only its owner reads, or checks that nobody else reads the one there.
// SQLite gives the files beside it the same permissions.
func prepareFile(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrExist) {
		info, err := os.Lstat(path)
		switch {
		case err != nil:
			return err
		case !info.Mode().IsRegular():
			return fmt.Errorf("%w: it is no regular file", ErrForeign)
		case info.Mode().Perm()&0o077 != 0:
			return fmt.Errorf("its permissions are %#o, so that others can reach it: chmod 600 %s", info.Mode().Perm(), path)
		}
		return nil
	}
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

// start opens the connections. Readers that were there before stay until their snapshots are closed.
func (s *Store) start(ctx context.Context) error {
	if err := identify(ctx, s.path); err != nil {
		return err
	}
	w, err := openWriter(ctx, s.path)
	if err != nil {
		return err
	}
	r, err := openReader(ctx, s.path)
	if err != nil {
		return errors.Join(err, w.close())
	}
	s.w = w
	return s.swapReader(r)
}

// swapReader makes r the pool for new snapshots; the old one is closed with the last of its own.
func (s *Store) swapReader(r *reader) error {
	s.read.Lock()
	defer s.read.Unlock()
	old := s.r
	s.r = r
	if old == nil {
		return nil
	}
	old.retired = true
	if old.users > 0 {
		return nil
	}
	return old.close()
}

// connect returns a pool of connections to the file, each with the pragmas given.
func connect(path string, pragmas ...string) (*sql.DB, error) {
	query := url.Values{"_pragma": append([]string{busyTimeout, "foreign_keys(0)", "trusted_schema(0)"}, pragmas...)}
	connector, err := sqlite.NewConnector((&url.URL{Scheme: "file", Path: path, RawQuery: query.Encode()}).String())
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

// identify refuses a file that is not ours before anything in it is changed, and makes the tables in an
// empty one, in one transaction.
func identify(ctx context.Context, path string) error {
	db, err := connect(path, pageSize, "synchronous(FULL)")
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	f, err := formatOf(ctx, db)
	if err != nil {
		return err
	}
	switch {
	case f == format{}:
		return create(ctx, db)
	case f.app != applicationID:
		return fmt.Errorf("%w: it is a database of another program (application id %#x)", ErrForeign, f.app)
	case f.version > schemaVersion:
		return fmt.Errorf("%w: its format is %d, this program reads %d: use the newer version that wrote it", ErrForeign, f.version, schemaVersion)
	case f.version != schemaVersion:
		return fmt.Errorf("%w: its format is %d, this program reads %d: start the broker, which brings it up to date", ErrForeign, f.version, schemaVersion)
	}
	return nil
}

// format is what a file says that it is.
type format struct{ app, version, tables int64 }

func formatOf(ctx context.Context, db *sql.DB) (f format, err error) {
	for _, q := range []struct {
		text string
		into *int64
	}{{"PRAGMA application_id", &f.app}, {"PRAGMA user_version", &f.version}, {"SELECT count(*) FROM sqlite_schema", &f.tables}} {
		if err := db.QueryRowContext(ctx, q.text).Scan(q.into); err != nil {
			if code(err) == codeNotADB {
				return f, fmt.Errorf("%w: it is no SQLite database", ErrForeign)
			}
			return f, err
		}
	}
	return f, nil
}

func create(ctx context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, schema); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d", applicationID, schemaVersion)); err != nil {
		return err
	}
	return tx.Commit()
}

// Recover implements ledger.Store. Reading goes on meanwhile.
//
// A commit whose fsync failed lies behind the end of the write-ahead log, where a crash could bring it back.
// The probe is written over it through a new handle, and synced; from then on it can't.
func (s *Store) Recover(ctx context.Context) error {
	s.write.Lock()
	defer s.write.Unlock()
	if s.closed {
		return fmt.Errorf("recover ledger %s: it is closed", s.path)
	}
	s.broken = errors.New("it has not recovered yet")
	if s.w != nil {
		_ = s.w.close() // it is given up because it failed: what closing says is no news
		s.w = nil
	}
	err := s.start(ctx)
	if err == nil {
		err = s.w.probe(ctx)
	}
	if err != nil {
		s.broken = err
		return fmt.Errorf("recover ledger %s: %w", s.path, err)
	}
	s.broken = nil
	s.checkpoints.scrub() // the batch that failed may be there, and an erasure in it
	return nil
}

// Close implements ledger.Store. Snapshots that are open stay readable until they are closed.
func (s *Store) Close() error {
	s.write.Lock()
	if s.closed {
		s.write.Unlock()
		return nil
	}
	s.closed = true
	s.write.Unlock()
	s.checkpoints.close()
	s.write.Lock()
	defer s.write.Unlock()
	errs := []error{s.swapReader(nil)}
	if s.w != nil {
		errs = append(errs, s.w.close())
		s.w = nil
	}
	if err := errors.Join(append(errs, s.lock.Close())...); err != nil {
		return fmt.Errorf("close ledger %s: %w", s.path, err)
	}
	return nil
}
