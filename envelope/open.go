package envelope

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/hpke"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"slices"
	"time"

	"github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/secret"
)

// KeyLookup returns the signing key of an id, or nil. Whether that key was in force at the time in question is the
// lookup's business: a client asks the current key set, an auditor the keys as of the envelope's log entry.
type KeyLookup func(kid string) *ecdsa.PublicKey

// Signed is an envelope whose signature has been checked and which has not been opened.
type Signed struct {
	KeyID   string
	Context Context
	Digest  Digest // SHA-256 of the envelope's bytes
}

// Verify checks form and signature of an envelope without opening it. It does not look at times: an envelope of
// last year verifies. This is what auditors use.
func Verify(jws []byte, keys KeyLookup) (Signed, error) {
	s, _, err := verify(jws, keys)
	return s, err
}

func verify(jws []byte, keys KeyLookup) (Signed, *parts, error) {
	p, input, sig, err := parse(jws)
	if err != nil {
		return Signed{}, nil, err
	}
	c, err := ParseContext(p.aad)
	if err != nil {
		return Signed{}, nil, err
	}
	key := keys(p.kid)
	if key == nil {
		return Signed{}, nil, fmt.Errorf("%w: key id %s", ErrUnknownKey, p.kid)
	}
	if err := proof.VerifyES256(key, input, sig); err != nil {
		return Signed{}, nil, ErrCrypto
	}
	if c.Suite != p.suite.Number() {
		return Signed{}, nil, fmt.Errorf("%w: context and header disagree", ErrSuite)
	}
	return Signed{KeyID: p.kid, Context: c, Digest: DigestOf(jws)}, p, nil
}

// Expectation is what the client asked for and where. Everything but Skew must be set: what is not expected can't
// be checked, so an empty field is an error and never a wildcard.
type Expectation struct {
	Request      string        // the request id it chose
	Issuer       string        // SPIFFE ID of the broker it is pinned to
	Subject      string        // its own SPIFFE ID
	Instance     string        // thumbprint of its instance key
	Audience     string        //
	Channels     []Digest      // exporter values of the connections over which this request id was sent: one, or more after a retry
	MinimumSuite Suite         // nothing weaker is opened
	Now          time.Time     //
	Skew         time.Duration // how far the broker's clock may be ahead, 0 to MaxSkew; never prolongs the expiry
}

// MaxSkew is the largest clock difference that can be allowed for.
const MaxSkew = 5 * time.Minute

func (e *Expectation) validate() error {
	for _, s := range []struct{ name, value string }{
		{"request id", e.Request}, {"issuer", e.Issuer}, {"subject", e.Subject}, {"instance", e.Instance}, {"audience", e.Audience},
	} {
		if s.value == "" {
			return fmt.Errorf("%w: no %s to expect", ErrInvalid, s.name)
		}
	}
	if len(e.Channels) == 0 || e.MinimumSuite.IsZero() || e.Now.IsZero() || e.Skew < 0 || e.Skew > MaxSkew {
		return fmt.Errorf("%w: need channel, minimum suite, time, and a skew of 0 to %v", ErrInvalid, MaxSkew)
	}
	return nil
}

// check compares an authentic context with what was expected.
func (e *Expectation) check(c *Context) error {
	for _, s := range []struct{ name, want, got string }{
		{"request id", e.Request, c.Request},
		{"issuer", e.Issuer, c.Issuer},
		{"subject", e.Subject, c.Subject},
		{"instance", e.Instance, c.Instance},
		{"audience", e.Audience, c.Audience},
	} {
		if s.want != s.got {
			return fmt.Errorf("%w: %s is %s, not %s", ErrMismatch, s.name, s.got, s.want)
		}
	}
	known := 0
	for _, ch := range e.Channels {
		known |= subtle.ConstantTimeCompare(ch[:], c.Channel[:]) // a context never has the zero channel
	}
	if known != 1 {
		return fmt.Errorf("%w: sealed for another connection", ErrMismatch)
	}
	if now := e.Now; !now.Before(time.Unix(c.Expires, 0)) {
		return fmt.Errorf("%w: at %s, now %s", ErrExpired, utc(time.Unix(c.Expires, 0)), utc(now))
	}
	if start := time.Unix(c.NotBefore, 0); e.Now.Add(e.Skew).Before(start) {
		return fmt.Errorf("%w: from %s, now %s; check the clock", ErrNotYetValid, utc(start), utc(e.Now))
	}
	return nil
}

func utc(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Opened is an opened envelope. Its secret and its r are printed by no verb; [Opened.Wipe] ends them. It belongs to
// one goroutine.
type Opened struct {
	Signed
	plain secret.Bytes // label, r, secret
}

// Secret returns the secret. It belongs to the Opened: a copy is needed to keep it past Wipe.
func (o *Opened) Secret() secret.Bytes {
	plain := o.plain.Expose()
	if plain == nil {
		return secret.Bytes{}
	}
	return secret.NewBytes(plain[len(labelData)+randLen:])
}

// Wipe overwrites secret and r. It may be called twice.
func (o *Opened) Wipe() {
	o.plain.Zero()
	o.plain = secret.Bytes{}
}

// Open verifies an envelope, compares it with what was asked for, and decrypts it.
//
// Cheap checks come first. The signature is checked before anything in the envelope is believed, so that
// [ErrMismatch], [ErrExpired], [ErrNotYetValid] and [ErrSuite] speak of genuine envelopes only.
func Open(jws []byte, keys KeyLookup, recipient *Recipient, expect Expectation) (*Opened, error) {
	if recipient == nil || keys == nil {
		return nil, fmt.Errorf("open envelope: %w: no recipient key or no signing keys", ErrInvalid)
	}
	if err := expect.validate(); err != nil {
		return nil, fmt.Errorf("open envelope: %w", err)
	}
	signed, p, err := verify(jws, keys)
	if err != nil {
		return nil, fmt.Errorf("open envelope: %w", err)
	}
	if !p.suite.AtLeast(expect.MinimumSuite) || p.suite != recipient.suite {
		return nil, fmt.Errorf("open envelope: %w: sealed with %s, key is for %s, minimum is %s", ErrSuite, p.suite, recipient.suite, expect.MinimumSuite)
	}
	if err := expect.check(&signed.Context); err != nil {
		return nil, fmt.Errorf("open envelope: %w", err)
	}
	extra := sha256.Sum256(p.aad)
	plain, err := p.decrypt(recipient.key, p.suite.p.protected, extra[:])
	if err != nil {
		return nil, fmt.Errorf("open envelope: %w", err)
	}
	lock := sha256.Sum256(plain[len(labelData):][:randLen]) // parse has seen to the length
	if !bytes.HasPrefix(plain, []byte(labelData)) || subtle.ConstantTimeCompare(lock[:], signed.Context.ReceiptLock[:]) != 1 {
		clear(plain)
		return nil, fmt.Errorf("open envelope: %w", ErrCrypto)
	}
	return &Opened{Signed: signed, plain: secret.NewBytes(plain)}, nil
}

// decrypt returns the JWE's plaintext, or ErrCrypto whatever failed.
func (p *parts) decrypt(key hpke.PrivateKey, protected string, extraInfo []byte) ([]byte, error) {
	r, err := hpke.NewRecipient(p.ek, key, p.suite.p.kdf, p.suite.p.aead, recipientInfo(extraInfo))
	if err != nil {
		return nil, ErrCrypto
	}
	cek, err := r.Open(nil, p.encryptedKey)
	if err != nil {
		return nil, ErrCrypto
	}
	defer clear(cek)
	aead, err := contentAEAD(cek)
	if err != nil {
		return nil, ErrCrypto
	}
	plain, err := aead.Open(nil, nil, slices.Concat(p.iv, p.ciphertext, p.tag), contentAAD(protected, p.aad))
	if err != nil {
		return nil, ErrCrypto
	}
	return plain, nil
}
