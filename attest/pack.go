package attest

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Evidence, enrolment requests and challenges travel in one simple frame, which has exactly one encoding for
// each value, so that it needs no canonical form besides:
//
//	uint16 length of label | label | for each field: uint32 length | bytes        (big endian)
//
// The label says what it is, in which version, and so how many fields there are and how large each may be.
// Nothing nests but lists, and lists do not nest: they are fields whose bytes are (uint32 length | bytes)*.
// All sizes are checked before anything is looked at, and nothing is copied.

// Pack frames fields under label.
func Pack(label string, fields ...[]byte) []byte {
	if len(label) == 0 || len(label) > 255 {
		panic("attest: internal error: label of bad length")
	}
	out := binary.BigEndian.AppendUint16(nil, uint16(len(label)))
	out = append(out, label...)
	return append(out, PackList(fields)...)
}

// Unpack takes apart what [Pack] made: as many fields as there are limits, each at most that many bytes. The
// fields are slices of b.
func Unpack(label string, b []byte, limits ...int) ([][]byte, error) {
	total := 2 + len(label)
	for _, n := range limits {
		total += 4 + n
	}
	if len(b) > total {
		return nil, fmt.Errorf("%w: %d bytes for %s, want at most %d", ErrMalformed, len(b), label, total)
	}
	if Label(b) != label {
		return nil, fmt.Errorf("%w: labelled %q, want %q", ErrMalformed, clip(Label(b)), label)
	}
	rest := b[2+len(label):]
	fields := make([][]byte, 0, len(limits))
	for i, limit := range limits {
		field, after, err := cut(rest, limit)
		if err != nil {
			return nil, fmt.Errorf("%w: field %d of %s: %w", ErrMalformed, i, label, err)
		}
		fields, rest = append(fields, field), after
	}
	if len(rest) != 0 {
		return nil, fmt.Errorf("%w: %d bytes after the last field of %s", ErrMalformed, len(rest), label)
	}
	return fields, nil
}

// Label gives the label of a frame, "" where there is none.
func Label(b []byte) string {
	if len(b) < 2 {
		return ""
	}
	n := int(binary.BigEndian.Uint16(b))
	if n == 0 || n > 255 || len(b) < 2+n {
		return ""
	}
	return string(b[2 : 2+n])
}

// PackList puts items one after the other, each behind its length.
func PackList(items [][]byte) []byte {
	var out []byte
	for _, item := range items {
		if uint64(len(item)) > math.MaxUint32 {
			panic("attest: internal error: field of more than 4 GiB")
		}
		out = binary.BigEndian.AppendUint32(out, uint32(len(item)))
		out = append(out, item...)
	}
	return out
}

// UnpackList takes apart what [PackList] made: at most count items of at most limit bytes, slices of b.
func UnpackList(b []byte, count, limit int) ([][]byte, error) {
	var items [][]byte
	for rest := b; len(rest) > 0; {
		if len(items) == count {
			return nil, fmt.Errorf("%w: list of more than %d items", ErrMalformed, count)
		}
		item, after, err := cut(rest, limit)
		if err != nil {
			return nil, fmt.Errorf("%w: item %d: %w", ErrMalformed, len(items), err)
		}
		items, rest = append(items, item), after
	}
	return items, nil
}

func cut(b []byte, limit int) (field, rest []byte, err error) {
	if len(b) < 4 {
		return nil, nil, fmt.Errorf("length cut short: %d bytes left", len(b))
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(limit) {
		return nil, nil, fmt.Errorf("%d bytes, want at most %d", n, limit)
	}
	if uint64(n) > uint64(len(b)-4) {
		return nil, nil, fmt.Errorf("%d bytes announced, %d there", n, len(b)-4)
	}
	end := 4 + int(n)
	return b[4:end:end], b[end:], nil
}
