package certs

import (
	"crypto/sha256"
	"crypto/x509"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// PeerVerifier judges, at each call, the certificate behind a connection that is held open: whether it is valid at this
// moment and still leads to an authority of the current bundle. A verdict is remembered per chain of certificates and
// bundle version, so that most calls cost a hash and a look-up; the time is compared at every call. It may be used by any
// number of goroutines.
type PeerVerifier struct {
	src   *Source
	limit int // entries in one generation

	mu  sync.RWMutex
	new map[peerKey]verdict // guarded by mu
	old map[peerKey]verdict // guarded by mu: the generation before, dropped when new is full
}

// peerKey holds everything a verdict depends on but the time: the chain as sent, and which bundles were in force.
type peerKey struct {
	chain   [sha256.Size]byte
	version uint64
}

func keyOf(chain []*x509.Certificate, version uint64) peerKey {
	if len(chain) == 1 { // the usual case, without an allocation
		return peerKey{sha256.Sum256(chain[0].Raw), version}
	}
	h := sha256.New()
	for _, c := range chain {
		h.Write(c.Raw) // DER carries its own length, so a concatenation is read in one way only
	}
	return peerKey{[sha256.Size]byte(h.Sum(nil)), version}
}

// verdict is what verification said, apart from time. Refusals are remembered too: a peer whose authority was revoked
// must not cost a chain verification with each further call.
type verdict struct {
	id    spiffeid.ID
	holds window
	err   error
}

// NewPeerVerifier returns a verifier against the bundles of src. It remembers at least entries verdicts and at most twice
// as many; 0 means 4096.
func NewPeerVerifier(src *Source, entries int) *PeerVerifier {
	if entries <= 0 {
		entries = 4096
	}
	return &PeerVerifier{src: src, limit: entries, new: make(map[peerKey]verdict), old: make(map[peerKey]verdict)}
}

// Check returns the ID of the peer that sent chain (the leaf first, as in tls.ConnectionState.PeerCertificates), or why it
// is nobody's now: [ErrUntrusted], [ErrExpired], [ErrNotYetValid] or [ErrClosed].
func (v *PeerVerifier) Check(chain []*x509.Certificate, now time.Time) (spiffeid.ID, error) {
	st, err := v.src.load() // one picture: the version belongs to the bundles that are used
	if err != nil {
		return spiffeid.ID{}, err
	}
	if err := checkPresent(chain); err != nil {
		return spiffeid.ID{}, err
	}
	key := keyOf(chain, st.version)
	known, ok := v.lookup(key)
	if !ok || known.err == nil && known.holds.check(known.id, now) != nil {
		// Unknown, or the remembered path has ended: another path (a renewed intermediate) may hold.
		if known, err = v.judge(st, chain, now); err != nil {
			return spiffeid.ID{}, err
		}
		v.remember(key, known)
	}
	if known.err != nil {
		return spiffeid.ID{}, known.err
	}
	return known.id, nil
}

// judge verifies. What depends on the time is returned as an error and never remembered.
func (v *PeerVerifier) judge(st *state, chain []*x509.Certificate, now time.Time) (verdict, error) {
	id, err := leafID(chain)
	if err != nil {
		return verdict{err: err}, nil
	}
	holds, err := v.src.verifyAt(st, id, chain, now)
	if isValidity(err) {
		return verdict{}, err
	}
	return verdict{id: id, holds: holds, err: err}, nil
}

func (v *PeerVerifier) lookup(key peerKey) (verdict, bool) {
	v.mu.RLock()
	known, recent := v.new[key]
	older := false
	if !recent {
		known, older = v.old[key]
	}
	v.mu.RUnlock()
	if older {
		v.remember(key, known)
	}
	return known, recent || older
}

// remember files a verdict in the new generation. A full one becomes the old one, and what was not asked for since is gone.
func (v *PeerVerifier) remember(key peerKey, known verdict) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.new) >= v.limit {
		v.old, v.new = v.new, make(map[peerKey]verdict)
	}
	v.new[key] = known
}
