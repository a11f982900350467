package ocsf

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/bulla-project/bulla/ledger/event"
)

// TestDocumentation holds docs/export.md to the code: each type of events with its class, and each field.
func TestDocumentation(t *testing.T) {
	text, err := os.ReadFile("../../docs/export.md")
	if err != nil {
		t.Fatal(err)
	}
	manual := string(text)
	for _, kind := range event.Types() {
		r := rules[kind]
		name := classes[r.class].activities[r.activity]
		if name == "" {
			name = "by what was asked"
		}
		row := fmt.Sprintf("| `%s` | %s | %s | %s | %s |\n", kind, classes[r.class].name, name, severities[r.severity], r.message)
		if !strings.Contains(manual, row) {
			t.Errorf("docs/export.md lacks the row\n%s", row)
		}
	}
	written := map[string]bool{}
	for _, line := range lines(t) {
		var o any
		if err := json.Unmarshal(line, &o); err != nil {
			t.Fatal(err)
		}
		paths("", o, written)
	}
	told := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| ((?:`[a-z0-9_.]+`(?:, )?)+) \\| ").FindAllStringSubmatch(section(t, manual), -1) {
		for _, path := range regexp.MustCompile("[a-z0-9_.]+").FindAllString(m[1], -1) {
			told[path] = true
		}
	}
	for _, path := range slices.Sorted(maps.Keys(written)) {
		if !told[path] {
			t.Errorf("docs/export.md does not tell of the field %s", path)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(told)) {
		if !written[path] && !strings.HasSuffix(path, "_left_out") {
			t.Errorf("docs/export.md tells of the field %s, which no event has", path)
		}
	}
}

func section(t *testing.T, manual string) string {
	_, rest, found := strings.Cut(manual, "## The fields\n")
	if !found {
		t.Fatal("docs/export.md has no section \"The fields\"")
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	return rest
}

// paths collects the paths of all values.
func paths(at string, v any, into map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			paths(strings.TrimPrefix(at+"."+name, "."), value, into)
		}
	case []any:
		for _, value := range v {
			paths(at, value, into)
		}
	default:
		into[at] = true
	}
}
