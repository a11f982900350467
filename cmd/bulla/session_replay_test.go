package main

import (
	"testing"

	"github.com/bulla-project/bulla/audit/decisions"
	"github.com/bulla-project/bulla/policy/replay"
)

// TestReplayListsWhatDoesNotMatch: erased events take no place in the list, and however much can't be replayed, what does not
// match is named.
func TestReplayListsWhatDoesNotMatch(t *testing.T) {
	var answer replayAnswer
	answer.Kinds = map[string]uint64{}
	listed := map[string]int{}
	add := func(n int, kind string, verdict replay.Verdict) {
		for range n {
			r := replay.Result{Recorded: replay.Recorded{Kind: kind}, Verdict: verdict}
			answer.count(r)
			if answer.lists(r, true) {
				listed[kind]++
				answer.Results = append(answer.Results, newResultJSON(r))
			}
		}
	}
	add(2*maxResults, decisions.KindErased, replay.NotReplayable)
	add(5, "matches", replay.Match)
	add(maxResults+7, "can't", replay.NotReplayable)
	add(maxResults+3, "differs", replay.Mismatch)
	if listed[decisions.KindErased] != 0 || listed["matches"] != 0 || listed["can't"] != maxResults || listed["differs"] != maxResults {
		t.Errorf("listed %v", listed)
	}
	if answer.Omitted != 10 {
		t.Errorf("%d are omitted, want 10", answer.Omitted)
	}
}
