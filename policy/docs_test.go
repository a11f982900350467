package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	shipped "github.com/bulla-project/bulla/rego"
)

const policyPage = "../docs/policy.md"

func page(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(policyPage)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// node is a part of the schema, as far as the reference tells it.
type node struct {
	Type        string          `json:"type"`
	Description string          `json:"description"`
	Properties  map[string]node `json:"properties"`
	Items       *node           `json:"items"`
	Required    []string        `json:"required"`
}

func (n node) rows(path string, optional bool, out *[]string) {
	kind := n.Type
	if kind == "" {
		kind = "object"
	}
	if n.Items != nil && n.Items.Properties == nil {
		kind = "list of " + n.Items.Type
	}
	mark := ""
	if optional {
		mark = "?"
	}
	*out = append(*out, fmt.Sprintf("| `%s`%s | %s | %s |", path, mark, kind, n.Description))
	below := n
	if n.Items != nil {
		below, path = *n.Items, path+"[]"
	}
	for _, name := range slices.Sorted(maps.Keys(below.Properties)) {
		below.Properties[name].rows(path+"."+name, !slices.Contains(below.Required, name), out)
	}
}

// TestInputReference: the reference is made from the schema. BULLA_UPDATE_DOCS=1 writes it.
func TestInputReference(t *testing.T) {
	var schema node
	if err := json.Unmarshal(shipped.InputSchema(), &schema); err != nil {
		t.Fatal(err)
	}
	var rows []string
	for _, name := range slices.Sorted(maps.Keys(schema.Properties)) {
		schema.Properties[name].rows("input."+name, !slices.Contains(schema.Required, name), &rows)
	}
	const begin, end = "<!-- input reference: begin -->\n", "<!-- input reference: end -->\n"
	text := page(t)
	before, rest, ok1 := strings.Cut(text, begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatal("the page has no place for the reference")
	}
	want := before + begin + "| field | type | |\n|---|---|---|\n" + strings.Join(rows, "\n") + "\n" + end + after
	if want == text {
		return
	}
	if os.Getenv("BULLA_UPDATE_DOCS") == "1" {
		if err := os.WriteFile(policyPage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("%s is not what the schema says: BULLA_UPDATE_DOCS=1 go test -run TestInputReference ./policy", policyPage)
}

var block = regexp.MustCompile("(?ms)^```(yaml|rego|diff) (\\+?)([a-z/_]+\\.(?:yaml|rego))\n(.*?)^```$")

// recipes are the bundle changes of the page, by title.
func recipes(t *testing.T) map[string]map[string]string {
	t.Helper()
	_, rest, ok := strings.Cut(page(t), "## Ten changes\n")
	section, _, ok2 := strings.Cut(rest, "\n## ")
	if !ok || !ok2 {
		t.Fatal("the page has no recipes")
	}
	base, err := Unpack(changed(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]map[string]string{}
	for _, part := range strings.Split(section, "\n### ")[1:] {
		title, body, _ := strings.Cut(part, "\n")
		files := map[string]string{}
		for _, m := range block.FindAllStringSubmatch(body, -1) {
			kind, mode, name, text := m[1], m[2], m[3], m[4]
			switch {
			case kind == "diff":
				context, added, _ := strings.Cut(text, "\n+")
				context = strings.TrimPrefix(context, " ") + "\n"
				if text = string(base[name]); !strings.Contains(text, context) {
					t.Fatalf("%s: %s has no line %q", title, name, context)
				}
				text = strings.ReplaceAll(text, context, context+added)
			case mode == "+":
				text = string(base[name]) + text
			}
			files[name] = text
		}
		out[title] = files
	}
	return out
}

// asks of a recipe: what is asked, and what has to come of it.
type asks struct {
	question string
	signals  Signals
	effect   Effect
	more     func(Decision) bool // nil: nothing more
}

func recipeQuestions() map[string][]asks {
	with := func(s Signals, edit func(*Signals)) Signals { edit(&s); return s }
	operation := func(name, op string) Signals {
		return with(delivery("workload", name, "standard"), func(s *Signals) { s.Request.Operation = op })
	}
	token := func(subject string) Signals {
		return with(delivery("workload", "demo/a", "personal"), func(s *Signals) {
			s.Factors = []Factor{{Kind: FactorOIDC, Issuer: "https://idp.example.org", Subject: subject, IssuedAt: now - second, ExpiresAt: now + 60*second, Token: strings.Repeat("0", 64)}}
			s.Principal.Level = LevelBasic
		})
	}
	approvedBy := func(s Signals, names ...string) Signals {
		for _, name := range names {
			s.Approvals = append(s.Approvals, Approval{Principal: domain + name, At: now - second})
		}
		return s
	}
	return map[string][]asks{
		"Give a workload a folder": {
			{"in the folder", delivery("billing", "billing/db", "standard"), Permit, nil},
			{"the one secret", delivery("billing", "shared/tls-key", "standard"), Permit, nil},
			{"beside it", delivery("billing", "shared/other", "standard"), Deny, nil},
			{"a name that begins so", delivery("billing", "billings/db", "standard"), Deny, nil},
		},
		"Take a grant away": {
			{"what is left", delivery("workload", "demo/standard", "standard"), Permit, nil},
			{"what is gone", delivery("workload", "demo/hello", "standard"), Deny, nil},
		},
		"Bind a workload to one device": {
			{"its device", attested(delivery("vault", "vault/a", "high"), "tpm2", "affirming", 100), Permit, nil},
			{"another device", with(attested(delivery("vault", "vault/a", "high"), "tpm2", "affirming", 100), func(s *Signals) { s.Attestation.DeviceID = "dev-2" }), Deny, nil},
			{"no device", delivery("vault", "vault/a", "high"), StepUp, nil},
		},
		"Ask for a TPM": {
			{"a TPM", attested(delivery("workload", "demo/a", "hardware"), "tpm2", "affirming", 100), Permit, nil},
			{"a development device", attested(delivery("workload", "demo/a", "hardware"), "development", "affirming", 100), StepUp, nil},
			{"nothing", delivery("workload", "demo/a", "hardware"), StepUp, nil},
		},
		"Ask for a token of another issuer": {
			{"without", delivery("workload", "demo/a", "personal"), StepUp, func(d Decision) bool { return d.Requires.Factor != nil }},
			{"alice's", token("alice"), Permit, nil},
			{"somebody's", token("mallory"), StepUp, nil},
		},
		"Ask for two approvals": {
			{"none", delivery("workload", "demo/a", "watched"), StepUp, func(d Decision) bool { return d.Requires.Approval != nil && d.Requires.Approval.Count == 2 }},
			{"one", approvedBy(delivery("workload", "demo/a", "watched"), "custodian-1"), StepUp, nil},
			{"two", approvedBy(delivery("workload", "demo/a", "watched"), "custodian-1", "custodian-2"), Permit, nil},
			{"the same twice", approvedBy(delivery("workload", "demo/a", "watched"), "custodian-1", "custodian-1"), StepUp, nil},
		},
		"Count each use, and keep it in a country": {
			{"it is bound", delivery("workload", "demo/a", "counted"), Permit, func(d Decision) bool {
				return d.Obligations.UsageLimit.MaxUses == 3 && d.Obligations.UsageLimit.Grade == GradeGated && slices.Equal(d.Obligations.GeoRestriction.Countries, []string{"CH", "DE"})
			}},
		},
		"A role of one's own": {
			{"its action", request("helpdesk", ActionSessionRevoke), Permit, nil},
			{"another", request("helpdesk", ActionDeviceRevoke), Deny, nil},
			{"a secret", delivery("helpdesk", "demo/a", "standard"), Deny, nil},
		},
		"A second person for more than policy": {
			{"alone", request("operator", ActionDeviceEnroll), StepUp, func(d Decision) bool { return d.Requires.Approval.Role == "operator" }},
			{"with another", approvedBy(request("operator", ActionDeviceEnroll), "operator-2"), Permit, nil},
			{"with oneself", approvedBy(request("operator", ActionDeviceEnroll), "operator"), StepUp, nil},
			{"another action", request("operator", ActionDeviceRevoke), Permit, nil},
		},
		"A condition of one's own, in Rego": {
			{"sign", operation("demo/sign/a", "sign"), Permit, nil},
			{"decrypt", operation("demo/sign/a", "decrypt"), Deny, nil},
			{"decrypt with another", operation("demo/a", "decrypt"), Permit, nil},
		},
	}
}

// TestRecipes lays each recipe of the page over the development bundle, loads it, and asks.
func TestRecipes(t *testing.T) {
	t.Parallel()
	found, questions := recipes(t), recipeQuestions()
	if len(found) != 10 {
		t.Errorf("%d recipes", len(found))
	}
	for title := range questions {
		if found[title] == nil {
			t.Errorf("the page has no recipe %q", title)
		}
	}
	for title, files := range found {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			rev, err := Load(t.Context(), changed(t, files), site)
			if err != nil {
				t.Fatal(err)
			}
			if len(questions[title]) == 0 || len(files) == 0 {
				t.Fatal("nobody asks about it, or it changes nothing")
			}
			e := newEngine(t, Config{})
			for _, q := range questions[title] {
				d := e.Decide(t.Context(), rev, q.signals)
				if d.Effect != q.effect || d.Fault != "" || q.more != nil && !q.more(d) {
					t.Errorf("%s: %s, want %s; %+v %+v", q.question, describe(d), q.effect, d.Obligations, d.Requires)
				}
			}
		})
	}
}

// TestFailsOpen shows the trap that the page explains: the list of reasons to deny permits for a class that nobody
// configured, the positive condition does not.
func TestFailsOpen(t *testing.T) {
	t.Parallel()
	rule := func(permit string) *Revision {
		return open(t, answer(`{"decision": effect, "reasons": [], "obligations": {}, "requires": {}, "disclose": false}

default effect := "DENY"

effect := "PERMIT" if permit

`+permit))
	}
	for name, c := range map[string]struct {
		rule string
		want Effect
	}{
		"wrong": {"deny contains \"risk too high\" if input.risk.score > data.classes[input.resource.secret.class].max_risk\n\npermit if count(deny) == 0\n", Permit},
		"right": {"default permit := false\n\npermit if {\n\tis_number(data.classes[input.resource.secret.class].max_risk)\n\tinput.risk.score <= data.classes[input.resource.secret.class].max_risk\n}\n", Deny},
	} {
		if d := newEngine(t, Config{}).Decide(t.Context(), rule(c.rule), delivery("workload", "demo/a", "unknown")); d.Effect != c.want {
			t.Errorf("%s: %s, want %s", name, describe(d), c.want)
		}
	}
}
