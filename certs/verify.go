package certs

import (
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	maxChain     = 8        // certificates that a peer may send
	maxChainSize = 32 << 10 // bytes of all of them; TLS takes 256 KiB, and chains are kept as evidence
	minRSABits   = 2048     // of the key in a leaf
)

// Verify judges chain (the leaf first) against bundles as of now, with the strict rules of the package comment, and
// returns the ID of the leaf. It knows no list of allowed trust domains: whatever bundles answers for is trusted. Use it
// for recorded chains; for live peers use [PeerVerifier].
func Verify(chain []*x509.Certificate, bundles x509bundle.Source, now time.Time) (spiffeid.ID, error) {
	id, err := leafID(chain)
	if err != nil {
		return spiffeid.ID{}, err
	}
	bundle, err := bundles.GetX509BundleForTrustDomain(id.TrustDomain())
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("%w: no trust bundle for %q", ErrUntrusted, id.TrustDomain().Name())
	}
	if _, err := verifyTo(chain, newPool(bundle), id, now); err != nil {
		return spiffeid.ID{}, err
	}
	return id, nil
}

// window is the time in which a verified path holds: the intersection of its certificates' validities.
type window struct{ notBefore, notAfter time.Time }

func (w window) check(id spiffeid.ID, now time.Time) error {
	switch {
	case now.Before(w.notBefore):
		return &validityError{kind: ErrNotYetValid, id: id, bound: w.notBefore, now: now}
	case now.After(w.notAfter):
		return &validityError{kind: ErrExpired, id: id, bound: w.notAfter, now: now}
	}
	return nil
}

// leafID applies all rules that need no trust anchor and no clock.
func leafID(chain []*x509.Certificate) (spiffeid.ID, error) {
	if err := checkPresent(chain); err != nil {
		return spiffeid.ID{}, err
	}
	leaf := chain[0]
	id, err := idFromCertificate(leaf)
	if err != nil {
		return spiffeid.ID{}, err
	}
	switch {
	case leaf.IsCA:
		return spiffeid.ID{}, fmt.Errorf("%w: certificate of %s is that of an authority (CA flag)", ErrUntrusted, id)
	case leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return spiffeid.ID{}, fmt.Errorf("%w: certificate of %s may sign certificates or CRLs", ErrUntrusted, id)
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return spiffeid.ID{}, fmt.Errorf("%w: certificate of %s lacks the key usage digitalSignature", ErrUntrusted, id)
	}
	if key, ok := leaf.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() < minRSABits {
		return spiffeid.ID{}, fmt.Errorf("%w: certificate of %s has an RSA key of %d bits, the least is %d", ErrUntrusted, id, key.N.BitLen(), minRSABits)
	}
	return id, nil
}

// checkPresent refuses chains that are empty, too long, or not made of parsed certificates.
func checkPresent(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return fmt.Errorf("%w: peer sent no certificate", ErrUntrusted)
	}
	if len(chain) > maxChain {
		return fmt.Errorf("%w: chain of %d certificates, the most is %d", ErrUntrusted, len(chain), maxChain)
	}
	size := 0
	for _, c := range chain {
		if c == nil || len(c.Raw) == 0 {
			return fmt.Errorf("%w: a certificate of the chain was never parsed", ErrUntrusted)
		}
		size += len(c.Raw)
	}
	if size > maxChainSize {
		return fmt.Errorf("%w: chain of %d bytes, the most is %d", ErrUntrusted, size, maxChainSize)
	}
	return nil
}

// verifyTo finds a path from chain to roots that holds now, and returns when it holds. Of several paths it returns the
// one that holds longest.
func verifyTo(chain []*x509.Certificate, roots *x509.CertPool, id spiffeid.ID, now time.Time) (window, error) {
	leaf := chain[0]
	if err := (window{leaf.NotBefore, leaf.NotAfter}).check(id, now); err != nil {
		return window{}, err // cheap, and a better sentence than that of crypto/x509
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	paths, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		if invalid := (x509.CertificateInvalidError{}); errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil {
			if timeErr := (window{invalid.Cert.NotBefore, invalid.Cert.NotAfter}).check(id, now); timeErr != nil {
				return window{}, timeErr
			}
		}
		return window{}, fmt.Errorf("%w: certificate of %s has no path to an authority in the current bundle of %q", ErrUntrusted, id, id.TrustDomain().Name())
	}
	var best window
	for _, path := range paths {
		if w := pathWindow(path); w.notAfter.After(best.notAfter) {
			best = w
		}
	}
	return best, nil
}

func pathWindow(path []*x509.Certificate) window {
	w := window{path[0].NotBefore, path[0].NotAfter}
	for _, c := range path[1:] {
		if c.NotBefore.After(w.notBefore) {
			w.notBefore = c.NotBefore
		}
		if c.NotAfter.Before(w.notAfter) {
			w.notAfter = c.NotAfter
		}
	}
	return w
}

func newPool(bundle *x509bundle.Bundle) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range bundle.X509Authorities() {
		pool.AddCert(c)
	}
	return pool
}

// validityError says what is not valid now, by how much, and whose clock looks wrong. It wraps kind.
type validityError struct {
	kind  error // ErrNotYetValid or ErrExpired
	id    spiffeid.ID
	bound time.Time
	now   time.Time
	hint  string
}

func (e *validityError) Unwrap() error { return e.kind }

func (e *validityError) Error() string {
	off := e.now.Sub(e.bound).Abs().Round(time.Second)
	at, clock := e.bound.UTC().Format(time.RFC3339), e.now.UTC().Format(time.RFC3339)
	hint := e.hint
	if e.kind == ErrNotYetValid {
		if hint == "" {
			hint = "this machine's clock looks slow, or that of the issuer fast"
		}
		return fmt.Sprintf("%s: certificate of %s begins at %s, in %s by this machine's clock (%s): %s", e.kind, e.id, at, off, clock, hint)
	}
	if hint == "" {
		hint = "it was not renewed, or this machine's clock looks fast"
	}
	return fmt.Sprintf("%s: certificate of %s ended at %s, %s ago by this machine's clock (%s): %s", e.kind, e.id, at, off, clock, hint)
}

// withHint says whose clock looks wrong, by the one other certificate at hand: this process's own. Issued by the same
// kind of authority and renewed all the time, it fails with a wrong clock here and holds with a right one.
func withHint(err error, own window) error {
	var v *validityError
	if !errors.As(err, &v) {
		return err
	}
	hinted := *v
	switch {
	case v.now.Before(own.notBefore):
		hinted.hint = "this process's own certificate is not valid yet either, so this machine's clock looks slow"
	case v.now.After(own.notAfter):
		hinted.hint = "this process's own certificate has ended too, so this machine's clock looks fast, or nothing is renewed any more"
	case v.kind == ErrNotYetValid:
		hinted.hint = "this process's own certificate is valid, so the clock of the peer's issuer looks fast"
	default:
		hinted.hint = "this process's own certificate is valid, so the peer does not renew its own, or the clock of the peer's issuer looks slow"
	}
	return &hinted
}

func isValidity(err error) bool {
	return errors.Is(err, ErrNotYetValid) || errors.Is(err, ErrExpired)
}
