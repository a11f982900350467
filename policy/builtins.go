package policy

import (
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
)

// AllowedBuiltins returns the names of the builtins that a policy may call, sorted. It is an allow-list: a
// builtin that a new version of OPA brings is not on it. A builtin is here only if its answer depends on
// its arguments alone (no clock, time zone, network, chance, environment or certificate pool), if it takes
// time linear in its arguments, and if its answer is not larger than its arguments. The last rule is why
// concat, sprintf, replace, array.concat, mul and all encoders are missing: twenty lines that double a
// text fill the memory between two checks of the time limit; object.subset is missing for its time. Reasons are constant texts anyway, since
// thresholds must not leave.
func AllowedBuiltins() []string {
	return []string{
		"abs",
		"all",
		"and",
		"any",
		"array.reverse",
		"array.slice",
		"assign",
		"bits.and",
		"bits.or",
		"bits.xor",
		"contains",
		"count",
		"div",
		"endswith",
		"eq",
		"equal",
		"gt",
		"gte",
		"indexof",
		"internal.member_2",
		"internal.member_3",
		"internal.test_case",
		"intersection",
		"is_array",
		"is_boolean",
		"is_null",
		"is_number",
		"is_object",
		"is_set",
		"is_string",
		"lower",
		"lt",
		"lte",
		"max",
		"min",
		"minus",
		"net.cidr_contains",
		"net.cidr_intersects",
		"net.cidr_is_valid",
		"neq",
		"object.get",
		"object.keys",
		"or",
		"plus",
		"regex.match",
		"rem",
		"semver.compare",
		"semver.is_valid",
		"set_diff",
		"sort",
		"split",
		"startswith",
		"strings.any_prefix_match",
		"strings.any_suffix_match",
		"substring",
		"sum",
		"trim",
		"trim_left",
		"trim_prefix",
		"trim_right",
		"trim_space",
		"trim_suffix",
		"type_name",
		"union",
		"upper",
	}
}

// capabilities is what the compiler knows: the allow-list, Rego v1, and no network, not even for schemas.
func capabilities() *ast.Capabilities {
	caps := ast.CapabilitiesForThisVersion(ast.CapabilitiesRegoVersion(ast.RegoV1))
	allowed := AllowedBuiltins()
	caps.Builtins = slices.DeleteFunc(slices.Clone(caps.Builtins), func(b *ast.Builtin) bool {
		return !slices.Contains(allowed, b.Name)
	})
	caps.Features = slices.DeleteFunc(slices.Clone(caps.Features), func(f string) bool {
		return f == ast.FeatureTemplateStrings || f == ast.FeatureRegoV2 || f == ast.FeatureRegoV2Import
	})
	caps.AllowNet = []string{}
	return caps
}
