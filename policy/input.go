package policy

import (
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/bulla-project/bulla/risk"
)

const second = int64(1_000_000)

// ScopeAll is the scope that covers every secret.
const ScopeAll = "*"

// Scopes returns the names under which a grant can cover a secret, most exact first: the name, each folder
// above it with its slash, and ScopeAll. A policy looks each of them up, so that the cost does not depend
// on the number of grants.
func Scopes(name string) []string {
	if name == "" {
		return nil
	}
	out := []string{name}
	for i := len(name) - 1; i > 0; i-- {
		if name[i-1] == '/' {
			out = append(out, name[:i])
		}
	}
	if strings.HasSuffix(name, "/") { // not a name: it must not stand for its own folder
		out = out[1:]
	}
	return append(out, ScopeAll)
}

// assess computes the risk of the signals under the revision's model and zones.
func (r *Revision) assess(s Signals, zone string) risk.Assessment {
	in := risk.Signals{
		Level:    r.level(s),
		SVIDAge:  age(s.Now, s.Principal.NotBefore),
		Zone:     zone,
		Transit:  "classical",
		Hour:     risk.HourOfWeek(s.Now),
		External: external(s),
	}
	if s.Network.PostQuantum {
		in.Transit = "post_quantum"
	}
	if a := s.Attestation; a != nil {
		in.AttestationAge = age(s.Now, a.IssuedAt)
		in.AttestationScore = risk.Known(a.Score)
		in.AttestationTier = a.Tier
	}
	if h := s.History; h != nil {
		in.RateMilli = risk.Known(h.RateMilli)
		in.Denials = risk.Known(h.DenialsMilli)
		in.Unconfirmed = risk.Known(h.UnconfirmedMilli)
		in.Novelty = "known"
		if h.Novel {
			in.Novelty = "new"
		}
	}
	assessPlace(&in, s)
	return risk.Assess(in, r.model)
}

// assessPlace sets what risk makes of the place. A service that keeps its device back is not judged by its place,
// and by far more for what the device would have said.
func assessPlace(in *risk.Signals, s Signals) {
	switch {
	case s.Place == nil:
		in.Unplaced = "no database of places is configured"
	case s.Principal.Type != TypeUser && s.Attestation == nil:
		in.Unplaced = "without a device only a USER is at one place at a time"
	case s.History == nil:
		in.Unplaced = "no history is kept of administrative calls"
	case s.History.Travel != nil:
		t := s.History.Travel
		in.Velocity = risk.Velocity(t.DistanceKM, t.Seconds)
		switch {
		case s.Place.Country == "": // unknown
		case t.NewCountry:
			in.Country = "new"
		default:
			in.Country = "known"
		}
	}
}

// age returns the seconds since then, rounded up so that a limit is never stretched. A time that is
// missing or in the future has no age.
func age(now, then int64) risk.Reading {
	if then <= 0 || then > now {
		return risk.Reading{}
	}
	return risk.Known((now - then + second - 1) / second)
}

// Input returns the input of the policy for the signals: a pure function of them and the revision. What the
// signals don't have is absent from the input, and so undefined in Rego. rego/schemas/input.json describes
// each field.
func (r *Revision) Input(s Signals) (ast.Value, risk.Assessment) {
	addr, zone := r.zones.find(s.Network.Peer)
	assessment := r.assess(s, zone)
	o := fields{
		{kNow, num(s.Now)},
		{kAction, str(string(s.Action))},
		{kPrincipal, r.principalTerm(s)},
		{kInstance, str(s.Instance)},
		{kResource, resourceTerm(s.Resource)},
		{kNetwork, fields{
			{kAddress, str(addr)},
			{kZone, str(zone)},
			{kTLSGroup, str(s.Network.TLSGroup)},
			{kPostQuantum, boolean(s.Network.PostQuantum)},
		}.term()},
		{kRequest, fields{
			{kGrade, str(s.Request.Grade)},
			{kMaxUses, num(s.Request.MaxUses)},
			{kTTLSeconds, num(s.Request.TTLSeconds)},
			{kOperation, str(s.Request.Operation)},
		}.term()},
		{kRisk, riskTerm(assessment)},
	}
	if hour, ok := risk.HourOfWeek(s.Now).Get(); ok {
		o = append(o, [2]*ast.Term{kHourOfWeek, num(hour)})
	}
	if a := s.Attestation; a != nil {
		o = append(o, [2]*ast.Term{kAttestation, attestationTerm(a, s.Now)})
	}
	if p := s.Place; p != nil && p.Country != "" {
		o = append(o, [2]*ast.Term{kPlace, placeTerm(p, s.Now)})
	}
	if rc := s.Recipient; rc != nil {
		o = append(o, [2]*ast.Term{kRecipient, fields{
			{kSuite, num(rc.Suite)},
			{kInHardware, boolean(rc.InHardware)},
		}.term()})
	}
	if h := s.History; h != nil {
		past := fields{
			{kRateMilli, num(h.RateMilli)},
			{kDenialsMilli, num(h.DenialsMilli)},
			{kUnconfirmedMilli, num(h.UnconfirmedMilli)},
			{kNovel, boolean(h.Novel)},
		}
		if h.Travel != nil && s.Place != nil && s.Place.Country != "" {
			past = append(past, [2]*ast.Term{kNewCountry, boolean(h.Travel.NewCountry)})
		}
		o = append(o, [2]*ast.Term{kHistory, past.term()})
	}
	if len(s.Factors) > 0 {
		o = append(o, [2]*ast.Term{kFactors, r.factorsTerm(s)})
	}
	if len(s.External) > 0 {
		o = append(o, [2]*ast.Term{kExternal, externalTerm(s)})
	}
	if len(s.Approvals) > 0 {
		o = append(o, [2]*ast.Term{kApprovals, approvalsTerm(s.Approvals, s.Now)})
	}
	return ast.NewObject(o...), assessment
}

func (r *Revision) principalTerm(s Signals) *ast.Term {
	p := s.Principal
	o := fields{
		{kID, str(p.ID)},
		{kTrustDomain, str(p.TrustDomain)},
		{kPath, str(p.Path)},
		{kType, str(r.principalType(s))},
		{kLevel, str(r.level(s))},
	}
	if person, ok := r.person(s); ok {
		o = append(o, [2]*ast.Term{kPerson, str(person)})
	}
	if seconds, ok := age(s.Now, p.NotBefore).Get(); ok {
		o = append(o, [2]*ast.Term{kSVIDAge, num(seconds)})
	}
	if p.NotAfter > s.Now {
		o = append(o, [2]*ast.Term{kSVIDRemaining, num((p.NotAfter - s.Now) / second)})
	}
	return o.term()
}

func resourceTerm(r Resource) *ast.Term {
	o := fields{{kKind, str(r.Kind)}}
	if x := r.Secret; x != nil {
		scopes := Scopes(x.Name)
		terms := make([]*ast.Term, len(scopes))
		for i, scope := range scopes {
			terms[i] = str(scope)
		}
		o = append(o, [2]*ast.Term{kSecret, fields{
			{kName, str(x.Name)},
			{kScopes, ast.ArrayTerm(terms...)},
			{kExists, boolean(x.Exists)},
			{kClass, str(x.Class)},
			{kVersion, num(x.Version)},
			{kExposure, str(x.Exposure)},
			{kNewClass, str(x.NewClass)},
			{kType, str(typeName(x.Type, x.Exists))},
			{kNewType, str(typeName(x.NewType, x.NewClass != ""))},
		}.term()})
	}
	if x := r.Session; x != nil {
		o = append(o, [2]*ast.Term{kSession, fields{
			{kID, str(x.ID)},
			{kState, str(x.State)},
			{kPrincipal, str(x.Principal)},
			{kSecret, str(x.Secret)},
		}.term()})
	}
	if x := r.Device; x != nil {
		o = append(o, [2]*ast.Term{kDevice, fields{
			{kID, str(x.ID)},
			{kKind, str(x.Kind)},
			{kPrincipal, str(x.Principal)},
		}.term()})
	}
	if x := r.Revision; x != nil {
		o = append(o, [2]*ast.Term{kRevision, fields{
			{kDigest, str(x.Digest)},
			{kName, str(x.Name)},
		}.term()})
	}
	if x := r.Round; x != nil {
		o = append(o, [2]*ast.Term{kRound, roundTerm(x)})
	}
	return o.term()
}

// typeName is a type of secrets as policy sees it: opaque is not left to a text that is missing.
func typeName(recorded string, there bool) string {
	if recorded == "" && there {
		return "opaque"
	}
	return recorded
}

func attestationTerm(a *Attestation, now int64) *ast.Term {
	o := fields{
		{kKind, str(a.Kind)},
		{kDeviceID, str(a.DeviceID)},
		{kTier, str(a.Tier)},
		{kScore, num(a.Score)},
		{kKeysBound, boolean(a.KeysBound)},
		{kHardware, boolean(a.Hardware)},
	}
	if seconds, ok := age(now, a.IssuedAt).Get(); ok {
		o = append(o, [2]*ast.Term{kAge, num(seconds)})
	}
	return o.term()
}

func placeTerm(p *Place, now int64) *ast.Term {
	o := fields{{kCountry, str(p.Country)}}
	if p.Continent != "" {
		o = append(o, [2]*ast.Term{kContinent, str(p.Continent)})
	}
	if q := p.Point; q != nil {
		o = append(o, fields{{kLatitudeMilli, num(q.LatitudeMilli)}, {kLongitudeMilli, num(q.LongitudeMilli)}, {kRadiusKM, num(q.RadiusKM)}}...)
	}
	if seconds, ok := age(now, p.BuiltAt).Get(); ok {
		o = append(o, [2]*ast.Term{kSourceAge, num(seconds)})
	}
	return o.term()
}

func riskTerm(a risk.Assessment) *ast.Term {
	points := make(fields, len(a.Factors))
	for i, f := range a.Factors {
		points[i] = [2]*ast.Term{pointKeys[f.Name], num(int64(f.Points))}
	}
	return fields{{kScore, num(int64(a.Score))}, {kPoints, points.term()}}.term()
}

// fields is an object under construction.
type fields [][2]*ast.Term

func (f fields) term() *ast.Term { return ast.NewTerm(ast.NewObject(f...)) }

func str(s string) *ast.Term   { return ast.StringTerm(s) }
func num(i int64) *ast.Term    { return ast.InternedTerm(i) }
func boolean(b bool) *ast.Term { return ast.InternedTerm(b) }

// pointKeys are the keys of input.risk.points, by factor. It is never written to.
var pointKeys = func() map[string]*ast.Term {
	keys := map[string]*ast.Term{}
	for _, name := range risk.FactorNames() {
		keys[name] = str(name)
	}
	return keys
}()

// The keys of the input, made once; terms are never changed.
var (
	kAction           = str("action")
	kAddress          = str("address")
	kAge              = str("age_seconds")
	kAttestation      = str("attestation")
	kClaims           = str("claims")
	kClass            = str("class")
	kContinent        = str("continent")
	kCountry          = str("country")
	kDenialsMilli     = str("denials_milli")
	kDevice           = str("device")
	kDeviceID         = str("device_id")
	kDigest           = str("digest")
	kExists           = str("exists")
	kExposure         = str("exposure")
	kExternal         = str("external")
	kFactors          = str("factors")
	kGrade            = str("grade")
	kHardware         = str("recipient_in_hardware")
	kHistory          = str("history")
	kHourOfWeek       = str("hour_of_week")
	kID               = str("id")
	kInHardware       = str("in_hardware")
	kInstance         = str("instance")
	kIssuer           = str("issuer")
	kKeysBound        = str("keys_bound")
	kKind             = str("kind")
	kLatitudeMilli    = str("latitude_milli")
	kLevel            = str("level")
	kLongitudeMilli   = str("longitude_milli")
	kMaxUses          = str("max_uses")
	kName             = str("name")
	kNetwork          = str("network")
	kNewClass         = str("new_class")
	kNewCountry       = str("new_country")
	kNewType          = str("new_type")
	kNovel            = str("novel")
	kNow              = str("now")
	kOperation        = str("operation")
	kPath             = str("path")
	kPerson           = str("person")
	kPlace            = str("place")
	kPoints           = str("points")
	kPostQuantum      = str("post_quantum")
	kPrincipal        = str("principal")
	kRadiusKM         = str("radius_km")
	kRateMilli        = str("rate_milli")
	kRecipient        = str("recipient")
	kRemaining        = str("remaining_seconds")
	kRequest          = str("request")
	kResource         = str("resource")
	kRevision         = str("revision")
	kRisk             = str("risk")
	kSVIDAge          = str("svid_age_seconds")
	kSVIDRemaining    = str("svid_remaining_seconds")
	kScopes           = str("scopes")
	kScore            = str("score")
	kSecret           = str("secret")
	kSession          = str("session")
	kSourceAge        = str("source_age_seconds")
	kState            = str("state")
	kSubject          = str("subject")
	kSuite            = str("suite")
	kTLSGroup         = str("tls_group")
	kTTLSeconds       = str("ttl_seconds")
	kTier             = str("tier")
	kTransmitter      = str("transmitter")
	kTrustDomain      = str("trust_domain")
	kType             = str("type")
	kUnconfirmedMilli = str("unconfirmed_milli")
	kVersion          = str("version")
	kZone             = str("zone")
)
