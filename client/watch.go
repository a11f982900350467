package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/secret"
)

const (
	// maxHeld is how many sessions the broker takes with a watch. More are held, and noticed at their next call.
	maxHeld = 1024
	// maxConfirm is how many sessions one confirmation names.
	maxConfirm = 256
	// confirmTimeout is how long a confirmation may take; it is tried again with the next stream.
	confirmTimeout = 10 * time.Second
	// lastWord is how long Close waits for a confirmation.
	lastWord = 2 * time.Second
	// confirmWithin is how long a client takes its time to confirm, by chance: where thousands are told at once, the
	// last of them hears of it before the first ones answer.
	confirmWithin = 500 * time.Millisecond
)

// watch is the client's one stream of what becomes of its sessions and its rounds. It runs while a Secret is watched or
// a Get waits for others, and costs nothing before.
type watch struct {
	client *Client
	saying chan struct{} // one slot: a confirmation is under way
	wiping sync.Mutex    // held from the wiping of secrets until it is noted that they were

	mu      sync.Mutex               // guards what follows
	held    map[string]*Secret       // by session id
	named   map[string]struct{}      // sessions that the stream was opened with
	unsaid  map[string]struct{}      // sessions that were wiped, and not confirmed yet
	rounds  map[string]chan struct{} // that a Get waits for
	after   int64
	running bool
	ready   bool                    // a stream is open, and everything before it was told
	reopen  context.CancelCauseFunc // of the stream that is open; nil: none
}

func newWatch(c *Client) *watch {
	return &watch{client: c, saying: make(chan struct{}, 1), held: map[string]*Secret{}, unsaid: map[string]struct{}{}, rounds: map[string]chan struct{}{}}
}

// Done returns a channel that is closed when the session has ended: revoked, expired, or closed by Close or Release.
// From the first call on the client watches: where the broker says that the session is over, the plaintext is wiped
// at once, and the broker is told so. Cause says why it ended.
func (s *Secret) Done() <-chan struct{} {
	s.client.watch.hold(s)
	return s.done
}

// Cause says why the session has ended, nil while it lives. Only what a watched Secret (see Done) was told counts.
func (s *Secret) Cause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

// Rotated returns a channel that is closed when the broker says that the secret has a newer version. It watches, as
// Done does.
func (s *Secret) Rotated() <-chan struct{} {
	s.client.watch.hold(s)
	return s.rotated
}

// Watching says whether the client is told now of what becomes of its watched secrets. It connects again by itself, and
// is told then what it missed.
func (c *Client) Watching() bool {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	return c.watch.ready
}

// end wipes the secret and says why, once.
func (s *Secret) end(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause == nil {
		s.cause = cause
	}
	s.zero()
}

// outdated notes a newer version.
func (s *Secret) outdated(newest secret.Version) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if newest <= s.Version || newest <= s.newest {
		return
	}
	if s.newest == 0 {
		close(s.rotated)
	}
	s.newest = newest
}

// hold puts a secret to those that are watched.
func (w *watch) hold(s *Secret) {
	s.mu.Lock()
	over := s.closed
	s.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, known := w.held[s.SessionID]; known || over || w.client.run.Err() != nil {
		return
	}
	w.held[s.SessionID] = s
	w.start()
	if w.reopen != nil && s.LogIndex <= w.after { // it was issued before the stream began, and not named then
		w.reopen(errReopen)
	}
}

// start keeps a stream from now on. The caller holds mu.
func (w *watch) start() {
	if !w.running {
		w.running = true
		w.client.wg.Add(1)
		go w.keep()
	}
}

// drop takes a secret out that has ended here.
func (w *watch) drop(s *Secret) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.held, s.SessionID)
	w.rest()
}

// rest ends the stream when there is nothing left to watch for or to say. The caller holds mu.
func (w *watch) rest() {
	if w.idle() && w.reopen != nil {
		w.reopen(errReopen)
	}
}

// idle says that there is nothing to watch for, or to say. The caller holds mu.
func (w *watch) idle() bool { return len(w.held)+len(w.unsaid)+len(w.rounds) == 0 }

var errReopen = errors.New("the sessions that are watched changed")

// keep keeps a stream open while there is something to watch for, and ends what expires.
func (w *watch) keep() {
	defer w.client.wg.Done()
	for pause := time.Duration(0); ; {
		w.expire()
		if !w.more() {
			return
		}
		began := time.Now()
		err := w.stream()
		switch {
		case w.client.run.Err() != nil:
			return
		case errors.Is(err, errReopen), time.Since(began) > time.Minute: // as a connection ends in good order
			pause = 0
		default:
			w.client.cfg.Log.Debug("the watch ended", "error", err)
			pause = min(max(2*pause, 50*time.Millisecond), 5*time.Second)
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2+time.Millisecond))
		select {
		case <-timer.C:
		case <-w.client.run.Done():
			timer.Stop()
			return
		}
	}
}

// more says whether there is anything to watch for, or to say; if not, the next hold begins anew.
func (w *watch) more() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.idle() {
		w.running = false
	}
	return w.running
}

// expire ends what is past its end by this clock.
func (w *watch) expire() {
	now := w.client.cfg.Now()
	w.mu.Lock()
	var over []*Secret
	for id, s := range w.held {
		if !now.Before(s.Expires) {
			over = append(over, s)
			delete(w.held, id)
		}
	}
	w.mu.Unlock()
	for _, s := range over {
		s.end(fmt.Errorf("%w: session %s expired at %s", ErrEnded, s.SessionID, s.Expires.Format(time.RFC3339)))
	}
}

// nextEnd is the time until the first secret expires, a minute at most.
func (w *watch) nextEnd() time.Duration {
	now, next := w.client.cfg.Now(), time.Minute
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.held {
		next = min(next, s.Expires.Sub(now))
	}
	return max(next, 10*time.Millisecond)
}

// opened is a stream whose first message has come.
type opened struct {
	grpc.ServerStreamingClient[bullav1.WatchReply]
	nonce []byte
}

// GetNextNonce gives the nonce that came with the first message.
func (o *opened) GetNextNonce() []byte {
	if o == nil {
		return nil
	}
	return o.nonce
}

// stream opens the watch and takes what it says, until it ends.
func (w *watch) stream() error {
	ctx, end := context.WithCancelCause(w.client.run)
	defer end(nil)
	in, idle := w.begin(end)
	defer func() {
		w.mu.Lock()
		w.reopen, w.ready = nil, false
		w.mu.Unlock()
	}()
	if err := w.confirm(ctx); err != nil { // what the stream before could not say
		return err
	}
	if idle {
		return errReopen // there was only that to say
	}
	var over peer.Peer
	s, err := attempt(ctx, w.client, bullav1.Broker_Watch_FullMethodName, &sent{id: newRequestID(w.client)}, fixed(in),
		func(_ context.Context, signed *bullav1.SignedRequest, _ ...grpc.CallOption) (*opened, error) {
			out, err := w.client.broker.Watch(ctx, signed, grpc.Peer(&over))
			if err != nil {
				return nil, err
			}
			first, err := out.Recv()
			if err != nil {
				return nil, err
			}
			return &opened{out, first.GetNextNonce()}, nil
		})
	messages := make(chan *bullav1.WatchReply)
	failed := make(chan error, 1)
	if err == nil {
		go receive(ctx, s, messages, failed)
		err = w.take(ctx, messages, failed)
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	w.client.wire.giveUp(&over, err)
	return err
}

// begin makes the request: the sessions that are held, and where the last stream came to. It says whether there is
// nothing to watch for.
func (w *watch) begin(end context.CancelCauseFunc) (in *bullav1.WatchRequest, idle bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	in = &bullav1.WatchRequest{After: w.after}
	w.named, w.reopen = map[string]struct{}{}, end
	for id, s := range w.held {
		if len(in.Held) == maxHeld {
			break
		}
		s.mu.Lock()
		in.Held = append(in.Held, &bullav1.HeldSession{SessionId: id, Newest: uint32(max(s.newest, s.Version))})
		s.mu.Unlock()
		w.named[id] = struct{}{}
	}
	return in, len(w.held)+len(w.rounds) == 0
}

// receive reads the stream for take. It ends with it.
func receive(ctx context.Context, s *opened, messages chan<- *bullav1.WatchReply, failed chan<- error) {
	for {
		m, err := s.Recv()
		if err != nil {
			failed <- err
			return
		}
		select {
		case messages <- m:
		case <-ctx.Done():
			return
		}
	}
}

// take does what the messages say.
func (w *watch) take(ctx context.Context, messages <-chan *bullav1.WatchReply, failed <-chan error) error {
	for {
		timer := time.NewTimer(w.nextEnd())
		select {
		case m := <-messages:
			timer.Stop()
			if err := w.apply(ctx, m); err != nil {
				return err
			}
		case err := <-failed:
			timer.Stop()
			if errors.Is(err, io.EOF) {
				return &Refusal{Code: codes.Unavailable, Text: "the broker ended the stream"}
			}
			return FromStatus(err)
		case <-timer.C:
			w.expire()
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		w.mu.Lock()
		w.rest()
		w.mu.Unlock()
	}
}

// apply does what one message says.
func (w *watch) apply(ctx context.Context, m *bullav1.WatchReply) error {
	w.mu.Lock()
	w.after = max(w.after, m.GetSequence()) // first: what is held from here on and was issued before is asked about again
	w.mu.Unlock()
	switch {
	case m.GetEnded() != nil:
		w.wipe(m.GetEnded())
	case m.GetRotated() != nil:
		w.newer(m.GetRotated())
	case m.GetRound() != nil:
		w.wake(m.GetRound().GetRoundId())
	case m.GetReady() != nil:
		w.wakeAll()
	case m.GetAttest() != nil:
		w.client.wg.Go(func() { w.attest(m.GetAttest()) })
	}
	missed := false
	w.mu.Lock()
	w.ready = w.ready || m.GetReady() != nil
	if m.GetReady() != nil { // a session that was delivered while the stream was opened may have been missed
		for id, s := range w.held {
			_, named := w.named[id]
			missed = missed || !named && s.LogIndex <= m.GetSequence() && len(w.named) < maxHeld
		}
	}
	w.mu.Unlock()
	if missed {
		return errReopen
	}
	if m.GetEnded() != nil && m.GetEnded().GetState() != "unknown" {
		w.client.wg.Go(w.confirmSoon)
	}
	return ctx.Err()
}

// confirmSoon says that secrets were wiped, after a while by chance, and again until the broker has taken it.
func (w *watch) confirmSoon() {
	for within := confirmWithin; ; within = min(2*within, maxRetry) {
		timer := time.NewTimer(rand.N(within))
		select {
		case <-timer.C:
		case <-w.client.run.Done(): // Close has said it
			timer.Stop()
			return
		}
		err := w.confirm(w.client.run)
		if err == nil {
			return
		}
		w.client.cfg.Log.Debug("the end of sessions could not be confirmed yet", "error", err)
	}
}

// wipe ends the secrets of sessions that are over. What is not held any more is wiped already.
func (w *watch) wipe(m *bullav1.SessionsEnd) {
	w.wiping.Lock()
	defer w.wiping.Unlock()
	for _, id := range m.GetSessionIds() {
		w.mu.Lock()
		s := w.held[id]
		delete(w.held, id)
		w.mu.Unlock()
		if s != nil {
			s.end(fmt.Errorf("%w: session %s is %s: %s", ErrEnded, id, m.GetState(), m.GetReason()))
		}
		if m.GetState() == "unknown" || s == nil { // there is nothing to confirm, or nobody held it to be asked
			continue
		}
		w.mu.Lock()
		w.unsaid[id] = struct{}{}
		w.mu.Unlock()
	}
}

func (w *watch) newer(m *bullav1.Rotation) {
	w.mu.Lock()
	var found []*Secret
	for _, s := range w.held {
		if s.Name == m.GetSecret() {
			found = append(found, s)
		}
	}
	w.mu.Unlock()
	for _, s := range found {
		s.outdated(secret.Version(m.GetVersion()))
	}
}

// attest answers a demand. If it can't, the sessions that rely on the device end, which the broker will say.
func (w *watch) attest(m *bullav1.AttestationDemand) {
	ctx, cancel := context.WithTimeout(w.client.run, max(m.GetBy().AsTime().Sub(w.client.cfg.Now()), time.Second))
	defer cancel()
	if _, err := w.client.Attest(ctx); err != nil {
		w.client.cfg.Log.Warn("the broker demands an attestation, and it could not be made", "by", m.GetBy().AsTime(), "error", err)
	}
}

// flush says what has not been said yet, for a client that is about to close.
func (w *watch) flush() {
	w.wiping.Lock()
	defer w.wiping.Unlock()
	ctx, cancel := context.WithTimeout(w.client.run, lastWord)
	defer cancel()
	if err := w.confirm(ctx); err != nil {
		w.client.cfg.Log.Debug("the end of sessions was not confirmed", "error", err)
	}
}

// confirm says of which sessions nothing is held any more.
func (w *watch) confirm(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	select {
	case w.saying <- struct{}{}:
		defer func() { <-w.saying }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		in := new(bullav1.ConfirmEndRequest)
		w.mu.Lock()
		for id := range w.unsaid {
			if len(in.SessionIds) == maxConfirm {
				break
			}
			in.SessionIds = append(in.SessionIds, id)
		}
		w.mu.Unlock()
		if len(in.SessionIds) == 0 {
			return nil
		}
		_, err := call(ctx, w.client, bullav1.Broker_ConfirmEnd_FullMethodName, &sent{id: newRequestID(w.client)}, fixed(in), w.client.broker.ConfirmEnd)
		var refused *Refusal
		if err == nil || errors.As(err, &refused) && (refused.Code == codes.NotFound || refused.Code == codes.InvalidArgument || refused.Code == codes.FailedPrecondition) {
			w.said(in.SessionIds) // or not to be said
			continue
		}
		return err
	}
}

func (w *watch) said(ids []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		delete(w.unsaid, id)
	}
	w.rest()
}
