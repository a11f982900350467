package strictyaml_test

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/internal/strictyaml"
)

type limits struct {
	Uses  int8    `yaml:"uses"`
	Ratio float64 `yaml:"ratio"`
	Mode  uint32  `yaml:"mode"`
}

type common struct {
	Name string `yaml:"name"`
}

type config struct {
	Base    common            `yaml:",inline"`
	Listen  netip.AddrPort    `yaml:"listen"`
	Every   time.Duration     `yaml:"every"`
	On      bool              `yaml:"on"`
	Domains []string          `yaml:"domains"`
	Pair    [2]int            `yaml:"pair"`
	Labels  map[string]string `yaml:"labels"`
	PCRs    map[int]string    `yaml:"pcrs"`
	Limits  *limits           `yaml:"limits"`
	Data    any               `yaml:"data"`
	When    time.Time         `yaml:"when"`
	Plain   int
	Skipped string `yaml:"-"`
}

func TestDecode(t *testing.T) {
	const doc = `# a comment
name: broker
listen: 127.0.0.1:8443
every: 1h30m
on: true
domains: [a.test, "b.test"]
pair:
  - 1
  - -2
labels: {version: 1.10, digest: 12e4, yes: no}
pcrs:
  0: 00ff
  0x7: "77"
limits:
  uses: 3
  ratio: 0.5
  mode: 0o640
data: {a: [1, 2.5, true, null, x, "1"], b: {}}
when: 2026-11-22T10:00:00Z
plain: 7
`
	want := config{
		Base: common{"broker"}, Listen: netip.MustParseAddrPort("127.0.0.1:8443"), Every: 90 * time.Minute, On: true,
		Domains: []string{"a.test", "b.test"}, Pair: [2]int{1, -2},
		Labels: map[string]string{"version": "1.10", "digest": "12e4", "yes": "no"},
		PCRs:   map[int]string{0: "00ff", 7: "77"}, Limits: &limits{3, 0.5, 0o640},
		Data: map[string]any{"a": []any{int64(1), 2.5, true, nil, "x", "1"}, "b": map[string]any{}},
		When: time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC), Plain: 7,
	}
	var got config
	if err := strictyaml.Decode("c.yaml", []byte(doc), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestDefaultsStayAndPointersAreNotShared(t *testing.T) {
	defaults := &limits{Uses: 9, Mode: 0o600}
	got := config{Limits: defaults, Plain: 5, Labels: map[string]string{"old": "1"}}
	if err := strictyaml.Decode("c", []byte("limits: {uses: 1}\nlabels: {new: 2}"), &got); err != nil {
		t.Fatal(err)
	}
	want := config{Limits: &limits{Uses: 1, Mode: 0o600}, Plain: 5, Labels: map[string]string{"new": "2"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if defaults.Uses != 9 {
		t.Error("the value that the pointer named was changed")
	}
}

func TestNoDocumentChangesNothing(t *testing.T) {
	for _, doc := range []string{"", "\n\n", "# only a comment\n"} {
		got := config{Plain: 3}
		if err := strictyaml.Decode("c", []byte(doc), &got); err != nil || got.Plain != 3 {
			t.Errorf("%q: %+v, %v", doc, got, err)
		}
	}
}

func TestFaults(t *testing.T) {
	for _, c := range []struct{ name, doc, want string }{
		{"unknown key", "plain: 1\nlisten_: x", `c.yaml:2:1: unknown key "listen_"; known here: data, domains, every,`},
		{"unknown key below", "limits:\n  uses: 1\n  usess: 2", `c.yaml:3:3: unknown key "usess"; known here: mode, ratio, uses`},
		{"key in another case", "Plain: 1", `c.yaml:1:1: unknown key "Plain"`},
		{"field left out", "skipped: 1", `c.yaml:1:1: unknown key "skipped"`},
		{"inline's own name", "base: {name: x}", `c.yaml:1:1: unknown key "base"`},
		{"duplicate key", "plain: 1\nplain: 2", `c.yaml:2:1: duplicate key "plain": it stands in line 1 already`},
		{"duplicate quoted key", "labels:\n  a: 1\n  'a': 2", `c.yaml:3:3: duplicate key "a"`},
		{"duplicate in any", "data: {x: {y: 1, y: 1}}", `c.yaml:1:18: duplicate key "y"`},
		{"duplicate by value", "pcrs: {10: a, 0xa: b}", `c.yaml:1:15: duplicate key "0xa"`},
		{"no value", "name:\nplain: 1", "c.yaml:1:6: no value"},
		{"tilde", "labels: ~", "c.yaml:1:9: no value"},
		{"null in a list", "domains: [a, null]", "c.yaml:1:14: no value"},
		{"anchor", "name: &x a", "c.yaml:1:7: anchors"},
		{"alias", "name: &x a\ndomains: [*x]", "c.yaml:2:11: anchors"},
		{"merge", "<<: {plain: 1}", "c.yaml:1:1: merge keys"},
		{"tag", "plain: !!int 1", "c.yaml:1:8: explicit tags"},
		{"bare tag", "plain: ! 1", "c.yaml:1:8: explicit tags"},
		{"list as key", "? [a]\n: 1", "c.yaml:1:3: a key must be plain text"},
		{"null as key", "labels: {~: x}", "c.yaml:1:10: a key must be plain text"},
		{"second document", "plain: 1\n---\nplain: 2", "c.yaml:2:1: a second document"},
		{"fault after the document", "plain: 1\n---\n[", "c.yaml:4:1: not YAML"},
		{"directive", "%YAML 1.2\n---\nplain: 1", "c.yaml:1:1: not YAML"},
		{"tab", "plain: 1\n\tx: 2", "c.yaml:2:1: not YAML"},
		{"cut", "domains: [a,", "c.yaml:2:1: not YAML"},
		{"quoted integer", `plain: "1"`, "c.yaml:1:8: wants an integer from -9223372036854775808 to 9223372036854775807"},
		{"octal by leading zero", "plain: 010", "c.yaml:1:8: wants an integer"},
		{"underscores", "plain: 1_000", "c.yaml:1:8: wants an integer"},
		{"plus", "plain: +1", "c.yaml:1:8: wants an integer"},
		{"fraction", "plain: 1.0", "c.yaml:1:8: wants an integer"},
		{"range", "limits: {uses: 128}", "c.yaml:1:16: wants an integer from -128 to 127"},
		{"negative", "limits: {mode: -1}", "c.yaml:1:16: wants an integer from 0 to 4294967295"},
		{"integer beyond any", "data: 9223372036854775808", "c.yaml:1:7: wants an integer"},
		{"infinite", "limits: {ratio: .inf}", "c.yaml:1:17: wants a number"},
		{"float overflow", "limits: {ratio: 1e999}", "c.yaml:1:17: wants a number"},
		{"yes", "on: yes", "c.yaml:1:5: wants true or false"},
		{"capital true", "on: True", "c.yaml:1:5: wants true or false"},
		{"quoted true", "on: 'true'", "c.yaml:1:5: wants true or false"},
		{"duration without unit", "every: 90", "c.yaml:1:8: wants a duration such as 90s"},
		{"duration as list", "every: [1s]", "c.yaml:1:8: wants a duration"},
		{"text of a type", "listen: nowhere", "c.yaml:1:9: "},
		{"list for text of a type", "listen: [a]", "c.yaml:1:9: wants a single value, not a list"},
		{"text for list", "domains: a", "c.yaml:1:10: wants a list, not a single value"},
		{"wrong length", "pair: [1]", "c.yaml:1:7: wants a list of exactly 2, not of 1"},
		{"text for map", "labels: a", "c.yaml:1:9: wants keys and values, not a single value"},
		{"list for struct", "limits: [1]", "c.yaml:1:9: wants keys and values, not a list"},
		{"map for text", "name: {a: b}", "c.yaml:1:7: wants a text, not keys and values"},
		{"not a mapping", "- a", "c.yaml:1:1: wants keys and values, not a list"},
		{"control character", "plain: 1\nname: a\x07", "c.yaml:2:8: the control character U+0007"},
		{"C1 control", "name: \u0085", "c.yaml:1:7: the control character U+0085"},
		{"byte order mark", "\ufeffplain: 1", "c.yaml:1:1: the control character U+FEFF"},
		{"not UTF-8", "name: é\xff", "c.yaml:1:8: this byte is not UTF-8"},
		{"too large", "# " + strings.Repeat("x", strictyaml.MaxSize), "c.yaml: has 1048578 bytes"},
		{"too deep in flow", "data: " + strings.Repeat("[", 40) + strings.Repeat("]", 40), "c.yaml:1:39: not YAML: exceeded max depth"},
		{"too deep in both", "data:\n" + block(20) + strings.Repeat("[", 20) + strings.Repeat("]", 20), ": nested deeper than 32"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := config{Plain: 42}
			err := strictyaml.Decode("c.yaml", []byte(c.doc), &got)
			if err == nil {
				t.Fatalf("accepted as %+v", got)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q\nwant    %q", err, c.want)
			}
			var f *strictyaml.Fault
			if !errors.As(err, &f) || f.File != "c.yaml" {
				t.Errorf("%T is no fault of c.yaml", err)
			}
			if !reflect.DeepEqual(got, config{Plain: 42}) {
				t.Errorf("written in spite of the error: %+v", got)
			}
		})
	}
}

// block returns a mapping n deep in block style, with its innermost value still to come.
func block(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%sk:\n", strings.Repeat(" ", i+1))
	}
	return b.String() + strings.Repeat(" ", n+1)
}

func TestDeepestAllowed(t *testing.T) {
	open, end := strings.Repeat("[", strictyaml.MaxDepth-1), strings.Repeat("]", strictyaml.MaxDepth-1)
	var got config
	if err := strictyaml.Decode("c", []byte("data: "+open+"1"+end), &got); err != nil {
		t.Error(err)
	}
	if err := strictyaml.Decode("c", []byte("data: ["+open+"1"+end+"]"), &got); err == nil {
		t.Error("one deeper is accepted")
	}
}

func TestAllFaultsAtOnce(t *testing.T) {
	err := strictyaml.Decode("c", []byte("a: 1\non: 3\nplain: x\nlimits: {b: 1, uses: 300}"), new(config))
	if got := strings.Count(err.Error(), "\n") + 1; got != 5 {
		t.Errorf("%d faults, want 5:\n%v", got, err)
	}
	var many strings.Builder
	for i := range strictyaml.MaxFaults + 7 {
		fmt.Fprintf(&many, "k%d: 1\n", i)
	}
	err = strictyaml.Decode("c", []byte(many.String()), new(config))
	if !strings.HasSuffix(err.Error(), "c: and 7 more") {
		t.Errorf("got\n%v", err)
	}
}

func TestMessagesShowKeysEscapedAndCut(t *testing.T) {
	err := strictyaml.Decode("c", []byte(`"\e[31m`+strings.Repeat("é", 100)+`": 1`), new(config))
	if err == nil || strings.ContainsRune(err.Error(), 0x1b) || len(err.Error()) > 250 {
		t.Errorf("got %q", err)
	}
}

func TestBugsOfTheCallerPanic(t *testing.T) {
	for name, out := range map[string]any{
		"no pointer": config{},
		"nil":        (*config)(nil),
		"channel":    new(struct{ X chan int }),
		"two for a key": new(struct {
			A int `yaml:"x"`
			B int `yaml:"x"`
		}),
		"inline": new(struct {
			A int `yaml:",inline"`
		}),
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if s, _ := recover().(string); !strings.HasPrefix(s, "strictyaml: internal error") {
					t.Errorf("recovered %q", s)
				}
			}()
			_ = strictyaml.Decode("c", []byte("x: 1"), out)
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		"", "name: a\nplain: 1\n", "a: &x [*x]", "<<: {a: 1}", "? [a]\n: {b: c}", "data: [1, 2.5, {a: ~}]", "--- a\n--- b",
		"labels: {0x1: a, 1: b}", "pcrs: {0x1: a, 1: b}", "limits:\n  uses: 1\n  ratio: 1e3\n", "name: |\n  x\n   y\n", "%TAG ! a\n---\n!x",
		"when: 2026-01-01T00:00:00Z\nlisten: '[::1]:1'", strings.Repeat("- ", 100), strings.Repeat("[", 100), "a: 'x", "\"\\u0000\": 1",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got := config{Plain: 42}
		err := strictyaml.Decode("f", data, &got)
		if err != nil && !reflect.DeepEqual(got, config{Plain: 42}) {
			t.Fatalf("written in spite of %v: %+v", err, got)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "f:") {
			t.Fatalf("error without a place: %v", err)
		}
		var again config
		if err == nil && strictyaml.Decode("f", data, &again) != nil {
			t.Fatal("accepted once and refused once")
		}
	})
}
