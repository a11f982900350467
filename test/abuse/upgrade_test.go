package abuse

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/broker/server"
	"github.com/bulla-project/bulla/test/rig"
)

// A broker that finds a ledger of the format before makes the rows that questions are answered from; a check that is to
// change nothing leaves it alone.
func TestServerUpgradesTheLedger(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "value")
	get(t, r.Client("workload"), "demo/hello", "value")
	if _, err := r.Client("stranger").Get(t.Context(), "demo/hello"); err == nil {
		t.Fatal("a stranger got it")
	}
	findings := func() int {
		found, err := bullav1.NewQuestionsClient(r.Client("security").Conn()).Query(t.Context(), &bullav1.QueryRequest{About: &bullav1.About{Secret: "demo/hello"}})
		if err != nil {
			t.Fatal(err)
		}
		return len(found.GetFindings())
	}
	want := findings()
	r.Stop()
	db, err := sql.Open("sqlite", filepath.Join(r.Config.DataDir, "ledger.db"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.ExecContext(t.Context(), "DROP INDEX states_denial; DELETE FROM states WHERE kind IN ('denial', 'activation'); PRAGMA user_version = 1")
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := server.CheckStopped(t.Context(), r.Config.DataDir, r.Config.Keyring.KEKFile, nil); err == nil || !strings.Contains(err.Error(), "start the broker") {
		t.Errorf("checked as it is: %v", err)
	}
	if _, err := server.RestoreStopped(t.Context(), r.Config, server.RestoreOptions{}); err == nil || !strings.Contains(err.Error(), "start the broker") {
		t.Errorf("asked whether a restore is needed: %v", err)
	}
	r.Run()
	if got := findings(); got != want || want < 2 {
		t.Errorf("%d findings, and %d before", got, want)
	}
	if !strings.Contains(r.Log.String(), "brought up to date") {
		t.Error("the log does not tell of it")
	}
	r.Check()
}
