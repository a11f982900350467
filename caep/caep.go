// Package caep reads what a verified security event token says (RFC 8417): one event of the OpenID Continuous Access
// Evaluation Profile 1.0, about one subject in a format of RFC 9493.
//
// An event can raise concern about its subject, or say that its sessions are over. Nothing that an event says lowers
// anything: "the risk is low now" has no effect. The package verifies no signature (package token does), and knows
// neither principals nor sessions: whom a subject stands for is for the configuration to say.
package caep

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/bulla-project/bulla/token"
)

// ErrEvent is wrapped by every refusal of Read.
var ErrEvent = errors.New("security event refused")

// The types of events, by the last part of their URI.
const (
	SessionRevoked         = "session-revoked"
	CredentialChange       = "credential-change"
	DeviceComplianceChange = "device-compliance-change"
	RiskLevelChange        = "risk-level-change"
	// Verification is the Shared Signals Framework's own: a transmitter tries its stream.
	Verification = "verification"
)

const (
	caepPrefix = "https://schemas.openid.net/secevent/caep/event-type/"
	ssfPrefix  = "https://schemas.openid.net/secevent/ssf/event-type/"
)

// Types lists the types of events that a transmitter can be configured for. Verification needs no configuration.
func Types() []string {
	return []string{SessionRevoked, CredentialChange, DeviceComplianceChange, RiskLevelChange}
}

// The levels of concern.
const (
	Raised = "raised"
	High   = "high"
)

// Event is what a token says.
type Event struct {
	Type    string
	Subject Subject
	// Level is how much concern it raises about the subject: raised, high, or "" for none.
	Level string
	// Revokes says that the sessions of the subject are over.
	Revokes bool
}

// Subject is whom an event is about, as the transmitter knows them. It can be compared.
type Subject struct {
	Format string // iss_sub, opaque, email, uri or account
	Issuer string // with iss_sub
	ID     string
}

// Formats lists the formats of subjects that are read.
func Formats() []string { return []string{"iss_sub", "opaque", "email", "uri", "account"} }

// members are the members of a subject, by format (RFC 9493, section 3.2).
var members = map[string][]string{
	"iss_sub": {"iss", "sub"}, "opaque": {"id"}, "email": {"email"}, "uri": {"uri"}, "account": {"uri"},
}

const maxID = 1024 // bytes of each part of a subject

// Read returns the one event of a verified token.
func Read(c token.Claims) (Event, error) {
	var events map[string]json.RawMessage
	if err := json.Unmarshal(c.Raw("events"), &events); err != nil || len(events) != 1 {
		return Event{}, fmt.Errorf("%w: it has to hold exactly one event", ErrEvent)
	}
	var e Event
	for uri, body := range events {
		var err error
		if e, err = readEvent(uri, body); err != nil {
			return Event{}, err
		}
	}
	var err error
	e.Subject, err = readSubject(c.Raw("sub_id"))
	if e.Type == Verification { // it is about the stream
		return e, nil
	}
	return e, err
}

// readEvent judges the content of an event. Members that are not needed are left alone: the profile lets them be.
func readEvent(uri string, body json.RawMessage) (Event, error) {
	var in map[string]json.RawMessage
	if err := json.Unmarshal(body, &in); err != nil || in == nil {
		return Event{}, fmt.Errorf("%w: its content is not an object", ErrEvent)
	}
	text := func(name string, want ...string) (string, error) {
		var value string
		if json.Unmarshal(in[name], &value) != nil || value == "" || len(want) > 0 && !slices.Contains(want, value) {
			return "", fmt.Errorf("%w: %s is missing, or none of %q", ErrEvent, name, want)
		}
		return value, nil
	}
	switch uri {
	case caepPrefix + SessionRevoked:
		return Event{Type: SessionRevoked, Revokes: true}, nil
	case caepPrefix + CredentialChange:
		_, err := text("change_type", "create", "revoke", "update", "delete")
		return Event{Type: CredentialChange, Level: Raised}, err
	case caepPrefix + DeviceComplianceChange:
		status, err := text("current_status", "compliant", "not-compliant")
		return Event{Type: DeviceComplianceChange, Level: map[string]string{"not-compliant": High}[status]}, err
	case caepPrefix + RiskLevelChange:
		level, err := text("current_level", "LOW", "MEDIUM", "HIGH")
		return Event{Type: RiskLevelChange, Level: map[string]string{"MEDIUM": Raised, "HIGH": High}[level]}, err
	case ssfPrefix + Verification:
		return Event{Type: Verification}, nil
	}
	return Event{}, fmt.Errorf("%w: its type is none that is known here", ErrEvent)
}

// readSubject reads a subject identifier: the members of its format and no others.
func readSubject(raw json.RawMessage) (Subject, error) {
	var in map[string]json.RawMessage
	if json.Unmarshal(raw, &in) != nil {
		return Subject{}, fmt.Errorf("%w: it has no subject (sub_id)", ErrEvent)
	}
	text := func(name string) string {
		var value string
		if json.Unmarshal(in[name], &value) != nil || len(value) > maxID {
			return ""
		}
		return value
	}
	s := Subject{Format: text("format")}
	want, known := members[s.Format]
	if !known || len(in) != len(want)+1 {
		return Subject{}, fmt.Errorf("%w: its subject is not of a format that is read here, or has members of another", ErrEvent)
	}
	s.ID = text(want[len(want)-1])
	if len(want) == 2 {
		s.Issuer = text(want[0])
	}
	return s, s.Check()
}

// Check says whether a subject is whole.
func (s Subject) Check() error {
	_, known := members[s.Format]
	if !known || s.ID == "" || (s.Issuer != "") != (s.Format == "iss_sub") {
		return fmt.Errorf("%w: its subject is incomplete", ErrEvent)
	}
	return nil
}
