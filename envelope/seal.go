package envelope

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/secret/keys"
)

// Signer is an envelope-signing key with the id under which it is published. The key is ECDSA P-256 and may live
// in hardware. Safe for concurrent use if its key is.
type Signer struct {
	kid string
	key crypto.Signer
	pub *ecdsa.PublicKey
}

// NewSigner checks and joins key id and key. The id has 1 to 128 characters of base64url; [proof.Thumbprint] makes one.
func NewSigner(kid string, key crypto.Signer) (*Signer, error) {
	if !validKID(kid) {
		return nil, fmt.Errorf("envelope signer: %w: key id %q must be 1 to %d characters of base64url", ErrInvalid, clip([]byte(kid)), maxKID)
	}
	if key == nil {
		return nil, fmt.Errorf("envelope signer %s: %w: no key", kid, ErrInvalid)
	}
	pub, err := proof.InstancePublic(key)
	if err != nil {
		return nil, fmt.Errorf("envelope signer %s: %w: need a P-256 key", kid, ErrInvalid)
	}
	return &Signer{kid: kid, key: key, pub: pub}, nil
}

// Key returns the public half, for the key set.
func (s *Signer) Key() Key { return Key{ID: s.kid, Public: s.pub} }

// Sign signs a message of another purpose, which starts with a label of its own, with the signing key.
func (s *Signer) Sign(message []byte) ([]byte, error) { return proof.SignES256(s.key, message) }

// SealInput is what goes into an envelope. Seal neither changes nor keeps any of it.
type SealInput struct {
	Recipient RecipientKey // parsed once, since a hybrid key takes 30 µs
	Context   Context      // Version, ReceiptLock and Suite are filled in by Seal
	Secret    secret.Bytes // at most MaxSecret bytes; at grade gated what Gate made of it, at grade proxied the description of a key
}

// Sealed is an envelope ready to be sent and logged.
type Sealed struct {
	Bytes   []byte  // the compact JWS
	Digest  Digest  // SHA-256 of Bytes
	Context Context // as sealed, with Version, ReceiptLock and Suite
}

// Seal encrypts a secret to a recipient, binds the context to it and signs the whole.
//
// A fault of the input wraps [ErrInvalid]. The random value r and the content key are wiped before Seal returns.
func Seal(in SealInput, signer *Signer) (Sealed, error) {
	if signer == nil {
		return Sealed{}, fmt.Errorf("seal: %w: no signing key", ErrInvalid)
	}
	data := in.Secret.Expose()
	most := MaxSecret
	switch in.Context.Grade {
	case GradeProxied: // what is not meant for everybody has no place in it
		if _, err := keys.ParsePublic(data); err != nil {
			return Sealed{}, fmt.Errorf("seal: %w: %v", ErrInvalid, err)
		}
	case GradeGated:
		most = maxBody
		if _, err := parseGated(data, in.Context.Session, uint32(in.Context.Uses)); err != nil {
			return Sealed{}, fmt.Errorf("seal: %w: %v", ErrInvalid, err)
		}
	}
	if len(data) > most {
		return Sealed{}, fmt.Errorf("seal: %w: secret of %d bytes, at most %d", ErrInvalid, len(data), most)
	}
	if in.Recipient.suite.IsZero() {
		return Sealed{}, fmt.Errorf("seal: %w: no recipient key", ErrInvalid)
	}
	plain := make([]byte, len(labelData)+randLen+len(data))
	defer clear(plain)
	r := plain[copy(plain, labelData):][:randLen]
	if _, err := io.ReadFull(rand.Reader, r); err != nil {
		return Sealed{}, fmt.Errorf("seal: random source: %w", err)
	}
	copy(plain[len(labelData)+randLen:], data)

	c := in.Context
	c.Version, c.Suite, c.ReceiptLock = LabelContext, in.Recipient.suite.Number(), sha256.Sum256(r)
	c.Places = append([]string{}, in.Context.Places...)
	aad, err := c.encode()
	if err != nil {
		return Sealed{}, fmt.Errorf("seal: %w", err)
	}
	extra := sha256.Sum256(aad)
	p := &parts{kid: signer.kid, suite: in.Recipient.suite, aad: aad}
	if err := p.encrypt(in.Recipient.key, extra[:], plain); err != nil {
		return Sealed{}, fmt.Errorf("seal: %w", err)
	}
	input := p.signingInput()
	sig, err := proof.SignES256(signer.key, input)
	if err != nil {
		return Sealed{}, fmt.Errorf("seal: %w", err)
	}
	jws := appendSignature(input, sig)
	return Sealed{Bytes: jws, Digest: DigestOf(jws), Context: c}, nil
}

// encrypt fills in ek, encryptedKey, iv, ciphertext and tag.
func (p *parts) encrypt(recipient hpke.PublicKey, extraInfo, plain []byte) error {
	var cek [cekLen]byte
	defer clear(cek[:])
	if _, err := io.ReadFull(rand.Reader, cek[:]); err != nil {
		return fmt.Errorf("random source: %w", err)
	}
	ek, sender, err := hpke.NewSender(recipient, p.suite.p.kdf, p.suite.p.aead, recipientInfo(extraInfo))
	if err != nil {
		return fmt.Errorf("encapsulate with %s: %w", p.suite, err)
	}
	if p.encryptedKey, err = sender.Seal(nil, cek[:]); err != nil {
		return fmt.Errorf("encrypt content key with %s: %w", p.suite, err)
	}
	p.ek = ek
	aead, err := contentAEAD(cek[:])
	if err != nil {
		return err
	}
	sealed := aead.Seal(nil, nil, plain, contentAAD(p.suite.p.protected, p.aad))
	p.iv, p.ciphertext, p.tag = sealed[:ivLen], sealed[ivLen:ivLen+len(plain)], sealed[ivLen+len(plain):]
	return nil
}

// recipientInfo is the Recipient_structure of draft-ietf-jose-hpke-encrypt, section "Key Encryption".
func recipientInfo(extra []byte) []byte {
	return append([]byte("JOSE-HPKE rcpt\xffA256GCM\xff"), extra...)
}

// contentAAD is the additional authenticated data of RFC 7516, 5.1 step 14: protected header "." aad, both encoded.
func contentAAD(protected string, aad []byte) []byte {
	b := make([]byte, 0, len(protected)+1+b64.EncodedLen(len(aad)))
	b = append(b, protected...)
	if len(aad) == 0 {
		return b
	}
	return b64.AppendEncode(append(b, '.'), aad)
}

// contentAEAD is A256GCM with a random IV before the ciphertext, the one form that FIPS 140 mode allows.
func contentAEAD(cek []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(cek)
	if err != nil {
		return nil, errors.New("content key has the wrong size")
	}
	return cipher.NewGCMWithRandomNonce(block)
}
