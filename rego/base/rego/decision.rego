# The one decision. It has a default, every answer gives every field, and every condition is positive: what
# is undefined is not true, and what is not true does not permit. Do not add a rule that permits unless
# something is found wrong.
#
# Both areas answer only callers whom a grant or a role covers. Everybody else gets the default, whatever the
# reason, so that names can't be guessed.
package bulla

import data.bulla.administration
import data.bulla.deliver
import rego.v1

default decision := {
	"decision": "DENY",
	"reasons": ["no grant or role covers this request"],
	"obligations": {},
	"requires": {},
	"disclose": false,
}

decision := deliver.answer if input.action == "deliver"

decision := administration.answer if input.action != "deliver"
