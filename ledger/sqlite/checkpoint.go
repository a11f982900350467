package sqlite

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/bulla-project/bulla/ledger"
)

const (
	// checkpointAfter is the number of pages in the write-ahead log (of 8 KiB) from which they are copied
	// into the file.
	checkpointAfter = 2000
	// lookEvery is after how many batches they are counted.
	lookEvery = 16
	// scrubEvery is how long to wait for snapshots that keep pages in the write-ahead log.
	scrubEvery = 100 * time.Millisecond
)

// checkpointer copies the write-ahead log into the database file, beside the commits: the first pass does
// most of the work while commits go on; a second one, for which they wait, copies what they wrote
// meanwhile, so that the log can start anew and does not grow without end.
type checkpointer struct {
	s    *Store
	wake chan struct{} // one slot
	wipe chan struct{} // one slot
	quit chan struct{}
	done sync.WaitGroup

	batches int // guarded by Store.write
}

func startCheckpoints(s *Store) *checkpointer {
	c := &checkpointer{s: s, wake: make(chan struct{}, 1), wipe: make(chan struct{}, 1), quit: make(chan struct{})}
	c.scrub() // what an earlier process may have been stopped in
	c.done.Go(c.run)
	return c
}

// close waits for a checkpoint that is under way.
func (c *checkpointer) close() {
	close(c.quit)
	c.done.Wait()
}

// written notes a batch; the caller holds Store.write.
func (c *checkpointer) written() {
	if c.batches++; c.batches%lookEvery != 0 {
		return
	}
	var busy, log, moved int
	// An error shows again where it matters, in the next transaction.
	if _, err := c.s.w.scan(sqlCount, nil, &busy, &log, &moved); err == nil && log-moved > checkpointAfter {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

func (c *checkpointer) run() {
	for {
		select {
		case <-c.quit:
			return
		case <-c.wake:
			c.pass()
		case <-c.wipe:
			for !c.truncate() {
				retry := time.NewTimer(scrubEvery)
				select {
				case <-c.quit:
					retry.Stop()
					return
				case <-retry.C:
				}
			}
		}
	}
}

// scrub asks for the write-ahead log to be emptied: pages of it may hold what was erased.
func (c *checkpointer) scrub() {
	select {
	case c.wipe <- struct{}{}:
	default:
	}
}

// truncate empties the write-ahead log, and reports whether there is nothing more to do. It does not wait for snapshots
// that are open.
func (c *checkpointer) truncate() bool {
	c.pass()
	c.s.write.Lock()
	defer c.s.write.Unlock()
	if c.s.closed {
		return true // closing the last connection takes the log away
	}
	if c.s.usable() != nil {
		return false
	}
	// Commits wait meanwhile, so it must not wait for snapshots.
	_, err := c.s.w.conn.ExecContext(context.Background(), "PRAGMA busy_timeout(0)")
	var busy, log, moved int
	if err == nil {
		_, err = c.s.w.scan(sqlTruncate, nil, &busy, &log, &moved)
	}
	if _, restore := c.s.w.conn.ExecContext(context.Background(), "PRAGMA "+busyTimeout); err == nil {
		err = restore
	}
	if err != nil && !harmless(err) {
		c.s.broken = fmt.Errorf("checkpoint: %w: %w", ledger.ErrBroken, err)
	}
	return err == nil && busy == 0 && log == 0
}

func (c *checkpointer) pass() {
	r := c.s.take()
	if r == nil {
		return
	}
	first := errors.Join(r.checkpoint(), c.s.release(r))

	c.s.write.Lock()
	defer c.s.write.Unlock()
	if c.s.usable() != nil {
		return
	}
	if first == nil {
		var busy, log, moved int
		_, first = c.s.w.scan(sqlCheckpoint, nil, &busy, &log, &moved)
	}
	if first != nil && !harmless(first) {
		// Pages may be missing from the file that the log still has: nothing goes on before Recover.
		c.s.broken = fmt.Errorf("checkpoint: %w: %w", ledger.ErrBroken, first)
	}
}

func (r *reader) checkpoint() error {
	var busy, log, moved int
	return r.checkpoints.QueryRowContext(context.Background(), sqlCheckpoint).Scan(&busy, &log, &moved)
}
