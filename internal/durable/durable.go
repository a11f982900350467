// Package durable puts small files on disk so that a crash at any moment leaves either the whole old
// content or the whole new one, and so that what was reported as written is still there afterwards.
//
// The order of steps is the whole of it: write a temporary file in the same directory, fsync it, move it
// into place with one rename (or one link, where an existing file must not be replaced), fsync the
// directory. A crash can leave a temporary file behind; it is never read, and [RemoveTemps] deletes it.
//
// The package does not lock: two writers of one path each leave a whole file, the later one wins. It does
// not append, it is no log, and it keeps the content in memory: it is for keys, keysets, checkpoints and
// configuration, not for data.
package durable

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ErrNotDurable is in the error of a write whose new content stands in place already, while the system
// could not promise that it survives a crash. Writing again proves nothing after a failed fsync: the
// caller stops and, after a restart, works with what it finds.
var ErrNotDurable = errors.New("the new content is in place but may not survive a crash")

const (
	tempSuffix = ".tmp"
	tempRandom = 8 // bytes of randomness in a temporary name
)

// WriteFile replaces the file at path by one with exactly data and exactly the permissions perm, whatever
// the umask says. It returns once both the file and its name are on stable storage. Readers see the old
// file or the new one, nothing between. On an error without [ErrNotDurable] the old file is untouched.
//
// A symbolic link at path is replaced, not followed.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	return place(path, data, perm, os.Rename)
}

// CreateFile is [WriteFile] for a file that must not exist yet: where path is taken already, by whatever
// kind of file, it changes nothing and returns an error that is [fs.ErrExist]. Of several processes that
// create the same path at once exactly one succeeds.
func CreateFile(path string, data []byte, perm fs.FileMode) error {
	return place(path, data, perm, func(temp, path string) error {
		if err := os.Link(temp, path); err != nil {
			return err
		}
		// The content has its name; a temporary name that stays behind is only untidy.
		_ = os.Remove(temp)
		return nil
	})
}

// place writes data to a temporary file beside path and has move give it the name.
func place(path string, data []byte, perm fs.FileMode, move func(temp, path string) error) error {
	if perm != perm.Perm() {
		return fmt.Errorf("write %s: %v is more than permission bits", path, perm)
	}
	temp, err := writeTemp(path, data, perm)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := move(temp, path); err != nil {
		_ = os.Remove(temp)
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("write %s: %w: %w", path, ErrNotDurable, err)
	}
	return nil
}

// writeTemp returns the name of a synced temporary file beside path that holds data. On an error there is
// no such file.
func writeTemp(path string, data []byte, perm fs.FileMode) (string, error) {
	var random [tempRandom]byte
	_, _ = rand.Read(random[:]) // crypto/rand.Read never fails
	temp := tempPrefix(path) + hex.EncodeToString(random[:]) + tempSuffix
	// 0600 until the content is complete: perm may be wider, but never before.
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	err = fill(f, data, perm)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(temp)
		return "", err
	}
	return temp, nil
}

func fill(f *os.File, data []byte, perm fs.FileMode) error {
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Chmod(perm); err != nil {
		return err
	}
	return f.Sync()
}

// SyncDir makes names that were created, renamed or removed in dir survive a crash.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := d.Sync(); err != nil {
		_ = d.Close()
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	if err := d.Close(); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// RemoveTemps deletes temporary files that writes of path left behind in a crash. It is for the one
// process that owns path, before its first write: a write that is under way elsewhere would fail.
func RemoveTemps(path string) error {
	dir := filepath.Dir(path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("remove temporary files of %s: %w", path, err)
	}
	for _, e := range entries {
		if !isTempOf(path, e.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove temporary files of %s: %w", path, err)
		}
	}
	return nil
}

// tempPrefix returns the path of path's temporary files up to their random part.
func tempPrefix(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".")
}

// isTempOf reports whether name is one that writeTemp makes for path. The random part has a fixed shape,
// so that the temporary files of "a" and of "a.b" are never taken for one another.
func isTempOf(path, name string) bool {
	middle, ok := strings.CutPrefix(name, filepath.Base(tempPrefix(path)))
	if !ok {
		return false
	}
	middle, ok = strings.CutSuffix(middle, tempSuffix)
	if !ok || len(middle) != 2*tempRandom {
		return false
	}
	_, err := hex.DecodeString(middle)
	return err == nil
}
