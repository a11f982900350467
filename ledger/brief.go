package ledger

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// Brief is what is needed of a session to count it.
type Brief struct {
	State     session.State `json:"state"`
	Principal string        `json:"principal"`
	Device    string        `json:"device"`
	Secret    string        `json:"secret"`
	Version   uint32        `json:"version"`
	Class     string        `json:"class"`
	Grade     string        `json:"grade"`
	Used      uint32        `json:"used"`
	UsedAt    event.Time    `json:"used_at"`
	Issued    event.Time    `json:"issued_at"`
	Expires   event.Time    `json:"expires_at"`
	Revision  string        `json:"revision"`
	Erased    int64         `json:"erased"` // not 0: the rest is not known, but for the state
}

// Lives says whether the session can still be used at now.
func (b Brief) Lives(now time.Time) bool {
	return !session.Session{State: b.State, Expires: b.Expires}.StateAt(now).Ended()
}

// parseBrief reads the row of a session. Rows are written by this program, in one form, which is read in one pass: a
// tenth of what the general decoder takes. Whatever looks different is left to that one.
func parseBrief(row []byte) (b Brief, err error) {
	if b.quick(row) {
		return b, nil
	}
	b = Brief{}
	err = json.Unmarshal(row, &b)
	return b, err
}

func (b *Brief) quick(row []byte) bool {
	if len(row) < 2 || row[0] != '{' || row[len(row)-1] != '}' {
		return false
	}
	rest := row[1 : len(row)-1]
	for len(rest) > 0 {
		key, after, ok := quickString(rest)
		if !ok || len(after) == 0 || after[0] != ':' {
			return false
		}
		value, after, ok := quickValue(after[1:])
		if !ok || !b.set(string(key), value) {
			return false
		}
		if rest = after; len(rest) > 0 {
			if rest[0] != ',' || len(rest) == 1 {
				return false
			}
			rest = rest[1:]
		}
	}
	return true
}

// quickString reads a string without escapes, and returns what is between its quotes.
func quickString(in []byte) (text, rest []byte, ok bool) {
	if len(in) == 0 || in[0] != '"' {
		return nil, nil, false
	}
	for i := 1; i < len(in); i++ {
		switch c := in[i]; {
		case c == '"':
			return in[1:i], in[i+1:], true
		case c == '\\' || c < ' ' || c > '~':
			return nil, nil, false
		}
	}
	return nil, nil, false
}

// quickValue returns the text of a value: a string with its quotes, or a number, word, list or object.
func quickValue(in []byte) (value, rest []byte, ok bool) {
	depth := 0
	for i := 0; i < len(in); i++ {
		switch c := in[i]; c {
		case '"':
			text, _, ok := quickString(in[i:])
			if !ok {
				return nil, nil, false
			}
			i += len(text) + 1
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth < 0 {
				return nil, nil, false
			}
		case ',':
			if depth == 0 {
				return in[:i], in[i:], i > 0
			}
		}
	}
	return in, nil, depth == 0 && len(in) > 0
}

// set puts a value in its place; one that nobody needs is not looked at.
func (b *Brief) set(key string, value []byte) bool {
	switch key {
	case "state":
		text, ok := plainText(value)
		b.State = session.State(text)
		return ok
	case "principal":
		return quickText(&b.Principal, value)
	case "device":
		return quickText(&b.Device, value)
	case "secret":
		return quickText(&b.Secret, value)
	case "class":
		return quickText(&b.Class, value)
	case "grade":
		return quickText(&b.Grade, value)
	case "revision":
		return quickText(&b.Revision, value)
	case "version":
		return quickNumber(&b.Version, value)
	case "used":
		return quickNumber(&b.Used, value)
	case "erased":
		n, err := strconv.ParseInt(string(value), 10, 64)
		b.Erased = n
		return err == nil
	case "used_at":
		return quickTime(&b.UsedAt, value)
	case "issued_at":
		return quickTime(&b.Issued, value)
	case "expires_at":
		return quickTime(&b.Expires, value)
	}
	return key == strings.ToLower(key) // the general decoder does not tell them apart
}

func plainText(value []byte) ([]byte, bool) {
	text, rest, ok := quickString(value)
	return text, ok && len(rest) == 0
}

func quickText(to *string, value []byte) bool {
	text, ok := plainText(value)
	*to = string(text)
	return ok
}

func quickNumber(to *uint32, value []byte) bool {
	n, err := strconv.ParseUint(string(value), 10, 32)
	*to = uint32(n)
	return err == nil
}

func quickTime(to *event.Time, value []byte) bool {
	text, ok := plainText(value)
	return ok && to.UnmarshalText(text) == nil
}
