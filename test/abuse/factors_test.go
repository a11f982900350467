package abuse

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/test/rig"
	"github.com/bulla-project/bulla/token/xtest"
)

// guarded adds a class that demands a further factor, and lets alice of an issuer speak for the workload.
func guarded(issuer string) func(files map[string]string) {
	return func(files map[string]string) {
		files["data/classes.yaml"] += `personal:
  sensitivity: 2
  levels: [ENHANCED, HIGH_ASSURANCE]
  step_up: ENHANCED
  max_risk: 80
  attestation: {required: false}
  obligations:
    time_bound: {ttl_seconds: 3600, grade: open}
    usage_limit: {max_uses: 1000, grade: open}
`
		files["data/persons.yaml"] = issuer + ":\n  alice:\n    person: alice\n    principals: {" + rig.ID("workload").String() + ": true}\n"
	}
}

// withIssuer starts a broker that takes tokens of a small issuer.
func withIssuer(t *testing.T, i *xtest.Issuer, edit ...func(*config.OIDC)) *rig.Rig {
	t.Helper()
	o := config.OIDC{Issuer: config.Issuer{Issuer: i.URL, Audience: xtest.Audience, JWKSURL: i.JWKS}, Claims: []string{"groups", "principal", "email"}}
	for _, f := range edit {
		f(&o)
	}
	r := rig.Start(t, rig.Config{Policy: guarded(i.URL), Edit: func(c *config.Config) {
		c.Factors.OIDC = []config.OIDC{o}
		c.Factors.JWTSVID = &config.JWTSVID{Audience: "bulla"}
	}})
	r.Put("demo/hello", "personal", "hello")
	return r
}

// showing asks for the secret with a token in the signed payload.
func showing(tokens ...string) func(*bullav1.DeliverRequest) {
	return func(in *bullav1.DeliverRequest) {
		for _, text := range tokens {
			in.Factors = append(in.Factors, &bullav1.Factor{Kind: policy.FactorOIDC, Token: text})
		}
	}
}

func TestAbuse_A07_a_token_alone_releases_nothing(t *testing.T) {
	t.Parallel()
	i := xtest.New(t)
	r := withIssuer(t, i)
	w := r.Raw("workload")
	if _, _, err := w.Deliver(t.Context(), "demo/hello"); rig.Refusal(err).GetDecision() != "STEP_UP" {
		t.Fatalf("without a token: %v; want STEP_UP", err)
	}
	good := i.Token(t, "alice", xtest.Claims{"groups": []string{"ops"}})
	if _, _, err := w.Deliver(t.Context(), "demo/hello", showing(good)); err != nil {
		t.Fatalf("with a token: %v", err)
	}
	// The same token by another principal, who has a grant as well, and by one who has none.
	r.Push(func(files map[string]string) {
		guarded(i.URL)(files)
		files["data/grants.yaml"] += rig.ID("second").String() + ":\n  read: {demo/: true}\n  devices: []\n"
	})
	if _, _, err := r.Raw("second").Deliver(t.Context(), "demo/hello", showing(good)); rig.Refusal(err).GetDecision() != "STEP_UP" {
		t.Errorf("by a principal whom alice does not speak for: %v; want STEP_UP", err)
	}
	_, _, err := r.Raw("stranger").Deliver(t.Context(), "demo/hello", showing(good))
	wantCode(t, "by a stranger", err, codes.PermissionDenied, "policy")
	// Taken out of one signed request and put into another, unsigned.
	w.Challenge(nil)
	ask, _ := w.Ask("demo/hello")
	signed := w.Sign(bullav1.Broker_Deliver_FullMethodName, ask)
	more, _ := w.Ask("demo/hello")
	showing(good)(more)
	signed.Payload = w.Sign(bullav1.Broker_Deliver_FullMethodName, more).Payload
	_, err = w.Broker.Deliver(t.Context(), signed)
	wantCode(t, "added to a request that was signed without it", err, codes.Unauthenticated, "proof")
	r.Check()
}

func TestAbuse_A07_tokens_that_do_not_hold(t *testing.T) {
	t.Parallel()
	i, other := xtest.New(t), xtest.New(t)
	r := withIssuer(t, i)
	w := r.Raw("workload")
	now := time.Now()
	before := mark(r)
	refused := 0
	for what, text := range map[string]string{
		"no exp":                 i.Token(t, "alice", xtest.Claims{"exp": nil}),
		"ended":                  i.Token(t, "alice", xtest.Claims{"exp": now.Add(-time.Second).Unix()}),
		"too long a life":        i.Token(t, "alice", xtest.Claims{"exp": now.Add(2 * time.Hour).Unix()}),
		"another audience":       i.Token(t, "alice", xtest.Claims{"aud": "other"}),
		"no audience":            i.Token(t, "alice", xtest.Claims{"aud": nil}),
		"two audiences":          i.Token(t, "alice", xtest.Claims{"aud": []string{xtest.Audience, "other"}}),
		"alg none":               i.Sign(t, xtest.Claims{"alg": "none", "typ": "JWT"}, xtest.Claims{"iss": i.URL, "sub": "alice", "aud": xtest.Audience, "exp": now.Add(time.Minute).Unix()}),
		"jku":                    i.Sign(t, xtest.Claims{"alg": "ES256", "kid": i.Kid, "typ": "JWT", "jku": other.JWKS}, xtest.Claims{"iss": i.URL, "sub": "alice", "aud": xtest.Audience, "exp": now.Add(time.Minute).Unix()}),
		"a key of another":       other.Token(t, "alice", xtest.Claims{"iss": i.URL}),
		"an issuer of nobody":    other.Token(t, "alice", nil),
		"bound to another key":   i.Token(t, "alice", xtest.Claims{"cnf": xtest.Claims{"jkt": "x"}}),
		"bound to a certificate": i.Token(t, "alice", xtest.Claims{"cnf": xtest.Claims{"x5t#S256": w.Name}}),
		"a SPIFFE ID":            i.Token(t, rig.ID("workload").String(), nil),
		"a line break":           i.Token(t, "alice", nil) + "\n",
	} {
		_, _, err := w.Deliver(t.Context(), "demo/hello", showing(text))
		wantCode(t, what, err, codes.PermissionDenied, "factor")
		refused++
	}
	n := 0
	for _, e := range after(r, before) {
		if b, ok := e.Body.(event.RequestRefused); ok && b.Check == "factor" && b.Principal == rig.ID("workload").String() {
			n++
		}
	}
	if n != refused {
		t.Errorf("%d refused tokens are on the record, and %d were refused", n, refused)
	}
	if other.Asked() != 0 {
		t.Error("an issuer that nobody configured was asked for its keys")
	}
	good := i.Token(t, "alice", nil)
	_, _, err := w.Deliver(t.Context(), "demo/hello", showing(good, i.Token(t, "alice", nil)))
	wantCode(t, "two of one issuer", err, codes.InvalidArgument, "request")
	_, _, err = w.Deliver(t.Context(), "demo/hello", showing(good, good, good, good, good))
	wantCode(t, "five", err, codes.InvalidArgument, "request")
	if _, _, err := w.Deliver(t.Context(), "demo/hello", showing(i.Token(t, "alice", xtest.Claims{"cnf": xtest.Claims{"jkt": w.Name}}))); err != nil {
		t.Errorf("bound to this instance: %v", err)
	}
}

func TestAbuse_A07_a_nonce_binds_to_the_instance(t *testing.T) {
	t.Parallel()
	i := xtest.New(t)
	r := withIssuer(t, i, func(o *config.OIDC) { o.InstanceNonce = true })
	w, sibling := r.Raw("workload"), r.Raw("workload")
	bound := i.Token(t, "alice", xtest.Claims{"nonce": w.Name})
	if _, _, err := w.Deliver(t.Context(), "demo/hello", showing(bound)); err != nil {
		t.Fatal(err)
	}
	_, _, err := sibling.Deliver(t.Context(), "demo/hello", showing(bound))
	wantCode(t, "by a sibling replica", err, codes.PermissionDenied, "factor")
	_, _, err = w.Deliver(t.Context(), "demo/hello", showing(i.Token(t, "alice", nil)))
	wantCode(t, "without a nonce", err, codes.PermissionDenied, "factor")
}

func TestAbuse_A07_jwt_svids(t *testing.T) {
	t.Parallel()
	i := xtest.New(t)
	r := withIssuer(t, i)
	w := r.Raw("workload")
	show := func(name, audience string) func(*bullav1.DeliverRequest) {
		svid, err := r.Source(name).FetchJWTSVID(t.Context(), audience)
		if err != nil {
			t.Fatal(err)
		}
		return func(in *bullav1.DeliverRequest) {
			in.Factors = []*bullav1.Factor{{Kind: policy.FactorJWTSVID, Token: svid.Marshal()}}
		}
	}
	_, _, err := w.Deliver(t.Context(), "demo/hello", show("operator", "bulla"))
	wantCode(t, "another principal's", err, codes.PermissionDenied, "factor")
	_, _, err = w.Deliver(t.Context(), "demo/hello", show("workload", "other"))
	wantCode(t, "for another audience", err, codes.PermissionDenied, "factor")
	_, _, err = w.Deliver(t.Context(), "demo/hello", show("workload", "bulla"))
	if rig.Refusal(err).GetDecision() != "STEP_UP" {
		t.Errorf("its own, of its own trust domain: %v; want STEP_UP, since no second issuer vouches", err)
	}
}

// TestAbuse_A07_the_client shows a token only when it is asked to, and once.
func TestAbuse_A07_the_client(t *testing.T) {
	t.Parallel()
	i := xtest.New(t)
	r := withIssuer(t, i)
	var got atomic.Int32
	var instance atomic.Value
	source := func(_ context.Context, thumbprint string) (string, error) {
		got.Add(1)
		instance.Store(thumbprint)
		return i.Token(t, "alice", nil), nil
	}
	c := r.Client("workload", func(c *client.Config) { c.Token = source })
	get(t, c, "demo/hello", "hello")
	if got.Load() != 1 || len(instance.Load().(string)) != 43 {
		t.Errorf("the token was asked for %d times", got.Load())
	}
	if _, err := c.Get(t.Context(), "other/name"); err == nil || got.Load() != 1 {
		t.Errorf("for a name without a grant: %v, and the token was asked for %d times", err, got.Load())
	}
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(i.Token(t, "alice", nil)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	get(t, r.Client("workload", func(c *client.Config) { c.TokenFile = path }), "demo/hello", "hello")
	if _, err := r.Client("workload").Get(t.Context(), "demo/hello"); err == nil {
		t.Error("without a token it was delivered")
	}
	// Gated: each use is decided anew, with a token of its own.
	gated := r.Client("workload", func(c *client.Config) { c.Token = source })
	before := got.Load()
	r.Put("demo/gated", "personal", "once")
	s, err := gated.Get(t.Context(), "demo/gated", client.WithGrade("gated"), client.WithUses(3))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 2 {
		if err := s.UseContext(t.Context(), func([]byte) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if n := got.Load() - before; n != 3 {
		t.Errorf("a delivery and two uses showed %d tokens", n)
	}
	// Proxied: each operation, too.
	r.Generate("demo/signer", "personal", "ecdsa-p256")
	before = got.Load()
	key, err := gated.Get(t.Context(), "demo/signer", client.WithGrade("proxied"))
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	for range 2 {
		if _, err := key.Sign(t.Context(), []byte("a text")); err != nil {
			t.Fatal(err)
		}
	}
	if n := got.Load() - before; n != 3 {
		t.Errorf("a delivery and two operations showed %d tokens", n)
	}
	r.Check()
}

func TestAbuse_A13_nothing_but_the_configured_address(t *testing.T) {
	t.Parallel()
	var called atomic.Int32
	canary := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called.Add(1) }))
	t.Cleanup(canary.Close)
	i := xtest.New(t)
	r := withIssuer(t, i)
	w := r.Raw("workload")
	claims := func(iss string) xtest.Claims {
		return xtest.Claims{"iss": iss, "sub": "alice", "aud": xtest.Audience, "exp": time.Now().Add(time.Minute).Unix()}
	}
	header := func(more xtest.Claims) xtest.Claims {
		h := xtest.Claims{"alg": "ES256", "kid": i.Kid, "typ": "JWT"}
		for k, v := range more {
			h[k] = v
		}
		return h
	}
	for what, text := range map[string]string{
		"issuer":        i.Sign(t, header(nil), claims(canary.URL)),
		"issuer, close": i.Sign(t, header(nil), claims(i.URL+"@"+strings.TrimPrefix(canary.URL, "http://"))),
		"jku":           i.Sign(t, header(xtest.Claims{"jku": canary.URL}), claims(i.URL)),
		"x5u":           i.Sign(t, header(xtest.Claims{"x5u": canary.URL}), claims(i.URL)),
		"kid":           i.Sign(t, header(xtest.Claims{"kid": canary.URL}), claims(i.URL)),
	} {
		_, _, err := w.Deliver(t.Context(), "demo/hello", showing(text))
		wantCode(t, what, err, codes.PermissionDenied, "factor")
	}
	if called.Load() != 0 {
		t.Fatalf("the address in a token was asked %d times", called.Load())
	}
	// The configured address sends the broker elsewhere.
	away := xtest.New(t)
	away.Answer(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, canary.URL+"/keys", http.StatusFound)
	})
	redirected := withIssuer(t, away)
	_, _, err := redirected.Raw("workload").Deliver(t.Context(), "demo/hello", showing(away.Token(t, "alice", nil)))
	wantCode(t, "redirected", err, codes.Unavailable, "factor")
	if called.Load() != 0 || away.Asked() == 0 {
		t.Errorf("the canary was called %d times; the configured address %d", called.Load(), away.Asked())
	}
	// What made-up key ids cost: no more than one fetch in a pause.
	asked := i.Asked()
	for range 20 {
		_, _, _ = w.Deliver(t.Context(), "demo/hello", showing(i.Sign(t, header(xtest.Claims{"kid": event.NewID(time.Now()).String()}), claims(i.URL))))
	}
	if n := i.Asked() - asked; n > 1 {
		t.Errorf("20 made-up key ids made the broker ask %d times", n)
	}
}

// TestAbuse_A45_claims_are_not_trusted_fields: a token says of itself what it likes, and it stands below claims.
func TestAbuse_A45_claims_are_not_trusted_fields(t *testing.T) {
	t.Parallel()
	i := xtest.New(t)
	r := withIssuer(t, i, func(o *config.OIDC) {
		o.Claims = []string{"principal", "level", "person", "risk", "id", "type"}
		o.PrincipalTypes = []config.ClaimType{{Claim: "groups", Value: "people", Type: "USER"}}
	})
	pretends := xtest.Claims{
		"principal": []string{rig.ID("operator").String()}, "level": "HIGH_ASSURANCE", "person": "root", "risk": 0, "id": rig.ID("operator").String(), "type": "PIPELINE",
		"groups": []string{"people"},
	}
	_, _, err := r.Raw("workload").Deliver(t.Context(), "demo/hello", showing(i.Token(t, "mallory", pretends)))
	if rig.Refusal(err).GetDecision() != "STEP_UP" {
		t.Errorf("a subject that speaks for nobody: %v; want STEP_UP", err)
	}
	if _, _, err := r.Raw("workload").Deliver(t.Context(), "demo/hello", showing(i.Token(t, "alice", pretends))); err != nil {
		t.Fatal(err)
	}
	signals := issued(t, r)
	f := signals.Factors[0]
	if signals.Principal.ID != rig.ID("workload").String() || signals.Principal.Level != policy.LevelBasic || signals.Principal.Type != policy.TypeService {
		t.Errorf("the token changed what is recorded of the principal: %+v", signals.Principal)
	}
	if f.Subject != "alice" || f.Type != policy.TypeUser || f.Claims["level"][0] != "HIGH_ASSURANCE" || f.Claims["groups"] != nil {
		t.Errorf("recorded is %+v", f)
	}
}

// issued are the signals of the newest delivery.
func issued(t *testing.T, r *rig.Rig) policy.Signals {
	t.Helper()
	events := r.Events()
	for n := len(events) - 1; n >= 0; n-- {
		if b, ok := body(events[n]); ok {
			s, err := policy.ParseSignals(b.Decision.Signals)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
	}
	t.Fatal("nothing was delivered")
	return policy.Signals{}
}

// TestAbuse_A57_raw_tokens_are_nowhere looks for a token, and each part of it, in everything that the broker wrote.
func TestAbuse_A57_raw_tokens_are_nowhere(t *testing.T) {
	t.Parallel()
	i := xtest.New(t)
	r := withIssuer(t, i)
	w := r.Raw("workload")
	taken := i.Token(t, "alice", nil)
	if _, _, err := w.Deliver(t.Context(), "demo/hello", showing(taken)); err != nil {
		t.Fatal(err)
	}
	refused := i.Token(t, "alice", xtest.Claims{"aud": "other"})
	_, _, err := w.Deliver(t.Context(), "demo/hello", showing(refused))
	wantCode(t, "refused", err, codes.PermissionDenied, "factor")
	var needles [][]byte
	for _, text := range []string{taken, refused} {
		for _, part := range strings.Split(text, ".")[1:] {
			needles = append(needles, []byte(part))
		}
	}
	if leaks(err, needles...) {
		t.Error("the refusal holds the token")
	}
	search := func(where string, text []byte) {
		for _, n := range needles {
			if bytes.Contains(text, n) {
				t.Errorf("%s holds a part of a token", where)
			}
		}
	}
	digest, hashed := sha256.Sum256([]byte(taken)), false
	for _, e := range r.Events() {
		text, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		search("event "+string(e.Body.EventType()), text)
		hashed = hashed || bytes.Contains(text, []byte(hex.EncodeToString(digest[:])))
	}
	if !hashed {
		t.Error("the hash of the token is not on the record")
	}
	search("the log", []byte(r.Log.String()))
	r.Stop()
	err = filepath.Walk(r.Config.DataDir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		search(path, text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
