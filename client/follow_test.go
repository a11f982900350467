package client_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/ledger/event"
	"github.com/bulla-project/bulla/test/rig"
)

// A Secret that a Follower gave out does not end under its user's hands because the next one is there, and nothing
// comes after Close.
func TestFollowerHandsOver(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/one", "standard", "1")
	f, err := r.Client("workload").Follow(t.Context(), "demo/one", client.WithTTL(6*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	first, err := f.Current(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	next := first
	for deadline := time.Now().Add(20 * time.Second); next.SessionID == first.SessionID && time.Now().Before(deadline); {
		if next, err = f.Current(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if next.SessionID == first.SessionID {
		t.Fatal("it was not refreshed")
	}
	if time.Now().Before(first.Expires) {
		if _, err := value(first); err != nil {
			t.Errorf("the Secret before: %v", err)
		}
	}
	f.Close()
	for _, s := range []*client.Secret{first, next} {
		if _, err := value(s); !errors.Is(err, client.ErrEnded) {
			t.Errorf("after Close: %v", err)
		}
	}
	if s, err := f.Current(t.Context()); s != nil || !errors.Is(err, client.ErrEnded) {
		t.Errorf("a closed Follower gives %v, %v", s, err)
	}
	f.Close()
}

// The SVID vouches for the instance key once, on however many connections.
func TestOneBindingForEachSVID(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/one", "standard", "1")
	c := r.Client("workload")
	var bindings [][]byte
	for range 2 {
		if _, err := c.Get(t.Context(), "demo/one"); err != nil {
			t.Fatal(err)
		}
		r.Stop()
		r.Run() // which remembers no bindings
	}
	for _, e := range r.Events() {
		if b, ok := e.Body.(event.InstanceBound); ok && b.Principal == rig.ID("workload").String() {
			bindings = append(bindings, b.Binding)
		}
	}
	if len(bindings) != 2 || !slices.Equal(bindings[0], bindings[1]) {
		t.Errorf("%d bindings over two connections of one SVID, or two different ones", len(bindings))
	}
}
