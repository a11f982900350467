# May an administrative action be done? Roles are data: who has which (data.members), and what each may do
# (data.roles).
package bulla.administration

import data.bulla.custody
import data.bulla.number
import rego.v1

default asked := false

asked if {
	is_string(input.action)
	input.action != "deliver"
}

default covered := false

covered if {
	asked
	some role in data.members[input.principal.id]
	input.action in data.roles[role]
}

default risk_ok := false

risk_ok if number.at_most(input.risk.score, data.limits.administration.max_risk)

default identity_ok := false

identity_ok if input.principal.level in data.limits.administration.levels

# A put may not lower the class of a secret that exists, and must name a class that the policy knows.
default class_ok := false

class_ok if input.action != "secret.put"

class_ok if {
	input.action == "secret.put"
	input.resource.secret.exists == false
	data.classes[input.resource.secret.new_class]
}

class_ok if {
	input.action == "secret.put"
	input.resource.secret.exists == true
	number.at_least(
		data.classes[input.resource.secret.new_class].sensitivity,
		data.classes[input.resource.secret.class].sensitivity,
	)
}

# Some actions are only for those whom a round waits for.
default round_ok := false

round_ok if not input.action in custody.actions

round_ok if custody.waits

# Some actions want the word of a second person: data.limits.administration.second_person maps actions to the role that
# this person has. It must be there, if only empty: without it nothing is permitted.
second := data.limits.administration.second_person

default wants_second := false

wants_second if {
	is_object(second)
	input.action in object.keys(second)
}

default seconded := false

seconded if {
	is_object(second)
	not wants_second
}

seconded if count(seconds) > 0

# Persons and not identities, with the role, and not the caller.
seconds contains custody.person(approval.principal) if {
	some approval in input.approvals
	second[input.action] in data.members[approval.principal]
	custody.person(approval.principal) != custody.person(input.principal.id)
	count(behind(approval.principal) & behind(input.principal.id)) == 0
}

# Who may stand behind an identity: its owner, and everybody whose token speaks for it. One of these behind both is no
# second person.
behind(id) := {owner | owner := data.owners[id]} | {entry.person |
	some subjects in data.persons
	some entry in subjects
	entry.principals[id] == true
}

default permit := false

permit if {
	covered
	identity_ok
	class_ok
	round_ok
	risk_ok
	seconded
}

requires["approval"] := {"count": 1, "role": second[input.action]} if {
	covered
	identity_ok
	class_ok
	round_ok
	risk_ok
	not seconded
}

reasons contains "a second person has to ask for the same" if {
	covered
	identity_ok
	class_ok
	round_ok
	risk_ok
	not seconded
	wants_second
}

reasons contains "the policy does not say which actions want a second person" if {
	covered
	not seconded
	not wants_second
}

requires["factor"] := {"level": data.limits.administration.step_up} if {
	covered
	class_ok
	round_ok
	risk_ok
	not identity_ok
}

reasons contains "the identity is not verified strongly enough" if {
	covered
	not identity_ok
}

reasons contains "the class is unknown, or lower than the one the secret has" if {
	covered
	not class_ok
}

reasons contains "the risk is too high for this action" if {
	covered
	not risk_ok
}

reasons contains "there is no such round that waits for this principal" if {
	covered
	not round_ok
}
