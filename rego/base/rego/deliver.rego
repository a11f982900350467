# May a secret be delivered?
#
# To ask for a rule costs five times what a look-up in input does, so that the way to a permit asks for few.
package bulla.deliver

import data.bulla.custody
import data.bulla.number
import data.bulla.secret
import rego.v1

# The answer to a caller who is covered; nobody else gets one. The order only saves time: a permit is given without
# looking for what is missing.
answer := {
	"decision": "PERMIT",
	"reasons": ["a grant covers the secret and every condition holds"],
	"obligations": custody.obligations,
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

# A grant covers the secret by its exact name, by a folder above it, or by "*". Each is looked up, so the
# cost does not grow with the number of grants.
default covered := false

covered if {
	input.action == "deliver"
	read := data.grants[input.principal.id].read
	some scope in input.resource.secret.scopes
	read[scope] == true
}

default permit := false

permit if {
	covered
	input.resource.secret.exists == true
	class := secret.class
	input.principal.level in class.levels
	number.at_most(input.risk.score, class.max_risk)
	device_ok
	custody.approved
}

# What the class demands of the device.
default device_ok := false

device_ok if secret.class.attestation.required == false

device_ok if {
	wanted := secret.class.attestation
	wanted.required == true
	fresh(wanted)
	trusted(wanted)
	placed
}

# An attestation is fresh if it is recent enough, of a kind that the class takes, and bound to this caller.
default fresh(_) := false

fresh(wanted) if {
	shown := input.attestation
	shown.keys_bound == true
	shown.kind in wanted.kinds
	number.at_most(shown.age_seconds, wanted.max_age_seconds)
}

# The verdict over the device.
default trusted(_) := false

trusted(wanted) if {
	shown := input.attestation
	shown.tier in wanted.tiers
	number.at_least(shown.score, wanted.min_score)
}

# Which devices the principal may run on.
default placed := false

placed if {
	some device in data.grants[input.principal.id].devices
	device in {"*", input.attestation.device_id}
}

# From here on it is about the answer to a caller who is covered and gets no permit.

default exists := false

exists if input.resource.secret.exists == true

default identity_ok := false

identity_ok if input.principal.level in secret.class.levels

# A class can name the level that a further factor of another issuer would bring. Without step_up the answer to a
# weak identity is no.
default identity_can_rise := false

identity_can_rise if {
	not identity_ok
	secret.class.step_up in secret.class.levels
}

default identity_in_reach := false

identity_in_reach if identity_ok

identity_in_reach if identity_can_rise

default risk_ok := false

risk_ok if number.at_most(input.risk.score, secret.class.max_risk)

# The risk that would be left with a perfect attestation and a stronger identity. Asking for them makes sense only
# below the limit.
attestation_factors := {"attestation_age", "attestation_trust", "attestation_tier"}

improvable contains name if some name in attestation_factors

improvable contains "identity" if identity_can_rise

other_risk := sum([points | some points in input.risk.points]) - sum([points |
	some name in improvable
	points := input.risk.points[name]
])

default risk_in_reach := false

risk_in_reach if number.at_most(other_risk, secret.class.max_risk)

requires["attestation"] := {
	"max_age_seconds": wanted.max_age_seconds,
	"min_score": wanted.min_score,
	"kinds": wanted.kinds,
} if {
	wanted := secret.class.attestation
	wanted.required == true
	not fresh(wanted)
	exists
	identity_in_reach
	risk_in_reach
}

# A factor is worth asking for where the device is in order, or asked for as well.
default device_in_reach := false

device_in_reach if device_ok

device_in_reach if {
	wanted := secret.class.attestation
	wanted.required == true
	not fresh(wanted)
}

requires["factor"] := {"level": secret.class.step_up} if {
	identity_can_rise
	exists
	device_in_reach
	risk_in_reach
}

# Nobody is asked to approve what would not be delivered anyway.
requires["approval"] := {"count": wanted.count, "role": wanted.role} if {
	wanted := secret.class.approval
	not custody.approved
	exists
	identity_ok
	device_ok
	risk_ok
}

# Reasons say what is missing and never how much: limits and weights stay inside.
reasons contains "there is no such secret" if not exists

reasons contains "the class of the secret is not known to the policy" if {
	exists
	not secret.class
}

reasons contains "the identity is not verified strongly enough" if {
	secret.class
	not identity_ok
}

reasons contains "a fresh attestation of the device is required" if {
	wanted := secret.class.attestation
	wanted.required == true
	not fresh(wanted)
}

reasons contains "the device is not trusted enough" if {
	wanted := secret.class.attestation
	wanted.required == true
	fresh(wanted)
	not trusted(wanted)
}

reasons contains "the principal may not run on this device" if {
	wanted := secret.class.attestation
	wanted.required == true
	fresh(wanted)
	not placed
}

reasons contains "the risk is too high for this secret" if {
	secret.class
	not risk_ok
}

reasons contains "somebody else's approval is required" if {
	secret.class
	not custody.approved
}
