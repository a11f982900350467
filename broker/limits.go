package broker

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxPrincipals bounds what the limiter and the history remember. Beyond it the entry that was idle
// longest goes.
const maxPrincipals = 4096

// Each new binding of an instance key is a durable event with a certificate chain, whoever asks: so many a
// second, so many at once. A process makes one per SVID.
const (
	bindingsPerSecond = 20
	bindingsBurst     = 4096
)

// Each watch that begins costs a look at every session that its instance names: so many a second, so many at once.
const (
	watchesPerSecond = 20
	watchesBurst     = 4096
)

// maxInFlight is how many calls one principal may have under way at once, over all its connections: far fewer
// than the ledger's queue holds, so that nobody fills it for the others. It bounds as well what half-sent messages
// of one principal hold in memory, each up to maxMessage.
const maxInFlight = 512

// refusalWindow is the span that one RefusalsCounted event stands for.
const refusalWindow = 10 * time.Second

// allowance is what one principal may spend.
type allowance struct {
	calls    *rate.Limiter // every call, before it costs a signature check
	denials  *rate.Limiter // refused calls: each is a durable event
	bindings *rate.Limiter // new instance keys: each is a durable event
	watches  *rate.Limiter // streams that begin
	used     time.Time

	refused uint64 // since from, not yet recorded
	from    time.Time

	begun    int // calls whose stream is open, with or without a whole message
	underWay int // calls that are being answered, also those that their caller has given up
}

// limits holds the allowances of the principals that were seen lately.
type limits struct {
	calls, denials rate.Limit
	callBurst      int
	denialBurst    int

	mu  sync.Mutex // guards all
	all map[string]*allowance
}

func newLimits(calls rate.Limit, callBurst int, denials rate.Limit, denialBurst int) *limits {
	return &limits{calls: calls, callBurst: callBurst, denials: denials, denialBurst: denialBurst, all: map[string]*allowance{}}
}

func (l *limits) of(principal string, now time.Time) *allowance {
	a := l.all[principal]
	if a == nil {
		if len(l.all) >= maxPrincipals {
			l.evict()
		}
		a = &allowance{calls: rate.NewLimiter(l.calls, l.callBurst), denials: rate.NewLimiter(l.denials, l.denialBurst), bindings: rate.NewLimiter(bindingsPerSecond, bindingsBurst), watches: rate.NewLimiter(watchesPerSecond, watchesBurst)}
		l.all[principal] = a
	}
	a.used = now
	return a
}

// evict drops the entry that was idle longest and owes no record.
func (l *limits) evict() {
	var oldest string
	for p, a := range l.all {
		if a.refused == 0 && a.underWay == 0 && a.begun == 0 && (oldest == "" || a.used.Before(l.all[oldest].used)) {
			oldest = p
		}
	}
	if oldest != "" {
		delete(l.all, oldest)
	}
}

// begin counts a stream of principal as open, unless it has too many.
func (l *limits) begin(principal string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.of(principal, now)
	if a.begun >= maxInFlight {
		a.refuse(now, 1)
		return false
	}
	a.begun++
	return true
}

// end ends what begin began.
func (l *limits) end(principal string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.all[principal]; a != nil {
		a.begun--
	}
}

// enter counts a call of principal as under way, unless it has too many.
func (l *limits) enter(principal string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.of(principal, now)
	if a.underWay >= maxInFlight {
		a.refuse(now, 1)
		return false
	}
	a.underWay++
	return true
}

// leave ends what enter began.
func (l *limits) leave(principal string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.all[principal]; a != nil {
		a.underWay--
	}
}

// admit reports whether principal may call now. A principal that used up its denials is refused as well,
// so that a flood of refused calls costs a map look-up each and no evaluation.
func (l *limits) admit(principal string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.of(principal, now)
	if a.denials.TokensAt(now) >= 1 && a.calls.AllowN(now, 1) {
		return true
	}
	a.refuse(now, 1)
	return false
}

// bind reports whether principal may bring one more instance key now.
func (l *limits) bind(principal string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.of(principal, now)
	if a.bindings.AllowN(now, 1) {
		return true
	}
	a.refuse(now, 1)
	return false
}

// watch reports whether principal may begin one more stream now.
func (l *limits) watch(principal string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.of(principal, now)
	if a.watches.AllowN(now, 1) {
		return true
	}
	a.refuse(now, 1)
	return false
}

// refused counts n refusals since from that no event stands for yet.
func (l *limits) refused(principal string, from time.Time, n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.of(principal, from).refuse(from, n)
}

func (a *allowance) refuse(from time.Time, n uint64) {
	if a.refused == 0 || from.Before(a.from) {
		a.from = from
	}
	a.refused += n
}

// denied takes one denial from principal's allowance.
func (l *limits) denied(principal string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.of(principal, now).denials.AllowN(now, 1)
}

// tally is what has to be recorded for one principal.
type tally struct {
	principal string
	count     uint64
	from      time.Time
}

// due returns and resets the tallies whose window is over; all of them when flush is set.
func (l *limits) due(now time.Time, flush bool) []tally {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []tally
	for p, a := range l.all {
		if a.refused > 0 && (flush || now.Sub(a.from) >= refusalWindow) {
			out = append(out, tally{p, a.refused, a.from})
			a.refused = 0
		}
	}
	return out
}
