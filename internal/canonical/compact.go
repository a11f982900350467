package canonical

import "bytes"

// maxDepth is how deep compact looks; what is nested deeper is left to encoding/json.
const maxDepth = 64

// compact reports whether b is one JSON value (RFC 8259) without insignificant space, which encoding/json copies as it
// is. It may say false of one that is.
func compact(b []byte) bool {
	s := scanner{b: b}
	return s.value(maxDepth) && s.at == len(b)
}

// special are the bytes that do not stand for themselves in a text.
var special = func() (t [256]bool) {
	for c := range byte(' ') {
		t[c] = true
	}
	t['"'], t['\\'] = true, true
	return t
}()

// scanner goes over a JSON text once. Its methods report whether they found what they are named after.
type scanner struct {
	b  []byte
	at int
}

// next takes the byte c.
func (s *scanner) next(c byte) bool {
	if s.at < len(s.b) && s.b[s.at] == c {
		s.at++
		return true
	}
	return false
}

func (s *scanner) value(depth int) bool {
	if s.at >= len(s.b) || depth == 0 {
		return false
	}
	switch s.b[s.at] {
	case '"':
		return s.text()
	case '{':
		return s.list('}', func() bool { return s.text() && s.next(':') && s.value(depth-1) })
	case '[':
		return s.list(']', func() bool { return s.value(depth - 1) })
	case 't':
		return s.word("true")
	case 'f':
		return s.word("false")
	case 'n':
		return s.word("null")
	}
	return s.number()
}

// list takes the byte at which it stands, elements with commas between them, and the byte end.
func (s *scanner) list(end byte, element func() bool) bool {
	s.at++
	if s.next(end) {
		return true
	}
	for element() {
		if s.next(end) {
			return true
		}
		if !s.next(',') {
			return false
		}
	}
	return false
}

func (s *scanner) word(w string) bool {
	if len(s.b)-s.at < len(w) || string(s.b[s.at:s.at+len(w)]) != w {
		return false
	}
	s.at += len(w)
	return true
}

func (s *scanner) text() bool {
	if !s.next('"') {
		return false
	}
	for {
		at := s.at
		for len(s.b)-at >= 8 && !odd(eight(s.b, at)) {
			at += 8
		}
		for at < len(s.b) && !special[s.b[at]] {
			at++
		}
		if s.at = at + 1; at >= len(s.b) {
			return false
		}
		if c := s.b[at]; c == '"' {
			return true
		} else if c != '\\' || !s.escape() {
			return false
		}
	}
}

func (s *scanner) escape() bool {
	if s.at >= len(s.b) {
		return false
	}
	c := s.b[s.at]
	s.at++
	if c != 'u' {
		return bytes.IndexByte([]byte(`"\/bfnrt`), c) >= 0
	}
	for range 4 {
		if s.at >= len(s.b) || !hex(s.b[s.at]) {
			return false
		}
		s.at++
	}
	return true
}

func hex(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' }

func (s *scanner) number() bool {
	s.next('-')
	if !s.next('0') && !s.digits() {
		return false
	}
	if s.next('.') && !s.digits() {
		return false
	}
	if s.next('e') || s.next('E') {
		if !s.next('+') {
			s.next('-')
		}
		return s.digits()
	}
	return true
}

// digits takes one or more.
func (s *scanner) digits() bool {
	from := s.at
	for s.at < len(s.b) && s.b[s.at] >= '0' && s.b[s.at] <= '9' {
		s.at++
	}
	return s.at > from
}
