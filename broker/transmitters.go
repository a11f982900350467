package broker

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/bulla-project/bulla/caep"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
	"github.com/bulla-project/bulla/token"
)

// Transmitter is who may send external signals, and about whom.
type Transmitter struct {
	Name   string // in the address that it sends to, and on the record
	Issuer *token.Issuer
	// Bearer returns what the transmitter shows in its Authorization header; nil: it shows nothing.
	Bearer func() ([]byte, error)
	Events []string // types that are taken
	// Life is how long a signal counts.
	Life time.Duration
	// MaxSessions is how many sessions it can end in an hour, and MaxSignals how many signals it can send.
	MaxSessions, MaxSignals uint32
	// Subjects says whom a subject stands for, as targets of package event.
	Subjects map[caep.Subject][]string
	// SPIFFESubjects takes a subject that is the SPIFFE ID of an allowed trust domain for that principal.
	SPIFFESubjects bool
}

// The allowance of what comes to a transmitter's address with its bearer token, or, where it has none, whoever sends it:
// a signature is verified for each.
const (
	pushesPerSecond = 100
	pushesBurst     = 200
	// Each refusal is an event, up to this allowance; what is beyond is counted.
	refusalsPerSecond = 1
	refusalsBurst     = 30
	// endersAtOnce is how many sessions are ended side by side.
	endersAtOnce = 16
)

// sender is a transmitter with its allowances.
type sender struct {
	Transmitter
	pushes, refusals *rate.Limiter
}

// senders are the transmitters by name.
type senders struct {
	all    map[string]*sender // it never changes
	behind atomic.Bool        // sessions that a signal ended could not all be ended
}

func newSenders(list []Transmitter) *senders {
	s := &senders{all: map[string]*sender{}}
	for _, t := range list {
		s.all[t.Name] = &sender{t, rate.NewLimiter(pushesPerSecond, pushesBurst), rate.NewLimiter(refusalsPerSecond, refusalsBurst)}
	}
	return s
}

func (s *senders) none() bool { return len(s.all) == 0 }

// The error codes of RFC 8935, section 2.4.
const (
	pushInvalidRequest  = "invalid_request"
	pushInvalidKey      = "invalid_key"
	pushInvalidIssuer   = "invalid_issuer"
	pushInvalidAudience = "invalid_audience"
	pushAuthentication  = "authentication_failed"
	pushDenied          = "access_denied"
)

// pushFault is why a pushed token is not taken.
type pushFault struct {
	status int
	code   string
	text   string
	quiet  bool // no event: it is counted only
}

func (f *pushFault) Error() string { return f.text }

func notTaken(code, text string) *pushFault {
	return &pushFault{status: http.StatusBadRequest, code: code, text: text}
}

// Signals takes security event tokens that transmitters push (RFC 8935), each at an address of its own. It answers
// 202 when the ledger holds what the token says and what follows from it.
func (b *Broker) Signals() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/signals/{transmitter}", func(w http.ResponseWriter, r *http.Request) {
		t, ok := b.senders.all[r.PathValue("transmitter")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		defer b.recoveredPush(w)
		writePush(w, b.push(r, t))
	})
	return mux
}

// recoveredPush makes a panic an answer; its value could hold anything.
func (b *Broker) recoveredPush(w http.ResponseWriter) {
	var err error
	b.recovered("push", &err)
	if err != nil {
		writePush(w, err)
	}
}

func writePush(w http.ResponseWriter, err error) {
	var f *pushFault
	switch {
	case err == nil:
		w.WriteHeader(http.StatusAccepted)
		return
	case !errors.As(err, &f): // the ledger: nothing is known to be durable, so the transmitter sends it again
		f = &pushFault{status: http.StatusServiceUnavailable, text: "it can't be recorded now: send it again"}
	}
	if f.status == http.StatusTooManyRequests || f.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "30")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.status)
	_ = json.NewEncoder(w).Encode(map[string]string{"err": f.code, "description": f.text}) // the peer went away: nothing to do about it
}

// push takes one token, or says and records why not.
func (b *Broker) push(r *http.Request, t *sender) error {
	now := b.now()
	err := b.taken(r, now, t)
	var f *pushFault
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &f):
		b.logger.Error("signal could not be recorded", "transmitter", t.Name, "error", err)
		return err
	}
	b.metrics.signalsRefused.Inc()
	if f.quiet || !t.refusals.AllowN(now, 1) {
		b.limits.refused("transmitter/"+t.Name, now, 1)
		return f
	}
	if err := b.record(r.Context(), event.New(now, "", event.SignalRefused{Transmitter: t.Name, Reason: clip(f.text)})); err != nil {
		return err
	}
	return f
}

// taken goes from the cheap checks to the dear ones, then records the signal and ends what it ends.
func (b *Broker) taken(r *http.Request, now time.Time, t *sender) error {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/secevent+jwt" {
		return notTaken(pushInvalidRequest, "the body has to be application/secevent+jwt")
	}
	if err := t.authentic(r); err != nil {
		return err
	}
	if !t.pushes.AllowN(now, 1) { // only here: where there is a bearer token, strangers can't use it up
		return &pushFault{status: http.StatusTooManyRequests, code: pushDenied, text: "too many tokens: send it again later", quiet: true}
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, token.MaxSize+1))
	if err != nil {
		return notTaken(pushInvalidRequest, "the body did not come whole")
	}
	claims, err := t.Issuer.Verify(r.Context(), string(body), now)
	if err != nil {
		return tokenNotTaken(err)
	}
	said, err := caep.Read(claims)
	if err != nil {
		return notTaken(pushInvalidRequest, err.Error())
	}
	if said.Type != caep.Verification && !slices.Contains(t.Events, said.Type) {
		return notTaken(pushDenied, "this transmitter is not configured for events of this type")
	}
	return b.heed(r.Context(), now, t, claims, said)
}

// authentic checks the bearer token of a transmitter that has one, in constant time.
func (t *sender) authentic(r *http.Request) error {
	if t.Bearer == nil {
		return nil
	}
	want, err := t.Bearer()
	if err != nil || len(want) == 0 {
		return fmt.Errorf("bearer token of transmitter %s: %w", t.Name, errors.Join(err, errors.New("it can't be read, or is empty")))
	}
	scheme, shown, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	a, b := sha256.Sum256([]byte(shown)), sha256.Sum256(want)
	if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(a[:], b[:]) != 1 {
		return notTaken(pushAuthentication, "the bearer token is not this transmitter's")
	}
	return nil
}

func tokenNotTaken(err error) error {
	switch {
	case errors.Is(err, token.ErrKeys):
		return &pushFault{status: http.StatusServiceUnavailable, text: "the keys of the transmitter can't be had now: send it again"}
	case errors.Is(err, token.ErrIssuer):
		return notTaken(pushInvalidIssuer, tokenFault(err))
	case errors.Is(err, token.ErrAudience):
		return notTaken(pushInvalidAudience, tokenFault(err))
	case errors.Is(err, token.ErrSignature):
		return notTaken(pushInvalidKey, tokenFault(err))
	}
	return notTaken(pushInvalidRequest, tokenFault(err))
}

// targets says whom a signal is about.
func (b *Broker) targets(t *sender, said caep.Event) []string {
	out := slices.Clone(t.Subjects[said.Subject])
	if t.SPIFFESubjects && said.Subject.Format == "uri" {
		if id, err := certs.ParseID(said.Subject.ID); err == nil && b.source.Allows(id.TrustDomain()) {
			out = append(out, targetPrincipal(id.String()))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// heed records a signal, once, and ends the sessions that it ends. The same token again changes nothing.
func (b *Broker) heed(ctx context.Context, now time.Time, t *sender, claims token.Claims, said caep.Event) error {
	body := event.SignalReceived{
		Transmitter: t.Name, Issuer: claims.Issuer, TokenID: claims.ID, Token: event.Digest(claims.Digest), Kind: said.Type,
		IssuedAt: event.NewTime(claims.IssuedAt), Targets: b.targets(t, said),
	}
	if len(body.Targets) > 0 && (said.Level != "" || said.Revokes) {
		body.Level, body.Revokes, body.Expires = said.Level, said.Revokes, event.NewTime(now.Add(t.Life))
	}
	received := event.New(now, subjectOf(body.Targets), body)
	commit := ledgerCommit(received)
	// A token is refused for its age once it is older than MaxAge: so long its id has to be remembered.
	commit.Request = &ledger.Request{
		Key: signalKey(t, claims), Owner: claims.Digest, Expires: claims.IssuedAt.Add(t.Issuer.MaxAge() + token.Skew + time.Second),
	}
	commit.Counters = []ledger.Counter{hourly("signals/"+t.Name, now, t.MaxSignals)}
	_, err := b.ledger.Commit(ctx, commit)
	switch {
	case errors.Is(err, ledger.ErrDuplicateRequest):
		return b.again(ctx, t, claims, body.Targets)
	case errors.Is(err, ledger.ErrLimit):
		return &pushFault{status: http.StatusTooManyRequests, code: pushDenied, text: "the limit of signals of this hour is reached", quiet: true}
	case err != nil:
		return err
	}
	b.metrics.signals.Inc()
	if !body.Revokes {
		return nil
	}
	for _, target := range body.Targets { // to its end, whether the transmitter waits or not
		if err := b.settle(context.WithoutCancel(ctx), t, received.ID, target, b.now()); err != nil {
			b.senders.behind.Store(true)
			return err
		}
	}
	return nil
}

// subjectOf is the principal whom a signal is about, and the ledger itself where it is about none or several.
func subjectOf(targets []string) string {
	if len(targets) != 1 {
		return ""
	}
	id, _ := strings.CutPrefix(targets[0], targetPrincipal(""))
	if !strings.HasPrefix(id, "spiffe://") {
		return ""
	}
	return id
}

// signalKey is by the transmitter as well: two of one issuer can have other powers, and what one of them has taken must
// not keep it from the other.
func signalKey(t *sender, c token.Claims) string {
	id := sha256.Sum256([]byte("bulla-signal/v2\x00" + t.Name + "\x00" + c.Issuer + "\x00" + c.ID))
	return fmt.Sprintf("signal/%x", id)
}

// again is the answer to a token whose id was seen: the very same one was taken before. Sessions that it ended and that
// could not all be ended then are ended before it is acknowledged.
func (b *Broker) again(ctx context.Context, t *sender, claims token.Claims, targets []string) error {
	before, err := b.ledger.Request(ctx, signalKey(t, claims))
	switch {
	case err != nil:
		return err
	case before.Owner != claims.Digest:
		return notTaken(pushInvalidRequest, "its id (jti) was used for another token")
	}
	for _, target := range targets {
		found, _, err := b.ledger.Alerts(ctx, target)
		if err != nil && !errors.Is(err, ledger.ErrNotFound) {
			return err
		}
		for _, a := range found.Alerts {
			if a.Transmitter != t.Name || a.Revokes != ledger.RevocationPending {
				continue
			}
			if err := b.settle(context.WithoutCancel(ctx), t, a.Signal, target, a.At.Time().Add(sideBySide)); err != nil {
				return err
			}
		}
	}
	return nil
}

func hourly(key string, now time.Time, most uint32) ledger.Counter {
	return ledger.Counter{Key: key, Window: now.Truncate(time.Hour), Length: time.Hour, Max: most}
}

// settle ends the sessions of a target that were issued until then, a moment after the signal's commit, as far as the
// transmitter's limit goes, and records how far that was.
func (b *Broker) settle(ctx context.Context, t *sender, signal event.ID, target string, until time.Time) error {
	now := b.now()
	reason := fmt.Sprintf("signal %s of transmitter %s", signal, t.Name)
	ended, held, err := b.endTarget(ctx, target, until, func(s session.Session) ledger.Commit {
		c := ledgerCommit(event.New(now, s.Principal, event.SessionRevoked{Session: s.ID, Reason: reason}))
		c.Counters = []ledger.Counter{hourly("signal-sessions/"+t.Name, now, t.MaxSessions)}
		return c
	})
	b.metrics.signalSessions.Add(float64(ended))
	if err != nil {
		return err // it stays pending, and is tried again
	}
	if held {
		b.logger.Warn("a transmitter reached its limit of sessions: the rest is held", "transmitter", t.Name, "target", target, "ended", ended)
	}
	return b.record(ctx, event.New(now, "", event.SignalSettled{Signal: signal, Transmitter: t.Name, Target: target, Ended: uint32(ended), Held: held}))
}

// endTarget commits end for each live session of a target that was issued until then, a page at a time.
func (b *Broker) endTarget(ctx context.Context, target string, until time.Time, end func(session.Session) ledger.Commit) (ended int, held bool, err error) {
	query := ledger.SessionQuery{States: liveStates(), Max: sweepChunk}
	kind, name, _ := strings.Cut(target, "/")
	switch kind {
	case "principal":
		query.Principal = name
	case "device":
		query.Device = name
	}
	for {
		page, err := b.ledger.Sessions(ctx, query)
		if err != nil {
			return ended, held, err
		}
		var due []session.Session
		now := b.now()
		for _, s := range page {
			ofDomain := kind != "domain" || strings.HasPrefix(s.Principal, "spiffe://"+name+"/")
			if ofDomain && !s.StateAt(now).Ended() && foregoing(s, until, now) {
				due = append(due, s)
			}
		}
		n, limit, err := b.endThese(ctx, due, end)
		ended += n
		if err != nil || limit {
			return ended, limit, err
		}
		if len(page) < sweepChunk {
			return ended, false, nil
		}
		query.Before = page[len(page)-1].ID.String()
	}
}

// liveStates are those of sessions that have not ended.
func liveStates() []string {
	return []string{string(session.Issued), string(session.Confirmed), string(session.Unconfirmed)}
}

// endThese ends sessions side by side, so that they share the ledger's batches.
func (b *Broker) endThese(ctx context.Context, due []session.Session, end func(session.Session) ledger.Commit) (ended int, limit bool, failed error) {
	var mu sync.Mutex // guards the results
	var workers sync.WaitGroup
	next := make(chan session.Session)
	for range min(endersAtOnce, len(due)) {
		workers.Go(func() {
			for s := range next {
				_, err := b.ledger.Commit(ctx, end(s))
				mu.Lock()
				switch {
				case err == nil:
					ended++
				case errors.Is(err, ledger.ErrTransition): // it ended in another way
				case errors.Is(err, ledger.ErrLimit):
					limit = true
				default:
					failed = err
				}
				mu.Unlock()
			}
		})
	}
	for _, s := range due {
		next <- s
	}
	close(next)
	workers.Wait()
	return ended, limit, failed
}

// eachAlert calls f for every alert of every target.
func (b *Broker) eachAlert(ctx context.Context, f func(target string, a ledger.Alert) error) error {
	for after := ""; ; {
		rows, err := b.ledger.AllAlerts(ctx, after, ledger.MaxPage)
		if err != nil || len(rows) == 0 {
			return err
		}
		for _, row := range rows {
			after = row.Target
			for _, a := range row.Alerts {
				if err := f(row.Target, a); err != nil {
					return err
				}
			}
		}
	}
}

// endSignals finishes what a stop may have cut short: sessions that a signal ended. What was held stays held. A
// transmitter that is not configured any more is not heeded.
func (b *Broker) endSignals(ctx context.Context) error {
	return b.eachAlert(ctx, func(target string, a ledger.Alert) error {
		t, ok := b.senders.all[a.Transmitter]
		if !ok || a.Revokes != ledger.RevocationPending {
			return nil
		}
		return b.settle(ctx, t, a.Signal, target, a.At.Time().Add(sideBySide))
	})
}

// signalCheck is what the doctor says about transmitters. It is no part of Health: whoever sends too much must not
// take the broker out of service.
func (b *Broker) signalCheck(ctx context.Context) (Check, bool) {
	if b.senders.none() {
		return Check{}, false
	}
	c := Check{Name: "signals", Fine: fmt.Sprintf("%d transmitters", len(b.senders.all)), Hint: "is the transmitter in order? Look at `bulla session list`, and revoke what it was right about"}
	now := b.now()
	held := map[string]int{}
	err := b.eachAlert(ctx, func(_ string, a ledger.Alert) error {
		if a.Revokes == ledger.RevocationHeld && now.Before(a.Expires.Time()) {
			held[a.Transmitter]++
		}
		return nil
	})
	if err != nil {
		c.Err = err
		return c, true
	}
	var faults []error
	for name, n := range held {
		faults = append(faults, fmt.Errorf("transmitter %s reached its limit of sessions to end: %d targets have sessions left that it wanted ended", name, n))
	}
	c.Err = errors.Join(faults...)
	return c, true
}
