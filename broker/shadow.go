package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
)

const (
	defaultShadowLife = 24 * time.Hour
	maxShadowLife     = 30 * 24 * time.Hour
	defaultShadowCPU  = 50 // thousandths of one processor
	maxShadowRows     = 1000
)

// shadow is the revision that judges beside the active one, if any.
type shadow struct {
	running atomic.Pointer[runningShadow] // nil: none; read by each decision

	mu      sync.Mutex // guards changes of running, and what follows
	counted policy.ShadowReport
	last    *runningShadow // the one before, for its numbers
}

// runningShadow is a shadow with the row that says so.
type runningShadow struct {
	*policy.Shadow
	row ledger.Shadow
}

// watched shows a live decision to the shadow, if there is one that is compared with this revision.
func (b *Broker) watched(active *active, s policy.Signals, d policy.Decision) {
	if sh := b.shadow.running.Load(); sh != nil && sh.row.Sequence == active.sequence {
		sh.Offer(s, d)
	}
}

// beginShadow starts what the row says. The caller holds shadow.mu.
func (b *Broker) beginShadow(row ledger.Shadow, candidate *policy.Revision) {
	run := &runningShadow{row: row}
	run.Shadow = policy.NewShadow(policy.ShadowConfig{
		Candidate: candidate, CPU: int(row.CPU),
		Differed: func(live, other policy.Decision) { b.shadowDiffered(row, live, other) },
	})
	b.shadow.counted = policy.ShadowReport{}
	b.shadow.running.Store(run)
	b.logger.Info("shadow started", "digest", row.Digest.String(), "until", row.Until.String())
}

// shadowDiffered records one difference. It is not awaited by any decision, and its failure changes none.
func (b *Broker) shadowDiffered(row ledger.Shadow, live, other policy.Decision) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := policy.ParseSignals(live.Signals)
	if err != nil {
		return
	}
	ev := event.New(b.now(), s.Principal.ID, event.ShadowDiffered{
		Digest: row.Digest, Effect: string(other.Effect), Result: other.Canonical(),
		Decision: event.Decision{
			Action: string(s.Action), Effect: string(live.Effect), Revision: row.Active, Sequence: row.Sequence, Signals: live.Signals, Result: live.Canonical(),
		},
	})
	if err := b.record(ctx, ev); err != nil {
		b.logger.Warn("a difference of the shadow could not be recorded", "error", err)
	}
}

// TendShadow goes on with a shadow that was running before the start, ends the one whose time is over or that another
// revision has overtaken, and counts. Run calls it once a second; it is exported for tests.
func (b *Broker) TendShadow(ctx context.Context) error {
	b.shadow.mu.Lock()
	defer b.shadow.mu.Unlock()
	row, _, err := b.ledger.Shadow(ctx)
	if errors.Is(err, ledger.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	run := b.shadow.running.Load()
	if row.Ended != "" {
		b.stopShadow()
		return nil
	}
	active, err := b.current(ctx)
	if err != nil {
		return err
	}
	b.countShadow(run)
	why := ""
	switch {
	case row.Sequence != active.sequence:
		why = "another revision was activated"
	case !b.now().Before(row.Until.Time()):
		why = "its time is over"
	case run != nil:
		why = run.Report().Ended
	default:
		loaded, err := b.stored(ctx, row.Digest)
		if err == nil {
			b.beginShadow(row, loaded.revision)
			return nil
		}
		if errors.Is(err, ledger.ErrUnavailable) {
			return err
		}
		why = "it does not load any more"
	}
	if why == "" {
		return nil
	}
	_, err = b.endShadow(ctx, row, why, nil)
	return err
}

// stopShadow ends what runs. The caller holds shadow.mu.
func (b *Broker) stopShadow() {
	if run := b.shadow.running.Swap(nil); run != nil {
		run.Close()
		b.countShadow(run)
		b.shadow.last = run
	}
}

// forget takes a principal out of what was counted.
func (s *shadow) forget(principal string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, run := range []*runningShadow{s.running.Load(), s.last} {
		if run != nil {
			run.Forget(principal)
		}
	}
}

// pauseShadow ends what runs in this process; the next start goes on with it.
func (b *Broker) pauseShadow() {
	b.shadow.mu.Lock()
	defer b.shadow.mu.Unlock()
	b.stopShadow()
}

// countShadow adds what a shadow saw since the last time to the metrics. The caller holds shadow.mu.
func (b *Broker) countShadow(run *runningShadow) {
	if run == nil {
		return
	}
	now, before := run.Report(), b.shadow.counted
	b.metrics.shadowCompared.Add(float64(now.Compared - before.Compared))
	b.metrics.shadowDropped.Add(float64(now.Dropped - before.Dropped))
	b.metrics.shadowDiffered.Add(float64(now.Differed - before.Differed))
	b.shadow.counted = now
}

// endShadow ends a shadow, with what it saw. The caller holds shadow.mu.
func (b *Broker) endShadow(ctx context.Context, row ledger.Shadow, why string, op *operation) (ledger.Shadow, error) {
	b.stopShadow()
	body := event.ShadowEnded{Digest: row.Digest, Reason: why}
	if last := b.shadow.last; last != nil && last.row.Started == row.Started {
		r := last.Report()
		body.Seen, body.Compared, body.Dropped = r.Seen, r.Compared, r.Dropped
		for _, t := range r.Transitions {
			body.Transitions = append(body.Transitions, event.ShadowTransition{From: t.From, To: t.To, Count: t.Count})
		}
	}
	now, subject := b.now(), ""
	if op != nil {
		now, subject, body.By = op.now, op.id.String(), op.by()
	}
	commit := ledgerCommit(event.New(now, subject, body))
	if op != nil {
		commit.Require = []ledger.Precondition{op.permit.active.unchanged()}
	}
	if _, err := b.ledger.Commit(ctx, commit); err != nil && !errors.Is(err, ledger.ErrTransition) {
		return row, err
	}
	b.logger.Info("shadow ended", "digest", row.Digest.String(), "reason", why, "compared", body.Compared, "dropped", body.Dropped)
	row, _, err := b.ledger.Shadow(ctx)
	return row, err
}

// StartShadow lets a revision judge beside the active one.
func (s revisions) StartShadow(ctx context.Context, in *bullav1.StartShadowRequest) (*bullav1.Shadow, error) {
	var digest event.Digest
	if err := digest.UnmarshalText([]byte(in.GetDigest())); err != nil || digest.IsZero() {
		return nil, wrong("a digest has 64 hexadecimal digits")
	}
	life, cpu := time.Duration(in.GetSeconds())*time.Second, in.GetCpuMilli()
	if life == 0 {
		life = defaultShadowLife
	}
	if cpu == 0 {
		cpu = defaultShadowCPU
	}
	if life > maxShadowLife || cpu > policy.MaxShadowCPU {
		return nil, wrong("a shadow runs for %s at most, on %d thousandths of a processor", maxShadowLife, policy.MaxShadowCPU)
	}
	return twice(func() (*bullav1.Shadow, error) { return s.startShadow(ctx, digest, life, cpu) })
}

func (s revisions) startShadow(ctx context.Context, digest event.Digest, life time.Duration, cpu uint32) (*bullav1.Shadow, error) {
	known, name := s.rowOf(ctx, digest)
	op, err := s.authorise(ctx, policy.ActionPolicyShadow, policy.Resource{Kind: policy.KindRevision, Revision: &policy.NewRules{Digest: digest.String(), Name: name}})
	if err != nil {
		return nil, err
	}
	refused := func(err error) (*bullav1.Shadow, error) {
		if err := s.permitted(ctx, op); err != nil {
			return nil, err
		}
		return nil, err
	}
	active := op.permit.active
	switch {
	case digest == active.digest:
		return refused(wrong("revision %s is the active one: a shadow of itself shows nothing", digest))
	case known.stagedErr != nil && known.err != nil:
		return refused(missing("there is no revision %s: push it first, with --stage where it would be activated", digest))
	}
	loaded, err := s.stored(ctx, digest)
	if errors.Is(err, policy.ErrRefused) {
		return refused(wrong("revision %s is refused by now:\n%v", digest, err))
	}
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	s.shadow.mu.Lock()
	defer s.shadow.mu.Unlock()
	if row, _, err := s.ledger.Shadow(ctx); err == nil && row.Ended == "" {
		return refused(wrong("a shadow runs already, of revision %s: end it with `bulla policy shadow stop`", row.Digest))
	}
	commit := ledgerCommit(event.New(op.now, op.id.String(), event.ShadowStarted{
		Digest: digest, Active: active.digest, Sequence: active.sequence, Until: event.NewTime(op.now.Add(life)), CPU: cpu, By: op.by(),
	}))
	commit.Require = []ledger.Precondition{active.unchanged()}
	if _, err := s.ledger.Commit(ctx, commit); err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	row, _, err := s.ledger.Shadow(ctx)
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	s.beginShadow(row, loaded.revision)
	return s.shadowReply(row), nil
}

// StopShadow ends the shadow that runs.
func (s revisions) StopShadow(ctx context.Context, _ *bullav1.StopShadowRequest) (*bullav1.Shadow, error) {
	return twice(func() (*bullav1.Shadow, error) {
		op, err := s.authorise(ctx, policy.ActionPolicyShadow, policy.Resource{Kind: policy.KindRevision})
		if err != nil {
			return nil, err
		}
		s.shadow.mu.Lock()
		defer s.shadow.mu.Unlock()
		row, _, err := s.ledger.Shadow(ctx)
		if err != nil && !errors.Is(err, ledger.ErrNotFound) {
			return nil, s.answer(ctx, op.caller, err)
		}
		if err != nil || row.Ended != "" {
			if err := s.permitted(ctx, op); err != nil {
				return nil, err
			}
			return nil, missing("no shadow runs")
		}
		if row, err = s.endShadow(ctx, row, fmt.Sprintf("stopped by %s", op.id), &op); err != nil {
			return nil, s.answer(ctx, op.caller, err)
		}
		return s.shadowReply(row), nil
	})
}

// GetShadow says how the newest shadow stands.
func (s revisions) GetShadow(ctx context.Context, _ *bullav1.GetShadowRequest) (*bullav1.Shadow, error) {
	op, err := s.read(ctx, policy.ActionPolicyShow, policy.Resource{Kind: policy.KindRevision})
	if err != nil {
		return nil, err
	}
	row, _, err := s.ledger.Shadow(ctx)
	if errors.Is(err, ledger.ErrNotFound) {
		return &bullav1.Shadow{State: "none"}, nil
	}
	if err != nil {
		return nil, s.answer(ctx, op.caller, err)
	}
	s.shadow.mu.Lock()
	defer s.shadow.mu.Unlock()
	return s.shadowReply(row), nil
}

// shadowReply is a shadow with what this process saw of it. The caller holds shadow.mu.
func (b *Broker) shadowReply(row ledger.Shadow) *bullav1.Shadow {
	out := &bullav1.Shadow{
		Digest: row.Digest.String(), State: "running", Reason: row.Ended, StartedAt: stamp(row.Started), Until: stamp(row.Until), CpuMilli: row.CPU, By: row.By,
	}
	if row.Ended != "" {
		out.State = "ended"
	}
	run := b.shadow.running.Load()
	if run == nil || run.row.Started != row.Started {
		run = b.shadow.last
	}
	if run == nil || run.row.Started != row.Started {
		return out
	}
	r := run.Report()
	out.Seen, out.Compared, out.Dropped, out.Differed, out.Other = r.Seen, r.Compared, r.Dropped, r.Differed, r.Other
	out.CountingSince = stamp(event.NewTime(r.Since))
	for _, row := range r.Rows[:min(len(r.Rows), maxShadowRows)] {
		out.Rows = append(out.Rows, &bullav1.ShadowRow{Principal: row.Principal, Action: row.Action, Secret: row.Secret, From: row.From, To: row.To, Count: row.Count})
	}
	return out
}
