package sqlite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/storetest"
)

const fullPath = "BULLA_TEST_FULL_PATH"

// TestAbuse_A27_write_fails lets real writes fail: a child process limits the size of its files.
func TestAbuse_A27_write_fails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	cmd := exec.Command(os.Args[0]) //nolint:gosec // the test binary itself
	cmd.Env = append(os.Environ(), fullPath+"="+path)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "recovered\n") {
		t.Fatalf("%v: %s", err, out)
	}
}

func fullChild(path string) error {
	signal.Ignore(syscall.SIGXFSZ)
	ctx := context.Background()
	l, err := openChild(path)
	if err != nil {
		return err
	}
	for _, c := range storetest.Foundation() {
		if _, err := l.Commit(ctx, c); err != nil {
			return err
		}
	}
	info, err := os.Stat(path + "-wal")
	if err != nil {
		return err
	}
	limit, err := limitFiles(uint64(info.Size()) + 50_000)
	if err != nil {
		return err
	}
	done, err := fillUp(ctx, l)
	if err != nil {
		return err
	}
	if err := l.Health(ctx); !errors.Is(err, ledger.ErrUnavailable) {
		return fmt.Errorf("health after %d commits: %w", done, err)
	}
	if n, err := l.Size(ctx); err != nil || n < int64(len(storetest.Foundation())+done) {
		return fmt.Errorf("size %d after %d commits: %w", n, done, err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	retry := time.NewTicker(10 * time.Millisecond)
	defer retry.Stop()
	for l.Health(ctx) != nil {
		<-retry.C
	}
	if _, err := l.Commit(ctx, storetest.Issue(storetest.Start, time.Hour, 0)); err != nil {
		return err
	}
	report, err := l.Check(ctx, nil)
	if err != nil || !report.OK() || report.Events < int64(len(storetest.Foundation())+done+1) {
		return fmt.Errorf("check: %+v, %w", report, err)
	}
	return l.Close()
}

func limitFiles(size uint64) (before syscall.Rlimit, err error) {
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		return before, err
	}
	return before, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: size, Max: before.Max})
}

// fillUp commits until the disk takes no more, and returns how many commits succeeded.
func fillUp(ctx context.Context, l *ledger.Ledger) (int, error) {
	for done := 0; done < 1000; done++ {
		c := storetest.Issue(storetest.Start, time.Hour, 0)
		_, err := l.Commit(ctx, c)
		switch {
		case err == nil:
			continue
		case !errors.Is(err, ledger.ErrUnavailable):
			return done, err
		}
		if _, err := l.Find(ctx, c.Event.ID); !errors.Is(err, ledger.ErrNotFound) {
			return done, fmt.Errorf("the commit that failed: %w", err)
		}
		return done, nil
	}
	return 0, errors.New("the limit was never reached")
}
