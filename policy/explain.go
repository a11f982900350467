package policy

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// explainLimit is how long an evaluation may take that is watched, which makes it some ten times slower.
const explainLimit = 60 * time.Second

// maxSteps bounds the steps of an explanation. What was read is noted beyond it.
const maxSteps = 20_000

// The kinds of a Step.
const (
	StepEnter = "enter" // a rule is tried
	StepEval  = "eval"  // an expression of it is looked at
	StepFail  = "fail"  // and does not hold
	StepExit  = "exit"  // all of the rule's expressions held
)

// Step is one thing that the evaluator did.
type Step struct {
	Kind string
	Rule string // such as data.bulla.deliver.covered
	File string
	Line int
	Text string // of the expression or of the rule's head, as it stands in the file
	// Query tells apart the times at which a rule is tried.
	Query uint64
}

// Explanation is how a decision came about.
type Explanation struct {
	Decision Decision
	Steps    []Step
	// Lacks are the parts of the input that the evaluation looked at and that the signals leave undefined, sorted, each
	// as the shortest path that is undefined: input.attestation, and not input.attestation.tier. What it read as a
	// whole counts with all that the schema says could be in it. Parts that the kind of the resource leaves out are not
	// counted: they can't be there.
	Lacks []string
	// Reads are the parts of the input that it looked at, sorted: input.now, or input.request where it took all of it.
	Reads []string
	// Data are the parts of the data that it looked at, sorted: data, then one name after the other.
	Data [][]string
}

// Explain is Judge with an account of it. Rules are tried one by one and not by the index, so that what is read is all
// that the decision depends on.
func (r *Revision) Explain(ctx context.Context, s Signals) Explanation {
	cancel, stop := endAfter(ctx, explainLimit)
	defer stop()
	input, assessment := r.Input(s)
	w := &watcher{input: input, kind: s.Resource.Kind, lacks: map[string]bool{}, data: map[string][]string{}, rules: map[uint64]string{}, reads: map[string]bool{}}
	d := r.watched(ctx, w, s.Now, cancel)
	d.Risk, d.ModelDigest, d.RevisionDigest = assessment, r.modelID, r.digestHex
	out := Explanation{Decision: d, Steps: w.steps}
	for path := range w.lacks {
		out.Lacks = append(out.Lacks, path)
	}
	slices.Sort(out.Lacks)
	for _, path := range w.data {
		out.Data = append(out.Data, path)
	}
	for path := range w.reads {
		out.Reads = append(out.Reads, path)
	}
	slices.Sort(out.Reads)
	slices.SortFunc(out.Data, slices.Compare)
	return out
}

func (r *Revision) watched(ctx context.Context, w *watcher, now int64, cancel topdown.Cancel) (d Decision) {
	defer func() {
		if p := recover(); p != nil {
			d = denial(faultPanic + "it panicked")
		}
	}()
	rs, err := r.query.Eval(ctx, rego.EvalParsedInput(w.input), rego.EvalTime(time.UnixMicro(now)), rego.EvalExternalCancel(cancel),
		rego.EvalMetrics(metrics.NoOp()), rego.EvalGenerateJSON(rawTerm), rego.EvalRuleIndexing(false), rego.EvalQueryTracer(w))
	out, err := answerOf(rs, err)
	if err != nil {
		d = denial(err.Error())
		d.TimedOut = err == errEnded //nolint:errorlint // it is never wrapped
		return d
	}
	return Decision{
		Effect: out.effect, Reasons: out.reasons, Obligations: out.obligations, Requires: out.requires, Covered: out.disclose,
		EngineVersion: EngineVersion(),
	}
}

// watcher notes what an evaluation does and reads.
type watcher struct {
	input ast.Value
	kind  string // of the resource
	steps []Step
	lacks map[string]bool
	data  map[string][]string
	rules map[uint64]string // names of the rules that queries belong to
	reads map[string]bool   // paths of the input
}

// Enabled implements topdown.QueryTracer.
func (*watcher) Enabled() bool { return true }

// Config implements topdown.QueryTracer.
func (*watcher) Config() topdown.TraceConfig { return topdown.TraceConfig{} }

// TraceEvent implements topdown.QueryTracer.
func (w *watcher) TraceEvent(e topdown.Event) {
	switch node := e.Node.(type) {
	case *ast.Rule:
		name := node.Ref().String()
		if node.Module != nil {
			name = node.Module.Package.Path.String() + "." + node.Head.Ref().String()
		}
		w.rules[e.QueryID] = name
		switch e.Op {
		case topdown.EnterOp:
			w.step(StepEnter, e, name)
		case topdown.ExitOp:
			w.step(StepExit, e, name)
		}
	case *ast.Expr:
		name := w.rules[e.QueryID]
		if name == "" { // a comprehension, or the body of an every
			name = w.rules[e.ParentID]
			w.rules[e.QueryID] = name
		}
		switch e.Op {
		case topdown.EvalOp:
			w.read(node, e)
			w.step(StepEval, e, name)
		case topdown.FailOp:
			w.step(StepFail, e, name)
		}
	}
}

func (w *watcher) step(kind string, e topdown.Event, rule string) {
	if len(w.steps) >= maxSteps || e.Location == nil || e.Location.File == "" { // the query for the entrypoint is in no file
		return
	}
	w.steps = append(w.steps, Step{
		Kind: kind, Rule: rule, Query: e.QueryID, File: e.Location.File, Line: e.Location.Row, Text: firstLine(string(e.Location.Text)),
	})
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return short(strings.TrimSpace(line))
}

// read notes the references of an expression that is about to be evaluated. Bodies of comprehensions and of every are
// queries of their own, which are seen when they are evaluated.
func (w *watcher) read(expr *ast.Expr, e topdown.Event) {
	for _, with := range expr.With {
		w.terms(with.Value, e)
	}
	switch t := expr.Terms.(type) {
	case *ast.Term:
		w.terms(t, e)
	case []*ast.Term:
		for _, one := range t {
			w.terms(one, e)
		}
	case *ast.Every:
		w.terms(t.Domain, e)
	}
}

func (w *watcher) terms(t *ast.Term, e topdown.Event) {
	vis := ast.NewGenericVisitor(func(x any) bool {
		switch x := x.(type) {
		case *ast.ArrayComprehension, *ast.SetComprehension, *ast.ObjectComprehension:
			return true
		case ast.Ref:
			w.ref(x, e)
		}
		return false
	})
	vis.Walk(t)
}

func (w *watcher) ref(ref ast.Ref, e topdown.Event) {
	switch {
	case ref[0].Equal(ast.InputRootDocument):
		path, name, named := make([]*ast.Term, 0, len(ref)-1), "input", true
		for _, t := range ref[1:] {
			plugged := e.Plug(t)
			path = append(path, plugged)
			text, ok := plugged.Value.(ast.String)
			if named = named && ok; named { // all of it, from there on
				name += "." + string(text)
			}
		}
		w.reads[name] = true
		w.missing(w.input, schemaOfInput(), "input", path)
	case ref[0].Equal(ast.DefaultRootDocument):
		path := []string{"data"}
		for _, t := range ref[1:] {
			name, ok := e.Plug(t).Value.(ast.String)
			if !ok {
				break // all of it, then
			}
			path = append(path, string(name))
		}
		if len(path) < 2 || path[1] != "bulla" {
			w.data[strings.Join(path, "\x00")] = path
		}
	}
}
