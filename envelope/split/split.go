// Package split divides a secret among holders, so that a threshold of them is needed to read it.
//
// A random 32-byte key encrypts the secret; the key is split by Shamir's scheme (github.com/hashicorp/vault/shamir),
// one share for each holder. What is not secret stands in a signed [Manifest]: who holds a share, how many are
// needed, a salted hash of each share, the digest of the ciphertext and a commitment to the key. Manifest, signature
// and ciphertext together are a [Package]:
//
//	"bulla-split/v1\n" ‖ length of the manifest (4 bytes, big endian) ‖ manifest (JSON) ‖
//	signer's key (91 bytes, DER SubjectPublicKeyInfo) ‖ signature (64) ‖ nonce (12) ‖ AES-256-GCM ciphertext with tag
//
// Shamir's scheme by itself notices nothing: a share with x = 0 dictates the result, an altered one shifts it, and too
// few give garbage. So each share is checked against its hash before anything is combined, and the result against
// the commitment afterwards. A share that does not fit is named by its holder ([ShareError]).
//
// An [Approval] is a holder's signed word for one request. What it covers is described there.
//
// The package does not move shares, knows no round and no policy, and can't tell whether two holders are one person.
package split

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/vault/shamir"

	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/secret"
)

const (
	// LabelManifest is the version that stands first in a manifest, and the first part of what its signer signs.
	LabelManifest = "bulla-share-manifest/v1"
	// MaxSecret is the largest secret that can be split, in bytes: a package has to fit where a secret does.
	MaxSecret = 48 << 10
	// MaxHolders is the largest number of holders.
	MaxHolders = 16
	// MaxManifest is the largest encoded manifest in bytes.
	MaxManifest = 12 << 10
	// MaxPackage is the largest package in bytes.
	MaxPackage = len(labelPackage) + 4 + MaxManifest + spkiSize + signatureSize + ivSize + MaxSecret + tagSize
	// ShareSize is the size of a share in bytes: the value, then x.
	ShareSize = keySize + shamir.ShareOverhead

	labelPackage    = "bulla-split/v1\n"
	labelShare      = "bulla-share-hash/v1"
	labelKey        = "bulla-split-key/v1"
	labelCommitment = "bulla-split-commitment/v1"

	keySize       = 32
	spkiSize      = 91
	signatureSize = 64
	ivSize        = 12
	tagSize       = 16
)

// What can go wrong. Test with errors.Is.
var (
	// ErrInvalid: the caller's own input breaks a rule. Nothing was split.
	ErrInvalid = errors.New("can't be split")
	// ErrMalformed: not a manifest, package or share in its one encoding.
	ErrMalformed = errors.New("malformed")
	// ErrShare is wrapped by every [ShareError].
	ErrShare = errors.New("the share does not fit the manifest")
	// ErrTooFew: there are fewer good shares than the threshold.
	ErrTooFew = errors.New("too few shares")
	// ErrCrypto is the one answer of the checks after combining, and of a signature.
	ErrCrypto = errors.New("does not verify")
)

// ShareError names the holder whose share does not fit.
type ShareError struct {
	Holder string
	Why    string
}

func (e *ShareError) Error() string {
	return fmt.Sprintf("the share of %s: %s", e.Holder, e.Why)
}

func (e *ShareError) Unwrap() error { return ErrShare }

// Input is what is to be split. Divide neither changes nor keeps any of it.
type Input struct {
	ID        string // names this split: a UUID
	Source    bool   // at the source, by whoever puts the secret; else at a delivery
	Secret    string // its name
	Version   uint32 // 0 at the source, where it is not known yet
	Threshold uint32 // from 2 to the number of holders
	Holders   []string
	Value     secret.Bytes

	Key  *ecdsa.PublicKey                     // of the signer
	Sign func(message []byte) ([]byte, error) // ES256 as in [proof.SignES256]
}

// Divided is a secret that was split.
type Divided struct {
	Manifest Manifest
	Package  []byte
	Shares   []secret.Bytes // in the order of Manifest.Holders
}

// Zero wipes the shares.
func (d *Divided) Zero() {
	for i := range d.Shares {
		d.Shares[i].Zero()
	}
}

// Divide encrypts the value under a fresh key, splits the key and signs the manifest.
func Divide(in Input) (*Divided, error) {
	m := Manifest{
		Version: LabelManifest, ID: in.ID, Source: in.Source, Secret: in.Secret, SecretVersion: in.Version, Threshold: in.Threshold,
		Holders: sortedHolders(in.Holders),
	}
	if n := in.Value.Len(); n == 0 || n > MaxSecret {
		return nil, fmt.Errorf("%w: the secret has %d bytes, 1 to %d are allowed", ErrInvalid, n, MaxSecret)
	}
	if err := m.validate(false); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	key := make([]byte, keySize)
	defer clear(key)
	if _, err := io.ReadFull(rand.Reader, key); err != nil {
		return nil, fmt.Errorf("random source: %w", err)
	}
	aead, commitment, err := derive(key)
	if err != nil {
		return nil, err
	}
	sealed := aead.Seal(nil, nil, in.Value.Expose(), m.context())
	m.Ciphertext, m.Commitment = envelope.DigestOf(sealed), commitment
	d := &Divided{}
	if d.Shares, err = m.deal(key); err != nil {
		return nil, err
	}
	encoded, err := m.encode()
	if err == nil {
		d.Package, err = pack(encoded, in.Key, in.Sign, sealed)
	}
	if err != nil {
		d.Zero()
		return nil, err
	}
	d.Manifest = m
	return d, nil
}

// deal splits the key and writes the hash of each holder's share.
func (m *Manifest) deal(key []byte) ([]secret.Bytes, error) {
	parts, err := shamir.Split(key, len(m.Holders), int(m.Threshold))
	if err != nil {
		return nil, fmt.Errorf("split the key: %w", err)
	}
	shares := make([]secret.Bytes, len(parts))
	for i, part := range parts {
		shares[i] = secret.NewBytes(part)
		h := &m.Holders[i]
		if _, err := io.ReadFull(rand.Reader, h.Salt[:]); err != nil {
			return nil, fmt.Errorf("random source: %w", err)
		}
		h.Hash = m.hash(*h, part)
	}
	return shares, nil
}

// derive makes of the key that is split the key that encrypts, and the commitment. AES-GCM alone does not commit to
// its key: one ciphertext can be made to open under two.
func derive(key []byte) (cipher.AEAD, envelope.Digest, error) {
	encryption, err := hkdf.Expand(sha256.New, key, labelKey, keySize)
	if err != nil {
		return nil, envelope.Digest{}, err
	}
	defer clear(encryption)
	commitment, err := hkdf.Expand(sha256.New, key, labelCommitment, len(envelope.Digest{}))
	if err != nil {
		return nil, envelope.Digest{}, err
	}
	block, err := aes.NewCipher(encryption)
	if err != nil {
		return nil, envelope.Digest{}, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return aead, envelope.Digest(commitment), err
}

// Check says whether a share is the one that the manifest has a hash of for this holder. The error is a [ShareError].
func (m *Manifest) Check(holder string, share secret.Bytes) error {
	h, ok := m.holder(holder)
	if !ok {
		return &ShareError{holder, "this holder is not in the manifest"}
	}
	s := share.Expose()
	if len(s) != ShareSize {
		return &ShareError{holder, fmt.Sprintf("it has %d bytes, not %d", len(s), ShareSize)}
	}
	if s[ShareSize-1] == 0 {
		return &ShareError{holder, "its x is 0, with which it would dictate the result"}
	}
	if want := m.hash(h, s); subtle.ConstantTimeCompare(want[:], h.Hash[:]) != 1 {
		return &ShareError{holder, "it does not have the hash that the manifest has for it: it was altered, or belongs to another manifest"}
	}
	return nil
}

// Combine makes the key of the shares, by holder. Each share is checked first; then the key, against the commitment.
// All shares are used, so that none stays unchecked.
func (m *Manifest) Combine(shares map[string]secret.Bytes) (secret.Bytes, error) {
	var parts [][]byte
	owners := map[byte]string{}
	for _, h := range m.Holders { // in their order, so that the same one is named each time
		share, ok := shares[h.ID]
		if !ok {
			continue
		}
		if err := m.Check(h.ID, share); err != nil {
			return secret.Bytes{}, err
		}
		s := share.Expose()
		if other, twice := owners[s[ShareSize-1]]; twice {
			return secret.Bytes{}, &ShareError{h.ID, "its x is that of the share of " + other}
		}
		owners[s[ShareSize-1]] = h.ID
		parts = append(parts, s)
	}
	if len(parts) != len(shares) {
		for id := range shares {
			if _, ok := m.holder(id); !ok {
				return secret.Bytes{}, &ShareError{id, "this holder is not in the manifest"}
			}
		}
	}
	if len(parts) < int(m.Threshold) {
		return secret.Bytes{}, fmt.Errorf("%w: %d of %d that are needed", ErrTooFew, len(parts), m.Threshold)
	}
	combined, err := shamir.Combine(parts)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("combine the shares: %w", ErrCrypto)
	}
	key := secret.NewBytes(combined)
	_, commitment, err := derive(key.Expose())
	if err != nil || subtle.ConstantTimeCompare(commitment[:], m.Commitment[:]) != 1 {
		key.Zero()
		return secret.Bytes{}, fmt.Errorf("combine the shares: the key is not the one that the manifest commits to: %w", ErrCrypto)
	}
	return key, nil
}

// Package is a manifest with its ciphertext.
type Package struct {
	Manifest Manifest
	Digest   envelope.Digest // of the encoded manifest
	Signed   Signed
	sealed   []byte
}

// Signed is a manifest as its signer signed it.
type Signed struct {
	Manifest  []byte // encoded
	Key       *ecdsa.PublicKey
	Signature []byte
}

// Verify checks the signature and parses the manifest. Whose key it is, is for the caller to know.
func (s Signed) Verify() (Manifest, error) {
	m, err := ParseManifest(s.Manifest)
	if err != nil {
		return Manifest{}, err
	}
	if err := proof.VerifyES256(s.Key, proof.Statement(LabelManifest, s.Manifest), s.Signature); err != nil {
		return Manifest{}, fmt.Errorf("signature of the manifest: %w", ErrCrypto)
	}
	return m, nil
}

// pack signs the manifest and writes the package.
func pack(manifest []byte, key *ecdsa.PublicKey, sign func([]byte) ([]byte, error), sealed []byte) ([]byte, error) {
	spki, err := proof.MarshalInstanceKey(key)
	if err != nil {
		return nil, fmt.Errorf("%w: the signer's key: %w", ErrInvalid, err)
	}
	signature, err := sign(proof.Statement(LabelManifest, manifest))
	if err != nil {
		return nil, fmt.Errorf("sign the manifest: %w", err)
	}
	if len(signature) != signatureSize {
		return nil, fmt.Errorf("sign the manifest: a signature of %d bytes", len(signature))
	}
	out := make([]byte, 0, len(labelPackage)+4+len(manifest)+spkiSize+signatureSize+len(sealed))
	out = append(out, labelPackage...)
	out = binary.BigEndian.AppendUint32(out, uint32(len(manifest)))
	out = append(out, manifest...)
	out = append(out, spki...)
	out = append(out, signature...)
	return append(out, sealed...), nil
}

// ParsePackage reads a package and checks that manifest, signature and ciphertext belong together. It shares the
// memory of b.
func ParsePackage(b []byte) (*Package, error) {
	head := len(labelPackage) + 4
	if len(b) > MaxPackage || len(b) < head || string(b[:len(labelPackage)]) != labelPackage {
		return nil, fmt.Errorf("split package: %w", ErrMalformed)
	}
	n, rest := int64(binary.BigEndian.Uint32(b[head-4:])), b[head:]
	if n > MaxManifest || int64(len(rest)) < n+spkiSize+signatureSize+ivSize+tagSize {
		return nil, fmt.Errorf("split package: %w", ErrMalformed)
	}
	p := &Package{Signed: Signed{Manifest: rest[:n]}, Digest: envelope.DigestOf(rest[:n])}
	rest = rest[n:]
	var err error
	if p.Signed.Key, err = proof.ParseInstanceKey(rest[:spkiSize]); err != nil {
		return nil, fmt.Errorf("split package: %w: the signer's key", ErrMalformed)
	}
	p.Signed.Signature, p.sealed = rest[spkiSize:spkiSize+signatureSize], rest[spkiSize+signatureSize:]
	if p.Manifest, err = p.Signed.Verify(); err != nil {
		return nil, fmt.Errorf("split package: %w", err)
	}
	if envelope.DigestOf(p.sealed) != p.Manifest.Ciphertext {
		return nil, fmt.Errorf("split package: the ciphertext is not the manifest's: %w", ErrCrypto)
	}
	return p, nil
}

// Open decrypts the ciphertext with the key that Combine gave.
func (p *Package) Open(key secret.Bytes) (secret.Bytes, error) {
	if key.Len() != keySize {
		return secret.Bytes{}, fmt.Errorf("open split secret: a key of %d bytes: %w", key.Len(), ErrCrypto)
	}
	aead, commitment, err := derive(key.Expose())
	if err != nil {
		return secret.Bytes{}, err
	}
	if subtle.ConstantTimeCompare(commitment[:], p.Manifest.Commitment[:]) != 1 {
		return secret.Bytes{}, fmt.Errorf("open split secret: the key is not the one that the manifest commits to: %w", ErrCrypto)
	}
	plain, err := aead.Open(nil, nil, p.sealed, p.Manifest.context())
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("open split secret: %w", ErrCrypto)
	}
	return secret.NewBytes(plain), nil
}
