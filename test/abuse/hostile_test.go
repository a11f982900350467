package abuse

import (
	"database/sql"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/caep"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
	"github.com/bulla-project/bulla/test/rig"
	"github.com/bulla-project/bulla/token/xtest"
)

// A07: a token that is bound to this instance is judged by everything else as well.
func TestAbuse_A07_a_bound_token_is_no_exception(t *testing.T) {
	t.Parallel()
	i := xtest.New(t)
	r := withIssuer(t, i)
	w := r.Raw("workload")
	bound := xtest.Claims{"cnf": xtest.Claims{"jkt": w.Name}}
	for what, subject := range map[string]string{"a SPIFFE ID": rig.ID("workload").String(), "a long subject": strings.Repeat("a", 513)} {
		_, _, err := w.Deliver(t.Context(), "demo/hello", showing(i.Token(t, subject, bound)))
		wantCode(t, what, err, codes.PermissionDenied, "factor")
	}
}

// A46: whoever delays a signal on its way gets no session that outlives it: what was committed before the signal was
// decided without it, whatever the times say.
func TestAbuse_A46_a_delayed_signal(t *testing.T) {
	t.Parallel()
	s := listening(t)
	s.Put("demo/hello", "standard", "hello")
	w := s.Raw("workload")
	compact := s.event(t, caep.SessionRevoked, xtest.Claims{}, workload(), nil)
	taken := make(chan struct{})
	s.http.Transport.(*http.Transport).ExpectContinueTimeout = 20 * time.Second
	body, send := io.Pipe()
	status := make(chan int, 1)
	go func() {
		got, _ := s.push(t, "", func(r *http.Request) {
			r.Body, r.ContentLength = body, int64(len(compact))
			r.Header.Set("Expect", "100-continue")
			*r = *r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{Got100Continue: func() { close(taken) }}))
		})
		status <- got
	}()
	<-taken // it is on its way
	between, _ := opened(t, w, "demo/hello")
	if _, err := io.WriteString(send, compact); err != nil {
		t.Fatal(err)
	}
	if err := send.Close(); err != nil {
		t.Fatal(err)
	}
	if got := <-status; got != http.StatusAccepted {
		t.Fatalf("the signal: %d", got)
	}
	if st, err := sessionStatus(t, w, between.GetSessionId()); err != nil || st.GetState() != string(session.Revoked) {
		t.Errorf("a session from before the signal is %q: %v", st.GetState(), err)
	}
	later, _ := opened(t, w, "demo/hello")
	if st, err := sessionStatus(t, w, later.GetSessionId()); err != nil || session.State(st.GetState()).Ended() {
		t.Errorf("a session from after the signal is %q: %v", st.GetState(), err)
	}
	s.Check()
}

// A46, A37: a revocation ends what was delivered before it, also where a clock that was ahead says that it came after.
func TestAbuse_A46_a_revocation_takes_what_was_before_it(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	r := rig.Start(t, rig.Config{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	r.Put("demo/hello", "standard", "hello")
	w := r.Raw("workload")
	ahead.Store(int64(2 * time.Second))
	before, _ := opened(t, w, "demo/hello")
	ahead.Store(0)
	for _, by := range []*bullav1.RevokeRequest{
		{Selector: &bullav1.RevokeRequest_Principal{Principal: rig.ID("workload").String()}, Reason: "taken over"},
		{Selector: &bullav1.RevokeRequest_TrustDomain{TrustDomain: rig.TrustDomain}, Reason: "taken over"},
	} {
		stream, err := bullav1.NewRevocationsClient(r.Client("operator").Conn()).Revoke(t.Context(), by)
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = stream.Recv()
		}
		if err != io.EOF {
			t.Fatal(err)
		}
		if st, err := sessionStatus(t, w, before.GetSessionId()); err != nil || st.GetState() != string(session.Revoked) {
			t.Errorf("a session from before %T is %q: %v", by.GetSelector(), st.GetState(), err)
		}
		ahead.Store(int64(2 * time.Second))
		before, _ = opened(t, w, "demo/hello")
		ahead.Store(0)
	}
	r.Check()
}

// A42: strangers who flood a transmitter's address do not keep its signals out.
func TestAbuse_A42_a_flood_at_a_transmitters_address(t *testing.T) {
	t.Parallel()
	s := listening(t)
	s.Put("demo/hello", "standard", "hello")
	revoke := s.event(t, caep.SessionRevoked, xtest.Claims{}, workload(), nil)
	for range 400 {
		if status, _ := s.push(t, "junk", func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") }); status == http.StatusAccepted {
			t.Fatal("junk was taken")
		}
	}
	s.want(t, "the transmitter's own", revoke, http.StatusAccepted, "")
	s.Check()
}

// A53: what one transmitter's address has taken is not what another one, with other powers, has heard.
func TestAbuse_A53_a_signal_that_went_to_another_address(t *testing.T) {
	t.Parallel()
	s := listening(t)
	s.Stop()
	deaf := s.Config.Signals.Transmitters[0]
	deaf.Name, deaf.SPIFFESubjects = "deaf", false
	deaf.Subjects = []config.Subject{{Format: "opaque", ID: "nobody", Principals: []string{rig.ID("nobody").String()}}}
	s.Config.Signals.Transmitters = append(s.Config.Signals.Transmitters, deaf)
	s.Run()
	s.Put("demo/hello", "standard", "hello")
	w := s.Raw("workload")
	live, _ := opened(t, w, "demo/hello")
	revoke := s.event(t, caep.SessionRevoked, xtest.Claims{}, workload(), nil)
	s.want(t, "to the address that knows nobody", revoke, http.StatusAccepted, "", func(r *http.Request) { r.URL.Path = "/v1/signals/deaf" })
	s.want(t, "to its own", revoke, http.StatusAccepted, "")
	if st, err := sessionStatus(t, w, live.GetSessionId()); err != nil || st.GetState() != string(session.Revoked) {
		t.Errorf("the session is %q: %v", st.GetState(), err)
	}
	s.Check()
}

// padded is a message with one of its texts before it again and again: it parses, and the last one counts.
func padded(t *testing.T, in proto.Message, field protowire.Number, text []byte, size int) []byte {
	t.Helper()
	body, err := proto.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for len(out) < size {
		out = protowire.AppendBytes(protowire.AppendTag(out, field, protowire.BytesType), text)
	}
	return append(out, body...)
}

// A42: a signed request that goes onto the record, and to custodians and approvers, is no larger than what it asks.
func TestAbuse_A42_padded_requests_of_rounds(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/split", "split", "the root key")
	r.Put("demo/approved", "approved", "one")
	w := r.Raw("workload")
	rounds := bullav1.NewRoundsClient(w.Conn)
	const size = 500 << 10
	name := []byte("demo/split")

	ask, _ := w.Ask("demo/split")
	_, err := w.Broker.Deliver(t.Context(), w.SignPayload(bullav1.Broker_Deliver_FullMethodName, requestID(), padded(t, ask, 1, name, size)))
	wantCode(t, "a padded delivery", err, codes.InvalidArgument, "request")

	for what, body := range map[string]func(ask *bullav1.DeliverRequest) []byte{
		"padded inside": func(ask *bullav1.DeliverRequest) []byte {
			return padded(t, &bullav1.OpenRoundRequest{Deliver: padded(t, ask, 1, name, size)}, 1, nil, 0)
		},
		"padded outside": func(ask *bullav1.DeliverRequest) []byte {
			inner, err := proto.Marshal(ask)
			if err != nil {
				t.Fatal(err)
			}
			return padded(t, &bullav1.OpenRoundRequest{Deliver: inner}, 1, name, size)
		},
	} {
		w.Challenge(nil)
		ask, _ := w.Ask("demo/approved")
		id := event.NewRequestID(time.Now()).String()
		_, err := rounds.OpenRound(t.Context(), w.SignPayload(bullav1.Rounds_OpenRound_FullMethodName, id, body(ask)))
		wantCode(t, what, err, codes.InvalidArgument, "request")
	}
	for _, e := range r.Events() {
		if text, err := e.Encode(); err != nil || len(text) > 64<<10 {
			t.Errorf("%s has %d bytes: %v", e.Body.EventType(), len(text), err)
		}
	}
	r.Check()
}

// A22: the shares that the broker keeps for a round go with the round, however it ends; and so does the session of one
// that ended without its shares being combined, but for one that owes a receipt.
func TestAbuse_A22_nothing_is_left_of_a_round(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{Policy: func(files map[string]string) {
		split := files["data/classes.yaml"]
		split = split[strings.Index(split, "\nsplit:\n")+1:]
		split, _, _ = strings.Cut(split, "\n# ")
		owing := strings.Replace(split, "split:", "owing:", 1) + "\n    receipt_required: {within_seconds: 3000, grade: open}\n"
		files["data/classes.yaml"] += owing
	}})
	r.Put("demo/split", "split", "the root key")
	r.Put("demo/owing", "owing", "the root key")
	w := r.Raw("workload")
	deliver := func(name string) string {
		reply, _, err := w.Deliver(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return reply.GetSessionId()
	}
	giveUp := func(id string) {
		w.Challenge(nil)
		in := w.Sign(bullav1.Rounds_CloseRound_FullMethodName, &bullav1.CloseRoundRequest{RoundId: id})
		if _, err := bullav1.NewRoundsClient(w.Conn).CloseRound(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
	state := func(what, id, want string) {
		t.Helper()
		if st, err := sessionStatus(t, w, id); err != nil || st.GetState() != want {
			t.Errorf("%s: the session is %q (%s), %v; want %q", what, st.GetState(), st.GetReason(), err, want)
		}
	}
	combined := ask(t, r, "workload", "demo/split", time.Minute)
	approve(t, r, "custodian-1", combined.round)
	approve(t, r, "custodian-2", combined.round)
	combined.want(t, "the root key")

	cancelled, rejected, owing := deliver("demo/split"), deliver("demo/split"), deliver("demo/owing")
	giveUp(cancelled)
	giveUp(owing)
	for _, who := range []string{"custodian-1", "custodian-2"} {
		if _, err := r.Client(who).Reject(t.Context(), rejected, "no"); err != nil {
			t.Fatal(err)
		}
	}
	state("given up", cancelled, "revoked")
	state("rejected", rejected, "revoked")
	state("given up, and a receipt is owed", owing, "issued")
	operator := bullav1.NewSessionsClient(r.Client("operator").Conn())
	if s, err := operator.GetSession(t.Context(), &bullav1.GetSessionRequest{Id: combined.round}); err != nil || session.State(s.GetState()).Ended() {
		t.Errorf("combined: the session is %q, %v", s.GetState(), err)
	}
	live := deliver("demo/split")
	state("open", live, "issued")
	r.Check()
	e := &edited{Rig: r, t: t}
	r.Stop()
	e.exec("DELETE FROM blobs WHERE key = ?", "round/"+live)
	e.found("round/" + live)
	if kept := e.count("SELECT count(*) FROM blobs WHERE key LIKE 'round/%'"); kept != 0 {
		t.Errorf("the shares of %d rounds that have ended are kept", kept)
	}
}

// count is what a query counts.
func (e *edited) count(query string) (n int) {
	e.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(e.Config.DataDir, "ledger.db"))
	if err != nil {
		e.t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRowContext(e.t.Context(), query).Scan(&n); err != nil {
		e.t.Fatal(err)
	}
	return n
}

// A39: a session is judged by what is said of the device that it was delivered on, also where its instance shows none,
// or another one, by now.
func TestAbuse_A39_the_device_of_the_delivery(t *testing.T) {
	t.Parallel()
	s := listening(t)
	file, id := s.Device(rig.ID("workload").String())
	s.Stop()
	s.Config.Signals.Transmitters[0].Subjects = []config.Subject{{Format: "opaque", ID: "laptop", Devices: []string{id}}}
	s.Run()
	s.Put("demo/gated", "standard", "once")
	c := s.Client("workload", func(c *client.Config) { c.DeviceFile = file })
	if _, err := c.Attest(t.Context()); err != nil {
		t.Fatal(err)
	}
	secret, err := c.Get(t.Context(), "demo/gated", client.WithGrade("gated"))
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	use := func() error { return secret.UseContext(t.Context(), func([]byte) error { return nil }) }
	s.Push(func(files map[string]string) { // by other reference values the device is unknown
		files["data/classes.yaml"] = strings.Replace(files["data/classes.yaml"], "max_risk: 90", "max_risk: 85", 1)
		files["references.yaml"] += "# others\n"
	})
	if err := use(); err != nil {
		t.Fatal(err)
	}
	s.want(t, "the device is not compliant", s.event(t, caep.DeviceComplianceChange, xtest.Claims{"previous_status": "compliant", "current_status": "not-compliant"},
		xtest.Claims{"format": "opaque", "id": "laptop"}, nil), http.StatusAccepted, "")
	if err := use(); !errors.Is(err, client.ErrDenied) {
		t.Errorf("a use on a device that is not compliant: %v; want ErrDenied", err)
	}
	s.Check()
}
