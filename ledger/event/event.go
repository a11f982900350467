// Package event defines what the ledger records: typed events, their one canonical encoding, and the
// commitments that stand for them in the Merkle log.
//
// An event is encoded as JSON in the field order of the Go types, without insignificant space. Decode
// refuses whatever it would not itself have written, so that an event has exactly one byte string and
// auditors can read it. The package knows vocabulary only: it neither stores, orders nor judges.
package event

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/bulla-project/bulla/internal/canonical"
)

// MaxSize is the largest encoded event, in bytes.
const MaxSize = 1 << 20

// Version is the format of the encoding.
const Version = 1

// ErrMalformed is wrapped by every refusal of Decode and of the parsers of this package.
var ErrMalformed = errors.New("malformed event")

// Type names the kind of an event, such as "session.issued".
type Type string

// Body is the typed content of an event; the types of this package are all there are.
type Body interface {
	// EventType names the type; it is constant for a Go type.
	EventType() Type
}

// Event is one thing that happened, or was refused.
type Event struct {
	ID   ID
	Time Time
	// Subject is the SPIFFE ID of the principal whom the body is about; the body lies encrypted under
	// the subject's key. Empty: the ledger itself.
	Subject string
	Body    Body
}

// New makes an event of body that happens at now.
func New(now time.Time, subject string, body Body) Event {
	return Event{ID: NewID(now), Time: NewTime(now), Subject: subject, Body: body}
}

// head is what stands before the body in an encoding.
type head struct {
	V       int    `json:"v"`
	ID      ID     `json:"id"`
	Time    Time   `json:"time"`
	Type    Type   `json:"type"`
	Subject string `json:"subject,omitempty"`
}

// bodyKey begins the last field of an encoding. No text holds it, since quotes are escaped there.
const bodyKey = `,"body":`

// Encode returns the canonical encoding of e.
func (e Event) Encode() ([]byte, error) { return e.AppendEncoding(nil) }

// AppendEncoding adds the canonical encoding of e to out.
func (e Event) AppendEncoding(out []byte) ([]byte, error) {
	room := buffers.Get().(*[]byte)
	defer buffers.Put(room)
	enc, err := e.encode((*room)[:0])
	if err != nil {
		return nil, err
	}
	*room = enc
	return append(slices.Grow(out, len(enc)), enc...), nil
}

// encode is AppendEncoding for an out that may grow beyond what the encoding needs.
func (e Event) encode(out []byte) ([]byte, error) {
	if e.Body == nil {
		return nil, fmt.Errorf("encode event: %w: no body", ErrMalformed)
	}
	kind := e.Body.EventType()
	enc, err := canonical.Append(out, head{Version, e.ID, e.Time, kind, e.Subject})
	if err != nil {
		return nil, fmt.Errorf("encode event %s: %w", kind, err)
	}
	enc = append(enc[:len(enc)-len("}")], bodyKey...)
	if enc, err = canonical.Append(enc, e.Body); err != nil {
		return nil, fmt.Errorf("encode event %s: %w", kind, err)
	}
	enc = append(enc, '}')
	return enc, e.check(enc)
}

// check says what is wrong with e, of which enc is the encoding.
func (e Event) check(enc []byte) error {
	kind := e.Body.EventType()
	switch {
	case e.ID.IsZero() || e.Time.IsZero():
		return fmt.Errorf("event %s: %w: no id or time", kind, ErrMalformed)
	case replaced(enc):
		return fmt.Errorf("event %s: %w: a text is not UTF-8", kind, ErrMalformed)
	case len(enc) > MaxSize:
		return fmt.Errorf("event %s: %w: %d bytes, at most %d are allowed", kind, ErrMalformed, len(enc), MaxSize)
	}
	return nil
}

// replaced reports whether encoding/json put the escape of U+FFFD where a text was not UTF-8: it writes a
// U+FFFD that stood there as it is, and Decode would refuse the escape.
func replaced(data []byte) bool {
	escape := []byte(`\ufffd`)
	for at := 0; ; at++ {
		i := bytes.Index(data[at:], escape)
		if i < 0 {
			return false
		}
		at += i
		slashes := 0
		for slashes < at && data[at-slashes-1] == '\\' {
			slashes++
		}
		if slashes%2 == 0 { // else the backslash is itself an escaped one
			return true
		}
	}
}

// Decode reads a canonical encoding; anything else (unknown or repeated fields, other order or space,
// an unknown type) is refused with ErrMalformed.
func Decode(data []byte) (Event, error) {
	if len(data) > MaxSize {
		return Event{}, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrMalformed, len(data), MaxSize)
	}
	// The two parts are read one by one: an export verifies at 103,000 entries a second, against 83,000 with the body
	// as a json.RawMessage (BenchmarkVerify in audit). Whatever is no encoding differs from its encoding below.
	first, rest, found := bytes.Cut(data, []byte(bodyKey))
	if !found || len(rest) == 0 || rest[len(rest)-1] != '}' {
		return Event{}, fmt.Errorf("%w: no body", ErrMalformed)
	}
	var h head
	exactHead, err := unmarshal(append(first[:len(first):len(first)], '}'), &h)
	if err != nil {
		return Event{}, err
	}
	if h.V != Version {
		return Event{}, fmt.Errorf("%w: version %d, this program reads %d", ErrMalformed, h.V, Version)
	}
	body, err := newBody(h.Type)
	if err != nil {
		return Event{}, err
	}
	exactBody, err := unmarshal(rest[:len(rest)-1], body)
	if err != nil {
		return Event{}, fmt.Errorf("body of %s: %w", h.Type, err)
	}
	e := Event{ID: h.ID, Time: h.Time, Subject: h.Subject, Body: deref(body)}
	if exactHead && exactBody { // then these are the bytes that encode would give
		if err := e.check(data); err != nil {
			return Event{}, err
		}
		return e, nil
	}
	room := buffers.Get().(*[]byte)
	defer buffers.Put(room)
	again, err := e.encode((*room)[:0])
	if err != nil {
		return Event{}, err
	}
	*room = again
	if !bytes.Equal(again, data) {
		return Event{}, fmt.Errorf("%w: not the canonical encoding", ErrMalformed)
	}
	return e, nil
}

var buffers = sync.Pool{New: func() any { return new([]byte) }}

// Marshal returns the canonical JSON of v: field order of the type, no HTML escapes, no trailing newline.
func Marshal(v any) ([]byte, error) {
	room := buffers.Get().(*[]byte)
	defer buffers.Put(room)
	out, err := canonical.Append((*room)[:0], v)
	if err != nil {
		return nil, err
	}
	*room = out
	return bytes.Clone(out), nil
}

// Unmarshal reads one JSON value into v and refuses unknown fields and trailing bytes. It does not see
// repeated fields or odd spellings: compare with Marshal where the encoding has to be canonical.
func Unmarshal(data []byte, v any) error {
	_, err := unmarshal(data, v)
	return err
}

// unmarshal is Unmarshal, and says whether data is what Marshal gives for v. If not, it may be nevertheless.
func unmarshal(data []byte, v any) (exact bool, err error) {
	if canonical.Read(data, v) {
		return true, nil
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return false, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	if dec.InputOffset() != int64(len(data)) {
		return false, fmt.Errorf("%w: bytes after the end", ErrMalformed)
	}
	return false, nil
}

// Time is a moment in UTC with microseconds: the resolution of everything recorded.
type Time struct{ t time.Time }

const timeLayout = "2006-01-02T15:04:05.000000Z"

// NewTime truncates t to microseconds in UTC.
func NewTime(t time.Time) Time { return Time{t.UTC().Truncate(time.Microsecond)} }

// Time returns the moment as a time.Time in UTC.
func (t Time) Time() time.Time { return t.t }

// IsZero reports whether t is the zero value, which stands for "not yet" or "never".
func (t Time) IsZero() bool { return t.t.IsZero() }

// String returns RFC 3339 with six decimals, or "" for the zero value.
func (t Time) String() string {
	if t.IsZero() {
		return ""
	}
	return t.t.Format(timeLayout)
}

// MarshalText implements encoding.TextMarshaler.
func (t Time) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// AppendText implements encoding.TextAppender.
func (t Time) AppendText(b []byte) ([]byte, error) {
	if t.IsZero() {
		return b, nil
	}
	return t.t.AppendFormat(b, timeLayout), nil
}

// UnmarshalText implements encoding.TextUnmarshaler; only what MarshalText writes is accepted.
func (t *Time) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*t = Time{}
		return nil
	}
	v, err := time.Parse(timeLayout, string(b))
	if err != nil || v.Format(timeLayout) != string(b) {
		return fmt.Errorf("%w: time %q", ErrMalformed, b)
	}
	t.t = v.UTC()
	return nil
}

// Digest is a SHA-256 digest, written as 64 lower-case hexadecimal digits; the zero value as "".
type Digest [32]byte

// IsZero reports whether d is the zero value, which stands for "none".
func (d Digest) IsZero() bool { return d == Digest{} }

// String returns the digest in hexadecimal, or "" for none.
func (d Digest) String() string {
	if d.IsZero() {
		return ""
	}
	return hex.EncodeToString(d[:])
}

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// AppendText implements encoding.TextAppender.
func (d Digest) AppendText(b []byte) ([]byte, error) {
	if d.IsZero() {
		return b, nil
	}
	return hex.AppendEncode(b, d[:]), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Digest) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*d = Digest{}
		return nil
	}
	raw, err := hex.DecodeString(string(b))
	if err != nil || len(raw) != len(d) || hex.EncodeToString(raw) != string(b) {
		return fmt.Errorf("%w: digest %q", ErrMalformed, b)
	}
	copy(d[:], raw)
	return nil
}
