package policy

import (
	"errors"
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Approval is somebody's word for this very request. What the approver may approve, and whose word counts, is for
// the policy to say.
type Approval struct {
	Principal string `json:"principal"` // SPIFFE ID of the approver
	At        int64  `json:"at"`
}

// Round is the round that a custodian's or approver's action is about.
type Round struct {
	ID        string   `json:"id"`
	Kind      string   `json:"kind"`      // split or approval; "" if there is no such round
	Principal string   `json:"principal"` // the requester
	Secret    string   `json:"secret"`
	Version   int64    `json:"version"`
	Role      string   `json:"role"`              // of those who may approve
	Holders   []string `json:"holders,omitempty"` // who has a share
}

// The keys of these parts of the input.
var (
	kApprovals = str("approvals")
	kHolders   = str("holders")
	kRole      = str("role")
	kRound     = str("round")
)

func approvalsTerm(approvals []Approval, now int64) *ast.Term {
	out := make([]*ast.Term, len(approvals))
	for i, a := range approvals {
		o := fields{{kPrincipal, str(a.Principal)}}
		if seconds, ok := age(now, a.At).Get(); ok {
			o = append(o, [2]*ast.Term{kAge, num(seconds)})
		}
		out[i] = o.term()
	}
	return ast.ArrayTerm(out...)
}

func roundTerm(r *Round) *ast.Term {
	holders := make([]*ast.Term, len(r.Holders))
	for i, h := range r.Holders {
		holders[i] = str(h)
	}
	return fields{
		{kID, str(r.ID)},
		{kKind, str(r.Kind)},
		{kPrincipal, str(r.Principal)},
		{kSecret, str(r.Secret)},
		{kVersion, num(r.Version)},
		{kRole, str(r.Role)},
		{kHolders, ast.ArrayTerm(holders...)},
	}.term()
}

// persons reads an optional object of texts: who is behind an identity.
func (p *part) persons(name string) map[string]string {
	if p.obj.Get(ast.InternedTerm(name)) == nil {
		return nil
	}
	obj, ok := p.get(name).(ast.Object)
	if !ok || obj.Len() > maxList+1 { // the holders, and the caller
		p.fail(fmt.Errorf("%s is not an object of at most %d entries", name, maxList+1))
		return nil
	}
	out := make(map[string]string, obj.Len())
	obj.Foreach(func(k, v *ast.Term) {
		id, isText := k.Value.(ast.String)
		person, isToo := v.Value.(ast.String)
		if !isText || !isToo || person == "" || len(person) > maxText || len(id) > maxText*8 {
			p.fail(errors.New(name + ": an entry is not a text for a text"))
			return
		}
		out[string(id)] = string(person)
	})
	return out
}
