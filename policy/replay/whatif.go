package replay

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bulla-project/bulla/policy"
)

// WhatIfOptions say what is compared.
type WhatIfOptions struct {
	Library   *Library         // of the revisions that decided
	Candidate *policy.Revision // loaded, or reopened
	Workers   int              // 0: one on every core
	// Principal and Secret narrow what is judged and swept, where they are set.
	Principal, Secret string
	// Limit is how long the candidate may take for one evaluation, which is watched here and far slower than at a broker;
	// 0: ten seconds.
	Limit time.Duration
	// Progress, if set, is called now and then while the work goes on.
	Progress func()
}

const (
	defaultLimit = 10 * time.Second
	maxEndless   = 5 // evaluations
)

// ErrEndless says that the candidate ran into the limit again and again, so that the comparison was given up.
var ErrEndless = errors.New("the candidate kept running into the time limit of an evaluation, and a broker would deny everything by it")

// Base is what the sweep starts from, which is known when the record has been read.
type Base struct {
	Active  *policy.Revision
	Secrets []SecretFacts
}

// SecretFacts is what the record knows of a secret.
type SecretFacts struct {
	Name, Class, Type string
	Version           int64
}

// judged is a decision with what the candidate makes of it.
type judged struct {
	rec        Recorded
	signals    policy.Signals
	skipped    string // why it could not be judged
	aside      bool   // it is not what was asked about
	was, now   policy.Decision
	transition string
	lacks      []string
	detail     string
	cause      Cause
}

// WhatIf judges each decision of seq by the candidate, and compares it with what was recorded. Then it sweeps over what
// could be asked and was not, from what base gives, which is called when seq has ended.
func WhatIf(ctx context.Context, opts WhatIfOptions, seq iter.Seq2[Recorded, error], base func() (Base, error)) (Report, error) {
	if opts.Limit <= 0 {
		opts.Limit = defaultLimit
	}
	w := &whatIf{opts: opts, groups: map[string]*Group{}, samples: newSamples(), exercised: map[string]bool{}}
	digest := opts.Candidate.Digest()
	w.report = Report{
		Format: ReportFormat, Candidate: hex.EncodeToString(digest[:]), Engine: policy.EngineVersion(),
		Principal: opts.Principal, Secret: opts.Secret, FirstIdx: -1, LastIdx: -1, Skipped: map[string]uint64{}, Groups: []Group{},
	}
	var err error
	if w.book.candidate, err = readFacts(opts.Candidate.Archive()); err != nil {
		return Report{}, fmt.Errorf("the candidate: %w", err)
	}
	if err := ordered(ctx, opts.Workers, manyAtOnce, seq, w.judge, w.take); err != nil {
		return Report{}, err
	}
	for _, g := range w.groups {
		w.report.Groups = append(w.report.Groups, *g)
	}
	b, err := base()
	if err != nil {
		return Report{}, err
	}
	active := b.Active.Digest()
	w.report.Active = hex.EncodeToString(active[:])
	if err := w.sweep(ctx, b); err != nil {
		return Report{}, err
	}
	w.report.sort()
	return w.report, nil
}

// whatIf is one comparison under way.
type whatIf struct {
	opts    WhatIfOptions
	report  Report
	groups  map[string]*Group
	samples *samples
	book    book
	// exercised are the pairs of principal and target that the recordings have.
	exercised map[string]bool
	endless   int // evaluations of the candidate that reached the limit; take's
}

// ended counts an evaluation that reached the limit.
func (w *whatIf) ended(timedOut bool) error {
	if timedOut {
		w.endless++
	}
	if w.endless >= maxEndless {
		return fmt.Errorf("%w: %d times %s", ErrEndless, w.endless, w.opts.Limit)
	}
	return nil
}

func (w *whatIf) judge(ctx context.Context, r Recorded) judged {
	j := judged{rec: r}
	var err error
	switch {
	case r.Gap != "":
		j.skipped = r.Gap
		if r.Count > 0 { // the numbers differ from one to the next
			j.skipped = "refusals that were counted and not recorded one by one"
		}
		return j
	case r.Result == nil:
		j.skipped = "decided again when a session ended: its delivery is judged"
		return j
	}
	if j.signals, err = policy.ParseSignals(r.Signals); err != nil {
		j.skipped = "the signals can't be read"
		return j
	}
	if j.was, err = parseDecision(r.Result); err != nil {
		j.skipped = "the recorded decision can't be read"
		return j
	}
	old, _ := w.opts.Library.Revision(ctx, r.Revision) // nil: nothing is known of what it read
	if j.was.TimedOut || policy.OfEngine(j.was.Fault) {
		if old == nil {
			j.skipped = "the evaluator gave no decision then, and the revision is missing"
			return j
		}
		j.was = old.Judge(ctx, j.signals)
	}
	if j.rec.Secret == "" && j.signals.Resource.Secret != nil && j.signals.Action == policy.ActionDeliver {
		j.rec.Secret = j.signals.Resource.Secret.Name
	}
	j.rec.Principal = j.signals.Principal.ID
	if o := w.opts; o.Principal != "" && o.Principal != j.rec.Principal || o.Secret != "" && o.Secret != j.rec.Secret {
		j.aside = true
		return j
	}
	c := compared{old: old, was: j.was, candidate: w.opts.Candidate, limit: w.opts.Limit}
	c.run(ctx, j.signals)
	j.now, j.lacks, j.detail = c.now, c.lacks, c.detail
	j.transition = transition(j.was, j.now, j.lacks)
	if j.transition != unchanged && old != nil {
		j.cause = causeOf(c.explained(ctx, j.signals), c.explanation, w.book.since(old))
	}
	return j
}

// compared is one request under two revisions.
type compared struct {
	old, candidate *policy.Revision // old: nil if it is missing
	was, now       policy.Decision
	lacks          []string
	detail         string
	limit          time.Duration      // of the candidate
	explanation    policy.Explanation // of now
	before         *policy.Explanation
}

// run judges the request by the candidate, and finds out what it reads that the request lacks and that the old revision
// did not read.
func (c *compared) run(ctx context.Context, s policy.Signals) {
	limited, stop := context.WithTimeout(ctx, c.limit)
	c.explanation = c.candidate.Explain(limited, s)
	stop()
	c.now = c.explanation.Decision
	if c.now.TimedOut || policy.OfEngine(c.now.Fault) {
		c.lacks = []string{"an answer: " + c.now.Fault}
		return
	}
	lacks := slices.Concat(asked(c.explanation.Lacks, c.now.Requires), riskLacks(c.was, c.now))
	if len(lacks) > 0 && c.old != nil {
		before := c.explained(ctx, s)
		lacks = slices.DeleteFunc(lacks, func(path string) bool { return slices.Contains(before.Lacks, path) })
	}
	c.lacks = lacks
	switch {
	case c.was.Effect == policy.Permit && c.now.Effect == policy.Permit:
		c.detail = membersThatDiffer(c.was.Obligations, c.now.Obligations)
	case c.was.Effect == policy.StepUp && c.now.Effect == policy.StepUp:
		c.detail = membersThatDiffer(c.was.Requires, c.now.Requires)
	}
}

// explained is the account of the old revision, made once.
func (c *compared) explained(ctx context.Context, s policy.Signals) policy.Explanation {
	if c.before == nil {
		e := c.old.Explain(ctx, s)
		c.before = &e
	}
	return *c.before
}

// asked takes away what a STEP_UP asks for: that the recording lacks it is then the very answer.
func asked(lacks []string, r policy.Requires) []string {
	return slices.DeleteFunc(slices.Clone(lacks), func(path string) bool {
		return r.Attestation != nil && within(path, "input.attestation") ||
			r.Factor != nil && (within(path, "input.factors") || path == "input.principal.person") ||
			r.Approval != nil && within(path, "input.approvals")
	})
}

func within(path, top string) bool {
	rest, ok := strings.CutPrefix(path, top)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// riskLacks are the factors that the candidate's model counts as the worst because the recording says nothing about
// them, and that the old model did not count.
func riskLacks(was, now policy.Decision) []string {
	before := map[string]int{}
	for _, f := range was.Risk.Factors {
		before[f.Name] = f.Points
	}
	var out []string
	for _, f := range now.Risk.Factors {
		if f.Value == "unknown" && f.Points > 0 && before[f.Name] == 0 {
			out = append(out, "risk: "+f.Name)
		}
	}
	return out
}

// take adds a decision to the report. It is called in the order of the record.
func (w *whatIf) take(j judged) error {
	if w.opts.Progress != nil {
		w.opts.Progress()
	}
	if j.aside {
		return nil
	}
	if j.skipped != "" {
		w.report.Skipped[j.skipped] += max(1, j.rec.Count)
		return nil
	}
	if err := w.ended(j.now.TimedOut); err != nil {
		return err
	}
	r := &w.report
	r.Decisions++
	if r.From == "" {
		r.From, r.FirstIdx = moment(j.rec.Time), j.rec.Index
	}
	r.To, r.LastIdx = moment(j.rec.Time), j.rec.Index
	r.Matrix.count(j.was.Effect, j.now.Effect, j.transition)
	w.samples.add(j.signals)
	w.exercised[j.rec.Principal+"\x00"+j.rec.Target()] = true
	if j.transition == unchanged {
		return nil
	}
	key := strings.Join([]string{j.transition, j.rec.Principal, j.rec.Target(), j.cause.Place(), j.detail, strings.Join(j.lacks, ",")}, "\x00")
	g := w.groups[key]
	if g == nil {
		g = &Group{
			Transition: j.transition, Principal: j.rec.Principal, Target: j.rec.Target(), Index: j.rec.Index, Event: j.rec.Event,
			Was: string(j.was.Effect), Now: string(j.now.Effect), Lacks: j.lacks, Detail: j.detail, Cause: j.cause,
		}
		w.groups[key] = g
	}
	g.Count++
	return nil
}

// book keeps what the candidate has otherwise than each revision.
type book struct {
	candidate facts

	mu    sync.Mutex // guards known
	known map[Digest][]Change
}

// since are the values that the candidate has otherwise than a revision.
func (b *book) since(old *policy.Revision) []Change {
	b.mu.Lock()
	defer b.mu.Unlock()
	if out, ok := b.known[old.Digest()]; ok {
		return out
	}
	var out []Change
	if f, err := readFacts(old.Archive()); err == nil { // it was reopened: it can be read
		out = changes(f, b.candidate)
	}
	if b.known == nil {
		b.known = map[Digest][]Change{}
	}
	b.known[old.Digest()] = out
	return out
}

// membersThatDiffer names the parts in which two obligations, or two requirements, differ.
func membersThatDiffer(was, now any) string {
	a, b := members(was), members(now)
	var out []string
	for _, name := range slices.Sorted(maps.Keys(both(a, b))) {
		if x, y := string(a[name]), string(b[name]); x != y {
			out = append(out, fmt.Sprintf("%s: %s → %s", name, orNone(x), orNone(y)))
		}
	}
	return strings.Join(out, "; ")
}

func both(a, b map[string]json.RawMessage) map[string]json.RawMessage {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}
