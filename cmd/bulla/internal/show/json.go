package show

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"unicode/utf8"
)

// JSON writes v as one indented object and a newline. Whatever Text would escape is a \u escape in it: that is
// the same value to every reader, and harmless on a terminal.
func JSON(w io.Writer, v any) error { return writeJSON(w, v, "  ") }

// JSONLine is JSON on a single line, for streams.
func JSONLine(w io.Writer, v any) error { return writeJSON(w, v, "") }

func writeJSON(w io.Writer, v any, indent string) error {
	var buf bytes.Buffer
	defer func() { clear(buf.Bytes()) }() // it may hold a secret
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return err
	}
	text := buf.Bytes()
	if !plainJSON(text) {
		text = escapeJSON(text)
	}
	_, err := w.Write(text)
	return err
}

func plainJSON(text []byte) bool {
	for _, c := range text {
		if c > '~' || c < ' ' && c != '\n' {
			return false
		}
	}
	return true
}

// escapeJSON works on the whole text: outside of strings JSON is ASCII.
func escapeJSON(text []byte) []byte {
	out := make([]byte, 0, len(text)+len(text)/4)
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		switch {
		case r == '\n' || r < 0x7f || r != utf8.RuneError && harmless(r):
			out = append(out, text[:size]...)
		case r > 0xffff:
			r -= 0x10000
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		text = text[size:]
	}
	return out
}
