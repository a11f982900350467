package sessionproof

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/certs"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/session"
)

// The calls that the instance key signs, by their full gRPC names.
const (
	methodUse     = "/bulla.v1.Broker/Use"
	methodOperate = "/bulla.v1.Broker/Operate"
)

// bound is an SVID's word for the instance key, verified, and from when until when it holds.
type bound struct {
	index       int64
	key         *ecdsa.PublicKey
	from, until time.Time
}

// addTrust takes a trust bundle. Its digest is judged here; by whom it was made the log can't say.
func (v *verifier) addTrust(e located, b event.TrustObserved) error {
	if b.Bundle != event.TrustDigest(b.TrustDomain, b.Authorities) {
		return errors.New("the trust bundle does not have the digest that it says")
	}
	v.trust[b.Bundle] = b
	return nil
}

// addBinding checks an SVID's word for the instance key, as of the time of its event.
func (v *verifier) addBinding(e located, b event.InstanceBound) error {
	if b.Principal != v.issued.Principal || b.Instance != v.issued.Instance {
		return errors.New("it vouches for another principal or instance than that of the session")
	}
	chain, err := parseChain(b.Chain)
	if err != nil {
		return err
	}
	if err := v.chain(chain, b, e.Time.Time()); err != nil {
		return fmt.Errorf("the certificate chain, as of %s: %w", e.Time, err)
	}
	binding, err := proof.VerifyBinding(b.Binding, chain[0], e.Time.Time())
	if err != nil {
		return err
	}
	if proof.Thumbprint(binding.InstanceKey) != v.issued.Instance {
		return errors.New("the binding is that of another instance key than the session's")
	}
	v.bindings = append(v.bindings, bound{e.index, binding.InstanceKey, chain[0].NotBefore, binding.NotAfter})
	return nil
}

func parseChain(der [][]byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for i, one := range der {
		c, err := x509.ParseCertificate(one)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the chain can't be read: %w", i, err)
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, errors.New("there is no certificate chain")
	}
	return chain, nil
}

// chain judges a certificate chain at the time that the log vouches for: by the bundle in the log, and by the
// authorities that the auditor got in another way.
func (v *verifier) chain(chain []*x509.Certificate, b event.InstanceBound, at time.Time) error {
	id, err := certs.ParseID(b.Principal)
	if err != nil {
		return err
	}
	judge := func(authorities []*x509.Certificate) error {
		got, err := certs.Verify(chain, x509bundle.NewSet(x509bundle.FromX509Authorities(id.TrustDomain(), authorities)), at)
		if err == nil && got.String() != b.Principal {
			err = fmt.Errorf("it is that of %s, and not of %s", got, b.Principal)
		}
		return err
	}
	if len(v.opts.Authorities) > 0 {
		if err := judge(v.opts.Authorities); err != nil {
			return fmt.Errorf("by the authorities that were given: %w", err)
		}
	}
	if b.Trust.IsZero() { // recorded before bundles were
		v.unvouched++
		return v.named(chain, id)
	}
	seen, ok := v.trust[b.Trust]
	if !ok || seen.TrustDomain != id.TrustDomain().Name() {
		return fmt.Errorf("the trust bundle %s of %s is not in the proof, or comes later", b.Trust, id.TrustDomain().Name())
	}
	authorities, err := parseChain(seen.Authorities)
	if err != nil {
		return err
	}
	if err := judge(authorities); err != nil {
		return fmt.Errorf("by the trust bundle in the log: %w", err)
	}
	return nil
}

// named checks at least whose name the leaf bears.
func (v *verifier) named(chain []*x509.Certificate, id spiffeid.ID) error {
	if len(chain[0].URIs) != 1 || chain[0].URIs[0].String() != id.String() {
		return fmt.Errorf("it is not that of %s", id)
	}
	return nil
}

// instance returns the instance key, if a binding before the event at index vouches for it at that time.
func (v *verifier) instance(index int64, at time.Time) (*ecdsa.PublicKey, error) {
	when := "before it"
	for _, b := range slices.Backward(v.bindings) {
		if b.index >= index {
			continue
		}
		if !at.Before(b.from) && at.Before(b.until) {
			return b.key, nil
		}
		when = "at its time"
	}
	return nil, fmt.Errorf("no SVID vouches for the instance key %s", when)
}

// life follows the session through its events.
func (v *verifier) life() error {
	for _, e := range v.events {
		if err := v.step(e); err != nil {
			return faultAt(e.index, "%v", err)
		}
	}
	return nil
}

// step takes one event of the session's life.
func (v *verifier) step(e located) error {
	switch b := e.Body.(type) {
	case event.Genesis, event.Restored, event.TrustObserved, event.InstanceBound, event.KeyIntroduced, event.RevisionActivated:
		if _, again := b.(event.Genesis); again && e.index != 0 {
			return errors.New("a second genesis")
		}
		return nil
	case event.SessionIssued:
		return v.open(e, b)
	case event.SessionsWiped:
		if b.Principal != v.issued.Principal || b.Instance != v.issued.Instance || !slices.Contains(b.Sessions, v.proof.Session) {
			return errors.New("it is about other sessions")
		}
		return nil
	case event.RoundOpened, event.ShareIssued, event.RoundApproved, event.RoundRejected, event.RoundClosed, event.RoundExpired:
		if !v.roundOf(b) {
			return errors.New("it is about another round")
		}
		v.others++
		return nil
	}
	if v.session.ID.IsZero() {
		return fmt.Errorf("%s comes before the delivery", e.Body.EventType())
	}
	if !about(e.Body, v.proof.Session) {
		return fmt.Errorf("%s is not about session %s", e.Body.EventType(), v.proof.Session)
	}
	if err := v.signed(e); err != nil {
		return err
	}
	next, err := session.Apply(v.session, e.Event)
	if err != nil {
		return err
	}
	v.session = next
	return nil
}

// open takes the delivery itself.
func (v *verifier) open(e located, b event.SessionIssued) error {
	if !v.session.ID.IsZero() || b.Session != v.proof.Session {
		return errors.New("it issues another session, or this one a second time")
	}
	if err := audit.Permitted(b.Decision); err != nil {
		return err
	}
	if _, err := v.instance(e.index, e.Time.Time()); err != nil {
		return err
	}
	var err error
	v.session, err = session.Open(e.Event)
	return err
}

// signed checks what the instance key signed, where the event holds such a thing.
func (v *verifier) signed(e located) error {
	switch b := e.Body.(type) {
	case event.SessionConfirmed:
		return v.receipt(e, b)
	case event.SessionUsed:
		r := proof.Request{Method: methodUse, Nonce: fixed(b.Nonce), Exporter: fixed(b.Exporter), RequestID: b.Decision.RequestID, PayloadSHA256: b.PayloadSHA256}
		return v.request(e, asked{r, b.Decision, b.Signature, b.PayloadSHA256 == useRequest(b)})
	case event.SessionOperated: // its payload is salted, so that the hash does not tell the input
		r := proof.Request{Method: methodOperate, Nonce: fixed(b.Nonce), Exporter: fixed(b.Exporter), RequestID: b.Decision.RequestID, PayloadSHA256: b.PayloadSHA256}
		return v.request(e, asked{r, b.Decision, b.Signature, false})
	}
	return nil
}

// asked is a signed request, and what was decided on it. named says that its payload is known to name the session:
// whoever writes the log could take a request that the same instance made about another one.
type asked struct {
	proof.Request
	decision  event.Decision
	signature []byte
	named     bool
}

// request checks a signed request.
func (v *verifier) request(e located, r asked) error {
	if err := audit.Permitted(r.decision); err != nil {
		return err
	}
	key, err := v.instance(e.index, e.Time.Time())
	if err != nil {
		return err
	}
	if err := proof.VerifyRequest(key, r.Request, r.signature); err != nil {
		return errors.New("the signature of the request is not that of the instance key")
	}
	once := string(r.Exporter[:]) + string(r.Nonce[:])
	if v.nonces[once] {
		return errors.New("the signed request was counted before: each answers a nonce of its own")
	}
	v.nonces[once] = true
	if r.named {
		v.receipts++
	} else {
		v.requests++
	}
	return nil
}

// useRequest is SHA-256 of the request for a share as it is sent: a bulla.v1.UseRequest without tokens, whose fields
// the event has. One with tokens has another.
func useRequest(b event.SessionUsed) event.Digest {
	id := b.Session.String()
	payload := append([]byte{1<<3 | 2, byte(len(id))}, id...)
	payload = binary.AppendUvarint(append(payload, 2<<3), uint64(b.Number))
	if b.Ahead {
		payload = append(payload, 3<<3, 1)
	}
	return sha256.Sum256(payload)
}

// fixed is zero for what does not have 32 bytes, which no signature is over.
func fixed(b []byte) (out [32]byte) {
	if len(b) == len(out) {
		out = [32]byte(b)
	}
	return out
}

func (v *verifier) receipt(e located, b event.SessionConfirmed) error {
	key, err := v.instance(e.index, e.Time.Time())
	if err != nil {
		return err
	}
	err = envelope.VerifyReceipt(envelope.Receipt{
		Session: b.Session.String(), EnvelopeDigest: envelope.Digest(v.issued.EnvelopeDigest), R: fixed(b.R), Signature: b.Signature,
	}, envelope.ReceiptExpectation{
		Session: v.proof.Session.String(), EnvelopeDigest: envelope.Digest(v.issued.EnvelopeDigest), Lock: envelope.Digest(v.issued.ReceiptLock), Instance: key,
	})
	if err != nil {
		return errors.New("the receipt does not open the envelope's lock, or is not signed by the instance key")
	}
	v.receipts++
	return nil
}

// about says whether an event of sessions is about this one.
func about(body event.Body, id event.ID) bool {
	switch b := body.(type) {
	case event.SessionConfirmed:
		return b.Session == id
	case event.SessionUsed:
		return b.Session == id
	case event.SessionOperated:
		return b.Session == id
	case event.SessionRevoked:
		return b.Session == id
	case event.SessionClosed:
		return b.Session == id
	case event.SessionsExpired:
		return slices.Contains(b.Sessions, id)
	case event.SessionsUnconfirmed:
		return slices.Contains(b.Sessions, id)
	case event.SessionsRevoked:
		return slices.Contains(b.Sessions, id)
	}
	return false
}

// roundOf says whether an event is about the session's round of custodians, or the approvals that it consumed.
func (v *verifier) roundOf(body event.Body) bool {
	of := func(id event.ID) bool {
		return v.issued.Custody != nil && id == v.proof.Session || !id.IsZero() && id == v.issued.Approval
	}
	switch b := body.(type) {
	case event.RoundOpened:
		return of(b.Round)
	case event.ShareIssued:
		return of(b.Round)
	case event.RoundApproved:
		return of(b.Round)
	case event.RoundRejected:
		return of(b.Round)
	case event.RoundClosed:
		return of(b.Round)
	case event.RoundExpired:
		return of(b.Round)
	}
	return false
}
