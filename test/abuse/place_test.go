package abuse

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter/mmdbtype"
	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/broker"
	"github.com/bulla-project/bulla/broker/config"
	"github.com/bulla-project/bulla/broker/proxy"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/place/xtest"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/secret/keys"
	"github.com/bulla-project/bulla/test/rig"
)

// Where the tests' connections come from, as their proxies announce it.
const (
	berlin  = "192.0.2.10:4711"
	paris   = "192.0.2.130:4711"
	sydney  = "198.51.100.1:4711"
	nowhere = "203.0.113.1:4711"
)

// boundClass is a class of secrets that stay in two countries.
const boundClass = `
bound:
  sensitivity: 1
  levels: [BASIC, ENHANCED, HIGH_ASSURANCE]
  max_risk: 100
  attestation: {required: false}
  obligations:
    time_bound: {ttl_seconds: 3600, grade: open}
    geo_restriction: {countries: [FR, DE], grade: open}
`

// places is the database of the tests.
func places(t *testing.T) []byte {
	return xtest.Bytes(t, map[string]mmdbtype.DataType{
		"127.0.0.1/32":    xtest.Flat("DE"),
		"192.0.2.0/25":    xtest.Nested("DE", "EU", 52.52, 13.405, 10),
		"192.0.2.128/25":  xtest.Nested("FR", "EU", 48.857, 2.352, 10),
		"198.51.100.0/24": xtest.Nested("AU", "OC", -33.869, 151.209, 10),
	})
}

// placedRig is a broker with a database of places, behind the proxies of package rig. Class "bound" is that of
// secrets which stay in DE and FR, at a grade.
func placedRig(t *testing.T, c rig.Config) (r *rig.Rig, database string) {
	t.Helper()
	database = filepath.Join(t.TempDir(), "places.mmdb")
	xtest.Write(t, database, places(t))
	c.Edit = func(c *config.Config) {
		c.Place.MMDB, c.Proxies = database, []string{rig.ProxyAddr + "/32"}
		c.PrincipalTypes = map[string]string{"/workload": "USER"}
	}
	edit := c.Policy
	c.Policy = func(files map[string]string) {
		if edit != nil {
			edit(files)
		}
		files["data/classes.yaml"] += boundClass
	}
	r = rig.Start(t, c)
	return r, database
}

// deniedFor checks that a refusal is an unmet obligation, and that it is recorded as one.
func deniedFor(t *testing.T, r *rig.Rig, what string, err error, reason string) {
	t.Helper()
	wantCode(t, what, err, codes.PermissionDenied, "grade")
	if got := strings.Join(rig.Refusal(err).GetReasons(), "; "); !strings.Contains(got, reason) {
		t.Errorf("%s: the reasons are %q, want %q", what, got, reason)
	}
	var last event.DecisionDenied
	for _, e := range r.Events() {
		if d, ok := e.Body.(event.DecisionDenied); ok {
			last = d
		}
	}
	if !strings.Contains(last.Unmet, reason) {
		t.Errorf("%s: recorded is %q", what, last.Unmet)
	}
}

// A PROXY header is believed from a configured proxy only. From anybody else it ends the connection before there
// is a caller; a proxy that sends none, or one that lies about its length, is closed as well.
func TestAbuse_A45_proxy_headers(t *testing.T) {
	t.Parallel()
	r, _ := placedRig(t, rig.Config{})
	r.Put("demo/hello", "standard", "hello")
	announced := rig.Header(berlin, r.Addr())

	// The way in good order: the announced address is what is judged and recorded.
	w := r.RawAt("workload", r.Proxy(berlin))
	if _, _, err := w.Deliver(t.Context(), "demo/hello"); err != nil {
		t.Fatal(err)
	}
	s := lastSignals(t, r)
	if s.Network.Peer != berlin || !strings.HasPrefix(s.Network.Proxy, rig.ProxyAddr+":") || s.Place == nil || s.Place.Country != "DE" {
		t.Errorf("recorded: network %+v, place %+v", s.Network, s.Place)
	}
	// Who connects directly is who the connection says.
	if _, _, err := r.Raw("workload").Deliver(t.Context(), "demo/hello"); err != nil {
		t.Fatal(err)
	}
	if s := lastSignals(t, r); !strings.HasPrefix(s.Network.Peer, "127.0.0.1:") || s.Network.Proxy != "" {
		t.Errorf("recorded: network %+v", s.Network)
	}

	many, long := announced, announced
	for range 33 {
		many.TLVs = append(many.TLVs, proxy.TLV{Type: 5})
	}
	long.TLVs = []proxy.TLV{{Type: 5, Value: make([]byte, 1100)}}
	raw := announced.Append(nil)
	lying := func(by int) []byte { b := announced.Append(nil); b[15] = byte(int(b[15]) + by); return b }
	for name, c := range map[string]struct {
		from   string
		header []byte
	}{
		"from an unconfigured peer":  {"127.0.0.1", raw},
		"from a neighbour":           {"127.0.0.3", raw},
		"none from a proxy":          {rig.ProxyAddr, nil},
		"two from a proxy":           {rig.ProxyAddr, append(announced.Append(nil), raw...)},
		"version 1":                  {rig.ProxyAddr, []byte("PROXY TCP4 192.0.2.10 10.0.0.1 4711 8443\r\n")},
		"longer than it says":        {rig.ProxyAddr, lying(-1)},
		"shorter than it says":       {rig.ProxyAddr, lying(1)},
		"far shorter than it says":   {rig.ProxyAddr, lying(200)},
		"too many extensions":        {rig.ProxyAddr, many.Append(nil)},
		"an extension that is large": {rig.ProxyAddr, long.Append(nil)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", rig.Balance(t, c.from, r.Addr(), c.header))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
			secured := tls.Client(conn, certs.ClientTLS(r.Source("workload"), rig.ID("bulla/broker")))
			if err := secured.HandshakeContext(t.Context()); err == nil {
				t.Error("the handshake succeeded")
			} else if e, ok := err.(net.Error); ok && e.Timeout() {
				t.Errorf("the connection was left open: %v", err)
			}
		})
	}
}

// lastSignals are those of the newest delivery.
func lastSignals(t *testing.T, r *rig.Rig) policy.Signals {
	t.Helper()
	var raw json.RawMessage
	for _, e := range r.Events() {
		if b, ok := e.Body.(event.SessionIssued); ok {
			raw = b.Decision.Signals
		}
	}
	s, err := policy.ParseSignals(raw)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A secret that is bound to countries is delivered to connections from there, and to no other: not from another
// country, not from an unknown place, and from nowhere at all once the broker can't tell places any more.
func TestAbuse_A45_geo_restriction(t *testing.T) {
	t.Parallel()
	r, database := placedRig(t, rig.Config{})
	r.Put("demo/bound", "bound", "s3cret")
	in := r.RawAt("workload", r.Proxy(berlin))
	if _, _, err := in.Deliver(t.Context(), "demo/bound"); err != nil {
		t.Fatal(err)
	}
	if s := get(t, r.Client("workload"), "demo/bound", "s3cret"); strings.Join(s.Places, " ") != "DE FR" {
		t.Errorf("the envelope is bound to %q", s.Places)
	}
	if _, _, err := r.RawAt("workload", r.Proxy(paris)).Deliver(t.Context(), "demo/bound"); err != nil {
		t.Fatal(err)
	}
	_, _, err := r.RawAt("workload", r.Proxy(sydney)).Deliver(t.Context(), "demo/bound")
	deniedFor(t, r, "from another country", err, "this connection comes from AU")
	_, _, err = r.RawAt("workload", r.Proxy(nowhere)).Deliver(t.Context(), "demo/bound")
	deniedFor(t, r, "from an unknown place", err, "not known")

	// The same request again, from elsewhere, is a new question: the answer of before is not given out.
	in.Challenge(nil)
	ask, _ := in.Ask("demo/bound")
	id := requestID()
	if _, err := in.Broker.Deliver(t.Context(), in.SignAs(bullav1.Broker_Deliver_FullMethodName, id, ask)); err != nil {
		t.Fatal(err)
	}
	out := r.RawWithAt("workload", in.Key, r.Proxy(sydney))
	_, err = out.Broker.Deliver(t.Context(), out.SignAs(bullav1.Broker_Deliver_FullMethodName, id, ask))
	deniedFor(t, r, "a retry from another country", err, "AU")

	// A new database counts from the next call on; a broken one does not.
	xtest.Write(t, database, []byte("broken"))
	eventually(t, "the doctor tells", func() bool { return !placeCheck(t, r).GetOk() })
	if _, _, err := in.Deliver(t.Context(), "demo/bound"); err != nil {
		t.Errorf("with the database of before: %v", err)
	}
	xtest.Write(t, database, xtest.Bytes(t, map[string]mmdbtype.DataType{"192.0.2.0/24": xtest.Flat("CH")}))
	eventually(t, "the new database is in use", func() bool { return placeCheck(t, r).GetOk() })
	_, _, err = in.Deliver(t.Context(), "demo/bound")
	deniedFor(t, r, "with a new database", err, "CH")
	r.Check()

	r.Stop()
	r.Config.Place.MMDB = ""
	r.Run()
	_, _, err = r.RawAt("workload", r.Proxy(berlin)).Deliver(t.Context(), "demo/bound")
	deniedFor(t, r, "without a database", err, "no database of places")
}

// placeCheck is what `bulla doctor` is told about places.
func placeCheck(t *testing.T, r *rig.Rig) *bullav1.DoctorCheck {
	t.Helper()
	reply, err := bullav1.NewAuditClient(r.Client("operator").Conn()).Doctor(t.Context(), &bullav1.DoctorRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range reply.GetChecks() {
		if c.GetName() == "place" {
			return c
		}
	}
	t.Fatal("the doctor says nothing about places")
	return nil
}

// A gated session that is bound to countries is used from there only: the same instance, with the same session, gets
// no share over a connection from elsewhere, and what it tried costs it nothing.
func TestAbuse_A45_gated_use_from_elsewhere(t *testing.T) {
	t.Parallel()
	r, _ := placedRig(t, rig.Config{})
	r.Put("demo/bound", "bound", "s3cret")
	in := r.RawAt("workload", r.Proxy(berlin))
	s := deliverGated(t, in, "demo/bound", "s3cret", 3)
	first := requestID()
	reply, err := s.use(t, in, first, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.opens(1, reply); err != nil {
		t.Error(err)
	}
	_, err = s.use(t, r.RawWithAt("workload", in.Key, r.Proxy(sydney)), first, 1)
	deniedFor(t, r, "the use of before, again from elsewhere", err, "AU")
	for source, reason := range map[string]string{sydney: "AU", nowhere: "not known"} {
		_, err = s.use(t, r.RawWithAt("workload", in.Key, r.Proxy(source)), requestID(), 2)
		deniedFor(t, r, "a use from "+source, err, reason)
	}
	// A policy that demands no place any more does not loosen the envelope's word.
	laxer := r.Archive(func(files map[string]string) {
		files["data/classes.yaml"] += strings.Replace(boundClass, "    geo_restriction: {countries: [FR, DE], grade: open}\n", "", 1)
	})
	if _, err := bullav1.NewPoliciesClient(r.Client("security").Conn()).PushRevision(t.Context(), &bullav1.PushRevisionRequest{Archive: laxer}); err != nil {
		t.Fatal(err)
	}
	_, err = s.use(t, r.RawWithAt("workload", in.Key, r.Proxy(sydney)), requestID(), 2)
	deniedFor(t, r, "a use under a laxer policy", err, "AU")
	reply, err = s.use(t, r.RawWithAt("workload", in.Key, r.Proxy(paris)), requestID(), 2)
	if err != nil || reply.GetUsesLeft() != 1 {
		t.Errorf("a use from another allowed country: %v, %d left", err, reply.GetUsesLeft())
	}
	r.Check()
}

// The same holds for operations with a key that stays at the broker: they are done for who comes from where the session
// is bound to, and an answer of before is not given to elsewhere.
func TestAbuse_A45_operation_from_elsewhere(t *testing.T) {
	t.Parallel()
	r, _ := placedRig(t, rig.Config{})
	r.Generate("demo/signer", "bound", "ecdsa-p256")
	in := r.RawAt("workload", r.Proxy(berlin))
	s := deliverProxied(t, in, "demo/signer", 3)
	first, ask := requestID(), s.ask(keys.Sign, []byte("a text"))
	if _, err := s.send(t, in, first, ask); err != nil {
		t.Fatal(err)
	}
	for source, reason := range map[string]string{sydney: "AU", nowhere: "not known"} {
		out := r.RawWithAt("workload", in.Key, r.Proxy(source))
		_, err := s.send(t, out, requestID(), s.ask(keys.Sign, []byte("another")))
		deniedFor(t, r, "an operation from "+source, err, reason)
		_, err = s.send(t, out, first, ask)
		deniedFor(t, r, "the operation of before, from "+source, err, reason)
	}
	reply, err := s.send(t, r.RawWithAt("workload", in.Key, r.Proxy(paris)), first, ask)
	if err != nil || reply.GetUsesLeft() != 2 {
		t.Errorf("the operation of before, from another allowed country: %v, %d left", err, reply.GetUsesLeft())
	}
	r.Check()
}

// The limit of connections per address counts the announced addresses, not the proxy's.
func TestAbuse_A45_limits_by_announced_address(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := limited(t, inner, 2)
	connect := func(source string) (closed bool) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(rig.ProxyAddr)}}
		c, err := d.Dial("tcp", l)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := c.Write(rig.Header(source, l).Append(nil)); err != nil {
			t.Fatal(err)
		}
		n, _ := c.Read(make([]byte, 1))
		return n == 0
	}
	for i, c := range []struct {
		source string
		closed bool
	}{{berlin, false}, {"192.0.2.10:1", false}, {"192.0.2.10:2", true}, {"[::ffff:192.0.2.10]:3", true}, {paris, false}, {sydney, false}} {
		if got := connect(c.source); got != c.closed {
			t.Errorf("connection %d from %s: closed %t, want %t", i, c.source, got, c.closed)
		}
	}
}

// What a USER does from a place that it can't have reached costs points; what is refused leaves the place of before,
// so that a second try from there is no better; and a restart forgets nothing of it.
func TestAbuse_A45_travel(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	c := rig.Config{SVIDTTL: 48 * time.Hour, Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }}
	c.Policy = func(files map[string]string) { // at most what a known user pays who did not travel
		files["data/grants.yaml"] += "spiffe://dev.bulla.test/batch: {read: {demo/: true}, devices: []}\n"
		files["data/classes.yaml"] = strings.Replace(files["data/classes.yaml"], "standard:", "near:\n  sensitivity: 1\n  levels: [BASIC]\n  max_risk: 69\n  attestation: {required: false}\n  obligations:\n    time_bound: {ttl_seconds: 600, grade: open}\n    geo_restriction: {countries: [DE], grade: open}\nstandard:", 1)
	}
	r, _ := placedRig(t, c)
	r.Put("demo/near", "near", "s3cret")
	r.Put("demo/hello", "bound", "s3cret")
	factors := func(reply *bullav1.DeliverReply, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		out := ""
		for _, f := range reply.GetRisk().GetFactors() {
			if f.GetName() == "new_country" || f.GetName() == "geo_velocity" {
				out += fmt.Sprintf("%s=%s/%d ", f.GetName(), f.GetValue(), f.GetPoints())
			}
		}
		return out
	}
	deliver := func(source, name string) (*bullav1.DeliverReply, error) {
		reply, _, err := r.RawAt("workload", r.Proxy(source)).Deliver(t.Context(), name)
		return reply, err
	}
	if got := factors(deliver(berlin, "demo/near")); got != "new_country=new/5 geo_velocity=0/0 " {
		t.Errorf("for the first time: %s", got)
	}
	if got := factors(deliver(berlin, "demo/near")); got != "new_country=known/0 geo_velocity=0/0 " {
		t.Errorf("again: %s", got)
	}
	// The answer to a request that was permitted is given again, but not to where the secret is not bound to.
	w := r.RawAt("workload", r.Proxy(berlin))
	ask, _ := w.Ask("demo/near")
	id := requestID()
	if _, err := w.Broker.Deliver(t.Context(), w.SignAs(bullav1.Broker_Deliver_FullMethodName, id, ask)); err != nil {
		t.Fatal(err)
	}
	out := r.RawWithAt("workload", w.Key, r.Proxy(sydney))
	_, err := out.Broker.Deliver(t.Context(), out.SignAs(bullav1.Broker_Deliver_FullMethodName, id, ask))
	wantCode(t, "a retry from the other side of the Earth", err, codes.PermissionDenied, "policy")
	w.Challenge(nil)
	if _, err := w.Broker.Deliver(t.Context(), w.SignAs(bullav1.Broker_Deliver_FullMethodName, id, ask)); err != nil {
		t.Errorf("a retry from the same place: %v", err)
	}
	for range 3 {
		if _, err := deliver(sydney, "demo/near"); rig.Refusal(err).GetCheck() != "policy" {
			t.Fatalf("from the other side of the Earth: %v", err)
		}
	}
	r.Stop()
	r.Run()
	if _, err := deliver(sydney, "demo/near"); rig.Refusal(err).GetCheck() != "policy" {
		t.Fatalf("after a restart: %v", err)
	}
	ahead.Store(int64(24 * time.Hour)) // which an airliner makes
	if got := factors(deliver(paris, "demo/hello")); got != "new_country=new/5 geo_velocity=35/0 " && !strings.HasPrefix(got, "new_country=new/5 geo_velocity=3") {
		t.Errorf("after a day: %s", got)
	}
	// A service that shows no device is not judged by its place.
	for _, source := range []string{berlin, sydney} {
		reply, _, err := r.RawAt("batch", r.Proxy(source)).Deliver(t.Context(), "demo/hello")
		if source == sydney {
			deniedFor(t, r, "from another country", err, "AU")
		} else if got := factors(reply, err); got != "new_country=not_assessed/0 geo_velocity=not_assessed/0 " {
			t.Errorf("a service: %s", got)
		}
	}
}

// limited accepts behind a proxy, at most so many connections of one address, and sends each a byte.
func limited(t *testing.T, inner net.Listener, perAddress int) string {
	t.Helper()
	ranges, err := proxy.ParseProxies([]string{rig.ProxyAddr + "/32"})
	if err != nil {
		t.Fatal(err)
	}
	l := broker.Limit(proxy.Listen(inner, ranges, slog.New(slog.DiscardHandler)), 100, perAddress)
	var open sync.WaitGroup
	open.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("x"))
			t.Cleanup(func() { _ = c.Close() })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		open.Wait()
	})
	return inner.Addr().String()
}
