// Package proof holds what an instance key signs, and how it is tied to an identity.
//
// An instance is one client process. SVIDs rotate in minutes and replicas share a SPIFFE ID, so each process
// makes a P-256 instance key (in a TPM where there is one). A [Binding], signed once per SVID with the SVID's own
// private key, says which principal the instance key speaks for. After that the instance key signs requests
// ([Request]) and, in package envelope, receipts.
//
// What is signed has one form, made by [Statement]: a label of purpose and version, a NUL byte, then each field
// with its length (32 bits, big endian) before it. Two statements of different purpose or with differently cut
// fields never have the same bytes.
//
// # Why an SVID key may sign a binding although it also signs TLS handshakes
//
// The TLS 1.3 CertificateVerify input starts with 64 bytes 0x20 (RFC 8446, 4.4.3), a JWS signing input starts with
// "ey", a certificate or certificate request with 0x30. A binding starts with the "b" of its label. So no binding
// can be taken for one of those, nor the other way round. This does not hold for TLS 1.2, whose signed
// ServerKeyExchange starts with bytes the peer picks: an SVID key that signs bindings must not serve TLS 1.2.
//
// # What it does not do
//
// It does not verify the SVID's chain, does not keep nonces and does not know which of them are spent: callers do.
// It is no proof of possession of the instance key by itself: a [Binding] can name anybody's key, and gains nothing
// by it, since each request is signed by the instance key over the TLS exporter value of the very connection.
package proof

import "encoding/binary"

// Statement returns the bytes that are signed for a purpose: label, NUL, and each field after its length.
// The label is a constant such as "bulla-request/v1" and must hold no NUL byte.
func Statement(label string, fields ...[]byte) []byte {
	n := len(label) + 1
	for _, f := range fields {
		n += 4 + len(f)
	}
	b := make([]byte, 0, n)
	b = append(b, label...)
	b = append(b, 0)
	for _, f := range fields {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	return b
}
