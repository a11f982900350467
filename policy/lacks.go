package policy

import (
	"encoding/json"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"

	shipped "github.com/bulla-project/bulla/rego"
)

// shape is what the schema of the input says of a value. Each name that any object of a site's choosing has is in it.
type shape struct {
	Properties           map[string]*shape `json:"properties"`
	Items                *shape            `json:"items"`
	AdditionalProperties json.RawMessage   `json:"additionalProperties"`
}

// open says that an object can have names that the schema does not know.
func (s *shape) open() bool {
	return len(s.AdditionalProperties) > 0 && s.AdditionalProperties[0] == '{'
}

var schemaOfInput = sync.OnceValue(func() *shape {
	s := new(shape)
	if err := json.Unmarshal(shipped.InputSchema(), s); err != nil {
		panic("policy: internal error: the schema of the input: " + err.Error())
	}
	return s
})

// missing notes what is undefined of a path below v: at its shortest prefix that is not there, or below its end.
func (w *watcher) missing(v ast.Value, s *shape, at string, path []*ast.Term) {
	if len(path) == 0 {
		w.below(v, s, at)
		return
	}
	switch v := v.(type) {
	case ast.Object:
		name, ok := path[0].Value.(ast.String)
		if !ok {
			if !ground(path[0]) { // each name that there is, and each that there could be
				w.names(v, s, at, func(t *ast.Term, s *shape, at string) { w.missing(t.Value, s, at, path[1:]) })
			}
			return
		}
		next := s.property(string(name))
		if t := v.Get(path[0]); t != nil {
			w.missing(t.Value, next, at+"."+string(name), path[1:])
		} else if !w.impossible(at, string(name)) {
			w.lacks[at+"."+string(name)] = true
		}
	case *ast.Array:
		if v.Len() == 0 {
			w.lacks[at+"[]"] = true
		}
		v.Foreach(func(t *ast.Term) { w.missing(t.Value, s.items(), at+"[]", path[1:]) })
	}
}

// below notes everything that could be below v and is not.
func (w *watcher) below(v ast.Value, s *shape, at string) {
	switch v := v.(type) {
	case ast.Object:
		w.names(v, s, at, func(t *ast.Term, s *shape, at string) { w.below(t.Value, s, at) })
	case *ast.Array:
		v.Foreach(func(t *ast.Term) { w.below(t.Value, s.items(), at+"[]") })
	}
}

// names calls f for each member of an object, and notes those that the schema has besides.
func (w *watcher) names(v ast.Object, s *shape, at string, f func(t *ast.Term, s *shape, at string)) {
	v.Foreach(func(k, t *ast.Term) {
		if name, ok := k.Value.(ast.String); ok {
			f(t, s.property(string(name)), at+"."+string(name))
		}
	})
	if s == nil {
		return
	}
	for name := range s.Properties {
		if v.Get(ast.StringTerm(name)) == nil && !w.impossible(at, name) {
			w.lacks[at+"."+name] = true
		}
	}
	if s.open() {
		w.lacks[at+".*"] = true
	}
}

// impossible says that a resource of this kind never has the part: it is no gap of the record.
func (w *watcher) impossible(at, name string) bool {
	if at != "input.resource" || name == w.kind {
		return false
	}
	switch name {
	case KindSecret, KindSession, KindDevice, KindRevision, KindRound:
		return true
	}
	return false
}

func (s *shape) property(name string) *shape {
	if s == nil {
		return nil
	}
	return s.Properties[name]
}

func (s *shape) items() *shape {
	if s == nil {
		return nil
	}
	return s.Items
}

func ground(t *ast.Term) bool { return t.IsGround() }
