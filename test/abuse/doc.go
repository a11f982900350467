// Package abuse holds the attacks that must fail, one test for each row of the list of abuses, named after it:
// TestAbuse_A03_… Each runs against a whole broker over real connections; what an attacker would send by hand is
// sent by hand. Beside its attack each test shows that the same call in good order succeeds, so that nothing is
// refused for the wrong reason.
//
// The package holds tests only.
package abuse
