package sqlite

import (
	"path/filepath"
	"testing"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/storetest"
)

func openTest(t testing.TB) ledger.Store {
	return openAt(t, filepath.Join(t.TempDir(), "data", "ledger.db"))
}

func openAt(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestConforms(t *testing.T) { storetest.Run(t, openTest) }

func TestLedger(t *testing.T) { storetest.RunLedger(t, openTest) }
