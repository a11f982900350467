package decisions_test

import (
	"crypto/sha256"
	"reflect"

	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
)

func sum(d policy.Decision) event.Digest { return sha256.Sum256(d.Canonical()) }

// bodies are all that there are. One that is missing here counts as a carrier, so that the test fails.
var bodies = []event.Body{
	event.Genesis{},
	event.KeyIntroduced{},
	event.KeyRetired{},
	event.RevisionActivated{},
	event.SecretPut{},
	event.InstanceBound{},
	event.DeviceEnrolled{},
	event.DeviceRevoked{},
	event.AttestationAppraised{},
	event.AttestationRefused{},
	event.SessionIssued{},
	event.DecisionDenied{},
	event.OperationPermitted{},
	event.SessionConfirmed{},
	event.SessionRevoked{},
	event.SessionClosed{},
	event.SessionUsed{},
	event.SessionOperated{},
	event.SessionsExpired{},
	event.SessionsUnconfirmed{},
	event.RefusalsCounted{},
	event.RequestRefused{},
	event.SignalReceived{},
	event.SignalSettled{},
	event.SignalRefused{},
	event.RoundOpened{},
	event.ShareIssued{},
	event.RoundApproved{},
	event.RoundRejected{},
	event.RoundClosed{},
	event.RoundExpired{},
	event.RevocationOrdered{},
	event.RevocationCompleted{},
	event.SessionsRevoked{},
	event.SessionsWiped{},
	event.AttestationDemanded{},
	event.RevisionSwept{},
	event.RevisionStaged{},
	event.RevisionProposed{},
	event.ShadowStarted{},
	event.ShadowDiffered{},
	event.ShadowEnded{},
	event.TrustObserved{},
	event.SubjectErased{},
	event.HoldPlaced{},
	event.HoldReleased{},
	event.Restored{},
}

func carriesDecision(kind event.Type) bool {
	for _, b := range bodies {
		if b.EventType() == kind {
			return holds(reflect.TypeOf(b))
		}
	}
	return true
}

// holds says whether a type has a decision in it.
func holds(t reflect.Type) bool {
	for f := range t.Fields() {
		of := f.Type
		if of.Kind() == reflect.Pointer {
			of = of.Elem()
		}
		if of == reflect.TypeFor[event.Decision]() || of == reflect.TypeFor[event.Redecided]() {
			return true
		}
	}
	return false
}
