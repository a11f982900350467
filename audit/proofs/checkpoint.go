package proofs

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// MaxCheckpoint is the largest signed checkpoint that is read, in bytes.
const MaxCheckpoint = 1 << 10

// Checkpoint is a tree head: the log Origin has Size leaves, and Root is the hash over all of them.
type Checkpoint struct {
	Origin string
	Size   int64
	Root   Hash
}

// Text returns the body that is signed: origin, size and root, a line each.
func (c Checkpoint) Text() string {
	return c.Origin + "\n" + strconv.FormatInt(c.Size, 10) + "\n" + c.Root.String() + "\n"
}

// parseText reads what Text writes and nothing else.
func parseText(text string) (Checkpoint, error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return Checkpoint{}, refuse("a checkpoint has the three lines origin, size and root, and no others")
	}
	if err := CheckOrigin(lines[0]); err != nil {
		return Checkpoint{}, refuse("%v", err)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || size > MaxSize {
		return Checkpoint{}, refuse("checkpoint size %.30q is not a number from 0 to 2^48", lines[1])
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return Checkpoint{}, refuse("checkpoint root %.60q is not a base64 SHA-256 hash", lines[2])
	}
	c := Checkpoint{Origin: lines[0], Size: size, Root: root}
	if c.Text() != text {
		return Checkpoint{}, refuse("checkpoint is not in its canonical spelling")
	}
	return c, nil
}

// Sign returns the signed checkpoint. The same checkpoint and key always give the same bytes.
func (s *Signer) Sign(c Checkpoint) ([]byte, error) {
	if c.Origin != s.Origin() {
		return nil, fmt.Errorf("sign checkpoint of log %s: the key is that of log %s", c.Origin, s.Origin())
	}
	if _, err := parseText(c.Text()); err != nil {
		return nil, fmt.Errorf("sign checkpoint: %w", err)
	}
	raw, err := note.Sign(&note.Note{Text: c.Text()}, s.signer)
	if err != nil {
		return nil, fmt.Errorf("sign checkpoint: %w", err)
	}
	return raw, nil
}

// Open reads a signed checkpoint and checks its signature with the log's key. Any other line, a second
// signature, or another spelling is refused with ErrVerification.
func (k Key) Open(raw []byte) (Checkpoint, error) {
	if k.IsZero() {
		return Checkpoint{}, refuse("no key to verify the checkpoint with")
	}
	if len(raw) > MaxCheckpoint {
		return Checkpoint{}, refuse("checkpoint of %d bytes, at most %d are allowed", len(raw), MaxCheckpoint)
	}
	n, err := note.Open(raw, note.VerifierList(k.verifier))
	if err != nil {
		return Checkpoint{}, k.explain(err)
	}
	c, err := parseText(n.Text)
	if err != nil {
		return Checkpoint{}, err
	}
	if c.Origin != k.Origin() {
		return Checkpoint{}, refuse("checkpoint is of log %s, the key is that of log %s", c.Origin, k.Origin())
	}
	if len(n.Sigs) != 1 || len(n.UnverifiedSigs) != 0 {
		return Checkpoint{}, refuse("checkpoint has a signature line that is not the log's")
	}
	// One signature line again, byte for byte: duplicates and odd base64 don't survive this.
	again := c.Text() + "\n— " + n.Sigs[0].Name + " " + n.Sigs[0].Base64 + "\n"
	if !canonicalBase64(n.Sigs[0].Base64) || again != string(raw) {
		return Checkpoint{}, refuse("checkpoint is not in its canonical spelling")
	}
	return c, nil
}

// explain turns an error of the note package into a sentence.
func (k Key) explain(err error) error {
	var unverified *note.UnverifiedNoteError
	if errors.As(err, &unverified) {
		if c, err := parseText(unverified.Note.Text); err == nil {
			if text := k.another(c.Origin); text != "" {
				return refuse("%s", text)
			}
		}
		return refuse("the checkpoint is not signed by the key of log %s: wrong key, or another log", k.Origin())
	}
	var invalid *note.InvalidSignatureError
	if errors.As(err, &invalid) {
		return refuse("the signature of log %s does not fit the checkpoint", k.Origin())
	}
	return refuse("the checkpoint is not a signed note")
}

// canonicalBase64 reports whether s is what the standard encoding writes.
func canonicalBase64(s string) bool {
	raw, err := base64.StdEncoding.DecodeString(s)
	return err == nil && base64.StdEncoding.EncodeToString(raw) == s
}

// verifierKey derives the verifier key from a signing key that note.NewSigner has accepted.
func verifierKey(skey, origin string) (string, error) {
	// PRIVATE+KEY+ORIGIN+HASH+KEY: an origin has no '+', the base64 of the key may.
	parts := strings.SplitN(skey, "+", 5)
	raw, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if err != nil || len(raw) != 1+ed25519.SeedSize {
		return "", fmt.Errorf("%w: expected the signing key PRIVATE+KEY+ORIGIN+HASH+KEY", ErrKey)
	}
	defer clear(raw)
	public := ed25519.NewKeyFromSeed(raw[1:]).Public().(ed25519.PublicKey)
	vkey, err := note.NewEd25519VerifierKey(origin, public)
	if err != nil {
		return "", fmt.Errorf("%w: %v", ErrKey, err)
	}
	return vkey, nil
}
