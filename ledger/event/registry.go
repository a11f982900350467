package event

import (
	"fmt"
	"reflect"
)

// bodies lists one value of each type; the registry is made from it and never changes.
var bodies = []Body{
	Genesis{},
	KeyIntroduced{},
	KeyRetired{},
	RevisionActivated{},
	SecretPut{},
	InstanceBound{},
	DeviceEnrolled{},
	DeviceRevoked{},
	AttestationAppraised{},
	AttestationRefused{},
	SessionIssued{},
	DecisionDenied{},
	OperationPermitted{},
	SessionConfirmed{},
	SessionRevoked{},
	SessionClosed{},
	SessionUsed{},
	SessionOperated{},
	SessionsExpired{},
	SessionsUnconfirmed{},
	RefusalsCounted{},
	RequestRefused{},
	SignalReceived{},
	SignalSettled{},
	SignalRefused{},
	RoundOpened{},
	ShareIssued{},
	RoundApproved{},
	RoundRejected{},
	RoundClosed{},
	RoundExpired{},
	RevocationOrdered{},
	RevocationCompleted{},
	SessionsRevoked{},
	SessionsWiped{},
	AttestationDemanded{},
	RevisionSwept{},
	RevisionStaged{},
	RevisionProposed{},
	ShadowStarted{},
	ShadowDiffered{},
	ShadowEnded{},
	TrustObserved{},
	SubjectErased{},
	HoldPlaced{},
	HoldReleased{},
	Restored{},
}

var registry = func() map[Type]reflect.Type {
	m := make(map[Type]reflect.Type, len(bodies))
	for _, b := range bodies {
		m[b.EventType()] = reflect.TypeOf(b)
	}
	return m
}()

// newBody returns a pointer to a new body of type t.
func newBody(t Type) (any, error) {
	rt, ok := registry[t]
	if !ok {
		return nil, fmt.Errorf("%w: unknown type %q", ErrMalformed, clip(string(t)))
	}
	return reflect.New(rt).Interface(), nil
}

func deref(p any) Body { return reflect.ValueOf(p).Elem().Interface().(Body) }

// Types returns the types of all events, in the order of their declaration.
func Types() []Type {
	out := make([]Type, len(bodies))
	for i, b := range bodies {
		out[i] = b.EventType()
	}
	return out
}
