package ocsf

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

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
	event.SubjectErased{},
	event.HoldPlaced{},
	event.HoldReleased{},
	event.Restored{},
	event.RevisionStaged{},
	event.RevisionProposed{},
	event.ShadowStarted{},
	event.ShadowDiffered{},
	event.ShadowEnded{},
	event.TrustObserved{},
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
	erased, err := (Mapper{Origin: testOrigin}).Erased(7, at)
	if err != nil {
		t.Fatal(err)
	}
	return append(out, erased)
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
	long := strings.Repeat("<\u2028\x01\u009b\U000e0041", 2_000)
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

// Whoever looks at a line on a terminal gets nothing that it would obey, and every other reader the same value.
func TestAbuse_A54_Line(t *testing.T) {
	hostile := "\x1b[2J \u009b31m \x7f \u202egnp.exe \U000e0041 größe 日本"
	line, err := (Mapper{Origin: testOrigin}).Line(1, event.New(at, subject, event.SessionRevoked{Session: event.NewID(at), Reason: hostile}))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range string(line) {
		if !unicode.IsPrint(r) {
			t.Errorf("%U in %s", r, line)
		}
	}
	var o struct{ Comment string }
	if err := json.Unmarshal(line, &o); err != nil || o.Comment != hostile {
		t.Errorf("%q came back as %q, %v", hostile, o.Comment, err)
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
