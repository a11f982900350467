package replay

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bulla-project/bulla/policy"
)

// AccessOptions say what is asked. With neither Secret nor Principal everybody is asked about everything.
type AccessOptions struct {
	Secret    string
	Principal string
	// Class is that of the secret; "": as the record has it, or each class of the data where nobody has put it.
	Class   string
	Workers int
}

// Access says who could read what.
type Access struct {
	Revision    string   `json:"revision"`
	Rows        []Reach  `json:"rows"`
	Denied      int      `json:"denied"` // pairs that no context was permitted for, or asked for more
	Principals  int      `json:"principals"`
	Secrets     int      `json:"secrets"`
	Evaluations uint64   `json:"evaluations"`
	Assumed     []string `json:"assumed"`
}

// Reach is a principal that could read a secret.
type Reach struct {
	Principal string `json:"principal"`
	Secret    string `json:"secret"`
	Class     string `json:"class"`
	Made      bool   `json:"made,omitempty"` // there is no such secret on the record
	Decision  string `json:"decision"`       // PERMIT, STEP_UP, or INCONCLUSIVE: see Lacks
	// Context is the first in which it was said, of those that ask least first.
	Context     string             `json:"context"`
	Obligations policy.Obligations `json:"obligations"`
	Requires    policy.Requires    `json:"requires"`
	Lacks       []string           `json:"lacks,omitempty"`
	Cause       string             `json:"cause,omitempty"` // the rule that permits
}

// WhoCould asks a revision who could read what, under the best circumstances. Principals are those that the data names
// and those of seq, of which the ways in which they asked are taken as well. The revision is what base, which is called
// when seq has ended, names as active.
func WhoCould(ctx context.Context, opts AccessOptions, seq iter.Seq2[Recorded, error], base func() (Base, error)) (Access, error) {
	seen := newSamples()
	for r, err := range seq {
		if err != nil {
			return Access{}, err
		}
		if s, err := policy.ParseSignals(r.Signals); err == nil {
			seen.add(s)
		}
	}
	b, err := base()
	if err != nil {
		return Access{}, err
	}
	rev := b.Active
	f, err := readFacts(rev.Archive())
	if err != nil {
		return Access{}, err
	}
	digest := rev.Digest()
	out := Access{Revision: hex.EncodeToString(digest[:]), Rows: []Reach{}, Assumed: Assumed()}
	principals := []string{opts.Principal}
	if opts.Principal == "" {
		principals = known(f, seen)
	}
	all := wanted(f, opts, b.Secrets)
	out.Principals, out.Secrets = len(principals), len(all)
	world := newWorld(f, f, time.Now().UnixMicro())
	pairs := func(yield func(pair, error) bool) {
		for _, id := range principals {
			ladder := world.ladder(id)
			contexts := append(slices.Clip(ladder), seen.contexts(id)...)
			for _, s := range all {
				if !yield(pair{principal: id, secret: s.SecretFacts, made: s.made, contexts: contexts, best: ladder[len(ladder)-1]}, nil) {
					return
				}
			}
		}
	}
	err = ordered(ctx, opts.Workers, oneAtOnce, pairs, func(ctx context.Context, p pair) reached { return reach(ctx, rev, p) }, func(r reached) error {
		out.Evaluations += r.evaluations
		if r.Decision == "" {
			out.Denied++
		} else {
			out.Rows = append(out.Rows, r.Reach)
		}
		return nil
	})
	slices.SortStableFunc(out.Rows, func(a, b Reach) int {
		return cmp.Or(cmp.Compare(reachRank(a), reachRank(b)), cmp.Compare(a.Principal, b.Principal), cmp.Compare(a.Secret, b.Secret))
	})
	return out, err
}

func reachRank(r Reach) int {
	return slices.Index([]string{string(policy.Permit), Inconclusive, string(policy.StepUp)}, r.Decision)
}

// known are the principals that the data names, and those who asked.
func known(f facts, seen *samples) []string {
	ids := map[string]bool{}
	for _, id := range seen.principals() {
		ids[id] = true
	}
	for _, root := range f.below("data") {
		for _, id := range f.below("data", root) {
			if strings.HasPrefix(id, "spiffe://") {
				ids[id] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(ids))
}

type wantedSecret struct {
	SecretFacts
	made bool
}

// wanted are the secrets that are asked about.
func wanted(f facts, opts AccessOptions, recorded []SecretFacts) []wantedSecret {
	var out []wantedSecret
	for _, s := range recorded {
		if opts.Secret == "" || s.Name == opts.Secret {
			if opts.Class != "" {
				s.Class = opts.Class
			}
			out = append(out, wantedSecret{s, false})
		}
	}
	if len(out) > 0 || opts.Secret == "" {
		return out
	}
	classes := []string{opts.Class}
	if opts.Class == "" {
		classes = f.below("data", "classes")
	}
	for _, class := range classes {
		out = append(out, wantedSecret{SecretFacts{Name: opts.Secret, Class: class, Version: 1}, true})
	}
	return out
}

type reached struct {
	Reach
	evaluations uint64
}

// reach finds the first context in which a principal gets a secret, or else the first in which it is asked for more.
func reach(ctx context.Context, rev *policy.Revision, p pair) reached {
	out := reached{Reach: Reach{Principal: p.principal, Secret: p.secret.Name, Class: p.secret.Class, Made: p.made}}
	for _, c := range p.contexts {
		if ctx.Err() != nil {
			return out
		}
		s := p.signals(c)
		d := rev.Judge(ctx, s)
		out.evaluations++
		if d.Effect == policy.Permit {
			out.Decision, out.Context, out.Obligations, out.Requires = string(d.Effect), c.Name, d.Obligations, policy.Requires{}
			out.Cause = permitting(rev.Explain(ctx, s).Steps)
			return out
		}
		if d.Effect == policy.StepUp && out.Decision == "" {
			out.Decision, out.Context, out.Requires = string(d.Effect), c.Name, d.Requires
		}
	}
	// In the best of contexts: what it reads that none of them has could change the answer.
	e := rev.Explain(ctx, p.signals(p.best))
	if lacks := asked(e.Lacks, e.Decision.Requires); len(lacks) > 0 {
		out.Decision, out.Context, out.Lacks = Inconclusive, p.best.Name, lacks
	}
	return out
}

// permitting is the rule named permit that held, or else the last one that did.
func permitting(steps []policy.Step) string {
	last := ""
	for _, s := range steps {
		if s.Kind == policy.StepExit && (last == "" || strings.HasSuffix(s.Rule, ".permit")) {
			last = fmt.Sprintf("%s:%d %s", s.File, s.Line, strings.TrimPrefix(s.Rule, "data.bulla."))
		}
	}
	return last
}
