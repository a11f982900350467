package sessionproof

import (
	"bytes"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/audit"
	"github.com/bulla-project/bulla/audit/proofs"
	"github.com/bulla-project/bulla/certs/xtest"
	"github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/ledger/event"
)

// The names of the calls are those of the wire.
func TestMethods(t *testing.T) {
	if methodUse != bullav1.Broker_Use_FullMethodName || methodOperate != bullav1.Broker_Operate_FullMethodName {
		t.Errorf("%s, %s", methodUse, methodOperate)
	}
}

// A delivery of years ago is judged as of then: its certificates have ended long since.
func TestLongAgo(t *testing.T) {
	s := newStory(t).deliver()
	r, err := s.verify()
	if err != nil {
		t.Fatal(err)
	}
	if r.State != "issued" || r.Principal != principal || !has(r.NotShown, "that the envelope was opened") {
		t.Errorf("%+v", r)
	}
	s.add(principal, s.receipt())
	if r, err = s.verify(); err != nil || r.State != "confirmed" || has(r.NotShown, "that the envelope was opened") || !has(r.Shown, "1 signed receipts") {
		t.Errorf("%+v, %v", r, err)
	}
	s.add("", event.SessionsRevoked{Sessions: []event.ID{event.NewID(start), s.session}, Reason: "r"})
	if r, err = s.verify(); err != nil || r.State != "revoked" || has(r.NotShown, "the end of the session") {
		t.Errorf("%+v, %v", r, err)
	}
}

// A session of before a restore is proved by the log in which the ledger went on, and that says so.
func TestRestored(t *testing.T) {
	s := newStory(t).deliver()
	s.restore(proofs.Incarnation(origin, 2)).add("", event.SessionsRevoked{Sessions: []event.ID{s.session}, Reason: "restored"})
	r, err := s.verify()
	if err != nil || r.State != "revoked" || r.Origin != proofs.Incarnation(origin, 2) || !has(r.Shown, "restored from a backup by entry 6") {
		t.Errorf("%+v, %v", r, err)
	}
}

// Whoever has the log's key can put what they like into the log, and still not what others sign.
func TestForged(t *testing.T) {
	other, err := proof.GenerateInstanceKey()
	if err != nil {
		t.Fatal(err)
	}
	foreign := authority(t)
	leaf := xtest.Leaf{ID: principal, From: start.Add(-time.Minute), NotAfter: start.Add(time.Hour)}
	for name, c := range map[string]struct {
		make func(s *story)
		want string
	}{
		"a receipt that another key signed": {func(s *story) {
			good := s.instance
			s.instance = other
			bad := s.receipt()
			s.instance = good
			s.deliver().add(principal, bad)
		}, "receipt"},
		"a receipt that does not open the lock": {func(s *story) { s.r[0] ^= 1; s.deliver().add(principal, s.receipt()) }, "receipt"},
		"a receipt that is cut": {func(s *story) {
			bad := s.receipt()
			bad.R = bad.R[:31]
			s.deliver().add(principal, bad)
		}, "receipt"},
		"a use that another key signed": {func(s *story) {
			s.issued.Grade, s.issued.Uses, s.issued.Epoch = "gated", 3, "e"
			bad := s.use(1)
			bad.PayloadSHA256[0] ^= 1
			s.deliver().add(principal, bad)
		}, "signature of the request"},
		"a share twice": {func(s *story) {
			s.issued.Grade, s.issued.Uses, s.issued.Epoch = "gated", 3, "e"
			s.deliver().add(principal, s.use(1))
			s.add(principal, s.use(1))
		}, "gave it out before"},
		"a request that is counted twice": {func(s *story) {
			s.issued.Grade, s.issued.Uses, s.issued.Epoch = "gated", 3, "e"
			s.deliver().add(principal, s.use(1))
			again := s.events[len(s.events)-1].Body.(event.SessionUsed)
			again.Number = 2
			s.add(principal, again)
		}, "counted before"},
		"a delivery that is dated back": {func(s *story) {
			s.deliver().events[5].Time = event.NewTime(start.Add(-time.Hour))
		}, "no SVID vouches for the instance key at its time"},
		"a binding beside a good one that nobody signed": {func(s *story) {
			bad := s.bind(leaf, s.instance)
			bad.Binding[len(bad.Binding)-1] ^= 1
			s.deliver().add(principal, bad)
		}, "signature"},
		"a use that was denied": {func(s *story) {
			s.issued.Grade, s.issued.Uses, s.issued.Epoch = "gated", 3, "e"
			s.deliver()
			bad := s.use(1)
			bad.Decision.Effect = "DENY"
			s.add(principal, bad)
		}, "DENY"},
		"a denial": {func(s *story) { s.issued.Decision.Effect = "DENY"; s.deliver() }, "DENY"},
		"a binding of another instance": {func(s *story) {
			s.bound = s.bind(leaf, other)
			s.bound.Instance = s.issued.Instance
			s.deliver()
		}, "another instance key"},
		"a binding of another principal": {func(s *story) {
			s.bound = s.bind(xtest.Leaf{ID: "spiffe://dev.bulla.test/other", From: leaf.From, NotAfter: leaf.NotAfter}, s.instance)
			s.bound.Principal = principal
			s.deliver()
		}, "and not of"},
		"a certificate of another authority": {func(s *story) {
			s.ca = foreign
			s.bound = s.bind(leaf, s.instance)
			s.deliver()
		}, "trust bundle in the log"},
		"a certificate that had ended": {func(s *story) {
			s.bound = s.bind(xtest.Leaf{ID: principal, From: start.Add(-time.Hour), NotAfter: start.Add(-time.Minute)}, s.instance)
			s.deliver()
		}, "as of"},
		"a certificate that had not begun": {func(s *story) {
			s.bound = s.bind(xtest.Leaf{ID: principal, From: start.Add(time.Minute), NotAfter: start.Add(time.Hour)}, s.instance)
			s.deliver()
		}, "as of"},
		"a binding that ended before the delivery": {func(s *story) {
			s.bound = s.bind(xtest.Leaf{ID: principal, From: leaf.From, NotAfter: start.Add(5 * time.Second)}, s.instance)
			s.deliver()
		}, "no SVID vouches"},
		"a binding that comes later": {func(s *story) { s.add("", s.trust); s.add(principal, s.issued); s.add(principal, s.bound) }, "before it"},
		"a bundle that comes later":  {func(s *story) { s.add(principal, s.bound); s.add("", s.trust); s.add(principal, s.issued) }, "comes later"},
		"a bundle with another digest": {func(s *story) {
			s.trust.Authorities = [][]byte{foreign.Certificate.Raw}
			s.deliver()
		}, "digest"},
		"a bundle of another trust domain": {func(s *story) {
			s.trust = event.NewTrustObserved("other.test", s.trust.Authorities)
			s.bound.Trust = s.trust.Bundle
			s.deliver()
		}, "not in the proof"},
		"another envelope key":      {func(s *story) { s.issued.KeyID = "k2"; s.deliver() }, "another key"},
		"another revision":          {func(s *story) { s.issued.Decision.Sequence = 4; s.deliver() }, "another revision"},
		"a revision that came late": {func(s *story) { s.deliver().add("", s.events[2].Body) }, "too late"},
		"two deliveries":            {func(s *story) { s.deliver().add(principal, s.issued) }, "a second time"},
		"an end and a receipt": {func(s *story) {
			s.deliver().add(principal, event.SessionClosed{Session: s.session})
			s.add(principal, s.receipt())
		}, "closed"},
		"another session's end": {func(s *story) { s.deliver().add(principal, event.SessionClosed{Session: event.NewID(start)}) }, "not about session"},
		"an end of others":      {func(s *story) { s.deliver().add("", event.SessionsExpired{Sessions: []event.ID{event.NewID(start)}}) }, "not about session"},
		"something else":        {func(s *story) { s.deliver().add("", event.SecretPut{Name: "demo/db"}) }, "not about session"},
		"another round":         {func(s *story) { s.deliver().add("", event.RoundExpired{Round: s.session}) }, "another round"},
		"another's wipe": {func(s *story) {
			s.deliver().add("", event.SessionsWiped{Principal: "x", Sessions: []event.ID{s.session}})
		}, "other sessions"},
		"two beginnings": {func(s *story) { s.deliver().add("", s.events[0].Body) }, "genesis"},
		"no delivery":    {func(s *story) { s.add("", s.trust) }, "no event that issued"},
		"another log's genesis": {func(s *story) {
			g := s.events[0].Body.(event.Genesis)
			g.LogKey = strings.Replace(g.LogKey, "+", "x+", 1)
			s.events[0].Body = g
			s.deliver()
		}, "not the genesis"},
		"another log's restore": {func(s *story) {
			old := s.signer
			s.deliver().restore(origin + "/incarnation-2").signer = old
		}, "not the newest restore"},
		"two restores":               {func(s *story) { s.deliver().restore(origin + "/incarnation-2").restore(origin + "/incarnation-3") }, "a second restore"},
		"a certificate that is none": {func(s *story) { s.bound.Chain = [][]byte{[]byte("x")}; s.deliver() }, "can't be read"},
		"no chain":                   {func(s *story) { s.bound.Chain = nil; s.deliver() }, "no certificate chain"},
	} {
		s := newStory(t)
		c.make(s)
		_, err := s.verify()
		var f *audit.Fault
		if !errors.As(err, &f) || !errors.Is(err, proofs.ErrVerification) || !strings.Contains(f.What, c.want) {
			t.Errorf("%s: %v, want a fault about %q", name, err, c.want)
		}
	}
}

// What is signed is counted to the session only where it names the session: the log's owner has requests of other
// sessions of the same instance as well.
func TestRequests(t *testing.T) {
	s := newStory(t)
	s.issued.Grade, s.issued.Uses, s.issued.Offline, s.issued.Epoch = "gated", 300, 3, "e"
	s.deliver().add(principal, s.use(1))
	s.add(principal, s.use(300))
	s.add(principal, s.ask(2, &bullav1.UseRequest{SessionId: s.session.String(), Number: 2, Ahead: true}))
	r, err := s.verify()
	if err != nil || !has(r.Shown, "3 signed receipts or requests") || has(r.NotShown, "name this session") {
		t.Errorf("%+v, %v", r, err)
	}
	s.add(principal, s.ask(3, &bullav1.UseRequest{SessionId: event.NewID(start).String(), Number: 3}))
	s.add(principal, s.ask(4, &bullav1.UseRequest{SessionId: s.session.String(), Number: 4, Factors: []*bullav1.Factor{{Kind: "oidc", Token: "t"}}}))
	r, err = s.verify()
	if err != nil || !has(r.Shown, "3 signed receipts or requests") || !has(r.NotShown, "that these 2 requests name this session") {
		t.Errorf("%+v, %v", r, err)
	}
}

// A file of many entries is refused before memory is made of them.
func TestParseCounts(t *testing.T) {
	data, err := newStory(t).deliver().proof().Encode()
	if err != nil {
		t.Fatal(err)
	}
	head, _, _ := strings.Cut(string(data), entriesKey)
	for _, separator := range []string{",", ",\n"} {
		bad := []byte(head + entriesKey + "\n{}" + strings.Repeat(separator+"{}", 1<<20) + proofEnd)
		var f *audit.Fault
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := Parse(bad); !errors.As(err, &f) {
			t.Errorf("%q: %v", separator, err)
		}
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 4*uint64(len(bad)) {
			t.Errorf("%q: %d bytes were made of %d", separator, used, len(bad))
		}
	}
}

// What was recorded before the log kept bundles is said to be without one, and still has to bear the name.
func TestWithoutBundle(t *testing.T) {
	s := newStory(t)
	s.bound.Trust = event.Digest{}
	s.add(principal, s.bound)
	s.add(principal, s.issued)
	r, err := s.verify()
	if err != nil || !has(r.NotShown, "the trust bundle of that time") || has(r.Shown, "led to the trust bundle") {
		t.Errorf("%+v, %v", r, err)
	}
	opts := Options{Key: s.signer.Key(), Authorities: []*x509.Certificate{s.ca.Certificate}}
	if r, err := Verify(s.proof(), opts); err != nil || !has(r.Shown, "the authorities that were given") {
		t.Errorf("%+v, %v", r, err)
	}
	opts.Authorities = []*x509.Certificate{authority(t).Certificate}
	if _, err := Verify(s.proof(), opts); !errors.Is(err, proofs.ErrVerification) {
		t.Errorf("by other authorities: %v", err)
	}
	s.bound = s.bind(xtest.Leaf{ID: "spiffe://dev.bulla.test/other", From: start.Add(-time.Minute), NotAfter: start.Add(time.Hour)}, s.instance)
	s.bound.Principal, s.bound.Trust = principal, event.Digest{}
	s.events = s.events[:3]
	s.add(principal, s.bound)
	s.add(principal, s.issued)
	if _, err := s.verify(); !errors.Is(err, proofs.ErrVerification) {
		t.Errorf("another's certificate: %v", err)
	}
}

// An older checkpoint in the proof has to be its beginning; the auditor's has to be one of the two.
func TestAgainst(t *testing.T) {
	s := newStory(t).deliver()
	older := s.proof() // salts are drawn afresh: another history of the same length
	p := s.proof()
	key := s.signer.Key()
	if _, err := Verify(p, Options{Key: key, Against: p.Checkpoint}); err != nil {
		t.Error(err)
	}
	var f *audit.Fault
	if _, err := Verify(p, Options{Key: key, Against: older.Checkpoint}); !errors.As(err, &f) || !strings.Contains(f.What, "rewritten") {
		t.Errorf("another history: %v", err)
	}
	bad := p
	bad.Since = older.Checkpoint
	if _, err := Verify(bad, Options{Key: key}); !errors.As(err, &f) || f.File != sinceName {
		t.Errorf("another history inside: %v", err)
	}
	s.events = s.events[:4]
	shorter := s.proof()
	if _, err := Verify(p, Options{Key: key, Against: shorter.Checkpoint}); !errors.As(err, &f) || !strings.Contains(f.What, "--since") {
		t.Errorf("a shorter one without a link: %v", err)
	}
	if _, err := Verify(p, Options{Key: key, Against: []byte("x")}); !errors.As(err, &f) {
		t.Errorf("no checkpoint at all: %v", err)
	}
	if _, err := Verify(p, Options{Key: newStory(t).signer.Key()}); !errors.As(err, &f) {
		t.Errorf("another key: %v", err)
	}
	if _, err := Verify(p, Options{}); !errors.As(err, &f) {
		t.Errorf("no key: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	data, err := newStory(t).deliver().proof().Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(data); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(s string) string{
		"space":           func(s string) string { return s + " " },
		"no newline":      func(s string) string { return strings.TrimSuffix(s, "\n") },
		"unknown field":   func(s string) string { return strings.Replace(s, `{"format"`, `{"more":1,"format"`, 1) },
		"doubled field":   func(s string) string { return strings.Replace(s, `{"format"`, `{"format":"x","format"`, 1) },
		"another format":  func(s string) string { return strings.Replace(s, Format, "bulla-session-proof/v2", 1) },
		"another version": func(s string) string { return strings.Replace(s, `"event_version":1`, `"event_version":2`, 1) },
		"capitals":        func(s string) string { return strings.Replace(s, `"event_salt":"`, `"event_salt":"A`, 1) },
		"no entries":      func(s string) string { return s[:strings.Index(s, `"entries":[`)] + "\"entries\":[\n]}\n" },
		"nothing":         func(string) string { return "" },
		"null":            func(string) string { return "null\n" },
		"too long":        func(s string) string { return s + strings.Repeat(" ", MaxSize) },
		"a negative index": func(s string) string {
			return strings.Replace(s, `{"index":0,`, `{"index":-1,`, 1)
		},
		"many hashes": func(s string) string {
			h := `"` + strings.Repeat("A", 43) + `=",`
			return strings.Replace(s, `"inclusion":["`, `"inclusion":[`+strings.Repeat(h, 65)+`"`, 1)
		},
	} {
		var f *audit.Fault
		if _, err := Parse([]byte(edit(string(data)))); !errors.As(err, &f) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestKept verifies a proof that a broker wrote once: the format is read for ever.
func TestKept(t *testing.T) {
	read := func(name string) []byte {
		t.Helper()
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	key, err := proofs.ParseKey(string(read("log.pub")))
	if err != nil {
		t.Fatal(err)
	}
	kept, err := proofs.ParseReply(read("reply.json"))
	if err != nil {
		t.Fatal(err)
	}
	data := read("session.proof")
	p, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	again, err := p.Encode()
	if err != nil || !bytes.Equal(again, data) {
		t.Errorf("it is written differently today: %v", err)
	}
	r, err := Verify(p, Options{Key: key, Reply: &kept, Against: read("checkpoint")})
	if err != nil || r.State != "confirmed" || r.Secret != "demo/db" {
		t.Errorf("%+v, %v", r, err)
	}
}

func FuzzParse(f *testing.F) {
	data, err := os.ReadFile(filepath.Join("testdata", "session.proof"))
	if err != nil {
		f.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join("testdata", "log.pub"))
	if err != nil {
		f.Fatal(err)
	}
	key, err := proofs.ParseKey(string(text))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(data[:len(data)/2])
	f.Add(bytes.Replace(data, []byte(`"index":7`), []byte(`"index":6`), 1))
	f.Add([]byte(`{"format":"` + Format + `","entries":[]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := Parse(in)
		if err != nil {
			if !errors.Is(err, proofs.ErrVerification) {
				t.Errorf("error without the sentinel: %v", err)
			}
			return
		}
		again, err := p.Encode()
		if err != nil || !bytes.Equal(again, in) {
			t.Errorf("it parses and is not canonical: %v", err)
		}
		if _, err := Verify(p, Options{Key: key}); err == nil && !bytes.Equal(in, data) {
			t.Error("another proof than the kept one verifies")
		} else if err != nil && !errors.Is(err, proofs.ErrVerification) {
			t.Errorf("error without the sentinel: %v", err)
		}
	})
}
