package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/maxmind/mmdbwriter/mmdbtype"

	"github.com/bulla-project/bulla/place/xtest"
	"github.com/bulla-project/bulla/test/rig"
)

// TestPlace is the way of an operator who binds a class of secrets to a country: a database, a load balancer, a
// policy, and what each of them says when it is wrong.
func TestPlace(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	config, database := s.path("server.yaml"), s.path("places.mmdb")
	classes := s.path("policy", "data", "classes.yaml")
	write(t, classes, read(t, classes)+`
bound:
  sensitivity: 1
  levels: [BASIC, ENHANCED, HIGH_ASSURANCE]
  max_risk: 100
  attestation: {required: false}
  obligations:
    time_bound: {ttl_seconds: 3600, grade: gated}
    geo_restriction: {countries: [DE], grade: gated}
`, 0o600)
	with := func(proxies string) string {
		return serverConfig + "place: {mmdb: places.mmdb}\nprincipal_types: {/shop: USER}\nproxies: [" + proxies + "]\n"
	}
	write(t, config, with("127.0.0.2"), 0o600)
	run(t, nil, "server", "init", "--config", config).want(t, wrongUsage).says(t, "proxies", "127.0.0.2", "CIDR")
	write(t, config, with("127.0.0.2/32"), 0o600)
	run(t, nil, "server", "init", "--config", config).want(t, done)
	run(t, nil, "server", "run", "--config", config).want(t, wrongUsage).says(t, "place.mmdb", "places.mmdb", "no such file")
	xtest.Write(t, database, xtest.Bytes(t, map[string]mmdbtype.DataType{"127.0.0.1/32": xtest.Flat("DE"), "192.0.2.0/24": xtest.Flat("AU")}))

	b := serve(t, config)
	operator := s.as(t, "bulla/operator", b.addr)
	command{stdin: []byte("for the shop"), args: append(operator, "secret", "put", "shop/db", "--class", "bound")}.bulla(t).want(t, done)
	got := run(t, nil, append(s.as(t, "shop/api", b.addr), "get", "shop/db", "-o", "json")...).want(t, done).object(t, deliveredShape())
	factors := map[string]any{}
	for _, f := range got["risk"].(map[string]any)["factors"].([]any) {
		factors[f.(map[string]any)["name"].(string)] = f.(map[string]any)["points"]
	}
	if factors["new_country"] != json.Number("5") || factors["geo_velocity"] != json.Number("0") {
		t.Errorf("the factors are %v", factors)
	}
	far := rig.Balance(t, "127.0.0.2", b.addr, rig.Header("192.0.2.7:4711", b.addr).Append(nil))
	run(t, nil, append(s.as(t, "shop/api", far), "get", "shop/db")...).want(t, denied).says(t, "this connection comes from AU")
	forged := rig.Balance(t, "127.0.0.1", b.addr, rig.Header("127.0.0.1:4711", b.addr).Append(nil))
	run(t, nil, append(s.as(t, "shop/api", forged), "get", "shop/db", "--timeout", "2s")...).want(t, unavailable)

	doctor := func() string { return run(t, nil, append(operator, "doctor")...).stdout }
	if out := doctor(); !strings.Contains(out, "Bulla-Test, built 2026-07-01") || !strings.Contains(out, "demanded, from 127.0.0.2/32") {
		t.Errorf("doctor says:\n%s", out)
	}
	xtest.Write(t, database, []byte("broken"))
	until(t, "doctor tells of the broken database", func() bool { return strings.Contains(doctor(), "database of places refused") })
	if out := doctor(); !strings.Contains(out, "in use until then: Bulla-Test, built 2026-07-01") {
		t.Errorf("doctor says:\n%s", out)
	}
	run(t, nil, append(s.as(t, "shop/api", b.addr), "get", "shop/db")...).want(t, done)
	run(t, nil, "server", "healthcheck", "--addr", b.http).want(t, done)
	b.stop(t)
	run(t, nil, "audit", "rebuild", "--check", "--data", s.path("data"), "--kek-file", s.path("kek")).want(t, done)
}
