package client

import (
	"bytes"
	"errors"
	"testing"
	"time"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/secret/keys"
)

func proxied(t *testing.T, kind secret.Type, uses uint32) (*Secret, *keys.Key) {
	t.Helper()
	value, err := keys.Generate(kind)
	if err != nil {
		t.Fatal(err)
	}
	key, err := keys.Parse(kind, 1, value)
	if err != nil {
		t.Fatal(err)
	}
	return &Secret{
		Name: "demo/key", Grade: "proxied", Expires: time.Now().Add(time.Hour), client: &Client{cfg: Config{Now: time.Now}},
		public: key.Public(), counted: uses > 0, left: uses,
	}, key
}

// A request whose answer did not come is sent again for the same input, and for no other; nothing of the input is kept.
func TestUnansweredOperations(t *testing.T) {
	s, _ := proxied(t, secret.TypeHMACSHA256, 2)
	in := keys.Input{Operation: keys.MAC, Data: []byte("m")}
	take := func(in keys.Input) workAsk {
		t.Helper()
		ask, err := s.takeWork(in)
		if err != nil || len(ask.salt) != 32 {
			t.Fatalf("%v, a salt of %d bytes", err, len(ask.salt))
		}
		return ask
	}
	first := take(in)
	if n, _ := s.UsesLeft(); n != 1 || first.again {
		t.Errorf("%d uses left", n)
	}
	s.keepWork(first, in, true)
	if n, _ := s.UsesLeft(); n != 2 {
		t.Errorf("%d uses left", n)
	}
	for _, other := range []keys.Input{{Operation: keys.MAC, Data: []byte("n")}, {Operation: keys.VerifyMAC, Data: []byte("m")}} {
		ask := take(other)
		if ask.req == first.req || bytes.Equal(ask.salt, first.salt) {
			t.Error("another input took the request")
		}
		s.keepWork(ask, other, false)
	}
	again := take(in)
	if again.req != first.req || !bytes.Equal(again.salt, first.salt) || !again.again {
		t.Error("the same input took another request")
	}
	if twice := take(in); twice.req == first.req {
		t.Error("two calls at once share a request")
	}
	if _, err := s.takeWork(in); !errors.Is(err, ErrEnded) {
		t.Errorf("a third use: %v", err)
	}
	s, _ = proxied(t, secret.TypeHMACSHA256, 0)
	for i := range 2 * maxUndone {
		in.Data = []byte{byte(i)}
		s.keepWork(take(in), in, true)
	}
	if len(s.undone) != maxUndone || s.left != 0 {
		t.Errorf("%d requests are kept, %d uses counted", len(s.undone), s.left)
	}
}

// A broker that signs with another key than the envelope names, or takes a signature that is none, is found out.
func TestResultsAreChecked(t *testing.T) {
	for _, kind := range []secret.Type{secret.TypeECDSAP256, secret.TypeEd25519} {
		s, key := proxied(t, kind, 0)
		_, foreign := proxied(t, kind, 0)
		in := keys.Input{Operation: keys.Sign, Data: []byte("m")}
		good, err := key.Do(in)
		if err != nil {
			t.Fatal(err)
		}
		wrong, err := foreign.Do(in)
		if err != nil {
			t.Fatal(err)
		}
		if out, err := s.outcome(in, &bullav1.OperateReply{Output: good, Authentic: true}); err != nil || !bytes.Equal(out, good) {
			t.Error(err)
		}
		if out, err := s.outcome(in, &bullav1.OperateReply{Output: wrong, Authentic: true}); !errors.Is(err, ErrVerification) || out != nil {
			t.Errorf("%s: a signature of another key: %v", kind, err)
		}
		in = keys.Input{Operation: keys.Verify, Data: []byte("m"), Signature: wrong}
		if _, err := s.outcome(in, &bullav1.OperateReply{Authentic: true}); !errors.Is(err, ErrVerification) {
			t.Errorf("%s: a foreign signature is called good: %v", kind, err)
		}
		if _, err := s.outcome(in, &bullav1.OperateReply{}); !errors.Is(err, ErrNotAuthentic) {
			t.Errorf("%s: a foreign signature: %v", kind, err)
		}
	}
	s, _ := proxied(t, secret.TypeHMACSHA256, 0)
	if _, err := s.outcome(keys.Input{Operation: keys.MAC}, &bullav1.OperateReply{Output: make([]byte, 31), Authentic: true}); !errors.Is(err, ErrVerification) {
		t.Errorf("a short MAC: %v", err)
	}
}
