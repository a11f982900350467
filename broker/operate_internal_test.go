package broker

import (
	"crypto/sha256"
	"testing"
	"time"

	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/policy"
	"github.com/bulla-project/bulla/secret/keys"
)

// An AES-GCM key encrypts 2^32 messages at most, over all sessions: each version has a counter that outlives them.
func TestEncryptionsAreCounted(t *testing.T) {
	version := ledger.SecretVersion{RecordID: event.NewID(time.Now())}
	t1 := target{version: version}
	for _, o := range []keys.Operation{keys.Sign, keys.Verify, keys.MAC, keys.VerifyMAC, keys.Decrypt} {
		if got := encryptions(keys.Input{Operation: o}, t1); got != nil {
			t.Errorf("%s counts as an encryption", o)
		}
	}
	got := encryptions(keys.Input{Operation: keys.Encrypt}, t1)
	if len(got) != 1 || got[0].Max != 1<<32-1 || got[0].Window.Add(got[0].Length).Before(time.Now().AddDate(100, 0, 0)) {
		t.Fatalf("%+v", got)
	}
	version.RecordID = event.NewID(time.Now())
	if other := encryptions(keys.Input{Operation: keys.Encrypt}, target{version: version}); other[0].Key == got[0].Key {
		t.Error("another version shares the counter")
	}
}

// The record names what can't be guessed, and nothing else.
func TestObjectOfTheRecord(t *testing.T) {
	in, out := []byte("input"), []byte("output")
	for o, want := range map[keys.Operation]event.Digest{
		keys.Sign: sha256.Sum256(in), keys.Verify: sha256.Sum256(in), keys.Decrypt: sha256.Sum256(in), keys.Encrypt: sha256.Sum256(out),
		keys.MAC: {}, keys.VerifyMAC: {},
	} {
		if got := object(keys.Input{Operation: o, Data: in}, result{output: out}); got != want {
			t.Errorf("%s: %s, want %s", o, got, want)
		}
	}
}

// The hardest grade that one obligation demands is the grade of the delivery.
func TestDemandedGrade(t *testing.T) {
	for _, c := range []struct {
		time, uses policy.Grade
		want       envelope.Grade
		unmet      bool
	}{
		{policy.GradeOpen, policy.GradeOpen, envelope.GradeOpen, false},
		{policy.GradeGated, policy.GradeOpen, envelope.GradeGated, false},
		{policy.GradeProxied, policy.GradeGated, envelope.GradeProxied, false},
		{policy.GradeGated, policy.GradeProxied, envelope.GradeProxied, false},
		{policy.GradeProxied, policy.GradeLeased, "", true},
	} {
		grade, unmet := demanded(policy.Obligations{TimeBound: &policy.TimeBound{Grade: c.time}, UsageLimit: &policy.UsageLimit{Grade: c.uses}})
		if grade != c.want || (unmet != "") != c.unmet {
			t.Errorf("%s and %s: %q, %q", c.time, c.uses, grade, unmet)
		}
	}
}
