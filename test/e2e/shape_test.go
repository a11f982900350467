package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// shape says what is wrong with a JSON value, or "". A fault begins with the path to its place.
type shape func(v any) string

// fields are the keys of an object. Each has to be there, and no other.
type fields map[string]shape

func text(v any) string {
	if _, ok := v.(string); !ok {
		return fmt.Sprintf(" is %v, want a string", v)
	}
	return ""
}

func word(v any) string {
	if s, ok := v.(string); !ok || s == "" {
		return fmt.Sprintf(" is %v, want a string that is not empty", v)
	}
	return ""
}

// matching wants a string that matches the whole expression.
func matching(expression string) shape {
	re := regexp.MustCompile(`^(?:` + expression + `)$`)
	return func(v any) string {
		if s, ok := v.(string); !ok || !re.MatchString(s) {
			return fmt.Sprintf(" is %v, want a string that matches %s", v, re)
		}
		return ""
	}
}

func is(want any) shape {
	return func(v any) string {
		if n, ok := v.(json.Number); ok {
			v = n.String()
		}
		if v != want {
			return fmt.Sprintf(" is %v, want %v", v, want)
		}
		return ""
	}
}

// whole wants a number without fraction or exponent.
func whole(v any) string {
	if n, ok := v.(json.Number); !ok || strings.ContainsAny(n.String(), ".eE") {
		return fmt.Sprintf(" is %v, want an integer", v)
	}
	return ""
}

func number(v any) string {
	if _, ok := v.(json.Number); !ok {
		return fmt.Sprintf(" is %v, want a number", v)
	}
	return ""
}

func boolean(v any) string {
	if _, ok := v.(bool); !ok {
		return fmt.Sprintf(" is %v, want true or false", v)
	}
	return ""
}

// moment wants a time as in RFC 3339, in UTC.
func moment(v any) string {
	s, _ := v.(string)
	if at, err := time.Parse(time.RFC3339Nano, s); err != nil || at.Location() != time.UTC {
		return fmt.Sprintf(" is %v, want a time as in RFC 3339 in UTC", v)
	}
	return ""
}

func base64Text(v any) string {
	s, ok := v.(string)
	if _, err := base64.StdEncoding.Strict().DecodeString(s); err != nil || !ok {
		return fmt.Sprintf(" is %v, want base64", v)
	}
	return ""
}

func anyObject(v any) string {
	if _, ok := v.(map[string]any); !ok {
		return fmt.Sprintf(" is %v, want an object", v)
	}
	return ""
}

func orNull(s shape) shape {
	return func(v any) string {
		if v == nil {
			return ""
		}
		return s(v)
	}
}

func list(each shape) shape {
	return func(v any) string {
		items, ok := v.([]any)
		if !ok {
			return fmt.Sprintf(" is %v, want a list", v)
		}
		for i, item := range items {
			if fault := each(item); fault != "" {
				return fmt.Sprintf("[%d]%s", i, fault)
			}
		}
		return ""
	}
}

func object(want fields) shape {
	return func(v any) string {
		m, ok := v.(map[string]any)
		if !ok {
			return fmt.Sprintf(" is %v, want an object", v)
		}
		if got, wanted := slices.Sorted(maps.Keys(m)), slices.Sorted(maps.Keys(want)); !slices.Equal(got, wanted) {
			return fmt.Sprintf(" has the keys %v, want %v", got, wanted)
		}
		for _, key := range slices.Sorted(maps.Keys(want)) {
			if fault := want[key](m[key]); fault != "" {
				return "." + key + fault
			}
		}
		return ""
	}
}

// but is a copy with other shapes for some keys.
func (f fields) but(changes fields) fields {
	out := maps.Clone(f)
	maps.Copy(out, changes)
	return out
}

// The shapes that scripts rely on.
const (
	uuidPattern   = `[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`
	digestPattern = `[0-9a-f]{64}`
	statePattern  = `issued|confirmed|unconfirmed|exhausted|expired|revoked|closed`
	devicePattern = `(tpm|dev)-[a-z2-7]{52}`
)

func factorShape() fields {
	return fields{"name": word, "value": text, "points": whole, "reason": word}
}

func deliveredShape() fields {
	return fields{
		"name": word, "version": whole, "value": base64Text, "session_id": matching(uuidPattern), "grade": matching("open|gated"), "suite": word,
		"expires_at": moment, "uses_left": orNull(whole), "uses_enforced_by": orNull(matching("client|broker")),
		"risk":   object(fields{"score": whole, "factors": list(object(factorShape()))}),
		"policy": object(fields{"revision": whole, "digest": matching(digestPattern)}), "attestation": orNull(anyObject), "receipt": is("confirmed"),
	}
}

func denialShape() fields {
	return fields{"decision": matching("DENY|STEP_UP"), "reasons": list(word), "requires": orNull(anyObject), "support_id": matching(uuidPattern)}
}

func failureShape() fields { return fields{"error": word, "exit_code": whole} }

func sessionShape() fields {
	return fields{
		"id": matching(uuidPattern), "state": matching(statePattern), "principal": matching(`spiffe://.+`), "secret": word, "version": whole,
		"grade": matching("open|gated|proxied"), "issued_at": moment, "expires_at": moment, "revoked_at": orNull(moment), "reason": text,
	}
}

func sessionDetailsShape() fields {
	return sessionShape().but(fields{
		"confirmed_at": orNull(moment), "ended_at": orNull(moment), "instance": word, "device": text, "suite": word,
		"envelope_digest": matching(digestPattern), "policy_digest": matching(digestPattern),
		"uses": orNull(whole), "used": orNull(whole), "offline": whole, "ahead": whole,
		"standing": text, "wiped_at": orNull(moment), "erased": orNull(whole),
	})
}

// storyShape is that of session show.
func storyShape() fields {
	return sessionDetailsShape().but(fields{"erased_beside": whole, "timeline": list(object(fields{
		"index": whole, "event": word, "time": moment, "kind": word, "what": word, "details": list(text),
	}))})
}

func secretShape() fields {
	return fields{"name": word, "class": word, "type": word, "versions": list(object(fields{"version": whole, "stage": word, "created_at": moment}))}
}

func deviceShape() fields {
	return fields{
		"id": matching(devicePattern), "kind": matching("tpm2|development"), "state": matching("enrolled|revoked"), "enrolled_at": moment,
		"revoked_at": orNull(moment), "reason": text, "record": anyObject,
	}
}

func revisionShape() fields {
	return fields{
		"digest": matching(digestPattern), "revision": whole, "active": boolean, "activated_at": moment, "by": text, "source": word, "note": text, "sweep": text,
		"bundle_key": text, "rollback": boolean, "report_sha256": text, "name": text, "staged_at": text,
		"report_kept": boolean, "no_report": text,
	}
}

// TestShapesRefuse shows that the checks above can fail.
func TestShapesRefuse(t *testing.T) {
	t.Parallel()
	want := object(fields{"n": whole, "t": orNull(moment), "l": list(object(fields{"s": word})), "b": base64Text})
	for _, c := range []struct{ json, fault string }{
		{`{"n": 1, "t": null, "l": [{"s": "x"}], "b": "eA=="}`, ""},
		{`{"n": 1, "t": "2026-01-02T03:04:05Z", "l": [], "b": ""}`, ""},
		{`{"n": 1.5, "t": null, "l": [], "b": ""}`, ".n is 1.5"},
		{`{"n": 1, "t": "2026-01-02", "l": [], "b": ""}`, ".t is 2026-01-02"},
		{`{"n": 1, "t": "2026-01-02T03:04:05+02:00", "l": [], "b": ""}`, ".t is"},
		{`{"n": 1, "t": null, "l": [{"s": "x"}, {"s": ""}], "b": ""}`, ".l[1].s is"},
		{`{"n": 1, "t": null, "l": null, "b": ""}`, ".l is"},
		{`{"n": 1, "t": null, "l": [], "b": "eA"}`, ".b is"},
		{`{"n": 1, "t": null, "l": [], "b": "", "x": 1}`, " has the keys"},
		{`{"n": 1, "l": [], "b": ""}`, " has the keys"},
	} {
		dec := json.NewDecoder(strings.NewReader(c.json))
		dec.UseNumber()
		var v any
		if err := dec.Decode(&v); err != nil {
			t.Fatal(err)
		}
		if fault := want(v); c.fault == "" && fault != "" || !strings.HasPrefix(fault, c.fault) {
			t.Errorf("%s: fault %q, want %q", c.json, fault, c.fault)
		}
	}
}
