# Other people's part in a delivery: who is a person, whose approval counts, and which rounds wait for whom.
package bulla.custody

import data.bulla.number
import data.bulla.secret
import rego.v1

# The person behind an identity. One that nobody named is a person of its own.
person(id) := data.owners[id]

person(id) := id if not data.owners[id]

# What a delivery of the class is bound to. For a split the broker is told who the persons behind the holders and the
# caller are, so that it can refuse one person behind two of them.
obligations := secret.class.obligations if {
	not secret.class.obligations.split_knowledge
} else := {name: parameters |
	some name, given in secret.class.obligations
	parameters := with_persons(name, given)
}

with_persons(name, given) := given if name != "split_knowledge"

with_persons(name, given) := {
	"threshold": given.threshold,
	"holders": given.holders,
	"grade": given.grade,
	"persons": {id: data.owners[id] | some id in ({h | some h in given.holders} | {input.principal.id})},
} if {
	name == "split_knowledge"
}

# Does the class ask for an approval at all? By the presence of the entry: one that is wrong asks for what nobody can
# give. (Data has no sets, so that the empty set stands for no entry.)
default approved := false

approved if {
	class := secret.class
	is_object(class)
	object.get(class, "approval", set()) == set()
} else if number.at_least(count(approvers), secret.class.approval.count)

# Persons and not identities, each with the role, and none of them the caller.
approvers contains person(approval.principal) if {
	some approval in input.approvals
	secret.class.approval.role in data.members[approval.principal]
	person(approval.principal) != person(input.principal.id)
}

# Does the round of this request wait for the caller?
default waits := false

waits if {
	input.resource.round.kind == "split"
	input.principal.id in input.resource.round.holders
	person(input.principal.id) != person(input.resource.round.principal)
}

waits if {
	input.resource.round.kind == "approval"
	input.resource.round.role in data.members[input.principal.id]
	person(input.principal.id) != person(input.resource.round.principal)
}
