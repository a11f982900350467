package arch_test

import (
	"go/parser"
	"go/token"
	"slices"
	"strings"
	"testing"
)

// The rules above pass on a tidy tree; here they have to fail on an untidy one.

func small() graph {
	return graph{
		module + "/low":  {ImportPath: module + "/low"},
		module + "/high": {ImportPath: module + "/high", Imports: []string{module + "/low", "example.com/db/driver"}},
	}
}

func TestPictureFaults(t *testing.T) {
	tests := map[string]struct {
		rows []row
		want string // part of the one fault; empty = none
	}{
		"as it is":        {[]row{{"low", nil}, {"high", map[string]string{"low": "why"}}}, ""},
		"unlisted":        {[]row{{"high", map[string]string{"low": "why"}}}, "low is not in the picture"},
		"no reason":       {[]row{{"low", nil}, {"high", nil}}, "gives no reason"},
		"upwards":         {[]row{{"high", map[string]string{"low": "why"}}, {"low", nil}}, "imports go down only"},
		"stale reason":    {[]row{{"low", nil}, {"high", map[string]string{"low": "why", "gone": "why"}}}, "no longer imports gone"},
		"stale row":       {[]row{{"low", nil}, {"gone", nil}, {"high", map[string]string{"low": "why"}}}, "gone is in the picture"},
		"row given twice": {[]row{{"low", nil}, {"low", nil}, {"high", map[string]string{"low": "why"}}}, "low stands in the picture twice"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := pictureFaults(small(), tt.rows)
			if tt.want == "" {
				if len(got) > 0 {
					t.Errorf("faults %q, want none", got)
				}
				return
			}
			if len(got) != 1 || !strings.Contains(got[0], tt.want) {
				t.Errorf("faults %q, want one with %q", got, tt.want)
			}
		})
	}
}

func TestReachFaults(t *testing.T) {
	tests := map[string]struct {
		ban  ban
		want int
	}{
		"a third party by its root":    {ban{"high", "example.com/db", "why"}, 1},
		"a package of the module":      {ban{"high", module + "/low", "why"}, 1},
		"not there":                    {ban{"low", "example.com/db", "why"}, 0},
		"a name that only starts so":   {ban{"high", "example.com/d", "why"}, 0},
		"a ban on a package not there": {ban{"gone", "example.com/db", "why"}, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := reachFaults(small(), []ban{tt.ban}); len(got) != tt.want {
				t.Errorf("faults %q, want %d", got, tt.want)
			}
		})
	}
}

func TestExitsFinds(t *testing.T) {
	const src = `package p
import ("log"; "os")
func f() { defer os.Exit(1); log.Fatalf("x"); os.Getenv("y") }`
	f, err := parser.ParseFile(token.NewFileSet(), "p.go", src, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := exits(f); !slices.Equal(got, []string{"os.Exit", "log.Fatalf"}) {
		t.Errorf("found %q", got)
	}
}
