package diff_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/policy/diff"
	"github.com/bulla-project/bulla/rego"
	"github.com/bulla-project/bulla/test/xtest"
)

func shipped(t *testing.T) map[string][]byte {
	t.Helper()
	archive, err := policy.Pack(rego.Development())
	if err != nil {
		t.Fatal(err)
	}
	files, err := policy.Unpack(archive)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestWhatWasMissing: a class without its part about attestation permits nothing, so that what brings it is not narrower.
func TestWhatWasMissing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ file, from, to string }{
		{"data/classes.yaml", "c: {x: 1}\n", "c: {x: 1, attestation: {required: false}}\n"},
		{"data/classes.yaml", "c: {attestation: {max_age_seconds: 5}}\n", "c: {attestation: {max_age_seconds: 5, required: false}}\n"},
		{"data/classes.yaml", "c: {x: 1}\n", "c: {x: 1, obligations: {time_bound: {ttl_seconds: 9, grade: open}}}\n"},
		{"data/limits.yaml", "a: {x: 1}\n", "a: {x: 1, second_person: {}}\n"},
	} {
		r, err := diff.Compare(map[string][]byte{c.file: []byte(c.from)}, map[string][]byte{c.file: []byte(c.to)})
		if err != nil || len(r.Changes) != 1 || r.Changes[0].Effect != diff.Unclear || r.Wider() != 1 {
			t.Errorf("%s: %+v, %v", c.to, r.Changes, err)
		}
	}
}

// TestEffects: each change is told as what it is, and the other way round as the opposite.
func TestEffects(t *testing.T) {
	for _, c := range []struct {
		file, from, to string
		effect         diff.Effect
		path           string
	}{
		{"data/grants.yaml", "", "spiffe://x/a:\n  read: {demo/: true}\n", diff.Wider, "spiffe://x/a/read/demo/"},
		{"data/grants.yaml", "spiffe://x/a: {read: {a: true}}\n", "spiffe://x/a: {read: {a: true}, devices: [\"*\"]}\n", diff.Wider, "spiffe://x/a/devices/*"},
		{"data/grants.yaml", "spiffe://x/a: {read: {a: false}}\n", "spiffe://x/a: {read: {a: true}}\n", diff.Wider, "spiffe://x/a/read/a"},
		{"data/members.yaml", "x: [a]\n", "x: [a, b]\n", diff.Wider, "x/b"},
		{"data/roles.yaml", "a: [x]\n", "a: [x, policy.push]\n", diff.Wider, "a/policy.push"},
		{"data/owners.yaml", "a: ann\n", "{}\n", diff.Wider, "a"},
		{"data/classes.yaml", "c: {max_risk: 10}\n", "c: {max_risk: 11}\n", diff.Wider, "c/max_risk"},
		{"data/classes.yaml", "c: {sensitivity: 2}\n", "c: {sensitivity: 1}\n", diff.Wider, "c/sensitivity"},
		{"data/classes.yaml", "c: {levels: [A]}\n", "c: {levels: [A, BASIC]}\n", diff.Wider, "c/levels/BASIC"},
		{"data/classes.yaml", "c: {attestation: {required: true}}\n", "c: {attestation: {required: false}}\n", diff.Wider, "c/attestation/required"},
		{"data/classes.yaml", "c: {attestation: {min_score: 5}}\n", "c: {attestation: {min_score: 4}}\n", diff.Wider, "c/attestation/min_score"},
		{"data/classes.yaml", "c: {x: 1, approval: {count: 2, role: r}}\n", "c: {x: 1}\n", diff.Wider, "c/approval"},
		{"data/classes.yaml", "c: {approval: {count: 2, role: r}}\n", "c: {approval: {count: 1, role: r}}\n", diff.Wider, "c/approval/count"},
		{"data/classes.yaml", "c: {obligations: {a: {grade: gated}, b: 1}}\n", "c: {obligations: {b: 1}}\n", diff.Wider, "c/obligations/a"},
		{"data/classes.yaml", "c: {obligations: {a: {grade: gated}}}\n", "c: {obligations: {a: {grade: open}}}\n", diff.Wider, "c/obligations/a/grade"},
		{"data/classes.yaml", "c: {obligations: {a: {ttl_seconds: 1}}}\n", "c: {obligations: {a: {ttl_seconds: 2}}}\n", diff.Wider, "c/obligations/a/ttl_seconds"},
		{"data/limits.yaml", "a: {second_person: {p: s, q: s}}\n", "a: {second_person: {q: s}}\n", diff.Wider, "a/second_person/p"},
		{"risk.yaml", "factors: {a: {weight: 5}}\n", "factors: {a: {weight: 4}}\n", diff.Wider, "factors/a/weight"},
		{"references.yaml", "a: {values: [x]}\n", "a: {values: [x, y]}\n", diff.Wider, "a/values/y"},
		{"references.yaml", "a: {minimum_tcb: 3}\n", "a: {minimum_tcb: 2}\n", diff.Wider, "a/minimum_tcb"},
	} {
		for _, way := range []struct {
			from, to string
			effect   diff.Effect
		}{{c.from, c.to, c.effect}, {c.to, c.from, diff.Narrower}} {
			r, err := diff.Compare(map[string][]byte{c.file: []byte(way.from)}, map[string][]byte{c.file: []byte(way.to)})
			if err != nil || len(r.Changes) != 1 || r.Changes[0].Effect != way.effect || strings.Join(r.Changes[0].Path, "/") != c.path {
				t.Errorf("%s: %q to %q: %+v, %v; want %s at %s", c.file, way.from, way.to, r.Changes, err, way.effect, c.path)
			}
		}
	}
	for _, c := range [][3]string{
		{"zones.yaml", "zones: []\n", "zones: [{name: a, cidrs: [\"0.0.0.0/0\"]}]\n"},
		{"data/classes.yaml", "c: {max_risk: 10}\n", "c: {max_risk: \"10\"}\n"},
		{"data/classes.yaml", "c: {max_risk: 10}\n", "c: {}\n"},
		{"data/classes.yaml", "{}\n", "c: {max_risk: 10}\n"},
		{"data/other.yaml", "a: 1\n", "a: 2\n"},
		{"data/owners.yaml", "a: ann\n", "a: bob\n"},
		{"risk.yaml", "a: {steps: [{from: 1}]}\n", "a: {steps: [{from: 2}]}\n"},
	} {
		r, err := diff.Compare(map[string][]byte{c[0]: []byte(c[1])}, map[string][]byte{c[0]: []byte(c[2])})
		if err != nil || len(r.Changes) != 1 || r.Changes[0].Effect != diff.Unclear || r.Wider() != 1 {
			t.Errorf("%s: %q to %q: %+v, %v; want one that is unclear", c[0], c[1], c[2], r.Changes, err)
		}
	}
}

// What permits more is told first, and nothing is told of what is the same.
func TestOrder(t *testing.T) {
	before, after := shipped(t), shipped(t)
	r, err := diff.Compare(before, after)
	if err != nil || len(r.Changes)+len(r.Texts) != 0 || r.Wider() != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	after["manifest.yaml"] = []byte("format: 1\nname: other\n")
	after["data/members.yaml"] = append(after["data/members.yaml"], "spiffe://dev.bulla.test/new: [operator]\n"...)
	after["zones.yaml"] = append(after["zones.yaml"], "  - {name: new, cidrs: [192.0.2.0/24]}\n"...)
	after["rego/decision.rego"] = append(after["rego/decision.rego"], "\n# more\n"...)
	r, err = diff.Compare(before, after)
	if err != nil {
		t.Fatal(err)
	}
	var effects []diff.Effect
	for _, c := range r.Changes {
		effects = append(effects, c.Effect)
	}
	if !slices.Equal(effects, []diff.Effect{diff.Wider, diff.Unclear, diff.None}) || r.Wider() != 3 {
		t.Errorf("%+v", r.Changes)
	}
	if len(r.Texts) != 1 || !strings.HasSuffix(r.Texts[0].Diff, "!= \"deliver\"\n+\n+# more\n") {
		t.Errorf("%+v", r.Texts)
	}
}

// patch(1) makes the second text of the first and the difference.
func TestUnifiedIsWhatPatchTakes(t *testing.T) {
	xtest.Need(t, "patch")
	rapid.Check(t, func(t *rapid.T) {
		line := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "", "{", "}"}), 1, 40)
		from, to := strings.Join(line.Draw(t, "from"), "\n")+"\n", strings.Join(line.Draw(t, "to"), "\n")+"\n"
		if from == to {
			return
		}
		r, err := diff.Compare(map[string][]byte{"rego/x.rego": []byte(from)}, map[string][]byte{"rego/x.rego": []byte(to)})
		if err != nil || len(r.Texts) != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		dir, err := os.MkdirTemp("", "diff")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		path := filepath.Join(dir, "x")
		if err := os.WriteFile(path, []byte(from), 0o600); err != nil {
			t.Fatal(err)
		}
		c := exec.Command("patch", "--fuzz=0", path)
		c.Stdin = strings.NewReader(r.Texts[0].Diff)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("patch: %v\n%s\n%s", err, out, r.Texts[0].Diff)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != to {
			t.Fatalf("%q, %v; want %q\n%s", got, err, to, r.Texts[0].Diff)
		}
	})
}

// Texts that have nothing in common are told as a whole, in bounded time.
func TestUnifiedIsBounded(t *testing.T) {
	var from, to strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&from, "a%d\n", i)
		fmt.Fprintf(&to, "b%d\n", i)
	}
	r, err := diff.Compare(map[string][]byte{"rego/x.rego": []byte(from.String())}, map[string][]byte{"rego/x.rego": []byte(to.String())})
	if err != nil || strings.Count(r.Texts[0].Diff, "\n") != 40_003 {
		t.Errorf("%d lines, %v", strings.Count(r.Texts[0].Diff, "\n"), err)
	}
}
