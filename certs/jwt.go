package certs

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const maxJWTLength = 16 << 10 // bytes of a compact JWT-SVID

// FetchJWTSVID gets a JWT-SVID for one audience from the Workload API. It is a bearer token: whoever sees it can be its
// subject before that audience until it expires.
func (s *Source) FetchJWTSVID(ctx context.Context, audience string) (*jwtsvid.SVID, error) {
	switch {
	case s.closed.Load():
		return nil, ErrClosed
	case s.client == nil:
		return nil, ErrNoJWT
	case audience == "":
		return nil, fmt.Errorf("%w: a JWT-SVID needs an audience", ErrConfig)
	}
	svid, err := s.client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	switch {
	case err == nil:
		return svid, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("certs: fetch a JWT-SVID for %q: %w", audience, ctx.Err())
	case status.Code(err) == codes.PermissionDenied:
		return nil, fmt.Errorf("%w: JWT-SVID for %q", ErrNoIdentity, audience)
	}
	return nil, fmt.Errorf("%w: JWT-SVID for %q: %s", ErrUnavailable, audience, err.Error())
}

// GetJWTBundleForTrustDomain returns a copy of the current JWT bundle of an allowed trust domain.
func (s *Source) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	st, err := s.load()
	switch {
	case err != nil:
		return nil, err
	case s.client == nil:
		return nil, ErrNoJWT
	}
	bundle, ok := st.jwt[td]
	if !ok {
		return nil, s.noBundle(td)
	}
	return bundle.Clone(), nil
}

// ValidateJWTSVID verifies token against the current bundle of its trust domain for exactly one audience. Stricter than
// the standard: one serialisation of a token only (no stray bytes, no unused bits), signature algorithms ES256, ES384,
// RS256 and RS384, no header that names a key or an address, no leeway at exp.
func (s *Source) ValidateJWTSVID(token, audience string) (*jwtsvid.SVID, error) {
	if audience == "" {
		return nil, fmt.Errorf("%w: a JWT-SVID is validated for an audience", ErrConfig)
	}
	if err := checkJWTForm(token); err != nil {
		return nil, err
	}
	svid, err := jwtsvid.ParseAndValidate(token, s, []string{audience})
	if err != nil {
		if strings.HasSuffix(err.Error(), "token has expired") { // go-spiffe has no sentinel for it
			return nil, fmt.Errorf("%w: JWT-SVID", ErrExpired)
		}
		return nil, fmt.Errorf("%w: JWT-SVID: %s", ErrUntrusted, err.Error())
	}
	if _, err := ParseID(svid.ID.String()); err != nil {
		return nil, fmt.Errorf("%w: subject of a JWT-SVID: %s", ErrUntrusted, err.Error())
	}
	if now := s.now(); !now.Before(svid.Expiry) {
		return nil, fmt.Errorf("%w: JWT-SVID of %s ended %s ago by this machine's clock", ErrExpired, svid.ID, now.Sub(svid.Expiry))
	}
	return svid, nil
}

// checkJWTForm refuses, before any cryptography, what is not written in the one way that its issuer wrote it.
func checkJWTForm(token string) error {
	if len(token) > maxJWTLength {
		return fmt.Errorf("%w: JWT-SVID of %d bytes, the most is %d", ErrUntrusted, len(token), maxJWTLength)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return fmt.Errorf("%w: JWT-SVID is not in compact form", ErrUntrusted)
	}
	var header []byte
	for i, part := range parts {
		decoded, err := base64.RawURLEncoding.Strict().DecodeString(part)
		// The decoder skips line breaks; encoding again shows them.
		if err != nil || len(decoded) == 0 || base64.RawURLEncoding.EncodeToString(decoded) != part {
			return fmt.Errorf("%w: JWT-SVID part %d is not canonical base64url", ErrUntrusted, i+1)
		}
		if i == 0 {
			header = decoded
		}
	}
	return checkJWTHeader(header)
}

// checkJWTHeader allows exactly alg, kid and typ, each at most once.
func checkJWTHeader(header []byte) error {
	dec := json.NewDecoder(strings.NewReader(string(header)))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return fmt.Errorf("%w: header of the JWT-SVID is not an object", ErrUntrusted)
	}
	seen := make(map[string]string)
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return fmt.Errorf("%w: header of the JWT-SVID can't be read", ErrUntrusted)
		}
		value, err := dec.Token()
		text, isText := value.(string)
		key, _ := name.(string)
		if _, twice := seen[key]; err != nil || !isText || twice {
			return fmt.Errorf("%w: header %q of the JWT-SVID is not one text", ErrUntrusted, key)
		}
		seen[key] = text
	}
	_, endErr := dec.Token() // the closing brace
	if _, err := dec.Token(); endErr != nil || err != io.EOF {
		return fmt.Errorf("%w: header of the JWT-SVID is not one object", ErrUntrusted)
	}
	for name, value := range seen {
		switch name {
		case "alg":
			switch value {
			case "ES256", "ES384", "RS256", "RS384":
				continue
			}
			return fmt.Errorf("%w: signature algorithm %q of the JWT-SVID", ErrUntrusted, value)
		case "kid", "typ":
		default:
			return fmt.Errorf("%w: header %q in the JWT-SVID", ErrUntrusted, name)
		}
	}
	return nil
}
