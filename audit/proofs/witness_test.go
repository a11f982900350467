package proofs

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"

	"github.com/bulla-project/bulla/ledger/event"
)

// cosigner is a witness of another implementation, with a fixed key.
func cosigner(t testing.TB, name string) (*torchwood.CosignatureSigner, WitnessKey) {
	t.Helper()
	s, err := torchwood.NewCosignatureSigner(name, ed25519.NewKeyFromSeed(bytes.Repeat([]byte(name[:1]), 32)))
	if err != nil {
		t.Fatal(err)
	}
	k, err := ParseWitnessKey(s.Verifier().String() + "\n")
	if err != nil || k.String() != s.Verifier().String() || k.Name() != name {
		t.Fatalf("torchwood's key %s: %v", s.Verifier(), err)
	}
	return s, k
}

// lines is what a witness answers for a checkpoint.
func lines(t testing.TB, c Checkpoint, signers ...note.Signer) []byte {
	t.Helper()
	signed, err := note.Sign(&note.Note{Text: c.Text()}, signers...)
	if err != nil {
		t.Fatal(err)
	}
	return signed[bytes.LastIndex(signed, []byte("\n\n"))+2:]
}

// cosigned is a checkpoint with the cosignatures of two witnesses.
func cosigned(t testing.TB, s *Signer) (raw []byte, keys []WitnessKey) {
	t.Helper()
	c, raw := testCheckpoint(t, s, 300)
	for _, name := range []string{"b.example/w", "a.example/w"} {
		signer, key := cosigner(t, name)
		var err error
		if raw, err = s.Key().Cosign(raw, lines(t, c, signer), key); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	return raw, keys
}

func TestCosigned(t *testing.T) {
	s, err := NewSigner(fuzzKey)
	if err != nil {
		t.Fatal(err)
	}
	raw, keys := cosigned(t, s)
	c, sigs, err := s.Key().OpenCosigned(raw, keys[:1])
	if err != nil || c.Size != 300 || len(sigs) != 2 || sigs[0].Witness != "a.example/w" || sigs[0].Verified || !sigs[1].Verified || sigs[1].Size != 300 {
		t.Fatalf("%+v, %+v, %v", c, sigs, err)
	}
	seen, missing := VerifiedBy(sigs, keys)
	if len(seen) != 1 || len(missing) != 1 || missing[0] != "a.example/w" {
		t.Errorf("seen %v, missing %v", seen, missing)
	}
	if _, err := s.Key().Open(raw); !errors.Is(err, ErrVerification) {
		t.Errorf("Open takes cosignatures: %v", err)
	}
	if plain := Uncosigned(raw); !bytes.HasPrefix(raw, plain) || bytes.Count(plain, []byte("\n")) != 5 {
		t.Errorf("without cosignatures: %q", plain)
	}
	all := strings.SplitAfter(string(raw), "\n")
	middle := len(all[5]) - 40 // of the signature of a.example
	other := byte('A')
	if all[5][middle] == other {
		other = 'B'
	}
	forged := strings.Replace(string(raw), all[5], all[5][:middle]+string(other)+all[5][middle+1:], 1)
	if _, _, err := s.Key().OpenCosigned([]byte(forged), keys); !errors.Is(err, ErrVerification) {
		t.Errorf("a cosignature that its key did not make: %v", err)
	}
	if _, sigs, err := s.Key().OpenCosigned([]byte(forged), keys[:1]); err != nil || sigs[0].Verified {
		t.Errorf("a cosignature of a witness that is not asked for: %+v, %v", sigs, err)
	}
	for name, text := range map[string]string{
		"another order":    strings.Join(append(append([]string{}, all[:5]...), all[6], all[5]), ""),
		"twice":            string(raw) + all[6],
		"no newline":       strings.TrimSuffix(string(raw), "\n"),
		"an empty line":    string(raw) + "\n",
		"the log twice":    string(raw) + all[4],
		"a word":           string(raw) + "hello\n",
		"seventeen":        strings.Join(all[:5], "") + strings.Repeat(all[5], MaxWitnesses+1),
		"not the log's":    strings.Join(append(append([]string{}, all[:4]...), all[5:]...), ""),
		"more base64":      strings.Replace(string(raw), all[5], strings.TrimSuffix(all[5], "\n")+"AAAA\n", 1),
		"too long":         string(raw) + strings.Repeat("x", MaxCosigned),
		"another log size": strings.Replace(string(raw), "\n300\n", "\n301\n", 1),
	} {
		if _, _, err := s.Key().OpenCosigned([]byte(text), keys); !errors.Is(err, ErrVerification) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Of an answer only what the witness's key signed over this checkpoint is taken.
func TestCosign(t *testing.T) {
	s, err := NewSigner(fuzzKey)
	if err != nil {
		t.Fatal(err)
	}
	c, raw := testCheckpoint(t, s, 300)
	other, _ := testCheckpoint(t, s, 301)
	signer, key := cosigner(t, "a.example/w")
	stranger, _ := cosigner(t, "b.example/w")
	got, err := s.Key().Cosign(raw, lines(t, c, stranger, signer), key)
	if err != nil || bytes.Contains(got, []byte("b.example")) {
		t.Errorf("an answer with a stranger's line: %q, %v", got, err)
	}
	if again, err := s.Key().Cosign(got, lines(t, c, signer), key); err != nil || bytes.Count(again, []byte("a.example")) != 1 {
		t.Errorf("a second time: %q, %v", again, err)
	}
	for name, answer := range map[string][]byte{
		"a stranger's": lines(t, c, stranger), "another checkpoint's": lines(t, other, signer), "nothing": nil,
		"cut": bytes.TrimSuffix(lines(t, c, signer), []byte("\n")), "a word": []byte("hello\n"),
	} {
		if got, err := s.Key().Cosign(raw, answer, key); !errors.Is(err, ErrVerification) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestWitnessKeyRefuses(t *testing.T) {
	signer, _ := cosigner(t, "a.example/w")
	good := signer.Verifier().String()
	s, err := NewSigner(fuzzKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"a log's key": s.Key().String(), "nothing": "", "no hash": "a.example/w+x", "another hash": strings.Replace(good, "+", "+00000000+", 1),
		"capitals": strings.ToUpper(good), "another name": "b" + good[1:], "two newlines": good + "\n\n", "too long": good + strings.Repeat("A", maxKey),
	} {
		if k, err := ParseWitnessKey(text); !errors.Is(err, ErrWitnessKey) {
			t.Errorf("%s: %v, %v", name, k, err)
		}
	}
	if (WitnessKey{}).String() != "" || !(WitnessKey{}).IsZero() {
		t.Error("the zero key is one")
	}
}

func TestReply(t *testing.T) {
	r := Reply{Session: event.NewID(time.Unix(1_800_000_000, 0)), Index: 7, EnvelopeDigest: event.Digest{1}, ReplySalt: event.Salt{2}, EventCommitment: event.Digest{3}}
	text, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseReply(text); err != nil || got != r {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "null\n", string(text) + " ", strings.Replace(string(text), "/v1", "/v2", 1), strings.Replace(string(text), `"index":7`, `"index":-7`, 1)} {
		if _, err := ParseReply([]byte(bad)); !errors.Is(err, ErrVerification) {
			t.Errorf("%.40q: %v", bad, err)
		}
	}
}

func FuzzCosigned(f *testing.F) {
	s, err := NewSigner(fuzzKey)
	if err != nil {
		f.Fatal(err)
	}
	raw, keys := cosigned(f, s)
	f.Add(raw)
	f.Add(Uncosigned(raw))
	f.Add(append(bytes.Clone(raw), "— x AAAA\n"...))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, sigs, err := s.Key().OpenCosigned(data, keys)
		if err != nil {
			if !errors.Is(err, ErrVerification) {
				t.Errorf("error without the sentinel: %v", err)
			}
			return
		}
		again, err := s.Sign(c)
		if err != nil {
			t.Fatal(err)
		}
		for _, sig := range sigs {
			again = append(again, sig.line...)
		}
		if !bytes.Equal(again, data) {
			t.Errorf("%q opens and is not canonical", data)
		}
		if c.Size != 300 && len(sigs) > 0 && sigs[0].Verified {
			t.Error("an invented cosignature verifies")
		}
	})
}

func FuzzWitnessKey(f *testing.F) {
	signer, _ := cosigner(f, "a.example/w")
	f.Add(signer.Verifier().String())
	f.Add(fmt.Sprintf("x+%08x+%s", 1, "BAAA"))
	f.Fuzz(func(t *testing.T, text string) {
		k, err := ParseWitnessKey(text)
		if err != nil {
			return
		}
		if k.String() != strings.TrimSuffix(text, "\n") {
			t.Errorf("%q is another spelling of %s", text, k)
		}
		if _, err := torchwood.NewCosignatureVerifier(k.String()); err != nil {
			t.Errorf("torchwood does not read %s: %v", k, err)
		}
	})
}

func FuzzReply(f *testing.F) {
	text, err := Reply{Session: event.NewID(time.Unix(1_800_000_000, 0)), Index: 7, EnvelopeDigest: event.Digest{1}}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseReply(data)
		if err != nil {
			return
		}
		if again, err := r.Encode(); err != nil || !bytes.Equal(again, data) {
			t.Errorf("%q is not canonical: %v", data, err)
		}
	})
}
