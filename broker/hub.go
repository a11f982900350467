package broker

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

const (
	// maxWatchers is how many instances may watch at once, over all and by default of one principal.
	maxWatchers     = 4096
	watchersOfOne   = 2048
	watcherBacklog  = 64   // messages that a watcher may be behind before its stream is dropped
	followPage      = 256  // events that are told of at once
	maxHeldSessions = 1024 // sessions that an instance can name when it begins to watch
	// maxAudiences is how many live views of operators there may be.
	maxAudiences = 128
)

// hub is the one place that follows the ledger: it reads each committed event once, finds out whom it concerns, and
// tells them. What an event costs does not depend on how many watch.
type hub struct {
	ledger *ledger.Ledger
	logger *slog.Logger
	most   int // watchers of one principal

	mu        sync.Mutex                       // guards what follows
	next      int64                            // index of the next event to tell of
	watchers  map[string]*watcher              // by ledger.InstanceKey
	count     map[string]int                   // watchers, by principal
	holders   map[string]map[*watcher]struct{} // of a live session of a secret, by its name
	audiences map[*audience]struct{}
	closed    bool
}

// watcher is the stream of one instance. The hub never waits for it.
type watcher struct {
	key, principal string
	queue          chan *bullav1.WatchReply
	gone           chan struct{} // closed when the hub has dropped it; why says why
	why            string        // written before gone is closed

	secrets map[string]held // guarded by hub.mu: what it holds live sessions of, by name
}

// held is what a watcher has of a secret.
type held struct {
	until  time.Time // the end of its last session
	newest uint32    // the newest version that it was told of
}

// audience sees every event that the hub tells of. take must be quick and must not wait.
type audience struct {
	take func(ledger.Committed)
	gone chan struct{}
}

func newHub(l *ledger.Ledger, logger *slog.Logger, most int) *hub {
	if most <= 0 {
		most = watchersOfOne
	}
	h := &hub{
		ledger: l, logger: logger, most: most, watchers: map[string]*watcher{}, count: map[string]int{},
		holders: map[string]map[*watcher]struct{}{}, audiences: map[*audience]struct{}{},
	}
	h.next, _ = l.Committed()
	return h
}

// run tells of events as they are committed, until ctx ends. saw is called with each of them, in order.
func (h *hub) run(ctx context.Context, saw func(ledger.Committed)) {
	for ctx.Err() == nil {
		size, more := h.ledger.Committed()
		next := h.position()
		if next >= size {
			select {
			case <-more:
			case <-ctx.Done():
			}
			continue
		}
		events, err := h.ledger.Follow(ctx, next, followPage)
		if err != nil || len(events) == 0 {
			if ctx.Err() == nil {
				h.logger.Error("events could not be followed", "from", next, "error", err)
			}
			select { // what is not readable now may be so soon; nothing is left out
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			continue
		}
		for _, e := range events {
			saw(e)
			h.tell(ctx, e)
		}
	}
}

func (h *hub) position() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.next
}

// tell passes one event on. Whoever joined before it gets it from here; whoever joins after it finds it in the state.
func (h *hub) tell(ctx context.Context, e ledger.Committed) {
	h.mu.Lock()
	if len(h.watchers) == 0 && len(h.audiences) == 0 {
		h.next = e.Index + 1
		h.mu.Unlock()
		return
	}
	h.mu.Unlock()
	ended, asked := h.ended(ctx, e), h.asked(ctx, e) // looked up without the lock: only who gets it is decided under it
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next = e.Index + 1
	for key, what := range ended {
		h.push(h.watchers[key], &bullav1.WatchReply{Sequence: e.Index, What: &bullav1.WatchReply_Ended{Ended: what}})
	}
	if asked.round != "" {
		h.push(h.watchers[asked.key], &bullav1.WatchReply{Sequence: e.Index, What: &bullav1.WatchReply_Round{Round: &bullav1.RoundChange{RoundId: asked.round}}})
	}
	switch b := e.Event.Body.(type) {
	case event.SessionIssued:
		h.holds(h.watchers[ledger.InstanceKey(b.Principal, b.Instance)], b.Secret, b.Expires.Time(), b.Version)
	case event.SecretPut:
		for w := range h.holders[b.Name] {
			h.rotated(w, e, b)
		}
	case event.AttestationDemanded:
		h.push(h.watchers[ledger.InstanceKey(b.Principal, b.Instance)], &bullav1.WatchReply{Sequence: e.Index, What: demandReply(b.By, b.Reason)})
	}
	for a := range h.audiences {
		a.take(e)
	}
}

// ended groups the sessions that an event ended by the instances that they belong to.
func (h *hub) ended(ctx context.Context, e ledger.Committed) map[string]*bullav1.SessionsEnd {
	var ids []event.ID
	var reason string
	switch b := e.Event.Body.(type) {
	case event.SessionRevoked:
		ids, reason = []event.ID{b.Session}, b.Reason
	case event.SessionsRevoked:
		ids, reason = b.Sessions, b.Reason
	}
	out := make(map[string]*bullav1.SessionsEnd, len(ids))
	for _, id := range ids {
		s, _, err := h.ledger.Session(ctx, id) // the commit has just put it into the cache
		if err != nil {
			if ctx.Err() == nil {
				h.logger.Error("a session that ended could not be read: its instance learns of it at its next call", "session", id.String(), "error", err)
			}
			continue
		}
		key := ledger.InstanceKey(s.Principal, s.Instance)
		if out[key] == nil {
			out[key] = &bullav1.SessionsEnd{State: string(session.Revoked), Reason: reason}
		}
		out[key].SessionIds = append(out[key].SessionIds, id.String())
	}
	return out
}

// asker is the instance that asked for a round.
type asker struct{ key, round string }

// asked finds whose round an event changed; none where it changed none that waits for others.
func (h *hub) asked(ctx context.Context, e ledger.Committed) asker {
	var id event.ID
	switch b := e.Event.Body.(type) {
	case event.RoundApproved:
		id = b.Round
	case event.RoundRejected:
		id = b.Round
	case event.RoundClosed:
		id = b.Round
	case event.RoundExpired:
		id = b.Round
	default:
		return asker{}
	}
	r, _, err := h.ledger.Round(ctx, id) // the commit has just put it into the cache
	if err != nil {
		if ctx.Err() == nil {
			h.logger.Error("a round that changed could not be read: its instance learns of it when it asks", "round", id.String(), "error", err)
		}
		return asker{}
	}
	return asker{ledger.InstanceKey(r.Principal, r.Instance), id.String()}
}

// holds notes that w has a live session of a secret. The caller holds mu.
func (h *hub) holds(w *watcher, secret string, until time.Time, newest uint32) {
	if w == nil || h.watchers[w.key] != w {
		return
	}
	before, known := w.secrets[secret]
	if !known && len(w.secrets) >= maxHeldSessions { // it learns of a newer version when it refreshes
		return
	}
	if before.until.After(until) {
		until = before.until
	}
	w.secrets[secret] = held{until, max(before.newest, newest)}
	if h.holders[secret] == nil {
		h.holders[secret] = map[*watcher]struct{}{}
	}
	h.holders[secret][w] = struct{}{}
}

// rotated tells a holder of a newer version, once. The caller holds mu.
func (h *hub) rotated(w *watcher, e ledger.Committed, b event.SecretPut) {
	has := w.secrets[b.Name]
	if !e.Event.Time.Time().Before(has.until) {
		h.forget(w, b.Name)
		return
	}
	if b.Version <= has.newest {
		return
	}
	w.secrets[b.Name] = held{has.until, b.Version}
	h.push(w, &bullav1.WatchReply{Sequence: e.Index, What: rotationReply(b.Name, b.Version)})
}

func (h *hub) forget(w *watcher, secret string) {
	delete(w.secrets, secret)
	delete(h.holders[secret], w)
	if len(h.holders[secret]) == 0 {
		delete(h.holders, secret)
	}
}

// push queues a message. A watcher that does not read is dropped: it comes again and is told what it missed. The
// caller holds mu.
func (h *hub) push(w *watcher, m *bullav1.WatchReply) {
	if w == nil {
		return
	}
	select {
	case w.queue <- m:
	default:
		h.drop(w, "the stream is not read: watch again, and what was missed is told")
	}
}

// drop takes a watcher out. The caller holds mu.
func (h *hub) drop(w *watcher, why string) {
	if h.watchers[w.key] != w {
		return
	}
	delete(h.watchers, w.key)
	if h.count[w.principal]--; h.count[w.principal] <= 0 {
		delete(h.count, w.principal)
	}
	for secret := range w.secrets {
		h.forget(w, secret)
	}
	w.why = why
	close(w.gone)
}

var errTooManyWatchers = errors.New("too many watchers")

// join makes a watcher of an instance, in the place of the one that it has, and says from which event on it is told.
func (h *hub) join(principal, instance string) (*watcher, int64, error) {
	w := &watcher{
		key: ledger.InstanceKey(principal, instance), principal: principal, queue: make(chan *bullav1.WatchReply, watcherBacklog),
		gone: make(chan struct{}), secrets: map[string]held{},
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if old := h.watchers[w.key]; old != nil {
		h.drop(old, "this instance watches on another stream by now")
	}
	if h.closed {
		return nil, 0, refuse(codes.Unavailable, checkLimit, "the broker is stopping: watch its successor")
	}
	if len(h.watchers) >= maxWatchers || h.count[principal] >= h.most {
		return nil, 0, errTooManyWatchers
	}
	h.watchers[w.key] = w
	h.count[principal]++
	return w, h.next, nil
}

// leave ends a watcher, if it has not been dropped.
func (h *hub) leave(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop(w, "it left")
}

// connected says whether an instance watches now.
func (h *hub) connected(principal, instance string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.watchers[ledger.InstanceKey(principal, instance)] != nil
}

// listen calls take with each event from now on, until silence is called or the hub is closed (gone).
func (h *hub) listen(take func(ledger.Committed)) (a *audience, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || len(h.audiences) >= maxAudiences {
		return nil, refuse(codes.ResourceExhausted, checkLimit, "the broker is stopping, or has %d live views open already", maxAudiences)
	}
	a = &audience{take: take, gone: make(chan struct{})}
	h.audiences[a] = struct{}{}
	return a, nil
}

func (h *hub) silence(a *audience) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.audiences, a)
}

// close drops everybody, for a broker that is about to stop.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.closed = true
	for _, w := range h.watchers {
		h.drop(w, "the broker is stopping: watch its successor")
	}
	for a := range h.audiences {
		close(a.gone)
	}
	clear(h.audiences)
}
