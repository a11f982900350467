package arch_test

// row is one package of the module: what it may import from the module, and why.
type row struct {
	path string
	// imports maps a package of the module to the reason why this one may know it.
	imports map[string]string
}

// everything stands for all packages above, in the rows of what wires them or tests them together.
const everything = "*"

// picture is the import picture of DESIGN section 4, bottom first: a package may import only what stands above it
// here, so that no cycle of ideas can creep in where the compiler sees no cycle of packages. A package that is
// not listed fails the test, and so does a reason that is no longer needed.
var picture = []row{
	// Ground: no words of the product.
	{"internal/durable", nil},
	{"internal/strictyaml", nil},
	{"internal/harden", nil},
	{"internal/outward", nil},
	{"internal/canonical", nil},

	// Vocabulary: values and what they mean, no I/O.
	{"api/bulla/v1", nil},
	{"secret", nil},
	{"envelope/proof", nil},
	{"secret/keys", map[string]string{
		"envelope/proof": "ES256 with one signature for each message, as everywhere in the product",
		"secret":         "the types of keys, and the redacting bytes that they lie in",
	}},
	{"ledger/event", map[string]string{
		"internal/canonical": "an event has one encoding",
	}},
	{"session", map[string]string{
		"ledger/event": "a session is what its events make of it: Apply(state, event)",
	}},

	{"round", map[string]string{
		"ledger/event": "a round is what its events make of it, as a session is",
	}},

	// What both sides of the wire speak.
	{"envelope", map[string]string{
		"envelope/proof": "the statements signed beside the envelope: bindings, requests, receipts",
		"secret":         "the name inside the context and the redacting bytes that opening gives",
		"secret/keys":    "the description of a key, which is all that an envelope of grade proxied may hold",
	}},
	{"envelope/split", map[string]string{
		"envelope":       "digests, and the key that a share is sealed to again",
		"envelope/proof": "what is signed: manifests and approvals",
		"secret":         "the name in the manifest and the redacting bytes of shares",
	}},
	{"attest", nil},
	{"attest/dev", map[string]string{
		"attest": "it is one kind of evidence behind the Verifier",
	}},
	{"attest/tpm/evidence", map[string]string{
		"attest": "the nonce and binding that the evidence is over",
	}},
	{"attest/tpm/device", map[string]string{
		"attest":              "the challenge it answers",
		"attest/tpm/evidence": "the form of what it sends",
	}},
	{"attest/tpm", map[string]string{
		"attest":              "it is one kind of evidence behind the Verifier",
		"attest/tpm/evidence": "the form of what it checks",
	}},
	{"attest/chain", nil},
	{"attest/tsm", map[string]string{
		"attest": "the challenge it answers, and the frame of what it sends",
	}},
	{"attest/nitro", map[string]string{
		"attest":       "it is one kind of evidence behind the Verifier",
		"attest/chain": "the certificates up to a configured root",
	}},
	{"attest/sevsnp", map[string]string{
		"attest":       "it is one kind of evidence behind the Verifier",
		"attest/chain": "the certificates up to a configured root",
		"attest/tsm":   "the form of what it checks",
	}},
	{"attest/tdx", map[string]string{
		"attest":       "it is one kind of evidence behind the Verifier",
		"attest/chain": "the certificates up to a configured root",
		"attest/tsm":   "the size of what it checks",
	}},
	{"attest/tpm/swtpm", map[string]string{
		"attest/tpm/device": "the open device that it hands out",
	}},
	{"certs", nil},
	{"certs/devauthority", map[string]string{
		"certs":            "the identities it issues",
		"internal/durable": "its keys survive a restart",
	}},

	// Tokens and events of others, verified and read.
	{"token", nil},
	{"caep", map[string]string{
		"token": "it reads the claims of a verified token",
	}},

	// The broker's own: scoring, deciding, keeping.
	{"risk", nil},
	{"rego", nil},
	{"place", nil},
	{"policy", map[string]string{
		"internal/canonical": "signals and decisions have one encoding",
		"rego":               "every bundle is checked against the schema that ships with the policy",
		"risk":               "the model is data of the revision, the score part of the input",
	}},
	{"policy/diff", nil},
	{"policy/remote", map[string]string{
		"policy": "what it fetches is a bundle",
	}},
	{"policy/replay", map[string]string{
		"internal/canonical": "decisions are compared, and reports made, in their one encoding",
		"policy":             "what judges, and what was judged",
	}},
	{"keyring", map[string]string{
		"internal/durable": "the keyset and the local key-encryption key are files",
	}},
	{"keyring/epoch", nil},
	{"keyring/awskms", map[string]string{
		"keyring": "it is one key-encryption key among others",
	}},
	{"ledger", map[string]string{
		"keyring":      "event bodies and secret versions are stored encrypted",
		"ledger/event": "what it commits",
		"round":        "states of the projection",
		"secret":       "names and versions of the projection",
		"session":      "states of the projection",
	}},
	{"ledger/sqlite", map[string]string{
		"internal/durable": "it opens its files in folders that were made durably",
		"ledger":           "the Store that it implements",
		"ledger/event":     "digests and ids in its rows",
		"session":          "states in its rows",
	}},
	{"audit/tiles", nil},
	{"audit/proofs", map[string]string{
		"ledger/event": "the commitments that leaves are made of",
	}},
	{"audit", map[string]string{
		"audit/proofs":     "checkpoints and proofs over what it integrates",
		"audit/tiles":      "the form in which the tree is kept",
		"internal/durable": "exports and tiles are written whole or not at all",
		"ledger/event":     "the entries that it integrates; it takes them from a small source, not from the ledger",
		"session":          "rebuild folds the events into sessions as everybody does",
	}},
	{"audit/sessionproof", map[string]string{
		"audit":          "records, faults with their places, and what a leaf's reply opens to",
		"audit/proofs":   "checkpoints, cosignatures and proofs of inclusion",
		"certs":          "recorded chains are judged as live ones are, at the time of their events",
		"envelope":       "receipts",
		"envelope/proof": "bindings and signed requests",
		"ledger/event":   "what the log holds",
		"session":        "a session is what its events make of it",
	}},
	{"audit/witness", map[string]string{
		"audit":            "the log whose checkpoints are cosigned",
		"audit/proofs":     "checkpoints and cosignatures",
		"internal/durable": "the witnessed checkpoint is a file",
		"internal/outward": "how others are asked",
	}},
	{"audit/publish", map[string]string{
		"internal/durable": "a published file is replaced whole",
		"internal/outward": "how others are asked",
	}},
	{"audit/tileserver", map[string]string{
		"audit":       "the log that it serves",
		"audit/tiles": "the paths of what it serves",
	}},

	{"audit/timeline", map[string]string{
		"ledger/event": "the events that it tells",
		"policy":       "what decisions and signals say",
	}},
	{"audit/decisions", map[string]string{
		"ledger/event":  "the events that it finds decisions in",
		"policy":        "effects and signals",
		"policy/replay": "what it makes of them",
	}},

	// Events on their way to where they are watched.
	{"audit/ocsf", map[string]string{
		"ledger/event": "the events that it maps",
	}},
	{"audit/sink", map[string]string{
		"audit/ocsf":       "the lines that it brings away",
		"internal/durable": "how far it came is a file",
		"ledger/event":     "the entries that it takes from a small source, not from the ledger",
	}},
	{"audit/sink/cloudwatch", map[string]string{
		"audit/sink": "it is one sink among others",
	}},

	// The sides themselves.
	{"broker/proxy", nil},
	{"broker", map[string]string{
		"api/bulla/v1":     "the services it implements",
		"attest":           "appraisal is a step of the release path",
		"audit":            "the operator side exports, tails and rebuilds",
		"audit/proofs":     "replies carry the checkpoint and proofs that the client checks",
		"audit/timeline":   "which events are part of a session's story",
		"broker/proxy":     "who announced a peer's address",
		"caep":             "external signals",
		"certs":            "who calls",
		"envelope":         "sealing and signing are steps of the release path",
		"envelope/proof":   "the proofs on requests and receipts",
		"envelope/split":   "a secret is split among its holders before it is sealed",
		"keyring":          "secret versions are opened for the one delivery",
		"keyring/epoch":    "the shares of gated sessions",
		"ledger":           "the choke point: nothing leaves unless it has committed",
		"ledger/event":     "what each step records",
		"place":            "where a peer's address is",
		"policy":           "the decision",
		"policy/replay":    "the what-if report that a promotion brings is one, and about this promotion",
		"risk":             "the score that the decision sees",
		"round":            "states of what waits for others",
		"secret":           "names and values",
		"secret/keys":      "what it does with a key at grade proxied",
		"session":          "states of what it delivered",
		"token":            "further factors, and the tokens that signals come in",
		"internal/durable": "what the retention exported is durable before it is erased",
	}},
	{"client", map[string]string{
		"api/bulla/v1":      "the services it calls",
		"attest":            "challenges it answers",
		"attest/dev":        "the software device of a development set-up",
		"attest/tpm/device": "the TPM of this machine",
		"attest/tsm":        "the reports of this machine, where it is a confidential one",
		"audit/proofs":      "it keeps checkpoints and checks that its own deliveries are in the log",
		"certs":             "its identity, and the broker's that it pins",
		"envelope":          "it opens what it is given",
		"envelope/proof":    "it signs requests and receipts",
		"envelope/split":    "it combines shares, and gives them as a custodian",
		"ledger/event":      "the leaf that its delivery must have",
		"secret":            "names and values",
		"secret/keys":       "which operations there are, and the public keys that it checks results with",
		"session":           "states of what it holds",
	}},

	// Wiring: what makes a running program of the sides.
	{"broker/config", map[string]string{
		"audit/proofs":        "what may be the name of a log",
		"broker/proxy":        "what may be the range of a proxy",
		"caep":                "which events and subjects there are",
		"internal/outward":    "which addresses may be asked",
		"certs":               "what is a SPIFFE ID, and a trust domain",
		"internal/strictyaml": "it is one strict file",
		"policy/remote":       "what may be an address of bundles",
		"token":               "what may be an address of keys, and an algorithm",
	}},
	{"broker/server", map[string]string{everything: "it opens the parts of a broker and joins them"}},
	{"broker/devserver", map[string]string{everything: "it runs a broker, an authority and a device in one process"}},
	{"cmd/bulla/internal/show", nil},
	{"cmd/bulla/internal/story", map[string]string{everything: "the demo goes through the whole system"}},
	{"cmd/bulla", map[string]string{everything: "each command is wiring over one of the sides"}},

	// Shared by tests. Nothing but tests and other packages of this kind may import them (see the test).
	{"test/xtest", nil},
	{"certs/xtest", nil},
	{"test/awsfake", nil},
	{"keyring/xtest", map[string]string{
		"test/awsfake": "the wire of AWS, with a KMS behind it",
	}},
	{"audit/sink/cloudwatch/xtest", map[string]string{
		"test/awsfake": "the wire of AWS, with CloudWatch Logs behind it",
	}},
	{"place/xtest", nil},
	{"token/xtest", nil},
	{"audit/witness/xtest", nil},
	{"attest/xtest", map[string]string{
		"attest":              "it makes and forges evidence",
		"attest/tpm":          "it makes and forges evidence",
		"attest/tpm/device":   "it makes and forges evidence",
		"attest/tpm/evidence": "it makes and forges evidence",
		"attest/tpm/swtpm":    "a real TPM for it",
		"attest/tsm":          "it makes and forges evidence",
		"test/xtest":          "it skips without swtpm",
	}},
	{"ledger/storetest", map[string]string{
		"keyring":      "a ledger needs keys",
		"ledger":       "the contract that every store is held to",
		"ledger/event": "what is committed",
		"session":      "states in the rows",
	}},
	{"test/rig", map[string]string{everything: "it runs the whole broker inside a test"}},
	{"test/bench", map[string]string{everything: "it measures the whole beside its parts"}},
	{"test/abuse", nil},
	{"test/arch", nil},
	{"test/compose", nil},
	{"test/e2e", nil},
}

// ban says that a package must not reach another one, through however many imports.
type ban struct {
	from   string // package of the module
	reach  string // import path or the start of one, up to a slash
	reason string
}

// clientSide are the packages that end up inside a workload's process.
var clientSide = []string{
	"api/bulla/v1", "secret", "secret/keys", "envelope/proof", "ledger/event", "session", "envelope", "envelope/split",
	"attest", "attest/dev", "attest/tpm/evidence", "attest/tpm/device", "attest/tsm", "certs",
	"client",
}

// bans lists what the picture alone does not say: third parties, and the standard library where a package is
// promised to be pure.
func bans() []ban {
	var all []ban
	for _, from := range clientSide {
		for _, reach := range []string{
			"github.com/open-policy-agent/opa", "modernc.org/sqlite", "github.com/aws/aws-sdk-go-v2",
			"github.com/tink-crypto/tink-go/v2", "github.com/google/go-attestation",
			"github.com/google/go-sev-guest", "github.com/google/go-tdx-guest", "github.com/fxamacker/cbor/v2",
		} {
			all = append(all, ban{from, reach, "a workload links the SDK: it must stay light, and what decides and stores has no place in it"})
		}
		// ledger/event is not here: it is the vocabulary that session is written in and that receipts and
		// inclusion proofs are checked with. It knows no store.
		for _, reach := range []string{"ledger", "ledger/sqlite", "audit", "audit/tiles", "policy", "risk", "keyring", "broker"} {
			all = append(all, ban{from, module + "/" + reach, "the client must not depend on the broker's side"})
		}
	}
	for _, from := range []string{"secret", "secret/keys", "session", "round", "risk", "ledger/event", "envelope/proof", "envelope/split"} {
		// Not "net": crypto/x509 names its address types.
		for _, reach := range []string{"net/http", "os/exec", "database/sql", "google.golang.org/grpc"} {
			all = append(all, ban{from, reach, "it is promised to be pure: values in, values out"})
		}
	}
	return append(all,
		ban{"attest", "github.com/google/go-tpm", "the words of attestation must not depend on one kind of hardware"},
		ban{"ledger", module + "/audit", "the log is built from the ledger, never the other way round"},
		ban{"ledger", "modernc.org/sqlite", "group commit stands above the stores"},
		ban{"keyring", "github.com/aws/aws-sdk-go-v2", "who keeps the key in a file must not link a cloud"},
		ban{"audit/ocsf", "net/http", "it is promised to be pure: values in, values out"},
		ban{"audit/sink", "github.com/aws/aws-sdk-go-v2", "who exports to a file must not link a cloud"},
		ban{"broker", "modernc.org/sqlite", "the store is chosen where the program is wired"},
		ban{"broker", "github.com/aws/aws-sdk-go-v2", "the key-encryption key is chosen where the program is wired"},
		ban{"broker", module + "/client", "the two sides meet on the wire only"},
	)
}
