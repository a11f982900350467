package client_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/test/rig"
)

// A Get that waits for others goes on when the watch says so: it asks by itself once in an hour here.
func TestGetIsToldOfItsRound(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/split", "split", "the root key")
	r.Put("demo/approved", "approved", "a value")
	rounds := make(chan client.RoundProgress, 64)
	c := r.Client("workload", func(cfg *client.Config) { cfg.OnRound = func(p client.RoundProgress) { rounds <- p } })
	c.SetPoll(time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	get := func(name string) (round string, done chan error) {
		done = make(chan error, 1)
		go func() {
			_, err := c.Get(ctx, name)
			done <- err
		}()
		select {
		case p := <-rounds:
			return p.ID, done
		case err := <-done:
			t.Fatalf("get %s: %v", name, err)
		}
		return "", nil
	}
	progress := func(approvals uint32) {
		t.Helper()
		select {
		case p := <-rounds:
			if p.Approvals != approvals {
				t.Errorf("%d approvals, want %d", p.Approvals, approvals)
			}
		case <-ctx.Done():
			t.Fatal("nobody told of an approval")
		}
	}
	approve := func(who, round string) {
		t.Helper()
		if _, err := r.Client(who).Approve(ctx, round, nil); err != nil {
			t.Fatal(err)
		}
	}

	round, done := get("demo/split")
	approve("custodian-1", round)
	progress(1)
	r.Stop() // the next stream asks once when it is ready, and is told what comes then
	r.Run()
	approve("custodian-2", round)
	progress(2)
	if err := <-done; err != nil {
		t.Errorf("a split secret: %v", err)
	}
	round, done = get("demo/approved")
	approve("custodian-1", round)
	progress(1)
	if err := <-done; err != nil {
		t.Errorf("a secret that had to be approved: %v", err)
	}
	round, done = get("demo/approved")
	if _, err := r.Client("custodian-1").Reject(ctx, round, "not today"); err != nil {
		t.Fatal(err)
	}
	var ended *client.RoundError
	if err := <-done; !errors.As(err, &ended) || ended.State != "rejected" {
		t.Errorf("a round that was rejected: %v", err)
	}
	for deadline := time.Now().Add(20 * time.Second); c.Watching(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it watches on, and waits for nothing")
		}
	}
}
