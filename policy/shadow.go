package policy

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	shadowQueue    = 64
	shadowLimit    = 50 * time.Millisecond // of one evaluation
	shadowStuck    = 10 * shadowLimit      // after which an evaluation can't be ended
	shadowStrikes  = 5                     // evaluations in a row that may reach the limit
	shadowRows     = 1000
	shadowExamples = 64
	// shadowBurst is how much of its share a shadow may save up, as a time.
	shadowBurst = time.Second
)

// MaxShadowCPU is the largest share of one processor that a shadow may take, in thousandths.
const MaxShadowCPU = 500

// Inconclusive stands for the effect of a shadow that gave no decision in its time.
const Inconclusive = "INCONCLUSIVE"

// ShadowConfig says what judges beside the active revision, and what it may cost.
type ShadowConfig struct {
	Candidate *Revision
	CPU       int // share of one processor in thousandths, 1 to MaxShadowCPU; by the clock, so rather less than that
	// Differed is told the first of each kind of differences, 64 at most, on the shadow's goroutine; nil: nobody is.
	Differed func(live, shadow Decision)
}

// Shadow judges what an Engine has decided again under a candidate, and counts where the two differ. Nothing that it
// says has an effect. It runs on one goroutine of its own, takes no more time than its share, and what it can't follow
// is dropped and counted: Offer never waits. A candidate that keeps running into the limit of 50 ms, or can't be ended,
// ends the shadow.
type Shadow struct {
	cfg    ShadowConfig
	jobs   chan shadowJob
	closed chan struct{}
	done   chan struct{} // closed when the goroutine has ended, or was left behind
	once   sync.Once
	left   sync.Once

	resume        atomic.Int64 // when the next evaluation may begin, in nanoseconds since start
	start         time.Time
	seen, dropped atomic.Uint64

	mu          sync.Mutex // guards what follows
	ended       string     // why; "" while it runs
	compared    uint64
	differed    uint64
	other       uint64
	rows        map[ShadowRow]uint64
	transitions map[[2]string]uint64
}

type shadowJob struct {
	signals Signals
	live    Decision
}

// ShadowRow is one kind of difference.
type ShadowRow struct {
	Principal, Action, Secret, From, To string
}

// ShadowCount is how often a difference was seen.
type ShadowCount struct {
	ShadowRow
	Count uint64
}

// ShadowTransition counts the differences from one outcome to another.
type ShadowTransition struct {
	From, To string
	Count    uint64
}

// ShadowReport is what a shadow saw so far. Rows holds the most frequent first, Other the differences that found no row.
type ShadowReport struct {
	Ended                   string
	Seen, Compared, Dropped uint64
	Differed, Other         uint64
	Rows                    []ShadowCount
	Transitions             []ShadowTransition
	Since                   time.Time
}

// NewShadow starts a shadow. Close ends it.
func NewShadow(cfg ShadowConfig) *Shadow {
	cfg.CPU = min(max(cfg.CPU, 1), MaxShadowCPU)
	s := &Shadow{
		cfg: cfg, jobs: make(chan shadowJob, shadowQueue), closed: make(chan struct{}), done: make(chan struct{}), start: time.Now(),
		rows: map[ShadowRow]uint64{}, transitions: map[[2]string]uint64{},
	}
	go s.work()
	return s
}

// Offer lets the shadow judge what was decided. It costs the caller a copy at most.
func (s *Shadow) Offer(signals Signals, live Decision) {
	s.seen.Add(1)
	if live.Fault != "" || int64(time.Since(s.start)) < s.resume.Load() {
		s.dropped.Add(1)
		return
	}
	select {
	case <-s.closed:
		s.dropped.Add(1)
	case s.jobs <- shadowJob{signals, live}:
	default:
		s.dropped.Add(1)
	}
}

// Close ends the shadow and waits for what it is at; an evaluation that can't be ended is not waited for.
func (s *Shadow) Close() {
	s.end("it was closed")
	<-s.done
}

func (s *Shadow) end(why string) {
	s.once.Do(func() {
		s.mu.Lock()
		s.ended = why
		s.mu.Unlock()
		close(s.closed)
	})
}

func (s *Shadow) finish() { s.left.Do(func() { close(s.done) }) }

func (s *Shadow) work() {
	defer s.finish()
	budget, refilled, strikes := shadowBurst, time.Now(), 0
	for {
		select {
		case <-s.closed:
			return
		default:
		}
		var j shadowJob
		select {
		case <-s.closed:
			return
		case j = <-s.jobs:
		}
		// The budget is kept in time of evaluation times 1000/CPU: so it grows as fast as the clock.
		now := time.Now()
		budget, refilled = min(budget+now.Sub(refilled), shadowBurst), now
		if budget <= 0 {
			s.dropped.Add(1)
			continue
		}
		d := s.judge(j.signals)
		took := time.Since(now)
		if budget -= took * 1000 / time.Duration(s.cfg.CPU); budget <= 0 {
			s.resume.Store(int64(time.Since(s.start) - budget))
		}
		if strikes++; !d.TimedOut {
			strikes = 0
		}
		s.compare(j, d)
		if strikes == shadowStrikes {
			s.end("its decisions kept running into the time limit")
		}
	}
}

// judge evaluates once. If the evaluation can't be ended, the shadow is, and its goroutine is left behind.
func (s *Shadow) judge(signals Signals) Decision {
	ctx := context.Background()
	cancel, stop := endAfter(ctx, shadowLimit)
	defer stop()
	abandon := time.AfterFunc(shadowStuck, func() {
		s.end("an evaluation could not be ended and was left behind")
		s.finish()
	})
	defer abandon.Stop()
	return s.cfg.Candidate.judge(ctx, signals, cancel)
}

// outcomes are the two effects, and more where two equal ones demand something else or tell the caller something else.
func outcomes(live, shadow Decision) (from, to string) {
	from, to = string(live.Effect), string(shadow.Effect)
	switch {
	case shadow.TimedOut:
		to = Inconclusive
	case from != to:
	case live.Effect == Permit && !sameJSON(live.Obligations, shadow.Obligations):
		to += ", other obligations"
	case live.Effect == StepUp && !sameJSON(live.Requires, shadow.Requires):
		to += ", other requirements"
	case live.Effect != Permit && (live.Covered != shadow.Covered || live.Covered && !slices.Equal(live.Reasons, shadow.Reasons)):
		to += ", told otherwise"
	}
	return from, to
}

func sameJSON(a, b any) bool {
	one, err1 := json.Marshal(a)
	two, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && string(one) == string(two)
}

func (s *Shadow) compare(j shadowJob, d Decision) {
	from, to := outcomes(j.live, d)
	row := ShadowRow{Principal: j.signals.Principal.ID, Action: string(j.signals.Action), From: from, To: to}
	if j.signals.Resource.Secret != nil {
		row.Secret = j.signals.Resource.Secret.Name
	}
	s.mu.Lock()
	s.compared++
	if from == to {
		s.mu.Unlock()
		return
	}
	s.differed++
	s.transitions[[2]string{from, to}]++
	_, known := s.rows[row]
	example := !known && len(s.rows) < shadowExamples
	if known || len(s.rows) < shadowRows {
		s.rows[row]++
	} else {
		s.other++
	}
	s.mu.Unlock()
	if example && s.cfg.Differed != nil {
		s.cfg.Differed(j.live, d)
	}
}

// Forget takes a principal's rows away; what they counted stays, without its name.
func (s *Shadow) Forget(principal string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for row, n := range s.rows {
		if row.Principal == principal {
			delete(s.rows, row)
			s.other += n
		}
	}
}

// Report says what the shadow saw so far.
func (s *Shadow) Report() ShadowReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := ShadowReport{
		Ended: s.ended, Seen: s.seen.Load(), Compared: s.compared, Dropped: s.dropped.Load(), Differed: s.differed, Other: s.other, Since: s.start,
	}
	for row, n := range s.rows {
		r.Rows = append(r.Rows, ShadowCount{row, n})
	}
	slices.SortFunc(r.Rows, func(a, b ShadowCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Principal, b.Principal), cmp.Compare(a.Secret, b.Secret),
			cmp.Compare(a.Action, b.Action), cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	for t, n := range s.transitions {
		r.Transitions = append(r.Transitions, ShadowTransition{t[0], t[1], n})
	}
	slices.SortFunc(r.Transitions, func(a, b ShadowTransition) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	return r
}
