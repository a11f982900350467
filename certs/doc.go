// Package certs is where Bulla's processes get their X.509-SVIDs, trust bundles and JWT-SVIDs from, and where
// the certificate of a peer is judged.
//
// What it does:
//
//   - [Open] makes a [Source] from the SPIFFE Workload API, or from PEM files (certificate, key, bundle), and keeps
//     it current: streamed updates in the first case, re-reading in the second. A Source satisfies go-spiffe's
//     x509svid.Source, x509bundle.Source and jwtbundle.Source.
//   - [ServerTLS] and [ClientTLS] make TLS 1.3 configurations from it: mutual authentication, no resumption, current
//     certificate and current bundle at every handshake. A server admits the members of the allowed trust domains; a
//     client admits one exact SPIFFE ID.
//   - [PeerVerifier] judges the certificate behind a connection that is already open, at every call: a handshake says
//     nothing about what was revoked since.
//   - [ParseID] is the one reading of a SPIFFE ID: what is not written in its only form is refused.
//
// What it does not do: it authorises nobody (being a member of an allowed trust domain opens a connection and nothing
// else), it issues nothing (package devauthority does, for development), it writes no file, and it never takes a trust
// domain because a bundle for it arrived: only the own one and those named in the configuration count.
//
// Verification is that of the X.509-SVID standard, made strict: exactly one URI SAN, whose bytes are the SPIFFE ID
// itself; a path; no CA flag, no signing of certificates or CRLs; digitalSignature present; a chain of at most eight
// certificates to an authority in the current bundle of the ID's own trust domain.
//
// References: RFC 5280, RFC 8446, and the SPIFFE standards SPIFFE-ID, X509-SVID, JWT-SVID and Workload API.
package certs

import "errors"

// The outcomes that a caller can tell apart. Every error of this package wraps exactly one of them, or is an error of
// the context that was given.
var (
	// ErrConfig: the configuration, or a file that it names, can't work as it stands. Trying again is useless.
	ErrConfig = errors.New("certs: configuration")
	// ErrUnavailable: the Workload API could not be reached in time, or gave nothing that can be used.
	ErrUnavailable = errors.New("certs: Workload API unavailable")
	// ErrNoIdentity: the Workload API answers, but has no identity for this process.
	ErrNoIdentity = errors.New("certs: no identity issued")
	// ErrClosed: the Source was closed.
	ErrClosed = errors.New("certs: source is closed")
	// ErrInvalidID: the text is not a SPIFFE ID, or not in its only form.
	ErrInvalidID = errors.New("certs: invalid SPIFFE ID")
	// ErrUntrusted: a certificate or token is not what an allowed trust domain issues today.
	ErrUntrusted = errors.New("certs: not trusted")
	// ErrUnexpectedID: the peer is genuine, but not the one that was asked for.
	ErrUnexpectedID = errors.New("certs: unexpected SPIFFE ID")
	// ErrNotYetValid: the validity of a certificate begins in the future of this machine's clock.
	ErrNotYetValid = errors.New("certs: not yet valid")
	// ErrExpired: the validity of a certificate or token has ended.
	ErrExpired = errors.New("certs: expired")
	// ErrNoJWT: the Source is made from files, which hold neither JWT-SVIDs nor JWT bundles.
	ErrNoJWT = errors.New("certs: JWT-SVIDs need a Workload API")
)
