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

// CheckRecipientKey reports whether public is a usable key of suite s. Its answer to a bad key wraps [ErrInvalid].
// It is for refusing a request early; [Seal] checks again.
func CheckRecipientKey(s Suite, public []byte) error {
	_, err := parseRecipientKey(s, public)
	return err
}

func parseRecipientKey(s Suite, public []byte) (hpke.PublicKey, error) {
	if s.IsZero() {
		return nil, fmt.Errorf("recipient key: %w: no suite", ErrInvalid)
	}
	if len(public) != s.p.publicLen {
		return nil, fmt.Errorf("recipient key: %w: %s wants %d bytes, not %d", ErrInvalid, s, s.p.publicLen, len(public))
	}
	key, err := s.p.kem.NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("recipient key: %w: not a key of %s", ErrInvalid, s)
	}
	return key, nil
}

// HardwareHalf returns the elliptic-curve half of a serialized recipient key: the uncompressed P-256 point, which
// attestation compares with the key that the device certified. An error for a suite without a P-256 half.
func HardwareHalf(s Suite, public []byte) (*ecdh.PublicKey, error) {
	if s.IsZero() || s.p.curve != ecdh.P256() || len(public) != s.p.publicLen {
		return nil, fmt.Errorf("hardware half: %w: need a key of HPKE-8-KE or HPKE-7-KE", ErrInvalid)
	}
	key, err := ecdh.P256().NewPublicKey(public[len(public)-pointLen:])
	if err != nil {
		return nil, fmt.Errorf("hardware half: %w: not a point on P-256", ErrInvalid)
	}
	return key, nil
}
