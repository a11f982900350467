package abuse

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/caep"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/session"
	"github.com/bulla-project/bulla/test/rig"
	"github.com/bulla-project/bulla/token/xtest"
)

const (
	caepURI = "https://schemas.openid.net/secevent/caep/event-type/"
	ssfURI  = "https://schemas.openid.net/secevent/ssf/event-type/"
)

// signalled is a broker that takes signals of one transmitter, and a client of its listener.
type signalled struct {
	*rig.Rig
	issuer *xtest.Issuer
	http   *http.Client
}

const bearer = "transmitter-bearer"

// listening starts a broker with the transmitter "idp", which knows the workload by its SPIFFE ID and as alice.
func listening(t *testing.T, edit ...func(*config.Transmitter)) *signalled {
	t.Helper()
	s := &signalled{issuer: xtest.New(t)}
	dir := t.TempDir()
	cert, key, roots := xtest.ServerCertificate(t, dir)
	bearerFile := filepath.Join(dir, "bearer")
	if err := os.WriteFile(bearerFile, []byte(bearer+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tr := config.Transmitter{
		Name: "idp", Issuer: config.Issuer{Issuer: s.issuer.URL, Audience: xtest.Audience, JWKSURL: s.issuer.JWKS}, BearerTokenFile: bearerFile,
		Events: caep.Types(), SPIFFESubjects: true,
		Subjects: []config.Subject{
			{Format: "iss_sub", Issuer: s.issuer.URL, ID: "alice", Principals: []string{rig.ID("workload").String()}},
			{Format: "opaque", ID: "all", TrustDomains: []string{rig.TrustDomain}},
		},
	}
	for _, f := range edit {
		f(&tr)
	}
	s.Rig = rig.Start(t, rig.Config{
		Edit: func(c *config.Config) {
			c.Signals = config.Signals{Listen: "127.0.0.1:0", CertFile: cert, KeyFile: key, Transmitters: []config.Transmitter{tr}}
		},
		Policy: func(files map[string]string) {
			files["data/classes.yaml"] = strings.Replace(files["data/classes.yaml"], "max_risk: 90", "max_risk: 85", 1)
		},
	})
	s.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}, Timeout: 30 * time.Second}
	t.Cleanup(s.http.CloseIdleConnections)
	return s
}

// push sends a token, with changes to the request, and returns the status and the error code of the answer.
func (s *signalled) push(t *testing.T, compact string, change ...func(*http.Request)) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, fmt.Sprintf("https://%s/v1/signals/idp", s.Server.SignalsAddr()), strings.NewReader(compact))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/secevent+jwt")
	req.Header.Set("Authorization", "Bearer "+bearer)
	for _, f := range change {
		f(req)
	}
	resp, err := s.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct{ Err, Description string }
	if resp.StatusCode == http.StatusAccepted {
		if len(text) > 0 {
			t.Errorf("202 with %q", text)
		}
	} else if err := json.Unmarshal(text, &answer); err != nil && resp.StatusCode == http.StatusBadRequest {
		t.Errorf("400 with %q", text)
	}
	return resp.StatusCode, answer.Err
}

func (s *signalled) want(t *testing.T, what, compact string, status int, code string, change ...func(*http.Request)) {
	t.Helper()
	if got, said := s.push(t, compact, change...); got != status || said != code {
		t.Errorf("%s: %d %q; want %d %q", what, got, said, status, code)
	}
}

// workload and alice are subjects of the workload.
func workload() xtest.Claims {
	return xtest.Claims{"format": "uri", "uri": rig.ID("workload").String()}
}

func (s *signalled) alice() xtest.Claims {
	return xtest.Claims{"format": "iss_sub", "iss": s.issuer.URL, "sub": "alice"}
}

func (s *signalled) event(t *testing.T, kind string, content, subject, changes xtest.Claims) string {
	t.Helper()
	return s.issuer.Event(t, caepURI+kind, content, subject, changes)
}

// score is the risk at which the workload gets a secret.
func (s *signalled) score(t *testing.T) int {
	t.Helper()
	reply, _, err := s.Raw("workload").Deliver(t.Context(), "demo/hello")
	if err != nil {
		t.Fatal(err)
	}
	return int(reply.GetRisk().GetScore())
}

func TestAbuse_A39_signals_only_raise(t *testing.T) {
	t.Parallel()
	s := listening(t)
	s.Put("demo/hello", "standard", "hello")
	s.score(t) // it is new only once
	base := s.score(t)
	low := func() string {
		return s.event(t, caep.RiskLevelChange, xtest.Claims{"principal": "USER", "current_level": "LOW", "previous_level": "HIGH"}, s.alice(), nil)
	}
	compliant := func() string {
		return s.event(t, caep.DeviceComplianceChange, xtest.Claims{"previous_status": "not-compliant", "current_status": "compliant"}, workload(), nil)
	}
	s.want(t, "the risk is low", low(), http.StatusAccepted, "")
	s.want(t, "it is compliant", compliant(), http.StatusAccepted, "")
	if got := s.score(t); got != base {
		t.Errorf("good news moved the score from %d to %d", base, got)
	}
	s.want(t, "a credential changed", s.event(t, caep.CredentialChange, xtest.Claims{"credential_type": "password", "change_type": "update"}, s.alice(), nil), http.StatusAccepted, "")
	raised := s.score(t)
	if raised <= base {
		t.Errorf("a changed credential moved the score from %d to %d", base, raised)
	}
	s.want(t, "the risk is low", low(), http.StatusAccepted, "")
	if got := s.score(t); got != raised {
		t.Errorf("after good news the score is %d, and it was %d", got, raised)
	}
	s.want(t, "the risk is high", s.event(t, caep.RiskLevelChange, xtest.Claims{"principal": "USER", "current_level": "HIGH"}, s.alice(), nil), http.StatusAccepted, "")
	s.want(t, "the risk is low", low(), http.StatusAccepted, "")
	s.want(t, "it is compliant", compliant(), http.StatusAccepted, "")
	w := s.Raw("workload")
	_, _, err := w.Deliver(t.Context(), "demo/hello")
	wantCode(t, "at a high risk", err, codes.PermissionDenied, "policy")
	if reply, _, err := s.Raw("stranger").Deliver(t.Context(), "demo/hello"); err == nil || reply != nil {
		t.Error("a stranger got it")
	}
	// Everything that was said is on the record, the good news as well; a restart forgets none of it.
	kinds := map[string]int{}
	for _, e := range s.Events() {
		if b, ok := e.Body.(event.SignalReceived); ok {
			kinds[b.Kind+b.Level]++
		}
	}
	if kinds[caep.RiskLevelChange] != 3 || kinds[caep.DeviceComplianceChange] != 2 || kinds[caep.RiskLevelChange+"high"] != 1 || kinds[caep.CredentialChange+"raised"] != 1 {
		t.Errorf("on the record: %v", kinds)
	}
	s.Stop()
	s.Run()
	_, _, err = s.Raw("workload").Deliver(t.Context(), "demo/hello")
	wantCode(t, "after a restart", err, codes.PermissionDenied, "policy")
	s.Check()
}

// TestAbuse_A39_sessions_that_live are decided anew at each use and operation, and a signal is heeded there.
func TestAbuse_A39_sessions_that_live(t *testing.T) {
	t.Parallel()
	s := listening(t)
	s.Put("demo/gated", "standard", "once")
	s.Generate("demo/signer", "standard", "ecdsa-p256")
	c := s.Client("workload")
	secret, err := c.Get(t.Context(), "demo/gated", client.WithGrade("gated"))
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	key, err := c.Get(t.Context(), "demo/signer", client.WithGrade("proxied"))
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	use := func() error { return secret.UseContext(t.Context(), func([]byte) error { return nil }) }
	sign := func() error { _, err := key.Sign(t.Context(), []byte("a text")); return err }
	for what, f := range map[string]func() error{"use": use, "operation": sign} {
		if err := f(); err != nil {
			t.Fatalf("%s before: %v", what, err)
		}
	}
	s.want(t, "high", s.event(t, caep.RiskLevelChange, xtest.Claims{"current_level": "HIGH"}, workload(), nil), http.StatusAccepted, "")
	for what, f := range map[string]func() error{"use": use, "operation": sign} {
		if err := f(); !errors.Is(err, client.ErrDenied) {
			t.Errorf("%s at a high risk: %v; want ErrDenied", what, err)
		}
	}
	s.Check()
}

// TestAbuse_A39_a_signal_ends_by_itself, at the end of its life, and not below what it was before.
func TestAbuse_A39_a_signal_ends_by_itself(t *testing.T) {
	t.Parallel()
	s := listening(t, func(c *config.Transmitter) { c.Life = time.Second })
	s.Put("demo/hello", "standard", "hello")
	s.score(t)
	base := s.score(t)
	s.want(t, "high", s.event(t, caep.RiskLevelChange, xtest.Claims{"current_level": "MEDIUM"}, workload(), nil), http.StatusAccepted, "")
	if got := s.score(t); got <= base {
		t.Errorf("a signal moved the score from %d to %d", base, got)
	}
	eventually(t, "the signal ends", func() bool { return s.score(t) == base })
}

func TestAbuse_A39_what_is_not_believed(t *testing.T) {
	t.Parallel()
	s := listening(t, func(c *config.Transmitter) { c.Events = []string{caep.SessionRevoked, caep.RiskLevelChange} })
	s.Put("demo/hello", "standard", "hello")
	w := s.Raw("workload")
	live, _ := opened(t, w, "demo/hello")
	other := xtest.New(t)
	revoke := func(changes xtest.Claims) string {
		return s.event(t, caep.SessionRevoked, xtest.Claims{}, workload(), changes)
	}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	now := time.Now()
	for what, c := range map[string]struct {
		token  string
		code   string
		change func(*http.Request)
	}{
		"no bearer":          {revoke(nil), "authentication_failed", header("Authorization", "")},
		"another bearer":     {revoke(nil), "authentication_failed", header("Authorization", "Bearer x")},
		"another scheme":     {revoke(nil), "authentication_failed", header("Authorization", "Basic "+bearer)},
		"another type":       {revoke(nil), "invalid_request", header("Content-Type", "application/jwt")},
		"another audience":   {revoke(xtest.Claims{"aud": "other"}), "invalid_audience", nil},
		"another issuer":     {other.Event(t, caepURI+caep.SessionRevoked, xtest.Claims{}, workload(), nil), "invalid_issuer", nil},
		"another's key":      {other.Event(t, caepURI+caep.SessionRevoked, xtest.Claims{}, workload(), xtest.Claims{"iss": s.issuer.URL}), "invalid_key", nil},
		"an ID token":        {s.issuer.Token(t, "alice", nil), "invalid_request", nil},
		"with exp":           {revoke(xtest.Claims{"exp": now.Add(time.Hour).Unix()}), "invalid_request", nil},
		"too old":            {revoke(xtest.Claims{"iat": now.Add(-25 * time.Hour).Unix()}), "invalid_request", nil},
		"no jti":             {revoke(xtest.Claims{"jti": nil}), "invalid_request", nil},
		"two events":         {revoke(xtest.Claims{"events": xtest.Claims{caepURI + caep.SessionRevoked: xtest.Claims{}, caepURI + caep.CredentialChange: xtest.Claims{}}}), "invalid_request", nil},
		"an unknown event":   {s.event(t, "made-up", xtest.Claims{}, workload(), nil), "invalid_request", nil},
		"one not configured": {s.event(t, caep.CredentialChange, xtest.Claims{"change_type": "update"}, workload(), nil), "access_denied", nil},
		"no subject":         {s.event(t, caep.SessionRevoked, xtest.Claims{}, xtest.Claims{}, nil), "invalid_request", nil},
		"a mixed subject":    {s.event(t, caep.SessionRevoked, xtest.Claims{}, xtest.Claims{"format": "uri", "uri": rig.ID("workload").String(), "id": "x"}, nil), "invalid_request", nil},
		"a made-up level":    {s.event(t, caep.RiskLevelChange, xtest.Claims{"current_level": "low"}, workload(), nil), "invalid_request", nil},
		"empty":              {"", "invalid_request", nil},
		"a newline":          {revoke(nil) + "\n", "invalid_request", nil},
		"large":              {strings.Repeat("a", 1<<20), "invalid_request", nil},
	} {
		change := c.change
		if change == nil {
			change = func(*http.Request) {}
		}
		s.want(t, what, c.token, http.StatusBadRequest, c.code, change)
	}
	s.want(t, "nobody's address", revoke(nil), http.StatusNotFound, "", func(r *http.Request) { r.URL.Path = "/v1/signals/other" })
	s.want(t, "GET", "", http.StatusMethodNotAllowed, "", func(r *http.Request) { r.Method = http.MethodGet })
	// Believed, and about nobody here.
	s.want(t, "somebody unknown", s.event(t, caep.SessionRevoked, xtest.Claims{}, xtest.Claims{"format": "email", "email": "bob@idp.test"}, nil), http.StatusAccepted, "")
	s.want(t, "a foreign trust domain", s.event(t, caep.SessionRevoked, xtest.Claims{}, xtest.Claims{"format": "uri", "uri": "spiffe://partner.test/workload"}, nil), http.StatusAccepted, "")
	s.want(t, "the stream is tried", s.issuer.Event(t, ssfURI+caep.Verification, xtest.Claims{"state": "x"}, xtest.Claims{"format": "opaque", "id": "stream"}, nil), http.StatusAccepted, "")
	if st, err := sessionStatus(t, w, live.GetSessionId()); err != nil || session.State(st.GetState()).Ended() {
		t.Errorf("the session is %s: %v", st.GetState(), err)
	}
	refused := 0
	for _, e := range s.Events() {
		text, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(text, []byte(bearer)) {
			t.Errorf("%s holds the bearer token", e.Body.EventType())
		}
		if b, ok := e.Body.(event.SignalRefused); ok && b.Transmitter == "idp" {
			refused++
		}
	}
	if refused != 20 {
		t.Errorf("%d refusals are on the record", refused)
	}
	if other.Asked() != 0 || strings.Contains(s.Log.String(), bearer) {
		t.Error("a foreign issuer was asked, or the log holds the bearer token")
	}
	s.Check()
}

// TestAbuse_A39_the_same_token_again is acknowledged and changes nothing, also after a restart and side by side.
func TestAbuse_A39_the_same_token_again(t *testing.T) {
	t.Parallel()
	s := listening(t)
	s.Put("demo/hello", "standard", "hello")
	w := s.Raw("workload")
	first, _ := opened(t, w, "demo/hello")
	once := s.event(t, caep.SessionRevoked, xtest.Claims{"reason_admin": xtest.Claims{"en": "lost"}}, workload(), nil)
	s.want(t, "once", once, http.StatusAccepted, "")
	if st, err := sessionStatus(t, w, first.GetSessionId()); err != nil || st.GetState() != "revoked" {
		t.Fatalf("the session is %s: %v", st.GetState(), err)
	}
	second, _ := opened(t, w, "demo/hello")
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() { s.want(t, "again", once, http.StatusAccepted, "") })
	}
	all.Wait()
	s.Stop()
	s.Run()
	s.want(t, "after a restart", once, http.StatusAccepted, "")
	jti := claimOf(t, once, "jti")
	s.want(t, "its id for another token", s.event(t, caep.SessionRevoked, xtest.Claims{}, s.alice(), xtest.Claims{"jti": jti}), http.StatusBadRequest, "invalid_request")
	if st := s.find(t, second.GetSessionId()); st.GetState() == "revoked" {
		t.Error("a token that was sent again ended a later session")
	}
	n := 0
	for _, e := range s.Events() {
		if _, ok := e.Body.(event.SignalReceived); ok {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d signals are on the record", n)
	}
	s.Check()
}

// find shows a session to an operator.
func (s *signalled) find(t *testing.T, id string) *bullav1.Session {
	t.Helper()
	found, err := bullav1.NewSessionsClient(s.Client("operator").Conn()).GetSession(t.Context(), &bullav1.GetSessionRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func claimOf(t *testing.T, compact, name string) any {
	t.Helper()
	claims := xtest.Read(t, compact)
	return claims[name]
}

// TestAbuse_A53_transmitter: one that was taken over and revokes everything ends as many sessions as it may, and what
// is left is held for people. It can't lock out those who would end it, nor take the broker out of service.
func TestAbuse_A53_transmitter(t *testing.T) {
	t.Parallel()
	const most, sessions = 7, 20
	s := listening(t, func(c *config.Transmitter) { c.MaxSessionsPerHour = most })
	s.Put("demo/hello", "standard", "hello")
	w := s.Raw("workload")
	for _, err := range atOnce(t.Context(), w, signed(w, "demo/hello", sessions)) {
		if err != nil {
			t.Fatal(err)
		}
	}
	count := func() (ended, live int) {
		list, err := bullav1.NewSessionsClient(s.Client("operator").Conn()).ListSessions(t.Context(), &bullav1.ListSessionsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range list.GetSessions() {
			if one.GetState() == "revoked" {
				ended++
			} else {
				live++
			}
		}
		return ended, live
	}
	everything := xtest.Claims{"format": "opaque", "id": "all"}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			s.want(t, "everything", s.event(t, caep.SessionRevoked, xtest.Claims{}, everything, nil), http.StatusAccepted, "")
		})
		all.Go(func() {
			s.want(t, "the workload", s.event(t, caep.SessionRevoked, xtest.Claims{}, workload(), nil), http.StatusAccepted, "")
		})
	}
	all.Wait()
	if ended, live := count(); ended != most || live != sessions-most {
		t.Errorf("%d sessions were ended and %d live; the limit is %d", ended, live, most)
	}
	held := false
	for _, e := range s.Events() {
		if b, ok := e.Body.(event.SignalSettled); ok && b.Held {
			held = true
		}
	}
	doctor, err := bullav1.NewAuditClient(s.Client("security").Conn()).Doctor(t.Context(), &bullav1.DoctorRequest{})
	if err != nil {
		t.Fatal(err)
	}
	said := ""
	for _, c := range doctor.GetChecks() {
		if c.GetName() == "signals" && !c.GetOk() {
			said = c.GetDetail()
		} else if !c.GetOk() {
			t.Errorf("%s is not well: %s", c.GetName(), c.GetDetail())
		}
	}
	if !held || !strings.Contains(said, "idp") {
		t.Errorf("held on the record: %t; the doctor says %q", held, said)
	}
	s.Stop()
	s.Run()
	if ended, _ := count(); ended != most {
		t.Errorf("after a restart %d sessions are ended", ended)
	}
	s.want(t, "everybody is a risk", s.event(t, caep.RiskLevelChange, xtest.Claims{"current_level": "HIGH"}, everything, nil), http.StatusAccepted, "")
	s.Push(func(files map[string]string) { files["data/grants.yaml"] += "# later\n" }) // security can go on
	s.Check()
}

// TestAbuse_A53_signals_are_counted: what a transmitter may say in an hour has an end.
func TestAbuse_A53_signals_are_counted(t *testing.T) {
	t.Parallel()
	const most = 5
	s := listening(t, func(c *config.Transmitter) { c.MaxSignalsPerHour = most })
	taken := 0
	for range 12 {
		status, _ := s.push(t, s.event(t, caep.RiskLevelChange, xtest.Claims{"current_level": "HIGH"}, workload(), nil))
		switch status {
		case http.StatusAccepted:
			taken++
		case http.StatusTooManyRequests:
		default:
			t.Errorf("answered %d", status)
		}
	}
	if taken < most || taken > 2*most { // an hour may have ended in between
		t.Errorf("%d signals were taken, and %d may be", taken, most)
	}
}

// TestAbuse_A46_a_signal_between_decision_and_commit makes the decision fall: the commit demands what it saw.
func TestAbuse_A46_a_signal_between_decision_and_commit(t *testing.T) {
	t.Parallel()
	s := listening(t)
	s.Put("demo/hello", "standard", "hello")
	w := s.Raw("workload")
	requests := signed(w, "demo/hello", 40)
	high := s.event(t, caep.RiskLevelChange, xtest.Claims{"current_level": "HIGH"}, workload(), nil)
	var all sync.WaitGroup
	all.Go(func() { s.want(t, "high", high, http.StatusAccepted, "") })
	atOnce(t.Context(), w, requests)
	all.Wait()
	high = ""
	for _, e := range s.Events() {
		switch b := e.Body.(type) {
		case event.SignalReceived:
			high = b.TokenID
		case event.SessionIssued:
			if high != "" {
				t.Errorf("session %s was issued after the signal", b.Session)
			}
			if sig, err := policy.ParseSignals(b.Decision.Signals); err != nil || len(sig.External) > 0 {
				t.Errorf("a delivery relied on %+v: %v", sig.External, err)
			}
		}
	}
}
