package replay

import (
	"context"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bulla-project/bulla/policy"
)

// maxEvaluations bounds a sweep: a minute or two of a small machine.
const maxEvaluations = 400_000

func microseconds(t int64) time.Time { return time.UnixMicro(t).UTC() }

// pair is one thing that one principal could ask for.
type pair struct {
	principal string
	secret    SecretFacts
	action    policy.Action // of an administrative action
	operation string        // with a key at grade proxied; "": a delivery
	made      bool
	contexts  []Context
	best      Context // the one of them that has everything
}

func (p pair) target() string {
	if p.action != "" {
		return string(p.action)
	}
	return p.secret.Name
}

// class is that of the secret that is asked for.
func (p pair) class() string {
	if p.action != "" {
		return ""
	}
	return p.secret.Class
}

// signals are the pair's request in a context.
func (p pair) signals(c Context) policy.Signals {
	if p.action == "" {
		s := c.of(p.principal, p.secret)
		s.Request.Operation = p.operation
		return s
	}
	s := c.as(p.principal)
	s.Action, s.Resource, s.Recipient, s.History, s.Instance = p.action, resourceOf(p.action, p.principal, p.secret.Class), nil, nil, ""
	return s
}

// resourceOf is something that an administrative action can be about, such that it is least in its way.
func resourceOf(action policy.Action, principal, class string) policy.Resource {
	kind, _, _ := strings.Cut(string(action), ".")
	switch kind {
	case policy.KindSecret:
		return policy.Resource{Kind: kind, Secret: &policy.Secret{Name: "whatif", Exposure: "none", NewClass: class}}
	case policy.KindSession:
		return policy.Resource{Kind: kind, Session: &policy.Session{ID: "whatif", State: "confirmed"}}
	case policy.KindDevice:
		return policy.Resource{Kind: kind, Device: &policy.Device{ID: "whatif", Kind: "tpm2"}}
	case "policy":
		return policy.Resource{Kind: policy.KindRevision, Revision: &policy.NewRules{Digest: "whatif", Name: "whatif"}}
	case policy.KindAudit:
		return policy.Resource{Kind: kind}
	case "share": // of a round that waits for this principal
		return policy.Resource{Kind: policy.KindRound, Round: &policy.Round{
			ID: "whatif", Kind: "split", Principal: "spiffe://whatif.invalid/requester", Secret: "whatif", Version: 1, Holders: []string{principal},
		}}
	}
	return policy.Resource{Kind: policy.KindSystem}
}

// swept is what came of a pair.
type swept struct {
	pair
	change      SweepChange
	evaluations uint64
}

// sweep asks both revisions about every pair that their difference could touch.
func (w *whatIf) sweep(ctx context.Context, b Base) error {
	was, err := readFacts(b.Active.Archive())
	if err != nil {
		return err
	}
	now := w.book.candidate
	diff := changes(was, now)
	principals, secrets := w.universe(was, now, diff, b.Secrets)
	r := &w.report.Sweep
	r.Principals, r.Secrets, r.Assumed, r.Complete, r.Changes = len(principals), len(secrets), Assumed(), true, []SweepChange{}
	budget := uint64(maxEvaluations)
	seq := w.pairs(principals, secrets, was, now, &budget, &r.Complete)
	otherRules := len(rewritten(was, now)) > 0
	return ordered(ctx, w.opts.Workers, oneAtOnce, seq, func(ctx context.Context, p pair) swept { return w.try(ctx, b.Active, diff, otherRules, p) }, func(s swept) error {
		r.Evaluations += s.evaluations
		if w.opts.Progress != nil {
			w.opts.Progress()
		}
		if s.change.Transition != unchanged {
			r.Changes = append(r.Changes, s.change)
		}
		return nil
	})
}

// universe is whom and what the difference of two revisions could touch: the principals whose own entries it changes,
// or all that are known where it changes anything else.
func (w *whatIf) universe(was, now facts, diff []Change, recorded []SecretFacts) (principals []string, secrets []SecretFacts) {
	ids := map[string]bool{}
	all := len(rewritten(was, now)) > 0
	for _, c := range diff {
		if c.path[0] == "data" && len(c.path) > 2 && strings.HasPrefix(c.path[2], "spiffe://") {
			ids[c.path[2]] = true
			if c.path[1] == "grants" { // whose holder alone it is about; a role or an owner counts when others ask
				continue
			}
		}
		all = true
	}
	if len(diff) == 0 && !all {
		return nil, nil
	}
	if all {
		for _, id := range w.samples.principals() {
			ids[id] = true
		}
		for _, f := range []facts{was, now} {
			for _, id := range f.named() {
				ids[id] = true
			}
			for _, root := range f.below("data") {
				for _, id := range f.below("data", root) {
					if strings.HasPrefix(id, "spiffe://") {
						ids[id] = true
					}
				}
			}
		}
	}
	if only := w.opts.Principal; only != "" {
		maps.DeleteFunc(ids, func(id string, _ bool) bool { return id != only })
	}
	if only := w.opts.Secret; only != "" {
		recorded = slices.DeleteFunc(slices.Clone(recorded), func(s SecretFacts) bool { return s.Name != only })
	}
	return slices.Sorted(maps.Keys(ids)), recorded
}

// pairs are the combinations, until the budget of evaluations is spent.
func (w *whatIf) pairs(principals []string, secrets []SecretFacts, was, now facts, budget *uint64, complete *bool) iter.Seq2[pair, error] {
	at := time.Now().UnixMicro()
	before, after := newWorld(was, now, at), newWorld(now, was, at)
	return func(yield func(pair, error) bool) {
		for _, id := range principals {
			contexts := slices.Concat(w.samples.contexts(id), before.strange(after, id), after.ladder(id)) // the last has everything
			give := func(p pair) bool {
				if p.contexts == nil {
					p.contexts = contexts
				}
				p.principal, p.best = id, p.contexts[len(p.contexts)-1]
				cost := uint64(2 * len(p.contexts))
				if cost > *budget {
					*complete = false
					return true
				}
				*budget -= cost
				return yield(p, nil)
			}
			for _, s := range secrets {
				for _, operation := range append([]string{""}, OperationsOf(s.Type)...) {
					if !give(pair{secret: s, operation: operation}) {
						return
					}
				}
			}
			if w.opts.Secret != "" { // nothing else
				continue
			}
			for _, s := range invented(id, secrets, was, now) {
				if !give(pair{secret: s, made: true}) {
					return
				}
			}
			class := SecretFacts{} // that a put may ask for
			if all := now.below("data", "classes"); len(all) > 0 {
				class.Class = all[0]
			}
			for _, action := range policy.Actions()[1:] {
				if !give(pair{action: action, secret: class, contexts: bare(action, contexts)}) {
					return
				}
			}
		}
	}
}

// bare are the contexts in which an administrative action can be asked for: it brings no approvals, and a device only
// where a round is answered.
func bare(action policy.Action, contexts []Context) []Context {
	return slices.DeleteFunc(slices.Clone(contexts), func(c Context) bool {
		return c.signals.Approvals != nil || c.signals.Attestation != nil && !strings.HasPrefix(string(action), "share.")
	})
}

// strange are the contexts that only the data of the old revision gives.
func (w world) strange(than world, principal string) []Context {
	known := map[string]bool{}
	for _, c := range than.ladder(principal) {
		known[c.Name] = true
	}
	return slices.DeleteFunc(w.ladder(principal), func(c Context) bool { return known[c.Name] })
}

// invented are secrets that nobody has put, for scopes of a principal that cover none: in each class.
func invented(principal string, secrets []SecretFacts, was, now facts) []SecretFacts {
	scopes := map[string]bool{}
	for _, f := range []facts{was, now} {
		for _, l := range f.leaves {
			if i := slices.Index(l.path, principal); i >= 0 && i+2 < len(l.path) && l.path[0] == "data" {
				scopes[l.path[len(l.path)-1]] = true
			}
		}
	}
	var out []SecretFacts
	for _, scope := range slices.Sorted(maps.Keys(scopes)) {
		if slices.ContainsFunc(secrets, func(s SecretFacts) bool {
			return slices.Contains(policy.Scopes(s.Name), scope) && scope != policy.ScopeAll
		}) {
			continue
		}
		name := scope
		switch {
		case scope == policy.ScopeAll:
			name = "any/secret"
		case strings.HasSuffix(scope, "/"):
			name = scope + "any-secret"
		}
		for _, class := range now.below("data", "classes") {
			out = append(out, SecretFacts{Name: name, Class: class, Version: 1})
		}
	}
	return out
}

// try asks both revisions about a pair in every context, and keeps the one that opens most.
func (w *whatIf) try(ctx context.Context, active *policy.Revision, diff []Change, rewritten bool, p pair) swept {
	out := swept{pair: p, change: SweepChange{Transition: unchanged}}
	worst := rank(unchanged)
	for _, c := range p.contexts {
		if ctx.Err() != nil {
			break
		}
		s := p.signals(c)
		was, now := active.Judge(ctx, s), w.opts.Candidate.Judge(ctx, s)
		out.evaluations += 2
		t := transition(was, now, nil)
		last := c.Name == p.best.Name && now.Effect != policy.Permit && was.Effect != policy.Permit
		if rank(t) >= worst && !last {
			continue
		}
		cmp := compared{old: active, was: was, candidate: w.opts.Candidate}
		cmp.run(ctx, s)
		if last {
			cmp.lacks = append(cmp.lacks, cmp.untried(ctx, s, diff, rewritten)...)
		}
		if rank(t) > rank(StepUpPermit) && len(cmp.lacks) > 0 { // in the best of contexts: it reads what none of them has
			t = Inconclusive
		}
		if rank(t) >= worst {
			continue
		}
		worst = rank(t)
		out.change = SweepChange{
			Transition: t, Principal: p.principal, Target: p.target(), Class: p.class(), Operation: p.operation, Made: p.made, Context: c.Name, Lacks: cmp.lacks,
			Exercised: w.exercised[p.principal+"\x00"+p.target()], Cause: causeOf(cmp.explained(ctx, s), cmp.explanation, diff),
		}
		if t == DenyPermit {
			break
		}
	}
	return out
}

// OperationsOf is what can be done with a key of a type at grade proxied, none with what is no key.
func OperationsOf(kind string) []string {
	switch kind {
	case "ecdsa-p256", "ed25519":
		return []string{"sign", "verify"}
	case "hmac-sha256":
		return []string{"mac", "verify-mac"}
	case "aes-256-gcm":
		return []string{"encrypt", "decrypt"}
	}
	return nil
}

// single are the parts of the input of which the contexts of a sweep have one value each.
var single = []string{
	"input.now", "input.hour_of_week", "input.instance", "input.request.grade", "input.request.max_uses", "input.request.ttl_seconds",
	"input.principal.type", "input.network.address", "input.network.tls_group", "input.network.post_quantum", "input.recipient.suite",
	"input.place.continent", "input.place.latitude_milli", "input.place.longitude_milli", "input.place.radius_km",
}

// untried is what the candidate reads, of which one value was tried, and that could now mean something else: the old
// revision did not read it, or the rules are others, or values beside it. Whether another one would permit is not known.
func (c *compared) untried(ctx context.Context, s policy.Signals, diff []Change, rewritten bool) []string {
	before := c.explained(ctx, s)
	moved := rewritten || slices.ContainsFunc(diff, func(d Change) bool { return looksAt(c.explanation.Data, d.path) })
	var out []string
	for _, path := range c.explanation.Reads {
		one := slices.ContainsFunc(single, func(one string) bool { return within(path, one) || within(one, path) })
		if one && (moved || !slices.Contains(before.Reads, path)) {
			out = append(out, path+" (one value was tried)")
		}
	}
	return out
}
