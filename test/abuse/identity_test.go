package abuse

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"maps"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/certs/xtest"
	reqproof "github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/test/rig"
)

// challenge makes the cheapest call over a connection of its own that shows svid.
func challenge(t *testing.T, r *rig.Rig, cfg *tls.Config) error {
	t.Helper()
	conn := r.Dial(cfg)
	defer conn.Close()
	_, err := bullav1.NewBrokerClient(conn).Challenge(t.Context(), &bullav1.ChallengeRequest{})
	return err
}

// The certificates of this test are signed by the authority itself: only what they say is wrong.
func TestAbuse_A01_spelled_spiffe_ids(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	ca := r.CA()
	good := "spiffe://" + rig.TrustDomain + "/workload"
	if err := challenge(t, r, r.Showing(spelled(t, ca, good))); err != nil {
		t.Fatalf("in good order: %v", err)
	}
	before := mark(r)
	for _, id := range []string{
		"spiffe://dev.bulla.test/../workload", "spiffe://dev.bulla.test/stranger/../workload", "spiffe://dev.bulla.test/./workload",
		"spiffe://dev.bulla.test//workload", "spiffe://dev.bulla.test/workload/", "spiffe://dev.bulla.test/", "spiffe://dev.bulla.test",
		"spiffe://dev.bulla.test/%2e%2e/workload", "spiffe://dev.bulla.test/stranger/%2E%2E/workload", "spiffe://dev.bulla.test/%77orkload",
		"spiffe://dev.bulla.test/stranger%2f..%2fworkload", "spiffe://dev.bulla.test%2fworkload", "spiffe://dev.bulla.test/%252e/workload",
		"spiffe://DEV.bulla.test/workload", "spiffe://dev.BULLA.test/workload", "SPIFFE://dev.bulla.test/workload", "Spiffe://dev.bulla.test/workload",
		"spiffe://dev.bulla.test:443/workload", "spiffe://root@dev.bulla.test/workload", "spiffe://dev.bulla.test./workload",
		"spiffe://dev.bulla.test/workload?", "spiffe://dev.bulla.test/workload?x=y", "spiffe://dev.bulla.test/workload#", "spiffe://dev.bulla.test/workload#x",
		"spiffe://dev.bulla.test/workload ", " spiffe://dev.bulla.test/workload", "spiffe://dev.bulla.test/work\x00load", "spiffe://dev.bulla.test/workload\n",
		"spiffe:/dev.bulla.test/workload", "spiffe:dev.bulla.test/workload", "https://dev.bulla.test/workload", "spiffe://dev.bulla.test/w*",
		"spiffe://dev.bulla.test\\workload", "spiffe://dev.bulla.test/" + strings.Repeat("a", 2100),
	} {
		err := challenge(t, r, r.Showing(spelled(t, ca, id)))
		if status.Code(err) != codes.Unavailable || rig.Refusal(err) != nil {
			t.Errorf("%q: %v; want a refusal by TLS", id, err)
		}
	}
	if seen := after(r, before); len(seen) != 0 {
		t.Errorf("%d events; the refusals come before anything is decided", len(seen))
	}
}

// spelled is an SVID with an ID that the standard library might not even parse.
func spelled(t *testing.T, ca *xtest.CA, id string) *x509svid.SVID {
	t.Helper()
	key := xtest.NewKey(t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
		URIs: []*url.URL{{Opaque: id}}, // Opaque goes out byte for byte
	}, ca.Certificate, key.Public(), ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	return &x509svid.SVID{Certificates: []*x509.Certificate{{Raw: der}}, PrivateKey: key}
}

// Every method that the server has, found from the server itself, without a certificate and with those of
// strangers. All are refused by TLS, so no handler runs, and there is no event.
func TestAbuse_A04_calls_without_an_identity(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	foreign := xtest.NewCA(t, "foreign.test")
	namesake := xtest.NewCA(t, rig.TrustDomain)
	self := xtest.NewKey(t)
	selfCA := &xtest.CA{TrustDomain: namesake.TrustDomain, Certificate: &x509.Certificate{Subject: pkix.Name{CommonName: "self"}}, Key: self}
	id := rig.ID("operator").String()
	services := r.Server.Broker.GRPC().GetServiceInfo()
	if len(services) < 7 {
		t.Fatalf("%d services: the list of them is not complete", len(services))
	}
	good := r.Reach(r.Showing(r.CA().Issue(t, xtest.Leaf{ID: id})))
	reached := 0
	each := func(conn *grpc.ClientConn, answered func(method string, err error)) {
		for _, name := range slices.Sorted(maps.Keys(services)) {
			for _, m := range services[name].Methods {
				answered("/"+name+"/"+m.Name, invoke(t, conn, "/"+name+"/"+m.Name, m))
			}
		}
	}
	each(good, func(method string, err error) {
		if status.Code(err) == codes.Unavailable {
			t.Errorf("in good order: %s: %v", method, err)
		}
		reached++
	})
	if reached < 20 {
		t.Fatalf("%d methods: the list of them is not complete", reached)
	}
	before := mark(r)
	for what, cfg := range map[string]*tls.Config{
		"no certificate":                          r.Showing(nil),
		"a foreign trust domain":                  r.Showing(foreign.Issue(t, xtest.Leaf{ID: "spiffe://foreign.test/operator"})),
		"our name, signed by a foreign authority": r.Showing(foreign.Issue(t, xtest.Leaf{ID: id})),
		"an authority of our name":                r.Showing(namesake.Issue(t, xtest.Leaf{ID: id})),
		"self-signed":                             r.Showing(selfCA.Issue(t, xtest.Leaf{ID: id, Key: self})),
		"TLS 1.2":                                 only12(r.Showing(r.CA().Issue(t, xtest.Leaf{ID: id}))),
	} {
		each(r.Dial(cfg), func(method string, err error) {
			if status.Code(err) != codes.Unavailable || rig.Refusal(err) != nil {
				t.Errorf("%s: %s: %v; want a refusal by TLS", what, method, err)
			}
		})
	}
	bare, err := grpc.NewClient("passthrough:///"+r.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	each(bare, func(method string, err error) {
		if status.Code(err) != codes.Unavailable {
			t.Errorf("without TLS: %s: %v", method, err)
		}
	})
	if seen := after(r, before); len(seen) != 0 {
		t.Errorf("%d events of callers without an identity", len(seen))
	}
}

func only12(cfg *tls.Config) *tls.Config {
	cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	return cfg
}

// invoke calls a method with an empty message and returns how that ended.
func invoke(t *testing.T, conn *grpc.ClientConn, method string, m grpc.MethodInfo) error {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if !m.IsServerStream {
		return conn.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{})
	}
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return err
	}
	if err := s.SendMsg(&emptypb.Empty{}); err != nil {
		return s.RecvMsg(&emptypb.Empty{})
	}
	_ = s.CloseSend()
	err = s.RecvMsg(&emptypb.Empty{})
	if err != nil && status.Code(err) == codes.Unknown {
		return nil // the end of the stream
	}
	return err
}

// The forgers of this test hold real keys: that of a workload's SVID, and for the malformed ones the authority
// itself signs.
func TestAbuse_A05_forged_certificates(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	ca, operator := r.CA(), rig.ID("operator").String()
	svid, err := r.Source("workload").GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	key := svid.PrivateKey.(*ecdsa.PrivateKey)
	leafSigner := &xtest.CA{TrustDomain: ca.TrustDomain, Certificate: svid.Certificates[0], Key: key}
	byLeaf := leafSigner.Issue(t, xtest.Leaf{ID: operator})
	byLeaf.Certificates = append(byLeaf.Certificates, svid.Certificates[0])
	selfSigner := &xtest.CA{TrustDomain: ca.TrustDomain, Certificate: &x509.Certificate{Subject: pkix.Name{CommonName: "operator"}}, Key: key}
	other := ca.Issue(t, xtest.Leaf{ID: operator})
	mayBeCA := func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage = true, x509.KeyUsageDigitalSignature|x509.KeyUsageCertSign
	}
	saysCA := func(c *x509.Certificate) { c.IsCA = true }
	signs := func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }
	before := mark(r)
	for what, forged := range map[string]*x509svid.SVID{
		"two URIs":                          ca.Issue(t, xtest.Leaf{URIs: []string{rig.ID("workload").String(), operator}}),
		"two URIs, the other first":         ca.Issue(t, xtest.Leaf{URIs: []string{operator, rig.ID("workload").String()}}),
		"a URI besides the SPIFFE ID":       ca.Issue(t, xtest.Leaf{URIs: []string{operator, "https://example.org"}}),
		"no URI, the ID as common name":     ca.Issue(t, xtest.Leaf{Change: func(c *x509.Certificate) { c.Subject.CommonName = operator }}),
		"no URI, the ID as DNS name":        ca.Issue(t, xtest.Leaf{Change: func(c *x509.Certificate) { c.DNSNames = []string{operator} }}),
		"an authority's certificate":        ca.Issue(t, xtest.Leaf{ID: operator, Change: mayBeCA}),
		"an authority's, for signatures":    ca.Issue(t, xtest.Leaf{ID: operator, Change: saysCA}),
		"a leaf that may sign certificates": ca.Issue(t, xtest.Leaf{ID: operator, Change: signs}),
		"the root itself":                   {Certificates: []*x509.Certificate{ca.Certificate}, PrivateKey: ca.Key},
		"a leaf as signer":                  byLeaf,
		"the same key, signed by itself":    selfSigner.Issue(t, xtest.Leaf{ID: operator, Key: key}),
		"another's certificate, own key":    {Certificates: other.Certificates, PrivateKey: key},
		"its own leaf behind another's":     {Certificates: append(slices.Clone(other.Certificates), svid.Certificates[0]), PrivateKey: key},
		"expired":                           ca.Issue(t, xtest.Leaf{ID: operator, From: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(-time.Second)}),
		"not valid yet":                     ca.Issue(t, xtest.Leaf{ID: operator, From: time.Now().Add(time.Minute)}),
	} {
		err := challenge(t, r, r.Showing(forged))
		if status.Code(err) != codes.Unavailable || rig.Refusal(err) != nil {
			t.Errorf("%s: %v; want a refusal by TLS", what, err)
		}
	}
	if seen := after(r, before); len(seen) != 0 {
		t.Errorf("%d events of forged certificates", len(seen))
	}
	// A good certificate of the workload's that has other names in it: nobody but the workload.
	disguised := ca.Issue(t, xtest.Leaf{ID: rig.ID("workload").String(), Change: func(c *x509.Certificate) {
		c.Subject, c.DNSNames = pkix.Name{CommonName: operator, Organization: []string{"operator"}}, []string{"operator"}
	}})
	conn := r.Reach(r.Showing(disguised))
	_, err = bullav1.NewSecretsClient(conn).ListSecrets(t.Context(), &bullav1.ListSecretsRequest{})
	wantCode(t, "a workload with the operator's common name", err, codes.PermissionDenied, "policy")
	w := r.RawSVID(disguised, xtest.NewKey(t))
	if _, _, err := w.Deliver(t.Context(), "demo/a"); err != nil {
		t.Errorf("the same as what it is: %v", err)
	}
}

// JWT-SVIDs and OIDC tokens are no factors on the wire yet. So a bearer token must have no effect at all, whoever
// it belongs to; how strictly one is read is shown where that is done, in package certs, with the authority's own
// key.
func TestAbuse_A07_bearer_tokens(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	src := r.Source("workload")
	token, err := src.FetchJWTSVID(t.Context(), rig.ID("bulla/broker").String())
	if err != nil {
		t.Fatal(err)
	}
	bearer := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token.Marshal(), "x-jwt-svid", token.Marshal(), "cookie", token.Marshal())
	t.Run("another's token", func(t *testing.T) {
		_, _, err := r.Raw("stranger").Deliver(bearer, "demo/a")
		wantCode(t, "stranger with workload's token", err, codes.PermissionDenied, "policy")
		_, err = bullav1.NewSecretsClient(r.Raw("stranger").Conn).ListSecrets(bearer, &bullav1.ListSecretsRequest{})
		wantCode(t, "a list with workload's token", err, codes.PermissionDenied, "policy")
	})
	t.Run("a token alone", func(t *testing.T) {
		w := r.Raw("workload")
		ask, _ := w.Ask("demo/a")
		req := w.Sign(bullav1.Broker_Deliver_FullMethodName, ask)
		req.Proof.Signature = nil
		_, err := w.Broker.Deliver(bearer, req)
		wantCode(t, "no signature, but a token", err, codes.Unauthenticated, "proof")
		_, err = w.Broker.Deliver(bearer, &bullav1.SignedRequest{Payload: req.Payload})
		wantCode(t, "no proof, but a token", err, codes.Unauthenticated, "nonce")
		err = challenge(t, r, r.Showing(nil))
		if status.Code(err) != codes.Unavailable {
			t.Errorf("no certificate, but a token: %v", err)
		}
	})
	t.Run("nothing of it is kept", func(t *testing.T) {
		for _, e := range r.Events() {
			text, err := e.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(text), token.Marshal()[:40]) {
				t.Errorf("%s holds a bearer token", e.Body.EventType())
			}
		}
		if strings.Contains(r.Log.String(), token.Marshal()[:40]) {
			t.Error("the log holds a bearer token")
		}
	})
	t.Run("how tokens are read", func(t *testing.T) { tokenForms(t, r, src) })
}

// A federated trust domain has a principal at the same path as one of ours.
func TestAbuse_A45_same_path_elsewhere(t *testing.T) {
	t.Parallel()
	partner := xtest.NewCA(t, "partner.test")
	r := rig.Start(t, rig.Config{Edit: func(c *config.Config) { c.SPIFFE.TrustDomains = []string{"partner.test"} }})
	r.Put("demo/a", "standard", "a")
	if err := r.Authority.AddFederatedBundle(spiffebundle.FromX509Authorities(partner.TrustDomain, partner.Bundle().X509Authorities())); err != nil {
		t.Fatal(err)
	}
	own := r.Raw("workload")
	delivered, _ := opened(t, own, "demo/a")
	there := r.RawSVID(partner.Issue(t, xtest.Leaf{ID: "spiffe://partner.test/workload"}), own.Key)
	_, _, err := there.Deliver(t.Context(), "demo/a")
	wantCode(t, "the same path in another trust domain", err, codes.PermissionDenied, "policy")
	if text := status.Convert(err).Message(); text != "denied" {
		t.Errorf("it was told %q", text)
	}
	_, err = sessionStatus(t, there, delivered.GetSessionId())
	wantCode(t, "its session with the same instance key", err, codes.NotFound, "session")
	for _, name := range []string{"operator", "security", "auditor"} {
		conn := r.Reach(r.Showing(partner.Issue(t, xtest.Leaf{ID: "spiffe://partner.test/" + name})))
		_, err := bullav1.NewSessionsClient(conn).ListSessions(t.Context(), &bullav1.ListSessionsRequest{})
		wantCode(t, name+" of another trust domain", err, codes.PermissionDenied, "policy")
	}
	err = challenge(t, r, r.Showing(partner.Issue(t, xtest.Leaf{ID: rig.ID("workload").String()})))
	if status.Code(err) != codes.Unavailable {
		t.Errorf("our workload, signed by the partner: %v; want a refusal by TLS", err)
	}
}

// What a peer says of itself in metadata or in front of TLS changes nothing that is recorded or decided.
func TestAbuse_A45_claimed_origin(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	before := mark(r)
	claims := metadata.AppendToOutgoingContext(t.Context(), "x-forwarded-for", "203.0.113.9", "forwarded", "for=203.0.113.9",
		"x-real-ip", "203.0.113.9", "x-spiffe-id", rig.ID("workload").String(), "principal", rig.ID("workload").String(),
		"x-forwarded-client-cert", "URI="+rig.ID("workload").String(), "level", "HIGH_ASSURANCE", "trust_domain", "partner.test")
	_, _, err := r.Raw("stranger").Deliver(claims, "demo/a")
	wantCode(t, "claims in metadata", err, codes.PermissionDenied, "policy")
	var found bool
	for _, e := range after(r, before) {
		denied, ok := e.Body.(event.DecisionDenied)
		if !ok {
			continue
		}
		found = true
		s, err := policy.ParseSignals(denied.Decision.Signals)
		if err != nil {
			t.Fatal(err)
		}
		host, _, _ := net.SplitHostPort(s.Network.Peer)
		if host != "127.0.0.1" || s.Principal.ID != rig.ID("stranger").String() || s.Principal.Level != policy.LevelBasic || s.Principal.TrustDomain != rig.TrustDomain {
			t.Errorf("recorded peer %s, principal %+v", s.Network.Peer, s.Principal)
		}
	}
	if !found {
		t.Error("the denial was not recorded")
	}
	for _, header := range []string{"PROXY TCP4 203.0.113.9 127.0.0.1 4444 443\r\n", "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xcb\x00\x71\x09\x7f\x00\x00\x01\x11\x5c\x01\xbb"} {
		raw, err := net.Dial("tcp", r.Addr())
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := raw.Write([]byte(header)); err != nil {
			t.Fatal(err)
		}
		cfg := certs.ClientTLS(r.Source("workload"), rig.ID("bulla/broker"))
		if err := tls.Client(raw, cfg).HandshakeContext(t.Context()); err == nil {
			t.Errorf("a connection with a PROXY header (%q) was taken", header[:5])
		}
		_ = raw.Close()
	}
	c := r.Config
	c.Proxies = []string{"127.0.0.1"}
	if err := c.Validate(); err == nil {
		t.Error("a configuration with proxies was taken, though their headers are not read")
	}
}

// TestAbuse_A06: a session belongs to the instance key that it was delivered to.
func TestAbuse_A06_session_of_another_instance(t *testing.T) {
	t.Parallel()
	r := rig.Start(t, rig.Config{})
	r.Put("demo/a", "standard", "a")
	owner := r.Raw("workload")
	delivered, envelope := opened(t, owner, "demo/a")
	id := delivered.GetSessionId()
	good := receipt(t, owner, envelope)
	stolen, err := reqproof.GenerateInstanceKey()
	if err != nil {
		t.Fatal(err)
	}
	for what, thief := range map[string]*rig.Raw{
		"a sibling replica":                     r.Raw("workload"),
		"another principal":                     r.Raw("stranger"),
		"another principal with a grantee role": r.Raw("operator"),
		"a sibling with a fresh key":            r.RawWith("workload", stolen),
	} {
		before := mark(r)
		calls := map[string]func() error{
			"receipt": func() error { _, err := acknowledge(t, thief, good); return err },
			"close": func() error {
				_, err := acknowledge(t, thief, &bullav1.AcknowledgeRequest{SessionId: id, Close: true})
				return err
			},
			"status": func() error { _, err := sessionStatus(t, thief, id); return err },
		}
		for call, do := range calls {
			wantCode(t, what+": "+call, do(), codes.NotFound, "session")
		}
		refused := 0
		for _, e := range after(r, before) {
			if b, ok := e.Body.(event.RequestRefused); ok && b.Check == "session" && b.Target == id && b.Principal == thief.ID && b.Instance == thief.Name {
				refused++
			}
		}
		if refused != len(calls) {
			t.Errorf("%s: %d refusals recorded, want %d", what, refused, len(calls))
		}
	}
	retryByAnotherKey(t, r, owner)
	// The owner's key under a name that is not its own, and a signature by another key under the owner's.
	forger := r.Raw("workload")
	forger.Challenge(nil)
	req := forger.Sign(bullav1.Broker_Acknowledge_FullMethodName, good)
	req.Proof.Instance = owner.Name
	_, err = forger.Broker.Acknowledge(t.Context(), req)
	wantCode(t, "a key that this connection never bound", err, codes.Unauthenticated, "instance")
	owner.Challenge(nil)
	req = owner.Sign(bullav1.Broker_Acknowledge_FullMethodName, good)
	req.Proof.Signature, err = reqproof.SignRequest(stolen, reqproof.Request{Method: bullav1.Broker_Acknowledge_FullMethodName, Nonce: owner.Nonce, Exporter: owner.Exporter, RequestID: req.Proof.RequestId})
	if err != nil {
		t.Fatal(err)
	}
	_, err = owner.Broker.Acknowledge(t.Context(), req)
	wantCode(t, "another key's signature", err, codes.Unauthenticated, "proof")
	if state, err := sessionStatus(t, owner, id); err != nil || state.GetState() != "issued" {
		t.Fatalf("afterwards the owner's session is %v, %v; want issued", state, err)
	}
	rotated(t, r, owner, good)
}

// retryByAnotherKey sends the same request id again, by a sibling and with another question.
func retryByAnotherKey(t *testing.T, r *rig.Rig, owner *rig.Raw) {
	t.Helper()
	owner.Challenge(nil)
	ask, _ := owner.Ask("demo/a")
	req := owner.Sign(bullav1.Broker_Deliver_FullMethodName, ask)
	first, err := owner.Broker.Deliver(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	rid := req.GetProof().GetRequestId()
	owner.Challenge(nil)
	again, err := owner.Broker.Deliver(t.Context(), owner.SignAs(bullav1.Broker_Deliver_FullMethodName, rid, ask))
	if err != nil || string(again.GetEnvelope()) != string(first.GetEnvelope()) {
		t.Errorf("its own retry: %v; want the same envelope", err)
	}
	sibling := r.Raw("workload")
	_, err = sibling.Broker.Deliver(t.Context(), sibling.SignAs(bullav1.Broker_Deliver_FullMethodName, rid, ask))
	wantCode(t, "a retry by a sibling", err, codes.FailedPrecondition, "request")
	other, _ := owner.Ask("demo/a")
	owner.Challenge(nil)
	_, err = owner.Broker.Deliver(t.Context(), owner.SignAs(bullav1.Broker_Deliver_FullMethodName, rid, other))
	wantCode(t, "a retry with another recipient key", err, codes.FailedPrecondition, "request")
}

// rotated shows that a rotated SVID with the same instance key goes on with the session.
func rotated(t *testing.T, r *rig.Rig, owner *rig.Raw, good *bullav1.AcknowledgeRequest) {
	t.Helper()
	old := r.Authority.Authorities()[0].ID
	if _, err := r.Authority.RotateAuthority(); err != nil {
		t.Fatal(err)
	}
	if err := r.Authority.TaintAuthority(old); err != nil {
		t.Fatal(err)
	}
	svid, err := r.Source("workload").GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if svid.Certificates[0].Equal(owner.Leaf) {
		t.Fatal("the SVID was not rotated")
	}
	renewed := r.RawSVID(svid, owner.Key)
	reply, err := acknowledge(t, renewed, good)
	if err != nil || reply.GetState() != "confirmed" {
		t.Errorf("the same instance with a rotated SVID: %v, %v; want confirmed", reply, err)
	}
}
