package witness

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/internal/durable"
	"github.com/bulla-project/bulla/internal/outward"
)

const (
	// DefaultEvery is the shortest time between two rounds, DefaultRefresh the longest until a witness is asked again
	// about the tree that it knows, so that its time shows that the log still stands.
	DefaultEvery   = 10 * time.Second
	DefaultRefresh = 5 * time.Minute

	maxBackoff = 5 * time.Minute
)

// Config says who witnesses a log.
type Config struct {
	Log       *audit.Log
	Witnesses []Witness // 1 to proofs.MaxWitnesses
	Quorum    int       // how many of them make a checkpoint a witnessed one
	File      string    // where the newest witnessed checkpoint is kept
	Every     time.Duration
	Refresh   time.Duration
	Logger    *slog.Logger // nil: silent
}

func (c *Config) complete() error {
	if c.Log == nil || len(c.Witnesses) == 0 || len(c.Witnesses) > proofs.MaxWitnesses || c.File == "" {
		return fmt.Errorf("a log, 1 to %d witnesses and a file are needed", proofs.MaxWitnesses)
	}
	if c.Quorum < 1 || c.Quorum > len(c.Witnesses) {
		return fmt.Errorf("a quorum of %d is not 1 to %d, the number of witnesses", c.Quorum, len(c.Witnesses))
	}
	if c.Every == 0 {
		c.Every = DefaultEvery
	}
	if c.Refresh == 0 {
		c.Refresh = DefaultRefresh
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Status is how a witness stands.
type Status struct {
	Name string
	Size int64     // of the newest tree that it cosigned since the start
	Time time.Time // by the witness's clock
	Err  error     // of the last request; nil: it was answered well, or there was none yet
}

// Circle is the witnesses of a log. Run asks them; everything else may be called at any time.
type Circle struct {
	cfg  Config
	keys []proofs.WitnessKey

	// What Run alone uses.
	members []*member
	partial []byte // the checkpoint of the round, with the cosignatures that there are
	size    int64  // of partial

	mu        sync.Mutex // guards what follows
	witnessed []byte
	at        proofs.Checkpoint // of witnessed
	status    []Status
}

// member is a witness with what is known of it.
type member struct {
	peer     *peer
	failures int
	next     time.Time // not asked before
	asked    time.Time // answered well then
}

// Open reads the checkpoint that was kept, and compares it with the log: one that enough witnesses cosigned and that the
// log does not extend is audit.ErrRollback.
func Open(cfg Config) (*Circle, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("witnesses: %w", err)
	}
	c := &Circle{cfg: cfg}
	seen := map[string]bool{}
	for _, w := range cfg.Witnesses {
		p, err := newPeer(w)
		if err != nil {
			return nil, err
		}
		if seen[w.Key.String()] {
			return nil, fmt.Errorf("witness %s is named twice", w.Key.Name())
		}
		seen[w.Key.String()] = true
		c.members, c.keys = append(c.members, &member{peer: p}), append(c.keys, w.Key)
		c.status = append(c.status, Status{Name: w.Key.Name()})
	}
	if err := c.load(); err != nil {
		return nil, fmt.Errorf("witnesses: checkpoint in %s: %w", cfg.File, err)
	}
	return c, nil
}

func (c *Circle) load() error {
	if err := durable.RemoveTemps(c.cfg.File); err != nil {
		return err
	}
	raw, err := os.ReadFile(c.cfg.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	at, sigs, err := c.cfg.Log.Key().OpenCosigned(raw, c.keys)
	if err != nil {
		return err
	}
	if seen, _ := proofs.VerifiedBy(sigs, c.keys); len(seen) < c.cfg.Quorum {
		return nil // other witnesses than today's: it is replaced as soon as there is a new one
	}
	if at.Size > c.cfg.Log.Size() {
		return fmt.Errorf("%w: witnesses have cosigned %d entries, the log has %d", audit.ErrRollback, at.Size, c.cfg.Log.Size())
	}
	newest, err := c.cfg.Log.Key().Open(c.cfg.Log.Checkpoint())
	if err != nil {
		return err
	}
	proof, err := c.cfg.Log.ProveConsistency(at.Size, newest.Size)
	if err == nil {
		err = proofs.Extends(at, newest, proof)
	}
	if err != nil {
		return fmt.Errorf("%w: the log is not the one that witnesses have cosigned: %w", audit.ErrRollback, err)
	}
	c.witnessed, c.at = raw, at
	return nil
}

// Witnessed returns the newest checkpoint that enough witnesses cosigned, or nil. The caller does not change it.
func (c *Circle) Witnessed() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.witnessed
}

// Quorum returns how many witnesses make a checkpoint a witnessed one.
func (c *Circle) Quorum() int { return c.cfg.Quorum }

// Status tells how the witnesses stand, in the order of the configuration, and the size of the newest witnessed tree.
func (c *Circle) Status() ([]Status, int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Status(nil), c.status...), c.at.Size
}

// Time is when the newest witnessed checkpoint was cosigned: the time of the witness that makes the quorum.
func (c *Circle) Time() time.Time {
	c.mu.Lock()
	raw := c.witnessed
	c.mu.Unlock()
	if raw == nil {
		return time.Time{}
	}
	_, sigs, err := c.cfg.Log.Key().OpenCosigned(raw, c.keys)
	if err != nil {
		return time.Time{}
	}
	seen, _ := proofs.VerifiedBy(sigs, c.keys)
	return quorumTime(seen, c.cfg.Quorum)
}

// Run asks until ctx ends.
func (c *Circle) Run(ctx context.Context) {
	for {
		c.round(ctx)
		timer := time.NewTimer(c.cfg.Every)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// answer is what became of one request.
type answer struct {
	index int
	lines []byte
	err   error
}

// round asks those whose turn it is about the newest checkpoint, all at once, and waits for them.
func (c *Circle) round(ctx context.Context) {
	raw := c.cfg.Log.Checkpoint()
	if raw == nil {
		return
	}
	head, err := c.cfg.Log.Key().Open(raw)
	if err != nil {
		c.cfg.Logger.Error("the log's own checkpoint does not open", "error", err)
		return
	}
	if c.partial == nil || head.Size != c.size {
		c.partial, c.size = raw, head.Size
	}
	answers := make(chan answer, len(c.members))
	asked := 0
	for i, m := range c.members {
		if !m.due(time.Now(), c.status[i].Size, head.Size, c.cfg.Refresh) {
			continue
		}
		asked++
		go func() {
			lines, err := m.peer.cosign(ctx, c.cfg.Log, raw, head.Size)
			answers <- answer{i, lines, err}
		}()
	}
	for range asked {
		c.take(<-answers, head)
	}
	if asked > 0 && ctx.Err() == nil {
		c.settle(head)
	}
}

// due says whether it is a witness's turn: it has not seen the tree yet, or long ago, and is not being left alone.
func (m *member) due(now time.Time, cosigned, size int64, refresh time.Duration) bool {
	if now.Before(m.next) {
		return false
	}
	return cosigned != size || now.Sub(m.asked) >= refresh
}

// take notes one answer.
func (c *Circle) take(a answer, head proofs.Checkpoint) {
	m, key := c.members[a.index], c.keys[a.index]
	err := a.err
	var merged []byte
	if err == nil {
		merged, err = c.cfg.Log.Key().Cosign(c.partial, a.lines, key)
	}
	now := time.Now()
	status := Status{Name: key.Name(), Err: err}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		m.failures++
		m.next = now.Add(outward.Backoff(m.failures, maxBackoff))
		status.Size, status.Time = c.status[a.index].Size, c.status[a.index].Time
		if before := c.status[a.index].Err; before == nil || before.Error() != err.Error() {
			c.cfg.Logger.Warn("a witness did not cosign", "witness", key.Name(), "error", err)
		}
	} else {
		c.partial, m.failures, m.asked, m.next = merged, 0, now, time.Time{}
		status.Size, status.Time = head.Size, timeOf(c.cfg.Log.Key(), merged, key)
	}
	c.status[a.index] = status
}

// settle keeps the checkpoint of the round, if enough witnesses have cosigned it.
func (c *Circle) settle(head proofs.Checkpoint) {
	_, sigs, err := c.cfg.Log.Key().OpenCosigned(c.partial, c.keys)
	if err != nil {
		c.cfg.Logger.Error("the cosigned checkpoint does not open", "error", err)
		return
	}
	seen, _ := proofs.VerifiedBy(sigs, c.keys)
	c.mu.Lock()
	older := c.at.Size > head.Size
	c.mu.Unlock()
	if len(seen) < c.cfg.Quorum || older {
		return
	}
	if err := durable.WriteFile(c.cfg.File, c.partial, 0o600); err != nil {
		c.cfg.Logger.Error("the witnessed checkpoint could not be kept", "error", err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.witnessed, c.at = c.partial, head
}

// timeOf is the time of a witness's cosignature.
func timeOf(log proofs.Key, raw []byte, key proofs.WitnessKey) time.Time {
	_, sigs, err := log.OpenCosigned(raw, []proofs.WitnessKey{key})
	if err != nil {
		return time.Time{}
	}
	if seen, _ := proofs.VerifiedBy(sigs, []proofs.WitnessKey{key}); len(seen) > 0 {
		return seen[0].Time
	}
	return time.Time{}
}

// quorumTime is the newest time by which quorum witnesses had cosigned.
func quorumTime(seen []proofs.Cosignature, quorum int) time.Time {
	if len(seen) < quorum {
		return time.Time{}
	}
	times := make([]time.Time, len(seen))
	for i, s := range seen {
		times[i] = s.Time
	}
	slices.SortFunc(times, time.Time.Compare)
	return times[len(times)-quorum]
}
