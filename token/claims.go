package token

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Claims are what a token says. Those that have no field are read by name.
type Claims struct {
	Issuer, Subject, ID          string
	Audience                     []string
	IssuedAt, NotBefore, Expires time.Time // zero: the token does not say
	Digest                       [32]byte  // SHA-256 of the compact token

	all map[string]json.RawMessage
}

// maxValues is how many texts a claim may hold for Texts, and maxValue how long each may be, in bytes.
const (
	maxValues = 64
	maxValue  = 256
)

// readClaims reads the registered claims strictly (RFC 7519, section 4.1), and keeps the rest as it is.
func readClaims(payload []byte) (c Claims, err error) {
	if c.all, err = object(payload); err != nil {
		return Claims{}, err
	}
	for name, into := range map[string]*string{"iss": &c.Issuer, "sub": &c.Subject, "jti": &c.ID} {
		if raw, ok := c.all[name]; ok && !isText(raw, into) {
			return Claims{}, refuse("claim %q is not a text", name)
		}
	}
	for name, into := range map[string]*time.Time{"iat": &c.IssuedAt, "nbf": &c.NotBefore, "exp": &c.Expires} {
		if raw, ok := c.all[name]; ok {
			if *into, ok = date(raw); !ok {
				return Claims{}, refuse("claim %q is not a time in whole seconds", name)
			}
		}
	}
	if raw, ok := c.all["aud"]; ok {
		var one string
		if isText(raw, &one) {
			c.Audience = []string{one}
		} else if c.Audience, ok = texts(raw); !ok {
			return Claims{}, refuse("claim %q is neither a text nor a list of texts", "aud")
		}
	}
	return c, nil
}

// Has says whether a claim is there, whatever it is.
func (c Claims) Has(name string) bool { _, ok := c.all[name]; return ok }

// Raw is the JSON of a claim, nil where there is none. It is free of doubled members.
func (c Claims) Raw(name string) json.RawMessage { return c.all[name] }

// Text is a claim that is a text.
func (c Claims) Text(name string) (text string, ok bool) {
	return text, isText(c.all[name], &text)
}

// Texts is a claim as a list of texts: those of a list, or the one text, integer, true or false that it is. Anything
// else, and what is too long or too much, is not there.
func (c Claims) Texts(name string) ([]string, bool) {
	raw, ok := c.all[name]
	if !ok {
		return nil, false
	}
	var one any
	if json.Unmarshal(raw, &one) != nil {
		return nil, false
	}
	switch v := one.(type) {
	case bool:
		return []string{strconv.FormatBool(v)}, true
	case float64:
		n, err := strconv.ParseInt(string(raw), 10, 64)
		return []string{strconv.FormatInt(n, 10)}, err == nil
	case string:
		var text string
		return []string{v}, isText(raw, &text) && len(v) <= maxValue
	case []any:
		return texts(raw)
	}
	return nil, false
}

// isText reads a text. One with half a surrogate in it, which would become U+FFFD, is none.
func isText(raw json.RawMessage, into *string) bool {
	return len(raw) > 0 && raw[0] == '"' && json.Unmarshal(raw, into) == nil && !strings.ContainsRune(*into, utf8.RuneError)
}

// texts reads a list of texts. No decoding into []string: null would pass for a text.
func texts(raw json.RawMessage) ([]string, bool) {
	var list []json.RawMessage
	if len(raw) == 0 || raw[0] != '[' || json.Unmarshal(raw, &list) != nil || len(list) > maxValues {
		return nil, false
	}
	out := make([]string, len(list))
	for i, item := range list {
		if !isText(item, &out[i]) || len(out[i]) > maxValue {
			return nil, false
		}
	}
	return out, true
}

// date reads a NumericDate in whole seconds.
func date(raw json.RawMessage) (time.Time, bool) {
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil || n <= 0 || n > maxDate || strconv.FormatInt(n, 10) != string(raw) {
		return time.Time{}, false
	}
	return time.Unix(n, 0).UTC(), true
}

// Confirmation is the thumbprint of the key that a token is bound to (RFC 7800 and RFC 9449: cnf with jkt alone). A
// token that is bound in another way has none.
func (c Claims) Confirmation() (thumbprint string, ok bool) {
	members, err := object(c.all["cnf"])
	if err != nil || len(members) != 1 || !isText(members["jkt"], &thumbprint) {
		return "", false
	}
	return thumbprint, true
}

// IssuerOf is what an unverified token says of its issuer: by it the issuer is chosen whose keys are to verify it.
func IssuerOf(compact string) (string, error) {
	_, payload, err := parse(compact)
	if err != nil {
		return "", err
	}
	c, err := readClaims(payload)
	if err != nil {
		return "", err
	}
	return c.Issuer, nil
}
