package keyring

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
	"io"
)

// MaxMessages is how many bodies one subject key may seal: beyond 2^32, two of its random 96-bit nonces
// could be equal with a chance worth naming (NIST SP 800-38D, 8.3). Who stores wrapped keys counts, and
// gives the subject a new one before; older bodies keep the older key.
const MaxMessages = 1 << 32

const subjectKeySize = 32 // AES-256

// SubjectKey seals the event bodies of one subject. It is safe for concurrent use and keeps its key
// schedule, so callers hold on to it. The zero value is invalid.
type SubjectKey struct {
	aead cipher.AEAD
}

// NewSubjectKey draws a key for subject. wrapped is the only form to store; destroying every copy of it,
// and the SubjectKeys in memory, erases what the key sealed.
func (r *Ring) NewSubjectKey(subject string) (wrapped []byte, key *SubjectKey, err error) {
	raw := make([]byte, subjectKeySize)
	defer clear(raw)
	_, _ = rand.Read(raw) // crypto/rand.Read never fails
	if wrapped, err = r.Seal(purposeSubjectKey, raw, []byte(subject)); err != nil {
		return nil, nil, err
	}
	return wrapped, newSubjectKey(raw), nil
}

// OpenSubjectKey unwraps the key of subject. Its only error is [ErrOpen], also for another subject's key.
func (r *Ring) OpenSubjectKey(wrapped []byte, subject string) (*SubjectKey, error) {
	raw, err := r.Open(purposeSubjectKey, wrapped, []byte(subject))
	defer clear(raw)
	if err != nil || len(raw) != subjectKeySize {
		return nil, ErrOpen
	}
	return newSubjectKey(raw), nil
}

func newSubjectKey(raw []byte) *SubjectKey { return &SubjectKey{aead: newGCM(raw)} }

// newGCM returns AES-256-GCM under a 32-byte key. It draws a random 96-bit nonce per message and puts it
// before the ciphertext.
func newGCM(raw []byte) cipher.AEAD {
	block, err := aes.NewCipher(raw)
	if err != nil {
		panic("keyring: internal error: " + err.Error())
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic("keyring: internal error: " + err.Error())
	}
	return aead
}

// Seal encrypts one body. The result opens only with the same aad; it is 28 bytes longer than body.
func (k *SubjectKey) Seal(body, aad []byte) []byte {
	return k.aead.Seal(nil, nil, body, PurposeEventBody.bind(aad))
}

// Open reverses [SubjectKey.Seal]. Its only error is [ErrOpen].
func (k *SubjectKey) Open(sealed, aad []byte) ([]byte, error) {
	body, err := k.aead.Open(nil, nil, sealed, PurposeEventBody.bind(aad))
	if err != nil {
		return nil, ErrOpen
	}
	return body, nil
}

// Format prints no key, with whatever verb.
func (k *SubjectKey) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "keyring.SubjectKey(REDACTED)")
}
