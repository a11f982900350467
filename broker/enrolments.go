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
)

// begun is an enrolment whose device has not answered yet.
type begun struct {
	caller     string
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

func (e *enrolments) add(op operation, principals []string, finish func([]byte) (attest.Device, error)) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, b := range e.all {
		if !op.now.Before(b.until) {
			delete(e.all, id)
		}
	}
	if len(e.all) >= maxEnrolments {
		return "", refuse(codes.ResourceExhausted, checkLimit, "%d enrolments are under way: try again in %s", maxEnrolments, enrolmentLife)
	}
	id := event.NewID(op.now).String()
	e.all[id] = begun{caller: op.id.String(), principals: principals, finish: finish, until: op.now.Add(enrolmentLife)}
	return id, nil
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
