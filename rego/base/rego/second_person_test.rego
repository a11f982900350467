package bulla.second_person_test

import data.bulla
import rego.v1

limits := {"administration": {
	"max_risk": 60,
	"levels": ["BASIC"],
	"step_up": "ENHANCED",
	"second_person": {"policy.promote": "security"},
}}

members := {
	"spiffe://test/a": ["security"],
	"spiffe://test/a-phone": ["security"],
	"spiffe://test/b": ["security"],
	"spiffe://test/op": ["operator"],
}

roles := {"security": ["policy.push", "policy.promote"], "operator": ["policy.promote"]}

owners := {"spiffe://test/a": "ann", "spiffe://test/a-phone": "ann"}

asked(id, action, approvers) := {
	"now": 1736157600000000,
	"action": action,
	"principal": {"id": id, "level": "BASIC"},
	"resource": {"kind": "revision", "revision": {"digest": "00", "name": "next"}},
	"risk": {"score": 10},
	"approvals": [{"principal": approver, "age_seconds": 60} | some approver in approvers],
}

judge(question, rules) := decision if {
	decision := bulla.decision with input as question
		with data.limits as rules
		with data.members as members
		with data.roles as roles
		with data.owners as owners
}

test_one_person_is_asked_for_a_second if {
	judge(asked("spiffe://test/a", "policy.promote", []), limits) == {
		"decision": "STEP_UP",
		"reasons": {"a second person has to ask for the same"},
		"obligations": {},
		"requires": {"approval": {"count": 1, "role": "security"}},
		"disclose": true,
	}
}

test_another_person_will_do if {
	judge(asked("spiffe://test/b", "policy.promote", ["spiffe://test/a"]), limits).decision == "PERMIT"
	judge(asked("spiffe://test/op", "policy.promote", ["spiffe://test/a"]), limits).decision == "PERMIT"
}

test_oneself_and_others_without_the_role_will_not if {
	every approver in ["spiffe://test/a", "spiffe://test/a-phone", "spiffe://test/op", "spiffe://test/nobody", ""] {
		judge(asked("spiffe://test/a", "policy.promote", [approver]), limits).decision == "STEP_UP"
	}
}

# A token of ann's speaks for b and for c, and one of another issuer that is hers for d.
speakers := {
	"https://idp": {
		"1": {"person": "ann", "principals": {"spiffe://test/b": true, "spiffe://test/c": true, "spiffe://test/e": false}},
		"2": {"person": "bo", "principals": {"spiffe://test/b": true, "spiffe://test/e": true}},
	},
	"https://other": {"x": {"person": "ann", "principals": {"spiffe://test/d": true}}},
}

ids := {
	"a": "spiffe://test/a", "b": "spiffe://test/b", "c": "spiffe://test/c",
	"d": "spiffe://test/d", "e": "spiffe://test/e",
}

everybody := {id: ["security"] | some id in ids}

test_two_identities_that_one_token_speaks_for_are_not_two if {
	every pair in [["b", "c"], ["c", "b"], ["b", "d"], ["c", "d"], ["a", "b"], ["d", "a"], ["b", "e"]] {
		judge_all(pair) == "STEP_UP"
	}
	every pair in [["a", "e"], ["c", "e"], ["e", "d"]] {
		judge_all(pair) == "PERMIT"
	}
}

judge_all(pair) := decision if {
	question := asked(ids[pair[0]], "policy.promote", [ids[pair[1]]])
	decision := bulla.decision.decision with input as question
		with data.limits as limits
		with data.members as everybody
		with data.roles as roles
		with data.owners as owners
		with data.persons as speakers
}

test_what_is_not_named_needs_nobody if {
	judge(asked("spiffe://test/a", "policy.push", []), limits).decision == "PERMIT"
}

test_an_entry_of_another_type_permits_nothing if {
	every value in [false, null, 0, "", [], {}] {
		rules := {"administration": object_with(limits.administration, {"second_person": {"policy.promote": value}})}
		judge(asked("spiffe://test/a", "policy.promote", ["spiffe://test/b"]), rules).decision != "PERMIT"
	}
}

test_without_the_table_nothing_is_permitted if {
	every value in [null, [], "", 0, false] {
		rules := {"administration": object_with(limits.administration, {"second_person": value})}
		judge(asked("spiffe://test/a", "policy.push", ["spiffe://test/b"]), rules).decision == "DENY"
	}
	judge(asked("spiffe://test/a", "policy.push", []), {"administration": {
		"max_risk": 60,
		"levels": ["BASIC"],
	}}).decision == "DENY"
}

object_with(base, changes) := {k: v |
	some k in (object.keys(base) | object.keys(changes))
	v := object.get(changes, k, object.get(base, k, null))
}
