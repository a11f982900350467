package ledger

import (
	"sync"

	"github.com/bulla-project/bulla/ledger/event"
)

// Bounds of what is kept in memory.
const (
	maxRows     = 8192
	maxSessions = 4096
	maxBlobs    = 16 << 20 // bytes
)

// rowCache keeps hot rows, and sealed values. It may be behind for the moment between a commit and its
// publication, which preconditions make harmless, but it never stays behind: a row that a reader brings is
// kept only if nothing of its kind was committed since before the reader took its snapshot.
type rowCache struct {
	mu       sync.RWMutex
	rows     map[RowKey]Row     // guarded; a Seq of 0 says that there is no such row
	sessions map[RowKey]Row     // guarded; filled by commits only
	epochs   map[Kind]uint64    // guarded: how many rows of a kind were changed
	blobs    map[blobKey][]byte // guarded
	bytes    int                // guarded: in blobs
}

type blobKey struct {
	key    string
	digest event.Digest
}

func newRowCache() rowCache {
	return rowCache{
		rows: map[RowKey]Row{}, sessions: map[RowKey]Row{}, epochs: map[Kind]uint64{}, blobs: map[blobKey][]byte{},
	}
}

// get returns a row and the epoch of its kind, which add asks for.
func (c *rowCache) get(key RowKey) (row Row, ok bool, epoch uint64) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if key.Kind == KindSession {
		row, ok = c.sessions[key]
	} else {
		row, ok = c.rows[key]
	}
	return row, ok, c.epochs[key.Kind]
}

// add keeps a row that was read from a snapshot taken after epoch was got.
func (c *rowCache) add(key RowKey, row Row, epoch uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if key.Kind != KindSession && c.epochs[key.Kind] == epoch {
		evict(c.rows, maxRows)
		c.rows[key] = row
	}
}

// update takes over the rows that a commit changed.
func (c *rowCache) update(rows []Row) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range rows {
		c.epochs[r.Kind]++
		switch r.Kind {
		case KindSession:
			evict(c.sessions, maxSessions)
			c.sessions[r.RowKey] = r
		case KindDenial: // nobody reads one by its key, and strangers make many
		default:
			evict(c.rows, maxRows)
			c.rows[r.RowKey] = r
		}
	}
}

// evict makes room by dropping an eighth, in the random order of maps.
func evict(m map[RowKey]Row, limit int) {
	if len(m) < limit {
		return
	}
	for key := range m {
		delete(m, key)
		if len(m) <= limit*7/8 {
			return
		}
	}
}

func (c *rowCache) blob(key blobKey) ([]byte, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	b, ok := c.blobs[key]
	return b, ok
}

func (c *rowCache) addBlob(key blobKey, data []byte) {
	if len(data) > maxBlobs/16 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.blobs[key]; ok {
		return
	}
	for k, b := range c.blobs {
		if c.bytes+len(data) <= maxBlobs {
			break
		}
		delete(c.blobs, k)
		c.bytes -= len(b)
	}
	c.blobs[key] = data
	c.bytes += len(data)
}

// dropBlobs forgets what belongs to sessions that were erased.
func (c *rowCache) dropBlobs(sessions []event.ErasedSession) {
	gone := make(map[string]struct{}, len(sessions))
	for _, s := range sessions {
		gone[RoundBlob(s.Session)] = struct{}{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, b := range c.blobs {
		if _, ok := gone[k.key]; ok {
			delete(c.blobs, k)
			c.bytes -= len(b)
		}
	}
}

// clear forgets everything; rows that readers are about to bring are not kept either.
func (c *rowCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.rows)
	clear(c.sessions)
	clear(c.blobs)
	c.bytes = 0
	for _, k := range Kinds() {
		c.epochs[k]++
	}
}
