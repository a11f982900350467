# May an administrative action be done? Roles are data: who has which (data.members), and what each may do
# (data.roles).
package bulla.administration

import data.bulla.custody
import data.bulla.number
import rego.v1

# The answer to a caller whom a role covers; nobody else gets one.
answer := {
	"decision": "PERMIT",
	"reasons": ["a role covers the action and every condition holds"],
	"obligations": {},
	"requires": {},
	"disclose": true,
} if {
	permit
} else := {
	"decision": "STEP_UP",
	"reasons": reasons,
	"obligations": {},
	"requires": requires,
	"disclose": true,
} if {
	covered
	count(requires) > 0
} else := {
	"decision": "DENY",
	"reasons": reasons,
	"obligations": {},
	"requires": {},
	"disclose": true,
} if {
	covered
}

default covered := false

covered if {
	input.action != "deliver"
	some role in data.members[input.principal.id]
	input.action in data.roles[role]
}

default permit := false

permit if {
	covered
	limits := data.limits.administration
	input.principal.level in limits.levels
	number.at_most(input.risk.score, limits.max_risk)
	class_ok
	round_ok
	seconded
}

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

round_ok if not input.action in {"share.show", "share.fetch", "share.approve", "share.reject"}

round_ok if custody.waits

# Some actions want the word of a second person: second_person maps actions to the role that this person has. It must be
# there, if only empty: without it nothing is permitted. (Data has no sets, so that the empty set stands for no entry.)
default seconded := false

seconded if {
	second := data.limits.administration.second_person
	is_object(second)
	object.get(second, input.action, set()) == set()
}

seconded if count(seconds) > 0

# Persons and not identities, with the role, and not the caller.
seconds contains custody.person(approval.principal) if {
	some approval in input.approvals
	data.limits.administration.second_person[input.action] in data.members[approval.principal]
	custody.apart(approval.principal, input.principal.id)
}

# From here on it is about the answer to a caller who is covered and gets no permit.

default identity_ok := false

identity_ok if input.principal.level in data.limits.administration.levels

default risk_ok := false

risk_ok if number.at_most(input.risk.score, data.limits.administration.max_risk)

second := data.limits.administration.second_person

default wants_second := false

wants_second if {
	is_object(second)
	input.action in object.keys(second)
}

requires["approval"] := {"count": 1, "role": second[input.action]} if {
	identity_ok
	class_ok
	round_ok
	risk_ok
	not seconded
}

reasons contains "a second person has to ask for the same" if {
	identity_ok
	class_ok
	round_ok
	risk_ok
	not seconded
	wants_second
}

reasons contains "the policy does not say which actions want a second person" if {
	not seconded
	not wants_second
}

requires["factor"] := {"level": data.limits.administration.step_up} if {
	class_ok
	round_ok
	risk_ok
	not identity_ok
}

reasons contains "the identity is not verified strongly enough" if {
	not identity_ok
}

reasons contains "the class is unknown, or lower than the one the secret has" if {
	not class_ok
}

reasons contains "the risk is too high for this action" if {
	not risk_ok
}

reasons contains "there is no such round that waits for this principal" if {
	not round_ok
}
