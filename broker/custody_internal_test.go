package broker

import (
	"strings"
	"testing"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/envelope/split"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/secret"
)

// What can't be split is refused, and never delivered whole.
func TestDivisible(t *testing.T) {
	here := &event.Split{Threshold: 2}
	source := &event.Split{Threshold: 2, Manifest: event.Digest{1}}
	token := ask{shown: []*bullav1.Factor{{}}}
	large := secret.NewBytes(make([]byte, split.MaxSecret+1))
	for name, c := range map[string]struct {
		custody *event.Split
		asked   ask
		value   secret.Bytes
		want    string
	}{
		"nobody takes part":          {nil, token, large, ""},
		"small enough":               {here, ask{}, secret.NewBytes(make([]byte, split.MaxSecret)), ""},
		"too large":                  {here, ask{}, large, "more than 49152 bytes"},
		"split at its source":        {source, ask{}, large, ""},
		"a token, here":              {here, token, secret.NewBytes([]byte("x")), "token"},
		"a token, split at a source": {source, token, secret.NewBytes([]byte("x")), "token"},
	} {
		if got := (terms{custody: c.custody}).divisible(c.asked, c.value); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// A version that was split at its source is delivered only where its holders are what the policy demands.
func TestCustodyOfASource(t *testing.T) {
	id := func(name string) string { return "spiffe://dev.bulla.test/" + name }
	at := func(threshold uint32, holders ...string) target {
		return target{version: ledger.SecretVersion{Split: &event.Split{Manifest: event.Digest{1}, Threshold: threshold, Holders: holders}}}
	}
	demand := &policy.SplitKnowledge{Threshold: 2, Holders: []string{id("a"), id("b"), id("c")}}
	for name, c := range map[string]struct {
		demand *policy.SplitKnowledge
		at     target
		grade  envelope.Grade
		want   string
	}{
		"nothing demanded":        {nil, at(2, id("x"), id("y")), envelope.GradeOpen, ""},
		"as demanded":             {demand, at(2, id("a"), id("b")), envelope.GradeOpen, ""},
		"more than demanded":      {demand, at(3, id("a"), id("b"), id("c")), envelope.GradeGated, ""},
		"fewer":                   {&policy.SplitKnowledge{Threshold: 3, Holders: demand.Holders}, at(2, id("a"), id("b")), envelope.GradeOpen, "put a new version"},
		"a holder of its own":     {demand, at(2, id("a"), id("x")), envelope.GradeOpen, "put a new version"},
		"the requester":           {nil, at(2, id("app"), id("x")), envelope.GradeOpen, id("app") + " is the same person"},
		"never leaves the broker": {demand, target{}, envelope.GradeProxied, "never leaves"},
		"at the delivery":         {demand, target{}, envelope.GradeOpen, ""},
		"nobody":                  {nil, target{}, envelope.GradeProxied, ""},
	} {
		p := permit{verdict{
			decision: policy.Decision{Obligations: policy.Obligations{SplitKnowledge: c.demand}},
			signals:  policy.Signals{Principal: policy.Principal{ID: id("app")}},
		}}
		if _, got := p.custody(c.at, c.grade); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
