// Package ocsf writes events of the ledger as events of the Open Cybersecurity Schema Framework, one JSON object a line,
// for a SIEM that knows OCSF and not Bulla.
//
// Three classes are used: API Activity for what was asked and decided, Datastore Activity for what was done with a
// secret, Entity Management for what was changed and what ended. The index in the log is metadata.sequence;
// metadata.uid is made of the log's name, the index and the event's id, and is the same however often an event is
// written: it is what a receiver tells duplicates by. The id is in it because a ledger that was restored from a backup
// gives indexes out again.
//
// The mapping is pure: the same event, index and log name give the same bytes. It is lossy on purpose. Keys, signatures,
// salts, receipts, shares, evidence and raw signals stay in the ledger, where the proofs are; what is written is what
// people search and count by. Long texts and lists are cut, so that a line has at most [MaxLine] bytes, and the line says
// so. docs/export.md has the mapping field by field, and a test holds it to this package.
package ocsf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/bulla-project/bulla/ledger/event"
)

// Version is the version of the OCSF schema that the lines follow.
const Version = "1.3.0"

// MaxLine is the most that a line may have, in bytes and without its newline: what CloudWatch Logs takes in one event.
const MaxLine = 256<<10 - 26

// The longest text and the longest list that are written; ids of sessions are short, and there may be more of them.
const (
	maxText = 2048 // as JSON
	maxItem = 512  // the same in a list
	maxList = 48
	maxIDs  = 1000
)

// ErrNoMapping is in the error for an event of a type that this package does not know.
var ErrNoMapping = errors.New("no OCSF mapping")

// Mapper maps the events of one log.
type Mapper struct {
	Origin string // the log's name
}

// Line returns an event as one JSON object without a newline.
func (m Mapper) Line(index int64, e event.Event) ([]byte, error) {
	if e.Body == nil {
		return nil, fmt.Errorf("event %d: %w: it has no body", index, ErrNoMapping)
	}
	r, ok := rules[e.Body.EventType()]
	if !ok {
		return nil, fmt.Errorf("event %d: %w for the type %q: this program is older than the broker", index, ErrNoMapping, e.Body.EventType())
	}
	o := newObject(m, index, e, r, string(e.Body.EventType()))
	o.body(e.Body)
	return o.line(index)
}

// Erased returns the line in place of an event that was erased before it was written. When that was, and what it was, is
// not known: at is a moment near to it.
func (m Mapper) Erased(index int64, at time.Time) ([]byte, error) {
	o := newObject(m, index, event.Event{Time: event.NewTime(at)}, erasedRule, erasedCode)
	o.Metadata.UID = m.Origin + "#" + strconv.FormatInt(index, 10) + "#" + erasedCode
	o.StatusID, o.Status, o.other = statusOther, "Erased", "Erased"
	return o.line(index)
}

// line is the object as JSON.
func (o *object) line(index int64) ([]byte, error) {
	o.finish()
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(o); err != nil {
		return nil, fmt.Errorf("event %d as OCSF: %w", index, err)
	}
	line := harmless(bytes.TrimSuffix(out.Bytes(), []byte("\n")))
	if len(line) > MaxLine {
		return nil, fmt.Errorf("event %d as OCSF has %d bytes, at most %d are allowed", index, len(line), MaxLine)
	}
	return line, nil
}

// harmless writes as an escape what a terminal would obey or not show: names and reasons come from outside, and lines are
// looked at where they arrive. It is the same value to every reader; outside of texts JSON has no such thing.
func harmless(line []byte) []byte {
	out := make([]byte, 0, len(line))
	for len(line) > 0 {
		r, size := utf8.DecodeRune(line)
		switch {
		case unicode.IsPrint(r):
			out = append(out, line[:size]...)
		case r > 0xffff:
			a, b := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, a, b)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		line = line[size:]
	}
	return out
}

// newObject fills in what every event has.
func newObject(m Mapper, index int64, e event.Event, r rule, code string) *object {
	c := classes[r.class]
	at := e.Time.Time()
	o := &object{
		rule: r, subject: e.Subject, origin: m.Origin,
		Activity: r.activity, CategoryUID: c.category, CategoryName: c.categoryName, ClassUID: c.uid, ClassName: c.name,
		SeverityID: r.severity, StatusID: statusSuccess, Time: at.UnixMilli(), Message: r.message,
		Metadata: metadata{
			Version: Version, Product: product{Name: "Bulla", VendorName: "Bulla project"},
			UID:      m.Origin + "#" + strconv.FormatInt(index, 10) + "#" + e.ID.String(),
			Sequence: index, EventCode: code, LogName: m.Origin, LogProvider: "bulla",
			LogVersion: strconv.Itoa(event.Version), OriginalTime: e.Time.String(),
		},
		Unmapped: map[string]any{},
	}
	if r.class != entityManagement {
		o.Src = &endpoint{}
	}
	if r.class == apiActivity {
		o.API = &api{Operation: r.operation, Service: &service{Name: "bulla", UID: m.Origin}}
	}
	if r.class == datastoreActivity {
		o.Type, o.TypeID = "Database", &typeDatabase
		o.Database = &store{Name: "bulla", UID: m.Origin, Type: "secret broker", TypeID: typeOther}
	}
	if e.Subject != "" {
		o.user().UID = text(e.Subject)
	}
	return o
}

// finish makes the parts that follow from others.
func (o *object) finish() {
	c := classes[o.rule.class]
	name, ok := c.activities[o.Activity]
	if !ok {
		o.Activity, name = activityOther, o.rule.operation
		if o.other != "" {
			name = o.other
		}
		name = word(name)
	}
	o.ActivityName = name
	o.TypeUID = int64(c.uid)*100 + int64(o.Activity)
	o.TypeName = c.name + ": " + name
	o.Severity = severities[o.SeverityID]
	if o.Status == "" {
		o.Status = statuses[o.StatusID]
	}
	if o.Actor == nil { // nobody called: it is the broker's own doing
		o.Actor = &actor{AppName: "bulla", AppUID: o.origin}
	}
	if o.Src != nil && *o.Src == (endpoint{}) {
		if o.subject != "" {
			o.Src.UID = text(o.subject)
		} else {
			o.Src.Name = "bulla"
		}
	}
	if o.Actor.User != nil {
		o.Actor.User.UID = word(o.Actor.User.UID)
	}
	if o.API != nil {
		o.API.Operation = word(o.API.Operation)
	}
	if len(o.Unmapped) == 0 {
		o.Unmapped = nil
	}
}

// text cuts what is too long.
func text(s string) string { return cut(s, maxText) }

// cut cuts a text at a rune, so that its JSON has at most so many bytes.
func cut(s string, most int) string {
	size := 0
	for i, r := range s {
		switch {
		case r == '"', r == '\\':
			size += 2
		case unicode.IsPrint(r):
			size += utf8.RuneLen(r)
		case r > 0xffff:
			size += len(`\ud800\udc00`)
		default:
			size += len(`\u2028`)
		}
		if size > most {
			return s[:i] + "…"
		}
	}
	return s
}

// word is text for what OCSF wants to be there.
func word(s string) string {
	if s == "" {
		return "unknown"
	}
	return text(s)
}

// texts cuts the list as well, and says how many it left out.
func (o *object) texts(name string, all []string) {
	if len(all) == 0 {
		return
	}
	var out []string
	for _, s := range all[:min(len(all), maxList)] {
		out = append(out, cut(s, maxItem))
	}
	o.Unmapped[name] = out
	o.left(name, len(all)-len(out))
}

func (o *object) left(name string, n int) {
	if n > 0 {
		o.Unmapped[name+"_left_out"] = n
	}
}

// note keeps a value for which OCSF has no field, unless there is none.
func (o *object) note(name string, value any) {
	switch v := value.(type) {
	case string:
		if v != "" {
			o.Unmapped[name] = text(v)
		}
	case event.Digest:
		if !v.IsZero() {
			o.Unmapped[name] = v.String()
		}
	case event.ID:
		if !v.IsZero() {
			o.Unmapped[name] = v.String()
		}
	case event.Time:
		if !v.IsZero() {
			o.Unmapped[name] = v.String()
		}
	case uint32:
		if v != 0 {
			o.Unmapped[name] = v
		}
	case uint64:
		if v != 0 {
			o.Unmapped[name] = v
		}
	case bool:
		if v {
			o.Unmapped[name] = v
		}
	default:
		panic(fmt.Sprintf("ocsf: internal error: no note of type %T", value))
	}
}
