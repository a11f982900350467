package policy

import (
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("did not happen: " + what)
		}
	}
}

func TestShadowCountsDifferences(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Config{})
	live := development(t)
	candidate := open(t, answer(strings.Replace(whole("DENY", "{}", "{}"), `"disclose": true`, `"disclose": false`, 1)))
	var told atomic.Int64
	s := NewShadow(ShadowConfig{Candidate: candidate, CPU: MaxShadowCPU, Differed: func(live, other Decision) {
		told.Add(1)
		if live.Effect != Permit || other.Effect != Deny || other.RevisionDigest == live.RevisionDigest {
			t.Errorf("%s, the shadow says %s", describe(live), describe(other))
		}
	}})
	defer s.Close()
	const each = 8
	for range each {
		for _, q := range []Signals{delivery("workload", "demo/key", "standard"), delivery("stranger", "demo/key", "standard"), request("security", ActionPolicyPush)} {
			before := s.Report()
			s.Offer(q, e.Decide(t.Context(), live, q))
			until(t, "the shadow follows", func() bool {
				now := s.Report()
				return now.Compared > before.Compared || now.Dropped > before.Dropped
			})
		}
	}
	r := s.Report()
	if r.Seen != 3*each || r.Compared+r.Dropped != r.Seen || r.Compared == 0 || r.Ended != "" {
		t.Errorf("%+v", r)
	}
	for _, row := range r.Rows {
		if row.From != "PERMIT" || row.To != "DENY" || row.Principal == "spiffe://dev.bulla.test/stranger" {
			t.Errorf("%+v", row)
		}
	}
	if int(told.Load()) != len(r.Rows) || len(r.Rows) != 2 || !slices.Equal(r.Transitions, []ShadowTransition{{"PERMIT", "DENY", r.Differed}}) {
		t.Errorf("%d told, %+v", told.Load(), r)
	}
}

// endless is a candidate that does not come to an end.
func endless(t *testing.T) *Revision {
	t.Helper()
	return open(t, answer(`{"decision": "PERMIT", "reasons": [r | some a in numbers; some b in numbers; some c in numbers; some d in numbers; some e in numbers; some f in numbers; a + b + c + d + e + f == 0; r := "r"], "obligations": {}, "requires": {}, "disclose": true}

numbers := [`+strings.Repeat("1, ", 99)+`1]`))
}

// A candidate that runs without end is cut off, ends the shadow, and holds up no decision. Take the limit or the budget
// away, and this takes for ever.
func TestShadowWithoutEnd(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Config{})
	live := development(t)
	q := delivery("workload", "demo/key", "standard")
	s := NewShadow(ShadowConfig{Candidate: endless(t), CPU: MaxShadowCPU})
	defer s.Close()
	start, spent := time.Now(), time.Duration(0)
	until(t, "the shadow ends", func() bool {
		d := e.Decide(t.Context(), live, q)
		if d.Effect != Permit || d.RevisionDigest != live.digestHex {
			t.Fatal(describe(d))
		}
		at := time.Now()
		s.Offer(q, d)
		if took := time.Since(at); took > spent {
			spent = took
		}
		return s.Report().Ended != ""
	})
	r := s.Report()
	if r.Ended != "its decisions kept running into the time limit" || r.Compared != shadowStrikes {
		t.Errorf("%+v", r)
	}
	for _, row := range r.Rows {
		if row.To != Inconclusive {
			t.Errorf("%+v", row)
		}
	}
	// Half a processor at most: after each evaluation of 50 ms comes as long a rest, but for the second that it may save up.
	if least := shadowStrikes*shadowLimit*2 - shadowBurst; time.Since(start) < least {
		t.Errorf("%d evaluations of %s in %s: that is more than the share", r.Compared, shadowLimit, time.Since(start))
	}
	t.Logf("ended after %s, %d of %d dropped, an offer took %s at most", time.Since(start), r.Dropped, r.Seen, spent)
}

// The budget: with a thousandth of a processor, a runaway gets a second's savings and then next to nothing.
func TestShadowKeepsItsShare(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Config{})
	live := development(t)
	q := delivery("workload", "demo/key", "standard")
	d := e.Decide(t.Context(), live, q)
	s := NewShadow(ShadowConfig{Candidate: endless(t), CPU: 1})
	defer s.Close()
	until(t, "one evaluation", func() bool { s.Offer(q, d); return s.Report().Compared == 1 })
	until(t, "the others are dropped", func() bool { s.Offer(q, d); return s.Report().Dropped > 10_000 })
	if r := s.Report(); r.Compared != 1 || r.Ended != "" { // the next one would come 50 seconds later
		t.Errorf("%+v", r)
	}
}

// What was closed takes nothing, and Close comes back.
func TestShadowClosed(t *testing.T) {
	t.Parallel()
	s := NewShadow(ShadowConfig{Candidate: development(t), CPU: 10})
	s.Close()
	s.Close()
	s.Offer(Signals{}, Decision{Effect: Permit})
	if r := s.Report(); r.Compared != 0 || r.Ended == "" {
		t.Errorf("%+v", r)
	}
}

// TestShadowSeesWhatIsTold: a refusal that tells the caller something else differs, and one whose reasons nobody is told
// does not.
func TestShadowSeesWhatIsTold(t *testing.T) {
	t.Parallel()
	deny := func(covered bool, reasons ...string) Decision {
		return Decision{Effect: Deny, Covered: covered, Reasons: reasons}
	}
	for _, c := range []struct {
		live, shadow Decision
		to           string
	}{
		{deny(false, "a"), deny(true, "a"), "DENY, told otherwise"},
		{deny(true, "a"), deny(false, "a"), "DENY, told otherwise"},
		{deny(true, "a"), deny(true, "b"), "DENY, told otherwise"},
		{deny(true, "a"), deny(true, "a"), "DENY"},
		{deny(false, "a"), deny(false, "b"), "DENY"},
		{deny(false), Decision{Effect: Permit, Covered: true}, "PERMIT"},
	} {
		if from, to := outcomes(c.live, c.shadow); from != "DENY" || to != c.to {
			t.Errorf("%s → %s, want %s", from, to, c.to)
		}
	}
}
