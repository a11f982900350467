package abuse

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// Large events, such as the erasures of a retention, can still be taken away, many of them in a row.
func TestExportOfLargeEvents(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	a := r.Assemble(rig.Parts{})
	const n, size = 12, 1<<20 - 4096
	for range n {
		body := event.RequestRefused{Method: "/bulla.v1.Broker/Deliver", Check: "size", Target: strings.Repeat("x", size)}
		if _, err := a.Ledger.Commit(t.Context(), ledger.Commit{Event: event.New(time.Now(), "", body)}); err != nil {
			t.Fatal(err)
		}
	}
	x := exported(t, r)
	if len(x.Records) < n {
		t.Fatalf("%d events came", len(x.Records))
	}
	dir := filepath.Join(t.TempDir(), "export")
	if _, err := audit.Export(t.Context(), dir, audit.ExportConfig{Checkpoint: x.Checkpoint, Key: x.Key, Events: records(x.Records)}); err != nil {
		t.Fatal(err)
	}
}
