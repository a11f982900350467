// Package devauthority is a SPIFFE authority for DEVELOPMENT. IT IS NOT FOR PRODUCTION.
//
// It keeps the private keys of a trust domain in a plain file, it gives an identity to whoever can open a socket, and it
// asks nobody what runs behind it. That is what makes it useful on a laptop and in tests, and unacceptable elsewhere: run
// SPIRE there. [New] therefore demands [Config.DevelopmentOnly], and logs a warning at every start.
//
// What it does: it serves the SPIFFE Workload API, the real one, on Unix sockets: X.509-SVIDs and JWT-SVIDs, bundles,
// streams that carry every rotation, federated bundles. One socket is one identity (mode 0600; other users are turned
// away by their credentials as well). Any client of the Workload API works against it unchanged. SVIDs are renewed at half
// of their lifetime ±10 %, and begin 10 s in the past. The authority's keys survive restarts.
//
// The trust domain's authority is a list of generations, each with a CA for X.509-SVIDs and an ES256 key for JWT-SVIDs
// under one name. [Authority.RotateAuthority] adds one: published at once, used for signing a little later, so that every
// verifier knows it first. Older ones stay in the bundle until [Authority.RevokeAuthority].
//
// It also keeps a key that vouches for software devices ([Authority.DeviceKey]), which has nothing to do with the CAs.
//
// What it does not do: attestation of workloads, registration, nested authorities, CRLs, WIT-SVIDs, federation by itself
// (give it bundles by [Authority.AddFederatedBundle]; they are not kept over a restart).
package devauthority

import "errors"

// The outcomes that a caller can tell apart.
var (
	// ErrNotDevelopment: Config.DevelopmentOnly was not set.
	ErrNotDevelopment = errors.New("devauthority: refused outside of development")
	// ErrConfig: the configuration, an identity, a socket path or a duration can't work.
	ErrConfig = errors.New("devauthority: configuration")
	// ErrState: the state directory is in use, can't be read or written, or holds something else.
	ErrState = errors.New("devauthority: state directory")
	// ErrUnknownAuthority: no generation has this name, or it must not go.
	ErrUnknownAuthority = errors.New("devauthority: authority")
	// ErrClosed: the Authority was closed.
	ErrClosed = errors.New("devauthority: closed")
)
