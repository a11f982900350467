package broker_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/dev"
	"github.com/bulla-project/bulla/broker"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/broker/server"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/envelope"
	reqproof "github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/test/rig"
)

// want demands a status code and a part of the message.
func want(t *testing.T, err error, code codes.Code, because string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), because) {
		t.Errorf("want %s with %q, got %v", code, because, err)
	}
}

func count[B event.Body](events []event.Event) (n int) {
	for _, e := range events {
		if _, ok := e.Body.(B); ok {
			n++
		}
	}
	return n
}

func acknowledge(t *testing.T, w *rig.Raw, in *bullav1.AcknowledgeRequest) (string, error) {
	t.Helper()
	w.Challenge(nil)
	reply, err := w.Broker.Acknowledge(t.Context(), w.Sign(bullav1.Broker_Acknowledge_FullMethodName, in))
	return reply.GetState(), err
}

// Strangers who connect and say nothing cost no turn of the handshakes.
func TestSilentStrangersKeepNobodyOut(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/one", "standard", "1")
	for range 64 {
		c, err := net.Dial("tcp", r.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second) // the strangers are cut off after ten
	defer cancel()
	if _, err := r.Client("workload").Get(ctx, "demo/one"); err != nil {
		t.Error(err)
	}
}

// Who may not know of a secret does not learn from a put whether it is there, and operators are told what is missing.
func TestPutTellsAStrangerNothing(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/there", "standard", "1")
	put := func(who, name, class string) error {
		_, err := bullav1.NewSecretsClient(r.Client(who).Conn()).PutSecret(t.Context(), &bullav1.PutSecretRequest{
			Name: name, Class: class, Value: []byte("x"), RequestId: event.NewID(time.Now()).String(),
		})
		return err
	}
	denials := 0
	for _, class := range []string{"", "standard", "no such", "HIGH"} {
		for _, name := range []string{"demo/there", "demo/absent"} {
			err := put("stranger", name, class)
			if status.Code(err) != codes.PermissionDenied || status.Convert(err).Message() != "denied" || len(rig.Refusal(err).GetReasons()) > 0 {
				t.Errorf("%s with class %q: %v", name, class, err)
			}
			denials++
		}
	}
	if got := count[event.DecisionDenied](r.Events()); got != denials {
		t.Errorf("%d denials are recorded, want %d", got, denials)
	}
	want(t, put("operator", "demo/absent", ""), codes.InvalidArgument, "--class")
	want(t, put("operator", "demo/absent", "HIGH"), codes.InvalidArgument, "--class")
	if err := put("operator", "demo/there", ""); err != nil {
		t.Error(err)
	}
}

// A refusal that holds half a character of the peer's text is a refusal, and recorded.
func TestOddTextIsRefusedAndRecorded(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	w := r.Raw("workload")
	ask, _ := w.Ask("demo/one")
	in := w.Sign(bullav1.Broker_Deliver_FullMethodName, ask)
	in.Proof.Instance = strings.Repeat("é", 30)
	_, err := w.Broker.Deliver(t.Context(), in)
	want(t, err, codes.Unauthenticated, "vouches for the instance key")
	if rig.Refusal(err).GetSupportId() == "" {
		t.Error("it has no support id")
	}
	w.Challenge(nil)
	_, err = w.Broker.Attest(t.Context(), w.Sign(bullav1.Broker_Attest_FullMethodName, &bullav1.AttestRequest{Kind: "x" + strings.Repeat("é", 150), Device: "none"}))
	want(t, err, codes.PermissionDenied, "the evidence was refused")
	_, err = bullav1.NewDevicesClient(r.Client("stranger").Conn()).BeginEnrolment(t.Context(), &bullav1.BeginEnrolmentRequest{Kind: "\ufffd"})
	want(t, err, codes.PermissionDenied, "denied")
	events := r.Events()
	if count[event.RequestRefused](events) != 1 || count[event.AttestationRefused](events) != 1 || count[event.DecisionDenied](events) != 1 {
		t.Errorf("%d, %d, %d", count[event.RequestRefused](events), count[event.AttestationRefused](events), count[event.DecisionDenied](events))
	}
	for _, e := range events {
		if d, ok := e.Body.(event.DecisionDenied); ok {
			if _, err := policy.ParseSignals(d.Decision.Signals); err != nil {
				t.Errorf("signals of the denial: %v", err)
			}
		}
	}
}

// withReceipt is a policy whose standard class lives for a minute and demands a receipt within half of it.
func withReceipt(files map[string]string) {
	files["data/classes.yaml"] = strings.Replace(files["data/classes.yaml"], "time_bound: {ttl_seconds: 3600, grade: open}",
		"time_bound: {ttl_seconds: 60, grade: open}\n    receipt_required: {within_seconds: 30, grade: open}", 1)
}

// Where policy demands a receipt, closing the session or letting it end early is no way around it.
func TestNoWayAroundTheReceipt(t *testing.T) {
	offset := time.Duration(0)
	r := rig.Start(t, rig.Config{Policy: withReceipt, Now: func() time.Time { return time.Now().Add(offset) }})
	r.Put("demo/one", "standard", "1")
	a := r.Assemble(rig.Parts{})
	w := r.Raw("workload")
	reply, recipient, err := w.Deliver(t.Context(), "demo/one")
	if err != nil {
		t.Fatal(err)
	}
	closing := &bullav1.AcknowledgeRequest{SessionId: reply.GetSessionId(), Close: true}
	_, err = acknowledge(t, w, closing)
	want(t, err, codes.FailedPrecondition, "hand it in before")
	opened, err := envelope.Open(reply.GetEnvelope(), w.Keys.Lookup, recipient, envelope.Expectation{
		Request: requestOf(t, a, reply), Issuer: rig.ID("bulla/broker").String(), Subject: w.ID, Instance: w.Name, Audience: w.ID,
		Channels: []envelope.Digest{w.Exporter}, MinimumSuite: envelope.SuiteHybridP256(), Now: time.Now(), Skew: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	rec, err := envelope.SignReceipt(opened, w.Key)
	if err != nil {
		t.Fatal(err)
	}
	if state, err := acknowledge(t, w, &bullav1.AcknowledgeRequest{SessionId: rec.Session, R: rec.R[:], EnvelopeDigest: rec.EnvelopeDigest[:], Signature: rec.Signature}); state != "confirmed" || err != nil {
		t.Fatalf("%q, %v", state, err)
	}
	for range 2 { // the second time the first answer was lost
		if state, err := acknowledge(t, w, closing); state != "closed" || err != nil {
			t.Fatalf("%q, %v", state, err)
		}
	}

	w.Challenge(nil)
	ask, _ := w.Ask("demo/one")
	ask.TtlSeconds = 1
	if _, err := w.Broker.Deliver(t.Context(), w.Sign(bullav1.Broker_Deliver_FullMethodName, ask)); err != nil {
		t.Fatal(err)
	}
	offset = 2 * time.Second
	if err := a.Broker.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	last, _, err := w.Deliver(t.Context(), "demo/one")
	if err != nil {
		t.Fatal(err)
	}
	if h := decisionOf(t, a, last).History; h == nil || h.UnconfirmedMilli == 0 {
		t.Errorf("history after a delivery that ended without its receipt: %+v", h)
	}
}

// issued is the event of a delivery.
func issued(t *testing.T, a *rig.Assembled, reply *bullav1.DeliverReply) event.SessionIssued {
	t.Helper()
	id, err := event.ParseID(reply.GetEventId())
	if err != nil {
		t.Fatal(err)
	}
	e, err := a.Ledger.Find(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return e.Event.Body.(event.SessionIssued)
}

func requestOf(t *testing.T, a *rig.Assembled, reply *bullav1.DeliverReply) string {
	t.Helper()
	return issued(t, a, reply).Decision.RequestID
}

func decisionOf(t *testing.T, a *rig.Assembled, reply *bullav1.DeliverReply) policy.Signals {
	t.Helper()
	s, err := policy.ParseSignals(issued(t, a, reply).Decision.Signals)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// attestDevice shows the evidence of a development device.
func attestDevice(t *testing.T, w *rig.Raw, file, id string) {
	t.Helper()
	d, err := dev.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := reqproof.MarshalInstanceKey(&w.Key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	w.Challenge(nil)
	shown, err := d.Attest(t.Context(), attest.Binding{Nonce: w.Nonce, Channel: w.Exporter, Principal: w.ID, InstanceKey: spki})
	if err != nil {
		t.Fatal(err)
	}
	ask := &bullav1.AttestRequest{Kind: "development", Device: id, Evidence: shown}
	if _, err := w.Broker.Attest(t.Context(), w.Sign(bullav1.Broker_Attest_FullMethodName, ask)); err != nil {
		t.Fatal(err)
	}
}

// delivers says what w gets of demo/high: nothing, or an attestation is wanted.
func delivers(t *testing.T, w *rig.Raw) (decision string) {
	t.Helper()
	_, _, err := w.Deliver(t.Context(), "demo/high")
	if err == nil {
		return "PERMIT"
	}
	return rig.Refusal(err).GetDecision()
}

// A passport holds for the reference values and the device that it was made with, as they were.
func TestPassportIsVoidWhenItsGroundsAre(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/high", "high", "1")
	file, id := r.Device(rig.ID("workload").String(), rig.ID("operator").String()) // in no order, which is the broker's business
	verifier, err := dev.New(dev.Config{Authority: r.Authority.DeviceKeyPublic(), DevelopmentOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	a := r.Assemble(rig.Parts{Verifiers: []attest.Verifier{verifier}})
	w := r.Raw("workload")
	attestDevice(t, w, file, id)
	if got := delivers(t, w); got != "PERMIT" {
		t.Fatalf("%s with a fresh attestation", got)
	}

	r.Push(func(files map[string]string) { files["references.yaml"] += "\n# other values\n" })
	if got := delivers(t, w); got != "STEP_UP" {
		t.Errorf("%s with an attestation under other reference values", got)
	}
	attestDevice(t, w, file, id)
	if got := delivers(t, w); got != "PERMIT" {
		t.Fatalf("%s with a new attestation", got)
	}

	pass, _, err := a.Ledger.Passport(t.Context(), ledger.InstanceKey(w.ID, w.Name))
	if err != nil {
		t.Fatal(err)
	}
	failed := event.AttestationAppraised{Principal: w.ID, Instance: "a sibling", Device: id, Result: pass.Result, Failed: true}
	if _, err := a.Ledger.Commit(t.Context(), ledger.Commit{Event: event.New(time.Now(), w.ID, failed)}); err != nil {
		t.Fatal(err)
	}
	if got := delivers(t, w); got != "STEP_UP" {
		t.Errorf("%s on a device that failed the appraisal of a sibling", got)
	}
	attestDevice(t, w, file, id)
	if got := delivers(t, w); got != "PERMIT" {
		t.Errorf("%s after the device passed again", got)
	}
}

// What an operator is shown, or tried in vain, stands in the ledger, also where nothing changed.
func TestWhatIsShownIsRecorded(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/one", "standard", "1")
	s, err := r.Client("workload").Get(t.Context(), "demo/one")
	if err != nil {
		t.Fatal(err)
	}
	_, id := r.Device(rig.ID("workload").String())
	sessions := bullav1.NewSessionsClient(r.Client("operator").Conn())
	devices := bullav1.NewDevicesClient(r.Client("operator").Conn())
	revoke := func() {
		if _, err := sessions.RevokeSession(t.Context(), &bullav1.RevokeSessionRequest{Id: s.SessionID, Reason: "over"}); err != nil {
			t.Fatal(err)
		}
		if _, err := devices.RevokeDevice(t.Context(), &bullav1.RevokeDeviceRequest{Id: id, Reason: "over"}); err != nil {
			t.Fatal(err)
		}
	}
	revoke()
	before := r.Events()
	revoke()
	_, err = sessions.RevokeSession(t.Context(), &bullav1.RevokeSessionRequest{Id: event.NewID(time.Now()).String(), Reason: "over"})
	want(t, err, codes.NotFound, "no session")
	_, err = bullav1.NewPoliciesClient(r.Client("security").Conn()).PushRevision(t.Context(), &bullav1.PushRevisionRequest{Archive: []byte("no bundle")})
	want(t, err, codes.InvalidArgument, "the bundle was refused")
	if got := count[event.OperationPermitted](r.Events()) - count[event.OperationPermitted](before); got != 5 { // the second tail is one
		t.Errorf("%d permits are recorded, want 4 and the auditor's own", got)
	}
}

// A tail ends when policy takes back what it was permitted by.
func TestTailEndsWithItsPermit(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tail, err := bullav1.NewAuditClient(r.Client("auditor").Conn()).Tail(ctx, &bullav1.TailRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tail.Recv(); err != nil {
		t.Fatal(err)
	}
	r.Push(func(files map[string]string) { files["zones.yaml"] += "\n" }) // which changes nothing for the auditor
	r.Push(func(files map[string]string) {
		files["data/members.yaml"] = strings.Replace(files["data/members.yaml"], "spiffe://dev.bulla.test/auditor: [auditor]\n", "", 1)
	})
	for {
		if _, err = tail.Recv(); err != nil {
			break
		}
	}
	want(t, err, codes.PermissionDenied, "denied")
}

// A limit that is reached is counted like what a limiter refuses; the engine's breaker knows the active revision; old
// rows go however many there are; and the health that gRPC shows is the broker's.
func TestUpkeep(t *testing.T) {
	offset := time.Duration(0)
	outside := filepath.Join(t.TempDir(), "checkpoint")
	r := rig.Start(t, rig.Config{Now: func() time.Time { return time.Now().Add(offset) }, Edit: func(c *config.Config) {
		c.Log.CheckpointCopy = outside
	}, Policy: func(files map[string]string) {
		files["data/classes.yaml"] = strings.Replace(files["data/classes.yaml"], "time_bound: {ttl_seconds: 3600, grade: open}",
			"time_bound: {ttl_seconds: 3600, grade: open}\n    rate_limit: {max: 1, window_seconds: 86400, grade: open}", 1)
	}})
	r.Put("demo/one", "standard", "1")
	a := r.Assemble(rig.Parts{})
	w := r.Raw("workload")
	if _, _, err := w.Deliver(t.Context(), "demo/one"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_, _, err := w.Deliver(t.Context(), "demo/one")
		want(t, err, codes.ResourceExhausted, "limit")
	}
	rev, _, err := a.Ledger.ActiveRevision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if active := broker.EngineOf(a.Broker).Active(); active == nil || event.Digest(active.Digest()) != rev.Digest {
		t.Error("the engine does not know the active revision, so its breaker counts for nothing")
	}

	now := time.Now()
	for i := range 25 {
		_, err := a.Ledger.Commit(t.Context(), ledger.Commit{
			Event:   event.New(now, "", event.RefusalsCounted{Principal: "p"}),
			Request: &ledger.Request{Key: "old/" + string(rune('a'+i)), Reply: []byte("x"), Expires: now},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Ledger.ExpireSessions(t.Context(), now.Add(time.Second), 10); err != nil {
		t.Fatal(err)
	}
	for i := range 25 {
		if _, err := a.Ledger.Request(t.Context(), "old/"+string(rune('a'+i))); err == nil {
			t.Fatal("a request row that is over was left behind")
		}
	}

	offset = time.Minute
	if err := a.Broker.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	var refused uint64
	for _, e := range r.Events() {
		if c, ok := e.Body.(event.RefusalsCounted); ok && c.Principal == w.ID {
			refused += c.Count
		}
	}
	if refused != 3 {
		t.Errorf("%d refusals are recorded, want 3", refused)
	}

	check := func() healthpb.HealthCheckResponse_ServingStatus {
		got, err := healthpb.NewHealthClient(w.Conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return got.GetStatus()
	}
	if got := check(); got != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("a healthy broker is %s", got)
	}
	if err := os.WriteFile(outside, []byte("another broker's"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, _ = w.Deliver(t.Context(), "other/none") // one more event
	if _, err := a.Tree.Integrate(t.Context()); err == nil {
		t.Fatal("the log goes on beside another one")
	}
	if got := check(); got != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("a broker that can't sign its log is %s", got)
	}
	ailing := func() (names []string) {
		for _, c := range a.Broker.Health(t.Context()) {
			if c.Err != nil {
				names = append(names, c.Name)
			}
		}
		return names
	}
	if got := ailing(); !slices.Equal(got, []string{"log"}) {
		t.Errorf("ailing: %v, want the log alone", got)
	}
	if a.Broker.Drain(); !slices.Equal(ailing(), []string{"serving", "log"}) {
		t.Errorf("a broker that stops: %v", ailing())
	}
	if _, err := healthpb.NewHealthClient(w.Conn).List(t.Context(), &healthpb.HealthListRequest{}); status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
}

// The log's key lies in its place after every start, and the log keeps its name.
func TestStartMendsAndRefuses(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Stop()
	path := filepath.Join(r.Config.DataDir, "log.pub")
	was, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	r.Run()
	if is, err := os.ReadFile(path); err != nil || string(is) != string(was) {
		t.Errorf("log.pub is %q, %v", is, err)
	}
	r.Stop()
	other := r.Config
	other.Log.Origin = "other.example/log"
	if s, err := server.Open(t.Context(), other, server.Options{}); err == nil || !strings.Contains(err.Error(), "log.origin") {
		t.Errorf("under another origin: %v, %v", s, err)
	}
	// An Init that was interrupted after it made the log's key goes on under the same name only.
	begun := r.Config
	begun.DataDir = filepath.Join(r.Dir, "begun")
	if err := server.Init(t.Context(), begun, "test", nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ledger.db", "ledger.db-wal", "ledger.db-shm"} {
		if err := os.Remove(filepath.Join(begun.DataDir, name)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	begun.Log.Origin = "other.example/log"
	if err := server.Init(t.Context(), begun, "test", nil); err == nil || !strings.Contains(err.Error(), "log.origin") {
		t.Errorf("init under another origin than it was begun with: %v", err)
	}
}

// full is a store on a disk that is full once on is set.
type full struct {
	ledger.Store
	on atomic.Bool
}

func (f *full) Append(ctx context.Context, batch []ledger.Record) ([]ledger.Outcome, error) {
	if f.on.Load() {
		return nil, fmt.Errorf("%w: /inside/path: no space left", ledger.ErrNotApplied)
	}
	return f.Store.Append(ctx, batch)
}

// A refusal that can't be recorded is UNAVAILABLE like everything else, and tells nothing of the broker's inside.
func TestRefusalNeedsTheLedgerToo(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	store := new(full)
	r.Assemble(rig.Parts{Store: func(s ledger.Store) ledger.Store { store.Store = s; return store }})
	w := r.Raw("workload")
	w.Challenge(nil)
	store.on.Store(true)
	ask, _ := w.Ask("demo/one")
	in := w.Sign(bullav1.Broker_Deliver_FullMethodName, ask)
	in.Proof.Instance = "another"
	_, err := w.Broker.Deliver(t.Context(), in)
	want(t, err, codes.Unavailable, "the ledger can't record now")
	if strings.Contains(err.Error(), "inside") {
		t.Error(err)
	}
	store.on.Store(false)
}

// Two calls of an instance run side by side: an appraisal that is a little newer than the delivery counts for it,
// and one from the future does not.
func TestAppraisalBesideADelivery(t *testing.T) {
	var ahead atomic.Int64
	r := rig.Start(t, rig.Config{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	r.Put("demo/guarded", "high", "x")
	device, _ := r.Device(rig.ID("workload").String())
	c := r.Client("workload", func(c *client.Config) { c.DeviceFile = device })
	for _, by := range []time.Duration{5 * time.Second, 5 * time.Minute} {
		ahead.Store(int64(by))
		if _, err := c.Attest(t.Context()); err != nil {
			t.Fatal(err)
		}
		ahead.Store(0)
		events := count[event.DecisionDenied](r.Events())
		if _, err := c.Get(t.Context(), "demo/guarded"); err != nil {
			t.Errorf("%s: %v", by, err)
		}
		if asked := count[event.DecisionDenied](r.Events()) - events; (asked == 0) != (by < time.Minute) {
			t.Errorf("an appraisal %s after the delivery began: %d times asked for another", by, asked)
		}
	}
}
