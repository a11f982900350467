# The one decision. It has a default, every answer gives every field, and every condition is positive: what
# is undefined is not true, and what is not true does not permit. Do not add a rule that permits unless
# something is found wrong.
#
# The order only saves time: a permit is answered without looking for the reasons of a denial.
package bulla

import data.bulla.administration
import data.bulla.custody
import data.bulla.deliver
import rego.v1

default decision := {
	"decision": "DENY",
	"reasons": ["no grant or role covers this request"],
	"obligations": {},
	"requires": {},
	"disclose": false,
}

decision := {
	"decision": "PERMIT",
	"reasons": ["a grant covers the secret and every condition holds"],
	"obligations": custody.obligations,
	"requires": {},
	"disclose": true,
} if {
	deliver.permit
} else := {
	"decision": "PERMIT",
	"reasons": ["a role covers the action and every condition holds"],
	"obligations": {},
	"requires": {},
	"disclose": true,
} if {
	administration.permit
} else := {
	"decision": "STEP_UP",
	"reasons": reasons,
	"obligations": {},
	"requires": requires,
	"disclose": true,
} if {
	disclose
	count(requires) > 0
} else := {
	"decision": "DENY",
	"reasons": reasons,
	"obligations": {},
	"requires": {},
	"disclose": true,
} if {
	disclose
}

# Reasons and requirements are for callers whom a grant or a role covers. Everybody else gets the default,
# whatever the reason, so that names can't be guessed.
disclose if deliver.covered

disclose if administration.covered

# What a caller lacks and can still bring.
requires[name] := requirement if some name, requirement in deliver.requires

requires[name] := requirement if some name, requirement in administration.requires

reasons contains reason if some reason in deliver.reasons

reasons contains reason if some reason in administration.reasons
