package diff

import (
	"fmt"
	"strings"
)

const (
	contextLines = 3
	// maxEdits bounds the search for the shortest script; two files that differ in more lines are told as a whole.
	maxEdits = 1000
)

// edit is one line of a script: ' ' stays, '-' goes, '+' comes.
type edit struct {
	kind byte
	line string
}

// unified writes the difference of two texts in the unified format of diff(1).
func unified(name, before, after string) string {
	script := edits(lines(before), lines(after))
	var out strings.Builder
	fmt.Fprintf(&out, "--- a/%s\n+++ b/%s\n", name, name)
	for from := 0; from < len(script); {
		first := from
		for first < len(script) && script[first].kind == ' ' {
			first++
		}
		if first == len(script) {
			break
		}
		end, quiet := first, 0 // one behind the last change, and how many lines stay after it
		for i := first; i < len(script) && quiet <= 2*contextLines; i++ {
			if quiet++; script[i].kind != ' ' {
				end, quiet = i+1, 0
			}
		}
		hunk(&out, script, max(from, first-contextLines), min(len(script), end+contextLines))
		from = min(len(script), end+contextLines)
	}
	return out.String()
}

func hunk(out *strings.Builder, script []edit, from, to int) {
	var a, b int // lines before the hunk
	for _, e := range script[:from] {
		a, b = a+count(e, '-'), b+count(e, '+')
	}
	var na, nb int
	for _, e := range script[from:to] {
		na, nb = na+count(e, '-'), nb+count(e, '+')
	}
	fmt.Fprintf(out, "@@ -%d,%d +%d,%d @@\n", min(a+1, a+na), na, min(b+1, b+nb), nb)
	for _, e := range script[from:to] {
		fmt.Fprintf(out, "%c%s\n", e.kind, e.line)
	}
}

// count is 1 for a line that is on the side of kind.
func count(e edit, kind byte) int {
	if e.kind == ' ' || e.kind == kind {
		return 1
	}
	return 0
}

func lines(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

// edits is the shortest script from a to b, after E. Myers, "An O(ND) Difference Algorithm" (1986).
func edits(a, b []string) []edit {
	start := 0
	for start < len(a) && start < len(b) && a[start] == b[start] {
		start++
	}
	end := 0
	for end < len(a)-start && end < len(b)-start && a[len(a)-1-end] == b[len(b)-1-end] {
		end++
	}
	var out []edit
	for _, l := range a[:start] {
		out = append(out, edit{' ', l})
	}
	out = append(out, shortest(a[start:len(a)-end], b[start:len(b)-end])...)
	for _, l := range a[len(a)-end:] {
		out = append(out, edit{' ', l})
	}
	return out
}

func shortest(a, b []string) []edit {
	most := min(len(a)+len(b), maxEdits)
	reach := make([]int, 2*most+3) // the furthest line of a on each diagonal
	at := func(k int) int { return k + most + 1 }
	var trace [][]int
	for d := 0; d <= most; d++ {
		trace = append(trace, append([]int(nil), reach...))
		for k := -d; k <= d; k += 2 {
			x := reach[at(k-1)] + 1
			if k == -d || k != d && reach[at(k-1)] < reach[at(k+1)] {
				x = reach[at(k+1)]
			}
			for x < len(a) && x-k < len(b) && a[x] == b[x-k] {
				x++
			}
			reach[at(k)] = x
			if x >= len(a) && x-k >= len(b) {
				return walk(a, b, trace, at)
			}
		}
	}
	var out []edit
	for _, l := range a {
		out = append(out, edit{'-', l})
	}
	for _, l := range b {
		out = append(out, edit{'+', l})
	}
	return out
}

// walk goes back from the end along the way that was found.
func walk(a, b []string, trace [][]int, at func(int) int) []edit {
	x, y := len(a), len(b)
	var back []edit
	for d := len(trace) - 1; d >= 0; d-- {
		reach, k := trace[d], x-y
		before := k - 1
		if k == -d || k != d && reach[at(k-1)] < reach[at(k+1)] {
			before = k + 1
		}
		fromX := reach[at(before)]
		fromY := fromX - before
		if d == 0 {
			fromX, fromY = 0, 0
		}
		for x > fromX && y > fromY {
			x, y = x-1, y-1
			back = append(back, edit{' ', a[x]})
		}
		if d == 0 {
			break
		}
		if x > fromX {
			x--
			back = append(back, edit{'-', a[x]})
		} else {
			y--
			back = append(back, edit{'+', b[y]})
		}
	}
	for i, j := 0, len(back)-1; i < j; i, j = i+1, j-1 {
		back[i], back[j] = back[j], back[i]
	}
	return back
}
