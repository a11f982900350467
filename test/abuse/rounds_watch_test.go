package abuse

import (
	"sync/atomic"
	"testing"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/test/rig"
)

// round takes the next message, which has to tell of this round.
func (w watcher) round(what, id string) {
	w.t.Helper()
	if m := w.next(); m.GetRound().GetRoundId() != id || m.GetSequence() == 0 {
		w.t.Errorf("%s: told %v, want round %s", what, m, id)
	}
}

// A02: of each change of a round the instance that asked for it is told, and no other one: neither its sibling nor who
// answers.
func TestAbuse_A02_watch_of_rounds(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	r := rig.Start(t, rig.Config{SVIDTTL: 4 * time.Hour, Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	r.Put("demo/approved", "approved", "one")
	r.Put("demo/split", "split", "two")
	mine, other := openApproval(t, r, "demo/approved"), openApproval(t, r, "demo/approved")
	holder := newCustodian(r, "custodian-1")
	own, sibling, answers := watch(t, t.Context(), mine.w, 0), watch(t, t.Context(), other.w, 0), watch(t, t.Context(), holder.Raw, 0)
	for _, w := range []watcher{own, sibling, answers} {
		if missed, _ := w.ready(); len(missed) != 0 {
			t.Errorf("told of %v", missed)
		}
	}

	mine.w.Challenge(nil)
	delivered, _ := opened(t, mine.w, "demo/split")
	split := delivered.GetSessionId()
	approve(t, r, "custodian-2", split)
	own.round("a share", split)
	approve(t, r, "custodian-2", mine.id)
	own.round("an approval", mine.id)
	if _, err := r.Client("custodian-3").Reject(t.Context(), split, "not today"); err != nil {
		t.Fatal(err)
	}
	own.round("a rejection", split)
	mine.w.Challenge(nil)
	in := mine.w.Sign(bullav1.Rounds_CloseRound_FullMethodName, &bullav1.CloseRoundRequest{RoundId: split})
	if _, err := bullav1.NewRoundsClient(mine.w.Conn).CloseRound(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	own.round("an end", split)
	if m := own.next().GetEnded(); len(m.GetSessionIds()) != 1 || m.GetSessionIds()[0] != split { // with it went its session
		t.Errorf("told %v, want the end of session %s", m, split)
	}

	// The first that the sibling hears of is its own round. Who answered has none.
	if err := holder.give(t, other.id, nil); err != nil {
		t.Fatal(err)
	}
	sibling.round("its own", other.id)
	ahead.Store(int64(16 * time.Minute))
	own.round("expired", mine.id)
	sibling.round("expired", other.id)
	quiet := make(chan *bullav1.WatchReply, 1)
	go func() {
		m, _ := answers.stream.Recv()
		quiet <- m
	}()
	r.Stop()
	if m := <-quiet; m != nil {
		t.Errorf("who answered is told %v", m)
	}
}

// Who may not watch, since others of its principal do, gets what it waits for all the same.
func TestSplitWithoutAWatch(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/split", "split", "the root key")
	a := r.Assemble(rig.Parts{Watchers: 1})
	watch(t, t.Context(), a.Raw("workload"), 0).ready()
	g := ask(t, a.Rig, "workload", "demo/split", time.Minute)
	approve(t, a.Rig, "custodian-1", g.round)
	approve(t, a.Rig, "custodian-2", g.round)
	g.want(t, "the root key")
}
