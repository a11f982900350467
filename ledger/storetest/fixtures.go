// Package storetest holds what every store of the ledger has to pass: the conformance suite [Run], the
// suite of a ledger on a hostile store [RunLedger], and what tests of other packages need: a store in
// memory, a store that fails on demand, a keyring, and events that fit together.
package storetest

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulla-project/bulla/keyring"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
)

// The names that the fixtures use.
const (
	Principal = "spiffe://dev.bulla.test/workload"
	Operator  = "spiffe://dev.bulla.test/operator"
	Instance  = "instance-1"
	Device    = "device-1"
	Secret    = "demo/db"
)

// Start is the time at which the fixtures begin.
var Start = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// Ring makes a keyring that lasts as long as the test.
func Ring(t testing.TB) *keyring.Ring {
	t.Helper()
	return RingIn(t, t.TempDir())
}

// RingIn opens the keyring in a directory, or makes it.
func RingIn(t testing.TB, dir string) *keyring.Ring {
	t.Helper()
	ring, err := OpenRing(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// OpenRing is RingIn without a test.
func OpenRing(ctx context.Context, dir string) (*keyring.Ring, error) {
	path := filepath.Join(dir, "kek")
	kek, err := keyring.OpenFileKEK(path)
	if errors.Is(err, fs.ErrNotExist) {
		kek, err = keyring.CreateFileKEK(path)
	}
	if err != nil {
		return nil, err
	}
	return keyring.Open(ctx, keyring.Config{Path: filepath.Join(dir, "keyring"), KEK: kek, Create: true})
}

// Open starts a ledger on a store, and ends it with the test.
func Open(t testing.TB, store ledger.Store, ring *keyring.Ring) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(t.Context(), ledger.Config{Store: store, Keys: ring})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// Founded starts a ledger like Open and commits what deliveries need: Foundation.
func Founded(t testing.TB, store ledger.Store, ring *keyring.Ring) *ledger.Ledger {
	t.Helper()
	l := Open(t, store, ring)
	for _, c := range Foundation() {
		Commit(t, l, c)
	}
	return l
}

// Commit commits c, or fails the test.
func Commit(t testing.TB, l *ledger.Ledger, c ledger.Commit) ledger.Result {
	t.Helper()
	r, err := l.Commit(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// MustCheck fails the test unless the state is what the events made.
func MustCheck(t testing.TB, l *ledger.Ledger) ledger.Report {
	t.Helper()
	r, err := l.Check(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range r.Differences {
		t.Errorf("%s: %s", d.Where, d.What)
	}
	return r
}

// Foundation is a ledger's beginning: genesis, a signing key, a revision, a secret, a device and a passport.
func Foundation() []ledger.Commit {
	return []ledger.Commit{
		Genesis(), Plain("", event.KeyIntroduced{KeyID: "key-1", Use: "envelope", Public: []byte("public")}),
		Revision(1, event.Digest{}, []byte("policy 1")), SecretVersion(Secret, 1),
		Plain(Operator, event.DeviceEnrolled{Device: Device, Record: json.RawMessage(`{"kind": "tpm2"}`)}),
		Plain(Principal, event.InstanceBound{Principal: Principal, Instance: Instance, Binding: []byte("binding"), Chain: [][]byte{[]byte("leaf")}}),
		Appraisal(1),
	}
}

// Plain is a commit of body with nothing else, at Start.
func Plain(subject string, body event.Body) ledger.Commit {
	return ledger.Commit{Event: event.New(Start, subject, body)}
}

// Genesis is the first event.
func Genesis() ledger.Commit {
	return Plain("", event.Genesis{Origin: "bulla.test/log", TrustDomains: []string{"dev.bulla.test"}, Product: "test"})
}

// Revision activates the bundle with these bytes.
func Revision(sequence uint64, previous event.Digest, archive []byte) ledger.Commit {
	digest := event.Digest(sha256.Sum256(archive))
	c := Plain(Operator, event.RevisionActivated{Digest: digest, Sequence: sequence, Previous: previous, Source: "test"})
	c.Blob = &ledger.Blob{Key: ledger.RevisionBlob(digest), Data: archive, Digest: digest}
	return c
}

// SecretVersion puts a version of a secret.
func SecretVersion(name string, version uint32) ledger.Commit {
	id := event.NewID(Start)
	sealed := append([]byte("sealed "), id[:]...)
	digest := event.Digest(sha256.Sum256(sealed))
	c := Plain(Operator, event.SecretPut{
		Name: name, Class: "standard", Version: version, RecordID: id, Owner: Operator, CiphertextDigest: digest,
	})
	c.Blob = &ledger.Blob{Key: ledger.SecretBlob(id), Data: sealed, Digest: digest}
	return c
}

// Appraisal is fresh evidence of Device for Instance.
func Appraisal(clock int) ledger.Commit {
	return Plain(Principal, event.AttestationAppraised{
		Principal: Principal, Instance: Instance, Device: Device, Result: json.RawMessage(`{"status":"affirming"}`), Counters: &event.DeviceCounters{Clock: uint64(clock)},
	})
}

// Issue is a delivery of version 1 of Secret at now that lives for ttl. receipt zero: none is awaited.
func Issue(now time.Time, ttl, receipt time.Duration) ledger.Commit {
	id := event.NewID(now)
	digest := event.Digest(sha256.Sum256(id[:]))
	body := event.SessionIssued{
		Session: id, Principal: Principal, Instance: Instance, Device: Device, Secret: Secret, Version: 1, Class: "standard",
		Grade: "open", Suite: "HPKE-9-KE", KeyID: "key-1", EnvelopeDigest: digest, ReceiptLock: digest,
		Expires: event.NewTime(now.Add(ttl)), Decision: Decision(id),
	}
	if receipt > 0 {
		body.ReceiptBy = event.NewTime(now.Add(receipt))
	}
	return ledger.Commit{
		Event: event.New(now, Principal, body), Reply: digest,
		Request: &ledger.Request{
			Key: "deliver/" + id.String(), Owner: [32]byte{1}, Reply: make([]byte, 3300), Expires: now.Add(ttl), Session: id,
		},
	}
}

// Uses is how many uses a session by IssueGated has.
const Uses = 1000

// IssueGated is a delivery like that of Issue, at grade gated.
func IssueGated(now time.Time, ttl time.Duration) ledger.Commit {
	c := Issue(now, ttl, 0)
	body := c.Event.Body.(event.SessionIssued)
	body.Grade, body.Uses, body.Epoch = "gated", Uses, "epoch-1"
	c.Event.Body = body
	return c
}

// Use is a use of a session by IssueGated, of about the size of real ones.
func Use(session event.ID, number uint32) ledger.Commit {
	id := event.NewID(Start)
	decision := Decision(id)
	filler := `{"filler":"` + strings.Repeat("x", 900) + `"}`
	decision.Signals, decision.Result = json.RawMessage(filler), json.RawMessage(filler)
	return ledger.Commit{
		Event: event.New(Start, Principal, event.SessionUsed{
			Session: session, Number: number, Nonce: make([]byte, 32), Exporter: make([]byte, 32), Signature: make([]byte, 64), Decision: decision,
		}),
		Request: &ledger.Request{
			Key: fmt.Sprintf("use/%s/%s", id, Instance), Owner: [32]byte{1}, Reply: make([]byte, 38), Expires: Start.Add(time.Hour), Session: session,
		},
	}
}

// Decision is a permit of about the size of real ones.
func Decision(request event.ID) event.Decision {
	signals, _ := json.Marshal(map[string]string{"peer": "192.0.2.1", "filler": string(make([]byte, 200))})
	return event.Decision{
		RequestID: request.String(), Action: "deliver", Effect: "PERMIT", Revision: event.Digest{1}, Sequence: 1,
		Signals: signals, Result: json.RawMessage(`{"effect":"PERMIT"}`),
	}
}

// SessionOf returns the id of the session that a commit by Issue opens.
func SessionOf(c ledger.Commit) event.ID { return c.Event.Body.(event.SessionIssued).Session }
