# Tests of the policy with data of their own, so that they hold whatever a site puts into data/.
package bulla.decision_test

import data.bulla
import rego.v1

classes := {
	"plain": {
		"sensitivity": 1,
		"levels": ["BASIC", "HIGH_ASSURANCE"],
		"max_risk": 50,
		"attestation": {"required": false},
		"obligations": {"time_bound": {"ttl_seconds": 60, "grade": "open"}},
	},
	"attested": {
		"sensitivity": 2,
		"levels": ["BASIC", "HIGH_ASSURANCE"],
		"max_risk": 30,
		"attestation": {
			"required": true,
			"max_age_seconds": 100,
			"min_score": 70,
			"kinds": ["tpm2"],
			"tiers": ["affirming"],
		},
		"obligations": {},
	},
}

strong := object_with(classes, {
	"plain": object_with(classes.plain, {"levels": ["ENHANCED", "HIGH_ASSURANCE"], "step_up": "ENHANCED"}),
	"attested": object_with(classes.attested, {"levels": ["ENHANCED", "HIGH_ASSURANCE"], "step_up": "ENHANCED"}),
})

judge_strong(request) := decision if {
	decision := bulla.decision with input as request
		with data.classes as strong
		with data.grants as grants
		with data.members as members
		with data.roles as roles
		with data.limits as limits
}

grants := {
	"spiffe://test/app": {"read": {"app/": true, "one/key": true, "off/": false}, "devices": ["dev-1"]},
	"spiffe://test/anywhere": {"read": {"*": true}, "devices": ["*"]},
}

members := {"spiffe://test/op": ["operator"], "spiffe://test/ghost": ["no-such-role"]}

roles := {"operator": ["secret.put", "secret.list", "deliver"]}

limits := {"administration": {"max_risk": 60, "levels": ["ENHANCED"], "step_up": "ENHANCED", "second_person": {}}}

low := {
	"identity": 5, "svid_age": 0, "attestation_age": 0, "attestation_trust": 0, "attestation_tier": 0, "zone": 5,
	"transit": 0, "request_rate": 0, "novelty": 0, "hour_of_week": 0, "denials": 0, "unconfirmed": 0,
}

secret(name, scopes, class) := {"kind": "secret", "secret": {
	"name": name, "scopes": scopes, "exists": true, "class": class,
	"version": 1, "exposure": "none", "new_class": "",
}}

attested := {
	"kind": "tpm2", "device_id": "dev-1", "tier": "affirming", "score": 90, "age_seconds": 10,
	"keys_bound": true, "recipient_in_hardware": true,
}

base := {
	"now": 1736157600000000,
	"action": "deliver",
	"principal": {"id": "spiffe://test/app", "level": "BASIC"},
	"resource": secret("app/key", ["app/key", "app/", "*"], "plain"),
	"risk": {"score": 10, "points": low},
}

high := object_with(base, {
	"resource": secret("app/key", ["app/key", "app/", "*"], "attested"),
	"attestation": attested,
})

admin := object_with(base, {
	"action": "secret.put",
	"principal": {"id": "spiffe://test/op", "level": "ENHANCED"},
	"resource": put(false, "", "plain"),
})

put(exists, class, new_class) := {"kind": "secret", "secret": {
	"name": "app/key", "scopes": ["app/key", "app/", "*"], "exists": exists, "class": class,
	"version": 1, "exposure": "none", "new_class": new_class,
}}

# object.union is not an allowed builtin, so tests carry their own.
object_with(a, b) := {k: v |
	some k in (object.keys(a) | object.keys(b))
	v := object.get(b, k, object.get(a, k, null))
}

judge(request) := decision if {
	decision := bulla.decision with input as request
		with data.classes as classes
		with data.grants as grants
		with data.members as members
		with data.roles as roles
		with data.limits as limits
}

silent(decision) if {
	decision == {
		"decision": "DENY",
		"reasons": ["no grant or role covers this request"],
		"obligations": {},
		"requires": {},
		"disclose": false,
	}
}

denied(decision, reason) if {
	decision.decision == "DENY"
	decision.reasons == {reason}
	decision.obligations == {}
	decision.requires == {}
	decision.disclose == true
}

test_permit_names_obligations if {
	judge(base) == {
		"decision": "PERMIT",
		"reasons": ["a grant covers the secret and every condition holds"],
		"obligations": {"time_bound": {"ttl_seconds": 60, "grade": "open"}},
		"requires": {},
		"disclose": true,
	}
}

test_empty_input_is_denied if silent(judge({}))

test_other_inputs_are_denied if {
	every request in [null, [], "", 1, true, {"action": "deliver"}, {"principal": {}}] {
		silent(judge(request))
	}
}

# The fail-open trap: each fact that is missing must lose the permit.
test_missing_facts_never_permit if {
	every key in ["action", "principal", "resource", "risk"] {
		judge({k: v | some k, v in base; k != key}).decision == "DENY"
	}
}

test_missing_facts_never_permit_high if {
	every key in ["action", "principal", "resource", "risk"] {
		judge({k: v | some k, v in high; k != key}).decision == "DENY"
	}
}

test_stranger_learns_nothing if {
	silent(judge(object_with(base, {"principal": {"id": "spiffe://test/stranger", "level": "HIGH_ASSURANCE"}})))
}

test_name_outside_the_grant if {
	silent(judge(object_with(base, {"resource": secret("apple/key", ["apple/key", "apple/", "*"], "plain")})))
}

test_scope_that_is_switched_off if {
	silent(judge(object_with(base, {"resource": secret("off/key", ["off/key", "off/", "*"], "plain")})))
}

test_exact_name if {
	judge(object_with(base, {"resource": secret("one/key", ["one/key", "one/", "*"], "plain")})).decision == "PERMIT"
}

test_all_scope if {
	judge(object_with(base, {
		"principal": {"id": "spiffe://test/anywhere", "level": "BASIC"},
		"resource": secret("x/y", ["x/y", "x/", "*"], "plain"),
	})).decision == "PERMIT"
}

test_secret_that_does_not_exist if {
	denied(
		judge(object_with(base, {"resource": {"kind": "secret", "secret": {
			"name": "app/none", "scopes": ["app/none", "app/", "*"], "exists": false, "class": "",
			"version": 0, "exposure": "none", "new_class": "",
		}}})),
		"there is no such secret",
	)
}

test_unknown_class if {
	denied(
		judge(object_with(base, {"resource": secret("app/key", ["app/"], "no-such-class")})),
		"the class of the secret is not known to the policy",
	)
}

test_weak_identity if {
	denied(
		judge(object_with(base, {"principal": {"id": "spiffe://test/app", "level": "NONE"}})),
		"the identity is not verified strongly enough",
	)
}

test_risk_limit_is_inclusive if {
	judge(object_with(base, {"risk": {"score": 50, "points": low}})).decision == "PERMIT"
	denied(judge(object_with(base, {"risk": {"score": 51, "points": low}})), "the risk is too high for this secret")
}

test_attested if judge(high).decision == "PERMIT"

test_step_up_without_attestation if {
	judge({k: v | some k, v in high; k != "attestation"}) == {
		"decision": "STEP_UP",
		"reasons": {"a fresh attestation of the device is required"},
		"obligations": {},
		"requires": {"attestation": {"max_age_seconds": 100, "min_score": 70, "kinds": ["tpm2"]}},
		"disclose": true,
	}
}

test_step_up_when_stale_unbound_or_another_kind if {
	every change in [
		{"age_seconds": 101},
		{"keys_bound": false},
		{"kind": "development"},
		{"age_seconds": null},
	] {
		judge(object_with(high, {"attestation": object_with(attested, change)})).decision == "STEP_UP"
	}
}

test_freshness_limit_is_inclusive if {
	judge(object_with(high, {"attestation": object_with(attested, {"age_seconds": 100})})).decision == "PERMIT"
}

test_no_step_up_that_could_not_help if {
	risky := object_with(low, {"denials": 25})
	request := object_with(high, {"risk": {"score": 90, "points": risky}})
	decision := judge({k: v | some k, v in request; k != "attestation"})
	decision.decision == "DENY"
	decision.requires == {}
}

test_step_up_to_a_factor if {
	judge_strong(base) == {
		"decision": "STEP_UP",
		"reasons": {"the identity is not verified strongly enough"},
		"obligations": {},
		"requires": {"factor": {"level": "ENHANCED"}},
		"disclose": true,
	}
	judge_strong(object_with(base, {"principal": {"id": "spiffe://test/app", "level": "ENHANCED"}})).decision == "PERMIT"
}

test_step_up_to_a_factor_and_an_attestation if {
	decision := judge_strong({k: v | some k, v in high; k != "attestation"})
	decision.decision == "STEP_UP"
	object.keys(decision.requires) == {"attestation", "factor"}
}

test_no_factor_that_could_not_help if {
	judge_strong(object_with(base, {"risk": {"score": 90, "points": object_with(low, {"denials": 60})}})).decision == "DENY"
	judge_strong(object_with(high, {"attestation": object_with(attested, {"tier": "warning"})})).decision == "DENY"
	judge_strong(object_with(high, {"attestation": object_with(attested, {"device_id": "dev-2"})})).decision == "DENY"
	judge_strong(high).requires == {"factor": {"level": "ENHANCED"}}
}

test_device_that_is_not_trusted if {
	every change in [{"tier": "warning"}, {"tier": "contraindicated"}, {"tier": "none"}, {"score": 69}] {
		denied(judge(object_with(high, {"attestation": object_with(attested, change)})), "the device is not trusted enough")
	}
}

test_device_of_another if {
	denied(
		judge(object_with(high, {"attestation": object_with(attested, {"device_id": "dev-2"})})),
		"the principal may not run on this device",
	)
}

test_any_device if {
	judge(object_with(high, {
		"principal": {"id": "spiffe://test/anywhere", "level": "BASIC"},
		"attestation": object_with(attested, {"device_id": "dev-2"}),
	})).decision == "PERMIT"
}

test_attested_but_risky if {
	denied(judge(object_with(high, {"risk": {"score": 31, "points": low}})), "the risk is too high for this secret")
}

test_administration if {
	judge(admin) == {
		"decision": "PERMIT",
		"reasons": ["a role covers the action and every condition holds"],
		"obligations": {},
		"requires": {},
		"disclose": true,
	}
}

test_role_never_delivers if {
	silent(judge(object_with(base, {"principal": {"id": "spiffe://test/op", "level": "ENHANCED"}})))
}

test_grant_never_administers if {
	silent(judge(object_with(admin, {"principal": {"id": "spiffe://test/anywhere", "level": "ENHANCED"}})))
}

test_action_outside_the_role if silent(judge(object_with(admin, {"action": "policy.push"})))

test_member_of_an_unknown_role if {
	silent(judge(object_with(admin, {"principal": {"id": "spiffe://test/ghost", "level": "ENHANCED"}})))
}

test_action_that_is_no_text if silent(judge(object_with(admin, {"action": ["secret.put"]})))

test_administration_steps_up if {
	judge(object_with(admin, {"principal": {"id": "spiffe://test/op", "level": "BASIC"}})) == {
		"decision": "STEP_UP",
		"reasons": {"the identity is not verified strongly enough"},
		"obligations": {},
		"requires": {"factor": {"level": "ENHANCED"}},
		"disclose": true,
	}
}

test_administration_at_risk if {
	judge(object_with(admin, {"risk": {"score": 60, "points": low}})).decision == "PERMIT"
	denied(judge(object_with(admin, {"risk": {"score": 61, "points": low}})), "the risk is too high for this action")
}

test_put_may_raise_and_not_lower if {
	judge(object_with(admin, {"resource": put(true, "plain", "attested")})).decision == "PERMIT"
	judge(object_with(admin, {"resource": put(true, "plain", "plain")})).decision == "PERMIT"
	every resource in [put(true, "attested", "plain"), put(true, "attested", "gone"), put(true, "gone", "plain"), put(false, "", "gone")] {
		denied(
			judge(object_with(admin, {"resource": resource})),
			"the class is unknown, or lower than the one the secret has",
		)
	}
}

test_list_needs_no_class if {
	judge(object_with(admin, {"action": "secret.list", "resource": {"kind": "secret"}})).decision == "PERMIT"
}

# Values of another type compare as larger or smaller than every number. They must not pass for one.
test_numbers_of_another_type_never_permit if {
	every score in [null, false, "0", [], {}] {
		judge(object_with(base, {"risk": {"score": score, "points": low}})).decision == "DENY"
	}
	every limit in [null, true, "70", [], {}] {
		changed := object_with(classes, {"plain": object_with(classes.plain, {"max_risk": limit})})
		decision := bulla.decision with input as base with data.classes as changed with data.grants as grants
		decision.decision == "DENY"
	}
	every limit in [null, false, "0", [], {}] {
		attestation := object_with(classes.attested.attestation, {"min_score": limit})
		changed := object_with(classes, {"attested": object_with(classes.attested, {"attestation": attestation})})
		decision := bulla.decision with input as high with data.classes as changed with data.grants as grants
		decision.decision == "DENY"
	}
}
