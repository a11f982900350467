# Other people's part in a delivery: who is a person, whose approval counts, and which rounds wait for whom.
package bulla.custody

import data.bulla.number
import data.bulla.secret
import rego.v1

# Who may stand behind an identity: its owner, and everybody whose token speaks for it.
behind(id) := {owner | owner := data.owners[id]} | {entry.person |
	some subjects in data.persons
	some entry in subjects
	entry.principals[id] == true
}

# The person behind an identity: its owner, or else the first by name of those whose tokens speak for it. One that nobody
# named is a person of its own.
person(id) := data.owners[id]

person(id) := min(behind(id)) if {
	not data.owners[id]
	count(behind(id)) > 0
}

person(id) := id if count(behind(id)) == 0

# Two identities that nobody can be behind at once.
apart(a, b) if {
	person(a) != person(b)
	count(behind(a) & behind(b)) == 0
}

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
	"persons": {id: person(id) |
		some id in ({h | some h in given.holders} | {input.principal.id})
		person(id) != id
	},
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

# Whose approval would do by itself: that of somebody with the role who is not the caller.
eligible contains approval.principal if {
	some approval in input.approvals
	secret.class.approval.role in data.members[approval.principal]
	apart(approval.principal, input.principal.id)
}

# Persons and not identities: of two who may be one person the second does not count.
approvers contains id if {
	some id in eligible
	every other in eligible {
		another(other, id)
	}
}

another(other, id) if other >= id

another(other, id) if apart(other, id)

# Does the round of this request wait for the caller?
default waits := false

waits if {
	input.resource.round.kind == "split"
	input.principal.id in input.resource.round.holders
	apart(input.principal.id, input.resource.round.principal)
}

waits if {
	input.resource.round.kind == "approval"
	input.resource.round.role in data.members[input.principal.id]
	apart(input.principal.id, input.resource.round.principal)
}
