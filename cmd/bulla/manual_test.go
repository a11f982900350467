package main

import (
	"regexp"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// manual FILE ENVDIR runs each block of a manual that is marked "sh ROLE", as that identity of `bulla dev`. A block of
// text behind it shows what is printed: each of its lines begins with the same word as a line that was.
func manual(ts *testscript.TestScript, _ bool, args []string) {
	blocks := regexp.MustCompile("(?ms)^```(sh|text)(?: (\\w+))?\n(.*?)^```$").FindAllStringSubmatch(ts.ReadFile(args[0]), -1)
	if len(blocks) < 8 {
		ts.Fatalf("%s has %d blocks: does it have another form?", args[0], len(blocks))
	}
	printed := map[string]bool{}
	for _, b := range blocks {
		kind, role, text := b[1], b[2], b[3]
		if kind == "sh" {
			as(ts, false, []string{args[1] + "/" + role + ".sh"})
			ts.Check(ts.Exec("sh", "-euc", text))
			printed = firstWords(ts.ReadFile("stdout"))
			continue
		}
		for word := range firstWords(text) {
			if !printed[word] {
				ts.Fatalf("%s shows a line that begins with %q; printed were %v", args[0], word, printed)
			}
		}
	}
}

func firstWords(text string) map[string]bool {
	out := map[string]bool{}
	for _, line := range strings.Split(text, "\n") {
		word, _, _ := strings.Cut(line, " ")
		if word != "" {
			out[strings.TrimLeft(word, "0123456789")] = true // counts differ
		}
	}
	return out
}
