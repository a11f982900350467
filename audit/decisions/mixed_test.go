package decisions_test

import (
	"context"
	"iter"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/audit/decisions"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/policy/replay"
	shipped "github.com/bulla-project/bulla/rego"
)

const domain = "spiffe://dev.bulla.test/"

// start is a Tuesday in November 2026.
var start = time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)

// world decides as a broker does, and records as it does.
type world struct {
	rev    *policy.Revision
	engine *policy.Engine
	dice   *rand.Rand
	now    time.Time
	// sequence is that of the revision which decides.
	sequence uint64
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	archive, err := policy.Pack(shipped.Development())
	if err != nil {
		tb.Fatal(err)
	}
	rev, err := policy.Load(tb.Context(), archive, policy.Invariants{})
	if err != nil {
		tb.Fatal(err)
	}
	e := policy.NewEngine(policy.Config{Limit: time.Minute})
	tb.Cleanup(e.Close)
	return &world{rev: rev, engine: e, dice: rand.New(rand.NewPCG(1, 2)), now: start, sequence: 1}
}

func (w *world) library() *replay.Library {
	return replay.NewLibrary(func(_ context.Context, digest replay.Digest) ([]byte, error) {
		if digest != w.rev.Digest() {
			return nil, replay.ErrNoRevision
		}
		return w.rev.Archive(), nil
	})
}

func (w *world) one(of ...string) string { return of[w.dice.IntN(len(of))] }

func (w *world) chance(percent int) bool { return w.dice.IntN(100) < percent }

// signals are those of a call, with whatever a call can have.
func (w *world) signals(action policy.Action) policy.Signals {
	now := w.now.UnixMicro()
	who := w.one("workload", "stranger", "operator", "security", "auditor", "custodian-1", "custodian-2")
	if w.chance(80) { // somebody who may
		who = w.one("operator", "security", "auditor")
		if kind, _, _ := strings.Cut(string(action), "."); kind == "deliver" {
			who = "workload"
		} else if kind == "share" {
			who = w.one("custodian-1", "custodian-2")
		}
	}
	s := policy.Signals{
		Now: now, Action: action, Instance: "thumb",
		Principal: policy.Principal{
			ID: domain + who, TrustDomain: "dev.bulla.test", Path: "/" + who, Type: w.one(policy.TypeService, policy.TypeUser),
			Level: w.one(policy.LevelBasic, policy.LevelBasic, policy.LevelHighAssurance), NotBefore: now - w.dice.Int64N(4e9), NotAfter: now + w.dice.Int64N(1e10),
		},
		Network: policy.Network{Peer: w.one("127.0.0.1:4000", "192.0.2.7:1", "[::1]:9", "@"), TLSGroup: "X25519MLKEM768", PostQuantum: w.chance(80), Channel: "c"},
		Request: policy.Request{Grade: w.one("", "open", "gated"), MaxUses: w.dice.Int64N(3)},
	}
	if w.chance(60) {
		s.Attestation = &policy.Attestation{
			Kind: w.one("development", "tpm2"), DeviceID: "dev-1", Tier: w.one("affirming", "warning", "none"), Score: w.dice.Int64N(101),
			IssuedAt: now - w.dice.Int64N(2e9), KeysBound: w.chance(90), Reasons: []string{"configuration: as in the reference values"},
		}
		if w.chance(3) { // what needs an escape
			s.Attestation.Reasons = append(s.Attestation.Reasons, "configuration: ä <&> \u2028")
		}
	}
	if w.chance(50) {
		s.History = &policy.History{RateMilli: w.dice.Int64N(1e6), DenialsMilli: w.dice.Int64N(5000), Novel: w.chance(50)}
	}
	if w.chance(30) {
		s.Place = &policy.Place{Country: w.one("", "NO", "FR"), Source: "x", BuiltAt: now - 1}
	}
	if w.chance(20) {
		s.Factors = []policy.Factor{{Kind: policy.FactorOIDC, Issuer: "https://idp", Subject: "s", ExpiresAt: now + 1, Token: "t", Claims: map[string][]string{"b": {"1"}, "a": {"2"}}}}
	}
	if w.chance(10) {
		s.External = []policy.ExternalSignal{{Transmitter: "t", Type: "x", Level: "raised", Received: now - 1, Expires: now + 1e6}}
	}
	s.Recipient = &policy.Recipient{Suite: 9}
	s.Resource = w.resource(action)
	return s
}

func (w *world) resource(action policy.Action) policy.Resource {
	switch action {
	case policy.ActionDeliver, policy.ActionSecretPut, policy.ActionSecretShow:
		return policy.Resource{Kind: policy.KindSecret, Secret: &policy.Secret{
			Name: w.one("demo/a", "demo/a", "demo/b/c", "prod/x"), Exists: w.chance(90), Class: w.one("standard", "standard", "high", "critical", "split", "approved", "unknown"), Version: 1,
			Exposure: "none", NewClass: w.one("", "standard"), Type: w.one("", "hmac-sha256"),
		}}
	case policy.ActionShareApprove, policy.ActionShareFetch, policy.ActionShareReject:
		return policy.Resource{Kind: policy.KindRound, Round: &policy.Round{
			ID: "r", Kind: w.one("split", "approval", ""), Principal: domain + "workload", Secret: "demo/a", Version: 1, Role: "custodian",
			Holders: []string{domain + "custodian-1"},
		}}
	case policy.ActionSessionRevoke:
		return policy.Resource{Kind: policy.KindSession, Session: &policy.Session{ID: "s", State: "issued"}}
	}
	return policy.Resource{Kind: policy.KindSystem}
}

// decide asks, and once more with approvals where they are what is missing, as a delivery and a use do.
func (w *world) decide(tb testing.TB, s policy.Signals) (event.Decision, policy.Decision) {
	d := w.engine.Decide(tb.Context(), w.rev, s)
	if d.Requires.Approval != nil && w.chance(70) {
		s.Approvals = []policy.Approval{{Principal: domain + "custodian-1", At: s.Now - 1e6}}
		d = w.engine.Decide(tb.Context(), w.rev, s)
	}
	return event.Decision{
		RequestID: "q", Action: string(s.Action), Effect: string(d.Effect), Revision: w.rev.Digest(), Sequence: w.sequence, Signals: d.Signals, Result: d.Canonical(),
	}, d
}

// body is what a broker would record about the decision: each kind of event that carries one.
func (w *world) body(tb testing.TB) event.Body {
	action := policy.Actions()[0]
	if w.chance(50) {
		action = policy.Actions()[w.dice.IntN(len(policy.Actions()))]
	}
	s := w.signals(action)
	rec, d := w.decide(tb, s)
	who, id := s.Principal.ID, event.NewID(w.now)
	switch {
	case d.Effect == policy.StepUp && w.chance(20):
		return event.RevisionProposed{Digest: w.rev.Digest(), Sequence: w.sequence + 1, By: &rec}
	case w.chance(3):
		return event.ShadowDiffered{Digest: event.Digest{1}, Effect: "DENY", Decision: rec}
	case d.Effect == policy.StepUp && d.Requires.Approval != nil && w.chance(80):
		return event.RoundOpened{Round: id, Principal: who, Secret: s.Resource.Secret.Name, Decision: rec}
	case d.Effect != policy.Permit:
		return event.DecisionDenied{Principal: who, Decision: rec}
	case w.chance(5):
		return event.DecisionDenied{Principal: who, Unmet: "grade leased", Decision: rec}
	}
	of := []event.Body{
		event.OperationPermitted{Principal: who, Decision: rec},
		event.RevisionActivated{Digest: w.rev.Digest(), Sequence: w.sequence + 1, By: &rec},
		event.SecretPut{Name: "demo/a", Class: "standard", Version: 1, By: &rec},
		event.DeviceEnrolled{Device: "d", Record: []byte("{}"), By: &rec},
		event.DeviceRevoked{Device: "d", By: &rec},
		event.SessionRevoked{Session: id, By: &rec},
		event.RevocationOrdered{Selector: event.BySecret, Value: "demo/a", By: &rec},
		event.RevisionSwept{Digest: w.rev.Digest(), Sequence: w.sequence, Outcome: event.SweepConfirmed, By: &rec},
		event.RevisionStaged{Digest: event.Digest{1}, By: &rec},
		event.ShadowStarted{Digest: event.Digest{1}, By: &rec},
		event.ShadowEnded{Digest: event.Digest{1}, By: &rec},
		event.SubjectErased{Subject: who, By: &rec},
		event.HoldPlaced{Selector: event.HoldEverything, By: &rec},
		event.HoldReleased{Selector: event.HoldEverything, By: &rec},
		event.ShareIssued{Round: id, Holder: who, Decision: rec},
		event.RoundApproved{Round: id, Holder: who, Decision: rec},
		event.RoundRejected{Round: id, Holder: who, Decision: rec},
	}
	if action == policy.ActionDeliver {
		of = []event.Body{
			event.SessionIssued{Session: id, Principal: who, Secret: s.Resource.Secret.Name, Version: 1, Decision: rec},
			event.SessionUsed{Session: id, Number: 1, Decision: rec},
			event.SessionOperated{Session: id, Operation: "sign", Decision: rec},
		}
	}
	return of[w.dice.IntN(len(of))]
}

// ends are the end of a session by a new decision on the signals that it was delivered on, and perhaps another device.
func (w *world) ends(tb testing.TB, issued event.SessionIssued) event.Body {
	s, err := policy.ParseSignals(issued.Decision.Signals)
	if err != nil {
		tb.Fatal(err)
	}
	by := &event.Redecided{Revision: w.rev.Digest(), Sequence: w.sequence}
	if w.chance(50) {
		s.Principal.Level, s.Attestation, by.Level = policy.LevelBasic, nil, policy.LevelBasic
		if w.chance(50) {
			facts := policy.Attestation{Kind: "tpm2", DeviceID: "x", Tier: "contraindicated", Reasons: []string{}}
			if by.Attestation, err = event.Marshal(facts); err != nil {
				tb.Fatal(err)
			}
			facts.IssuedAt = s.Now
			s.Attestation = &facts
		}
	}
	d := w.engine.Decide(tb.Context(), w.rev, s)
	by.Unmet = d.Effect == policy.Permit
	by.Results = []event.Digest{sum(d)}
	return event.SessionsRevoked{Sessions: []event.ID{issued.Session}, Reason: "a new revision", Redecided: by}
}

// record makes a record of n decisions, encoded as the ledger keeps them, behind the activation of the first revision.
func (w *world) record(tb testing.TB, n int) [][]byte {
	tb.Helper()
	var out [][]byte
	add := func(subject string, b event.Body) {
		text, err := event.New(w.now, subject, b).Encode()
		if err != nil {
			tb.Fatal(err)
		}
		out = append(out, text)
		if _, ok := b.(event.RevisionActivated); ok {
			w.sequence++
		}
	}
	w.sequence = 0
	add("", event.RevisionActivated{Digest: w.rev.Digest(), Sequence: 1})
	for len(out) <= n {
		w.now = w.now.Add(time.Duration(w.dice.Int64N(1e9)))
		b := w.body(tb)
		subject := ""
		if used, ok := b.(event.SessionUsed); ok {
			s, _ := policy.ParseSignals(used.Decision.Signals)
			subject = s.Principal.ID
		}
		add(subject, b)
		if issued, ok := b.(event.SessionIssued); ok && w.chance(30) {
			add("", w.ends(tb, issued))
		}
	}
	return out
}

// read decodes a record and finds the decisions in it.
func read(record [][]byte) iter.Seq2[replay.Recorded, error] {
	return func(yield func(replay.Recorded, error) bool) {
		var r decisions.Reader
		for i, text := range record {
			e, err := event.Decode(text)
			if err != nil {
				yield(replay.Recorded{}, err)
				return
			}
			for _, d := range r.Add(int64(i), e) {
				if !yield(d, nil) {
					return
				}
			}
		}
	}
}

// TestEveryKindMatches: what was recorded, of every kind that carries a decision, comes out again bit by bit.
func TestEveryKindMatches(t *testing.T) {
	t.Parallel()
	n := 2000
	if os.Getenv("BULLA_TEST_LONG") == "1" {
		n = 100_000
	}
	w := newWorld(t)
	record := w.record(t, n)
	kinds, effects := map[string]int{}, map[policy.Effect]int{}
	last, total := int64(-1), 0
	began := time.Now()
	err := replay.Run(t.Context(), replay.Options{Library: w.library()}, read(record), func(r replay.Result) error {
		if r.Verdict != replay.Match || r.Exactness != replay.BitExact {
			t.Errorf("event %d, %s: %s %s", r.Recorded.Index, r.Recorded.Kind, r.Verdict, r.Why)
		}
		if r.Recorded.Index < last {
			t.Errorf("event %d comes after %d", r.Recorded.Index, last)
		}
		last = r.Recorded.Index
		kinds[r.Recorded.Kind]++
		effects[r.Decision.Effect]++
		total++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d decisions in %s: %v %v", total, time.Since(began), kinds, effects)
	if total != n {
		t.Errorf("%d decisions, want %d", total, n)
	}
	for _, kind := range carriers() {
		if kinds[string(kind)] == 0 {
			t.Errorf("no %s among them", kind)
		}
	}
}

// carriers are the events that carry decisions, found by their types: a new kind of event that does fails the test until
// it is replayed as well.
func carriers() []event.Type {
	return slices.DeleteFunc(event.Types(), func(kind event.Type) bool { return !carriesDecision(kind) })
}
