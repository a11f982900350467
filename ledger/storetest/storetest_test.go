package storetest_test

import (
	"testing"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/storetest"
)

func memory(t testing.TB) ledger.Store {
	m := storetest.NewMemory()
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func TestMemoryConforms(t *testing.T) { storetest.Run(t, memory) }

func TestLedgerOnMemory(t *testing.T) { storetest.RunLedger(t, memory) }
