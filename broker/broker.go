// Package broker is the server: it proves who calls, judges the call, and releases a secret only when the
// ledger has recorded that it does.
//
// The release path is the function release; read it first. Every other call goes the same way: caller (the
// SVID, at each call), a signed request on the workload side, a decision by the active policy revision, an
// event. What the packages below do stays with them: cryptography in envelope, certificates in certs,
// devices in attest, decisions in policy, state in ledger, the log in audit.
//
// The package reads no configuration files and opens no stores: package server and the commands wire it.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/time/rate"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/keyring"
	"github.com/bulla-project/bulla/keyring/epoch"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/place"
	"github.com/bulla-project/bulla/policy"
)

const (
	// maxReason is the longest text that an operator can give with a change, in bytes.
	maxReason = 1024
	// putMemory is how long the request id of a put is remembered.
	putMemory = 24 * time.Hour
	// maxAttestations is how many verifications run at once; as many more wait.
	maxAttestations = 4
)

// Enroller begins the enrolment of a device of one kind: it returns a challenge, and the function that takes
// the answer to it.
type Enroller func(request []byte, refs attest.References, caller string, now time.Time) (challenge []byte, finish func(answer []byte) (attest.Device, error), err error)

// Config is what a broker is made of. All but the last group is needed; the caller closes what it passes in.
type Config struct {
	Source *certs.Source
	Ledger *ledger.Ledger
	Ring   *keyring.Ring
	Engine *policy.Engine
	Tree   *audit.Log
	Signer *envelope.Signer // of envelopes; its key was introduced by an event

	Verifiers  []attest.Verifier
	Enrollers  map[attest.Kind]Enroller
	Invariants policy.Invariants // of this site
	// Places says where addresses are; nil: nobody knows.
	Places *place.Source
	// Proxies are the ranges whose PROXY headers the listener believes, for Doctor to tell.
	Proxies []netip.Prefix
	// Types maps path prefixes of SPIFFE IDs to principal types; SERVICE where none fits.
	Types map[string]string
	// Factors are the tokens of other issuers that are taken; zero: none.
	Factors Factors
	// Transmitters send external signals; none: nobody does.
	Transmitters []Transmitter
	// Calls and Denials are the allowance of each principal; zero means the default.
	Calls, Denials Rate
	// Watchers is how many instances of one principal may watch at once; 0: 2048.
	Watchers int
	// HoldShare and HoldMinimum say when the end of sessions by a new revision waits for somebody's word: where it
	// would be more than so many per cent of those that live, and at least so many. 0: 20 %, 10 sessions.
	HoldShare, HoldMinimum int
	// Witnessed gives the newest checkpoint that enough witnesses cosigned, or nil; nil: there are no witnesses.
	Witnessed func() []byte
	// Outward tells Doctor how witnesses, publishing and sinks of events are; nil: nothing leaves. None of it keeps the broker from serving.
	Outward func() []Check
	// Collectors are metrics of parts that the broker does not know.
	Collectors []prometheus.Collector
	Retention  Retention
	Now        func() time.Time // nil: time.Now
	Log        *slog.Logger     // nil: silent
}

// Rate is an allowance: so many a second, so many at once.
type Rate struct {
	PerSecond float64
	Burst     int
}

var (
	defaultCalls   = Rate{PerSecond: 10_000, Burst: 20_000}
	defaultDenials = Rate{PerSecond: 20, Burst: 200}
)

// Broker serves the gRPC services. It is safe for concurrent use.
type Broker struct {
	bullav1.UnimplementedBrokerServer

	id         spiffeid.ID
	origin     string
	now        func() time.Time
	logger     *slog.Logger
	source     *certs.Source
	peers      *certs.PeerVerifier
	ledger     *ledger.Ledger
	ring       *keyring.Ring
	engine     *policy.Engine
	tree       *audit.Log
	signer     *envelope.Signer
	jwks       []byte // of signer's public key
	verifiers  map[attest.Kind]attest.Verifier
	enrollers  map[attest.Kind]Enroller
	gate       *attest.Gate
	site       policy.Invariants
	bundleKeys bundleKeys
	types      map[string]string
	tokens     Factors
	senders    *senders // of external signals
	limits     *limits
	history    *history
	places     *place.Source // nil: none is configured
	proxies    []netip.Prefix
	travels    *travels
	bindings   *remembered
	pending    *enrolments
	metrics    *metrics
	epochs     epoch.Keys // of the use shares of gated sessions
	hub        *hub
	orders     orders
	asking     chan struct{} // a slot for each question that is being answered
	checking   chan struct{} // a slot for each look at the whole ledger
	resweep    resweep
	reattests  reattests
	shadow     shadow
	witnessed  func() []byte
	outward    func() []Check
	retention  Retention

	draining atomic.Bool // no new work, please: what is under way is finished

	activeMu sync.Mutex // guards active
	active   *active

	roundsMu    sync.Mutex // guards what follows
	roundsDue   time.Time  // when the next round may be over
	roundsAfter string     // no round up to this id lives
}

// active is the revision that decides, ready to use.
type active struct {
	revision   *policy.Revision
	references attest.References
	digest     event.Digest
	sequence   uint64
	activated  time.Time
	seq        int64 // of the ledger row that says so
}

// unchanged demands that the revision is still the active one when a commit takes effect.
func (a *active) unchanged() ledger.Precondition {
	return ledger.Precondition{RowKey: ledger.RowKey{Kind: ledger.KindRevision, Key: ledger.ActiveRevision}, Seq: a.seq}
}

// New makes a broker on a ledger that has its genesis and an active revision.
func New(ctx context.Context, c Config) (*Broker, error) {
	if c.Source == nil || c.Ledger == nil || c.Ring == nil || c.Engine == nil || c.Tree == nil || c.Signer == nil {
		return nil, errors.New("new broker: source, ledger, ring, engine, tree and signer are all needed")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Calls == (Rate{}) {
		c.Calls = defaultCalls
	}
	if c.Denials == (Rate{}) {
		c.Denials = defaultDenials
	}
	b := &Broker{
		id: c.Source.ID(), origin: c.Tree.Key().Origin(), now: c.Now, logger: c.Log, source: c.Source,
		peers: certs.NewPeerVerifier(c.Source, maxPrincipals), ledger: c.Ledger, ring: c.Ring, engine: c.Engine, tree: c.Tree,
		signer: c.Signer, verifiers: map[attest.Kind]attest.Verifier{}, enrollers: c.Enrollers, site: c.Invariants, types: c.Types,
		tokens: c.Factors, senders: newSenders(c.Transmitters),
		gate:    attest.NewGate(maxAttestations, 8*maxAttestations),
		limits:  newLimits(rate.Limit(c.Calls.PerSecond), c.Calls.Burst, rate.Limit(c.Denials.PerSecond), c.Denials.Burst),
		history: newHistory(c.Ledger), places: c.Places, proxies: c.Proxies, travels: newTravels(c.Ledger), bindings: newRemembered(), pending: newEnrolments(), metrics: newMetrics(),
	}
	if b.witnessed, b.outward = c.Witnessed, c.Outward; b.witnessed == nil {
		b.witnessed = func() []byte { return nil }
	}
	for _, m := range c.Collectors {
		if err := b.metrics.registry.Register(m); err != nil {
			return nil, fmt.Errorf("new broker: metrics: %w", err)
		}
	}
	b.hub = newHub(c.Ledger, c.Log, c.Watchers)
	b.orders, b.asking = newOrders(), make(chan struct{}, maxQuestions)
	b.checking = make(chan struct{}, maxChecks)
	b.resweep = newResweep(c.HoldShare, c.HoldMinimum)
	b.retention = c.Retention
	b.reattests = newReattests()
	var err error
	if b.jwks, err = publicKeys(c.Signer); err != nil {
		return nil, fmt.Errorf("new broker: %w", err)
	}
	for _, v := range c.Verifiers {
		b.verifiers[v.Kind()] = v
	}
	if b.bundleKeys, err = newBundleKeys(ctx, c.Ledger); err != nil {
		return nil, fmt.Errorf("new broker: %w", err)
	}
	if _, err := b.current(ctx); err != nil {
		return nil, fmt.Errorf("new broker: %w", err)
	}
	return b, nil
}

// current returns the active revision as the ledger has it now; it is loaded again when another one is.
func (b *Broker) current(ctx context.Context) (*active, error) {
	row, seq, err := b.ledger.ActiveRevision(ctx)
	if err != nil {
		return nil, fmt.Errorf("active revision: %w", err)
	}
	b.activeMu.Lock()
	defer b.activeMu.Unlock()
	if b.active != nil && b.active.seq == seq {
		return b.active, nil
	}
	// Rows can be edited by whoever writes to the database, and events can't.
	wrote, err := b.ledger.Events(ctx, seq-1, 1)
	if err != nil {
		return nil, fmt.Errorf("active revision: %w", err)
	}
	if len(wrote) != 1 || !activates(wrote[0].Event, row) {
		return nil, fmt.Errorf("active revision: %w: no event activated revision %d, %s", ledger.ErrTampered, row.Sequence, row.Digest)
	}
	archive, err := b.ledger.Blob(ctx, ledger.RevisionBlob(row.Digest), row.Digest)
	if err != nil {
		return nil, fmt.Errorf("archive of revision %s: %w", row.Digest, err)
	}
	// Not under ctx: callers whose time ends before a bundle is loaded would begin again for ever.
	loaded, err := b.load(context.WithoutCancel(ctx), archive)
	if err != nil {
		return nil, fmt.Errorf("revision %s: %w", row.Digest, err)
	}
	b.engine.Activate(loaded.revision) // the breaker counts for the active one
	b.active = &active{revision: loaded.revision, references: loaded.references, digest: row.Digest, sequence: row.Sequence, activated: row.Activated.Time(), seq: seq}
	return b.active, nil
}

// activates says whether an event made a revision the active one.
func activates(e event.Event, r ledger.Revision) bool {
	b, ok := e.Body.(event.RevisionActivated)
	return ok && b.Digest == r.Digest && b.Sequence == r.Sequence
}

// candidate is a bundle that passed every check.
type candidate struct {
	revision   *policy.Revision
	references attest.References
}

// load checks a bundle: its own rules by package policy, its reference values by package attest.
func (b *Broker) load(ctx context.Context, archive []byte) (candidate, error) {
	revision, err := policy.Load(ctx, archive, b.site)
	if err != nil {
		return candidate{}, err
	}
	references, err := attest.ParseReferences(revision.References())
	if err != nil {
		return candidate{}, err
	}
	return candidate{revision, references}, nil
}

// publicKeys is the JWKS of the keys under which an envelope of today may be signed.
func publicKeys(s *envelope.Signer) ([]byte, error) {
	set, err := envelope.NewKeySet(s.Key())
	if err != nil {
		return nil, err
	}
	return set.MarshalJSON()
}

// unavailable is answer for a failure before the caller is known.
func (b *Broker) unavailable(err error) error {
	b.logger.Error("call failed", "error", err)
	return fromLedger(err)
}

func ledgerCommit(ev event.Event) ledger.Commit { return ledger.Commit{Event: ev} }

// clip shortens what a peer chose, for a message or a record.
func clip(s string) string {
	const most = 200
	if len(s) > most {
		return cut(s, most) + "…"
	}
	return s
}
