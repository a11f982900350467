package canonical_test

import (
	"reflect"
	"testing"

	"github.com/bulla-project/bulla/internal/canonical"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
)

// One field of an unknown kind leaves the whole record to encoding/json: a tenth of what a use of a gated session costs.
func TestRecordsOfEveryCallAreKnown(t *testing.T) {
	for _, record := range []reflect.Type{
		reflect.TypeFor[policy.Signals](), reflect.TypeFor[policy.Decision](),
		reflect.TypeFor[event.SessionIssued](), reflect.TypeFor[event.SessionConfirmed](), reflect.TypeFor[event.SessionUsed](),
		reflect.TypeFor[event.SessionOperated](), reflect.TypeFor[event.DecisionDenied](),
	} {
		if !canonical.Known(record) || !canonical.Readable(record) {
			t.Errorf("%s is left to encoding/json", record)
		}
	}
}
