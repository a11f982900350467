package strictyaml

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	yaml "go.yaml.in/yaml/v4"
)

var (
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
	durationType = reflect.TypeFor[time.Duration]()
	// Decimal without leading zeros, hexadecimal, octal with its letter: nothing that reads two ways.
	integerShape = regexp.MustCompile(`^-?(0|[1-9][0-9]*|0x[0-9a-fA-F]+|0o[0-7]+)$`)
	floatShape   = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$`)
)

// value decodes n into v, which is settable.
func (d *decoder) value(n *yaml.Node, v reflect.Value) {
	if v.Kind() == reflect.Interface && v.NumMethod() == 0 {
		if x := d.any(n); x != nil {
			v.Set(reflect.ValueOf(x))
		} else {
			v.SetZero()
		}
		return
	}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		d.fault(n, "no value: give one, or remove the key")
		return
	}
	switch {
	case v.Kind() == reflect.Pointer:
		d.pointer(n, v)
	case v.Type() == durationType:
		d.duration(n, v)
	case reflect.PointerTo(v.Type()).Implements(textType):
		d.text(n, v)
	case v.Kind() == reflect.Struct:
		d.structure(n, v)
	case v.Kind() == reflect.Map:
		d.mapping(n, v)
	case v.Kind() == reflect.Slice || v.Kind() == reflect.Array:
		d.sequence(n, v)
	default:
		d.scalar(n, v)
	}
}

// pointer decodes into a new value, so that what out pointed to stays as it was.
func (d *decoder) pointer(n *yaml.Node, v reflect.Value) {
	fresh := reflect.New(v.Type().Elem())
	if !v.IsNil() {
		fresh.Elem().Set(v.Elem())
	}
	d.value(n, fresh.Elem())
	v.Set(fresh)
}

func (d *decoder) text(n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.ScalarNode {
		d.fault(n, "wants a single value, not %s", kind(n))
		return
	}
	fresh := reflect.New(v.Type())
	if err := fresh.Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(n.Value)); err != nil {
		d.fault(n, "%v", err)
		return
	}
	v.Set(fresh.Elem())
}

func (d *decoder) duration(n *yaml.Node, v reflect.Value) {
	x, err := time.ParseDuration(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil {
		d.fault(n, "wants a duration such as 90s, 10m or 1h30m")
		return
	}
	v.SetInt(int64(x))
}

func (d *decoder) structure(n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.MappingNode {
		d.fault(n, "wants keys and values, not %s", kind(n))
		return
	}
	fields := map[string][]int{}
	collect(v.Type(), nil, fields)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		index, ok := fields[key.Value]
		if !ok {
			d.fault(key, "unknown key %q; %s", short(key.Value), known(fields))
			continue
		}
		d.value(val, v.FieldByIndex(index))
	}
}

// collect fills fields with the keys of t and where their values go.
func collect(t reflect.Type, at []int, fields map[string][]int) {
	for i := range t.NumField() {
		f := t.Field(i)
		index := append(slices.Clone(at), i)
		key, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case key == "-" || !f.IsExported():
			continue
		case slices.Contains(strings.Split(options, ","), "inline"):
			if f.Type.Kind() != reflect.Struct {
				panic(fmt.Sprintf("strictyaml: internal error: %v.%s is inline and no struct", t, f.Name))
			}
			collect(f.Type, index, fields)
			continue
		case key == "":
			key = strings.ToLower(f.Name)
		}
		if _, taken := fields[key]; taken {
			panic(fmt.Sprintf("strictyaml: internal error: %v has two fields for the key %q", t, key))
		}
		fields[key] = index
	}
}

func known(fields map[string][]int) string {
	if len(fields) == 0 {
		return "there are none here"
	}
	keys := make([]string, 0, len(fields))
	for k := range fields {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return "known here: " + strings.Join(keys, ", ")
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.MappingNode {
		d.fault(n, "wants keys and values, not %s", kind(n))
		return
	}
	fresh := reflect.MakeMapWithSize(v.Type(), len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		before := len(d.faults) + d.more
		key, val := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		d.value(n.Content[i], key)
		d.value(n.Content[i+1], val)
		if len(d.faults)+d.more > before {
			continue
		}
		if fresh.MapIndex(key).IsValid() { // two spellings of one key, such as 10 and 0xa
			d.fault(n.Content[i], "duplicate key %q", short(n.Content[i].Value))
			continue
		}
		fresh.SetMapIndex(key, val)
	}
	v.Set(fresh)
}

func (d *decoder) sequence(n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		d.fault(n, "wants a list, not %s", kind(n))
		return
	}
	fresh := reflect.New(v.Type()).Elem()
	if v.Kind() == reflect.Slice {
		fresh = reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	} else if len(n.Content) != v.Len() {
		d.fault(n, "wants a list of exactly %d, not of %d", v.Len(), len(n.Content))
		return
	}
	for i, c := range n.Content {
		d.value(c, fresh.Index(i))
	}
	v.Set(fresh)
}

// scalar decodes the kinds that are one word. A string takes any unquoted word as it is written: hex digests
// and versions stay what they are even where they look like numbers.
func (d *decoder) scalar(n *yaml.Node, v reflect.Value) {
	if n.Kind != yaml.ScalarNode {
		d.fault(n, "wants %s, not %s", wanted(v), kind(n))
		return
	}
	var err error
	switch tag := n.ShortTag(); {
	case v.Kind() == reflect.String:
		v.SetString(n.Value)
	case v.Kind() == reflect.Bool && tag == "!!bool" && (n.Value == "true" || n.Value == "false"):
		v.SetBool(n.Value == "true")
	case v.CanInt() && tag == "!!int" && integerShape.MatchString(n.Value):
		var x int64
		if x, err = strconv.ParseInt(n.Value, 0, v.Type().Bits()); err == nil {
			v.SetInt(x)
		}
	case v.CanUint() && tag == "!!int" && integerShape.MatchString(n.Value):
		var x uint64
		if x, err = strconv.ParseUint(n.Value, 0, v.Type().Bits()); err == nil {
			v.SetUint(x)
		}
	case v.CanFloat() && (tag == "!!int" || tag == "!!float") && floatShape.MatchString(n.Value):
		var x float64
		if x, err = strconv.ParseFloat(n.Value, v.Type().Bits()); err == nil {
			v.SetFloat(x)
		}
	default:
		err = errors.New("of another kind")
	}
	if err != nil {
		d.fault(n, "wants %s", wanted(v))
	}
}

// any decodes n as what it looks like: map[string]any, []any, string, bool, int64, float64 or nil.
func (d *decoder) any(n *yaml.Node) any {
	switch n.Kind {
	case yaml.MappingNode:
		m := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			m[n.Content[i].Value] = d.any(n.Content[i+1])
		}
		return m
	case yaml.SequenceNode:
		s := make([]any, len(n.Content))
		for i, c := range n.Content {
			s[i] = d.any(c)
		}
		return s
	}
	switch n.ShortTag() {
	case "!!null":
		return nil
	case "!!bool":
		var x bool
		d.scalar(n, reflect.ValueOf(&x).Elem())
		return x
	case "!!int":
		var x int64
		d.scalar(n, reflect.ValueOf(&x).Elem())
		return x
	case "!!float":
		var x float64
		d.scalar(n, reflect.ValueOf(&x).Elem())
		return x
	}
	return n.Value
}

// wanted says what a value of v's kind looks like. A kind that is not listed is a bug of the caller.
func wanted(v reflect.Value) string {
	switch {
	case v.Kind() == reflect.String:
		return "a text"
	case v.Kind() == reflect.Bool:
		return "true or false"
	case v.CanInt():
		bits := v.Type().Bits()
		return fmt.Sprintf("an integer from %d to %d", int64(math.MinInt64)>>(64-bits), int64(math.MaxInt64)>>(64-bits))
	case v.CanUint():
		return fmt.Sprintf("an integer from 0 to %d", uint64(math.MaxUint64)>>(64-v.Type().Bits()))
	case v.CanFloat():
		return "a number"
	}
	panic(fmt.Sprintf("strictyaml: internal error: no way to decode into %v", v.Type()))
}

func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys and values"
	case yaml.SequenceNode:
		return "a list"
	}
	return "a single value"
}
