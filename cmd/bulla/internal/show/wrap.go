package show

import (
	"strings"
	"unicode/utf8"
)

// Wrap breaks the paragraphs of a text, which are separated by empty lines, into lines of at most width
// characters. A word that is longer gets a line of its own. Line breaks within a paragraph count as spaces.
func Wrap(text string, width int) string {
	var out []string
	for _, paragraph := range strings.Split(strings.TrimSpace(text), "\n\n") {
		var lines []string
		line := ""
		for _, word := range strings.Fields(paragraph) {
			switch {
			case line == "":
				line = word
			case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= width:
				line += " " + word
			default:
				lines, line = append(lines, line), word
			}
		}
		out = append(out, strings.Join(append(lines, line), "\n"))
	}
	return strings.Join(out, "\n\n")
}
