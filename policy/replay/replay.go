package replay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/bulla-project/bulla/internal/canonical"
	"github.com/bulla-project/bulla/policy"
)

// Verdict says how a replay went.
type Verdict string

// The verdicts.
const (
	Match         Verdict = "MATCH"
	Mismatch      Verdict = "MISMATCH"
	NotReplayable Verdict = "NOT_REPLAYABLE"
)

// How exact a MATCH or MISMATCH is.
const (
	BitExact = "bit-exact" // the bytes of the whole decision
	Semantic = "semantic"  // what it says: another version of the evaluator gave it
)

// Result is a decision that was replayed.
type Result struct {
	Recorded  Recorded
	Verdict   Verdict
	Exactness string // "" where nothing was compared
	// Why says what differs, or why there is nothing to compare.
	Why string
	// Decision is what the replay gave; its Effect is "" where there was none.
	Decision policy.Decision
}

// Options of Run.
type Options struct {
	Library *Library
	Workers int // evaluations at a time; 0: one on every core
}

// Run replays each decision of seq under the revision that it names, and calls take with each result in the order of
// seq. The error is that of seq or of take: what is wrong with a decision is a Result.
func Run(ctx context.Context, opts Options, seq iter.Seq2[Recorded, error], take func(Result) error) error {
	return ordered(ctx, opts.Workers, manyAtOnce, seq, func(ctx context.Context, r Recorded) Result { return One(ctx, opts.Library, r) }, take)
}

// One replays a single decision.
func One(ctx context.Context, library *Library, r Recorded) Result {
	out := Result{Recorded: r, Verdict: NotReplayable}
	if r.Gap != "" {
		out.Why = r.Gap
		return out
	}
	if r.Wrong != "" {
		return out.mismatch("", r.Wrong)
	}
	if s, d, ok := r.met(ctx, library); ok {
		out.Decision = d
		return out.agree(s)
	}
	was, unread := parseDecision(r.Result)
	if why := r.noDecision(was, unread); why != "" {
		return out.mismatch("", why)
	}
	rev, err := library.Revision(ctx, r.Revision)
	if err != nil {
		out.Why = err.Error()
		return out
	}
	if len(r.Signals) == 0 || bytes.Equal(r.Signals, []byte("null")) {
		out.Why = "the signals were not recorded" + faultOf(r.Result)
		return out
	}
	if unread == nil && was.TimedOut {
		return out.endless(was)
	}
	s, d, err := rev.JudgeRecorded(ctx, r.Signals)
	if err != nil {
		return out.mismatch("", err.Error())
	}
	out.Decision = d
	got := out.Decision.Canonical()
	if r.gave(got) {
		return out.agree(s)
	}
	return out.differ(s, got)
}

// met judges again, and says whether that gives the very bytes that were recorded. Then there is nothing to read in them,
// which would be a seventh of a replay. What a time limit ended is not evaluated again, and what another version of the evaluator
// gave names it, so that its bytes can't be met.
func (r Recorded) met(ctx context.Context, library *Library) (policy.Signals, policy.Decision, bool) {
	if !bytes.HasSuffix(r.Result, thisEngine) || bytes.Contains(r.Result, timedOut) {
		return policy.Signals{}, policy.Decision{}, false
	}
	rev, err := library.Revision(ctx, r.Revision)
	if err != nil {
		return policy.Signals{}, policy.Decision{}, false
	}
	s, d, err := rev.JudgeRecorded(ctx, r.Signals)
	return s, d, err == nil && r.gave(d.Canonical())
}

var (
	thisEngine = []byte(`,"engine_version":"` + policy.EngineVersion() + `"}`) // the last field
	timedOut   = []byte(`"timed_out":true`)
)

// gave says whether the bytes are those that were recorded.
func (r Recorded) gave(got []byte) bool {
	if r.Result == nil {
		return sha256.Sum256(got) == r.Sum
	}
	return bytes.Equal(got, r.Result)
}

// noDecision says what is wrong with a decision that the policy did not give, or that stands on nothing: it can only be a
// DENY, whatever comes out of a replay, or none.
func (r Recorded) noDecision(was policy.Decision, unread error) string {
	gave := unread == nil && (was.TimedOut || was.Fault != "")
	nothing := len(r.Signals) == 0 || bytes.Equal(r.Signals, []byte("null"))
	denies := (unread != nil || was.Effect == policy.Deny) && (r.Effect == "" || r.Effect == policy.Deny) &&
		(len(r.Wants) == 0 || slices.Contains(r.Wants, policy.Deny) || r.Result == nil)
	switch {
	case gave && was.Effect != policy.Deny:
		return fmt.Sprintf("the evaluator gave no decision (%s), and the record says %s", was.Fault, was.Effect)
	case nothing && !denies:
		return "the signals were not recorded, and what stands on them is no denial"
	}
	return ""
}

func (r Result) mismatch(exactness, why string) Result {
	r.Verdict, r.Exactness, r.Why = Mismatch, exactness, why
	return r
}

// agree is the verdict where the bytes are the same: what the event says beside them has to fit as well.
func (r Result) agree(s policy.Signals) Result {
	if why := r.Recorded.contradiction(s, r.Decision); why != "" {
		return r.mismatch(BitExact, why)
	}
	r.Verdict, r.Exactness = Match, BitExact
	return r
}

// endless is the verdict on a decision that the time limit ended. What did not end then need not end now, so that it is
// not evaluated again; what the event says beside it has to fit nevertheless.
func (r Result) endless(was policy.Decision) Result {
	s, err := policy.ParseSignals(r.Recorded.Signals)
	if err != nil {
		return r.mismatch("", err.Error())
	}
	if why := r.Recorded.contradiction(s, was); why != "" {
		return r.mismatch("", why)
	}
	r.Why = "the decision was ended by the time limit: " + was.Fault
	return r
}

// differ finds out whether the difference is one.
func (r Result) differ(s policy.Signals, got []byte) Result {
	if r.Decision.TimedOut {
		r.Why = "the replay ran into its time limit"
		return r
	}
	if policy.OfEngine(r.Decision.Fault) {
		r.Why = "the evaluator failed at the replay: " + r.Decision.Fault
		return r
	}
	if r.Recorded.Result == nil {
		return r.mismatch(BitExact, fmt.Sprintf("the decision has the SHA-256 %x, and %x was recorded", sha256.Sum256(got), r.Recorded.Sum))
	}
	was, err := parseDecision(r.Recorded.Result)
	switch {
	case err != nil:
		return r.mismatch("", err.Error())
	case policy.OfEngine(was.Fault):
		r.Why = "the evaluator gave no decision: " + was.Fault
		return r
	}
	exactness := BitExact
	if was.EngineVersion != r.Decision.EngineVersion {
		exactness = Semantic
	}
	now := r.Decision
	if exactness == Semantic {
		now.EngineVersion = was.EngineVersion
	}
	if why := differences(was, now); why != "" {
		if exactness == Semantic {
			why += fmt.Sprintf(" (recorded by %s, replayed by %s)", was.EngineVersion, r.Decision.EngineVersion)
		}
		return r.mismatch(exactness, why)
	}
	if why := r.Recorded.contradiction(s, was); why != "" {
		return r.mismatch(exactness, why)
	}
	r.Verdict, r.Exactness = Match, exactness
	r.Why = fmt.Sprintf("recorded by %s, replayed by %s", was.EngineVersion, r.Decision.EngineVersion)
	return r
}

// contradiction says what the event claims that its own decision does not.
func (r Recorded) contradiction(s policy.Signals, d policy.Decision) string {
	switch {
	case d.RevisionDigest != hex.EncodeToString(r.Revision[:]):
		return fmt.Sprintf("the event names revision %x, its decision %s", r.Revision, d.RevisionDigest)
	case r.Effect != "" && r.Effect != d.Effect:
		return fmt.Sprintf("the event says %s, its decision %s", r.Effect, d.Effect)
	case len(r.Wants) > 0 && !slices.Contains(r.Wants, d.Effect):
		return fmt.Sprintf("a %s stands on a decision that says %s", r.Kind, d.Effect)
	case r.Action != "" && r.Action != string(s.Action):
		return fmt.Sprintf("the event is about the action %s, its signals are about %s", r.Action, s.Action)
	case r.Principal != "" && r.Principal != s.Principal.ID:
		return fmt.Sprintf("the event is about %s, its signals are about %s", r.Principal, s.Principal.ID)
	case r.Secret != "" && s.Resource.Secret != nil && r.Secret != s.Resource.Secret.Name:
		return fmt.Sprintf("the event is about the secret %s, its signals are about %s", r.Secret, s.Resource.Secret.Name)
	}
	return ""
}

// parseDecision reads a recorded decision, and refuses every encoding but the canonical one.
func parseDecision(text []byte) (policy.Decision, error) {
	var d policy.Decision
	if !canonical.Read(text, &d) {
		dec := json.NewDecoder(bytes.NewReader(text))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&d); err != nil {
			return policy.Decision{}, fmt.Errorf("the recorded decision can't be read: %w", err)
		}
	}
	if !bytes.Equal(d.Canonical(), text) {
		return policy.Decision{}, errors.New("the recorded decision is not in canonical form")
	}
	return d, nil
}

func faultOf(result []byte) string {
	d, err := parseDecision(result)
	if err != nil || d.Fault == "" {
		return ""
	}
	return ": " + d.Fault
}

// differences names the fields in which two decisions differ, "" if there is none.
func differences(was, now policy.Decision) string {
	a, b := members(was), members(now)
	out := ""
	for _, name := range []string{
		"decision", "reasons", "obligations", "requires", "covered", "timed_out", "fault", "risk", "model_digest", "revision_digest",
		"input_digest", "engine_version",
	} {
		if !bytes.Equal(a[name], b[name]) {
			if out != "" {
				out += "; "
			}
			out += fmt.Sprintf("%s: recorded %s, replayed %s", name, clip(a[name]), clip(b[name]))
		}
	}
	return out
}

// members are the parts of a decision, or of what it consists of.
func members(d any) map[string]json.RawMessage {
	out := map[string]json.RawMessage{}
	text, err := canonical.Append(nil, d)
	if err == nil {
		err = json.Unmarshal(text, &out)
	}
	if err != nil {
		panic("replay: internal error: a decision can't be encoded: " + err.Error())
	}
	return out
}

// maxClip is how much of a value a difference shows, in bytes.
const maxClip = 200

func clip(text []byte) string {
	if len(text) > maxClip {
		return string(text[:maxClip]) + "…"
	}
	return string(text)
}
