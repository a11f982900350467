package policy

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/topdown"
)

// Config of an Engine. The zero value is good.
type Config struct {
	// Workers is the number of evaluations at a time; 0 is GOMAXPROCS.
	Workers int
	// Limit is the time one evaluation may take before it is DENY; 0 is one second, ten thousand times what
	// a decision takes, so that only a runaway or a machine that stands still reaches it.
	Limit time.Duration
	// TripAfter is how many evaluations of the active revision in a row may reach the limit before
	// OnRunaway is called; 0 is 5.
	TripAfter int
	// OnRunaway, if set, is called once per activation, on the goroutine of the decision that reached
	// TripAfter, so that the caller can go back to the previous revision by an event. It must not block.
	OnRunaway func(*Revision)
}

const (
	defaultLimit     = time.Second
	defaultTripAfter = 5
	// stuckPerWorker bounds how many evaluations that can't be cancelled are left behind per worker
	// before the engine stops replacing their workers.
	stuckPerWorker = 2
	// queueLimit times the limit is how long a request waits for a worker.
	queueLimit = 5

	// The faults that are not the policy's: see OfEngine.
	faultClosed = "the policy engine is closed"
	faultPanic  = "the evaluator failed: "
)

// Engine evaluates on a few long-lived goroutines: a fresh one, as a gRPC handler has, would grow its stack
// again for each decision, which costs more than the decision. It is safe for concurrent use.
type Engine struct {
	cfg    Config
	active atomic.Pointer[activation]
	jobs   chan *job
	closed chan struct{}
	once   sync.Once
	done   sync.WaitGroup // workers that are not stuck

	mu    sync.Mutex // guards what follows
	stuck int        // evaluations that were left behind and still run
	shut  bool
}

type activation struct {
	rev     *Revision
	strikes atomic.Int64
}

// job is one evaluation. Whoever first moves state away from running decides whether the worker goes on
// (finished) or was replaced while it was stuck (left).
type job struct {
	ctx    context.Context
	rev    *Revision
	sig    Signals
	cancel topdown.Cancel
	result chan Decision // holds one, so that a worker never waits
	state  atomic.Int32
}

const (
	running int32 = iota
	finished
	left
)

// NewEngine starts the workers. Close ends them.
func NewEngine(cfg Config) *Engine {
	if cfg.Workers <= 0 {
		cfg.Workers = runtime.GOMAXPROCS(0)
	}
	if cfg.Limit <= 0 {
		cfg.Limit = defaultLimit
	}
	if cfg.TripAfter <= 0 {
		cfg.TripAfter = defaultTripAfter
	}
	e := &Engine{cfg: cfg, jobs: make(chan *job), closed: make(chan struct{})}
	e.mu.Lock()
	defer e.mu.Unlock()
	for range cfg.Workers {
		e.startLocked()
	}
	return e
}

// Close refuses further decisions and waits for the workers; an evaluation that can't be cancelled is not
// waited for.
func (e *Engine) Close() {
	e.once.Do(func() {
		e.mu.Lock()
		e.shut = true
		e.mu.Unlock()
		close(e.closed)
	})
	e.done.Wait()
}

// Activate makes rev the active revision for decisions that begin afterwards, and returns the one before,
// or nil.
func (e *Engine) Activate(rev *Revision) *Revision {
	if old := e.active.Swap(&activation{rev: rev}); old != nil {
		return old.rev
	}
	return nil
}

// Active returns the active revision, or nil.
func (e *Engine) Active() *Revision {
	if a := e.active.Load(); a != nil {
		return a.rev
	}
	return nil
}

// Decide judges the signals under rev, normally Active(), taken once per request so that the decision and
// its record name the same revision. It always answers, and only a well-formed PERMIT of the policy permits.
func (e *Engine) Decide(ctx context.Context, rev *Revision, s Signals) Decision {
	if rev == nil {
		return denial("no policy revision is active")
	}
	j := &job{ctx: ctx, rev: rev, sig: s, cancel: topdown.NewCancel(), result: make(chan Decision, 1)}
	// While all workers are busy the wait does not count for the policy. It ends if every worker is stuck.
	wait := time.NewTimer(e.cfg.Limit * queueLimit)
	defer wait.Stop()
	select {
	case <-e.closed: // checked first, since select would choose at random
		return e.refuse(j, faultClosed, false)
	default:
	}
	select {
	case e.jobs <- j:
	case <-e.closed:
		return e.refuse(j, faultClosed, false)
	case <-ctx.Done():
		return e.refuse(j, errEnded.Error(), true)
	case <-wait.C:
		return e.refuse(j, "every evaluator is busy", true)
	}
	return e.await(j)
}

// await returns the worker's answer, or a denial when it does not come.
func (e *Engine) await(j *job) Decision {
	limit := time.NewTimer(e.cfg.Limit)
	defer limit.Stop()
	expired := false
	select {
	case d := <-j.result:
		e.count(j.rev, false)
		return d
	case <-j.ctx.Done():
	case <-limit.C:
		expired = true
	}
	j.cancel.Cancel()
	limit.Reset(e.cfg.Limit) // a cancelled evaluation gets as long again to notice
	var d Decision
	select {
	case d = <-j.result:
	case <-limit.C:
		expired = true
		d = e.leave(j)
	}
	if d.TimedOut && expired {
		e.count(j.rev, true)
	}
	return d
}

// leave gives up an evaluation that does not notice its cancellation and puts a new worker in its place.
func (e *Engine) leave(j *job) Decision {
	if !j.state.CompareAndSwap(running, left) {
		return <-j.result // it finished at this very moment
	}
	e.mu.Lock()
	if e.stuck++; e.stuck <= stuckPerWorker*e.cfg.Workers {
		e.startLocked()
	}
	e.mu.Unlock()
	e.done.Done() // of the stuck worker, which Close must not wait for
	return e.refuse(j, "the evaluation could not be ended and was left behind", true)
}

// refuse is the denial of a job that no worker answered. It names what would have judged, and computes the
// record without the policy.
func (e *Engine) refuse(j *job, fault string, timedOut bool) Decision {
	d := denial(fault)
	d.TimedOut = timedOut
	encoded, err := j.sig.Encode()
	if err != nil {
		d.Fault += "; " + err.Error()
		return d
	}
	_, d.Risk = j.rev.Input(j.sig)
	d.ModelDigest, d.RevisionDigest = j.rev.modelID, j.rev.digestHex
	d.Signals, d.InputDigest = encoded, j.rev.inputDigest(encoded)
	return d
}

// count notes whether an evaluation of the active revision reached the limit, and trips the breaker.
func (e *Engine) count(rev *Revision, reached bool) {
	a := e.active.Load()
	if a == nil || a.rev != rev {
		return
	}
	if !reached {
		if n := a.strikes.Load(); n > 0 && n < int64(e.cfg.TripAfter) {
			a.strikes.CompareAndSwap(n, 0)
		}
		return
	}
	if a.strikes.Add(1) == int64(e.cfg.TripAfter) && e.cfg.OnRunaway != nil {
		e.cfg.OnRunaway(rev)
	}
}

// Stuck returns how many evaluations could not be ended so far and still run.
func (e *Engine) Stuck() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stuck
}

func (e *Engine) String() string {
	return fmt.Sprintf("policy engine with %d workers, %d stuck", e.cfg.Workers, e.Stuck())
}

// startLocked starts a worker, unless the engine is shutting down, so that Close never waits for less than
// it should.
func (e *Engine) startLocked() {
	if e.shut {
		return
	}
	e.done.Add(1)
	go e.work()
}

// work evaluates one job after the other. A worker that was replaced while it was stuck ends.
func (e *Engine) work() {
	for {
		select {
		case <-e.closed:
			e.done.Done()
			return
		case j := <-e.jobs:
			d := j.rev.judge(j.ctx, j.sig, j.cancel)
			j.result <- d
			if !j.state.CompareAndSwap(running, finished) {
				e.mu.Lock()
				// If the workers stopped being replaced, this one's end makes room for one.
				if e.stuck--; e.stuck >= stuckPerWorker*e.cfg.Workers {
					e.startLocked()
				}
				e.mu.Unlock()
				return
			}
		}
	}
}
