package abuse

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// openRule is a rule that permits whatever its condition says, beside the shipped ones.
func openRule(condition string) func(files map[string]string) {
	return func(files map[string]string) {
		files["rego/open.rego"] = "package bulla.deliver\n\nimport rego.v1\n\npermit if " + condition + "\n"
	}
}

// openWide is openRule with obligations that need no class, so that even an input without any field is permitted.
func openWide(condition string) func(files map[string]string) {
	return func(files map[string]string) {
		openRule(condition)(files)
		rule := files["rego/decision.rego"]
		for old, text := range map[string]string{
			`if input.action == "deliver"`: "if {\n\tnot deliver.permit\n\tinput.action == \"deliver\"\n}",
			`if input.action != "deliver"`: "if {\n\tnot deliver.permit\n\tinput.action != \"deliver\"\n}",
		} {
			if !strings.Contains(rule, old) {
				panic("the shipped policy has no " + old)
			}
			rule = strings.ReplaceAll(rule, old, text)
		}
		files["rego/decision.rego"] = rule + `
decision := {
	"decision": "PERMIT",
	"reasons": ["everything is permitted"],
	"obligations": {"time_bound": {"ttl_seconds": 60, "grade": "open"}},
	"requires": {},
	"disclose": true,
} if {
	deliver.permit
}
`
	}
}

// bare leaves a bundle with the fewest canaries and no tests, so that nothing but the broker's own checks is left.
func bare(edit func(files map[string]string)) func(files map[string]string) {
	const signals = `
    signals:
      now: 1736157600000000
      action: deliver
      principal: {id: "spiffe://dev.bulla.test/%s", trust_domain: dev.bulla.test, level: BASIC, svid_not_before: 1736157000000000, svid_not_after: 1736160600000000}
      resource: {kind: secret, secret: {name: demo/standard, exists: true, class: standard, version: 1, exposure: none}}
      network: {peer: "127.0.0.1:40000", post_quantum: true}
      history: {novel: true}
    expect: %s
`
	return func(files map[string]string) {
		for name := range files {
			if strings.HasSuffix(name, "_test.rego") {
				delete(files, name)
			}
		}
		files["canaries.yaml"] = "version: 1\ncases:\n  - name: nothing is denied\n    input: {}\n    expect: DENY\n" +
			"  - name: workload" + fmt.Sprintf(signals, "workload", "PERMIT") +
			"  - name: stranger reads nothing" + fmt.Sprintf(signals, "stranger", "DENY") +
			"  - name: nobody reads nothing" + fmt.Sprintf(signals, "nobody-in-particular", "DENY")
		edit(files)
	}
}

// A bundle that fails a check is refused by the broker itself, with the check's name, and the active revision
// stays and decides as before.
func TestAbuse_A30_refused_bundles(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "hello")
	policies := bullav1.NewPoliciesClient(r.Client("security").Conn())
	before, err := policies.ListRevisions(t.Context(), &bullav1.ListRevisionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	w := r.Raw("workload")
	for name, c := range map[string]struct {
		edit    func(files map[string]string)
		because string
	}{
		"fails its tests":          {openRule("true"), "tests: test_stranger_learns_nothing"},
		"fails its canaries":       {bare(openRule(`input.principal.id == "spiffe://dev.bulla.test/stranger"`)), "canaries: stranger reads nothing"},
		"permits {}":               {bare(openWide("count(input) == 0")), "canaries: nothing is denied"},
		"permits null":             {bare(openWide("is_null(input)")), "invariants: the input null must be denied"},
		"permits the unknown":      {bare(openRule(`startswith(input.principal.id, "spiffe://bulla")`)), "invariants: an unknown principal"},
		"gives an auditor a value": {bare(openRule(`input.principal.id == "spiffe://dev.bulla.test/auditor"`)), "invariants: the auditor"},
		"locks security out": {bare(func(f map[string]string) {
			f["data/members.yaml"] = strings.ReplaceAll(f["data/members.yaml"], "security: [security]", "security: [operator]")
		}), "invariants: one of"},
		"calls the network":  {openRule(`http.send({"method": "GET", "url": "http://127.0.0.1"}).status_code == 200`), "http.send"},
		"reads the clock":    {openRule(`time.now_ns() > 0`), "time.now_ns"},
		"reads environment":  {openRule(`opa.runtime().env.PATH != ""`), "opa.runtime"},
		"draws lots":         {openRule(`rand.intn("x", 2) == 1`), "rand.intn"},
		"generates":          {openRule(`count(numbers.range(1, 1000000000)) > 0`), "numbers.range"},
		"allocates":          {openRule(`concat("", ["a", "b"]) == "ab"`), "concat"},
		"wrong type":         {openRule(`input.risk.score == "low"`), "rego"},
		"unknown input":      {openRule(`input.prinzipal.id == "x"`), "rego"},
		"does not parse":     {openRule(`if if`), "rego/open.rego"},
		"other package":      {func(f map[string]string) { f["rego/x.rego"] = "package system\n\nimport rego.v1\n\nx := 1\n" }, "rego/x.rego"},
		"no canaries":        {func(f map[string]string) { delete(f, "canaries.yaml") }, "canaries"},
		"canaries say less":  {func(f map[string]string) { f["canaries.yaml"] = "version: 1\ncases: []\n" }, "canaries"},
		"odd file":           {func(f map[string]string) { f["data/x.json"] = "{}" }, ""},
		"references expired": {func(f map[string]string) { f["references.yaml"] = "version: x\n" }, ""},
		"decision of another type": {func(f map[string]string) {
			for _, name := range []string{"rego/deliver.rego", "rego/administration.rego"} {
				f[name] = strings.ReplaceAll(f[name], `"disclose": true`, `"disclose": "yes"`)
			}
		}, ""},
		"endless": {openRule(`count({x | some a in data.members; some b in data.members; some c in data.members; some d in data.roles; some e in data.roles; some f in data.roles; some g in data.roles; some h in data.roles; some i in data.roles; some j in data.roles; some k in data.roles; x := [a, b, c, d, e, f, g, h, i, j, k]}) < 0`), ""},
	} {
		t.Run(name, func(t *testing.T) {
			files := rig.PolicyFiles(t)
			c.edit(files)
			start := time.Now()
			_, err := policies.PushRevision(t.Context(), &bullav1.PushRevisionRequest{Archive: archive(files)})
			code(t, err, codes.InvalidArgument, "the bundle was refused, the active revision stays")
			code(t, err, codes.InvalidArgument, c.because)
			t.Logf("in %s", time.Since(start).Round(time.Millisecond))
		})
	}
	for name, raw := range map[string][]byte{
		"nothing": nil, "no archive": []byte("bulla-revision/v1"), "cut": archive(rig.PolicyFiles(t))[:2000], "tail": append(archive(rig.PolicyFiles(t)), 'x'),
	} {
		_, err := policies.PushRevision(t.Context(), &bullav1.PushRevisionRequest{Archive: raw})
		if err == nil || !strings.Contains(err.Error(), "the active revision stays") {
			t.Errorf("%s: %v", name, err)
		}
	}
	now, err := policies.ListRevisions(t.Context(), &bullav1.ListRevisionsRequest{})
	if err != nil || len(now.GetRevisions()) != 1 || now.GetRevisions()[0].GetDigest() != before.GetRevisions()[0].GetDigest() {
		t.Errorf("the revision before is %v, now it is %v, %v", before, now, err)
	}
	reply, _, err := w.Deliver(t.Context(), "demo/hello")
	if err != nil || reply.GetPolicy().GetDigest() != before.GetRevisions()[0].GetDigest() {
		t.Errorf("the old revision decides no more: %v, %v", reply.GetPolicy(), err)
	}
	if _, _, err := r.Raw("stranger").Deliver(t.Context(), "demo/hello"); err == nil {
		t.Error("the stranger reads it")
	}
	if n := len(of[event.RevisionActivated](r.Events())); n != 1 {
		t.Errorf("%d activations", n)
	}
	calm(t, r)
	r.Check()
}

// archive packs files without any of Pack's checks.
func archive(files map[string]string) []byte { return rig.PackRaw(files) }

// A policy that passes every check and runs without end where nobody looked is cut off: that is a denial, it is
// recorded as such, and others are served meanwhile and afterwards.
func TestAbuse_A30_runaway(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/hello", "standard", "hello")
	r.Put("demo/runaway", "high", "never")
	r.Push(func(files map[string]string) {
		files["rego/runaway.rego"] = "package bulla.deliver\n\nimport rego.v1\n\n" +
			"few := [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n\n" +
			"permit if {\n\tinput.resource.secret.name == \"demo/runaway\"\n" +
			"\tinput.network.tls_group == \"X25519MLKEM768\"\n\tinput.request.max_uses == 7\n" +
			"\tsome a in few\n\tsome b in few\n\tsome c in few\n\tsome d in few\n\tsome e in few\n\tsome f in few\n\tsome g in few\n\tsome h in few\n" +
			"\tsum([a, b, c, d, e, f, g, h]) < 0\n}\n"
	})
	w := r.Raw("workload")
	ask, _ := w.Ask("demo/runaway")
	ask.MaxUses = 7
	w.Challenge(nil)
	start := time.Now()
	_, err := w.Broker.Deliver(t.Context(), w.Sign(bullav1.Broker_Deliver_FullMethodName, ask))
	if code(t, err, codes.PermissionDenied, "denied"); time.Since(start) < 500*time.Millisecond {
		t.Errorf("it ran for %s only: that was no runaway", time.Since(start))
	}
	denied := of[event.DecisionDenied](r.Events())
	if len(denied) != 1 || denied[0].Decision.Effect != "DENY" || !strings.Contains(string(denied[0].Decision.Result), "the policy gave no decision") {
		t.Fatalf("recorded: %+v", denied)
	}
	if !strings.Contains(string(denied[0].Decision.Result), `"timed_out":true`) {
		t.Errorf("the record does not say that the time limit ended it: %s", denied[0].Decision.Result)
	}
	if _, _, err := w.Deliver(t.Context(), "demo/hello"); err != nil {
		t.Errorf("another secret: %v", err)
	}
	// Five in a row (the time limit ended each) and nothing else between: the breaker puts the revision before it back, by an event.
	for range 5 {
		ask, _ := w.Ask("demo/runaway")
		ask.MaxUses = 7
		w.Challenge(nil)
		_, err := w.Broker.Deliver(t.Context(), w.Sign(bullav1.Broker_Deliver_FullMethodName, ask))
		code(t, err, codes.PermissionDenied, "denied")
	}
	policies := bullav1.NewPoliciesClient(r.Client("security").Conn())
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		now, err := policies.ListRevisions(t.Context(), &bullav1.ListRevisionsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if newest := now.GetRevisions()[0]; newest.GetSequence() == 3 {
			if !newest.GetActive() || !strings.HasPrefix(newest.GetSource(), "breaker: revision 2 ") {
				t.Errorf("%v", newest)
			}
			r.Check()
			return
		}
	}
	t.Error("the revision that runs without end is still active")
}
