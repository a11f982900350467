package client_test

import (
	"errors"
	"io"
	"testing"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/client"
	"github.com/bulla-project/bulla/test/rig"
)

// soon fails the test if c is not closed in time.
func soon(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s did not come", what)
	}
}

// revokeAll runs a revocation as security and returns the last that was said of each session, and the summary.
func revokeAll(t *testing.T, r *rig.Rig, in *bullav1.RevokeRequest) (map[string]*bullav1.Session, *bullav1.RevokeSummary) {
	t.Helper()
	in.Reason, in.WaitSeconds = "because", 20
	stream, err := bullav1.NewRevocationsClient(r.Client("security").Conn()).Revoke(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	told, summary := map[string]*bullav1.Session{}, (*bullav1.RevokeSummary)(nil)
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return told, summary
		}
		if err != nil {
			t.Fatal(err)
		}
		if m.GetSummary() != nil {
			summary = m.GetSummary()
		} else {
			told[m.GetSession().GetId()] = m.GetSession()
		}
	}
}

// watching waits until a secret is watched.
func watching(t *testing.T, c *client.Client, s *client.Secret) {
	t.Helper()
	s.Done()
	for deadline := time.Now().Add(20 * time.Second); !c.Watching(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the client does not watch")
		}
	}
}

func TestRevocationWipesAndIsConfirmed(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/one", "standard", "1")
	var held [3]*client.Secret
	for i := range held {
		c := r.Client("workload")
		var err error
		if held[i], err = c.Get(t.Context(), "demo/one"); err != nil {
			t.Fatal(err)
		}
		if i < 2 {
			watching(t, c, held[i])
		}
	}
	told, summary := revokeAll(t, r, &bullav1.RevokeRequest{Selector: &bullav1.RevokeRequest_Session{Session: held[0].SessionID}})
	soon(t, "the end of the session", held[0].Done())
	if _, err := value(held[0]); !errors.Is(err, client.ErrEnded) || held[0].Cause() == nil {
		t.Errorf("a revoked secret gives %v, cause %v", err, held[0].Cause())
	}
	if told[held[0].SessionID].GetStanding() != "confirmed" || summary.GetConfirmed() != 1 {
		t.Errorf("told %v, summary %v; want it confirmed", told, summary)
	}
	for _, s := range held[1:] {
		if v, err := value(s); v != "1" || err != nil {
			t.Errorf("a sibling's secret gives %q, %v", v, err)
		}
	}
	// All of the principal: one watches, the other does not.
	told, summary = revokeAll(t, r, &bullav1.RevokeRequest{Selector: &bullav1.RevokeRequest_Principal{Principal: rig.ID("workload").String()}})
	soon(t, "the end of the other session", held[1].Done())
	if len(told) != 2 || told[held[1].SessionID].GetStanding() != "confirmed" || told[held[2].SessionID].GetStanding() != "offline" {
		t.Errorf("told %v; want one confirmed and one offline", told)
	}
	if summary.GetSessions() != 2 || summary.GetConfirmed() != 1 || summary.GetOffline() != 1 || summary.GetWaiting() != 0 {
		t.Errorf("summary %v", summary)
	}
	shown, err := bullav1.NewSessionsClient(r.Client("security").Conn()).GetSession(t.Context(), &bullav1.GetSessionRequest{Id: held[1].SessionID})
	if err != nil || shown.GetStanding() != "confirmed" || shown.GetWipedAt() == nil {
		t.Errorf("shown as %v, %v", shown, err)
	}
	// It bars nobody.
	if _, err := r.Client("workload").Get(t.Context(), "demo/one"); err != nil {
		t.Errorf("after the revocation: %v", err)
	}
	r.Check()
}

// What happened before a secret was watched, and while the broker was away, is told as well.
func TestWatchMissesNothing(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/one", "standard", "1")
	r.Put("demo/two", "standard", "2")
	c := r.Client("workload")
	one, err := c.Get(t.Context(), "demo/one")
	if err != nil {
		t.Fatal(err)
	}
	two, err := c.Get(t.Context(), "demo/two")
	if err != nil {
		t.Fatal(err)
	}
	watching(t, c, one)
	revokeAll(t, r, &bullav1.RevokeRequest{Selector: &bullav1.RevokeRequest_Secret{Secret: "demo/two"}}) // nobody waits for it
	soon(t, "the end that came before it was watched", two.Done())
	r.Stop()
	r.Run()
	r.Put("demo/one", "standard", "1b")
	soon(t, "the new version", one.Rotated())
	revokeAll(t, r, &bullav1.RevokeRequest{Selector: &bullav1.RevokeRequest_TrustDomain{TrustDomain: rig.TrustDomain}})
	soon(t, "the end after a restart", one.Done())
	if _, err := value(one); !errors.Is(err, client.ErrEnded) {
		t.Errorf("a revoked secret gives %v", err)
	}
}

func TestFollowerIsTold(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/one", "standard", "1")
	c := r.Client("workload")
	f, err := c.Follow(t.Context(), "demo/one")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	first, err := f.Current(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	watching(t, c, first)
	r.Put("demo/one", "standard", "2")
	for deadline := time.Now().Add(20 * time.Second); ; {
		s, err := f.Current(t.Context())
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("no new version came: %v", err)
		}
		if v, _ := value(s); v == "2" {
			break
		}
	}
}

// A watched secret is wiped when it expires, whether or not anybody looks.
func TestWatchedSecretExpires(t *testing.T) {
	r := rig.Start(t, rig.Config{})
	r.Put("demo/one", "standard", "1")
	s, err := r.Client("workload").Get(t.Context(), "demo/one", client.WithTTL(2*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	soon(t, "its end", s.Done())
	if s.Cause() == nil || time.Now().Before(s.Expires) {
		t.Errorf("it ended before %s: %v", s.Expires, s.Cause())
	}
}
