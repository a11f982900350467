// Package token reads signed tokens of issuers that the configuration names: JSON Web Tokens that vouch for somebody
// (RFC 7519, as OpenID Connect issues them) and security event tokens (RFC 8417).
//
// A token is taken in one serialisation only, the one that its issuer wrote: no stray bytes, no unused bits, no member
// of an object twice, at any depth. Of a header alg, kid, typ and thumbprints may be there, so that nothing in a token
// names a key or an address; alg is one that the configuration allows, of ES256, RS256 and EdDSA. Issuer and audience
// are compared byte by byte. What is cheap is checked before the signature is.
//
// Keys come from a file or from one https address, both named by the configuration: see Keys. The package knows no
// principal and decides nothing; it keeps no token, and no error of it holds one.
package token

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
)

// Limits of a token.
const (
	MaxSize  = 16 << 10 // bytes of a compact serialisation
	maxDepth = 16       // objects and lists inside each other
	maxDate  = 1 << 40  // seconds since 1970
	// Skew is how far an issuer's clock may be ahead of this one.
	Skew = 60 * time.Second
)

// What a caller can tell apart.
var (
	// ErrRefused: the token is malformed, of somebody else, for somebody else, ended, or its signature does not verify.
	ErrRefused = errors.New("token refused")
	// ErrIssuer, ErrAudience and ErrSignature are kinds of ErrRefused.
	ErrIssuer    = fmt.Errorf("%w: its issuer is not the one that was expected", ErrRefused)
	ErrAudience  = fmt.Errorf("%w: its audience is not this broker", ErrRefused)
	ErrSignature = fmt.Errorf("%w: its signature does not verify", ErrRefused)
	// ErrKeys: the keys of the issuer can't be had now. Trying again may help.
	ErrKeys = errors.New("the keys of the token's issuer are not available")
	// ErrConfig: the configuration of an issuer can't work.
	ErrConfig = errors.New("token issuer")
)

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrRefused}, args...)...)
}

// Kind is what a token is for.
type Kind int

const (
	// Bearer tokens vouch for their subject until they end: exp is needed, and their audience is this one alone.
	Bearer Kind = iota
	// Event tokens say that something happened: iat and jti are needed, exp and sub must not be there (RFC 8417 and the
	// Shared Signals Framework), so that no token of the other kind passes for one.
	Event
)

// Config describes an issuer.
type Config struct {
	Kind     Kind
	Issuer   string // exactly as it stands in iss
	Audience string // exactly as it stands in aud
	Keys     *Keys
	// Algorithms are those that the issuer signs with; none: ES256.
	Algorithms []string
	// Types are the values of typ that are taken, without "application/"; none: JWT and at+jwt, or secevent+jwt for Event.
	Types []string
	// MaxAge is, for Bearer, the longest life that a token may have (0: an hour), and for Event how old one may be (0: a
	// day).
	MaxAge time.Duration
}

// Issuer verifies the tokens of one issuer. It is safe for concurrent use.
type Issuer struct {
	cfg        Config
	algorithms []jose.SignatureAlgorithm
}

// NewIssuer checks the configuration of an issuer.
func NewIssuer(c Config) (*Issuer, error) {
	switch {
	case c.Issuer == "" || c.Audience == "" || c.Keys == nil:
		return nil, fmt.Errorf("%w: issuer, audience and keys are all needed", ErrConfig)
	case !utf8.ValidString(c.Issuer) || !utf8.ValidString(c.Audience):
		return nil, fmt.Errorf("%w: issuer or audience is not UTF-8", ErrConfig)
	case c.MaxAge < 0:
		return nil, fmt.Errorf("%w %s: a negative life", ErrConfig, c.Issuer)
	}
	i := &Issuer{cfg: c}
	if len(c.Algorithms) == 0 {
		c.Algorithms = []string{"ES256"}
	}
	for _, a := range c.Algorithms {
		if !slices.Contains(Algorithms(), a) {
			return nil, fmt.Errorf("%w %s: algorithm %q is none of %q", ErrConfig, c.Issuer, a, Algorithms())
		}
		i.algorithms = append(i.algorithms, jose.SignatureAlgorithm(a))
	}
	if len(c.Types) == 0 && c.Kind == Event {
		i.cfg.Types = []string{"secevent+jwt"}
	} else if len(c.Types) == 0 {
		i.cfg.Types = []string{"JWT", "at+jwt"}
	}
	if c.MaxAge == 0 && c.Kind == Event {
		i.cfg.MaxAge = 24 * time.Hour
	} else if c.MaxAge == 0 {
		i.cfg.MaxAge = time.Hour
	}
	return i, nil
}

// Algorithms lists the signature algorithms that an issuer may be configured with.
func Algorithms() []string { return []string{"ES256", "RS256", "EdDSA"} }

// Name is the issuer as it stands in iss.
func (i *Issuer) Name() string { return i.cfg.Issuer }

// MaxAge is the longest life, or the greatest age, of a token.
func (i *Issuer) MaxAge() time.Duration { return i.cfg.MaxAge }

// Verify returns what a token says, if the issuer says it to this audience and it holds at now.
func (i *Issuer) Verify(ctx context.Context, compact string, now time.Time) (Claims, error) {
	header, payload, err := parse(compact)
	if err != nil {
		return Claims{}, err
	}
	if !slices.Contains(i.algorithms, jose.SignatureAlgorithm(header.alg)) {
		return Claims{}, refuse("signature algorithm %q is not one that is allowed for this issuer", clip(header.alg))
	}
	if !slices.ContainsFunc(i.cfg.Types, header.is) {
		return Claims{}, refuse("its type is %q", clip(header.typ))
	}
	claims, err := readClaims(payload)
	if err != nil {
		return Claims{}, err
	}
	if err := i.check(claims, now); err != nil {
		return Claims{}, err
	}
	if err := i.verify(ctx, compact, header, payload, now); err != nil {
		return Claims{}, err
	}
	claims.Digest = sha256.Sum256([]byte(compact))
	return claims, nil
}

// check judges the claims that every token has, before anybody has vouched for them.
func (i *Issuer) check(c Claims, now time.Time) error {
	switch {
	case c.Issuer != i.cfg.Issuer:
		return ErrIssuer
	case !slices.Contains(c.Audience, i.cfg.Audience):
		return ErrAudience
	case now.Add(Skew).Before(c.IssuedAt) || now.Add(Skew).Before(c.NotBefore):
		return refuse("it is not valid yet: compare the clocks")
	}
	if i.cfg.Kind == Event {
		return i.checkEvent(c, now)
	}
	begun := c.IssuedAt
	if begun.IsZero() {
		begun = now
	}
	switch {
	case len(c.Audience) != 1:
		return refuse("it is for other audiences as well, which could show it here")
	case c.Subject == "":
		return refuse("it has no subject")
	case c.Expires.IsZero():
		return refuse("it has no end (exp)")
	case !now.Before(c.Expires):
		return refuse("it has ended")
	case c.Expires.Sub(begun) > i.cfg.MaxAge:
		return refuse("it lives for longer than %s", i.cfg.MaxAge)
	case c.Has("events"):
		return refuse("it is a security event and vouches for nobody")
	}
	return nil
}

func (i *Issuer) checkEvent(c Claims, now time.Time) error {
	switch {
	case !c.Expires.IsZero() || c.Subject != "" || c.Has("exp") || c.Has("sub"):
		return refuse("a security event has neither exp nor sub")
	case c.IssuedAt.IsZero():
		return refuse("it does not say when it was issued (iat)")
	case now.Sub(c.IssuedAt) > i.cfg.MaxAge:
		return refuse("it is older than %s", i.cfg.MaxAge)
	case c.ID == "" || len(c.ID) > 256:
		return refuse("it needs an id (jti) of at most 256 bytes")
	}
	return nil
}

// verify checks the signature under a key of the issuer.
func (i *Issuer) verify(ctx context.Context, compact string, h header, payload []byte, now time.Time) error {
	signed, err := jose.ParseSignedCompact(compact, i.algorithms)
	if err != nil {
		return refuse("it is not a signed token")
	}
	// The library takes more than one spelling of a token.
	if again, err := signed.CompactSerialize(); err != nil || again != compact {
		return refuse("it is not written in the one form that its issuer wrote")
	}
	key, err := i.cfg.Keys.find(ctx, now, h.alg, h.kid)
	if err != nil {
		return err
	}
	got, err := signed.Verify(key)
	if err != nil || !bytes.Equal(got, payload) {
		return ErrSignature
	}
	return nil
}

// header is what the header of a token may hold.
type header struct{ alg, kid, typ string }

// is compares typ as RFC 7515, section 4.1.9 says: in any case, "application/" left out.
func (h header) is(kind string) bool {
	return strings.EqualFold(strings.TrimPrefix(strings.ToLower(h.typ), "application/"), kind)
}

// parse takes the compact serialisation apart, in its one canonical spelling.
func parse(compact string) (h header, payload []byte, err error) {
	if len(compact) > MaxSize {
		return h, nil, refuse("it has %d bytes, the most is %d", len(compact), MaxSize)
	}
	if strings.Count(compact, ".") != 2 {
		return h, nil, refuse("it is not in compact form")
	}
	parts := strings.Split(compact, ".")
	var decoded [3][]byte
	for n, part := range parts {
		// The decoder skips line breaks; encoding again shows them.
		decoded[n], err = base64.RawURLEncoding.Strict().DecodeString(part)
		if err != nil || len(decoded[n]) == 0 || base64.RawURLEncoding.EncodeToString(decoded[n]) != part {
			return h, nil, refuse("part %d is not canonical base64url", n+1)
		}
	}
	members, err := object(decoded[0])
	if err != nil {
		return h, nil, fmt.Errorf("header: %w", err)
	}
	for name, value := range members {
		var text string
		if json.Unmarshal(value, &text) != nil {
			return h, nil, refuse("header %q is not a text", clip(name))
		}
		switch name {
		case "alg":
			h.alg = text
		case "kid":
			h.kid = text
		case "typ":
			h.typ = text
		case "x5t", "x5t#S256": // they name a certificate, and nothing is looked up by them
		default:
			return h, nil, refuse("header %q is not one that a token may have", clip(name))
		}
	}
	return h, decoded[1], nil
}

// object reads a JSON object and refuses what two readers could read in two ways: a member that is there twice at any
// depth, text that is not UTF-8, depth, and anything behind the end.
func object(data []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(data) {
		return nil, refuse("it is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := walk(dec, 0); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, refuse("there is something behind its JSON")
	}
	var out map[string]json.RawMessage // not a struct: names are matched there in any case
	if err := json.Unmarshal(data, &out); err != nil || out == nil {
		return nil, refuse("it is not a JSON object")
	}
	return out, nil
}

// walk reads one value.
func walk(dec *json.Decoder, depth int) error {
	if depth > maxDepth {
		return refuse("its JSON is nested deeper than %d levels", maxDepth)
	}
	t, err := dec.Token()
	if err != nil {
		return refuse("it is not JSON")
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	seen := map[string]struct{}{}
	for dec.More() {
		if open == '{' {
			name, err := dec.Token()
			text, ok := name.(string)
			if err != nil || !ok {
				return refuse("it is not JSON")
			}
			if _, twice := seen[text]; twice {
				return refuse("member %q is there twice", clip(text))
			}
			seen[text] = struct{}{}
		}
		if err := walk(dec, depth+1); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return refuse("it is not JSON")
	}
	return nil
}

// clip shortens what a token says, for an error.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
