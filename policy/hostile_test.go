package policy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/types"

	shipped "github.com/bulla-project/bulla/rego"
)

// answer is a policy whose decision is the given term, whatever is asked.
func answer(term string) map[string]string {
	return map[string]string{
		"rego/decision.rego": "package bulla\n\nimport rego.v1\n\ndecision := " + term + "\n", "rego/decision_test.rego": "", "rego/custody_test.rego": "", "rego/second_person_test.rego": "",
	}
}

func whole(effect, obligations, requires string) string {
	return fmt.Sprintf(`{"decision": %q, "reasons": ["r"], "obligations": %s, "requires": %s, "disclose": true}`, effect, obligations, requires)
}

// TestOnlyAWellFormedPermitPermits is the rule that a decision is complete or DENY.
func TestOnlyAWellFormedPermitPermits(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Config{})
	good := whole("PERMIT", "{}", "{}")
	if d := e.Decide(t.Context(), open(t, answer(good)), request("x", ActionDoctor)); d.Effect != Permit || !d.Covered {
		t.Fatal(describe(d))
	}
	for name, term := range map[string]string{
		"text":                `"PERMIT"`,
		"true":                `true`,
		"array":               `["PERMIT"]`,
		"null":                `null`,
		"set":                 `{"PERMIT"}`,
		"empty":               `{}`,
		"lower case":          strings.Replace(good, "PERMIT", "permit", 1),
		"with a space":        strings.Replace(good, "PERMIT", "PERMIT ", 1),
		"decision as list":    strings.Replace(good, `"PERMIT"`, `["PERMIT"]`, 1),
		"unknown field":       strings.Replace(good, `"reasons"`, `"extra": 1, "reasons"`, 1),
		"field missing":       strings.Replace(good, `, "disclose": true`, "", 1),
		"field renamed":       strings.Replace(good, `"disclose"`, `"Disclose"`, 1),
		"disclose as text":    strings.Replace(good, "true", `"true"`, 1),
		"reasons as text":     strings.Replace(good, `["r"]`, `"r"`, 1),
		"reason as number":    strings.Replace(good, `["r"]`, `[1]`, 1),
		"empty reason":        strings.Replace(good, `["r"]`, `[""]`, 1),
		"long reason":         strings.Replace(good, `["r"]`, `["`+strings.Repeat("r", maxText+1)+`"]`, 1),
		"many reasons":        strings.Replace(good, `["r"]`, `["`+strings.Repeat(`r", "`, maxReasons)+`x"]`, 1),
		"obligations null":    whole("PERMIT", "null", "{}"),
		"obligations list":    whole("PERMIT", "[]", "{}"),
		"permit and require":  whole("PERMIT", "{}", `{"factor": {"level": "ENHANCED"}}`),
		"step up to nothing":  whole("STEP_UP", "{}", "{}"),
		"deny and require":    whole("DENY", "{}", `{"factor": {"level": "ENHANCED"}}`),
		"deny and obligation": whole("DENY", `{"forward_secrecy": {"grade": "open"}}`, "{}"),
		"undefined":           `"x" if input.action == "never"`,
		"undefined field":     strings.Replace(good, `["r"]`, `data.no.such.thing`, 1),
		"division by zero":    strings.Replace(good, `["r"]`, `[1 / count(input.instance) - 5]`, 1),
	} {
		d := e.Decide(t.Context(), open(t, answer(term)), request("x", ActionDoctor))
		if d.Effect != Deny || d.Covered || d.Fault == "" || d.TimedOut || d.Obligations != (Obligations{}) || !d.Requires.Empty() {
			t.Errorf("%s: %s, fault %q", name, describe(d), d.Fault)
		}
		if len(d.Risk.Factors) == 0 || len(d.Signals) == 0 || d.InputDigest == "" {
			t.Errorf("%s: the record lacks risk, signals or digest", name)
		}
	}
}

func TestConflictingRulesDeny(t *testing.T) {
	t.Parallel()
	files := answer(whole("PERMIT", "{}", "{}") + ` if input.instance == "thumb"` + "\n\ndecision := " + whole("DENY", "{}", "{}") + ` if input.now > 0`)
	d := newEngine(t, Config{}).Decide(t.Context(), open(t, files), request("x", ActionDoctor))
	if d.Effect != Deny || d.Fault == "" {
		t.Error(describe(d))
	}
}

// TestErrorUnderNegationDenies: without strict errors a builtin that fails is undefined, "not" of it holds, and
// a mistake in the policy permits.
func TestErrorUnderNegationDenies(t *testing.T) {
	t.Parallel()
	rev := open(t, answer(whole("PERMIT", "{}", "{}")+" if not bad\n\nbad if 1 / (input.now - input.now) == 1"))
	d := newEngine(t, Config{}).Decide(t.Context(), rev, request("x", ActionDoctor))
	if d.Effect != Deny || d.Fault == "" || d.TimedOut {
		t.Error(describe(d))
	}
}

func TestObligations(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Config{})
	all := `{
		"time_bound": {"ttl_seconds": 60, "grade": "open"},
		"usage_limit": {"max_uses": 3, "grade": "gated"},
		"rate_limit": {"max": 5, "window_seconds": 10, "grade": "open"},
		"forward_secrecy": {"grade": "open"},
		"quantum_resistant": {"grade": "open"},
		"receipt_required": {"within_seconds": 7, "grade": "open"},
		"geo_restriction": {"countries": ["FR", "DE"], "grade": "proxied"},
		"split_knowledge": {"threshold": 2, "holders": {"b", "a", "c"}, "grade": "leased"}}`
	d := e.Decide(t.Context(), open(t, answer(whole("PERMIT", all, "{}"))), request("x", ActionDoctor))
	const want = `"obligations":{"time_bound":{"ttl_seconds":60,"grade":"open"},"usage_limit":{"max_uses":3,"grade":"gated"},` +
		`"rate_limit":{"key":"","max":5,"window_seconds":10,"grade":"open"},"forward_secrecy":{"grade":"open"},` +
		`"quantum_resistant":{"grade":"open"},"receipt_required":{"within_seconds":7,"grade":"open"},` +
		`"geo_restriction":{"countries":["DE","FR"],"grade":"proxied"},"split_knowledge":{"threshold":2,"holders":["a","b","c"],"grade":"leased"}}`
	if d.Effect != Permit || !strings.Contains(string(d.Canonical()), want) {
		t.Errorf("%s\n%s", describe(d), d.Canonical())
	}
	for _, bad := range []string{
		`{"time_bond": {"ttl_seconds": 60, "grade": "open"}}`, `{"time_bound": {"ttl_seconds": 60}}`,
		`{"time_bound": {"grade": "open"}}`, `{"time_bound": {"ttl_seconds": 0, "grade": "open"}}`,
		`{"time_bound": {"ttl_seconds": -1, "grade": "open"}}`, `{"time_bound": {"ttl_seconds": 1.5, "grade": "open"}}`,
		`{"time_bound": {"ttl_seconds": 99999999999, "grade": "open"}}`, `{"time_bound": {"ttl_seconds": 1e3, "grade": "open"}}`,
		`{"time_bound": {"ttl_seconds": "60", "grade": "open"}}`, `{"time_bound": {"ttl_seconds": 60, "grade": "Open"}}`,
		`{"time_bound": {"ttl_seconds": 60, "grade": "open", "soft": true}}`, `{"time_bound": null}`, `{"time_bound": []}`,
		`{"usage_limit": {"max_uses": 0, "grade": "open"}}`, `{"rate_limit": {"max": 1, "grade": "open"}}`,
		`{"rate_limit": {"key": 1, "max": 1, "window_seconds": 1, "grade": "open"}}`,
		`{"geo_restriction": {"countries": [], "grade": "open"}}`, `{"geo_restriction": {"countries": ["de"], "grade": "open"}}`, `{"geo_restriction": {"countries": ["DEU"], "grade": "open"}}`, `{"geo_restriction": {"countries": ["DE", "DE"], "grade": "open"}}`,
		`{"split_knowledge": {"threshold": 1, "holders": ["a", "b"], "grade": "open"}}`,
		`{"split_knowledge": {"threshold": 3, "holders": ["a", "b"], "grade": "open"}}`,
		`{1: {"grade": "open"}}`, `{"forward_secrecy": {}}`, `{"forward_secrecy": {"grade": ""}}`,
	} {
		if d := e.Decide(t.Context(), open(t, answer(whole("PERMIT", bad, "{}"))), request("x", ActionDoctor)); d.Effect != Deny || d.Fault == "" {
			t.Errorf("%s: %s", bad, describe(d))
		}
	}
}

func TestRequires(t *testing.T) {
	t.Parallel()
	e := newEngine(t, Config{})
	all := `{"attestation": {"max_age_seconds": 60, "min_score": 0, "kinds": ["tpm2"]}, "factor": {"level": "ENHANCED"}, "approval": {"count": 2, "role": "custodian"}}`
	d := e.Decide(t.Context(), open(t, answer(whole("STEP_UP", "{}", all))), request("x", ActionDoctor))
	if d.Effect != StepUp || *d.Requires.Factor != (RequireFactor{Level: LevelEnhanced}) || *d.Requires.Approval != (RequireApproval{Count: 2, Role: "custodian"}) ||
		d.Requires.Attestation.MaxAgeSeconds != 60 || !slices.Equal(d.Requires.Attestation.Kinds, []string{"tpm2"}) {
		t.Errorf("%s %+v", describe(d), d.Requires)
	}
	for _, bad := range []string{
		`{"attestation": {"max_age_seconds": 60, "kinds": ["tpm2"]}}`, `{"attestation": {"max_age_seconds": 60, "min_score": 101, "kinds": ["tpm2"]}}`,
		`{"attestation": {"max_age_seconds": 60, "min_score": 1, "kinds": []}}`, `{"factor": {"level": "BASIC"}}`, `{"factor": {}}`,
		`{"approval": {"count": 0, "role": "x"}}`, `{"approval": {"count": 1}}`, `{"password": {"length": 8}}`, `{"factor": "ENHANCED"}`,
	} {
		if d := e.Decide(t.Context(), open(t, answer(whole("STEP_UP", "{}", bad))), request("x", ActionDoctor)); d.Effect != Deny || d.Fault == "" {
			t.Errorf("%s: %s", bad, describe(d))
		}
	}
}

// refusals loads a changed development bundle and wants it refused with the given words.
func wantRefused(t *testing.T, name string, changes map[string]string, words ...string) {
	t.Helper()
	rev, err := Load(t.Context(), changed(t, changes), site)
	var refused *LoadError
	if rev != nil || !errors.Is(err, ErrRefused) || !errors.As(err, &refused) || len(refused.Faults) == 0 {
		t.Errorf("%s: not refused: %v", name, err)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %v\nwant %q in it", name, err, w)
		}
	}
}

const permitAll = `package bulla

import rego.v1

decision := {"decision": "PERMIT", "reasons": [], "obligations": {}, "requires": {}, "disclose": true}
`

// nested is Rego that counts to n three times over, which does not end in any time that matters.
const nested = `count([1 | some a in data.numbers; some b in data.numbers; some c in data.numbers; some d in data.numbers]) > 0`

func numbers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "- %d\n", i)
	}
	return b.String()
}

func TestAbuse_A30_hostile_revisions_are_refused(t *testing.T) {
	t.Parallel()
	files := bundleFiles(t, shipped.Development(), nil)
	canaries, members := string(files[fileCanaries]), string(files["data/members.yaml"])
	deliver, decision := string(files["rego/deliver.rego"]), string(files["rego/decision.rego"])
	noTests := func(m map[string]string) map[string]string {
		m["rego/decision_test.rego"], m["rego/custody_test.rego"], m["rego/second_person_test.rego"] = "", "", ""
		return m
	}

	t.Run("permits the empty input", func(t *testing.T) {
		t.Parallel()
		wantRefused(t, "all", noTests(map[string]string{"rego/decision.rego": permitAll}), "canaries.yaml:", "nothing is denied", "PERMIT")
	})
	t.Run("breaks an invariant that its canaries do not look at", func(t *testing.T) {
		t.Parallel()
		audit := strings.Replace(decision, "default decision :=", permitWhen(`input.principal.path == "/auditor"; input.resource.secret.name == "x/y"`)+"\n\ndefault decision :=", 1)
		wantRefused(t, "auditor", noTests(map[string]string{"rego/decision.rego": audit}), "invariants", "auditor")
		stranger := strings.Replace(decision, "default decision :=", permitWhen(`input.action == "doctor"; not data.members[input.principal.id]`)+"\n\ndefault decision :=", 1)
		wantRefused(t, "stranger", noTests(map[string]string{"rego/decision.rego": stranger}), "invariants", "unknown principal")
		wantRefused(t, "security", noTests(map[string]string{
			"data/members.yaml": strings.Replace(members, domain+"security:", domain+"safety:", 1),
			"data/grants.yaml":  string(files["data/grants.yaml"]),
			fileCanaries:        strings.ReplaceAll(canaries, domain+"security", domain+"safety"),
		}), "invariants", "policy.push")
		wantRefused(t, "auditor in grants", map[string]string{
			"data/grants.yaml": domain + "auditor: {read: {far/away/: true}, devices: []}\n" + domain + "workload: {read: {demo/: true}, devices: [\"*\"]}\n",
		}, "invariants", "auditor")
	})
	t.Run("null and other inputs", func(t *testing.T) {
		t.Parallel()
		sly := strings.Replace(decision, "default decision :=", permitWhen(`not input.action; not is_object(input)`)+"\n\ndefault decision :=", 1)
		wantRefused(t, "null", noTests(map[string]string{"rego/decision.rego": sly}), "invariants")
	})
	t.Run("builtins off the list", func(t *testing.T) {
		t.Parallel()
		for _, call := range []string{
			`http.send({"method": "get", "url": "http://example.org"})`, `time.now_ns()`, `rand.intn("x", 2)`, `uuid.rfc4122("x")`,
			`opa.runtime()`, `net.lookup_ip_addr("example.org")`, `crypto.x509.parse_and_verify_certificates("")`,
			`time.clock([1, "Europe/Paris"])`, `numbers.range(1, 1000000000)`, `concat("", ["a", "b"])`, `sprintf("%d", [1])`,
			`walk([1])`, `json.marshal(1)`, `io.jwt.decode("x")`, `trace("x")`, `2 * 3`,
		} {
			bad := deliver + "\nsly := x if x := " + call + "\n"
			wantRefused(t, call, map[string]string{"rego/deliver.rego": bad}, "rego/deliver.rego:", "compile")
		}
		wantRefused(t, "template", map[string]string{"rego/deliver.rego": deliver + "\nsly := $\"{input.action}\"\n"}, "rego/deliver.rego:")
	})
	t.Run("wrong types", func(t *testing.T) {
		t.Parallel()
		wantRefused(t, "unknown field of input", map[string]string{"rego/deliver.rego": deliver + "\nsly if input.principal.isAdmin == true\n"}, "compile", "isAdmin")
		wantRefused(t, "comparison", map[string]string{"rego/deliver.rego": deliver + "\nsly if input.action == 1\n"}, "compile")
		wantRefused(t, "unused variable", map[string]string{"rego/deliver.rego": deliver + "\nsly if x := 1\n"}, "compile", "unused")
		wantRefused(t, "answer", noTests(answer(`{"decision": "DENY"}`)), "canaries")
		wantRefused(t, "syntax", map[string]string{"rego/deliver.rego": "package bulla.deliver\n\npermit if {"}, "rego/deliver.rego:3")
		wantRefused(t, "package", map[string]string{"rego/deliver.rego": "package other\n"}, "rego/deliver.rego:1", "package")
		wantRefused(t, "no entrypoint", noTests(map[string]string{"rego/decision.rego": "package bulla\n"}), "data.bulla.decision")
	})
	t.Run("failing test", func(t *testing.T) {
		t.Parallel()
		wantRefused(t, "test", map[string]string{"rego/extra_test.rego": "package bulla.extra_test\n\nimport rego.v1\n\ntest_no if 1 == 2\n"}, "rego/extra_test.rego:5", "test_no")
		wantRefused(t, "skipped", map[string]string{"rego/extra_test.rego": "package bulla.extra_test\n\nimport rego.v1\n\ntodo_test_no if 1 == 1\n"}, "skipped")
	})
	t.Run("without end", func(t *testing.T) {
		t.Parallel()
		start := time.Now()
		wantRefused(t, "in a decision", noTests(map[string]string{
			"data/numbers.yaml": numbers(2000), "rego/deliver.rego": deliver + "\npermit if " + nested + "\n",
		}), "canaries", "ended by the time limit")
		wantRefused(t, "in a test", map[string]string{
			"data/numbers.yaml": numbers(2000), "rego/extra_test.rego": "package bulla.extra_test\n\nimport rego.v1\n\ntest_no if " + nested + "\n",
		}, "test_no")
		if d := time.Since(start); d > loadLimit {
			t.Errorf("it took %v", d)
		}
	})
}

func permitWhen(body string) string {
	return "decision := " + whole("PERMIT", "{}", "{}") + " if {\n" + strings.ReplaceAll(body, ";", "\n") + "\n}"
}

// runaway behaves until an instance with a certain name asks.
func runaway(tb testing.TB) *Revision {
	tb.Helper()
	files := answer(whole("PERMIT", "{}", "{}") + ` if not slow

slow if {
	input.instance == "slow"
	` + nested + `
}`)
	files["data/numbers.yaml"] = numbers(2000)
	return open(tb, files)
}

func TestAbuse_A30_runaway_is_cut_off_at_run_time(t *testing.T) {
	t.Parallel()
	tripped := make(chan *Revision, 10)
	e := newEngine(t, Config{Workers: 1, Limit: 200 * time.Millisecond, TripAfter: 2, OnRunaway: func(r *Revision) { tripped <- r }})
	rev := runaway(t)
	e.Activate(rev)
	slow, quick := request("x", ActionDoctor), request("x", ActionDoctor)
	slow.Instance = "slow"
	for range 4 {
		d := e.Decide(t.Context(), rev, slow)
		if d.Effect != Deny || !d.TimedOut || d.Covered || len(d.Signals) == 0 {
			t.Fatalf("%s, timed out %t", describe(d), d.TimedOut)
		}
	}
	if len(tripped) != 1 || <-tripped != rev {
		t.Errorf("the breaker tripped %d times more, want once", len(tripped))
	}
	// The only worker is free again.
	if d := newEngine(t, Config{}).Decide(t.Context(), rev, quick); d.Effect != Permit {
		t.Error(describe(d))
	}
	// A caller that goes away ends its evaluation and is not the policy's fault.
	ctx, cancel := context.WithCancel(t.Context())
	patient := newEngine(t, Config{Workers: 1, Limit: time.Minute, TripAfter: 1, OnRunaway: func(*Revision) { t.Error("the breaker tripped") }})
	patient.Activate(rev)
	time.AfterFunc(10*time.Millisecond, cancel)
	if d := patient.Decide(ctx, rev, slow); d.Effect != Deny || !d.TimedOut {
		t.Error(describe(d))
	}
}

// TestStuckEvaluationIsLeftBehind has a builtin that waits: what an evaluation would do that does not notice
// its cancellation.
func TestStuckEvaluationIsLeftBehind(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	wait := rego.Function1(&rego.Function{Name: "wait", Decl: types.NewFunction(types.Args(types.A), types.B)},
		func(_ rego.BuiltinContext, who *ast.Term) (*ast.Term, error) {
			if who.Equal(ast.StringTerm("slow")) {
				<-release
			}
			return ast.BooleanTerm(true), nil
		})
	rev := *open(t, answer(whole("PERMIT", "{}", "{}")))
	var err error
	rev.query, err = rego.New(rego.Query(Entrypoint), wait,
		rego.Module("x.rego", "package bulla\n\ndecision := "+whole("PERMIT", "{}", "{}")+" if wait(input.instance)")).PrepareForEval(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e := newEngine(t, Config{Workers: 1, Limit: 100 * time.Millisecond})
	s := request("x", ActionDoctor)
	s.Instance = "slow"
	for range 2 {
		d := e.Decide(t.Context(), &rev, s)
		if d.Effect != Deny || !d.TimedOut || len(d.Signals) == 0 || len(d.Risk.Factors) == 0 || !strings.Contains(d.Fault, "left behind") {
			t.Fatalf("%s, timed out %t", describe(d), d.TimedOut)
		}
	}
	if e.Stuck() != 2 {
		t.Errorf("%d stuck, want 2", e.Stuck())
	}
	if d := e.Decide(t.Context(), &rev, request("x", ActionDoctor)); d.Effect != Permit {
		t.Errorf("no new worker: %s", describe(d))
	}
	// One more, and workers are not replaced any further: everything is denied, and quickly.
	for range 2 {
		if d := e.Decide(t.Context(), &rev, s); d.Effect != Deny || !d.TimedOut {
			t.Fatalf("%s, timed out %t", describe(d), d.TimedOut)
		}
	}
	if e.Stuck() != 3 {
		t.Errorf("%d stuck, want 3", e.Stuck())
	}
	if d := e.Decide(t.Context(), &rev, request("x", ActionDoctor)); d.Effect != Deny || !strings.Contains(d.Fault, "busy") {
		t.Errorf("a decision without a worker: %s", describe(d))
	}
	close(release)
	for e.Stuck() > 0 {
		runtime.Gosched()
	}
	if d := e.Decide(t.Context(), &rev, request("x", ActionDoctor)); d.Effect != Permit {
		t.Errorf("no worker came back: %s", describe(d))
	}
}

// TestCompilerThatDoesNotEnd has types that grow with each line, which takes the compiler minutes. Load
// gives up when its context ends.
func TestCompilerThatDoesNotEnd(t *testing.T) {
	t.Parallel()
	var rules strings.Builder
	for _, side := range []string{"l", "r"} {
		fmt.Fprintf(&rules, "%s0 := [input.now, input.now]\n", side)
		for i := 1; i < 13; i++ {
			fmt.Fprintf(&rules, "%s%d := [%s%d, %s%d]\n", side, i, side, i-1, side, i-1)
		}
	}
	archive := changed(t, answer(whole("PERMIT", "{}", "{}")+" if l12 == r12\n"+rules.String()))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Load(ctx, archive, site); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "did not end") {
		t.Error(err)
	}
}

func TestAllowedBuiltinsGolden(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, b := range ast.CapabilitiesForThisVersion().Builtins {
		known[b.Name] = true
	}
	names := AllowedBuiltins()
	for _, name := range names {
		if !known[name] {
			t.Errorf("%s is not a builtin", name)
		}
	}
	slices.Sort(names)
	if got := strings.Join(names, " "); got != allowedGolden {
		t.Errorf("the list of builtins changed; read the rule in AllowedBuiltins, then change this test too:\n%s", got)
	}
	var compiled []string
	for _, b := range capabilities().Builtins {
		compiled = append(compiled, b.Name)
		if b.IsNondeterministic() {
			t.Errorf("%s is not deterministic", b.Name)
		}
	}
	slices.Sort(compiled)
	if !slices.Equal(compiled, names) {
		t.Errorf("the compiler knows %q", compiled)
	}
}

const allowedGolden = "abs all and any array.reverse array.slice assign bits.and bits.or bits.xor contains count div" +
	" endswith eq equal gt gte indexof internal.member_2 internal.member_3 internal.test_case" +
	" intersection is_array is_boolean is_null is_number is_object is_set is_string lower lt lte max" +
	" min minus neq net.cidr_contains net.cidr_intersects net.cidr_is_valid object.get object.keys" +
	" or plus regex.match rem semver.compare semver.is_valid set_diff sort split" +
	" startswith strings.any_prefix_match strings.any_suffix_match substring sum trim" +
	" trim_left trim_prefix trim_right trim_space trim_suffix type_name union upper"

func TestBundleFilesAreStrict(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		file, text, want string
	}{
		"manifest":           {fileManifest, "format: 2\nname: x\n", "format: 1"},
		"manifest fraction":  {fileManifest, "format: 1.5\nname: x\n", "1.5"},
		"zones alias":        {fileZones, "version: 1\nzones: &x []\n", "anchors"},
		"manifest key":       {fileManifest, "format: 1\nname: x\nother: 1\n", "line 3"},
		"zones twice":        {fileZones, "version: 1\nzones:\n- {name: loopback, cidrs: [127.0.0.0/8]}\n- {name: private, cidrs: [127.0.0.0/8]}\n", "already in zone"},
		"zones host bits":    {fileZones, "version: 1\nzones:\n- {name: loopback, cidrs: [127.0.0.1/8]}\n", "canonical"},
		"zones unweighed":    {fileZones, "version: 1\nzones:\n- {name: moon, cidrs: [127.0.0.0/8]}\n", "no severity"},
		"zones reserved":     {fileZones, "version: 1\nzones:\n- {name: unknown, cidrs: [127.0.0.0/8]}\n", "reserved"},
		"data fraction":      {"data/limits.yaml", "a: 1\nb: 1.5\n", "line 2"},
		"data date":          {"data/limits.yaml", "a: 2026-01-01\n", "quote it"},
		"data twice":         {"data/limits.yaml", "a: 1\na: 2\n", "twice"},
		"data alias":         {"data/limits.yaml", "a: &x [1]\nb: *x\n", "anchors"},
		"data merge":         {"data/limits.yaml", "a: {<<: {b: 1}}\n", "line 1"},
		"data number key":    {"data/limits.yaml", "1: a\n", "must be a text"},
		"data octal":         {"data/limits.yaml", "a: 0o17\n", "plain decimal"},
		"data yes":           {"data/limits.yaml", "a: !!binary aGk=\n", "can't hold"},
		"data two documents": {"data/limits.yaml", "a: 1\n---\nb: 1\n", "after the first"},
		"data empty":         {"data/limits.yaml", "# nothing\n", "EOF"},
		"data own package":   {"data/bulla.yaml", "decision: {decision: PERMIT}\n", "own package"},
		"risk":               {fileRisk, "version: 1\n", "missing"},
		"canaries few":       {fileCanaries, "version: 1\ncases:\n- {name: a, input: {}, expect: DENY}\n", "at least one"},
		"canaries signals":   {fileCanaries, "version: 1\ncases:\n- {name: a, signals: {nou: 1}, expect: DENY}\n", "nou"},
		"canaries both":      {fileCanaries, "version: 1\ncases:\n- {name: a, signals: {now: 1}, input: {}, expect: DENY}\n", "either"},
		"canaries expect":    {fileCanaries, "version: 1\ncases:\n- {name: a, input: {}, expect: MAYBE}\n", "MAYBE"},
	} {
		wantRefused(t, name, map[string]string{c.file: c.text}, c.file, c.want)
	}
}

func TestPackIsStrict(t *testing.T) {
	t.Parallel()
	files := bundleFiles(t, shipped.Base(), nil)
	pack := func(change func(fstest.MapFS)) error {
		m := fstest.MapFS{}
		for name, text := range files {
			m[name] = &fstest.MapFile{Data: text}
		}
		change(m)
		_, err := Pack(m)
		return err
	}
	if err := pack(func(fstest.MapFS) {}); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(fstest.MapFS){
		"unknown file":   func(m fstest.MapFS) { m["README.md"] = &fstest.MapFile{} },
		"hidden file":    func(m fstest.MapFS) { m[".git"] = &fstest.MapFile{} },
		"unknown folder": func(m fstest.MapFS) { m["rego/lib/x.rego"] = &fstest.MapFile{} },
		"upper case":     func(m fstest.MapFS) { m["rego/X.rego"] = &fstest.MapFile{} },
		"json data":      func(m fstest.MapFS) { m["data/x.json"] = &fstest.MapFile{} },
		"backup":         func(m fstest.MapFS) { m["rego/x.rego~"] = &fstest.MapFile{} },
		"link":           func(m fstest.MapFS) { m["data/x.yaml"] = &fstest.MapFile{Mode: fs.ModeSymlink} },
		"missing":        func(m fstest.MapFS) { delete(m, fileCanaries) },
		"large":          func(m fstest.MapFS) { m["data/x.yaml"] = &fstest.MapFile{Data: make([]byte, MaxFileSize+1)} },
	} {
		if err := pack(change); !errors.Is(err, ErrArchive) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
