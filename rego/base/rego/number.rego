# Comparisons that only hold between numbers. Rego orders values of different types too: null and booleans
# are below every number, texts and lists above. So `input.risk.score <= "70"`, written by a slip in the
# data, would hold for every score.
package bulla.number

import rego.v1

at_most(value, limit) if {
	is_number(value)
	is_number(limit)
	value <= limit
}

at_least(value, limit) if {
	is_number(value)
	is_number(limit)
	value >= limit
}
