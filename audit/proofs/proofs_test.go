package proofs

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/bulla-project/bulla/ledger/event"
)

const origin = "test.example/log"

func newSigner(t testing.TB, origin string) *Signer {
	t.Helper()
	skey, vkey, err := NewLogKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSigner(skey + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if s.Key().String() != vkey || s.Origin() != origin {
		t.Fatalf("NewSigner derived key %s of %s, NewLogKey said %s", s.Key(), s.Origin(), vkey)
	}
	return s
}

func testCheckpoint(t testing.TB, s *Signer, size int64) (Checkpoint, []byte) {
	t.Helper()
	c := Checkpoint{Origin: s.Origin(), Size: size, Root: sha256.Sum256(fmt.Append(nil, size))}
	raw, err := s.Sign(c)
	if err != nil {
		t.Fatal(err)
	}
	return c, raw
}

func TestCheckpointRoundTrip(t *testing.T) {
	s := newSigner(t, origin)
	for _, size := range []int64{0, 1, 9, 300, 1 << 40, MaxSize} {
		want, raw := testCheckpoint(t, s, size)
		got, err := s.Key().Open(raw)
		if err != nil || got != want {
			t.Errorf("Open of size %d: %+v, %v; want %+v", size, got, err, want)
		}
		_, again := testCheckpoint(t, s, size)
		if !bytes.Equal(raw, again) {
			t.Errorf("size %d: two signatures of one checkpoint differ", size)
		}
	}
}

func TestCheckpointEveryBitCounts(t *testing.T) {
	s := newSigner(t, origin)
	_, raw := testCheckpoint(t, s, 300)
	for i := range raw {
		for bit := range 8 {
			bad := bytes.Clone(raw)
			bad[i] ^= 1 << bit
			if _, err := s.Key().Open(bad); !errors.Is(err, ErrVerification) {
				t.Errorf("byte %d, bit %d flipped: %v", i, bit, err)
			}
		}
		if _, err := s.Key().Open(raw[:i]); !errors.Is(err, ErrVerification) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
}

func TestCheckpointRefusesOtherLines(t *testing.T) {
	s, other := newSigner(t, origin), newSigner(t, origin)
	sign := func(text string, signers ...*Signer) []byte {
		var list []note.Signer
		for _, s := range signers {
			list = append(list, s.signer)
		}
		raw, err := note.Sign(&note.Note{Text: text}, list...)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	c, raw := testCheckpoint(t, s, 300)
	lines := strings.SplitAfter(string(raw), "\n")
	signature := lines[len(lines)-2]
	root := c.Root.String()
	for name, bad := range map[string][]byte{
		"nothing":            nil,
		"second signature":   sign(c.Text(), s, other),
		"other signature":    sign(c.Text(), other),
		"signature twice":    append(bytes.Clone(raw), signature...),
		"unknown line":       append(bytes.Clone(raw), "— somebody AAAAAAAA\n"...),
		"extension line":     sign(c.Text()+"more\n", s),
		"no root":            sign(origin+"\n300\n", s),
		"size with zero":     sign(origin+"\n0300\n"+root+"\n", s),
		"size with sign":     sign(origin+"\n+300\n"+root+"\n", s),
		"negative size":      sign(origin+"\n-1\n"+root+"\n", s),
		"size beyond limits": sign(fmt.Sprintf("%s\n%d\n%s\n", origin, MaxSize+1, root), s),
		"short root":         sign(origin+"\n300\nAAAA\n", s),
		"unused root bits":   sign(origin+"\n300\n"+root[:42]+string(root[42]+1)+"=\n", s),
		"other origin":       sign("other.example/log\n300\n"+root+"\n", s),
		"carriage return":    bytes.ReplaceAll(raw, []byte("\n"), []byte("\r\n")),
		"too long":           append(bytes.Clone(raw), bytes.Repeat([]byte(signature), 20)...),
	} {
		if _, err := s.Key().Open(bad); !errors.Is(err, ErrVerification) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Key().Open(sign(c.Text(), s, other)); err == nil || !strings.Contains(err.Error(), "signature line") {
		t.Errorf("a second signature is not called one: %v", err)
	}
	if _, err := (Key{}).Open(raw); !errors.Is(err, ErrVerification) {
		t.Errorf("the zero key opened a checkpoint: %v", err)
	}
}

func TestSignRefusesAnotherLog(t *testing.T) {
	s := newSigner(t, origin)
	if _, err := s.Sign(Checkpoint{Origin: "other.example/log", Size: 1}); err == nil {
		t.Error("signed for another log")
	}
	if _, err := s.Sign(Checkpoint{Origin: origin, Size: -1}); err == nil {
		t.Error("signed a negative size")
	}
}

func TestKeyHasOneSpelling(t *testing.T) {
	s := newSigner(t, origin)
	vkey := s.Key().String()
	if k, err := ParseKey(vkey + "\n"); err != nil || k.Origin() != origin {
		t.Fatalf("ParseKey: %v", err)
	}
	name, rest, _ := strings.Cut(vkey, "+")
	hash, key, _ := strings.Cut(rest, "+")
	for what, bad := range map[string]string{
		"empty": "", "two newlines": vkey + "\n\n", "line break in the key": name + "+" + hash + "+" + key[:8] + "\n" + key[8:],
		"upper-case hash": name + "+" + strings.ToUpper("abcdef12") + "+" + key, "other origin": "other+" + hash + "+" + key,
		"other hash": name + "+00000000+" + key, "cut": vkey[:len(vkey)-1], "long": vkey + strings.Repeat("A", maxKey), "unsigned name": "+" + hash + "+" + key,
	} {
		if _, err := ParseKey(bad); !errors.Is(err, ErrKey) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A hash with letters in it, so that case matters.
	for !strings.ContainsAny(hash, "abcdef") {
		_, vkey, _ = NewLogKey(origin)
		hash = strings.Split(vkey, "+")[1]
	}
	if _, err := ParseKey(strings.Replace(vkey, hash, strings.ToUpper(hash), 1)); !errors.Is(err, ErrKey) {
		t.Errorf("upper-case hash: %v", err)
	}
}

func TestSignerShowsNoSecret(t *testing.T) {
	skey, _, err := NewLogKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.SplitN(skey, "+", 5)[4]
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		if got := fmt.Sprintf(verb, s); strings.Contains(got, secret) || strings.Contains(got, fmt.Sprintf("%x", secret)) {
			t.Errorf("%s shows the secret: %s", verb, got)
		}
	}
	for _, bad := range []string{skey[:len(skey)-4], skey + "x", strings.Replace(skey, "PRIVATE", "PUBLIC", 1), "", strings.Repeat(skey, 9)} {
		_, err := NewSigner(bad)
		if !errors.Is(err, ErrKey) {
			t.Errorf("NewSigner of a bad key: %v", err)
		} else if strings.Contains(err.Error(), secret[:12]) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
	if _, err := ParseKey(skey); !errors.Is(err, ErrKey) || strings.Contains(err.Error(), secret) {
		t.Errorf("ParseKey of a secret key: %v", err)
	}
}

func TestOrigins(t *testing.T) {
	for _, good := range []string{"a", "example.org/bulla", "dev.bulla.test", "größe.example", strings.Repeat("x", 200)} {
		if _, _, err := NewLogKey(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", " ", "a b", "a+b", "a\n", "a\x00", "a\u00a0b", "\xff", "a\u200bb", strings.Repeat("x", 201)} {
		if _, _, err := NewLogKey(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// twoLeaves is a log of two leaves, small enough to do by hand.
func twoLeaves(t *testing.T, s *Signer) (leaves [2]event.Leaf, checkpoint []byte, proof [2]Proof) {
	t.Helper()
	for i := range leaves {
		_, _ = rand.Read(leaves[i].Event[:])
		_, _ = rand.Read(leaves[i].Reply[:])
	}
	a, b := LeafHash(leaves[0].Bytes()), LeafHash(leaves[1].Bytes())
	root := sha256.Sum256(append(append([]byte{1}, a[:]...), b[:]...))
	checkpoint, err := s.Sign(Checkpoint{Origin: origin, Size: 2, Root: root})
	if err != nil {
		t.Fatal(err)
	}
	return leaves, checkpoint, [2]Proof{{0, 2, []Hash{b}}, {1, 2, []Hash{a}}}
}

func TestVerifyInclusion(t *testing.T) {
	s := newSigner(t, origin)
	leaves, checkpoint, proof := twoLeaves(t, s)
	for i := range int64(2) {
		if c, err := VerifyInclusion(checkpoint, s.Key(), i, leaves[i], proof[i]); err != nil || c.Size != 2 {
			t.Errorf("index %d: %+v, %v", i, c, err)
		}
		refused := func(what string, err error) {
			t.Helper()
			if !errors.Is(err, ErrVerification) {
				t.Errorf("index %d, %s: %v", i, what, err)
			}
		}
		_, err := VerifyInclusion(checkpoint, s.Key(), i, leaves[1-i], proof[i])
		refused("other leaf", err)
		_, err = VerifyInclusion(checkpoint, s.Key(), 1-i, leaves[i], proof[i])
		refused("other index", err)
		_, err = VerifyInclusion(checkpoint, s.Key(), 1-i, leaves[i], Proof{1 - i, 2, proof[i].Hashes})
		refused("other index in the proof too", err)
		_, err = VerifyInclusion(checkpoint, s.Key(), i, leaves[i], Proof{i, 3, proof[i].Hashes})
		refused("other size", err)
		_, err = VerifyInclusion(checkpoint, s.Key(), i, leaves[i], Proof{i, 2, nil})
		refused("no hashes", err)
		_, err = VerifyInclusion(checkpoint, s.Key(), i, leaves[i], Proof{i, 2, append(proof[i].Hashes[:1:1], Hash{})})
		refused("needless hash", err)
		_, err = VerifyInclusion(checkpoint, newSigner(t, origin).Key(), i, leaves[i], proof[i])
		refused("other key", err)
	}
	for _, index := range []int64{-1, 2} {
		if _, err := VerifyInclusion(checkpoint, s.Key(), index, leaves[0], Proof{index, 2, nil}); !errors.Is(err, ErrVerification) {
			t.Errorf("index %d: %v", index, err)
		}
	}
}

func TestVerifyConsistencyEdges(t *testing.T) {
	s := newSigner(t, origin)
	empty, err := s.Sign(Checkpoint{Origin: origin, Root: sha256.Sum256(nil)})
	if err != nil {
		t.Fatal(err)
	}
	_, falseEmpty := testCheckpoint(t, s, 0)
	_, three := testCheckpoint(t, s, 3)
	otherThree, err := s.Sign(Checkpoint{Origin: origin, Size: 3})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name         string
		older, newer []byte
		proof        ConsistencyProof
		ok           bool
	}{
		{"from empty", empty, three, ConsistencyProof{Old: 0, New: 3}, true},
		{"the same", three, three, ConsistencyProof{Old: 3, New: 3}, true},
		{"from a false empty root", falseEmpty, three, ConsistencyProof{Old: 0, New: 3}, false},
		{"same size, other root", three, otherThree, ConsistencyProof{Old: 3, New: 3}, false},
		{"backwards", three, empty, ConsistencyProof{Old: 3, New: 0}, false},
		{"needless hashes", three, three, ConsistencyProof{3, 3, []Hash{{}}}, false},
		{"proof of other sizes", three, three, ConsistencyProof{Old: 2, New: 3}, false},
		{"malformed older", nil, three, ConsistencyProof{Old: 0, New: 3}, false},
		{"malformed newer", three, nil, ConsistencyProof{Old: 0, New: 3}, false},
	} {
		_, err := VerifyConsistency(tt.older, tt.newer, s.Key(), tt.proof)
		if tt.ok && err != nil || !tt.ok && !errors.Is(err, ErrVerification) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestProofEncoding(t *testing.T) {
	p := Proof{Index: 7, Size: 300, Hashes: []Hash{{1}, {2}, {3}}}
	if got, err := ParseProof(p.Encode()); err != nil || fmt.Sprint(got) != fmt.Sprint(p) {
		t.Errorf("ParseProof: %v, %v", got, err)
	}
	c := ConsistencyProof{Old: 7, New: 300, Hashes: []Hash{{1}, {2}}}
	if got, err := ParseConsistencyProof(c.Encode()); err != nil || fmt.Sprint(got) != fmt.Sprint(c) {
		t.Errorf("ParseConsistencyProof: %v, %v", got, err)
	}
	many := make([]Hash, maxHashes+1)
	for name, bad := range map[string][]byte{
		"empty": nil, "cut": p.Encode()[:30], "of the other kind": c.Encode(), "index beyond the size": Proof{Index: 3, Size: 3}.Encode(),
		"size beyond limits": Proof{Index: 3, Size: MaxSize + 1}.Encode(), "negative": Proof{Index: -1, Size: 5}.Encode(), "too many hashes": Proof{Size: 5, Hashes: many}.Encode(),
	} {
		if _, err := ParseProof(bad); !errors.Is(err, ErrVerification) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, bad := range map[string][]byte{
		"empty": nil, "of the other kind": p.Encode(), "backwards": ConsistencyProof{Old: 4, New: 3}.Encode(),
	} {
		if _, err := ParseConsistencyProof(bad); !errors.Is(err, ErrVerification) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// fuzzKey is a fixed key: fuzzing needs the same one in every process.
const fuzzKey = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"

func FuzzCheckpoint(f *testing.F) {
	s, err := NewSigner(fuzzKey)
	if err != nil {
		f.Fatal(err)
	}
	_, raw := testCheckpoint(f, s, 300)
	f.Add(raw)
	f.Add(append(bytes.Clone(raw), "— x AAAAAAAA\n"...))
	f.Add([]byte(Checkpoint{Origin: "PeterNeumann", Size: 1}.Text()))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := parseText(string(data)); err == nil && c.Text() != string(data) {
			t.Errorf("%q parses and is not canonical", data)
		}
		c, err := s.Key().Open(data)
		if err != nil {
			if !errors.Is(err, ErrVerification) {
				t.Errorf("error without the sentinel: %v", err)
			}
			return
		}
		again, err := s.Sign(c)
		if err != nil || !bytes.Equal(again, data) {
			t.Errorf("%q opens and is not canonical: %v", data, err)
		}
	})
}

func FuzzKey(f *testing.F) {
	s, err := NewSigner(fuzzKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s.Key().String())
	f.Add(fuzzKey)
	f.Fuzz(func(t *testing.T, text string) {
		if k, err := ParseKey(text); err == nil && k.String() != strings.TrimSuffix(text, "\n") {
			t.Errorf("%q is another spelling of %s", text, k)
		}
		_, _ = NewSigner(text)
	})
}

func FuzzProof(f *testing.F) {
	f.Add(Proof{Index: 7, Size: 300, Hashes: []Hash{{1}}}.Encode())
	f.Add(ConsistencyProof{Old: 7, New: 300, Hashes: []Hash{{1}}}.Encode())
	s, err := NewSigner(fuzzKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := ParseProof(data); err == nil {
			if !bytes.Equal(p.Encode(), data) {
				t.Errorf("%x is not canonical", data)
			}
			_, raw := testCheckpoint(t, s, p.Size)
			if _, err := VerifyInclusion(raw, s.Key(), p.Index, event.Leaf{}, p); err == nil {
				t.Error("an invented proof was accepted")
			}
		}
		if p, err := ParseConsistencyProof(data); err == nil {
			if !bytes.Equal(p.Encode(), data) {
				t.Errorf("%x is not canonical", data)
			}
			_, older := testCheckpoint(t, s, p.Old)
			_, newer := testCheckpoint(t, s, p.New)
			if _, err := VerifyConsistency(older, newer, s.Key(), p); err == nil && p.Old != p.New {
				t.Error("an invented proof was accepted")
			}
		}
	})
}
