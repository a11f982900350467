# Tests of rounds, approvals and persons, with data of their own.
package bulla.custody_test

import data.bulla
import rego.v1

grants := {"spiffe://test/app": {"read": {"app/": true}, "devices": ["dev-1"]}}

attested := {
	"kind": "tpm2", "device_id": "dev-1", "tier": "affirming", "score": 90, "age_seconds": 10,
	"keys_bound": true, "recipient_in_hardware": true,
}

secret(scopes, class) := {"kind": "secret", "secret": {
	"name": "app/key", "scopes": scopes, "exists": true, "class": class,
	"version": 1, "exposure": "none", "new_class": "",
}}

base := {
	"now": 1736157600000000,
	"action": "deliver",
	"principal": {"id": "spiffe://test/app", "level": "BASIC"},
	"risk": {"score": 10, "points": {"identity": 5, "zone": 5}},
}

# object.union is not an allowed builtin, so tests carry their own.
object_with(a, b) := {k: v |
	some k in (object.keys(a) | object.keys(b))
	v := object.get(b, k, object.get(a, k, null))
}

silent(decision) if {
	decision.decision == "DENY"
	decision.disclose == false
}

denied(decision, reason) if {
	decision.decision == "DENY"
	decision.reasons == {reason}
	decision.disclose == true
}

classes := {
	"approved": {
		"levels": ["BASIC"], "max_risk": 50,
		"attestation": {"required": false},
		"approval": {"count": 2, "role": "approver"},
		"obligations": {"time_bound": {"ttl_seconds": 60, "grade": "open"}},
	},
	"both": {
		"levels": ["BASIC"], "max_risk": 50,
		"attestation": {
			"required": true, "max_age_seconds": 100, "min_score": 70,
			"kinds": ["tpm2"], "tiers": ["affirming"],
		},
		"approval": {"count": 1, "role": "approver"},
		"obligations": {},
	},
	"split": {
		"levels": ["BASIC"], "max_risk": 50,
		"attestation": {"required": false},
		"obligations": {
			"time_bound": {"ttl_seconds": 60, "grade": "open"},
			"split_knowledge": {"threshold": 2, "holders": ["spiffe://test/a", "spiffe://test/b"], "grade": "open"},
		},
	},
}

members := {
	"spiffe://test/a": ["approver"],
	"spiffe://test/b": ["approver"],
	"spiffe://test/c": ["approver"],
	"spiffe://test/a2": ["approver"],
	"spiffe://test/app2": ["approver"],
	"spiffe://test/op": ["operator"],
}

roles := {"approver": ["share.list", "share.show", "share.fetch", "share.approve", "share.reject"], "operator": ["secret.put"]}

# a and a2 are one person, and so are app and app2.
owners := {
	"spiffe://test/a": "alex", "spiffe://test/a2": "alex",
	"spiffe://test/app": "robin", "spiffe://test/app2": "robin",
}

judge(request) := decision if {
	decision := bulla.decision with input as request
		with data.classes as classes
		with data.grants as grants
		with data.members as members
		with data.roles as roles
		with data.owners as owners
		with data.limits as {"administration": {"max_risk": 60, "levels": ["BASIC"], "step_up": "ENHANCED", "second_person": {}}}
}

ask(class, approvals) := object_with(base, {
	"resource": secret(["app/key", "app/", "*"], class),
	"approvals": [{"principal": id, "age_seconds": 1} | some id in approvals],
})

steps_up(decision, requires) if {
	decision.decision == "STEP_UP"
	decision.requires == requires
	decision.disclose == true
}

wanted := {"approval": {"count": 2, "role": "approver"}}

test_approvals_of_two_persons if {
	judge(ask("approved", ["spiffe://test/a", "spiffe://test/b"])).decision == "PERMIT"
	judge(ask("approved", ["spiffe://test/a", "spiffe://test/b", "spiffe://test/c"])).decision == "PERMIT"
}

test_too_few_approvals if {
	every approvals in [
		[],
		["spiffe://test/a"],
		["spiffe://test/a", "spiffe://test/a"],
		["spiffe://test/a", "spiffe://test/a2"],
		["spiffe://test/a", "spiffe://test/op"],
		["spiffe://test/a", "spiffe://test/stranger"],
		["spiffe://test/a", "spiffe://test/app"],
		["spiffe://test/a", "spiffe://test/app2"],
	] {
		decision := judge(ask("approved", approvals))
		steps_up(decision, wanted)
		decision.reasons == {"somebody else's approval is required"}
	}
	steps_up(judge(object_with(base, {"resource": secret(["app/"], "approved")})), wanted)
}

# Whose tokens speak for whom counts as much as owners do: robin, who owns app, may use b as well; kim both b and c.
test_whose_token_speaks_for_whom if {
	tokens := {"https://idp.example": {
		"1": {"person": "robin", "principals": {"spiffe://test/b": true}},
		"2": {"person": "kim", "principals": {"spiffe://test/b": true, "spiffe://test/c": true, "spiffe://test/a": false}},
	}}
	some_are_one := {"https://idp.example": {"2": {"person": "kim", "principals": {"spiffe://test/b": true, "spiffe://test/c": true}}}}
	every case in [
		[tokens, ["spiffe://test/a", "spiffe://test/b"], "STEP_UP"],
		[tokens, ["spiffe://test/a", "spiffe://test/c"], "PERMIT"],
		[some_are_one, ["spiffe://test/b", "spiffe://test/c"], "STEP_UP"],
		[some_are_one, ["spiffe://test/a", "spiffe://test/b", "spiffe://test/c"], "PERMIT"],
		[{}, ["spiffe://test/b", "spiffe://test/c"], "PERMIT"],
	] {
		decision := judge(ask("approved", case[1])) with data.persons as case[0]
		decision.decision == case[2]
	}
	split := judge(ask("split", [])) with data.persons as some_are_one
	split.obligations.split_knowledge.persons == {"spiffe://test/a": "alex", "spiffe://test/app": "robin", "spiffe://test/b": "kim"}
}

# An entry that is wrong asks for what nobody can give.
test_approval_of_another_type_never_permits if {
	every approval in [null, false, true, "2", {}, {"count": 1}, {"role": "approver"}, {"count": "0", "role": "approver"}, {"count": null, "role": "approver"}] {
		changed := {"approved": object_with(classes.approved, {"approval": approval})}
		decision := bulla.decision with input as ask("approved", ["spiffe://test/a", "spiffe://test/b"])
			with data.classes as changed
			with data.grants as grants
			with data.members as members
		decision.decision != "PERMIT"
	}
}

# Nobody is asked for an approval before the device is in order.
test_attestation_comes_first if {
	every device in [{}, {"attestation": object_with(attested, {"age_seconds": 1000})}] {
		judge(object_with(ask("both", []), device)).requires.attestation
		not judge(object_with(ask("both", []), device)).requires.approval
	}
	bad := object_with(ask("both", []), {"attestation": object_with(attested, {"tier": "none"})})
	judge(bad).decision == "DENY"
	good := {"attestation": attested}
	steps_up(judge(object_with(ask("both", []), good)), {"approval": {"count": 1, "role": "approver"}})
	judge(object_with(ask("both", ["spiffe://test/a"]), good)).decision == "PERMIT"
}

test_split_names_persons if {
	judge(ask("split", [])).obligations == {
		"time_bound": {"ttl_seconds": 60, "grade": "open"},
		"split_knowledge": {
			"threshold": 2, "holders": ["spiffe://test/a", "spiffe://test/b"], "grade": "open",
			"persons": {"spiffe://test/a": "alex", "spiffe://test/app": "robin"},
		},
	}
}

round(kind, role, holders) := {"kind": "round", "round": {
	"id": "r", "kind": kind, "principal": "spiffe://test/app", "secret": "app/key", "version": 1,
	"role": role, "holders": holders,
}}

act(id, action, resource) := object_with(base, {
	"action": action, "principal": {"id": id, "level": "BASIC"}, "resource": resource,
})

split_round := round("split", "", ["spiffe://test/a", "spiffe://test/app2"])

approval_round := round("approval", "approver", [])

on_a_round := {"share.show", "share.fetch", "share.approve", "share.reject"}

test_those_whom_a_round_waits_for if {
	every action in on_a_round {
		judge(act("spiffe://test/a", action, split_round)).decision == "PERMIT"
		judge(act("spiffe://test/b", action, approval_round)).decision == "PERMIT"
	}
	judge(act("spiffe://test/b", "share.list", {"kind": "round"})).decision == "PERMIT"
}

test_others_get_no_round if {
	nothing := round("", "", [])
	every action in on_a_round {
		every pair in [
			["spiffe://test/b", split_round], ["spiffe://test/a2", split_round],
			["spiffe://test/app2", split_round], ["spiffe://test/app2", approval_round],
			["spiffe://test/a", nothing], ["spiffe://test/a", {"kind": "round"}],
			["spiffe://test/a", round("approval", "operator", [])],
		] {
			denied(judge(act(pair[0], action, pair[1])), "there is no such round that waits for this principal")
		}
		silent(judge(act("spiffe://test/op", action, approval_round)))
		silent(judge(act("spiffe://test/app", action, approval_round)))
	}
}
