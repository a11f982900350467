package secret

import (
	"errors"
	"fmt"
)

// ErrType classifies refused names of types.
var ErrType = errors.New("bad secret type")

// Type says what a secret is: bytes that its owner understands, or a key that the broker made and works with.
type Type string

// The types. A secret keeps its type over all its versions.
const (
	TypeOpaque     Type = "opaque"
	TypeECDSAP256  Type = "ecdsa-p256"  // ES256 of RFC 7518
	TypeEd25519    Type = "ed25519"     // RFC 8032
	TypeHMACSHA256 Type = "hmac-sha256" // RFC 2104
	TypeAES256GCM  Type = "aes-256-gcm" // NIST SP 800-38D
)

// ParseType returns the type s, or an error that wraps ErrType.
func ParseType(s string) (Type, error) {
	switch t := Type(s); t {
	case TypeOpaque, TypeECDSAP256, TypeEd25519, TypeHMACSHA256, TypeAES256GCM:
		return t, nil
	}
	return "", fmt.Errorf("%w %q: use opaque, ecdsa-p256, ed25519, hmac-sha256 or aes-256-gcm", ErrType, s[:min(len(s), 32)])
}

// ParseRecordedType is ParseType for what is stored, where opaque is no text at all.
func ParseRecordedType(s string) (Type, error) {
	switch t, err := ParseType(s); {
	case s == "":
		return TypeOpaque, nil
	case t == TypeOpaque:
		return "", fmt.Errorf("%w: opaque is recorded as no text", ErrType)
	default:
		return t, err
	}
}

// Recorded is the type as it is stored.
func (t Type) Recorded() string {
	if t == TypeOpaque {
		return ""
	}
	return string(t)
}

// IsKey reports whether the broker works with the secret instead of handing it out.
func (t Type) IsKey() bool { return t != TypeOpaque && t != "" }
