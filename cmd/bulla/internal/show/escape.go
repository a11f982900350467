// Package show puts what the command line has to say in front of people and scripts: text whose every foreign
// part is escaped, tables that fit a terminal of 80 columns, JSON, and progress.
//
// Names, reasons and texts of errors come from outside. Before they reach a terminal each of them goes through
// [Text] (or [Lines]), and JSON through [JSON]: nothing that a terminal would obey, or that would show text in
// another order than it is written, gets through. The package knows no commands and decides nothing.
package show

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Text returns s as one line that a terminal shows as it is written. Control characters, format characters
// (among them those that turn the direction of text), line separators, private and unassigned characters, and
// bytes that are not UTF-8 become backslash escapes as in Go, and so does the backslash itself.
func Text(s string) string {
	if plain(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case r == '\\':
			b.WriteString(`\\`)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case harmless(r):
			b.WriteRune(r)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
		s = s[size:]
	}
	return b.String()
}

func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' || s[i] == '\\' {
			return false
		}
	}
	return true
}

// harmless says whether a terminal may get r. The only space is the plain one: others look alike. Characters
// without width of their own (marks) are text in many languages and stay; those without any sign do not.
func harmless(r rune) bool {
	if !unicode.IsPrint(r) || unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r) || unicode.Is(unicode.Variation_Selector, r) {
		return false
	}
	return r != 0x115f && r != 0x1160 && r != 0x3164 && r != 0xffa0 // Hangul fillers: letters that show nothing
}

// Lines is Text for a text of several lines: each is escaped, and all but the first are indented, so that
// none of them can pass for a line of the program's own.
func Lines(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i, l := range lines {
		lines[i] = Text(l)
	}
	return strings.Join(lines, "\n  ")
}

// Shorten takes characters out of the middle of s, which is escaped already, until width are left. Both ends
// stay, since ids differ at their ends.
func Shorten(s string, width int) string {
	runes := []rune(s)
	if len(runes) <= width || width < 3 {
		return s
	}
	head := (width - 1) / 2
	return string(runes[:head]) + "…" + string(runes[len(runes)-(width-1-head):])
}
