package envelope

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// Grade says how hard the envelope's limits are.
type Grade string

// The grades, from the softest.
const (
	GradeOpen    Grade = "open"    // plaintext once the envelope is opened
	GradeGated   Grade = "gated"   // each use needs a share from the broker
	GradeProxied Grade = "proxied" // the secret never leaves the broker
	GradeLeased  Grade = "leased"  // a credential made for this session at its source
)

// Who counts the uses.
const (
	UsesByClient = "client"
	UsesByBroker = "broker"
)

// MaxLifetime is the longest time between issue and expiry, in seconds: 31 days.
const MaxLifetime = 31 * 24 * 3600

const (
	maxName   = 2048 // SPIFFE IDs
	maxID     = 128
	maxPlaces = 64
	maxPlace  = 16
	maxTime   = 1 << 38 // seconds, somewhere in the year 10680
)

// Context is what stands on an envelope in the clear: signed, bound into the encryption, and written to the log.
// Its JSON form has the fields in this order, without white space, all of them but an offline of 0 and an
// absent split; nothing else is accepted.
type Context struct {
	Version        string   `json:"v"`                 // LabelContext; Seal fills it in
	Session        string   `json:"sid"`               // session id
	Request        string   `json:"rid"`               // the client's request id
	Issuer         string   `json:"iss"`               // SPIFFE ID of the broker
	Subject        string   `json:"sub"`               // SPIFFE ID of the principal
	Instance       string   `json:"inst"`              // JWK thumbprint of the instance key
	Audience       string   `json:"aud"`               // who may open it
	Secret         Digest   `json:"secret"`            // keyed hash of the secret's name
	SecretVersion  uint64   `json:"secret_version"`    // from 1
	IssuedAt       int64    `json:"iat"`               // unix seconds
	NotBefore      int64    `json:"nbf"`               // unix seconds
	Expires        int64    `json:"exp"`               // unix seconds; at this second it is over
	Grade          Grade    `json:"grade"`             //
	Uses           uint64   `json:"uses"`              // 0 = not counted
	UsesEnforcedBy string   `json:"uses_enforced_by"`  // UsesByClient or UsesByBroker; empty if not counted
	Offline        uint64   `json:"offline,omitempty"` // of the uses, those that may be fetched ahead; at grade gated
	Places         []string `json:"places"`            // where it may be used, sorted; empty = anywhere
	Revision       Digest   `json:"revision"`          // of the policy that permitted it
	RiskScore      int      `json:"risk"`              // 0 to 100
	RiskModel      Digest   `json:"risk_model"`        //
	Attestation    Digest   `json:"attestation"`       // of the attestation result; absent if none was relied on
	Channel        Digest   `json:"channel"`           // TLS exporter value of the connection
	ReceiptLock    Digest   `json:"lock"`              // SHA-256(r); Seal fills it in
	LogOrigin      string   `json:"log"`               // origin of the log that holds the event
	Suite          uint64   `json:"hs"`                // Suite.Number; Seal fills it in

	Split Digest `json:"split,omitzero"` // of the share manifest; absent where nobody else has to take part
}

// Validate reports everything that is wrong with the context. Each fault wraps [ErrInvalid].
func (c *Context) Validate() error {
	var faults []error
	bad := func(field, rule string) {
		faults = append(faults, fmt.Errorf("context %s: %w: %s", field, ErrInvalid, rule))
	}
	if c.Version != LabelContext {
		bad("v", "must be "+LabelContext)
	}
	c.validateNames(bad)
	c.validateTimes(bad)
	c.validateLimits(bad)
	for _, d := range []struct {
		field string
		value Digest
	}{
		{"secret", c.Secret},
		{"revision", c.Revision},
		{"risk_model", c.RiskModel},
		{"channel", c.Channel},
		{"lock", c.ReceiptLock},
	} {
		if d.value.IsZero() {
			bad(d.field, "must be present")
		}
	}
	if c.RiskScore < 0 || c.RiskScore > 100 {
		bad("risk", "must be 0 to 100")
	}
	if _, err := SuiteByNumber(c.Suite); err != nil {
		bad("hs", "unknown suite number")
	}
	return errors.Join(faults...)
}

func (c *Context) validateNames(bad func(field, rule string)) {
	for _, s := range []struct {
		field, value string
		limit        int
	}{
		{"sid", c.Session, maxID},
		{"rid", c.Request, maxID},
		{"inst", c.Instance, 43},
		{"iss", c.Issuer, maxName},
		{"sub", c.Subject, maxName},
		{"aud", c.Audience, maxName},
		{"log", c.LogOrigin, maxName},
	} {
		if !plain(s.value, s.limit) {
			bad(s.field, fmt.Sprintf("must be 1 to %d printable ASCII characters without space, quote, backslash, <, > or &", s.limit))
		}
	}
	if raw, ok := decode64([]byte(c.Instance)); !ok || len(raw) != 32 {
		bad("inst", "must be a JWK thumbprint")
	}
	if c.SecretVersion == 0 {
		bad("secret_version", "must be 1 or more")
	}
}

func (c *Context) validateTimes(bad func(field, rule string)) {
	if c.IssuedAt <= 0 || c.IssuedAt > maxTime {
		bad("iat", "out of range")
		return
	}
	if c.NotBefore < c.IssuedAt-MaxLifetime || c.NotBefore > c.IssuedAt+MaxLifetime {
		bad("nbf", "too far from iat")
	}
	if c.Expires <= c.IssuedAt || c.Expires <= c.NotBefore || c.Expires > c.IssuedAt+MaxLifetime {
		bad("exp", "must be after iat and nbf, and at most 31 days after iat")
	}
}

func (c *Context) validateLimits(bad func(field, rule string)) {
	switch c.Grade {
	case GradeOpen, GradeGated, GradeProxied, GradeLeased:
	default:
		bad("grade", "must be open, gated, proxied or leased")
	}
	switch {
	case c.Uses == 0 && c.UsesEnforcedBy != "":
		bad("uses_enforced_by", "must be empty when uses are not counted")
	case c.Uses > 0 && c.UsesEnforcedBy != UsesByClient && c.UsesEnforcedBy != UsesByBroker:
		bad("uses_enforced_by", "must be client or broker")
	case c.Uses > 1<<32:
		bad("uses", "too many")
	case c.Offline > c.Uses, c.Offline > 0 && c.Grade != GradeGated:
		bad("offline", "must be at most uses, at grade gated alone")
	}
	if len(c.Places) > maxPlaces {
		bad("places", fmt.Sprintf("must be at most %d", maxPlaces))
	}
	for i, p := range c.Places {
		if !plain(p, maxPlace) || (i > 0 && c.Places[i-1] >= p) {
			bad("places", "must be plain, sorted and without duplicates")
			return
		}
	}
}

// plain reports whether s has 1 to limit characters that need no escaping in JSON.
func plain(s string, limit int) bool {
	if s == "" || len(s) > limit {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c <= ' ', c >= 0x7f, c == '"', c == '\\', c == '<', c == '>', c == '&':
			return false
		}
	}
	return true
}

// encode returns the one JSON form of a context.
func (c *Context) encode() ([]byte, error) {
	if c.Places == nil {
		withPlaces := *c
		withPlaces.Places = []string{}
		c = &withPlaces
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode context: %w", err)
	}
	if len(b) > MaxContext {
		return nil, fmt.Errorf("encode context: %w: %d bytes, at most %d", ErrInvalid, len(b), MaxContext)
	}
	return b, nil
}

// ParseContext reads the JSON form of a context. Unknown, missing or doubled members, another order, white space
// and values that [Context.Validate] refuses are all [ErrMalformed].
func ParseContext(b []byte) (Context, error) {
	if len(b) > MaxContext {
		return Context{}, fmt.Errorf("context of %d bytes: %w", len(b), ErrMalformed)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var c Context
	if err := dec.Decode(&c); err != nil {
		return Context{}, fmt.Errorf("context: %w: not the JSON of a context", ErrMalformed)
	}
	again, err := c.encode()
	if err != nil {
		return Context{}, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	if !bytes.Equal(again, b) {
		return Context{}, fmt.Errorf("context: %w: not in its one encoding", ErrMalformed)
	}
	return c, nil
}
