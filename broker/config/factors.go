package config

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/bulla-project/bulla/caep"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/token"
)

// Factors says which tokens of other issuers the broker verifies. What they are worth is for the policy: see
// data/persons.yaml there.
type Factors struct {
	OIDC    []OIDC   `yaml:"oidc"`
	JWTSVID *JWTSVID `yaml:"jwt_svid"`
}

// Issuer names whoever signs tokens, and where the keys are: exactly one of JWKSFile and JWKSURL.
type Issuer struct {
	Issuer   string `yaml:"issuer"`    // exactly as in iss
	Audience string `yaml:"audience"`  // exactly as in aud: a name of this broker that no other service has
	JWKSFile string `yaml:"jwks_file"` // read again when it changes
	JWKSURL  string `yaml:"jwks_url"`  // https; no other address is ever asked
	CAFile   string `yaml:"ca_file"`   // PEM, for jwks_url; the system's authorities if not given
	// Algorithms of ES256, RS256 and EdDSA; ES256 if not given.
	Algorithms []string `yaml:"algorithms"`
}

// OIDC is an issuer of OpenID Connect ID tokens or of access tokens (RFC 9068).
type OIDC struct {
	Issuer `yaml:",inline"`
	// MaxLifetime is the longest life of a token; an hour if not given.
	MaxLifetime time.Duration `yaml:"max_lifetime"`
	// Types are the values of typ that are taken; JWT and at+jwt if not given.
	Types []string `yaml:"types"`
	// Claims are those that policy sees and the ledger keeps.
	Claims []string `yaml:"claims"`
	// InstanceNonce demands the thumbprint of the instance key as nonce.
	InstanceNonce bool `yaml:"instance_nonce"`
	// PrincipalTypes says what a principal is whose token holds a value in a claim; the first that fits counts.
	PrincipalTypes []ClaimType `yaml:"principal_types"`
}

// ClaimType gives a principal type by a claim.
type ClaimType struct {
	Claim string `yaml:"claim"`
	Value string `yaml:"value"`
	Type  string `yaml:"type"`
}

// JWTSVID says that JWT-SVIDs of the allowed trust domains are verified. They need a Workload API.
type JWTSVID struct {
	Audience    string        `yaml:"audience"`
	MaxLifetime time.Duration `yaml:"max_lifetime"` // an hour if not given
}

// Signals says where external signals come in, and from whom.
type Signals struct {
	Listen       string        `yaml:"listen"`    // host:port of an https listener of its own
	CertFile     string        `yaml:"cert_file"` // PEM, read again when it changes
	KeyFile      string        `yaml:"key_file"`
	Transmitters []Transmitter `yaml:"transmitters"`
}

// Transmitter is one who may send security event tokens to /v1/signals/NAME.
type Transmitter struct {
	Name   string `yaml:"name"`
	Issuer `yaml:",inline"`
	// BearerTokenFile holds what the transmitter shows besides its signature; nothing if not given.
	BearerTokenFile string        `yaml:"bearer_token_file"`
	Events          []string      `yaml:"events"`
	Life            time.Duration `yaml:"life"` // how long a signal counts; 8 hours if not given
	// MaxSessionsPerHour is how many sessions it may end (100 if not given), MaxSignalsPerHour how many signals it may
	// send (1000 if not given).
	MaxSessionsPerHour uint32 `yaml:"max_sessions_per_hour"`
	MaxSignalsPerHour  uint32 `yaml:"max_signals_per_hour"`
	// SPIFFESubjects takes a subject that is a SPIFFE ID of an allowed trust domain for that principal.
	SPIFFESubjects bool      `yaml:"spiffe_subjects"`
	Subjects       []Subject `yaml:"subjects"`
}

// Subject says whom a subject of a transmitter stands for.
type Subject struct {
	Format string `yaml:"format"` // iss_sub, opaque, email, uri or account
	Issuer string `yaml:"iss"`    // with iss_sub
	ID     string `yaml:"id"`     // sub, id, email or uri
	// At least one of these.
	Principals   []string `yaml:"principals"`
	Devices      []string `yaml:"devices"`
	TrustDomains []string `yaml:"trust_domains"`
}

// Key is the subject as package caep reads it.
func (s Subject) Key() caep.Subject {
	return caep.Subject{Format: s.Format, Issuer: s.Issuer, ID: s.ID}
}

const (
	maxClaims       = 16
	maxLifetime     = 24 * time.Hour
	maxSignalLife   = 30 * 24 * time.Hour
	maxTransmitters = 64
)

// fixedClaims are verified by themselves and stand elsewhere in the policy's input.
var fixedClaims = []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "nonce", "cnf"}

var transmitterName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}$`)

func (f Factors) validate(fault func(key, format string, args ...any)) {
	seen := map[string]bool{}
	for n, o := range f.OIDC {
		key := fmt.Sprintf("factors.oidc[%d]", n)
		o.Issuer.validate(key, fault)
		if strings.HasPrefix(o.Issuer.Issuer, "spiffe://") {
			fault(key+".issuer", "%q is a trust domain: its tokens are JWT-SVIDs", o.Issuer.Issuer)
		}
		if seen[o.Issuer.Issuer] {
			fault(key+".issuer", "%q is there twice", o.Issuer.Issuer)
		}
		seen[o.Issuer.Issuer] = true
		lifetime(key, o.MaxLifetime, fault)
		if len(o.Claims) > maxClaims {
			fault(key+".claims", "%d claims, at most %d are allowed", len(o.Claims), maxClaims)
		}
		for _, c := range o.Claims {
			if c == "" || slices.Contains(fixedClaims, c) {
				fault(key+".claims", "%q is none to name here: it is verified, and has a place of its own", c)
			}
		}
		for _, t := range o.PrincipalTypes {
			if t.Claim == "" || t.Value == "" || !isPrincipalType(t.Type) {
				fault(key+".principal_types", "want claim, value, and a type of SERVICE, USER, CONTAINER, FUNCTION, PIPELINE")
			}
		}
	}
	if f.JWTSVID != nil {
		if f.JWTSVID.Audience == "" {
			fault("factors.jwt_svid.audience", "it is missing: a name of this broker that no other service has")
		}
		lifetime("factors.jwt_svid", f.JWTSVID.MaxLifetime, fault)
	}
}

func lifetime(key string, d time.Duration, fault func(key, format string, args ...any)) {
	if d < 0 || d > maxLifetime {
		fault(key+".max_lifetime", "%s is not within 0s to %s", d, maxLifetime)
	}
}

func (i Issuer) validate(key string, fault func(key, format string, args ...any)) {
	if i.Issuer == "" || i.Audience == "" {
		fault(key, "issuer and audience are both needed")
	}
	switch {
	case (i.JWKSFile == "") == (i.JWKSURL == ""):
		fault(key, "name jwks_file, or jwks_url")
	case i.JWKSURL != "":
		if err := token.CheckURL(i.JWKSURL, true); err != nil { // loopback is for package server to judge
			fault(key+".jwks_url", "%v", err)
		}
	case i.CAFile != "":
		fault(key+".ca_file", "it is of no use without jwks_url")
	}
	for _, a := range i.Algorithms {
		if !slices.Contains(token.Algorithms(), a) {
			fault(key+".algorithms", "%q is none of %q", a, token.Algorithms())
		}
	}
}

func (s Signals) validate(fault func(key, format string, args ...any)) {
	if s.Listen == "" && s.CertFile == "" && s.KeyFile == "" && len(s.Transmitters) == 0 {
		return
	}
	if err := address(s.Listen); err != nil {
		fault("signals.listen", "%v", err)
	}
	if s.CertFile == "" || s.KeyFile == "" {
		fault("signals", "cert_file and key_file are both needed: signals come over https only")
	}
	if len(s.Transmitters) == 0 || len(s.Transmitters) > maxTransmitters {
		fault("signals.transmitters", "want 1 to %d", maxTransmitters)
	}
	seen := map[string]bool{}
	for n, t := range s.Transmitters {
		key := fmt.Sprintf("signals.transmitters[%d]", n)
		if !transmitterName.MatchString(t.Name) || seen[t.Name] {
			fault(key+".name", "%q is there twice, or not a name of a-z, 0-9, _ and -", t.Name)
		}
		seen[t.Name] = true
		t.validate(key, fault)
	}
}

func (t Transmitter) validate(key string, fault func(key, format string, args ...any)) {
	t.Issuer.validate(key, fault)
	if len(t.Events) == 0 {
		fault(key+".events", "it is missing: name some of %q", caep.Types())
	}
	for _, e := range t.Events {
		if !slices.Contains(caep.Types(), e) {
			fault(key+".events", "%q is none of %q", e, caep.Types())
		}
	}
	if t.Life < 0 || t.Life > maxSignalLife {
		fault(key+".life", "%s is not within 0s to %s", t.Life, maxSignalLife)
	}
	if !t.SPIFFESubjects && len(t.Subjects) == 0 {
		fault(key+".subjects", "nobody here could be its subject: name subjects, or set spiffe_subjects")
	}
	seen := map[caep.Subject]bool{}
	for _, s := range t.Subjects {
		s.validate(key+".subjects", fault)
		if seen[s.Key()] {
			fault(key+".subjects", "%q is there twice", s.ID)
		}
		seen[s.Key()] = true
	}
}

func (s Subject) validate(key string, fault func(key, format string, args ...any)) {
	if err := s.Key().Check(); err != nil {
		fault(key, "want a format of %q with its id, and iss with iss_sub alone", caep.Formats())
	}
	if len(s.Principals)+len(s.Devices)+len(s.TrustDomains) == 0 {
		fault(key, "%q stands for nobody: name principals, devices or trust_domains", s.ID)
	}
	for _, p := range s.Principals {
		if _, err := certs.ParseID(p); err != nil {
			fault(key+".principals", "%v", err)
		}
	}
	for _, td := range s.TrustDomains {
		if _, err := certs.ParseTrustDomain(td); err != nil {
			fault(key+".trust_domains", "%v", err)
		}
	}
	if slices.Contains(s.Devices, "") {
		fault(key+".devices", "an empty id")
	}
}

func isPrincipalType(s string) bool {
	return slices.Contains([]string{"SERVICE", "USER", "CONTAINER", "FUNCTION", "PIPELINE"}, s)
}

// factorFiles are the paths that the configuration of factors and signals names.
func (c *Config) factorFiles() []*string {
	out := []*string{&c.Signals.CertFile, &c.Signals.KeyFile}
	for i := range c.Factors.OIDC {
		o := &c.Factors.OIDC[i]
		out = append(out, &o.JWKSFile, &o.CAFile)
	}
	for i := range c.Signals.Transmitters {
		t := &c.Signals.Transmitters[i]
		out = append(out, &t.JWKSFile, &t.CAFile, &t.BearerTokenFile)
	}
	return out
}
