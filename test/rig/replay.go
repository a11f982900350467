package rig

import (
	"context"
	"strings"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit/decisions"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy/replay"
)

// replays fails the test where a recorded decision does not come out again. A revision that was never activated judges
// nothing, so that each has to be there.
func (r *Rig) replays() {
	r.t.Helper()
	events := r.Events()
	policies := bullav1.NewPoliciesClient(r.Client("auditor").Conn())
	archives := func(ctx context.Context, digest replay.Digest) ([]byte, error) {
		reply, err := policies.GetRevision(ctx, &bullav1.GetRevisionRequest{Digest: event.Digest(digest).String()})
		return reply.GetArchive(), err
	}
	var reader decisions.Reader
	seq := func(yield func(replay.Recorded, error) bool) {
		for i, e := range events {
			for _, d := range reader.Add(int64(i), e) {
				if !yield(d, nil) {
					return
				}
			}
		}
	}
	library := replay.NewLibrary(archives)
	err := replay.Run(r.t.Context(), replay.Options{Library: library}, seq, func(res replay.Result) error {
		excused := res.Verdict == replay.NotReplayable && (res.Recorded.Count > 0 || strings.Contains(res.Why, "time limit"))
		if res.Verdict != replay.Match && !excused {
			r.t.Errorf("replay: event %d, %s: %s %s", res.Recorded.Index, res.Recorded.Kind, res.Verdict, res.Why)
		}
		return nil
	})
	if err != nil {
		r.t.Error("replay:", err)
	}
}
