package rig

import (
	"context"
	"strings"
	"sync"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit/decisions"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy/replay"
)

// The revisions of all rigs of a process, most of which have the same: to load one takes as long as many a test.
var (
	archives sync.Map // replay.Digest → []byte
	library  = replay.NewLibrary(func(_ context.Context, digest replay.Digest) ([]byte, error) {
		archive, ok := archives.Load(digest)
		if !ok {
			return nil, replay.ErrNoRevision
		}
		return archive.([]byte), nil
	})
)

// replays fails the test where a recorded decision does not come out again. A revision that was never activated judges
// nothing, so that each has to be there.
func (r *Rig) replays() {
	r.t.Helper()
	events := r.Events()
	policies := bullav1.NewPoliciesClient(r.Client("auditor").Conn())
	for _, e := range events {
		activated, ok := e.Body.(event.RevisionActivated)
		if _, known := archives.Load(replay.Digest(activated.Digest)); !ok || known {
			continue
		}
		reply, err := policies.GetRevision(r.t.Context(), &bullav1.GetRevisionRequest{Digest: activated.Digest.String()})
		if err != nil {
			r.t.Error("replay:", err)
			return
		}
		archives.Store(replay.Digest(activated.Digest), reply.GetArchive())
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
