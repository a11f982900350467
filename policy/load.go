package policy

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/tester"
	"github.com/open-policy-agent/opa/v1/topdown"

	shipped "github.com/bulla-project/bulla/rego"
)

const (
	// loadLimit bounds the whole of Load, and caseLimit one test, canary or probe in it.
	loadLimit = 60 * time.Second
	caseLimit = 2 * time.Second
)

// Load turns an archive into a revision, or refuses it with every fault that it found (*LoadError). The
// checks come in this order, and a stage runs only if the one before found nothing: the archive's form,
// each file, strict compilation, the bundle's tests, its canaries, the invariants of the site. ctx and a
// limit of one minute bound it.
func Load(ctx context.Context, archive []byte, inv Invariants) (*Revision, error) {
	ctx, cancel := context.WithTimeout(ctx, loadLimit)
	defer cancel()
	type answer struct {
		rev *Revision
		err error
	}
	// A goroutine of its own, because a hostile bundle can hold the compiler or the evaluator at a place
	// where it does not look for cancellation.
	ch := make(chan answer, 1)
	go func() {
		var a answer
		defer func() {
			if p := recover(); p != nil {
				a = answer{err: refuse(Fault{Check: "compile", Message: fmt.Sprintf("the compiler or evaluator failed: %v", p)})}
			}
			ch <- a
		}()
		a.rev, a.err = load(ctx, archive, inv)
	}()
	select {
	case a := <-ch:
		return a.rev, a.err
	case <-ctx.Done():
		return nil, refuse(Fault{Check: "tests", Message: "loading did not end: " + ctx.Err().Error()})
	}
}

func refuse(faults ...Fault) error { return &LoadError{Faults: faults} }

func load(ctx context.Context, archive []byte, inv Invariants) (*Revision, error) {
	files, err := Unpack(archive)
	if err != nil {
		return nil, refuse(Fault{Check: "files", Message: err.Error()})
	}
	b, faults := readBundle(files)
	if len(faults) > 0 {
		return nil, refuse(faults...)
	}
	rev, faults := b.build(ctx)
	if len(faults) > 0 {
		return nil, refuse(faults...)
	}
	rev.archive, rev.digest = bytes.Clone(archive), ArchiveDigest(archive)
	rev.digestHex = hex.EncodeToString(rev.digest[:])
	report, faults := b.runTests(ctx, nil)
	if len(faults) > 0 {
		return nil, refuse(faults...)
	}
	if faults := report.failures(); len(faults) > 0 {
		return nil, refuse(faults...)
	}
	if faults := rev.checkCanaries(ctx, b.canaries); len(faults) > 0 {
		return nil, refuse(faults...)
	}
	if faults := rev.checkInvariants(ctx, inv, b); len(faults) > 0 {
		return nil, refuse(faults...)
	}
	return rev, nil
}

// compiler returns one that knows the schema of the input and the allowed builtins.
func compiler() (*ast.Compiler, error) {
	var schema any
	dec := json.NewDecoder(bytes.NewReader(shipped.InputSchema()))
	dec.UseNumber()
	if err := dec.Decode(&schema); err != nil {
		return nil, fmt.Errorf("schema of the input: %w", err)
	}
	set := ast.NewSchemaSet()
	set.Put(ast.SchemaRootRef, schema)
	return ast.NewCompiler().
		WithCapabilities(capabilities()).
		WithSchemas(set).
		WithUseTypeCheckAnnotations(true).
		WithStrict(true).
		WithDefaultRegoVersion(ast.RegoV1), nil
}

// build compiles the policy without its tests, so that a test can't become part of a decision.
func (b *bundle) build(ctx context.Context) (*Revision, []Fault) {
	c, err := compiler()
	if err != nil {
		return nil, []Fault{{Check: "compile", Message: err.Error()}}
	}
	if c.Compile(copyModules(b.policy)); c.Failed() {
		return nil, regoFaults("", c.Errors)
	}
	if c.GetRulesExact(ast.MustParseRef(Entrypoint)) == nil {
		return nil, []Fault{{Check: "compile", Message: "no rule " + Entrypoint}}
	}
	query, err := rego.New(
		rego.Query(Entrypoint),
		rego.Compiler(c),
		rego.Store(inmem.NewFromASTObject(b.data)),
		rego.StrictBuiltinErrors(true),
		rego.Capabilities(capabilities()),
	).PrepareForEval(ctx)
	if err != nil {
		return nil, regoFaults("", err)
	}
	return &Revision{
		name: b.name, references: b.files[fileReferences], zones: b.zones,
		model: b.model, modelID: b.model.Digest(), persons: b.persons, query: query,
	}, nil
}

func copyModules(groups ...map[string]*ast.Module) map[string]*ast.Module {
	out := map[string]*ast.Module{}
	for _, g := range groups {
		for name, m := range g {
			out[name] = m.Copy()
		}
	}
	return out
}

// TestReport is the result of the tests of a bundle.
type TestReport struct {
	Results []TestResult
	// Coverage is the share of covered lines of the policy (tests not counted), in thousandths.
	Coverage int
	// Uncovered lists the lines that no test reached, as "FILE:FIRST-LAST".
	Uncovered []string
}

// TestResult is the result of one test.
type TestResult struct {
	File    string
	Line    int
	Name    string
	Pass    bool
	Message string // why it did not pass
}

func (t TestReport) failures() []Fault {
	var out []Fault
	for _, r := range t.Results {
		if !r.Pass {
			out = append(out, Fault{File: r.File, Line: r.Line, Check: "tests", Message: r.Name + ": " + r.Message})
		}
	}
	return out
}

// runTests compiles policy and tests together and runs every test. Coverage is measured if asked for; it
// makes the tests slower.
func (b *bundle) runTests(ctx context.Context, coverage *cover.Cover) (TestReport, []Fault) {
	c, err := compiler()
	if err != nil {
		return TestReport{}, []Fault{{Check: "tests", Message: err.Error()}}
	}
	store := inmem.NewFromASTObject(b.data)
	txn, err := store.NewTransaction(ctx, storage.TransactionParams{})
	if err != nil {
		return TestReport{}, []Fault{{Check: "tests", Message: err.Error()}}
	}
	defer store.Abort(ctx, txn)
	modules := copyModules(b.policy, b.tests)
	runner := tester.NewRunner().
		SetCompiler(c).
		SetStore(store).
		SetModules(modules).
		SetTimeout(caseLimit).
		SetParallel(1).
		RaiseBuiltinErrors(true)
	if coverage != nil {
		runner.SetCoverageQueryTracer(coverage)
	}
	ch, err := runner.RunTests(ctx, txn)
	if err != nil {
		return TestReport{}, regoFaults("", err)
	}
	var report TestReport
	for r := range ch {
		report.Results = append(report.Results, testResult(r))
	}
	slices.SortFunc(report.Results, func(a, b TestResult) int {
		return bytes.Compare(fmt.Appendf(nil, "%s:%08d:%s", a.File, a.Line, a.Name), fmt.Appendf(nil, "%s:%08d:%s", b.File, b.Line, b.Name))
	})
	if ctx.Err() != nil {
		return report, []Fault{{Check: "tests", Message: "the tests did not end: " + ctx.Err().Error()}}
	}
	if coverage != nil {
		report.measure(coverage.Report(copyModules(b.policy)))
	}
	return report, nil
}

func testResult(r *tester.Result) TestResult {
	t := TestResult{Name: r.Name, Pass: r.Pass()}
	if r.Location != nil {
		t.File, t.Line = r.Location.File, r.Location.Row
	}
	switch {
	case r.Skip:
		t.Pass, t.Message = false, "it is skipped: a test that is not run proves nothing"
	case r.Error != nil:
		t.Message = r.Error.Error()
	case r.Fail:
		t.Message = "it failed"
		if r.FailedAt != nil && r.FailedAt.Location != nil {
			t.Message = fmt.Sprintf("it failed at line %d", r.FailedAt.Location.Row)
		}
	}
	return t
}

func (t *TestReport) measure(report cover.Report) {
	covered, all := 0, 0
	for _, name := range slices.Sorted(maps.Keys(report.Files)) {
		f := report.Files[name]
		if isTest(name) {
			continue
		}
		covered += f.CoveredLines
		all += f.CoveredLines + f.NotCoveredLines
		for _, r := range f.NotCovered {
			t.Uncovered = append(t.Uncovered, fmt.Sprintf("%s:%d-%d", name, r.Start.Row, r.End.Row))
		}
	}
	slices.Sort(t.Uncovered)
	t.Uncovered = slices.Compact(t.Uncovered)
	if all > 0 {
		t.Coverage = covered * 1000 / all
	}
}

// checkCanaries asks the policy about each case of the bundle.
func (r *Revision) checkCanaries(ctx context.Context, cases []canary) []Fault {
	var faults []Fault
	for _, c := range cases {
		cancel, stop := endAfter(ctx, caseLimit)
		var d Decision
		if c.signals != nil {
			d = r.judge(ctx, *c.signals, cancel)
		} else {
			d = r.judgeRaw(ctx, c.input, cancel)
		}
		stop()
		if d.Effect != c.expect || d.Fault != "" {
			faults = append(faults, Fault{
				File: fileCanaries, Line: c.line, Check: "canaries",
				Message: fmt.Sprintf("%s: the policy says %s, want %s", c.name, describe(d), c.expect),
			})
		}
		if d.TimedOut {
			break // each further case could take as long
		}
	}
	return faults
}

// judgeRaw asks about an input that no signals gave.
func (r *Revision) judgeRaw(ctx context.Context, input ast.Value, cancel topdown.Cancel) Decision {
	out, err := r.ask(ctx, input, 0, cancel)
	if err != nil {
		d := denial(err.Error())
		d.TimedOut = errors.Is(err, errEnded)
		return d
	}
	return Decision{Effect: out.effect, Reasons: out.reasons, Covered: out.disclose}
}

func sortedNames(files map[string][]byte) []string { return slices.Sorted(maps.Keys(files)) }
