package policy

import (
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
)

// speaksFor returns the person of a factor, if the revision says that this person may speak for the caller, the token
// had not ended, and its issuer is not the one that the caller's SVID is of: a JWT-SVID of the same trust domain says
// nothing that the X.509-SVID does not.
func (r *Revision) speaksFor(f Factor, s Signals) (person string, ok bool) {
	v, known := r.persons[[2]string{f.Issuer, f.Subject}]
	if !known || !v.principals[s.Principal.ID] || f.ExpiresAt <= s.Now || f.Issuer == sameIssuer(s.Principal.TrustDomain) {
		return "", false
	}
	return v.person, true
}

// sameIssuer is how the factors of a trust domain name their issuer.
func sameIssuer(trustDomain string) string { return "spiffe://" + trustDomain }

// level is the verification level: what was recorded, or ENHANCED where a factor counts.
func (r *Revision) level(s Signals) string {
	if s.Principal.Level != LevelBasic {
		return s.Principal.Level
	}
	for _, f := range s.Factors {
		if _, ok := r.speaksFor(f, s); ok {
			return LevelEnhanced
		}
	}
	return s.Principal.Level
}

// person is who stands behind the request. Two who differ are nobody: a rule that wants two persons must not take one
// caller for both.
func (r *Revision) person(s Signals) (person string, ok bool) {
	for _, f := range s.Factors {
		p, counts := r.speaksFor(f, s)
		if !counts {
			continue
		}
		if ok && p != person {
			return "", false
		}
		person, ok = p, true
	}
	return person, ok
}

// principalType is the recorded type, or the one that the factors which count agree on.
func (r *Revision) principalType(s Signals) string {
	kind := ""
	for _, f := range s.Factors {
		if _, counts := r.speaksFor(f, s); !counts || f.Type == "" {
			continue
		}
		if kind != "" && kind != f.Type {
			return s.Principal.Type
		}
		kind = f.Type
	}
	if kind == "" {
		return s.Principal.Type
	}
	return kind
}

// factorsTerm is input.factors. What a token says stands below claims, under no name of ours.
func (r *Revision) factorsTerm(s Signals) *ast.Term {
	terms := make([]*ast.Term, len(s.Factors))
	for i, f := range s.Factors {
		claims := make(fields, 0, len(f.Claims))
		for _, name := range slices.Sorted(maps.Keys(f.Claims)) {
			values := make([]*ast.Term, len(f.Claims[name]))
			for n, v := range f.Claims[name] {
				values[n] = str(v)
			}
			claims = append(claims, [2]*ast.Term{str(name), ast.ArrayTerm(values...)})
		}
		o := fields{
			{kKind, str(f.Kind)},
			{kIssuer, str(f.Issuer)},
			{kSubject, str(f.Subject)},
			{kClaims, claims.term()},
		}
		if f.Type != "" {
			o = append(o, [2]*ast.Term{kType, str(f.Type)})
		}
		if person, ok := r.speaksFor(f, s); ok {
			o = append(o, [2]*ast.Term{kPerson, str(person)})
		}
		if seconds, ok := age(s.Now, f.IssuedAt).Get(); ok {
			o = append(o, [2]*ast.Term{kAge, num(seconds)})
		}
		if f.ExpiresAt > s.Now {
			o = append(o, [2]*ast.Term{kRemaining, num((f.ExpiresAt - s.Now) / second)})
		}
		terms[i] = o.term()
	}
	return ast.ArrayTerm(terms...)
}

// The values of ExternalSignal.Level.
const (
	ExternalRaised = "raised"
	ExternalHigh   = "high"
	externalClear  = "clear"
)

// external is the worst level of the signals that have not ended. None is clear, and not a thing withheld: it is the
// broker who would have it, not the caller. A level that is not known is as bad as can be.
func external(s Signals) string {
	worst := externalClear
	for _, e := range s.External {
		switch {
		case e.Expires <= s.Now:
		case e.Level == ExternalRaised:
			if worst == externalClear {
				worst = ExternalRaised
			}
		default:
			worst = ExternalHigh
		}
	}
	return worst
}

// externalTerm is input.external.
func externalTerm(s Signals) *ast.Term {
	var terms []*ast.Term
	for _, e := range s.External {
		if e.Expires <= s.Now {
			continue
		}
		o := fields{{kTransmitter, str(e.Transmitter)}, {kType, str(e.Type)}, {kLevel, str(e.Level)}}
		if seconds, ok := age(s.Now, e.Received).Get(); ok {
			o = append(o, [2]*ast.Term{kAge, num(seconds)})
		}
		terms = append(terms, o.term())
	}
	return ast.ArrayTerm(terms...)
}
