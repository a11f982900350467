package abuse

import (
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
		"permits {}":               {openRule("true"), "nothing is denied"},
		"permits a stranger":       {openRule(`input.principal.id != ""`), "stranger"},
		"gives an auditor a value": {openRule(`input.principal.id == "spiffe://dev.bulla.test/auditor"`), "auditor"},
		"locks security out": {func(f map[string]string) {
			f["data/members.yaml"] = strings.ReplaceAll(f["data/members.yaml"], "security: [security]", "security: [operator]")
		}, "policy.push"},
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
			f["rego/decision.rego"] = strings.ReplaceAll(f["rego/decision.rego"], `"disclose": true`, `"disclose": "yes"`)
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
	r.Put("demo/runaway", "standard", "never")
	r.Push(func(files map[string]string) {
		files["rego/runaway.rego"] = "package bulla.deliver\n\nimport rego.v1\n\n" +
			"few := [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n\n" +
			"permit if {\n\tinput.resource.secret.name == \"demo/runaway\"\n" +
			"\tinput.network.tls_group == \"X25519MLKEM768\"\n\tinput.request.max_uses == 7\n" +
			"\tcount({x | some a in few; some b in few; some c in few; some d in few; some e in few; some f in few; some g in few; some h in few; x := [a, b, c, d, e, f, g, h]}) < 0\n}\n"
		files["rego/deliver.rego"] = strings.ReplaceAll(files["rego/deliver.rego"], "default permit := false\n", "default permit := false\n")
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
	if !strings.Contains(string(denied[0].Decision.Result), "time") {
		t.Errorf("the record does not say that the time limit ended it: %s", denied[0].Decision.Result)
	}
	if _, _, err := w.Deliver(t.Context(), "demo/hello"); err != nil {
		t.Errorf("another secret: %v", err)
	}
}
