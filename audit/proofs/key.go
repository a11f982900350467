package proofs

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
)

const (
	maxOrigin = 200
	maxKey    = 512
)

// ErrKey says that a text is not a key of a log in note format.
var ErrKey = errors.New("not a log key in note format")

// CheckOrigin reports why origin can't name a log. An origin is the log's name for ever: 1 to 200 bytes,
// printable, without spaces and without '+'. By convention it is a URL without its scheme.
func CheckOrigin(origin string) error {
	bad := func(r rune) bool { return r == '+' || unicode.IsSpace(r) || !unicode.IsPrint(r) }
	if origin == "" || len(origin) > maxOrigin || !utf8.ValidString(origin) || strings.ContainsFunc(origin, bad) {
		return fmt.Errorf("log origin %.60q: use 1 to %d printable bytes without spaces and '+', such as example.org/bulla", origin, maxOrigin)
	}
	return nil
}

// NewLogKey generates the Ed25519 key of a new log: skey signs and is kept secret, vkey verifies and goes
// to log.pub. Both are one line in the format of signed notes.
func NewLogKey(origin string) (skey, vkey string, err error) {
	if err := CheckOrigin(origin); err != nil {
		return "", "", err
	}
	skey, vkey, err = note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return "", "", fmt.Errorf("generate the key of log %s: %w", origin, err)
	}
	return skey, vkey, nil
}

// Key verifies the checkpoints of one log. The zero value verifies nothing.
type Key struct {
	verifier note.Verifier
	text     string
}

// ParseKey reads a verifier key as it stands in log.pub: one line, with or without its newline.
func ParseKey(text string) (Key, error) {
	text = strings.TrimSuffix(text, "\n")
	if len(text) > maxKey {
		return Key{}, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrKey, len(text), maxKey)
	}
	if strings.HasPrefix(text, "PRIVATE+KEY+") {
		return Key{}, fmt.Errorf("%w: this is the secret signing key; use the one in log.pub", ErrKey)
	}
	v, err := note.NewVerifier(text)
	if err != nil {
		return Key{}, fmt.Errorf("%w: %v; expected ORIGIN+HASH+KEY as in log.pub", ErrKey, err)
	}
	if err := CheckOrigin(v.Name()); err != nil {
		return Key{}, fmt.Errorf("%w: %v", ErrKey, err)
	}
	// The note package reads base64 with line breaks and capital hexadecimal: have one spelling only.
	prefix := fmt.Sprintf("%s+%08x+", v.Name(), v.KeyHash())
	if rest, ok := strings.CutPrefix(text, prefix); !ok || !canonicalBase64(rest) {
		return Key{}, fmt.Errorf("%w: not in its canonical spelling", ErrKey)
	}
	return Key{verifier: v, text: text}, nil
}

// Origin returns the name of the log.
func (k Key) Origin() string {
	if k.verifier == nil {
		return ""
	}
	return k.verifier.Name()
}

// String returns the key's line in note format, without a newline.
func (k Key) String() string { return k.text }

// IsZero reports whether k is the zero value.
func (k Key) IsZero() bool { return k.verifier == nil }

// Signer signs checkpoints of one log. It never shows its secret.
type Signer struct {
	signer note.Signer
	key    Key
}

// NewSigner reads a signing key that NewLogKey made.
func NewSigner(skey string) (*Signer, error) {
	// The text is secret: no error may quote it.
	skey = strings.TrimSuffix(skey, "\n")
	if len(skey) > maxKey {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrKey, len(skey), maxKey)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		return nil, fmt.Errorf("%w: expected the signing key PRIVATE+KEY+ORIGIN+HASH+KEY", ErrKey)
	}
	if err := CheckOrigin(s.Name()); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrKey, err)
	}
	vkey, err := verifierKey(skey, s.Name())
	if err != nil {
		return nil, err
	}
	key, err := ParseKey(vkey)
	if err != nil {
		return nil, err
	}
	return &Signer{signer: s, key: key}, nil
}

// Key returns the verifying half.
func (s *Signer) Key() Key { return s.key }

// Origin returns the name of the log.
func (s *Signer) Origin() string { return s.key.Origin() }

// String names the log and not the key.
func (s *Signer) String() string { return "signer of log " + s.Origin() }

// GoString is String: %#v shows no secret either.
func (s *Signer) GoString() string { return s.String() }
