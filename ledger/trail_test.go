package ledger_test

import (
	"crypto/sha256"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/bulla-project/bulla/ledger"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/ledger/storetest"
)

// A bundle is recorded once, under its own digest.
func TestProjectTrust(t *testing.T) {
	tab := newTable(t)
	seen := event.NewTrustObserved("dev.bulla.test", [][]byte{[]byte("b"), []byte("a"), []byte("b")})
	if len(seen.Authorities) != 2 || seen.Bundle != event.NewTrustObserved("dev.bulla.test", [][]byte{[]byte("a"), []byte("b")}).Bundle {
		t.Errorf("order and repetition count: %+v", seen)
	}
	tab.must(t, now(seen))
	if got, seq := row[ledger.Trust](t, tab, ledger.KindTrust, seen.Bundle.String()); got.TrustDomain != "dev.bulla.test" || seq == 0 {
		t.Errorf("%+v, %d", got, seq)
	}
	tab.refuse(t, seen)
	tab.refuse(t, event.NewTrustObserved("dev.bulla.test", nil))
	tab.refuse(t, event.NewTrustObserved("", [][]byte{[]byte("a")}))
	other := event.NewTrustObserved("other.test", seen.Authorities)
	if other.Bundle == seen.Bundle {
		t.Error("two trust domains have one digest")
	}
	other.Bundle = seen.Bundle
	tab.refuse(t, other)
}

// The trail of a session is its own events and what they rest on, however much lies between, and nothing else.
func TestTrail(t *testing.T) {
	l := storetest.Open(t, storetest.NewMemory(), storetest.Ring(t))
	var at int64
	commit := func(subject string, body event.Body) int64 {
		t.Helper()
		r, err := l.Commit(t.Context(), ledger.Commit{Event: event.New(storetest.Start.Add(time.Duration(at)*time.Millisecond), subject, body)})
		if err != nil {
			t.Fatal(err)
		}
		at = r.Index
		return r.Index
	}
	noise := func(n int) {
		for range n {
			commit("spiffe://dev.bulla.test/other", event.RequestRefused{Principal: "spiffe://dev.bulla.test/other", Method: "m", Check: "c"})
		}
	}
	var want []int64
	for i, c := range storetest.Foundation() {
		r, err := l.Commit(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		switch c.Event.Body.(type) {
		case event.Genesis, event.KeyIntroduced, event.RevisionActivated:
			want = append(want, r.Index)
		}
		if r.Index != int64(i) {
			t.Fatal("the foundation has gaps")
		}
	}
	noise(40)
	trust := event.NewTrustObserved("dev.bulla.test", [][]byte{[]byte("authority")})
	want = append(want, commit("", trust))
	bind := event.InstanceBound{Principal: storetest.Principal, Instance: storetest.Instance, Binding: []byte("newer"), Chain: [][]byte{[]byte("leaf")}, Trust: trust.Bundle}
	want = append(want, commit(storetest.Principal, bind))
	other := bind
	other.Instance = "another"
	commit(storetest.Principal, other)
	noise(2 * ledger.MaxPage)
	c := storetest.Issue(storetest.Start.Add(time.Second), time.Hour, 0)
	b := c.Event.Body.(event.SessionIssued)
	b.Decision.Revision = sha256.Sum256([]byte("policy 1"))
	c.Event.Body = b
	r, err := l.Commit(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, r.Index)
	noise(5)
	later := func(body event.Body, subject string) {
		t.Helper()
		r, err := l.Commit(t.Context(), ledger.Commit{Event: event.New(storetest.Start.Add(2*time.Second), subject, body)})
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, r.Index)
	}
	later(bind, storetest.Principal)
	later(event.SessionConfirmed{Session: b.Session}, storetest.Principal)
	noise(5)
	later(event.SessionRevoked{Session: b.Session, Reason: "r"}, storetest.Principal)
	noise(5)
	later(event.SessionsWiped{Principal: storetest.Principal, Instance: storetest.Instance, Sessions: []event.ID{b.Session}}, storetest.Principal)
	noise(5)
	found, err := l.Trail(t.Context(), b.Session, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []int64
	for _, e := range found {
		got = append(got, e.Index)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the trail has %v, want %v", got, want)
	}
	if _, err := l.Trail(t.Context(), event.NewID(time.Now()), nil); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("an unknown session: %v", err)
	}
}
