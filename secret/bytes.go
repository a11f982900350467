package secret

import (
	"fmt"
	"log/slog"
)

const redacted = "REDACTED"

// Bytes holds a secret value. Every way of printing it (each fmt verb, slog, JSON, text) shows
// REDACTED; Expose is the only way to the value. The zero value is an empty secret.
//
// The value lies behind a function, since fmt prints unexported fields and wrong verbs by reflection,
// through pointers too, without asking any method.
type Bytes struct{ get func() []byte }

// NewBytes takes ownership of b: the caller must not keep or change it.
func NewBytes(b []byte) Bytes { return Bytes{func() []byte { return b }} }

// Expose returns the value itself, not a copy. It is invalid after Zero.
func (b Bytes) Expose() []byte {
	if b.get == nil {
		return nil
	}
	return b.get()
}

// Len returns the value's length in bytes.
func (b Bytes) Len() int { return len(b.Expose()) }

// Zero overwrites the value in place. Copies that the caller or the runtime made are not reached.
func (b Bytes) Zero() { clear(b.Expose()) }

// Format implements fmt.Formatter for every verb.
func (b Bytes) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// String implements fmt.Stringer.
func (b Bytes) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (b Bytes) GoString() string { return redacted }

// MarshalJSON implements json.Marshaler.
func (b Bytes) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalText implements encoding.TextMarshaler.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue implements slog.LogValuer.
func (b Bytes) LogValue() slog.Value { return slog.StringValue(redacted) }
