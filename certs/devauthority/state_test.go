package devauthority

import (
	"bytes"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func FuzzDecodeKeys(f *testing.F) {
	k, err := newKeys(f.TempDir(), spiffeid.RequireTrustDomainFromString("td.test"), time.Now())
	if err != nil {
		f.Fatal(err)
	}
	good, err := encodeKeys(k)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte("{}"))
	f.Add([]byte(`{"version": 1, "trust_domain": "td.test", "generations": [{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := decodeKeys(data)
		if err != nil {
			if k != nil {
				t.Fatal("half a result")
			}
			return
		}
		again, err := encodeKeys(k)
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("what was accepted is not what is written: %v", err)
		}
	})
}

func TestRenewalIsAtHalfOfTheLifetime(t *testing.T) {
	for range 1000 {
		if d := renewalDelay(time.Hour); d < 27*time.Minute || d > 33*time.Minute {
			t.Fatalf("renewal after %s of an hour; want half ±10 %%", d)
		}
	}
}

// A generation that was just published must not sign yet, a tainted one never; but somebody must.
func TestSignerIsTheNewestThatMay(t *testing.T) {
	now := time.Now()
	old, ready, fresh := &generation{id: "old"}, &generation{id: "ready", signsFrom: now}, &generation{id: "fresh", signsFrom: now.Add(time.Second)}
	tainted := &generation{id: "tainted", tainted: true}
	for _, tc := range []struct {
		list []*generation
		want *generation
	}{
		{[]*generation{old}, old},
		{[]*generation{old, ready}, ready},
		{[]*generation{old, fresh}, old},
		{[]*generation{old, ready, tainted}, ready},
		{[]*generation{tainted, fresh}, fresh},
	} {
		if got := (&keys{generations: tc.list}).signer(now); got != tc.want {
			t.Errorf("signer is %s; want %s", got.id, tc.want.id)
		}
	}
}
