package ocsf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
)

// schema is the vendored excerpt.
type schema struct {
	Version    string
	Categories map[string]struct {
		UID     int
		Caption string
	}
	Classes    map[string]shape
	Objects    map[string]shape
	Dictionary map[string]attribute
}

type shape struct {
	Caption     string
	Extends     string
	Category    string
	UID         int
	Attributes  map[string]attribute
	Constraints struct {
		AtLeastOne []string `json:"at_least_one"`
	}
}

type attribute struct {
	Requirement string
	Enum        map[string]string
	Type        string
	IsArray     bool `json:"is_array"`
}

func loadSchema(t testing.TB) *schema {
	t.Helper()
	data, err := os.ReadFile("testdata/ocsf-1.3.0/schema.json")
	if err != nil {
		t.Fatal(err)
	}
	s := new(schema)
	if err := json.Unmarshal(data, s); err != nil {
		t.Fatal(err)
	}
	if s.Version != Version {
		t.Fatalf("the schema is %s, the package writes %s", s.Version, Version)
	}
	return s
}

// resolve merges a shape with what it extends.
func resolve(all map[string]shape, name string) (shape, bool) {
	s, ok := all[name]
	if !ok || s.Extends == "" {
		return s, ok
	}
	parent, ok := resolve(all, s.Extends)
	merged := map[string]attribute{}
	for n, a := range parent.Attributes {
		merged[n] = a
	}
	for n, a := range s.Attributes {
		if a.Enum == nil {
			a.Enum = merged[n].Enum
		}
		merged[n] = a
	}
	s.Attributes = merged
	if s.Category == "" {
		s.Category = parent.Category
	}
	if s.Constraints.AtLeastOne == nil {
		s.Constraints = parent.Constraints
	}
	return s, ok
}

func (s *schema) check(line []byte) []string {
	var o map[string]any
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.UseNumber()
	if err := dec.Decode(&o); err != nil {
		return []string{err.Error()}
	}
	for name := range s.Classes {
		c, _ := resolve(s.Classes, name)
		category := s.Categories[c.Category]
		uid := category.UID*1000 + c.UID
		if c.UID == 0 || fmt.Sprint(o["class_uid"]) != strconv.Itoa(uid) {
			continue
		}
		faults := s.shape(name, c, o)
		want := func(field string, value any) {
			if fmt.Sprint(o[field]) != fmt.Sprint(value) {
				faults = append(faults, fmt.Sprintf("%s is %v, want %v", field, o[field], value))
			}
		}
		want("category_uid", category.UID)
		want("category_name", category.Caption)
		want("class_name", c.Caption)
		id, _ := strconv.Atoi(fmt.Sprint(o["activity_id"]))
		want("type_uid", uid*100+id)
		want("type_name", fmt.Sprintf("%s: %v", c.Caption, o["activity_name"]))
		want("severity", s.Dictionary["severity_id"].Enum[fmt.Sprint(o["severity_id"])])
		if caption := c.Attributes["activity_id"].Enum[fmt.Sprint(id)]; caption != "" {
			want("activity_name", caption)
		}
		if caption := s.Dictionary["status_id"].Enum[fmt.Sprint(o["status_id"])]; caption != "Other" {
			want("status", caption)
		}
		return faults
	}
	return []string{fmt.Sprintf("class %v is none of the excerpt", o["class_uid"])}
}

// shape checks one object.
func (s *schema) shape(where string, sh shape, o map[string]any) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, where+": "+fmt.Sprintf(format, args...)) }
	for name, a := range sh.Attributes {
		if _, ok := o[name]; a.Requirement == "required" && !ok {
			fault("%s is required", name)
		}
	}
	if one := sh.Constraints.AtLeastOne; one != nil && !slices.ContainsFunc(one, func(n string) bool { _, ok := o[n]; return ok }) {
		fault("at least one of %q is required", one)
	}
	for name, value := range o {
		a, ok := sh.Attributes[name]
		d, typed := s.Dictionary[name]
		if !ok || !typed {
			fault("unknown field %s", name)
			continue
		}
		values := []any{value}
		if list, isList := value.([]any); isList || d.IsArray {
			if values = list; !d.IsArray || !isList || len(list) == 0 {
				fault("%s: is it a list, and not empty?", name)
			}
		}
		for _, v := range values {
			if f := s.value(where+"."+name, a, d, v); f != nil {
				faults = append(faults, f...)
			}
		}
	}
	return faults
}

// value checks one value against its type and enumeration.
func (s *schema) value(where string, a, d attribute, v any) []string {
	wrong := func() []string { return []string{fmt.Sprintf("%s: %v is no %s", where, v, d.Type)} }
	switch d.Type {
	case "string_t", "ip_t":
		if text, ok := v.(string); !ok || text == "" {
			return wrong()
		}
	case "integer_t", "long_t", "timestamp_t", "port_t":
		n, ok := v.(json.Number)
		if _, err := n.Int64(); !ok || err != nil {
			return wrong()
		}
		enum := map[string]string{}
		for _, e := range []map[string]string{d.Enum, a.Enum} {
			for k, c := range e {
				enum[k] = c
			}
		}
		if len(enum) > 0 && enum[n.String()] == "" {
			return []string{fmt.Sprintf("%s: %s is not in the enumeration", where, n)}
		}
	case "boolean_t":
		if _, ok := v.(bool); !ok {
			return wrong()
		}
	case "json_t", "object":
	default:
		o, isObject := v.(map[string]any)
		sh, known := resolve(s.Objects, d.Type)
		if !isObject || !known {
			return wrong()
		}
		return s.shape(where, sh, o)
	}
	return nil
}
