package sessionproof

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/proto"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/certs/xtest"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/ledger/event"
)

const (
	origin    = "test.example/bulla"
	principal = "spiffe://dev.bulla.test/workload"
)

// long ago: every certificate here has ended since.
var start = time.Date(2019, 3, 1, 9, 0, 0, 0, time.UTC)

// story is a log that somebody who has its key made as they liked, with the keys of the others in it.
type story struct {
	t        testing.TB
	signer   *proofs.Signer
	ca       *xtest.CA
	instance *ecdsa.PrivateKey
	session  event.ID
	issued   event.SessionIssued
	trust    event.TrustObserved
	bound    event.InstanceBound
	r        [32]byte
	events   []event.Event
}

// newStory makes the beginning of a log, and a session that is not delivered yet.
func newStory(t testing.TB) *story {
	t.Helper()
	skey, vkey, err := proofs.NewLogKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	s := &story{t: t, ca: authority(t), session: event.NewID(start), r: [32]byte{7}}
	if s.signer, err = proofs.NewSigner(skey); err != nil {
		t.Fatal(err)
	}
	if s.instance, err = proof.GenerateInstanceKey(); err != nil {
		t.Fatal(err)
	}
	s.trust = event.NewTrustObserved("dev.bulla.test", [][]byte{s.ca.Certificate.Raw})
	s.bound = s.bind(xtest.Leaf{ID: principal, From: start.Add(-time.Minute), NotAfter: start.Add(time.Hour)}, s.instance)
	s.issued = event.SessionIssued{
		Session: s.session, Principal: principal, Instance: s.bound.Instance, Secret: "demo/db", Version: 1, Class: "standard", Grade: "open",
		Suite: "HPKE-9-KE", KeyID: "k1", EnvelopeDigest: digest("envelope"), ReceiptLock: sha256.Sum256(s.r[:]), Expires: event.NewTime(start.Add(time.Hour)),
		Decision: event.Decision{RequestID: event.NewID(start).String(), Action: "deliver", Effect: "PERMIT", Revision: digest("revision"), Sequence: 3, Signals: []byte(`{}`), Result: []byte(`{}`)},
	}
	s.add("", event.Genesis{Origin: origin, LogKey: vkey})
	s.add("", event.KeyIntroduced{KeyID: "k1", Use: "envelope", Public: []byte("public")})
	s.add("", event.RevisionActivated{Digest: digest("revision"), Sequence: 3, Source: "test"})
	return s
}

// authority is one of that time.
func authority(t testing.TB) *xtest.CA {
	return xtest.NewCA(t, "dev.bulla.test").Intermediate(t, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = start.Add(-24*time.Hour), start.Add(24*time.Hour)
	})
}

func digest(s string) event.Digest { return sha256.Sum256([]byte(s)) }

// bind makes an SVID's word for an instance key.
func (s *story) bind(leaf xtest.Leaf, instance *ecdsa.PrivateKey) event.InstanceBound {
	s.t.Helper()
	svid := s.ca.Issue(s.t, leaf)
	binding, err := proof.SignBinding(svid.PrivateKey, svid.Certificates[0], &instance.PublicKey, svid.Certificates[0].NotAfter)
	if err != nil {
		s.t.Fatal(err)
	}
	return event.InstanceBound{
		Principal: leaf.ID, Instance: proof.Thumbprint(&instance.PublicKey), Binding: binding, Chain: [][]byte{svid.Certificates[0].Raw}, Trust: s.trust.Bundle,
	}
}

// add records an event, a second after the one before.
func (s *story) add(subject string, body event.Body) {
	s.events = append(s.events, event.New(start.Add(time.Duration(len(s.events))*time.Second), subject, body))
}

// deliver records bundle, binding and delivery.
func (s *story) deliver() *story {
	s.add("", s.trust)
	s.add(principal, s.bound)
	s.add(principal, s.issued)
	return s
}

// receipt is a good one.
func (s *story) receipt() event.SessionConfirmed {
	s.t.Helper()
	statement := proof.Statement(envelope.LabelReceipt, []byte(s.session.String()), s.issued.EnvelopeDigest[:], s.r[:])
	sig, err := proof.SignES256(s.instance, statement)
	if err != nil {
		s.t.Fatal(err)
	}
	return event.SessionConfirmed{Session: s.session, R: s.r[:], Signature: sig}
}

// use is a good use of a gated session.
func (s *story) use(number uint32) event.SessionUsed {
	s.t.Helper()
	return s.ask(number, &bullav1.UseRequest{SessionId: s.session.String(), Number: number})
}

// ask is a use by a request of any content.
func (s *story) ask(number uint32, in *bullav1.UseRequest) event.SessionUsed {
	s.t.Helper()
	payload, err := proto.Marshal(in)
	if err != nil {
		s.t.Fatal(err)
	}
	request := proof.Request{Method: methodUse, Nonce: [32]byte{1, byte(len(s.events))}, Exporter: [32]byte{2}, RequestID: event.NewID(start).String(), PayloadSHA256: sha256.Sum256(payload)}
	sig, err := proof.SignRequest(s.instance, request)
	if err != nil {
		s.t.Fatal(err)
	}
	decision := s.issued.Decision
	decision.RequestID = request.RequestID
	return event.SessionUsed{Session: s.session, Number: number, Ahead: in.GetAhead(), Nonce: request.Nonce[:], Exporter: request.Exporter[:], PayloadSHA256: request.PayloadSHA256, Signature: sig, Decision: decision}
}

// proof signs the log and proves all of its events in it.
func (s *story) proof() Proof {
	s.t.Helper()
	p := Proof{Session: s.session, LogKey: s.signer.Key().String()}
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var out []tlog.Hash
		for _, i := range indexes {
			out = append(out, stored[i])
		}
		return out, nil
	})
	for i, e := range s.events {
		encoding, err := e.Encode()
		if err != nil {
			s.t.Fatal(err)
		}
		r := audit.Record{Index: int64(i), Encoding: encoding, EventSalt: event.NewSalt(), ReplySalt: event.NewSalt()}
		if b, ok := e.Body.(event.SessionIssued); ok {
			r.Reply = b.EnvelopeDigest
		}
		hashes, err := tlog.StoredHashesForRecordHash(int64(i), proofs.LeafHash(r.Leaf().Bytes()), reader)
		if err != nil {
			s.t.Fatal(err)
		}
		stored = append(stored, hashes...)
		p.Entries = append(p.Entries, Entry{Record: r})
	}
	size := int64(len(s.events))
	root, err := tlog.TreeHash(size, reader)
	if err != nil {
		s.t.Fatal(err)
	}
	if p.Checkpoint, err = s.signer.Sign(proofs.Checkpoint{Origin: s.signer.Origin(), Size: size, Root: root}); err != nil {
		s.t.Fatal(err)
	}
	for i := range p.Entries {
		if p.Entries[i].Inclusion, err = tlog.ProveRecord(size, int64(i), reader); err != nil {
			s.t.Fatal(err)
		}
	}
	return p
}

// restore goes on in another log.
func (s *story) restore(next string) *story {
	s.t.Helper()
	skey, vkey, err := proofs.NewLogKey(next)
	if err != nil {
		s.t.Fatal(err)
	}
	s.add("", event.Restored{Incarnation: 2, Origin: next, LogKey: vkey, Previous: s.signer.Origin()})
	if s.signer, err = proofs.NewSigner(skey); err != nil {
		s.t.Fatal(err)
	}
	return s
}

// verify verifies the proof of the log as it is.
func (s *story) verify() (Report, error) {
	s.t.Helper()
	return Verify(s.proof(), Options{Key: s.signer.Key()})
}

func has(all []string, part string) bool { return strings.Contains(strings.Join(all, "\n"), part) }
