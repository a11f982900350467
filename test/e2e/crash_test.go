package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/client"
)

// TestAbuse_A28_kill kills the broker at random moments of many deliveries. After each restart the log verifies,
// the state is what the events make of it, and every session that a client was told is confirmed is there and
// confirmed. Three rounds; twenty of 1,000 deliveries each with BULLA_TEST_LONG=1.
func TestAbuse_A28_kill(t *testing.T) {
	rounds, deliveries := 3, 150
	if os.Getenv("BULLA_TEST_LONG") != "" {
		rounds, deliveries = 20, 1000
	}
	dir := filepath.Join(t.TempDir(), "d")
	d := startDev(t, dir, "--tpm=off")
	d.put(t, "demo/crash", "standard", "x")
	kept := map[string]bool{}
	for round := range rounds {
		for _, id := range d.loadAndKill(t, deliveries) {
			kept[id] = true
		}
		d = startDev(t, dir, "--tpm=off")
		d.holds(t, fmt.Sprintf("export-%d", round), kept)
	}
	t.Logf("%d rounds, %d acknowledged sessions, none missing", rounds, len(kept))
	d.stop(t)
}

// loadAndKill lets eight workloads get a secret until the broker is killed, somewhere within the given number of
// deliveries, and returns the sessions whose receipt was acknowledged.
func (d *dev) loadAndKill(t testing.TB, deliveries int) (acknowledged []string) {
	t.Helper()
	env := d.as(t, "workload")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var mu sync.Mutex // guards acknowledged
	last := 1 + rand.IntN(deliveries)
	reached := make(chan struct{})
	var workers sync.WaitGroup
	for range 8 {
		c, err := client.New(ctx, client.Config{Address: env["BULLA_ADDR"], ServerID: env["BULLA_SERVER_ID"], EndpointSocket: env["SPIFFE_ENDPOINT_SOCKET"]})
		if err != nil {
			t.Fatal(err)
		}
		workers.Go(func() {
			defer c.Close()
			for ctx.Err() == nil {
				s, err := c.Get(ctx, "demo/crash")
				if err != nil {
					return // the broker is gone
				}
				s.Close()
				mu.Lock()
				acknowledged = append(acknowledged, s.SessionID)
				if len(acknowledged) == last {
					close(reached)
				}
				mu.Unlock()
			}
		})
	}
	select {
	case <-reached:
	case <-time.After(patience):
		t.Error("the deliveries did not come to the number at which the broker was to be killed")
	}
	d.kill() // SIGKILL, with calls under way
	stop()
	workers.Wait()
	return acknowledged
}

// holds checks everything after a crash.
func (d *dev) holds(t testing.TB, export string, kept map[string]bool) {
	t.Helper()
	auditor := d.as(t, "auditor")
	run(t, auditor, "audit", "rebuild", "--check", "-o", "json").want(t, done)
	out := filepath.Join(t.TempDir(), export)
	run(t, auditor, "audit", "export", "--out", out, "-o", "json").want(t, done)
	run(t, auditor, "audit", "verify", out, "--key", d.path("log.pub"), "-o", "json").want(t, done)
	c, err := client.New(t.Context(), client.Config{Address: auditor["BULLA_ADDR"], ServerID: auditor["BULLA_SERVER_ID"], EndpointSocket: auditor["SPIFFE_ENDPOINT_SOCKET"]})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sessions, confirmed := bullav1.NewSessionsClient(c.Conn()), map[string]bool{}
	for before := ""; ; {
		page, err := sessions.ListSessions(t.Context(), &bullav1.ListSessionsRequest{Before: before})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range page.GetSessions() {
			confirmed[s.GetId()] = s.GetState() == "confirmed"
		}
		if before = page.GetNext(); before == "" {
			break
		}
	}
	for id := range kept {
		if !confirmed[id] {
			t.Errorf("session %s was acknowledged, and is missing or not confirmed after the crash", id)
		}
	}
}
