package canonical

import (
	"bytes"
	"encoding"
	"encoding/base64"
	"encoding/json"
	"reflect"
	"strconv"
	"sync"
)

// Read reads what Append has written into the value that into points to, as encoding/json would, at a third of the cost:
// fields in their order, no space, no escapes. It reports whether it could, and then data is, byte for byte, what Append
// writes for the value. If not, encoding/json has to say what it is, and the value is zero.
//
// What it makes shares no memory with data.
func Read(data []byte, into any) bool {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return false
	}
	d := decoderOf(v.Type().Elem())
	if d == nil {
		return false
	}
	v.Elem().SetZero()
	s := scanner{b: data}
	if d(&s, v.Elem()) && s.at == len(data) {
		return true
	}
	v.Elem().SetZero()
	return false
}

// decoder reads a value of one type into v, which is zero.
type decoder func(s *scanner, v reflect.Value) bool

// decoders holds the decoder of each type that was seen, nil for one that is left to encoding/json.
var decoders sync.Map // reflect.Type → decoder

func decoderOf(t reflect.Type) decoder {
	if known, ok := decoders.Load(t); ok {
		return known.(decoder)
	}
	var d decoder
	if encoderOf(t) != nil { // which has looked at all of the type
		d = reader(t)
	}
	decoders.Store(t, d)
	return d
}

var textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

// reader makes the decoder of a type that compile understands, or nil.
func reader(t reflect.Type) decoder {
	p := reflect.PointerTo(t)
	switch {
	case t == rawType:
		return readRaw
	case t.Kind() == reflect.Pointer:
		return readerOfPointer(t)
	case p.Implements(reflect.TypeFor[json.Unmarshaler]()):
		return nil
	case t.Implements(textMarshaler) != p.Implements(textUnmarshaler):
		return nil
	case t.Implements(textMarshaler):
		return readText
	}
	switch t.Kind() {
	case reflect.String:
		return func(s *scanner, v reflect.Value) bool {
			text, ok := s.plain()
			v.SetString(string(text))
			return ok
		}
	case reflect.Bool:
		return readBool
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return func(s *scanner, v reflect.Value) bool {
			n, err := strconv.ParseInt(string(s.integer()), 10, t.Bits())
			v.SetInt(n)
			return err == nil
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return func(s *scanner, v reflect.Value) bool {
			n, err := strconv.ParseUint(string(s.integer()), 10, t.Bits())
			v.SetUint(n)
			return err == nil
		}
	case reflect.Slice:
		return readerOfSlice(t)
	case reflect.Map:
		return readerOfMap(t)
	case reflect.Struct:
		return readerOfStruct(t)
	}
	return nil
}

func readBool(s *scanner, v reflect.Value) bool {
	yes := s.word("true")
	v.SetBool(yes)
	return yes || s.word("false")
}

// readText takes a text only in the spelling that its type gives it.
func readText(s *scanner, v reflect.Value) bool {
	text, ok := s.plain()
	if !ok || v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText(text) != nil {
		return false
	}
	var room [64]byte
	again, err := v.Interface().(encoding.TextAppender).AppendText(room[:0])
	return err == nil && bytes.Equal(again, text)
}

func readRaw(s *scanner, v reflect.Value) bool {
	from := s.at
	if !s.value(maxDepth) {
		return false
	}
	v.SetBytes(bytes.Clone(s.b[from:s.at]))
	return true
}

func readBytes(s *scanner, v reflect.Value) bool {
	if s.word("null") {
		return true
	}
	text, ok := s.plain()
	if !ok {
		return false
	}
	out, err := base64.StdEncoding.Strict().AppendDecode([]byte{}, text)
	v.SetBytes(out)
	return err == nil
}

func readerOfPointer(t reflect.Type) decoder {
	element := reader(t.Elem())
	if element == nil {
		return nil
	}
	return func(s *scanner, v reflect.Value) bool {
		if s.word("null") {
			return true
		}
		v.Set(reflect.New(t.Elem()))
		return element(s, v.Elem())
	}
}

func readerOfSlice(t reflect.Type) decoder {
	if t.Elem().Kind() == reflect.Uint8 {
		return readBytes
	}
	element := reader(t.Elem())
	if element == nil {
		return nil
	}
	return func(s *scanner, v reflect.Value) bool {
		if s.word("null") {
			return true
		}
		v.Set(reflect.MakeSlice(t, 0, 0))
		return s.at < len(s.b) && s.b[s.at] == '[' && s.list(']', func() bool {
			v.Grow(1)
			n := v.Len()
			v.SetLen(n + 1)
			v.Index(n).SetZero() // the room may have been used before
			return element(s, v.Index(n))
		})
	}
}

// readerOfMap takes keys in ascending order.
func readerOfMap(t reflect.Type) decoder {
	element := reader(t.Elem())
	if element == nil {
		return nil
	}
	return func(s *scanner, v reflect.Value) bool {
		if s.word("null") {
			return true
		}
		v.Set(reflect.MakeMap(t))
		last := ""
		return s.at < len(s.b) && s.b[s.at] == '{' && s.list('}', func() bool {
			text, ok := s.plain()
			key, value := string(text), reflect.New(t.Elem()).Elem()
			if !ok || v.Len() > 0 && key <= last || !s.next(':') || !element(s, value) {
				return false
			}
			last = key
			v.SetMapIndex(reflect.ValueOf(key), value)
			return true
		})
	}
}

func readerOfStruct(t reflect.Type) decoder {
	fields, ok := compileFields(t, nil)
	if !ok {
		return nil
	}
	decode, optional := make([]decoder, len(fields)), make([]bool, len(fields))
	for i, f := range fields {
		kind := t.FieldByIndex(f.index).Type
		if decode[i] = reader(kind); decode[i] == nil {
			return nil
		}
		optional[i] = f.absent != nil && f.absent(reflect.Zero(kind))
	}
	return func(s *scanner, v reflect.Value) bool {
		if !s.next('{') {
			return false
		}
		first := true
		for i := range fields {
			f := &fields[i]
			from := s.at
			if !first && !s.next(',') || !s.word(f.name) {
				if s.at = from; !optional[i] {
					return false
				}
				continue
			}
			first = false
			value := v
			for _, at := range f.index {
				value = value.Field(at)
			}
			if !decode[i](s, value) || f.absent != nil && f.absent(value) {
				return false
			}
		}
		return s.next('}')
	}
}

// plain takes a text without escapes, in ASCII.
func (s *scanner) plain() ([]byte, bool) {
	if !s.next('"') {
		return nil, false
	}
	n := bytes.IndexByte(s.b[s.at:], '"')
	if n < 0 {
		return nil, false
	}
	text := s.b[s.at : s.at+n]
	s.at += n + 1
	return text, plain(text)
}

// integer takes an integer in its one spelling, or gives nothing.
func (s *scanner) integer() []byte {
	from := s.at
	s.next('-')
	if !s.next('0') && !s.digits() || string(s.b[from:s.at]) == "-0" {
		return nil
	}
	return s.b[from:s.at]
}
