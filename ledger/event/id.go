package event

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"sync"
	"time"
)

// ID identifies an event, a session or a request: a UUID version 7 (RFC 9562), so that ids sort by time
// and rows that belong together lie together.
type ID [16]byte

// ids makes NewID strictly increasing within a process, which the RFC asks for in section 6.2.
var ids struct {
	sync.Mutex // guards last
	last       uint64
}

// NewID returns an id for the time now, greater than every id this process made before. 12 bits count
// within a millisecond, 62 bits are random.
func NewID(now time.Time) ID {
	ids.Lock()
	stamp := uint64(now.UnixMilli()) << 12
	if stamp <= ids.last {
		stamp = ids.last + 1
	}
	ids.last = stamp
	ids.Unlock()

	var id ID
	_, _ = rand.Read(id[8:]) // crypto/rand.Read never fails since Go 1.24
	binary.BigEndian.PutUint64(id[:8], stamp>>12<<16|0x7000|stamp&0xfff)
	id[8] = id[8]&0x3f | 0x80
	return id
}

// NewRequestID returns an id for the time now that is in no order with others of its millisecond. Unlike NewID it never
// runs ahead of the clock, which others judge it by.
func NewRequestID(now time.Time) ID {
	var id ID
	_, _ = rand.Read(id[6:]) // never fails since Go 1.24
	binary.BigEndian.PutUint32(id[:4], uint32(now.UnixMilli()>>16))
	binary.BigEndian.PutUint16(id[4:6], uint16(now.UnixMilli()))
	id[6], id[8] = id[6]&0x0f|0x70, id[8]&0x3f|0x80
	return id
}

// IDsFrom is below every id of the time t or later, and above those of earlier milliseconds.
func IDsFrom(t time.Time) string {
	var id ID
	binary.BigEndian.PutUint64(id[:8], uint64(max(t.UnixMilli(), 0))<<16)
	return id.String()
}

// Time is when the id says that it was made, to the millisecond.
func (id ID) Time() time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16)).UTC()
}

// ParseID reads the canonical, lower-case text form of a version 7 UUID.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return ID{}, fmt.Errorf("%w: id %q is not of the form xxxxxxxx-xxxx-7xxx-xxxx-xxxxxxxxxxxx", ErrMalformed, clip(s))
	}
	digits := s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:]
	if _, err := hex.Decode(id[:], []byte(digits)); err != nil || id.String() != s || id[6]>>4 != 7 || id[8]>>6 != 2 {
		return ID{}, fmt.Errorf("%w: id %q is not a lower-case UUID of version 7", ErrMalformed, s)
	}
	return id, nil
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// IsZero reports whether id is the zero value.
func (id ID) IsZero() bool { return id == ID{} }

// String returns the canonical text form.
func (id ID) String() string {
	b := id.text()
	return string(b[:])
}

func (id ID) text() (b [36]byte) {
	hex.Encode(b[:8], id[:4])
	hex.Encode(b[9:13], id[4:6])
	hex.Encode(b[14:18], id[6:8])
	hex.Encode(b[19:23], id[8:10])
	hex.Encode(b[24:], id[10:])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return b
}

// MarshalText implements encoding.TextMarshaler; the zero id is the empty text.
func (id ID) MarshalText() ([]byte, error) {
	if id.IsZero() {
		return nil, nil
	}
	return []byte(id.String()), nil
}

// AppendText implements encoding.TextAppender.
func (id ID) AppendText(b []byte) ([]byte, error) {
	if id.IsZero() {
		return b, nil
	}
	text := id.text()
	return append(b, text[:]...), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = ID{}
		return nil
	}
	v, err := ParseID(string(b))
	if err == nil {
		*id = v
	}
	return err
}
