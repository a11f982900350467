// Package canonical writes values as the one JSON text that is recorded: in the field order of the Go types, without
// insignificant space and without HTML escapes.
//
// It gives, byte for byte, what encoding/json gives, at a third of the cost: what is recorded is encoded at every call.
// It knows the kinds of types that records are made of. A type of which any part is of another kind is left to
// encoding/json as a whole, and so is each text that needs an escape and each raw message that has space in it: there is
// no second opinion here on how such things are written.
//
// It does not judge whether a text is UTF-8: encoding/json writes the escape of U+FFFD where it is not. It reads only what
// it writes without an escape, and leaves everything else to encoding/json.
package canonical

import (
	"bytes"
	"encoding"
	"encoding/base64"
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Append adds the JSON of v to out. The error is that of encoding/json; out is then of no use.
func Append(out []byte, v any) ([]byte, error) {
	value := reflect.ValueOf(v)
	if !value.IsValid() {
		return append(out, "null"...), nil
	}
	if e := encoderOf(value.Type()); e != nil {
		return e(out, value)
	}
	return standard(out, v)
}

// standard leaves v to encoding/json.
func standard(out []byte, v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return append(out, buf.Bytes()[:buf.Len()-len("\n")]...), nil
}

// encoder writes a value of one type.
type encoder func(out []byte, v reflect.Value) ([]byte, error)

// encoders holds the encoder of each type that was seen, nil for one that is left to encoding/json.
var encoders sync.Map // reflect.Type → encoder

func encoderOf(t reflect.Type) encoder {
	if known, ok := encoders.Load(t); ok {
		return known.(encoder)
	}
	e := compile(t, nil)
	encoders.Store(t, e)
	return e
}

var (
	rawType       = reflect.TypeFor[json.RawMessage]()
	jsonMarshaler = reflect.TypeFor[json.Marshaler]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
	textAppender  = reflect.TypeFor[encoding.TextAppender]()
	zeroer        = reflect.TypeFor[interface{ IsZero() bool }]()
)

// compile makes the encoder of t, or nil. within are the types that t lies in, so that one that holds itself is
// left alone.
func compile(t reflect.Type, within []reflect.Type) encoder {
	switch {
	case t == rawType:
		return appendRaw
	case t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Pointer:
		return nil
	case t.Kind() == reflect.Pointer:
		return compilePointer(t, within)
	case t.Implements(jsonMarshaler), reflect.PointerTo(t).Implements(jsonMarshaler):
		return nil
	case t.Implements(textMarshaler) && t.Implements(textAppender):
		return appendText
	case t.Implements(textMarshaler), reflect.PointerTo(t).Implements(textMarshaler):
		return nil
	}
	switch t.Kind() {
	case reflect.String:
		return func(out []byte, v reflect.Value) ([]byte, error) { return appendString(out, v.String()) }
	case reflect.Bool:
		return func(out []byte, v reflect.Value) ([]byte, error) { return strconv.AppendBool(out, v.Bool()), nil }
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return func(out []byte, v reflect.Value) ([]byte, error) { return strconv.AppendInt(out, v.Int(), 10), nil }
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return func(out []byte, v reflect.Value) ([]byte, error) { return strconv.AppendUint(out, v.Uint(), 10), nil }
	case reflect.Slice:
		return compileSlice(t, within)
	case reflect.Map:
		return compileMap(t, within)
	case reflect.Struct:
		return compileStruct(t, within)
	}
	return nil
}

func compilePointer(t reflect.Type, within []reflect.Type) encoder {
	element := compile(t.Elem(), within)
	if element == nil {
		return nil
	}
	return func(out []byte, v reflect.Value) ([]byte, error) {
		if v.IsNil() {
			return append(out, "null"...), nil
		}
		return element(out, v.Elem())
	}
}

func compileSlice(t reflect.Type, within []reflect.Type) encoder {
	if t.Elem().Kind() == reflect.Uint8 {
		if t.Elem() != reflect.TypeFor[byte]() {
			return nil
		}
		return appendBytes
	}
	element := compile(t.Elem(), within)
	if element == nil {
		return nil
	}
	return func(out []byte, v reflect.Value) (_ []byte, err error) {
		if v.IsNil() {
			return append(out, "null"...), nil
		}
		out = append(out, '[')
		for i := range v.Len() {
			if i > 0 {
				out = append(out, ',')
			}
			if out, err = element(out, v.Index(i)); err != nil {
				return nil, err
			}
		}
		return append(out, ']'), nil
	}
}

// compileMap understands maps from texts, which are written in the order of those.
func compileMap(t reflect.Type, within []reflect.Type) encoder {
	element := compile(t.Elem(), within)
	if element == nil || t.Key() != reflect.TypeFor[string]() {
		return nil
	}
	return func(out []byte, v reflect.Value) (_ []byte, err error) {
		if v.IsNil() {
			return append(out, "null"...), nil
		}
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		out = append(out, '{')
		for i, key := range keys {
			if i > 0 {
				out = append(out, ',')
			}
			if out, err = appendString(out, key.String()); err != nil {
				return nil, err
			}
			if out, err = element(append(out, ':'), v.MapIndex(key)); err != nil {
				return nil, err
			}
		}
		return append(out, '}'), nil
	}
}

// field is one field of a struct, or of a struct that is embedded in it.
type field struct {
	index  []int
	name   string // with quotes and colon
	absent func(reflect.Value) bool
	encode encoder
}

func compileStruct(t reflect.Type, within []reflect.Type) encoder {
	fields, ok := compileFields(t, within)
	if !ok {
		return nil
	}
	for i := range fields {
		for j := range i {
			if fields[i].name == fields[j].name { // which of the two counts is for encoding/json to say
				return nil
			}
		}
	}
	return func(out []byte, v reflect.Value) (_ []byte, err error) {
		out = append(out, '{')
		first := true
		for i := range fields {
			f := &fields[i]
			value := v
			for _, at := range f.index {
				value = value.Field(at)
			}
			if f.absent != nil && f.absent(value) {
				continue
			}
			if !first {
				out = append(out, ',')
			}
			first = false
			out = append(out, f.name...)
			if out, err = f.encode(out, value); err != nil {
				return nil, err
			}
		}
		return append(out, '}'), nil
	}
}

// compileFields are the fields of t and, in their place, those of exported structs that are embedded in it.
func compileFields(t reflect.Type, within []reflect.Type) (fields []field, ok bool) {
	if slices.Contains(within, t) {
		return nil, false
	}
	within = append(within[:len(within):len(within)], t)
	for i := range t.NumField() {
		f := t.Field(i)
		switch {
		case f.Tag.Get("json") == "-" || !f.IsExported() && !f.Anonymous:
		case f.Anonymous && f.IsExported() && f.Tag == "" && f.Type.Kind() == reflect.Struct && !marshals(f.Type):
			inner, ok := compileFields(f.Type, within)
			if !ok {
				return nil, false
			}
			for _, in := range inner {
				in.index = append([]int{i}, in.index...)
				fields = append(fields, in)
			}
		default:
			compiled, ok := compileField(f, within)
			if !ok {
				return nil, false
			}
			fields = append(fields, compiled)
		}
	}
	return fields, true
}

// marshals reports whether t or a pointer to it has a say in its encoding.
func marshals(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(jsonMarshaler) || p.Implements(textMarshaler)
}

// compileField understands fields with a plain name in their tag; ok is false for every other one.
func compileField(f reflect.StructField, within []reflect.Type) (field, bool) {
	name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
	out := field{index: f.Index[:1], name: `"` + name + `":`, encode: compile(f.Type, within)}
	if f.Anonymous || out.encode == nil || name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_0123456789") != "" {
		return field{}, false
	}
	switch options {
	case "":
	case "omitempty":
		out.absent = empty
	case "omitzero":
		switch {
		case !f.Type.Implements(zeroer):
			out.absent = reflect.Value.IsZero
		case f.Type.Kind() == reflect.Pointer:
			return field{}, false
		default:
			out.absent = func(v reflect.Value) bool { return v.Interface().(interface{ IsZero() bool }).IsZero() }
		}
		if reflect.PointerTo(f.Type).Implements(zeroer) && !f.Type.Implements(zeroer) {
			return field{}, false
		}
	default:
		return field{}, false
	}
	return out, true
}

// empty is what omitempty leaves out.
func empty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.String, reflect.Slice, reflect.Array, reflect.Map:
		return v.Len() == 0
	case reflect.Struct:
		return false
	}
	return v.IsZero()
}

func appendBytes(out []byte, v reflect.Value) ([]byte, error) {
	if v.IsNil() {
		return append(out, "null"...), nil
	}
	out = append(out, '"')
	out = base64.StdEncoding.AppendEncode(out, v.Bytes())
	return append(out, '"'), nil
}

func appendText(out []byte, v reflect.Value) ([]byte, error) {
	text, err := v.Interface().(encoding.TextAppender).AppendText(append(out, '"'))
	if err != nil || !plain(text[len(out)+1:]) {
		return standard(out, v.Interface())
	}
	return append(text, '"'), nil
}

func appendString(out []byte, s string) ([]byte, error) {
	if !plain(s) {
		return standard(out, s)
	}
	out = append(out, '"')
	out = append(out, s...)
	return append(out, '"'), nil
}

// plain reports whether s stands in JSON as it is.
func plain[T string | []byte](s T) bool {
	i := 0
	for ; len(s)-i >= 8; i += 8 {
		if odd(eight(s, i)) {
			return false
		}
	}
	for ; i < len(s); i++ {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= 0x80 {
			return false
		}
	}
	return true
}

// eight are the eight bytes of s from i on, which the compiler loads at once.
func eight[T string | []byte](s T, i int) uint64 {
	_ = s[i+7]
	return uint64(s[i]) | uint64(s[i+1])<<8 | uint64(s[i+2])<<16 | uint64(s[i+3])<<24 |
		uint64(s[i+4])<<32 | uint64(s[i+5])<<40 | uint64(s[i+6])<<48 | uint64(s[i+7])<<56
}

// odd reports whether one of eight bytes does not stand for itself in a text, or is beyond ASCII. A subtraction that goes
// below zero sets the top bit of its byte, and reaches into the next one only where it did. Byte by byte BenchmarkAppend
// takes 3.6 µs instead of 3.2, BenchmarkRead 4.8 instead of 4.4.
func odd(w uint64) bool {
	const each, top = 0x0101010101010101, 0x8080808080808080
	return (w|(w-each*' ')|((w^each*'"')-each)|((w^each*'\\')-each))&top != 0
}

func appendRaw(out []byte, v reflect.Value) ([]byte, error) {
	raw := v.Bytes()
	if !compact(raw) {
		return standard(out, json.RawMessage(raw))
	}
	return append(out, raw...), nil
}
