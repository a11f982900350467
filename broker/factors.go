package broker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/token"
)

// maxFactors is how many tokens one request may show.
const maxFactors = 4

// Factors says which tokens count as further factors.
type Factors struct {
	OIDC    []OIDCFactor
	JWTSVID *JWTSVIDFactor // nil: none are taken
}

// OIDCFactor takes the tokens of one issuer.
type OIDCFactor struct {
	Issuer *token.Issuer
	// Claims are those that policy sees and the ledger keeps.
	Claims []string
	// InstanceNonce demands that the token's nonce is the thumbprint of the instance key that shows it.
	InstanceNonce bool
	// Types gives a principal type by the value of a claim; the first that fits counts.
	Types []ClaimType
}

// ClaimType says what a principal is whose token holds Value in Claim.
type ClaimType struct{ Claim, Value, Type string }

// JWTSVIDFactor takes JWT-SVIDs of the allowed trust domains.
type JWTSVIDFactor struct {
	Audience string
	MaxAge   time.Duration // 0: an hour
}

// refusedToken is why a token was refused, for its holder.
type refusedToken struct{ why string }

func (r *refusedToken) Error() string { return r.why }

// factors verifies the tokens that a request shows. The instance key signed them together with everything else, so
// that what was signed for another principal, instance, connection or request never comes here. A token that is
// refused refuses the request: its holder would only wonder why it does not count.
func (b *Broker) factors(ctx context.Context, now time.Time, who request, shown []*bullav1.Factor) ([]policy.Factor, error) {
	if len(shown) > maxFactors {
		return nil, b.invalid(ctx, now, who, fmt.Sprintf("a request shows at most %d tokens", maxFactors))
	}
	var out []policy.Factor
	for _, f := range shown {
		one, err := b.factor(ctx, now, who, f)
		var refused *refusedToken
		switch {
		case errors.As(err, &refused):
			answer := refuse(codes.PermissionDenied, checkFactor, "the token is refused: %s", refused.why)
			body := event.RequestRefused{Method: who.method, Instance: who.instance.thumbprint, Check: checkFactor, Target: clip(refused.why)}
			return nil, b.rejectTarget(ctx, now, who.caller, body, answer)
		case errors.Is(err, token.ErrKeys), errors.Is(err, certs.ErrUnavailable):
			b.logger.Warn("keys of a token's issuer are not available", "error", err)
			answer := refuse(codes.Unavailable, checkFactor, "the keys of the token's issuer can't be had now: try again")
			answer.nonce = who.conn.next()
			return nil, answer
		case err != nil:
			return nil, err
		}
		for _, other := range out {
			if other.Issuer == one.Issuer {
				return nil, b.invalid(ctx, now, who, "a request shows at most one token of an issuer")
			}
		}
		out = append(out, one)
	}
	return out, nil
}

// factor verifies one token.
func (b *Broker) factor(ctx context.Context, now time.Time, who request, f *bullav1.Factor) (policy.Factor, error) {
	switch f.GetKind() {
	case policy.FactorOIDC:
		return b.oidc(ctx, now, who, f.GetToken())
	case policy.FactorJWTSVID:
		return b.jwtSVID(now, who, f.GetToken())
	}
	return policy.Factor{}, &refusedToken{"its kind is neither oidc nor jwt_svid"}
}

// oidc verifies a token of a configured issuer. Which one it is to be is read from the token; that it is, is verified
// with that issuer's own keys.
func (b *Broker) oidc(ctx context.Context, now time.Time, who request, compact string) (policy.Factor, error) {
	name, err := token.IssuerOf(compact)
	if err != nil {
		return policy.Factor{}, &refusedToken{tokenFault(err)}
	}
	for _, o := range b.tokens.OIDC {
		if o.Issuer.Name() != name {
			continue
		}
		claims, err := o.Issuer.Verify(ctx, compact, now)
		switch {
		case errors.Is(err, token.ErrRefused):
			return policy.Factor{}, &refusedToken{tokenFault(err)}
		case err != nil:
			return policy.Factor{}, err
		}
		return o.read(claims, who)
	}
	return policy.Factor{}, &refusedToken{"its issuer is not one that the broker is configured for"}
}

// read makes a factor of the claims of a verified token.
func (o OIDCFactor) read(c token.Claims, who request) (policy.Factor, error) {
	nonce, _ := c.Text("nonce")
	jkt, bound := c.Confirmation()
	switch {
	case c.Has("cnf") && (!bound || jkt != who.instance.thumbprint): // RFC 7800: for whoever holds a key that did not sign this request
		return policy.Factor{}, &refusedToken{"it is bound to another key than that of this instance"}
	case o.InstanceNonce && !bound && nonce != who.instance.thumbprint: // a key binds as well
		return policy.Factor{}, &refusedToken{"its nonce is not the thumbprint of the key of this instance"}
	case strings.HasPrefix(c.Subject, "spiffe://"):
		// The SPIRE server that signed the X.509-SVID signs these, too: no second issuer vouches.
		return policy.Factor{}, &refusedToken{"its subject is a SPIFFE ID: show a JWT-SVID as jwt_svid"}
	case len(c.Subject) > maxSubject:
		return policy.Factor{}, &refusedToken{"its subject is too long"}
	}
	f := policy.Factor{
		Kind: policy.FactorOIDC, Issuer: c.Issuer, Subject: c.Subject, ExpiresAt: c.Expires.UnixMicro(), Token: hex.EncodeToString(c.Digest[:]),
	}
	if !c.IssuedAt.IsZero() {
		f.IssuedAt = c.IssuedAt.UnixMicro()
	}
	size := 0
	for _, name := range o.Claims {
		if values, ok := c.Texts(name); ok {
			for _, v := range values {
				size += len(v)
			}
			if f.Claims == nil {
				f.Claims = map[string][]string{}
			}
			f.Claims[name] = values
		}
	}
	if size > maxClaimText {
		return policy.Factor{}, &refusedToken{"its claims are too long"}
	}
	for _, t := range o.Types {
		values, _ := c.Texts(t.Claim)
		for _, v := range values {
			if v == t.Value && f.Type == "" {
				f.Type = t.Type
			}
		}
	}
	return f, nil
}

// maxSubject is the longest subject of a token, and maxClaimText how much its claims may hold that are kept, in bytes.
const (
	maxSubject   = 512
	maxClaimText = 4096
)

// jwtSVID verifies a JWT-SVID with the trust bundles that X.509-SVIDs are verified with. One of the caller's own trust
// domain has to be the caller's own.
func (b *Broker) jwtSVID(now time.Time, who request, compact string) (policy.Factor, error) {
	if b.tokens.JWTSVID == nil {
		return policy.Factor{}, &refusedToken{"the broker is not configured to take JWT-SVIDs"}
	}
	svid, err := b.source.ValidateJWTSVID(compact, b.tokens.JWTSVID.Audience)
	switch {
	case errors.Is(err, certs.ErrNoJWT):
		return policy.Factor{}, &refusedToken{"the broker's identity comes from files, which hold no keys of JWT-SVIDs"}
	case errors.Is(err, certs.ErrExpired):
		return policy.Factor{}, &refusedToken{"it has ended"}
	case errors.Is(err, certs.ErrUntrusted):
		return policy.Factor{}, &refusedToken{"it is not a JWT-SVID that verifies for this broker"}
	case err != nil:
		return policy.Factor{}, err
	}
	most := b.tokens.JWTSVID.MaxAge
	if most == 0 {
		most = time.Hour
	}
	switch {
	case len(svid.Audience) != 1:
		return policy.Factor{}, &refusedToken{"it is for other audiences as well, which could show it here"}
	case svid.Expiry.Sub(now) > most:
		return policy.Factor{}, &refusedToken{fmt.Sprintf("it lives for longer than %s", most)}
	case svid.ID.TrustDomain() == who.caller.id.TrustDomain() && svid.ID != who.caller.id:
		return policy.Factor{}, &refusedToken{"it is another principal's"}
	}
	digest := sha256.Sum256([]byte(compact))
	return policy.Factor{
		Kind: policy.FactorJWTSVID, Issuer: svid.ID.TrustDomain().IDString(), Subject: svid.ID.String(), ExpiresAt: svid.Expiry.UnixMicro(),
		Token: hex.EncodeToString(digest[:]),
	}, nil
}

// tokenFault is the text of a refusal without the words that go before it. No error of package token holds a token.
func tokenFault(err error) string {
	return strings.TrimPrefix(err.Error(), token.ErrRefused.Error()+": ")
}
