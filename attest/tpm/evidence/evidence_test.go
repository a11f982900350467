package evidence_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulla-project/bulla/attest"
	"github.com/bulla-project/bulla/attest/tpm/evidence"
)

func sample() evidence.Evidence {
	return evidence.Evidence{
		Quote: []byte("quote"), Signature: []byte("signature"),
		PCRs:      map[int][sha256.Size]byte{0: {1}, 7: {2}, 23: {3}},
		EventLog:  []byte("log"),
		Instance:  evidence.Certified{Public: []byte("a"), Attest: []byte("b"), Signature: []byte("c")},
		Recipient: evidence.Certified{Public: []byte("d"), Attest: []byte("e"), Signature: []byte("f")},
	}
}

func TestRoundTrip(t *testing.T) {
	got, err := evidence.Parse(sample().Marshal())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sample(), got); diff != "" {
		t.Error(diff)
	}
	if attest.Label(sample().Marshal()) != evidence.Label {
		t.Error("label")
	}
	req := evidence.Request{EKPublic: []byte("ek"), AKPublic: []byte("ak"), Certificates: [][]byte{[]byte("leaf"), []byte("ca")}}
	parsed, err := evidence.ParseRequest(req.Marshal())
	if diff := cmp.Diff(req, parsed); diff != "" || err != nil {
		t.Error(diff, err)
	}
	ch := evidence.Challenge{IDObject: []byte("id"), EncryptedSecret: []byte("secret")}
	back, err := evidence.ParseChallenge(ch.Marshal())
	if diff := cmp.Diff(ch, back); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

func TestRefused(t *testing.T) {
	oversize := sample()
	oversize.EventLog = make([]byte, evidence.MaxEventLog+1)
	longQuote := sample()
	longQuote.Quote = make([]byte, evidence.MaxAttest+1)
	unordered := sample().Marshal()
	at := bytes.Index(unordered, append([]byte{7, 2}, make([]byte, 31)...))
	unordered[at] = 0
	outside := sample().Marshal()
	at = bytes.Index(outside, append([]byte{23, 3}, make([]byte, 31)...))
	outside[at] = 24
	good := sample().Marshal()
	for name, b := range map[string][]byte{
		"empty": nil, "oversize log": oversize.Marshal(), "long quote": longQuote.Marshal(), "PCRs out of order": unordered,
		"PCR 24": outside, "cut": good[:len(good)-1], "tail": append(bytes.Clone(good), 0),
		"other label": evidence.Challenge{}.Marshal(),
	} {
		if _, err := evidence.Parse(b); !errors.Is(err, attest.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	many := evidence.Request{Certificates: make([][]byte, evidence.MaxCertificates+1)}
	if _, err := evidence.ParseRequest(many.Marshal()); !errors.Is(err, attest.ErrMalformed) {
		t.Errorf("A14 deep chain: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample().Marshal())
	f.Add(evidence.Request{EKPublic: []byte("ek"), Certificates: [][]byte{{1}, {2}}}.Marshal())
	f.Add(evidence.Challenge{IDObject: []byte("id")}.Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := evidence.Parse(b); err == nil && !bytes.Equal(e.Marshal(), b) {
			t.Error("evidence has two encodings")
		}
		if r, err := evidence.ParseRequest(b); err == nil && !bytes.Equal(r.Marshal(), b) {
			t.Error("a request has two encodings")
		}
		if c, err := evidence.ParseChallenge(b); err == nil && !bytes.Equal(c.Marshal(), b) {
			t.Error("a challenge has two encodings")
		}
	})
}
