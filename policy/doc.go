// Package policy asks Rego whether a request may go ahead, and makes the answer repeatable.
//
// What is recorded are Signals: raw facts about one request, in one canonical encoding. The input of the
// policy is a function of signals and Revision, an activated bundle of Rego, data, risk model, zones and
// reference values, so that the same record can be judged again by the same revision (and must give the
// same bytes) or by a candidate.
//
// The contract, each line of which has a test:
//
//   - One rule, data.bulla.decision, gives the whole decision. Nothing here or in a caller finishes it.
//   - A decision that is undefined, has a wrong type, an unknown or missing field, a contradiction, an
//     error or no end is DENY. Only a well-formed PERMIT permits.
//   - A revision is loaded whole or refused whole, with every reason and its file and line: strict
//     compilation against the schema of the input, an allow-list of builtins, the bundle's own tests, its
//     canaries, and the invariants of the site, which are not part of the bundle.
//   - Evaluation is pure (no network, clock, chance or environment) and ends: at the time limit it is
//     cancelled, and an evaluation that can't be cancelled is left behind and its caller denied.
//
// The package does not collect signals, does not remember decisions, does not parse reference values
// (package attest does) and activates nothing by itself: the broker does, by an event in the ledger.
package policy
