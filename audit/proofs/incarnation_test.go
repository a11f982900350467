package proofs

import (
	"errors"
	"strings"
	"testing"
)

func TestIncarnations(t *testing.T) {
	for _, n := range []uint32{1, 2, 10, MaxIncarnation} {
		origin := Incarnation("example.org/bulla", n)
		if base, got := SplitIncarnation(origin); base != "example.org/bulla" || got != n || CheckOrigin(origin) != nil {
			t.Errorf("%d: %s is %s, %d", n, origin, base, got)
		}
	}
	for _, origin := range []string{
		"", "x", "/incarnation-2", "x/incarnation-", "x/incarnation-1", "x/incarnation-0", "x/incarnation-02", "x/incarnation--2", "x/incarnation-2x",
		"x/incarnation-1048577", "x/incarnation-99999999999999999999", "x/incarnation-2/y",
	} {
		if base, n := SplitIncarnation(origin); base != origin || n != 1 {
			t.Errorf("%s is %s, %d", origin, base, n)
		}
	}
	if base, n := SplitIncarnation("x/incarnation-2/incarnation-3"); base != "x/incarnation-2" || n != 3 {
		t.Errorf("%s, %d", base, n)
	}
}

// A checkpoint of another incarnation is refused like any other, and the words say what to do.
func TestOtherIncarnationIsExplained(t *testing.T) {
	var signed [4][]byte
	var keys [4]Key
	for n := range signed {
		skey, _, err := NewLogKey(Incarnation("example.org/bulla", uint32(n+1)))
		if err != nil {
			t.Fatal(err)
		}
		s, err := NewSigner(skey)
		if err != nil {
			t.Fatal(err)
		}
		keys[n] = s.Key()
		if signed[n], err = s.Sign(Checkpoint{Origin: s.Origin(), Size: 7}); err != nil {
			t.Fatal(err)
		}
		if c, err := Peek(signed[n]); err != nil || c.Origin != s.Origin() || c.Size != 7 {
			t.Errorf("%+v, %v", c, err)
		}
	}
	for a := range keys {
		for b := range signed {
			_, err := keys[a].Open(signed[b])
			want := map[bool]string{true: "may be lost", false: "with the key of its own log"}[b > a]
			if (err == nil) != (a == b) || err != nil && (!errors.Is(err, ErrVerification) || !strings.Contains(err.Error(), want)) {
				t.Errorf("key of %d, checkpoint of %d: %v", a+1, b+1, err)
			}
		}
	}
	for _, raw := range []string{"", "x", "a\n1\n", "a\n1\nnotbase64\n\n— a x\n", strings.Repeat("a", MaxCosigned+1)} {
		if c, err := Peek([]byte(raw)); !errors.Is(err, ErrVerification) {
			t.Errorf("%.20q: %+v, %v", raw, c, err)
		}
	}
}
