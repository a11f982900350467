// Package strictyaml reads configuration files: YAML into Go structs, refusing everything that could mean
// something else than its author thought. Every fault is reported with file, line and column, all of them
// at once (up to [MaxFaults]).
//
// Refused are: unknown and duplicate keys, anchors, aliases, merge keys, explicit tags, directives, a
// second document, keys without a value, values of another kind than the field (a quoted number is no
// number, "yes" is no boolean), integers with leading zeros or underscores, and input that is larger than
// [MaxSize], nested deeper than [MaxDepth], not UTF-8 or with control characters.
//
// A field takes its key from its yaml tag, or its name in lower case; "-" leaves it out, ",inline" merges
// the fields of a struct. Fields may be strings, booleans, integers, floats, [time.Duration] ("90s"), any
// type with UnmarshalText, structs, slices, arrays of fixed length, maps, pointers to these, and any.
// Custom UnmarshalYAML methods are not called.
//
// Keys that the file does not name leave their fields as they were, so defaults are set before. YAML is
// written by people, with comments and layout of their own; there is no canonical form to compare with, and
// so nothing that is signed or hashed goes through this package. It does not validate values beyond their
// kind: that is the Validate method of each configuration.
package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"unicode/utf8"

	yaml "go.yaml.in/yaml/v4"
	"go.yaml.in/yaml/v4/plugin/loaderlimits"
)

// Limits on the input.
const (
	MaxSize   = 1 << 20 // bytes
	MaxDepth  = 32      // mappings and sequences inside each other
	MaxFaults = 20      // faults reported for one file
)

// Fault is one thing wrong at one place. Line and Column count from 1, in characters; both are 0 where the
// fault is about the whole file.
type Fault struct {
	File         string
	Line, Column int
	Message      string
}

// Error returns file:line:column: message.
func (f *Fault) Error() string {
	if f.Line == 0 {
		return fmt.Sprintf("%s: %s", f.File, f.Message)
	}
	return fmt.Sprintf("%s:%d:%d: %s", f.File, f.Line, f.Column, f.Message)
}

// Decode reads the one YAML document in data into out, a non-nil pointer. name is the file's name, for
// messages. Data without a document (empty, or only comments) changes nothing.
//
// On an error out is unchanged, and the error joins one *[Fault] for each thing found wrong. A type that
// out cannot be decoded into is a bug of the caller and panics.
func Decode(name string, data []byte, out any) error {
	target := reflect.ValueOf(out)
	if target.Kind() != reflect.Pointer || target.IsNil() {
		panic(fmt.Sprintf("strictyaml: internal error: decode into %T", out))
	}
	root, err := parse(name, data)
	if err != nil || root == nil {
		return err
	}
	d := decoder{file: name}
	d.check(root, 1)
	fresh := reflect.New(target.Type().Elem()).Elem()
	fresh.Set(target.Elem())
	if len(d.faults) == 0 {
		d.value(root, fresh)
	}
	if len(d.faults) > 0 {
		return d.join()
	}
	target.Elem().Set(fresh)
	return nil
}

// parse returns the root of the only document, or nil where there is none.
func parse(name string, data []byte) (*yaml.Node, error) {
	if len(data) > MaxSize {
		return nil, &Fault{File: name, Message: fmt.Sprintf("has %d bytes, more than the %d allowed", len(data), MaxSize)}
	}
	if f := checkText(name, data); f != nil {
		return nil, f
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data), yaml.WithPlugin(loaderlimits.New(loaderlimits.DepthValue(MaxDepth))))
	if err != nil {
		return nil, &Fault{File: name, Message: err.Error()}
	}
	var doc, more yaml.Node
	switch err := loader.Load(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, syntaxFault(name, err)
	}
	switch err := loader.Load(&more); {
	case err == nil:
		return nil, &Fault{name, more.Line, more.Column, "a second document starts here: one file holds one document"}
	case !errors.Is(err, io.EOF):
		return nil, syntaxFault(name, err)
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, &Fault{File: name, Message: "holds no YAML document"}
	}
	return doc.Content[0], nil
}

// checkText finds the first byte that is no text, with its place.
func checkText(name string, data []byte) *Fault {
	line, column := 1, 1
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			return &Fault{name, line, column, "this byte is not UTF-8: save the file as UTF-8"}
		case r == '\uFEFF' || r < ' ' && r != '\n' && r != '\r' && r != '\t' || r >= 0x7F && r < 0xA0:
			return &Fault{name, line, column, fmt.Sprintf("the control character %U is not allowed", r)}
		case r == '\n':
			line, column = line+1, 0
		}
		column++
		i += size
	}
	return nil
}

// syntaxFault words the YAML library's error as a fault.
func syntaxFault(name string, err error) *Fault {
	var le *yaml.LoadError
	if !errors.As(err, &le) {
		return &Fault{File: name, Message: "is not YAML: " + err.Error()}
	}
	text := "not YAML: " + le.Message
	if le.ContextMsg != "" {
		text += " " + le.ContextMsg
	}
	return &Fault{name, le.Mark.Line, le.Mark.Column, text}
}

type decoder struct {
	file   string
	faults []error
	more   int // faults beyond MaxFaults
}

func (d *decoder) fault(n *yaml.Node, format string, args ...any) {
	if len(d.faults) == MaxFaults {
		d.more++
		return
	}
	d.faults = append(d.faults, &Fault{d.file, n.Line, n.Column, fmt.Sprintf(format, args...)})
}

func (d *decoder) join() error {
	if d.more > 0 {
		d.faults = append(d.faults, &Fault{File: d.file, Message: fmt.Sprintf("and %d more", d.more)})
	}
	return errors.Join(d.faults...)
}

// check refuses, for a whole tree, what no configuration file may contain.
func (d *decoder) check(n *yaml.Node, depth int) {
	switch {
	case depth > MaxDepth+1: // a scalar inside MaxDepth collections is fine
		d.fault(n, "nested deeper than %d", MaxDepth)
		return
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.fault(n, "anchors (&) and aliases (*) are not allowed: write the value out, or quote it")
		return
	case n.Style&yaml.TaggedStyle != 0 || n.Tag == "!":
		d.fault(n, "explicit tags (!) are not allowed: remove it, or quote the value")
		return
	}
	if n.Kind == yaml.MappingNode {
		d.checkKeys(n)
	}
	for _, c := range n.Content {
		d.check(c, depth+1)
	}
}

// checkKeys refuses keys of a mapping that are no plain text, or that stand there twice.
func (d *decoder) checkKeys(n *yaml.Node) {
	first := make(map[string]*yaml.Node, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		switch {
		case key.Kind != yaml.ScalarNode || key.ShortTag() == "!!null":
			d.fault(key, "a key must be plain text")
		case key.ShortTag() == "!!merge":
			d.fault(key, "merge keys (<<) are not allowed: write the values out")
		case first[key.Value] != nil:
			d.fault(key, "duplicate key %q: it stands in line %d already", short(key.Value), first[key.Value].Line)
		default:
			first[key.Value] = key
		}
	}
}

// short cuts a key that a message shows.
func short(s string) string {
	const limit = 60
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}
