package token

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Limits of a key set.
const (
	MaxKeySet  = 128 << 10 // bytes
	maxKeys    = 64
	minRSABits = 2048
	maxRSABits = 8192
)

// Keys are the public keys of an issuer: a JSON Web Key Set (RFC 7517) in a file or behind one address, kept for a
// while. A set that has become old, and a key id that is not in it, make it be read again, but not more often than
// each pause: whoever shows made-up key ids makes nobody busy. While it can't be read the last one holds, for as long
// as stale says.
type Keys struct {
	read                func(ctx context.Context) ([]byte, error)
	every, pause, stale time.Duration

	mu      sync.Mutex // guards what follows
	set     []jose.JSONWebKey
	at      time.Time     // of the set; zero: there was none
	tried   time.Time     // of the last reading
	reading chan struct{} // closed when the reading that runs has ended; nil: none runs
}

// find returns the one key of the set that a token with this header was signed by.
func (k *Keys) find(ctx context.Context, now time.Time, alg, kid string) (*jose.JSONWebKey, error) {
	for {
		k.mu.Lock()
		key := k.pick(now, alg, kid)
		due := key == nil || now.Sub(k.at) >= k.every
		switch {
		case due && k.reading == nil && (k.tried.IsZero() || now.Sub(k.tried) >= k.pause || now.Before(k.tried)):
			done := make(chan struct{})
			k.tried, k.reading = now, done
			k.mu.Unlock()
			k.refresh(ctx, now, done)
			continue
		case key == nil && k.reading != nil:
			done := k.reading
			k.mu.Unlock()
			select {
			case <-done:
				continue
			case <-ctx.Done():
				return nil, fmt.Errorf("%w: %w", ErrKeys, ctx.Err())
			}
		}
		known := k.usable(now)
		k.mu.Unlock()
		switch {
		case key != nil:
			return key, nil
		case !known:
			return nil, ErrKeys
		}
		return nil, fmt.Errorf("%w: the issuer has no key of this id for %s", ErrSignature, alg)
	}
}

// refresh reads the set. Not under ctx: a caller who goes away must not take the set from the others.
func (k *Keys) refresh(ctx context.Context, now time.Time, done chan struct{}) {
	data, err := k.read(context.WithoutCancel(ctx))
	var set []jose.JSONWebKey
	if err == nil {
		set, err = parseKeys(data)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil {
		k.set, k.at = set, now
	}
	k.reading = nil
	close(done)
}

// Check reads the set now and says what is wrong with it, for a start that is to fail early.
func (k *Keys) Check(ctx context.Context) error {
	data, err := k.read(ctx)
	if err == nil {
		_, err = parseKeys(data)
	}
	return err
}

// usable says whether there is a set that is not too old. The caller holds mu.
func (k *Keys) usable(now time.Time) bool { return !k.at.IsZero() && now.Sub(k.at) <= k.stale }

// pick finds a key by its id; without one the set must hold a single key for the algorithm. The caller holds mu.
func (k *Keys) pick(now time.Time, alg, kid string) *jose.JSONWebKey {
	if !k.usable(now) {
		return nil
	}
	var found *jose.JSONWebKey
	for i := range k.set {
		key := &k.set[i]
		if key.Algorithm != alg || kid != "" && key.KeyID != kid {
			continue
		}
		if found != nil {
			return nil
		}
		found = key
	}
	return found
}

// jwk is what is read of a key. What could name an address or another key (x5u, x5c) is not even looked at.
type jwk struct {
	Kty    string   `json:"kty"`
	Kid    string   `json:"kid,omitempty"`
	Use    string   `json:"use,omitempty"`
	KeyOps []string `json:"key_ops,omitempty"`
	Alg    string   `json:"alg,omitempty"`
	Crv    string   `json:"crv,omitempty"`
	X      string   `json:"x,omitempty"`
	Y      string   `json:"y,omitempty"`
	N      string   `json:"n,omitempty"`
	E      string   `json:"e,omitempty"`
}

// parseKeys reads a key set. Keys that are not for verifying with an algorithm of this package are left out; a private
// key, or two keys of one id and algorithm, spoil the set.
func parseKeys(data []byte) ([]jose.JSONWebKey, error) {
	if len(data) > MaxKeySet {
		return nil, fmt.Errorf("%w: a key set of more than %d bytes", ErrKeys, MaxKeySet)
	}
	members, err := object(bytes.TrimSpace(data))
	if err != nil {
		return nil, fmt.Errorf("%w: the key set: %w", ErrKeys, err)
	}
	var list []map[string]json.RawMessage
	if err := json.Unmarshal(members["keys"], &list); err != nil || len(list) == 0 || len(list) > maxKeys {
		return nil, fmt.Errorf("%w: a key set has 1 to %d keys", ErrKeys, maxKeys)
	}
	var out []jose.JSONWebKey
	for n, raw := range list {
		for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"} {
			if _, ok := raw[private]; ok {
				return nil, fmt.Errorf("%w: key %d of the set is private or shared, and so known to everybody who read it", ErrKeys, n+1)
			}
		}
		key, ok := readKey(raw)
		if !ok {
			continue
		}
		for _, other := range out {
			if other.KeyID == key.KeyID && other.Algorithm == key.Algorithm {
				return nil, fmt.Errorf("%w: the set has two keys of one id", ErrKeys)
			}
		}
		out = append(out, key)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: the set has no key that tokens could be verified with", ErrKeys)
	}
	return out, nil
}

// readKey makes a key of exactly the members that it needs; go-jose does not look at use and key_ops.
func readKey(raw map[string]json.RawMessage) (key jose.JSONWebKey, ok bool) {
	var in jwk
	for name, into := range map[string]any{
		"kty": &in.Kty, "kid": &in.Kid, "use": &in.Use, "key_ops": &in.KeyOps, "alg": &in.Alg, "crv": &in.Crv, "x": &in.X, "y": &in.Y, "n": &in.N, "e": &in.E,
	} {
		if value, there := raw[name]; there && json.Unmarshal(value, into) != nil {
			return key, false
		}
	}
	_, ops := raw["key_ops"]
	if in.Use != "" && in.Use != "sig" || ops && !slices.Contains(in.KeyOps, "verify") {
		return key, false
	}
	declared := in.Alg
	in.KeyOps, in.Use, in.Alg = nil, "", ""
	text, err := json.Marshal(in)
	if err != nil || key.UnmarshalJSON(text) != nil || !key.Valid() || !key.IsPublic() {
		return jose.JSONWebKey{}, false
	}
	key.Algorithm = algorithmOf(key.Key)
	return key, key.Algorithm != "" && (declared == "" || declared == key.Algorithm)
}

// algorithmOf is the one algorithm that a key is good for here, so that no token can choose another; "": none.
func algorithmOf(public any) string {
	switch p := public.(type) {
	case *ecdsa.PublicKey:
		if p.Curve == elliptic.P256() {
			return "ES256"
		}
	case *rsa.PublicKey:
		if bits := p.N.BitLen(); bits >= minRSABits && bits <= maxRSABits && p.E >= 3 && p.E%2 == 1 {
			return "RS256"
		}
	case ed25519.PublicKey:
		return "EdDSA"
	}
	return ""
}
