package devauthority

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	mathrand "math/rand/v2"
	"net/url"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// issued is an X.509-SVID, who signed it, and when. Its fields never change.
type issued struct {
	svid   *x509svid.SVID
	signer string    // ID of the generation
	at     time.Time // by Config.Now; the certificate itself knows whole seconds only
}

// issueX509 makes an X.509-SVID with a fresh P-256 key, of one URI SAN, for TLS in both directions.
func (g *generation) issueX509(id spiffeid.ID, now time.Time, ttl time.Duration) (*issued, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	// Certificates know whole seconds and would round down, which leaves nothing of a lifetime of one second: round up.
	notAfter := now.Add(ttl + time.Second - 1).Truncate(time.Second)
	if notAfter.After(g.ca.NotAfter) {
		notAfter = g.ca.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"DEVELOPMENT ONLY"}},
		URIs:                  []*url.URL{id.URL()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, g.ca, key.Public(), g.caKey)
	if err != nil {
		return nil, fmt.Errorf("devauthority: issue an X.509-SVID for %s: %w", id, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("devauthority: issue an X.509-SVID for %s: %w", id, err)
	}
	svid := &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{leaf}, PrivateKey: key}
	return &issued{svid: svid, signer: g.id, at: now}, nil
}

// issueJWT makes a JWT-SVID (ES256, with a kid).
func (g *generation) issueJWT(id spiffeid.ID, audience []string, now time.Time, ttl time.Duration) (string, error) {
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: g.jwtKey, KeyID: g.id}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", fmt.Errorf("devauthority: issue a JWT-SVID for %s: %w", id, err)
	}
	token, err := jwt.Signed(signer).Claims(jwt.Claims{
		Subject:  id.String(),
		Audience: audience,
		IssuedAt: jwt.NewNumericDate(now),
		Expiry:   jwt.NewNumericDate(now.Add(ttl)),
	}).Serialize()
	if err != nil {
		return "", fmt.Errorf("devauthority: issue a JWT-SVID for %s: %w", id, err)
	}
	return token, nil
}

// published is what all streams say about bundles, encoded once. Its fields never change.
type published struct {
	own           *spiffebundle.Bundle
	ownX509       []byte            // DER, concatenated
	federatedX509 map[string][]byte // by the SPIFFE ID of the trust domain
	allX509       map[string][]byte // own and federated
	allJWT        map[string][]byte // JWKS documents, own and federated
	jwtBundles    *jwtbundle.Set
}

func publish(k *keys, federated map[spiffeid.TrustDomain]*spiffebundle.Bundle) (*published, error) {
	own := spiffebundle.New(k.trustDomain)
	for _, g := range k.generations {
		own.AddX509Authority(g.ca)
		if err := own.AddJWTAuthority(g.id, g.jwtKey.Public()); err != nil {
			return nil, fmt.Errorf("devauthority: publish authority %s: %w", g.id, err)
		}
	}
	p := &published{
		own: own, ownX509: concatDER(own.X509Bundle()), jwtBundles: jwtbundle.NewSet(),
		federatedX509: make(map[string][]byte), allX509: make(map[string][]byte), allJWT: make(map[string][]byte),
	}
	p.allX509[k.trustDomain.IDString()] = p.ownX509
	if err := p.addJWT(own.JWTBundle()); err != nil {
		return nil, err
	}
	for td, bundle := range federated {
		der := concatDER(bundle.X509Bundle())
		p.federatedX509[td.IDString()], p.allX509[td.IDString()] = der, der
		if err := p.addJWT(bundle.JWTBundle()); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *published) addJWT(bundle *jwtbundle.Bundle) error {
	document, err := bundle.Marshal()
	if err != nil {
		return fmt.Errorf("devauthority: publish the JWT bundle of %q: %w", bundle.TrustDomain().Name(), err)
	}
	p.allJWT[bundle.TrustDomain().IDString()] = document
	p.jwtBundles.Add(bundle)
	return nil
}

func concatDER(bundle *x509bundle.Bundle) []byte {
	var der []byte
	for _, c := range bundle.X509Authorities() {
		der = append(der, c.Raw...)
	}
	return der
}

// renewalDelay is half of a lifetime ±10 %, so that many SVIDs of one age are not renewed in one moment.
func renewalDelay(ttl time.Duration) time.Duration {
	return time.Duration(float64(ttl) * (0.45 + 0.1*mathrand.Float64()))
}
