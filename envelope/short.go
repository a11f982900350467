package envelope

import (
	"crypto/hpke"
	"fmt"
)

// maxShort is the largest plaintext of SealShort in bytes.
const maxShort = 1 << 10

// SealShort seals a few bytes to the key, in HPKE's base mode (RFC 9180): the encapsulated key, then the ciphertext.
// info starts with a label of purpose and version, and binds what the bytes are for. It is no envelope: nobody
// signs it and it has no context.
func (k RecipientKey) SealShort(info, plain []byte) ([]byte, error) {
	if k.suite.IsZero() || len(plain) > maxShort {
		return nil, fmt.Errorf("seal: %w: no recipient key, or more than %d bytes", ErrInvalid, maxShort)
	}
	ek, sender, err := hpke.NewSender(k.key, k.suite.p.kdf, k.suite.p.aead, info)
	if err != nil {
		return nil, fmt.Errorf("encapsulate with %s: %w", k.suite, err)
	}
	sealed, err := sender.Seal(nil, plain)
	if err != nil {
		return nil, fmt.Errorf("seal with %s: %w", k.suite, err)
	}
	return append(ek[:len(ek):len(ek)], sealed...), nil
}

// OpenShort reverses [RecipientKey.SealShort] for the same info. Its only error is [ErrCrypto].
func (r *Recipient) OpenShort(info, sealed []byte) ([]byte, error) {
	n := r.suite.p.encLen
	if len(sealed) < n || len(sealed) > n+maxShort+tagLen {
		return nil, ErrCrypto
	}
	opener, err := hpke.NewRecipient(sealed[:n], r.key, r.suite.p.kdf, r.suite.p.aead, info)
	if err != nil {
		return nil, ErrCrypto
	}
	plain, err := opener.Open(nil, sealed[n:])
	if err != nil {
		return nil, ErrCrypto
	}
	return plain, nil
}
