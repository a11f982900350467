package envelope

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/json"
	"fmt"

	"github.com/go-jose/go-jose/v4"

	"github.com/bulla-project/bulla/envelope/proof"
)

// Limits of a key set.
const (
	MaxKeySetKeys = 64
	MaxKeySet     = 64 << 10 // bytes
)

// Key is a public envelope-signing key under its id.
type Key struct {
	ID     string
	Public *ecdsa.PublicKey
}

// KeySet is the published set of signing keys: those in force and those in their grace time. It never changes.
type KeySet struct {
	keys []Key
}

// NewKeySet makes a set of at most 64 keys with distinct ids, in the given order.
func NewKeySet(keys ...Key) (*KeySet, error) {
	if len(keys) > MaxKeySetKeys {
		return nil, fmt.Errorf("key set: %w: %d keys, at most %d", ErrInvalid, len(keys), MaxKeySetKeys)
	}
	seen := make(map[string]bool, len(keys))
	for _, k := range keys {
		if !validKID(k.ID) || seen[k.ID] {
			return nil, fmt.Errorf("key set: %w: key id %q is malformed or doubled", ErrInvalid, clip([]byte(k.ID)))
		}
		if proof.Thumbprint(k.Public) == "" {
			return nil, fmt.Errorf("key set: %w: key %s is not P-256", ErrInvalid, k.ID)
		}
		seen[k.ID] = true
	}
	return &KeySet{append([]Key(nil), keys...)}, nil
}

// Lookup returns the key of an id, or nil. It is a [KeyLookup].
func (s *KeySet) Lookup(kid string) *ecdsa.PublicKey {
	for _, k := range s.keys {
		if k.ID == kid {
			return k.Public
		}
	}
	return nil
}

// Keys returns the keys in their order.
func (s *KeySet) Keys() []Key { return append([]Key(nil), s.keys...) }

// MarshalJSON returns the set as a JWK Set (RFC 7517), each key with use "sig" and alg "ES256".
func (s *KeySet) MarshalJSON() ([]byte, error) {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, k := range s.keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.Public, KeyID: k.ID, Algorithm: string(jose.ES256), Use: "sig"})
	}
	b, err := json.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("encode key set: %w", err)
	}
	return b, nil
}

// ParseKeySet reads a JWK Set in the one form that [KeySet.MarshalJSON] writes. A private key, another algorithm or
// use, an unknown or doubled member, and white space are [ErrMalformed].
func ParseKeySet(b []byte) (*KeySet, error) {
	if len(b) > MaxKeySet {
		return nil, fmt.Errorf("key set of %d bytes: %w", len(b), ErrMalformed)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, fmt.Errorf("key set: %w: not a JWK Set", ErrMalformed)
	}
	keys := make([]Key, 0, len(set.Keys))
	for _, k := range set.Keys {
		pub, ok := k.Key.(*ecdsa.PublicKey)
		if !ok || k.Use != "sig" || k.Algorithm != string(jose.ES256) {
			return nil, fmt.Errorf("key set: %w: each key must be a public ES256 key with use sig", ErrMalformed)
		}
		keys = append(keys, Key{ID: k.KeyID, Public: pub})
	}
	s, err := NewKeySet(keys...)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	again, err := s.MarshalJSON()
	if err != nil || !bytes.Equal(again, b) {
		return nil, fmt.Errorf("key set: %w: not in its one encoding", ErrMalformed)
	}
	return s, nil
}
