package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
)

// filePersons is the file of data.persons. A bundle may be without it: then no token of another issuer counts.
const filePersons = "data/persons.yaml"

// persons says what a token of an issuer is worth, by issuer and subject. A token does not name the SPIFFE ID of
// whoever shows it, so that only this table can say for whom it speaks:
//
//	https://idp.example.org:
//	  alice:
//	    person: alice
//	    principals: {spiffe://example.org/shop/deploy: true}
type persons map[[2]string]vouching

// vouching is a person, and the principals that the person may speak for.
type vouching struct {
	person     string
	principals map[string]bool
}

const maxPersonID = 256 // bytes

// readPersons reads data.persons strictly: a slip in it must not make somebody else's token count.
func readPersons(data ast.Object) (persons, error) {
	root := data.Get(ast.StringTerm("persons"))
	if root == nil {
		return nil, nil
	}
	out := persons{}
	err := eachMember(root, func(issuer string, subjects *ast.Term) error {
		return eachMember(subjects, func(subject string, entry *ast.Term) error {
			v, err := readVouching(entry)
			if err != nil {
				return fmt.Errorf("issuer %q, subject %q: %w", issuer, subject, err)
			}
			out[[2]string{issuer, subject}] = v
			return nil
		})
	})
	return out, err
}

func readVouching(entry *ast.Term) (vouching, error) {
	v := vouching{principals: map[string]bool{}}
	err := eachMember(entry, func(name string, value *ast.Term) error {
		switch name {
		case "person":
			text, ok := value.Value.(ast.String)
			if v.person = string(text); !ok || v.person == "" || len(v.person) > maxPersonID {
				return fmt.Errorf("person is not a text of 1 to %d bytes", maxPersonID)
			}
			return nil
		case "principals":
			return eachMember(value, func(id string, allowed *ast.Term) error {
				yes, ok := allowed.Value.(ast.Boolean)
				if !ok {
					return fmt.Errorf("principal %q is neither true nor false", id)
				}
				v.principals[id] = bool(yes)
				return nil
			})
		}
		return fmt.Errorf("unknown key %q: want person and principals", name)
	})
	if err == nil && v.person == "" {
		err = errors.New("it names no person")
	}
	return v, err
}

// eachMember calls f for the members of an object in the order of their names.
func eachMember(t *ast.Term, f func(name string, value *ast.Term) error) error {
	obj, ok := t.Value.(ast.Object)
	if !ok {
		return fmt.Errorf("%s is not a map", filePersons)
	}
	members := map[string]*ast.Term{}
	obj.Foreach(func(k, v *ast.Term) {
		if name, ok := k.Value.(ast.String); ok {
			members[string(name)] = v
		}
	})
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if err := f(name, members[name]); err != nil {
			return err
		}
	}
	return nil
}
