package devauthority

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/bulla-project/bulla/certs"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	defaultTTL    = time.Hour
	minTTL        = time.Second
	maxTTL        = 365 * 24 * time.Hour
	maxJWTTTL     = 5 * time.Minute
	maxPublishing = time.Second // how long a new authority is published before it signs, at most
)

// Config says what to be an authority for.
type Config struct {
	// DevelopmentOnly must be set by whoever starts a development authority on purpose. Nothing else may set it.
	DevelopmentOnly bool
	// Dir keeps the keys; it is made if it is missing (0700), and used by one process at a time.
	Dir string
	// TrustDomain is the name of the trust domain, such as dev.bulla.test.
	TrustDomain string
	// TTL is the lifetime of X.509-SVIDs, from 1 s to a year, rounded up to a whole second's end; 0 means an hour.
	// JWT-SVIDs live as long, but for at most 5 minutes.
	TTL time.Duration
	// Log takes what happens; nil means slog.Default(), since the warning of this package must not get lost.
	Log *slog.Logger
	// Now is the clock for what is issued; nil means time.Now.
	Now func() time.Time
}

// Authority is a running development authority. Its methods may be called from any goroutine.
type Authority struct {
	cfg  Config // with defaults in place; never changes
	td   spiffeid.TrustDomain
	lock *os.File      // holds the lock of Config.Dir until Close
	done chan struct{} // closed by Close

	mu        sync.Mutex
	keys      *keys                                         // guarded by mu; replaced, never changed
	federated map[spiffeid.TrustDomain]*spiffebundle.Bundle // guarded by mu
	published *published                                    // guarded by mu; replaced, never changed
	endpoints []*endpoint                                   // guarded by mu
	changed   chan struct{}                                 // guarded by mu: closed and replaced at every change
	closed    bool                                          // guarded by mu
	tasks     sync.WaitGroup                                // renewals and servers; Add under mu and only while open
}

// New starts an authority with the keys in cfg.Dir; the first time it makes them.
func New(cfg Config) (*Authority, error) {
	if !cfg.DevelopmentOnly {
		return nil, fmt.Errorf("%w: this authority keeps its keys in a file and attests nobody; use SPIRE, or start as dev or demo", ErrNotDevelopment)
	}
	if cfg.TTL == 0 {
		cfg.TTL = defaultTTL
	}
	if cfg.TTL < minTTL || cfg.TTL > maxTTL {
		return nil, fmt.Errorf("%w: svid-ttl %s is not between %s and %s", ErrConfig, cfg.TTL, minTTL, maxTTL)
	}
	if cfg.Dir == "" {
		return nil, fmt.Errorf("%w: no state directory", ErrConfig)
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	td, err := certs.ParseTrustDomain(cfg.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	loaded, err := loadKeys(cfg.Dir, td, cfg.Now())
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	a := &Authority{
		cfg: cfg, td: td, lock: lock, done: make(chan struct{}), keys: loaded,
		federated: make(map[spiffeid.TrustDomain]*spiffebundle.Bundle), changed: make(chan struct{}),
	}
	if a.published, err = publish(loaded, nil); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	cfg.Log.Warn("DEVELOPMENT SPIFFE authority: not for production, it gives an identity to whoever opens its sockets",
		"trust_domain_id", td.IDString(), "dir", cfg.Dir, "svid_ttl", cfg.TTL.String())
	return a, nil
}

// TrustDomain returns the trust domain that this authority is for.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.td }

// DeviceKey returns the key (P-256) that vouches for software devices. It is kept over restarts, and signs no SVIDs.
func (a *Authority) DeviceKey() *ecdsa.PrivateKey { return a.view().keys.device }

// DeviceKeyPublic returns the public half of DeviceKey.
func (a *Authority) DeviceKeyPublic() *ecdsa.PublicKey { return &a.DeviceKey().PublicKey }

// Bundle returns a copy of what verifiers of this trust domain should know: all X.509 and JWT authorities.
func (a *Authority) Bundle() *spiffebundle.Bundle { return a.view().published.own.Clone() }

// Mint issues one X.509-SVID that nobody renews, for files and tests. ttl is 1 s or more.
func (a *Authority) Mint(id spiffeid.ID, ttl time.Duration) (*x509svid.SVID, error) {
	if err := a.checkMember(id); err != nil {
		return nil, err
	}
	if ttl < minTTL || ttl > maxTTL {
		return nil, fmt.Errorf("%w: lifetime %s is not between %s and %s", ErrConfig, ttl, minTTL, maxTTL)
	}
	now := a.cfg.Now()
	minted, err := a.view().keys.signer(now).issueX509(id, now, ttl)
	if err != nil {
		return nil, err
	}
	return minted.svid, nil
}

func (a *Authority) checkMember(id spiffeid.ID) error {
	if _, err := certs.ParseID(id.String()); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if !id.MemberOf(a.td) {
		return fmt.Errorf("%w: %s is not of the trust domain %q", ErrConfig, id, a.td.Name())
	}
	return nil
}

// AuthorityInfo describes one generation of the authority.
type AuthorityInfo struct {
	// ID names it; it is also the kid of its JWT key.
	ID string
	// Signs is true for the one that signs now.
	Signs bool
	// Tainted is true for one that must not sign any more, but is still in the bundle.
	Tainted bool
}

// Authorities lists the generations in the bundle, the oldest first.
func (a *Authority) Authorities() []AuthorityInfo {
	k := a.view().keys
	signer := k.signer(a.cfg.Now())
	var list []AuthorityInfo
	for _, g := range k.generations {
		list = append(list, AuthorityInfo{ID: g.id, Signs: g == signer, Tainted: g.tainted})
	}
	return list
}

// signer is the newest generation that may sign at now. One that was published a moment ago waits, unless there is no
// other.
func (k *keys) signer(now time.Time) *generation {
	for _, g := range slices.Backward(k.generations) {
		if !g.tainted && !now.Before(g.signsFrom) {
			return g
		}
	}
	for _, g := range slices.Backward(k.generations) {
		if !g.tainted {
			return g
		}
	}
	return k.generations[len(k.generations)-1]
}

// RotateAuthority adds a new generation and returns its name. Streams carry it in their bundles at once; it begins to
// sign a second later (a tenth of the TTL, if that is shorter), so SVIDs move to it at their next renewal, and no
// verifier meets one whose authority it does not know. Older generations stay in the bundle.
func (a *Authority) RotateAuthority() (string, error) {
	now := a.cfg.Now()
	g, err := newGeneration(a.td, now, now.Add(min(maxPublishing, a.cfg.TTL/10)))
	if err != nil {
		return "", err
	}
	err = a.changeKeys(func(k *keys) error {
		if len(k.generations) >= maxGenerations {
			return fmt.Errorf("%w: %d generations are kept, the most possible: revoke some", ErrUnknownAuthority, maxGenerations)
		}
		k.generations = append(k.generations, g)
		return nil
	})
	if err != nil {
		return "", err
	}
	a.cfg.Log.Info("authority rotated", "authority_id", g.id)
	return g.id, nil
}

// TaintAuthority ends the signing of a generation and renews at once what it signed. It stays in the bundle, so what is
// still about goes on being accepted. Another generation must be there to sign.
func (a *Authority) TaintAuthority(id string) error {
	err := a.changeKeys(func(k *keys) error {
		i, err := k.find(id)
		if err != nil {
			return err
		}
		tainted := *k.generations[i]
		tainted.tainted = true
		k.generations[i] = &tainted
		return k.checkSigner(id)
	})
	if err == nil {
		a.cfg.Log.Info("authority tainted", "authority_id", id)
	}
	return err
}

// RevokeAuthority takes a generation out of the bundle and renews at once what it signed: nothing that it signed is
// accepted any more by whoever follows the bundle. Another generation must be there to sign.
func (a *Authority) RevokeAuthority(id string) error {
	err := a.changeKeys(func(k *keys) error {
		i, err := k.find(id)
		if err != nil {
			return err
		}
		k.generations = slices.Delete(k.generations, i, i+1)
		return k.checkSigner(id)
	})
	if err == nil {
		a.cfg.Log.Info("authority revoked", "authority_id", id)
	}
	return err
}

func (k *keys) find(id string) (int, error) {
	i := slices.IndexFunc(k.generations, func(g *generation) bool { return g.id == id })
	if i < 0 {
		return 0, fmt.Errorf("%w %q: there is none of this name", ErrUnknownAuthority, id)
	}
	return i, nil
}

func (k *keys) checkSigner(id string) error {
	if !slices.ContainsFunc(k.generations, func(g *generation) bool { return !g.tainted }) {
		return fmt.Errorf("%w %s: it is the only one that may sign: rotate first", ErrUnknownAuthority, id)
	}
	return nil
}

// changeKeys applies change to a copy of the keys, stores the copy, and only then puts it in force. Where the signer of an
// SVID is tainted or gone, the SVID is renewed before the change is announced, in the same step.
func (a *Authority) changeKeys(change func(*keys) error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrClosed
	}
	next := *a.keys
	next.generations = slices.Clone(a.keys.generations)
	if err := change(&next); err != nil {
		return err
	}
	pub, err := publish(&next, a.federated)
	if err != nil {
		return err
	}
	renewed := make(map[*endpoint]*issued)
	now := a.cfg.Now()
	for _, ep := range a.endpoints {
		if next.maySign(ep.current.signer) {
			continue
		}
		if renewed[ep], err = next.signer(now).issueX509(ep.id, now, a.cfg.TTL); err != nil {
			return err
		}
	}
	if err := next.store(a.cfg.Dir); err != nil {
		return err
	}
	for ep, current := range renewed {
		ep.current = current
	}
	a.keys, a.published = &next, pub
	a.announce()
	return nil
}

func (k *keys) maySign(id string) bool {
	return slices.ContainsFunc(k.generations, func(g *generation) bool { return g.id == id && !g.tainted })
}

// AddFederatedBundle gives the bundle of another trust domain to every workload, in place of an earlier one. It lives
// as long as this Authority does.
func (a *Authority) AddFederatedBundle(bundle *spiffebundle.Bundle) error {
	if bundle.TrustDomain() == a.td {
		return fmt.Errorf("%w: %q is the own trust domain, no federated one", ErrConfig, a.td.Name())
	}
	return a.changeFederated(func(m map[spiffeid.TrustDomain]*spiffebundle.Bundle) { m[bundle.TrustDomain()] = bundle.Clone() })
}

// RemoveFederatedBundle ends the federation with td.
func (a *Authority) RemoveFederatedBundle(td spiffeid.TrustDomain) error {
	return a.changeFederated(func(m map[spiffeid.TrustDomain]*spiffebundle.Bundle) { delete(m, td) })
}

func (a *Authority) changeFederated(change func(map[spiffeid.TrustDomain]*spiffebundle.Bundle)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrClosed
	}
	next := make(map[spiffeid.TrustDomain]*spiffebundle.Bundle, len(a.federated)+1)
	for td, b := range a.federated {
		next[td] = b
	}
	change(next)
	pub, err := publish(a.keys, next)
	if err != nil {
		return err
	}
	a.federated, a.published = next, pub
	a.announce()
	return nil
}

// announce wakes all streams. The caller holds mu.
func (a *Authority) announce() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// picture is one consistent state.
type picture struct {
	keys      *keys
	published *published
	changed   <-chan struct{} // closed when this picture is out of date
}

func (a *Authority) view() picture {
	a.mu.Lock()
	defer a.mu.Unlock()
	return picture{keys: a.keys, published: a.published, changed: a.changed}
}

// Close ends all streams and sockets, waits for everything that this Authority started, and gives the directory free.
func (a *Authority) Close() error {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		a.tasks.Wait()
		return nil
	}
	a.closed = true
	close(a.done)
	endpoints := a.endpoints
	a.mu.Unlock()

	var faults []error
	for _, ep := range endpoints {
		faults = append(faults, ep.stop())
	}
	a.tasks.Wait()
	faults = append(faults, a.lock.Close())
	return errors.Join(faults...)
}
