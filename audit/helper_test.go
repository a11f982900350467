package audit

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/ledger/event"
)

const testOrigin = "test.example/bulla"

var testStart = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)

// newSigner returns a fresh key of the test log.
func newSigner(t testing.TB) *proofs.Signer {
	t.Helper()
	skey, _, err := proofs.NewLogKey(testOrigin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := proofs.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ledgerFake is a store in memory. It is both Source and EventSource.
type ledgerFake struct {
	mu      sync.Mutex
	records []Record
	leaves  []Entry
	err     error // what reading returns, if set
}

func (l *ledgerFake) Leaves(_ context.Context, from int64, limit int) ([]Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return nil, l.err
	}
	return clip(l.leaves, from, limit), nil
}

func (l *ledgerFake) Records(_ context.Context, from int64, limit int) ([]Record, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return nil, l.err
	}
	return clip(l.records, from, limit), nil
}

func clip[T any](all []T, from int64, limit int) []T {
	from = min(from, int64(len(all)))
	return all[from:min(int64(len(all)), from+int64(limit))]
}

// add records an event as the ledger would.
func (l *ledgerFake) add(t testing.TB, e event.Event) {
	t.Helper()
	encoding, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	r := Record{Encoding: encoding, EventSalt: event.NewSalt(), ReplySalt: event.NewSalt()}
	if b, ok := e.Body.(event.SessionIssued); ok {
		r.Reply = b.EnvelopeDigest
	}
	l.put(r)
}

func (l *ledgerFake) put(r Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.Index = int64(len(l.records))
	l.records = append(l.records, r)
	l.leaves = append(l.leaves, Entry{Index: r.Index, Leaf: r.Leaf()})
}

// prefix returns a store that holds only the first n events.
func (l *ledgerFake) prefix(n int) *ledgerFake {
	return &ledgerFake{records: append([]Record(nil), l.records[:n]...), leaves: append([]Entry(nil), l.leaves[:n]...)}
}

// history makes a store with n events of an ordinary life: a genesis, deliveries, receipts, denials, revocations.
func newLedger(t testing.TB, key proofs.Key, n int) *ledgerFake {
	t.Helper()
	l := &ledgerFake{}
	l.grow(t, key, n)
	return l
}

// grow adds events up to n in all. Every third is a delivery; the next is its receipt, then a revocation or denial.
func (l *ledgerFake) grow(t testing.TB, key proofs.Key, n int) {
	t.Helper()
	for i := len(l.records); i < n; i++ {
		now := testStart.Add(time.Duration(i) * time.Second)
		principal := fmt.Sprintf("spiffe://dev.bulla.test/workload-%d", i%7)
		var body event.Body
		switch {
		case i == 0:
			principal = ""
			body = event.Genesis{Origin: key.Origin(), LogKey: key.String(), TrustDomains: []string{"dev.bulla.test"}, Product: "test"}
		case i%3 == 1:
			body = issued(principal, now)
		case i%3 == 2:
			body = event.SessionConfirmed{Session: l.session(t, i-1), R: []byte("0123456789abcdef0123456789abcdef"), Signature: []byte("signature")}
		case i%2 == 0:
			body = event.SessionRevoked{Session: l.session(t, i-2), Reason: "left <the> company & more"}
		default:
			body = event.DecisionDenied{Principal: principal, Decision: decision("DENY")}
		}
		l.add(t, event.New(now, principal, body))
	}
}

// session returns the session that the event at index i issued.
func (l *ledgerFake) session(t testing.TB, i int) event.ID {
	t.Helper()
	e, err := event.Decode(l.records[i].Encoding)
	if err != nil {
		t.Fatal(err)
	}
	return e.Body.(event.SessionIssued).Session
}

func issued(principal string, now time.Time) event.SessionIssued {
	return event.SessionIssued{
		Session: event.NewID(now), Principal: principal, Instance: strings.Repeat("ab", 16), Secret: "demo/db", Version: 3,
		Class: "standard", Grade: "open", Suite: "HPKE-9-KE", KeyID: "k1", EnvelopeDigest: digest("envelope " + now.String()),
		ReceiptLock: digest("lock"), Expires: event.NewTime(now.Add(time.Hour)), Decision: decision("PERMIT"),
	}
}

func decision(effect string) event.Decision {
	return event.Decision{
		RequestID: event.NewID(testStart).String(), Action: "secret.read", Effect: effect, Revision: digest("revision"), Sequence: 4,
		Signals: []byte(`{"now":"2026-11-22T09:00:00Z","peer":"127.0.0.1","svid":{"age":31,"ttl":3600},"tls":{"group":"X25519MLKEM768"}}`),
		Result:  []byte(`{"effect":"` + effect + `","reasons":["a grant covers it"],"risk":{"score":12,"factors":[{"name":"svid-age","points":2}]}}`),
	}
}

func digest(s string) event.Digest { return sha256.Sum256([]byte(s)) }

// openLog opens a log over src in dir.
func openLog(t testing.TB, dir string, s *proofs.Signer, src Source) *Log {
	t.Helper()
	l, err := Open(t.Context(), Config{Dir: dir, Origin: testOrigin, Signer: s, Source: src})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// sign returns the checkpoint of all that src holds, made without a Log.
func sign(t testing.TB, s *proofs.Signer, src *ledgerFake) []byte {
	t.Helper()
	raw, err := s.Sign(proofs.Checkpoint{Origin: s.Origin(), Size: int64(len(src.leaves)), Root: oracleRoot(src.leaves)})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// oracleRoot computes the root by the definition of RFC 6962, without any of the code under test.
func oracleRoot(leaves []Entry) proofs.Hash {
	switch len(leaves) {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return sha256.Sum256(append([]byte{0}, leaves[0].Leaf.Bytes()...))
	}
	k := 1
	for k*2 < len(leaves) {
		k *= 2
	}
	left, right := oracleRoot(leaves[:k]), oracleRoot(leaves[k:])
	return sha256.Sum256(append(append([]byte{1}, left[:]...), right[:]...))
}

// export writes an export of all that src holds into a new directory.
func export(t testing.TB, s *proofs.Signer, src *ledgerFake) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "export")
	if _, err := Export(t.Context(), dir, ExportConfig{Checkpoint: sign(t, s, src), Key: s.Key(), Events: src}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// readTree returns the content of all files below dir.
func readTree(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		out[name], err = os.ReadFile(filepath.Join(dir, name))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// writeTree writes files below a new directory.
func writeTree(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		writeFile(t, filepath.Join(dir, name), content)
	}
	return dir
}

func writeFile(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
