package envelope

import (
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/mlkem"
	"fmt"
)

// Recipient is the private key that one client has envelopes sealed to. It is fresh for each delivery (forward
// secrecy), except for a half that lives in hardware. Safe for concurrent use if its key exchanger is.
type Recipient struct {
	suite  Suite
	key    hpke.PrivateKey
	public []byte
}

// GenerateRecipient makes a recipient key in memory.
func GenerateRecipient(s Suite) (*Recipient, error) {
	if s.IsZero() {
		return nil, fmt.Errorf("generate recipient key: %w: no suite", ErrInvalid)
	}
	key, err := s.p.kem.GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("generate recipient key for %s: %w", s, err)
	}
	return newRecipient(s, key), nil
}

// NewHardwareRecipient makes a recipient key whose elliptic-curve half is held elsewhere, such as a P-256 key in a
// TPM: the envelope then opens on that device only. The ML-KEM half of a hybrid suite is fresh and in memory.
func NewHardwareRecipient(s Suite, half ecdh.KeyExchanger) (*Recipient, error) {
	if s.IsZero() || half == nil || half.PublicKey() == nil {
		return nil, fmt.Errorf("make hardware recipient key: %w: no suite or no key", ErrInvalid)
	}
	if half.Curve() != s.p.curve || half.PublicKey().Curve() != s.p.curve {
		return nil, fmt.Errorf("make hardware recipient key: %w: %s wants a %v key, not %v", ErrInvalid, s, s.p.curve, half.Curve())
	}
	if !s.PostQuantum() {
		key, err := hpke.NewDHKEMPrivateKey(half)
		if err != nil {
			return nil, fmt.Errorf("make hardware recipient key for %s: %w", s, err)
		}
		return newRecipient(s, key), nil
	}
	pq, err := mlkem.GenerateKey768()
	if err != nil {
		return nil, fmt.Errorf("make hardware recipient key for %s: %w", s, err)
	}
	key, err := hpke.NewHybridPrivateKey(pq, half)
	if err != nil {
		return nil, fmt.Errorf("make hardware recipient key for %s: %w", s, err)
	}
	return newRecipient(s, key), nil
}

func newRecipient(s Suite, key hpke.PrivateKey) *Recipient {
	return &Recipient{suite: s, key: key, public: key.PublicKey().Bytes()}
}

// Suite returns the suite that the key is for.
func (r *Recipient) Suite() Suite { return r.suite }

// PublicKey returns the serialized public key, to be sent together with the suite. Hybrid: the ML-KEM
// encapsulation key, then the elliptic-curve key (draft-ietf-hpke-pq).
func (r *Recipient) PublicKey() []byte { return append([]byte(nil), r.public...) }

// RecipientKey is the public half of a [Recipient], as the sealing side has it. The zero value is invalid.
type RecipientKey struct {
	suite Suite
	key   hpke.PublicKey
	bytes []byte
}

// ParseRecipientKey reads what [Recipient.PublicKey] returned. Its answer to a bad key wraps [ErrInvalid].
func ParseRecipientKey(s Suite, public []byte) (RecipientKey, error) {
	if s.IsZero() {
		return RecipientKey{}, fmt.Errorf("recipient key: %w: no suite", ErrInvalid)
	}
	if len(public) != s.p.publicLen {
		return RecipientKey{}, fmt.Errorf("recipient key: %w: %s wants %d bytes, not %d", ErrInvalid, s, s.p.publicLen, len(public))
	}
	key, err := s.p.kem.NewPublicKey(public)
	if err != nil {
		return RecipientKey{}, fmt.Errorf("recipient key: %w: not a key of %s", ErrInvalid, s)
	}
	return RecipientKey{suite: s, key: key, bytes: append([]byte(nil), public...)}, nil
}

// Suite returns the suite that the key is for.
func (k RecipientKey) Suite() Suite { return k.suite }

// Digest returns the SHA-256 of the serialized key.
func (k RecipientKey) Digest() Digest { return DigestOf(k.bytes) }

// HardwareHalf returns the elliptic-curve half of the key: the uncompressed P-256 point, which attestation
// compares with the key that the device certified. An error for a suite without a P-256 half.
func (k RecipientKey) HardwareHalf() (*ecdh.PublicKey, error) {
	if k.suite.IsZero() || k.suite.p.curve != ecdh.P256() {
		return nil, fmt.Errorf("hardware half: %w: need a key of HPKE-8-KE or HPKE-7-KE", ErrInvalid)
	}
	return ecdh.P256().NewPublicKey(k.bytes[len(k.bytes)-pointLen:])
}
