package keyring

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"fmt"
)

// SealSigner encrypts a private key, as PKCS#8. It takes *ecdsa.PrivateKey on P-256 and ed25519.PrivateKey.
// id names the key; the result opens only under the same id, so keys can't be exchanged for one another.
func (r *Ring) SealSigner(id string, key crypto.Signer) ([]byte, error) {
	if err := checkSigner(key); err != nil {
		return nil, fmt.Errorf("seal signing key %q: %w", id, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	defer clear(der)
	if err != nil {
		return nil, fmt.Errorf("seal signing key %q: %w", id, err)
	}
	return r.Seal(PurposeKey, der, []byte(id))
}

// OpenSigner reverses [Ring.SealSigner]. Its only error is [ErrOpen].
func (r *Ring) OpenSigner(id string, sealed []byte) (crypto.Signer, error) {
	der, err := r.Open(PurposeKey, sealed, []byte(id))
	defer clear(der)
	if err != nil {
		return nil, ErrOpen
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, ErrOpen
	}
	key, ok := parsed.(crypto.Signer)
	if !ok || checkSigner(key) != nil {
		return nil, ErrOpen
	}
	again, err := x509.MarshalPKCS8PrivateKey(key)
	defer clear(again)
	if err != nil || !bytes.Equal(der, again) {
		return nil, ErrOpen
	}
	return key, nil
}

// checkSigner refuses kinds of keys that the product does not sign with.
func checkSigner(key crypto.Signer) error {
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		if k != nil && k.Curve == elliptic.P256() {
			return nil
		}
	case ed25519.PrivateKey:
		if len(k) == ed25519.PrivateKeySize {
			return nil
		}
	}
	return fmt.Errorf("a %T of this kind is not supported: P-256 or Ed25519 is", key)
}
