package replay_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"iter"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/policy/replay"
)

// change replaces a text in a copy.
func change(tb testing.TB, text []byte, old, now string) []byte {
	tb.Helper()
	if !bytes.Contains(text, []byte(old)) {
		tb.Fatalf("no %q in %s", old, text)
	}
	return bytes.Replace(bytes.Clone(text), []byte(old), []byte(now), 1)
}

// TestVerdicts: what was recorded has to come out again; whatever was altered is a MISMATCH, and what can't be compared
// says why.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	rev, other := bundle(t), bundle(t, "data/classes.yaml", "ttl_seconds: 3600", "ttl_seconds: 60")
	permit := recorded(t, rev, 0, delivery("workload", "demo/a", "standard"))
	deny := recorded(t, rev, 1, delivery("stranger", "demo/a", "standard"))
	for _, c := range []struct {
		name    string
		from    replay.Recorded
		alter   func(*replay.Recorded)
		verdict replay.Verdict
		exact   string
		why     string
	}{
		{"as it is", permit, func(*replay.Recorded) {}, replay.Match, replay.BitExact, ""},
		{"a denial", deny, func(*replay.Recorded) {}, replay.Match, replay.BitExact, ""},
		{"only its digest", permit, func(r *replay.Recorded) { r.Sum, r.Result, r.Effect = sha256.Sum256(r.Result), nil, "" }, replay.Match, replay.BitExact, ""},
		{"another digest", permit, func(r *replay.Recorded) { r.Sum[0], r.Result = 1, nil }, replay.Mismatch, replay.BitExact, "SHA-256"},
		{"a denial turned into a permit", deny, func(r *replay.Recorded) {
			r.Result = change(t, r.Result, `"decision":"DENY"`, `"decision":"PERMIT"`)
		}, replay.Mismatch, replay.BitExact, "decision: recorded \"PERMIT\", replayed \"DENY\""},
		{"an obligation", permit, func(r *replay.Recorded) { r.Result = change(t, r.Result, `"ttl_seconds":3600`, `"ttl_seconds":3601`) }, replay.Mismatch, replay.BitExact, "obligations"},
		{"the risk", permit, func(r *replay.Recorded) { r.Result = change(t, r.Result, `"score":`, `"score":1`) }, replay.Mismatch, replay.BitExact, "risk"},
		{"the signals", permit, func(r *replay.Recorded) { r.Signals = change(t, r.Signals, "demo/a", "prod/a") }, replay.Mismatch, replay.BitExact, "decision"},
		{"another revision", permit, func(r *replay.Recorded) { r.Revision = other.Digest() }, replay.Mismatch, replay.BitExact, "revision_digest"},
		{"the event's effect", permit, func(r *replay.Recorded) { r.Effect = policy.Deny }, replay.Mismatch, replay.BitExact, "the event says DENY"},
		{"a delivery on a denial", deny, func(r *replay.Recorded) { r.Wants = permit.Wants }, replay.Mismatch, replay.BitExact, "stands on a decision that says DENY"},
		{"somebody else's", permit, func(r *replay.Recorded) { r.Principal = domain + "stranger" }, replay.Mismatch, replay.BitExact, "its signals are about"},
		{"another secret", permit, func(r *replay.Recorded) { r.Secret = "demo/b" }, replay.Mismatch, replay.BitExact, "demo/b"},
		{"another action", permit, func(r *replay.Recorded) { r.Action = "secret.put" }, replay.Mismatch, replay.BitExact, "secret.put"},
		{"signals with a space", permit, func(r *replay.Recorded) { r.Signals = change(t, r.Signals, `{"v"`, `{ "v"`) }, replay.Mismatch, "", "canonical"},
		{"signals of another version", permit, func(r *replay.Recorded) { r.Signals = change(t, r.Signals, `{"v":1`, `{"v":2`) }, replay.Mismatch, "", "version"},
		{"a result with a space", permit, func(r *replay.Recorded) { r.Result = change(t, r.Result, `{"decision"`, `{ "decision"`) }, replay.Mismatch, "", "canonical"},
		{"another engine", permit, func(r *replay.Recorded) { r.Result = change(t, r.Result, policy.EngineVersion(), "opa/0.0.1") }, replay.Match, replay.Semantic, "opa/0.0.1"},
		{"another engine that said otherwise", permit, func(r *replay.Recorded) {
			r.Result = change(t, change(t, r.Result, policy.EngineVersion(), "opa/0.0.1"), `"decision":"PERMIT"`, `"decision":"DENY"`)
		}, replay.Mismatch, replay.Semantic, "opa/0.0.1"},
		{"no revision", permit, func(r *replay.Recorded) { r.Revision[0]++ }, replay.NotReplayable, "", "missing"},
		{"a permit without signals", permit, func(r *replay.Recorded) { r.Signals = []byte("null") }, replay.Mismatch, "", "not recorded"},
		{"a delivery without signals, on a denial", deny, func(r *replay.Recorded) {
			r.Signals, r.Effect, r.Wants = nil, "", permit.Wants
		}, replay.Mismatch, "", "not recorded"},
		{"a denial without signals", deny, func(r *replay.Recorded) { r.Signals = []byte("null") }, replay.NotReplayable, "", "not recorded"},
		{"a permit that timed out", permit, func(r *replay.Recorded) {
			r.Result = change(t, r.Result, `"timed_out":false,"fault":""`, `"timed_out":true,"fault":"too long"`)
		}, replay.Mismatch, "", "no decision (too long), and the record says PERMIT"},
		{"a permit of an engine that was closed", permit, func(r *replay.Recorded) {
			r.Result = change(t, r.Result, `"fault":""`, `"fault":"the policy engine is closed"`)
		}, replay.Mismatch, "", "no decision"},
		{"timed out", deny, func(r *replay.Recorded) {
			r.Result = change(t, r.Result, `"timed_out":false,"fault":""`, `"timed_out":true,"fault":"too long"`)
		}, replay.NotReplayable, "", "time limit"},
		{"a delivery on one that timed out", deny, func(r *replay.Recorded) {
			r.Result, r.Wants = change(t, r.Result, `"timed_out":false,"fault":""`, `"timed_out":true,"fault":"too long"`), permit.Wants
		}, replay.Mismatch, "", "stands on a decision that says DENY"},
		{"timed out, with signals of another version", deny, func(r *replay.Recorded) {
			r.Result = change(t, r.Result, `"timed_out":false,"fault":""`, `"timed_out":true,"fault":"too long"`)
			r.Signals = change(t, r.Signals, `{"v":1`, `{"v":2`)
		}, replay.Mismatch, "", "version"},
		{"the engine was closed", deny, func(r *replay.Recorded) {
			r.Result = change(t, r.Result, `"fault":""`, `"fault":"the policy engine is closed"`)
		}, replay.NotReplayable, "", "closed"},
		{"a fault of the policy that does not come again", deny, func(r *replay.Recorded) {
			r.Result = change(t, r.Result, `"fault":""`, `"fault":"the decision is undefined"`)
		}, replay.Mismatch, replay.BitExact, "fault"},
		{"what contradicts the record", permit, func(r *replay.Recorded) { r.Wrong = "another revision 1" }, replay.Mismatch, "", "another revision 1"},
		{"a gap", permit, func(r *replay.Recorded) { r.Gap = "counted" }, replay.NotReplayable, "", "counted"},
	} {
		r := c.from
		c.alter(&r)
		got := replay.One(t.Context(), library(rev, other), r)
		if got.Verdict != c.verdict || got.Exactness != c.exact || !strings.Contains(got.Why, c.why) {
			t.Errorf("%s: %s %q %q, want %s %q and %q", c.name, got.Verdict, got.Exactness, got.Why, c.verdict, c.exact, c.why)
		}
	}
}

// TestArchiveIsNotBelieved: a revision whose archive is not of the recorded digest judges nothing.
func TestArchiveIsNotBelieved(t *testing.T) {
	t.Parallel()
	rev, other := bundle(t), bundle(t, "data/classes.yaml", "max_risk: 90", "max_risk: 91")
	lying := replay.NewLibrary(func(context.Context, replay.Digest) ([]byte, error) { return other.Archive(), nil })
	got := replay.One(t.Context(), lying, recorded(t, rev, 0, delivery("workload", "demo/a", "standard")))
	if got.Verdict != replay.NotReplayable || !strings.Contains(got.Why, "digest") {
		t.Errorf("%s %q", got.Verdict, got.Why)
	}
}

// TestRunKeepsTheOrderAndEnds: results come in the order of the record, and an error of either side ends the run.
func TestRunKeepsTheOrderAndEnds(t *testing.T) {
	t.Parallel()
	rev := bundle(t)
	one := recorded(t, rev, 0, delivery("workload", "demo/a", "standard"))
	broken := errors.New("broken")
	many := func(n int, end error) iter.Seq2[replay.Recorded, error] {
		return func(yield func(replay.Recorded, error) bool) {
			for i := range n {
				r := one
				r.Index = int64(i)
				if !yield(r, nil) {
					return
				}
			}
			if end != nil {
				yield(replay.Recorded{}, end)
			}
		}
	}
	next := int64(0)
	err := replay.Run(t.Context(), replay.Options{Library: library(rev), Workers: 3}, many(500, broken), func(r replay.Result) error {
		if r.Recorded.Index != next {
			t.Errorf("%d, want %d", r.Recorded.Index, next)
		}
		next++
		return nil
	})
	if !errors.Is(err, broken) || next != 500 {
		t.Errorf("%d results, %v", next, err)
	}
	next = 0
	err = replay.Run(t.Context(), replay.Options{Library: library(rev)}, many(100_000, nil), func(replay.Result) error {
		if next++; next == 10 {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) || next != 10 {
		t.Errorf("%d results, %v", next, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := replay.Run(ctx, replay.Options{Library: library(rev)}, many(1000, nil), func(replay.Result) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
