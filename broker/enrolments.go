package broker

import (
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/ledger/event"
)

const (
	enrolmentLife = 2 * time.Minute
	maxEnrolments = 256
	// enrolmentsEach is how many one caller may have begun: nobody uses them up for the others.
	enrolmentsEach = 32
)

// begun is an enrolment whose device has not answered yet.
type begun struct {
	caller     string
	kind       attest.Kind
	principals []string
	finish     func(answer []byte) (attest.Device, error)
	until      time.Time
}

// enrolments holds what was begun, for a short time and in this process only.
type enrolments struct {
	mu  sync.Mutex // guards all
	all map[string]begun
}

func newEnrolments() *enrolments { return &enrolments{all: map[string]begun{}} }

func (e *enrolments) add(op operation, kind attest.Kind, principals []string, finish func([]byte) (attest.Device, error)) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	own := 0
	for id, b := range e.all {
		switch {
		case !op.now.Before(b.until):
			delete(e.all, id)
		case b.caller == op.id.String():
			own++
		}
	}
	if len(e.all) >= maxEnrolments || own >= enrolmentsEach {
		return "", refuse(codes.ResourceExhausted, checkLimit, "too many enrolments are under way: try again in %s", enrolmentLife)
	}
	id := event.NewID(op.now).String()
	e.all[id] = begun{caller: op.id.String(), kind: kind, principals: principals, finish: finish, until: op.now.Add(enrolmentLife)}
	return id, nil
}

// kind is the kind of device that an enrolment is about; "" for an unknown one.
func (e *enrolments) kind(id string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return string(e.all[id].kind)
}

// take removes and returns an enrolment, if op's caller began it.
func (e *enrolments) take(id string, op operation) (begun, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	b, ok := e.all[id]
	if !ok || b.caller != op.id.String() {
		return begun{}, false
	}
	delete(e.all, id)
	return b, op.now.Before(b.until)
}
