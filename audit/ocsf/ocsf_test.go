package ocsf

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/ledger/event"
)

var at = time.Date(2026, 11, 1, 12, 0, 0, 123456789, time.UTC)

const (
	testOrigin = "secrets.example.org/bulla"
	subject    = "spiffe://example.org/payments"
)

// canary is what every field of bytes holds: keys, signatures, shares, receipts, evidence. None of it may be written.
var canary = []byte("canary-of-secret-bytes")

const signalsText = `{"v":1,"action":"deliver","principal":{"id":"spiffe://example.org/payments","trust_domain":"example.org","type":"USER"},` +
	`"instance":"thumb","resource":{"kind":"secret","secret":{"name":"db/password","class":"high","version":3}},` +
	`"network":{"peer":"192.0.2.7:4711","proxy":"10.0.0.7"},"place":{"country":"DE","continent":"EU"},"request":{"operation":"sign"},` +
	`"factors":[{"token_sha256":"never-written"}]}`

const resultText = `{"decision":"PERMIT","reasons":["risk too high","not here"],"timed_out":true,"fault":"stopped","risk":{"score":42}}`

// variants are bodies of every type: one all filled in, one with zero values, and those on which the mapping turns.
func variants(t testing.TB) []event.Body {
	t.Helper()
	decision := event.Decision{
		RequestID: event.NewID(at).String(), Action: "policy.push", Effect: "DENY", Revision: event.Digest{1}, Sequence: 9,
		Signals: json.RawMessage(signalsText), Result: json.RawMessage(resultText),
	}
	out := []event.Body{
		event.DecisionDenied{Principal: subject, Decision: decision},
		event.SecretPut{Name: "a", Version: 1},
		event.RevisionSwept{Outcome: event.SweepHeld, Digest: event.Digest{1}},
		event.SessionsExpired{Sessions: []event.ID{event.NewID(at)}},
		event.SignalReceived{Level: "raised"},
		event.SignalReceived{Revokes: true},
	}
	for _, action := range []string{"deliver", "session.revoke", "share.approve", "odd"} {
		d := decision
		d.Action, d.Effect = action, "STEP_UP"
		out = append(out, event.DecisionDenied{Principal: subject, Decision: d})
	}
	for _, resource := range []string{
		`{"kind":"session","session":{"id":"s","secret":"x"}}`, `{"kind":"device","device":{"id":"d"}}`, `{"kind":"revision","revision":{"digest":"ab"}}`,
		`{"kind":"round","round":{"id":"r"}}`, `{"kind":"audit"}`, `{}`,
	} {
		d := decision
		d.Signals = json.RawMessage(`{"resource":` + resource + `}`)
		out = append(out, event.OperationPermitted{Principal: subject, Decision: d})
	}
	for _, op := range []string{"encrypt", "decrypt", "sign"} {
		out = append(out, event.SessionOperated{Operation: op, Decision: decision})
	}
	for _, kind := range event.Types() {
		zero := zeroOf(t, kind)
		full := reflect.New(reflect.TypeOf(zero)).Elem()
		fill(t, full, decision)
		out = append(out, zero, full.Interface().(event.Body))
	}
	return out
}

// zeroOf makes the zero body of a type by decoding: the registry of package event is its own.
func zeroOf(t testing.TB, kind event.Type) event.Body {
	t.Helper()
	for _, b := range bodies {
		if b.EventType() == kind {
			return b
		}
	}
	t.Fatalf("the event type %s is new: add its body to bodies of this test, a rule, and a line to docs/export.md", kind)
	return nil
}

var bodies = []event.Body{
	event.Genesis{},
	event.KeyIntroduced{},
	event.KeyRetired{},
	event.RevisionActivated{},
	event.SecretPut{},
	event.InstanceBound{},
	event.DeviceEnrolled{},
	event.DeviceRevoked{},
	event.AttestationAppraised{},
	event.AttestationRefused{},
	event.SessionIssued{},
	event.DecisionDenied{},
	event.OperationPermitted{},
	event.SessionConfirmed{},
	event.SessionRevoked{},
	event.SessionClosed{},
	event.SessionUsed{},
	event.SessionOperated{},
	event.SessionsExpired{},
	event.SessionsUnconfirmed{},
	event.RefusalsCounted{},
	event.RequestRefused{},
	event.SignalReceived{},
	event.SignalSettled{},
	event.SignalRefused{},
	event.RoundOpened{},
	event.ShareIssued{},
	event.RoundApproved{},
	event.RoundRejected{},
	event.RoundClosed{},
	event.RoundExpired{},
	event.RevocationOrdered{},
	event.RevocationCompleted{},
	event.SessionsRevoked{},
	event.SessionsWiped{},
	event.AttestationDemanded{},
	event.RevisionSwept{},
}

func fill(t testing.TB, v reflect.Value, d event.Decision) {
	t.Helper()
	switch x := v.Addr().Interface().(type) {
	case *event.ID:
		*x = event.NewID(at)
		return
	case *event.Time:
		*x = event.NewTime(at)
		return
	case *event.Digest:
		*x = event.Digest{1, 2, 3}
		return
	case *event.Decision:
		*x = d
		return
	case *json.RawMessage:
		*x = json.RawMessage(`{"kind":"tpm2","status":"affirming","trust_score":90,"ak_public":"` + base64.StdEncoding.EncodeToString(canary) + `"}`)
		return
	case *[]byte:
		*x = canary
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("text <&> \u2028 é")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int64:
		v.SetInt(7)
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(t, v.Index(0), d)
		fill(t, v.Index(1), d)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), d)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), d)
		}
	default:
		t.Fatalf("no filler for %s", v.Type())
	}
}

// lines maps every variant, about a principal and about the ledger itself.
func lines(t testing.TB) []json.RawMessage {
	t.Helper()
	var out []json.RawMessage
	for i, body := range variants(t) {
		for _, who := range []string{subject, ""} {
			line, err := (Mapper{Origin: testOrigin}).Line(int64(i), event.New(at, who, body))
			if err != nil {
				t.Fatalf("%s: %v", body.EventType(), err)
			}
			out = append(out, line)
		}
	}
	return out
}

// TestEveryTypeHasAMapping: a new type of events does not get lost on the way to a SIEM.
func TestEveryTypeHasAMapping(t *testing.T) {
	for _, kind := range event.Types() {
		if _, ok := rules[kind]; !ok {
			t.Errorf("%s has no rule", kind)
		}
		zeroOf(t, kind)
	}
	for kind := range rules {
		if !slices.Contains(event.Types(), kind) {
			t.Errorf("the rule for %s is for no type", kind)
		}
	}
	if len(bodies) != len(event.Types()) {
		t.Errorf("%d bodies, %d types", len(bodies), len(event.Types()))
	}
}

// TestEveryLineIsInTheSchema: required fields, known fields, types, enumerations, constraints, and the numbers that
// follow from each other.
func TestEveryLineIsInTheSchema(t *testing.T) {
	s := loadSchema(t)
	for _, line := range lines(t) {
		for _, fault := range s.check(line) {
			t.Errorf("%s\n%s", fault, line)
		}
	}
}

// TestSchemaCheckFinds: the check above is worth something.
func TestSchemaCheckFinds(t *testing.T) {
	s := loadSchema(t)
	good, err := (Mapper{Origin: testOrigin}).Line(3, event.New(at, subject, event.RoundExpired{}))
	if err != nil {
		t.Fatal(err)
	}
	for old, want := range map[string]string{
		`"class_uid":6003|"class_uid":6004`:               "class",
		`"category_uid":6|"category_uid":3`:               "category_uid",
		`"type_uid":600304|"type_uid":600302`:             "type_uid",
		`"severity_id":1|"severity_id":7`:                 "severity_id",
		`"severity":"Informational"|"severity":"Low"`:     "severity",
		`"activity_name":"Delete"|"activity_name":"Read"`: "activity_name",
		`"activity_id":4|"activity_id":40`:                "activity_id",
		`"message"|"massage"`:                             "massage",
		`"version":"1.3.0",|`:                             "version",
		`"operation":"share.expire"|"operation":7`:        "operation",
		`"src_endpoint":{|"src_endpoint":{},"unmapped":{`: "at least one",
		`"vendor_name":"Bulla project"|"vendor":"x"`:      "vendor",
		`"time":1793534400123|"time":"2026"`:              "time",
	} {
		from, to, _ := strings.Cut(old, "|")
		changed := bytes.Replace(good, []byte(from), []byte(to), 1)
		if bytes.Equal(changed, good) {
			t.Fatalf("nothing was changed by %s:\n%s", old, good)
		}
		if faults := s.check(changed); !strings.Contains(strings.Join(faults, "\n"), want) {
			t.Errorf("%s: faults %q", old, faults)
		}
	}
}

// TestNoSecretBytes: nothing that is bytes in an event is written, in whatever encoding, nor a signal that is not meant to.
func TestNoSecretBytes(t *testing.T) {
	for _, line := range lines(t) {
		for _, form := range []string{
			string(canary), hex.EncodeToString(canary), base64.StdEncoding.EncodeToString(canary), base64.RawURLEncoding.EncodeToString(canary), "never-written",
		} {
			if bytes.Contains(line, []byte(form)) {
				t.Errorf("%q in %s", form, line)
			}
		}
	}
}

func TestDeduplicationID(t *testing.T) {
	m := Mapper{Origin: testOrigin}
	e := event.New(at, subject, event.RoundExpired{})
	read := func(index int64, e event.Event) (uid string, sequence int64) {
		line, err := m.Line(index, e)
		if err != nil {
			t.Fatal(err)
		}
		var o struct {
			Metadata struct {
				UID      string
				Sequence int64
			}
		}
		if err := json.Unmarshal(line, &o); err != nil {
			t.Fatal(err)
		}
		return o.Metadata.UID, o.Metadata.Sequence
	}
	first, sequence := read(42, e)
	again, _ := read(42, e)
	if want := testOrigin + "#42#" + e.ID.String(); first != want || again != first || sequence != 42 {
		t.Errorf("%s, %s, %d", first, again, sequence)
	}
	if other, _ := read(42, event.New(at, subject, event.RoundExpired{})); other == first {
		t.Error("another event at the same index, as after a restore, has the same id")
	}
}

// TestLongestLine: the largest events still fit, and say what they left out.
func TestLongestLine(t *testing.T) {
	long := strings.Repeat("<\u2028\x01", 2_000)
	many := slices.Repeat([]string{long}, 200)
	raw, err := json.Marshal(map[string]any{"reasons": many, "fault": long})
	if err != nil {
		t.Fatal(err)
	}
	d := event.Decision{RequestID: long, Action: long, Effect: long, Signals: json.RawMessage(signalsText), Result: raw}
	for _, body := range []event.Body{
		event.Genesis{Origin: long, TrustDomains: many, Security: many, Auditors: many, Product: long},
		event.SessionIssued{
			Principal: long, Instance: long, Device: long, Secret: long, Class: long, Grade: long, Suite: long, Places: many, Decision: d,
			Custody: &event.Custody{Split: event.Split{Holders: many}},
		},
		event.SessionsRevoked{Sessions: make([]event.ID, 30_000), Reason: long},
		event.SignalReceived{Targets: many, Issuer: long, TokenID: long},
		event.RoundClosed{Bad: many},
		event.DecisionDenied{Principal: long, Unmet: long, Decision: d},
	} {
		line, err := (Mapper{Origin: testOrigin}).Line(1, event.New(at, long, body))
		if err != nil {
			t.Errorf("%s: %v", body.EventType(), err)
		}
		if len(line) > MaxLine || !bytes.Contains(line, []byte("_left_out")) {
			t.Errorf("%s: %d bytes: %.300s", body.EventType(), len(line), line)
		}
	}
}

func FuzzLine(f *testing.F) {
	f.Add("deliver", signalsText, resultText)
	f.Add("", "null", "[]")
	f.Add("x.", `{"network":{"peer":"[::1%eth0]:1"}}`, `{"risk":{"score":-1}}`)
	s := loadSchema(f)
	f.Fuzz(func(t *testing.T, action, signals, result string) {
		if !json.Valid([]byte(signals)) || !json.Valid([]byte(result)) {
			return
		}
		d := event.Decision{Action: action, Effect: action, Signals: json.RawMessage(signals), Result: json.RawMessage(result)}
		for _, body := range []event.Body{event.DecisionDenied{Decision: d}, event.SessionUsed{Decision: d}, event.SecretPut{Name: "a", By: &d}} {
			line, err := (Mapper{Origin: testOrigin}).Line(1, event.New(at, subject, body))
			if err != nil {
				t.Fatal(err)
			}
			if faults := s.check(line); len(faults) > 0 {
				t.Errorf("%q\n%s", faults, line)
			}
		}
	})
}

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
