package broker

import (
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/bulla-project/bulla/keyring/epoch"
	"github.com/bulla-project/bulla/policy"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// What a peer chose is cut between characters: the ledger takes no text that is not UTF-8.
func TestCutKeepsCharactersWhole(t *testing.T) {
	for _, s := range []string{"", "a", "éééééééééééé", "aéééééééééé", "\U0001F600\U0001F600\U0001F600", "a\U0001F600\U0001F600"} {
		for most := range 14 {
			got := cut(s, most)
			if !utf8.ValidString(got) || len(got) > most || len(s) > most && len(got) < most-3 {
				t.Errorf("%q cut to %d bytes is %q", s, most, got)
			}
		}
	}
}

// A tally that the ledger did not take is counted on, from when it began.
func TestTalliesAreNotLost(t *testing.T) {
	l := newLimits(1, 1, 1, 1)
	if !l.admit("p", noon) || l.admit("p", noon) || l.admit("p", noon.Add(time.Millisecond)) {
		t.Fatal("want one call of three")
	}
	due := l.due(noon.Add(refusalWindow), false)
	if len(due) != 1 || due[0].count != 2 {
		t.Fatalf("%+v", due)
	}
	l.refused(due[0].principal, due[0].from, due[0].count)
	l.refused("p", noon.Add(time.Minute), 1)
	if due = l.due(noon.Add(2*time.Minute), false); len(due) != 1 || due[0].count != 3 || !due[0].from.Equal(noon) {
		t.Fatalf("%+v", due)
	}
}

// Instance keys cost nothing to make, and each binding is a durable event.
func TestBindingsAreBounded(t *testing.T) {
	l := newLimits(1e6, 1e6, 1, 1)
	taken := 0
	for range bindingsBurst + 100 {
		if l.bind("p", noon) {
			taken++
		}
	}
	if taken != bindingsBurst || !l.bind("q", noon) || !l.bind("p", noon.Add(time.Second)) {
		t.Errorf("%d of one principal were taken at once, want %d, and others of others and later", taken, bindingsBurst)
	}
	if due := l.due(noon.Add(refusalWindow), false); len(due) != 1 || due[0].principal != "p" || due[0].count != 100 {
		t.Errorf("%+v", due)
	}
}

// A rate limit with a key is one for all who share the key; without, each principal has its own.
func TestRateLimitIsSharedByItsKey(t *testing.T) {
	counter := func(principal, key string) string {
		p := permit{verdict{
			decision: policy.Decision{Obligations: policy.Obligations{
				TimeBound: &policy.TimeBound{TTLSeconds: 60, Grade: policy.GradeOpen},
				RateLimit: &policy.RateLimit{Key: key, Max: 1, WindowSeconds: 60, Grade: policy.GradeOpen},
			}},
			signals: policy.Signals{Principal: policy.Principal{ID: principal}},
		}}
		got, unmet := p.terms(noon, ask{}, device{}, target{}, new(epoch.Keys))
		if unmet != "" || len(got.counters) != 1 {
			t.Fatalf("%q, %+v", unmet, got.counters)
		}
		return got.counters[0].Key
	}
	if counter("spiffe://a/x", "db") != counter("spiffe://a/y", "db") {
		t.Error("two principals don't share a limit with a key")
	}
	if counter("spiffe://a/x", "") == counter("spiffe://a/y", "") || counter("spiffe://a/x", "") == counter("spiffe://a/x", "db") {
		t.Error("two principals share a limit without a key, or one with another")
	}
}

// The same path in a federated trust domain says nothing about the type of a principal.
func TestTypesAreThoseOfTheOwnTrustDomain(t *testing.T) {
	b := &Broker{
		id:    spiffeid.RequireFromString("spiffe://example.org/bulla/broker"),
		types: map[string]string{"/ci": policy.TypePipeline, "/ci/people/": policy.TypeUser},
	}
	for id, want := range map[string]string{
		"spiffe://example.org/ci/job": policy.TypePipeline, "spiffe://example.org/ci": policy.TypePipeline,
		"spiffe://example.org/cider": policy.TypeService, "spiffe://example.org/ci/people/ann": policy.TypeUser,
		"spiffe://other.org/ci/job": policy.TypeService, "spiffe://other.org/ci/people/ann": policy.TypeService,
	} {
		if got := b.principalType(spiffeid.RequireFromString(id)); got != want {
			t.Errorf("%s is %s, want %s", id, got, want)
		}
	}
}
