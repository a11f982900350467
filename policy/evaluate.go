package policy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/version"

	"github.com/bulla-project/bulla/risk"
)

const (
	inputLabel = "bulla-policy-input/v1\n"

	// reasonNoDecision is the reason of every denial that does not come from the policy.
	reasonNoDecision = "the policy gave no decision"
)

// EngineVersion names the evaluator in decisions. A replay is bit-exact only under the same version.
func EngineVersion() string { return "opa/" + version.Version }

// errEnded says that an evaluation was cancelled before it gave an answer.
var errEnded = errors.New("the evaluation was ended by the time limit or by its caller")

// denial is the decision when the policy gave none.
func denial(fault string) Decision {
	return Decision{
		Effect: Deny, Reasons: []string{reasonNoDecision}, Fault: fault, EngineVersion: EngineVersion(),
		Risk: risk.Assessment{Score: risk.MaxScore, Factors: []risk.Factor{}, Floors: []risk.Floor{}},
	}
}

// judge computes the input and asks the policy. It runs on the caller's goroutine until the policy has
// answered or cancel is set, and turns every failure, a panic of the evaluator too, into a denial.
func (r *Revision) judge(ctx context.Context, s Signals, cancel topdown.Cancel) (d Decision) {
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			d = denial(faultPanic + fmt.Sprint(p))
		}
		d.EvalDuration = time.Since(start)
	}()
	encoded, err := s.Encode()
	if err != nil {
		return denial(err.Error())
	}
	input, assessment := r.Input(s)
	out, err := r.ask(ctx, input, s.Now, cancel)
	if err != nil {
		d = denial(err.Error())
		d.TimedOut = errors.Is(err, errEnded)
	} else {
		d = Decision{
			Effect: out.effect, Reasons: out.reasons, Obligations: out.obligations,
			Requires: out.requires, Covered: out.disclose, EngineVersion: EngineVersion(),
		}
	}
	d.Risk, d.ModelDigest, d.RevisionDigest = assessment, r.modelID, r.digestHex
	d.Signals, d.InputDigest = encoded, r.inputDigest(encoded)
	return d
}

func (r *Revision) inputDigest(signals []byte) string {
	h := sha256.New()
	h.Write([]byte(inputLabel))
	h.Write(r.digest[:])
	h.Write(signals)
	return hex.EncodeToString(h.Sum(nil))
}

// ask evaluates the entrypoint on an input and decodes the answer.
func (r *Revision) ask(ctx context.Context, input ast.Value, now int64, cancel topdown.Cancel) (output, error) {
	rs, err := r.query.Eval(ctx,
		rego.EvalParsedInput(input),
		rego.EvalTime(time.UnixMicro(now)),
		rego.EvalExternalCancel(cancel),
		rego.EvalMetrics(metrics.NoOp()),
		rego.EvalGenerateJSON(rawTerm))
	return answerOf(rs, err)
}

// answerOf decodes what an evaluation gave.
func answerOf(rs rego.ResultSet, err error) (output, error) {
	switch {
	case topdown.IsCancel(err):
		return output{}, errEnded
	case err != nil:
		return output{}, fmt.Errorf("evaluating: %w", err)
	case len(rs) != 1 || len(rs[0].Expressions) != 1:
		return output{}, errors.New("the decision is undefined")
	}
	term, ok := rs[0].Expressions[0].Value.(*ast.Term)
	if !ok {
		return output{}, errors.New("the decision is not a term")
	}
	return decodeOutput(term.Value)
}

// rawTerm hands out the answer as it is: converting it would walk all of an answer of any size.
func rawTerm(t *ast.Term, _ *rego.EvalContext) (any, error) { return t, nil }

// endAfter sets cancel when the limit is over or ctx is done; stop ends the watch.
func endAfter(ctx context.Context, limit time.Duration) (cancel topdown.Cancel, stop func()) {
	cancel = topdown.NewCancel()
	timer := time.AfterFunc(limit, cancel.Cancel)
	unwatch := context.AfterFunc(ctx, cancel.Cancel)
	return cancel, func() {
		timer.Stop()
		unwatch()
	}
}

// replayLimit is far above what a decision takes, also on a machine that stands still for a while; a replay that reaches
// it is inconclusive.
const replayLimit = 30 * time.Second

// Replay judges recorded signals again, on the caller's goroutine. Under the same revision and engine
// version, and if the recorded decision was not ended by a time limit, Canonical gives the recorded bytes.
// Signals that are not in canonical form are an error and not a decision.
func Replay(ctx context.Context, rev *Revision, recorded []byte) (Decision, error) {
	_, d, err := rev.JudgeRecorded(ctx, recorded)
	return d, err
}
