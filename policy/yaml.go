package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/open-policy-agent/opa/v1/ast"
	"go.yaml.in/yaml/v3"
)

const (
	maxDataDepth = 32
	// maxDataText bounds a text in data, so that no builtin that searches one takes long.
	maxDataText = 16 << 10
)

// strictYAML decodes one document into a struct; unknown keys, further documents and everything that data
// can't hold (fractions, which the decoder would cut off, and aliases) are refused.
func strictYAML(text []byte, into any) error {
	if _, err := dataValue(text); err != nil {
		return err
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(into); err != nil {
		return err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return errors.New("text after the first document")
	}
	return nil
}

// dataValue reads one YAML document as a value of Rego: strings, integers, booleans, null, lists and maps
// with string keys. Fractions are refused because they don't compare alike everywhere, dates because YAML
// makes them of unquoted text, and anchors because a few lines of them can unfold without end.
func dataValue(text []byte) (ast.Value, error) {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&doc); err != nil {
		return nil, err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("text after the first document")
	}
	if len(doc.Content) != 1 {
		return nil, errors.New("the document is empty")
	}
	return nodeValue(doc.Content[0], 0)
}

func nodeValue(n *yaml.Node, depth int) (ast.Value, error) {
	if depth > maxDataDepth {
		return nil, atLine(n, "nested deeper than %d levels", maxDataDepth)
	}
	if n.Anchor != "" || n.Kind == yaml.AliasNode {
		return nil, atLine(n, "anchors and aliases are not allowed in data")
	}
	switch n.Kind {
	case yaml.ScalarNode:
		return scalarValue(n)
	case yaml.SequenceNode:
		terms := make([]*ast.Term, 0, len(n.Content))
		for _, c := range n.Content {
			v, err := nodeValue(c, depth+1)
			if err != nil {
				return nil, err
			}
			terms = append(terms, ast.NewTerm(v))
		}
		return ast.NewArray(terms...), nil
	case yaml.MappingNode:
		return mappingValue(n, depth)
	}
	return nil, atLine(n, "this is not data")
}

func mappingValue(n *yaml.Node, depth int) (ast.Value, error) {
	if tag := n.ShortTag(); tag != "!!map" {
		return nil, atLine(n, "tag %s is not allowed", tag)
	}
	obj := ast.NewObjectWithCapacity(len(n.Content) / 2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" || key.Anchor != "" {
			return nil, atLine(key, "a key must be a text; quote it")
		}
		k := ast.StringTerm(key.Value)
		if obj.Get(k) != nil {
			return nil, atLine(key, "key %q is there twice", key.Value)
		}
		v, err := nodeValue(val, depth+1)
		if err != nil {
			return nil, err
		}
		obj.Insert(k, ast.NewTerm(v))
	}
	return obj, nil
}

func scalarValue(n *yaml.Node) (ast.Value, error) {
	switch tag := n.ShortTag(); tag {
	case "!!str":
		if len(n.Value) > maxDataText {
			return nil, atLine(n, "a text of %d bytes, at most %d are allowed", len(n.Value), maxDataText)
		}
		return ast.String(n.Value), nil
	case "!!null":
		return ast.Null{}, nil
	case "!!bool":
		var b bool
		if err := n.Decode(&b); err != nil {
			return nil, atLine(n, "%q is not true or false", n.Value)
		}
		return ast.Boolean(b), nil
	case "!!int":
		i, err := strconv.ParseInt(n.Value, 10, 64)
		if err != nil || strconv.FormatInt(i, 10) != n.Value {
			return nil, atLine(n, "%q is not a plain decimal number of 64 bits", n.Value)
		}
		return ast.NewTerm(ast.Number(n.Value)).Value, nil
	default:
		return nil, atLine(n, "%q is read as %s, which data can't hold: use integers, or quote it", n.Value, tag)
	}
}

func atLine(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("line %d: %w", n.Line, fmt.Errorf(format, args...))
}
