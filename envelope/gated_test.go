package envelope

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/bulla-project/bulla/secret"
)

// shares derives shares as a broker would.
func shares(session string) func(uint32) Share {
	return func(number uint32) Share {
		h := hmac.New(sha256.New, []byte("an epoch key"))
		h.Write(binary.BigEndian.AppendUint32([]byte(session), number))
		return Share(h.Sum(nil))
	}
}

func gated(t testing.TB, value, session string, uses uint32) *Gated {
	t.Helper()
	body, err := Gate(secret.NewBytes([]byte(value)), session, uses, shares(session))
	if err != nil {
		t.Fatal(err)
	}
	g, err := parseGated(body.Expose(), session, uses)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestGatedOpensWithEachShareOnce(t *testing.T) {
	for _, value := range []string{"", "s3cret", string(make([]byte, MaxSecret))} {
		g := gated(t, value, "s", 3)
		for number := uint32(1); number <= 3; number++ {
			if got, err := g.Open(number, shares("s")(number)); err != nil || string(got.Expose()) != value {
				t.Errorf("use %d: %v", number, err)
			}
		}
	}
}

// Without the share of this very use of this very session the body says nothing.
func TestAbuse_A22_wrong_share(t *testing.T) {
	g := gated(t, "s3cret", "s", 3)
	for name, c := range map[string]struct {
		number uint32
		share  Share
		want   error
	}{
		"no share":                   {1, Share{}, ErrCrypto},
		"the share of another use":   {1, shares("s")(2), ErrCrypto},
		"of another session":         {1, shares("other")(1), ErrCrypto},
		"no such use":                {4, shares("s")(4), ErrInvalid},
		"use 0":                      {0, shares("s")(0), ErrInvalid},
		"a number beyond all bounds": {1 << 31, shares("s")(1), ErrInvalid},
	} {
		if got, err := g.Open(c.number, c.share); !errors.Is(err, c.want) || got.Len() != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range g.head {
		altered := &Gated{g.session, bytes.Clone(g.head), g.sealed}
		altered.head[i] ^= 1
		if _, err := altered.Open(1, shares("s")(1)); !errors.Is(err, ErrCrypto) {
			t.Fatalf("byte %d of the head: %v", i, err)
		}
	}
	for i := range g.sealed {
		altered := &Gated{g.session, g.head, bytes.Clone(g.sealed)}
		altered.sealed[i] ^= 1
		if _, err := altered.Open(1, shares("s")(1)); !errors.Is(err, ErrCrypto) {
			t.Fatalf("byte %d of the body: %v", i, err)
		}
	}
	if _, err := (&Gated{"other", g.head, g.sealed}).Open(1, shares("s")(1)); !errors.Is(err, ErrCrypto) {
		t.Errorf("under another session id: %v", err)
	}
}

func TestGateRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		size int
		uses uint32
	}{"no use": {1, 0}, "too many uses": {1, MaxUses + 1}, "too large": {MaxSecret + 1, 1}} {
		if _, err := Gate(secret.NewBytes(make([]byte, c.size)), "s", c.uses, shares("s")); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzGated(f *testing.F) {
	body, err := Gate(secret.NewBytes([]byte("s3cret")), "s", 2, shares("s"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body.Expose(), uint32(2), uint32(1))
	f.Add([]byte{0, 0, 0, 1}, uint32(1), uint32(1))
	f.Fuzz(func(t *testing.T, b []byte, uses, number uint32) {
		g, err := parseGated(b, "s", uses)
		if err != nil {
			return
		}
		// The seed is another process's, of another key: only what is sealed in it is the same.
		if got, err := g.Open(number, shares("s")(number)); err == nil && string(got.Expose()) != "s3cret" {
			t.Fatalf("something else opens, to %d bytes", got.Len())
		}
	})
}
