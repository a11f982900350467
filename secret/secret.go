// Package secret is the vocabulary of secrets: names, versions, classes, stages and redacted bytes.
// It holds no storage, no policy and no lifecycle; every value is valid by construction and the zero
// value is invalid.
package secret

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// MaxValue is the largest secret value, in bytes. It leaves room for the envelope in a gRPC message.
const MaxValue = 64 << 10

const (
	maxName     = 255
	maxSegments = 16
)

// ErrName, ErrClass and ErrVersion classify refused input.
var (
	ErrName    = errors.New("bad secret name")
	ErrClass   = errors.New("bad secret class")
	ErrVersion = errors.New("bad secret version")
)

// Name is a secret's canonical name: segments of a-z, 0-9, '.', '_' and '-', joined by '/'. Each segment
// starts with a letter or digit, so that "." and ".." can't occur. There is one spelling for each name:
// nothing is folded, trimmed or decoded, whatever differs is refused.
type Name struct{ s string }

// ParseName returns the name s, or an error that wraps ErrName and says what is wrong where.
func ParseName(s string) (Name, error) {
	switch {
	case s == "":
		return Name{}, fmt.Errorf("%w: it is empty", ErrName)
	case len(s) > maxName:
		return Name{}, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrName, len(s), maxName)
	case strings.Count(s, "/") >= maxSegments:
		return Name{}, fmt.Errorf("%w: more than %d segments", ErrName, maxSegments)
	}
	start := true
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
			start = false
		case start:
			return Name{}, fmt.Errorf("%w %q: byte %d is %s, a segment starts with a-z or 0-9", ErrName, s, i, char(c))
		case c == '/':
			start = true
		case c == '.', c == '_', c == '-':
		default:
			return Name{}, fmt.Errorf("%w %q: byte %d is %s, allowed are a-z 0-9 . _ - and / between segments", ErrName, s, i, char(c))
		}
	}
	if start {
		return Name{}, fmt.Errorf("%w %q: it ends with a slash", ErrName, s)
	}
	return Name{s}, nil
}

// char shows a byte: one that is no character by itself as its number.
func char(c byte) string {
	if c >= 0x80 {
		return fmt.Sprintf("0x%02x", c)
	}
	return strconv.QuoteRune(rune(c))
}

// String returns the canonical spelling.
func (n Name) String() string { return n.s }

// IsZero reports whether n is the invalid zero value.
func (n Name) IsZero() bool { return n.s == "" }

// Class names a sensitivity that the policy's data defines: a-z first, then a-z, 0-9 and '-', at most 32 bytes.
type Class struct{ s string }

// ParseClass returns the class s, or an error that wraps ErrClass.
func ParseClass(s string) (Class, error) {
	if s == "" || len(s) > 32 {
		return Class{}, fmt.Errorf("%w %q: 1 to 32 bytes are allowed", ErrClass, s)
	}
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || i > 0 && (c >= '0' && c <= '9' || c == '-') {
			continue
		}
		return Class{}, fmt.Errorf("%w %q: byte %d is %s, allowed are a-z, then a-z 0-9 -", ErrClass, s, i, char(c))
	}
	return Class{s}, nil
}

// String returns the class's name.
func (c Class) String() string { return c.s }

// IsZero reports whether c is the invalid zero value.
func (c Class) IsZero() bool { return c.s == "" }

// Version numbers the values of one secret, from 1.
type Version uint32

// ParseVersion reads a decimal version without sign or leading zero.
func ParseVersion(s string) (Version, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%w %q: it is a number from 1", ErrVersion, s)
	}
	return Version(n), nil
}

// Stage says which of a secret's versions is which, with the words of AWS Secrets Manager.
type Stage string

// The stages of a version.
const (
	StagePending  Stage = "pending"
	StageCurrent  Stage = "current"
	StagePrevious Stage = "previous"
	StageRetired  Stage = "retired"
)
