package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestGrowth serves deliveries and gated uses from a filled store. With BULLA_TEST_LONG=1 it has a million sessions, and
// the bars of the design hold: a p50 of at most 1.2 times that on an empty store, and a start within 3 s.
func TestGrowth(t *testing.T) {
	sessions, rounds, length := 500, 1, 100*time.Millisecond
	long := os.Getenv("BULLA_TEST_LONG") == "1"
	if long {
		sessions, rounds, length = 1_000_000, growthRounds, 5*time.Second
	}
	dir := t.TempDir()
	binary := filepath.Join(dir, "bulla")
	if out, err := exec.Command("go", "build", "-o", binary, "../../cmd/bulla").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	g, err := growth(t.Context(), binary, dir, sessions, rounds, length)
	if err != nil {
		t.Fatal(err)
	}
	g.print(t.Output())
	if !long { // so short a measurement says only that it works
		return
	}
	for name, r := range map[string]float64{
		"delivery": ratio(g.rows[1].deliver.p50, g.rows[0].deliver.p50), "gated use": ratio(g.rows[1].use.p50, g.rows[0].use.p50),
	} {
		if r > 1.2 {
			t.Errorf("p50 of a %s: %.2f times that on an empty store, at most 1.2 are allowed", name, r)
		}
	}
	if g.ready[1] > 3*time.Second {
		t.Errorf("ready after %s, at most 3 s are allowed", g.ready[1])
	}
}
