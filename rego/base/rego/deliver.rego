# May a secret be delivered?
package bulla.deliver

import data.bulla.custody
import data.bulla.number
import rego.v1

# A grant covers the secret by its exact name, by a folder above it, or by "*". Each is looked up, so the
# cost does not grow with the number of grants.
default covered := false

covered if {
	input.action == "deliver"
	read := data.grants[input.principal.id].read
	some scope in input.resource.secret.scopes
	read[scope] == true
}

# The class of the secret. A class without an entry leaves this undefined, and everything below with it.
class := data.classes[input.resource.secret.class]

default permit := false

permit if {
	covered
	input.resource.secret.exists == true
	required := class
	input.principal.level in required.levels
	number.at_most(input.risk.score, required.max_risk)
	device_ok
	custody.approved
}

# What the class demands of the device.
default device_ok := false

device_ok if class.attestation.required == false

device_ok if {
	class.attestation.required == true
	fresh
	trusted
	placed
}

# An attestation is fresh if it is recent enough, of a kind that the class takes, and bound to this caller.
default fresh := false

fresh if {
	required := class.attestation
	input.attestation.keys_bound == true
	input.attestation.kind in required.kinds
	number.at_most(input.attestation.age_seconds, required.max_age_seconds)
}

# The verdict over the device.
default trusted := false

trusted if {
	required := class.attestation
	input.attestation.tier in required.tiers
	number.at_least(input.attestation.score, required.min_score)
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

identity_ok if input.principal.level in class.levels

# A class can name the level that a further factor of another issuer would bring. Without step_up the answer to a
# weak identity is no.
default identity_can_rise := false

identity_can_rise if {
	not identity_ok
	class.step_up in class.levels
}

default identity_in_reach := false

identity_in_reach if identity_ok

identity_in_reach if identity_can_rise

default risk_ok := false

risk_ok if number.at_most(input.risk.score, class.max_risk)

# The risk that would be left with a perfect attestation and a stronger identity. Asking for them makes sense only
# below the limit.
attestation_factors := {"attestation_age", "attestation_trust", "attestation_tier"}

improvable contains name if some name in attestation_factors

improvable contains "identity" if identity_can_rise

other_risk := sum([points |
	some name, points in input.risk.points
	not name in improvable
])

requires["attestation"] := {
	"max_age_seconds": class.attestation.max_age_seconds,
	"min_score": class.attestation.min_score,
	"kinds": class.attestation.kinds,
} if {
	covered
	exists
	identity_in_reach
	class.attestation.required == true
	not fresh
	number.at_most(other_risk, class.max_risk)
}

# A factor is worth asking for where the device is in order, or asked for as well.
default device_in_reach := false

device_in_reach if class.attestation.required == false

device_in_reach if {
	class.attestation.required == true
	not fresh
}

device_in_reach if {
	class.attestation.required == true
	trusted
	placed
}

requires["factor"] := {"level": class.step_up} if {
	covered
	exists
	identity_can_rise
	device_in_reach
	number.at_most(other_risk, class.max_risk)
}

# Nobody is asked to approve what would not be delivered anyway.
requires["approval"] := {"count": class.approval.count, "role": class.approval.role} if {
	covered
	exists
	identity_ok
	device_ok
	risk_ok
	not custody.approved
}

# Reasons say what is missing and never how much: limits and weights stay inside.
reasons contains "there is no such secret" if {
	covered
	not exists
}

reasons contains "the class of the secret is not known to the policy" if {
	covered
	exists
	not class
}

reasons contains "the identity is not verified strongly enough" if {
	covered
	class
	not identity_ok
}

reasons contains "a fresh attestation of the device is required" if {
	covered
	class.attestation.required == true
	not fresh
}

reasons contains "the device is not trusted enough" if {
	covered
	class.attestation.required == true
	fresh
	not trusted
}

reasons contains "the principal may not run on this device" if {
	covered
	class.attestation.required == true
	fresh
	not placed
}

reasons contains "the risk is too high for this secret" if {
	covered
	class
	not risk_ok
}

reasons contains "somebody else's approval is required" if {
	covered
	class
	not custody.approved
}
