package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/attest"
)

// maxToken is the longest token that is shown, in bytes.
const maxToken = 16 << 10

// The kinds of tokens, as the broker names them.
const (
	tokenOIDC    = "oidc"
	tokenJWTSVID = "jwt_svid"
	spiffeScheme = "spiffe://"
	// checkFactor is the broker's word for a token that it refused.
	checkFactor = "factor"
)

// hasToken says whether there is a source of tokens.
func (c *Client) hasToken() bool { return c.cfg.Token != nil || c.cfg.TokenFile != "" }

// factor gets a token, anew each time: such tokens live for minutes. It is held no longer than the request that shows
// it, and no error holds it.
func (c *Client) factor(ctx context.Context) (*bullav1.Factor, error) {
	var text string
	var err error
	if c.cfg.Token != nil {
		text, err = c.cfg.Token(ctx, c.thumbprint)
	} else {
		text, err = readToken(c.cfg.TokenFile)
	}
	if err != nil {
		return nil, fmt.Errorf("get a token to show: %w", err)
	}
	if text == "" || len(text) > maxToken {
		return nil, fmt.Errorf("%w: a token has 1 to %d bytes, and this one %d", ErrConfig, maxToken, len(text))
	}
	return &bullav1.Factor{Kind: tokenKind(text), Token: text}, nil
}

// readToken reads a file that holds a token and, as such files do, maybe a line break at its end.
func readToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("%w (%s): %w", ErrConfig, EnvTokenFile, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxToken+3))
	if err != nil {
		return "", fmt.Errorf("%w (%s): %w", ErrConfig, EnvTokenFile, err)
	}
	return strings.TrimSpace(string(text)), nil
}

// tokenKind tells a JWT-SVID from other tokens by its subject. The broker verifies that it is one.
func tokenKind(compact string) string {
	_, rest, _ := strings.Cut(compact, ".")
	payload, _, _ := strings.Cut(rest, ".")
	text, err := base64.RawURLEncoding.DecodeString(payload)
	var claims struct {
		Subject string `json:"sub"`
	}
	if err == nil && json.Unmarshal(text, &claims) == nil && strings.HasPrefix(claims.Subject, spiffeScheme) {
		return tokenJWTSVID
	}
	return tokenOIDC
}

// satisfy does what a refusal asks for, as far as this client can do all of it, and returns the tokens to show with the
// next try. Without more the refusal stands.
func (c *Client) satisfy(ctx context.Context, r *Refusal) (factors []*bullav1.Factor, more bool, err error) {
	var want requirement
	if r.Decision != "STEP_UP" || json.Unmarshal(r.Requires, &want) != nil || want.Approval != nil {
		return nil, false, nil
	}
	attestation := r.attestable(string(c.kind())) && c.kind() != ""
	if want.Factor != nil {
		switch {
		case want.Factor.Level == "ENHANCED" && c.hasToken():
		case c.kind() != "" && c.kind() != attest.KindDevelopment: // keys in hardware are worth more than any token
			attestation = true
		default:
			return nil, false, nil
		}
	}
	if want.Attestation != nil && !attestation || want.Attestation == nil && want.Factor == nil {
		return nil, false, nil
	}
	if attestation {
		c.cfg.Log.Debug("policy wants an attestation")
		if _, err := c.Attest(ctx); err != nil {
			return nil, false, fmt.Errorf("attest the device, as the policy wants: %w", err)
		}
	}
	if want.Factor != nil && c.hasToken() {
		c.cfg.Log.Debug("policy wants a further factor")
		one, err := c.factor(ctx)
		if err != nil {
			return nil, false, err
		}
		factors = append(factors, one)
	}
	return factors, true, nil
}

// shown are the tokens of a request within a session. A request that may have taken effect is asked again as it was,
// token and all, so that its answer is the same.
type shown struct{ factors []*bullav1.Factor }

// persuade sends a request within a session, and once more with what the policy wants besides. Where the delivery
// wanted a token, each request shows one at once.
func persuade[R interface{ GetCheckpoint() []byte }](ctx context.Context, s *Secret, req *sent, tokens *shown, again bool, send func() (R, error)) (reply R, err error) {
	c := s.client
	if s.shows && !again && len(tokens.factors) == 0 {
		one, err := c.factor(ctx)
		if err != nil {
			return reply, err
		}
		tokens.factors = []*bullav1.Factor{one}
	}
	reply, err = send()
	var refused *Refusal
	if errors.As(err, &refused) {
		if refused.Check == checkFactor && refused.Code == codes.PermissionDenied {
			// It may have ended since: the next try shows another one, as another request.
			tokens.factors, req.id = nil, newRequestID(c)
			return reply, err
		}
		factors, more, failed := c.satisfy(ctx, refused)
		switch {
		case failed != nil:
			return reply, failed
		case !more:
			return reply, err
		}
		tokens.factors = factors
		reply, err = send()
	}
	if err != nil {
		return reply, err
	}
	return reply, c.see(reply.GetCheckpoint())
}
