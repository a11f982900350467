package replay_test

import (
	"bytes"
	"testing"

	"github.com/bulla-project/bulla/policy/replay"
)

// FuzzOne: no record, whatever it says, makes a replay fail or agree with what was not decided.
func FuzzOne(f *testing.F) {
	rev := bundle(f)
	good := recorded(f, rev, 0, delivery("workload", "demo/a", "standard"))
	f.Add(good.Signals, good.Result)
	f.Add([]byte("null"), good.Result)
	f.Add([]byte("{}"), []byte("{}"))
	f.Add(good.Signals, bytes.Replace(good.Result, []byte("PERMIT"), []byte("DENY"), 1))
	f.Add(bytes.Replace(good.Signals, []byte(`"v":1`), []byte(`"v":9`), 1), good.Result)
	l := library(rev)
	f.Fuzz(func(t *testing.T, signals, result []byte) {
		r := good
		r.Signals, r.Result, r.Effect, r.Wants, r.Principal, r.Secret, r.Action = signals, result, "", nil, "", "", ""
		got := replay.One(t.Context(), l, r)
		if got.Verdict == replay.Match && got.Exactness == replay.BitExact && !bytes.Equal(got.Decision.Canonical(), result) {
			t.Errorf("%s agrees with what it did not give: %s", got.Decision.Canonical(), result)
		}
		if got.Verdict == "" {
			t.Error("no verdict")
		}
	})
}
