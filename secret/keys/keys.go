// Package keys does what the broker does with a key at grade proxied: it makes keys, and signs, verifies, MACs,
// encrypts and decrypts with them. Both sides of the wire share its formats. It is pure but for the system's source
// of randomness: it stores nothing, decides nothing and counts nothing.
//
// Every key is 32 bytes at rest: the scalar of an ECDSA key (big endian), the seed of an Ed25519 key (RFC 8032), or
// the key itself. Its type is part of the associated data under which it lies encrypted, so one is never taken for
// another.
//
//   - ecdsa-p256: ES256 of RFC 7518. A signature is r‖s, 64 bytes, over SHA-256 of the message, with the lower of the
//     two s that verify; no other is accepted. It is deterministic (RFC 6979).
//   - ed25519: RFC 8032, "pure": 64 bytes over the message itself.
//   - hmac-sha256: RFC 2104, 32 bytes. A shorter tag is not accepted.
//   - aes-256-gcm: a ciphertext is [FormatCiphertext] ‖ version of the key (4 bytes, big endian) ‖ nonce (12 bytes,
//     random) ‖ ciphertext ‖ tag (16 bytes). The associated data of the AEAD are "bulla-proxied-aead/v1", a zero byte,
//     the first five bytes, and those of the caller.
//
// Signatures and MACs are over the caller's bytes alone, without a label, since others have to be able to check them:
// whoever may sign with a key may sign anything with it. So a key serves one purpose, and its owner's messages say
// which. All results but a ciphertext are the same each time.
package keys

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/secret"
)

// Sizes in bytes.
const (
	Size = 32 // of a key at rest

	SignatureSize = 64
	MACSize       = sha256.Size

	// MaxInput is the longest message or plaintext.
	MaxInput = 64 << 10
	// MaxAssociatedData is the longest associated data of a caller.
	MaxAssociatedData = 4 << 10
	// Overhead is how much longer a ciphertext is than its plaintext.
	Overhead = ciphertextHead + 12 + 16

	ciphertextHead = 1 + 4
)

// FormatCiphertext is the first byte of every ciphertext.
const FormatCiphertext = 1

// MaxEncryptions is how many messages one AES-GCM key may encrypt: beyond 2^32, two of its random 96-bit nonces could
// be equal with a chance worth naming (NIST SP 800-38D, 8.3). Whoever keeps the key counts.
const MaxEncryptions = 1<<32 - 1

const labelAEAD = "bulla-proxied-aead/v1"

var (
	// ErrInvalid: the key can't do that, or not with such an input. Nothing was done.
	ErrInvalid = errors.New("operation refused")
	// ErrNotAuthentic is the one answer for a signature, MAC or ciphertext that is not of this key, whatever the cause.
	ErrNotAuthentic = errors.New("not authentic: the signature, MAC or ciphertext is not of this key, or not of this input")
)

// Operation names what is done with a key.
type Operation string

// The operations.
const (
	Sign      Operation = "sign"
	Verify    Operation = "verify"
	MAC       Operation = "mac"
	VerifyMAC Operation = "verify-mac"
	Encrypt   Operation = "encrypt"
	Decrypt   Operation = "decrypt"
)

// Operations returns what a key of this type can do; nothing for what is no key.
func Operations(t secret.Type) []Operation {
	switch t {
	case secret.TypeECDSAP256, secret.TypeEd25519:
		return []Operation{Sign, Verify}
	case secret.TypeHMACSHA256:
		return []Operation{MAC, VerifyMAC}
	case secret.TypeAES256GCM:
		return []Operation{Encrypt, Decrypt}
	}
	return nil
}

// Input is what an operation works on.
type Input struct {
	Operation      Operation
	Data           []byte // message, plaintext or ciphertext
	AssociatedData []byte // of Encrypt and Decrypt
	Signature      []byte // what Verify and VerifyMAC check
}

// Validate says, without a key, what is wrong with an input for a key of type t. It wraps [ErrInvalid].
func (in Input) Validate(t secret.Type) error {
	known := false
	for _, o := range Operations(t) {
		known = known || o == in.Operation
	}
	most := MaxInput
	if in.Operation == Decrypt {
		most += Overhead
	}
	checks := in.Operation == Verify || in.Operation == VerifyMAC
	switch {
	case !known:
		return fmt.Errorf("%w: a secret of type %s can do %v, and not %q", ErrInvalid, t, Operations(t), clip(string(in.Operation)))
	case len(in.Data) > most:
		return fmt.Errorf("%w: the input has %d bytes, at most %d are allowed", ErrInvalid, len(in.Data), most)
	case len(in.AssociatedData) > MaxAssociatedData:
		return fmt.Errorf("%w: the associated data have %d bytes, at most %d are allowed", ErrInvalid, len(in.AssociatedData), MaxAssociatedData)
	case len(in.AssociatedData) > 0 && in.Operation != Encrypt && in.Operation != Decrypt:
		return fmt.Errorf("%w: only encrypt and decrypt take associated data", ErrInvalid)
	case len(in.Signature) > 0 && !checks:
		return fmt.Errorf("%w: only verify and verify-mac take a signature", ErrInvalid)
	case len(in.Signature) > SignatureSize:
		return fmt.Errorf("%w: the signature has %d bytes, at most %d are allowed", ErrInvalid, len(in.Signature), SignatureSize)
	}
	return nil
}

func clip(s string) string { return s[:min(len(s), 32)] }

// Key is a key at work. It belongs to one call: the caller wipes the bytes that it was made of. What the standard
// library computes from those of a signature key stays in memory until it is collected. No verb prints a key: it lies
// behind functions.
type Key struct {
	kind    secret.Type
	version secret.Version
	raw     secret.Bytes
	signer  func() crypto.Signer // nil for a symmetric key
}

// Generate makes the bytes of a new key, from the system's source of randomness.
func Generate(t secret.Type) (secret.Bytes, error) {
	switch t {
	case secret.TypeECDSAP256:
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return secret.Bytes{}, fmt.Errorf("generate a key: %w", err)
		}
		raw, err := key.Bytes()
		return secret.NewBytes(raw), err
	case secret.TypeEd25519, secret.TypeHMACSHA256, secret.TypeAES256GCM:
		raw := make([]byte, Size)
		_, _ = rand.Read(raw) // crypto/rand.Read never fails
		return secret.NewBytes(raw), nil
	}
	return secret.Bytes{}, fmt.Errorf("generate a key: %w: %q is no type of keys", ErrInvalid, t)
}

// Parse returns the key that value holds at rest. It shares the memory of value.
func Parse(t secret.Type, version secret.Version, value secret.Bytes) (*Key, error) {
	raw := value.Expose()
	k := &Key{kind: t, version: version, raw: value}
	bad := fmt.Errorf("%w: these are not the bytes of a key of type %q", ErrInvalid, t)
	if len(raw) != Size || version == 0 {
		return nil, bad
	}
	var signer crypto.Signer
	switch t {
	case secret.TypeECDSAP256:
		key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw)
		if err != nil {
			return nil, bad
		}
		signer = deterministic{key}
	case secret.TypeEd25519:
		signer = ed25519.NewKeyFromSeed(raw)
	case secret.TypeHMACSHA256, secret.TypeAES256GCM:
		return k, nil
	default:
		return nil, bad
	}
	k.signer = func() crypto.Signer { return signer }
	return k, nil
}

// deterministic is an ECDSA key whose signatures are those of RFC 6979: a retried call gets the same one, and none has
// to be kept for that.
type deterministic struct{ *ecdsa.PrivateKey }

// Sign implements crypto.Signer.
func (d deterministic) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return d.PrivateKey.Sign(nil, digest, opts)
}

// Public returns what everybody may know of the key.
func (k *Key) Public() Public {
	p := Public{Type: k.kind, Version: k.version}
	if k.signer != nil {
		p.Key = k.signer().Public()
	}
	return p
}

// Do does one operation. The result of Verify and VerifyMAC is nil; what they refuse, and a ciphertext that does not
// open, is [ErrNotAuthentic].
func (k *Key) Do(in Input) ([]byte, error) {
	if err := in.Validate(k.kind); err != nil {
		return nil, err
	}
	switch in.Operation {
	case Sign:
		if k.kind == secret.TypeECDSAP256 {
			return proof.SignES256(k.signer(), in.Data)
		}
		return k.signer().Sign(nil, in.Data, crypto.Hash(0))
	case Verify:
		return nil, k.Public().Verify(in.Data, in.Signature)
	case MAC:
		return k.mac(in.Data), nil
	case VerifyMAC:
		if !hmac.Equal(k.mac(in.Data), in.Signature) {
			return nil, ErrNotAuthentic
		}
		return nil, nil
	case Encrypt:
		return k.encrypt(in.Data, in.AssociatedData)
	}
	return k.decrypt(in.Data, in.AssociatedData)
}

func (k *Key) mac(message []byte) []byte {
	h := hmac.New(sha256.New, k.raw.Expose())
	h.Write(message)
	return h.Sum(nil)
}

func (k *Key) encrypt(plaintext, associated []byte) ([]byte, error) {
	aead, err := k.aead()
	if err != nil {
		return nil, err
	}
	head := binary.BigEndian.AppendUint32([]byte{FormatCiphertext}, uint32(k.version))
	out := make([]byte, 0, len(plaintext)+Overhead)
	return aead.Seal(append(out, head...), nil, plaintext, aeadData(head, associated)), nil
}

func (k *Key) decrypt(ciphertext, associated []byte) ([]byte, error) {
	aead, err := k.aead()
	if err != nil {
		return nil, err
	}
	if v, err := CiphertextVersion(ciphertext); err != nil || v != k.version {
		return nil, ErrNotAuthentic
	}
	head, sealed := ciphertext[:ciphertextHead], ciphertext[ciphertextHead:]
	plaintext, err := aead.Open(nil, nil, sealed, aeadData(head, associated))
	if err != nil {
		return nil, ErrNotAuthentic
	}
	return plaintext, nil
}

// aead draws a random nonce for each message and puts it before the ciphertext, the one form that FIPS 140 mode allows.
func (k *Key) aead() (cipher.AEAD, error) {
	block, err := aes.NewCipher(k.raw.Expose())
	if err != nil {
		return nil, fmt.Errorf("%w: no AES-256 key", ErrInvalid)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func aeadData(head, associated []byte) []byte {
	out := make([]byte, 0, len(labelAEAD)+1+len(head)+len(associated))
	out = append(append(out, labelAEAD...), 0)
	return append(append(out, head...), associated...)
}

// CiphertextVersion says which version of a key a ciphertext was made with. It is not authenticated until it opens.
func CiphertextVersion(ciphertext []byte) (secret.Version, error) {
	if len(ciphertext) < Overhead || ciphertext[0] != FormatCiphertext {
		return 0, fmt.Errorf("%w: this is no ciphertext of a proxied key", ErrNotAuthentic)
	}
	v := binary.BigEndian.Uint32(ciphertext[1:])
	if v == 0 {
		return 0, fmt.Errorf("%w: this is no ciphertext of a proxied key", ErrNotAuthentic)
	}
	return secret.Version(v), nil
}
