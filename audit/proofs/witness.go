package proofs

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// MaxWitnesses is how many cosignatures a checkpoint may carry.
	MaxWitnesses = 16
	// MaxCosigned is the largest cosigned checkpoint that is read, in bytes.
	MaxCosigned = MaxCheckpoint + MaxWitnesses*maxSignatureLine

	maxSignatureLine = 512
	algCosignature   = 4 // C2SP tlog-cosignature, Ed25519
	hashSize         = 4 // of a key, in a signature line
	cosignatureSize  = hashSize + 8 + ed25519.SignatureSize
	signatureMark    = "— "
	cosignatureLabel = "cosignature/v1"
)

// ErrWitnessKey says that a text is not the key of a witness.
var ErrWitnessKey = errors.New("not the key of a witness")

// WitnessKey verifies the cosignatures of one witness (C2SP tlog-cosignature). The zero value verifies nothing.
type WitnessKey struct {
	name   string
	hash   uint32
	public ed25519.PublicKey
}

// ParseWitnessKey reads a verifier key NAME+HASH+KEY of type 4, in its canonical spelling: one line, with or without
// its newline.
func ParseWitnessKey(text string) (WitnessKey, error) {
	text = strings.TrimSuffix(text, "\n")
	if len(text) > maxKey {
		return WitnessKey{}, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrWitnessKey, len(text), maxKey)
	}
	parts := strings.SplitN(text, "+", 3)
	if len(parts) != 3 || CheckOrigin(parts[0]) != nil {
		return WitnessKey{}, fmt.Errorf("%w: expected NAME+HASH+KEY, as the witness publishes it", ErrWitnessKey)
	}
	raw, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(raw) != 1+ed25519.PublicKeySize {
		return WitnessKey{}, fmt.Errorf("%w: the key of %s is not one of 33 bytes in base64", ErrWitnessKey, parts[0])
	}
	if raw[0] != algCosignature {
		return WitnessKey{}, fmt.Errorf("%w: the key of %s is of type %d, cosignatures are made with type %d", ErrWitnessKey, parts[0], raw[0], algCosignature)
	}
	k := newWitnessKey(parts[0], raw[1:])
	if k.String() != text {
		return WitnessKey{}, fmt.Errorf("%w: its hash does not fit, or it is not in its canonical spelling", ErrWitnessKey)
	}
	return k, nil
}

// newWitnessKey is the key of a name; its hash is that of the signed-note specification.
func newWitnessKey(name string, public ed25519.PublicKey) WitnessKey {
	sum := sha256.Sum256(append([]byte(name+"\n"), append([]byte{algCosignature}, public...)...))
	return WitnessKey{name: name, hash: binary.BigEndian.Uint32(sum[:]), public: public}
}

// Name returns the name of the witness.
func (k WitnessKey) Name() string { return k.name }

// IsZero reports whether k is the zero value.
func (k WitnessKey) IsZero() bool { return k.public == nil }

// String returns the key's line in note format, without a newline.
func (k WitnessKey) String() string {
	if k.IsZero() {
		return ""
	}
	return fmt.Sprintf("%s+%08x+%s", k.name, k.hash, base64.StdEncoding.EncodeToString(append([]byte{algCosignature}, k.public...)))
}

// Cosignature says that a witness saw a checkpoint, and nothing that contradicts it, at a time of its own clock.
type Cosignature struct {
	Witness string    `json:"witness"`
	Time    time.Time `json:"time"` // whole seconds, UTC
	Size    int64     `json:"size"` // of the log that it saw
	// Verified says that the key of the witness was given, and fits.
	Verified bool `json:"verified"`

	line string // with its newline
	hash uint32
	sig  []byte
}

// parseCosignature reads a signature line, without its newline, in its one spelling.
func parseCosignature(line string) (Cosignature, error) {
	rest, ok := strings.CutPrefix(line, signatureMark)
	name, text, found := strings.Cut(rest, " ")
	if !ok || !found || CheckOrigin(name) != nil || len(line) > maxSignatureLine || !canonicalBase64(text) {
		return Cosignature{}, refuse("a line of the checkpoint is not a signature in its canonical spelling")
	}
	raw, _ := base64.StdEncoding.DecodeString(text)
	if len(raw) != cosignatureSize {
		return Cosignature{}, refuse("the signature of %s is not a cosignature: it has %d bytes, expected %d", name, len(raw), cosignatureSize)
	}
	at := binary.BigEndian.Uint64(raw[hashSize:])
	if at == 0 || at > 1<<36 { // the year 4147
		return Cosignature{}, refuse("the cosignature of %s has no time", name)
	}
	return Cosignature{
		Witness: name, Time: time.Unix(int64(at), 0).UTC(), line: line + "\n",
		hash: binary.BigEndian.Uint32(raw), sig: raw[hashSize+8:],
	}, nil
}

// verify checks c over the text of a checkpoint.
func (c Cosignature) verify(k WitnessKey, text string) bool {
	message := fmt.Sprintf("%s\ntime %d\n%s", cosignatureLabel, c.Time.Unix(), text)
	return c.is(k) && ed25519.Verify(k.public, []byte(message), c.sig)
}

// is says whether c names the key k.
func (c Cosignature) is(k WitnessKey) bool {
	return !k.IsZero() && c.Witness == k.name && c.hash == k.hash
}

// OpenCosigned reads a checkpoint that may carry cosignatures after the log's own signature, and checks the latter
// as Open does. Of the cosignatures, those of a given witness have to verify; those of others are returned with
// Verified unset: whether anybody made them is not known. They stand in the order of their names and key hashes, one of
// each key; any other line is refused with ErrVerification.
func (k Key) OpenCosigned(raw []byte, witnesses []WitnessKey) (Checkpoint, []Cosignature, error) {
	if len(raw) > MaxCosigned {
		return Checkpoint{}, nil, refuse("checkpoint of %d bytes, at most %d are allowed", len(raw), MaxCosigned)
	}
	base, lines := splitCosigned(raw)
	c, err := k.Open(base)
	if err != nil {
		return Checkpoint{}, nil, err
	}
	if len(lines) == 0 {
		return c, nil, nil
	}
	if !bytes.HasSuffix(raw, []byte("\n")) {
		return Checkpoint{}, nil, refuse("the last line of the checkpoint is cut")
	}
	if len(lines) > MaxWitnesses {
		return Checkpoint{}, nil, refuse("checkpoint with %d cosignatures, at most %d are allowed", len(lines), MaxWitnesses)
	}
	out := make([]Cosignature, 0, len(lines))
	for _, line := range lines {
		sig, err := parseCosignature(line)
		if err != nil {
			return Checkpoint{}, nil, err
		}
		for _, w := range witnesses {
			if !sig.is(w) {
				continue
			}
			if !sig.verify(w, c.Text()) {
				return Checkpoint{}, nil, refuse("the cosignature of witness %s does not fit the checkpoint of size %d", sig.Witness, c.Size)
			}
			sig.Verified = true
		}
		sig.Size = c.Size
		out = append(out, sig)
	}
	if !slices.IsSortedFunc(out, compareCosignatures) || len(slices.CompactFunc(slices.Clone(out), sameWitness)) != len(out) {
		return Checkpoint{}, nil, refuse("the cosignatures of the checkpoint are not in order, or one comes twice")
	}
	return c, out, nil
}

func compareCosignatures(a, b Cosignature) int {
	return cmp.Or(strings.Compare(a.Witness, b.Witness), cmp.Compare(a.hash, b.hash))
}

func sameWitness(a, b Cosignature) bool { return compareCosignatures(a, b) == 0 }

// Uncosigned returns the checkpoint as the log signed it, without the lines of cosignatures.
func Uncosigned(raw []byte) []byte {
	base, _ := splitCosigned(raw)
	return base
}

// splitCosigned cuts the lines after the first signature line off.
func splitCosigned(raw []byte) (base []byte, lines []string) {
	_, signatures, found := bytes.Cut(raw, []byte("\n\n"))
	first := bytes.IndexByte(signatures, '\n')
	if !found || first < 0 || first+1 == len(signatures) {
		return raw, nil
	}
	at := len(raw) - len(signatures) + first + 1
	return raw[:at], strings.Split(strings.TrimSuffix(string(raw[at:]), "\n"), "\n")
}

// Cosign puts the cosignatures that a witness answered with, one line each, to a checkpoint that the log signed, which
// may carry others already. Lines of other keys than w's are left out, as C2SP tlog-witness wants it; without a
// valid one of w the error wraps ErrVerification.
func (k Key) Cosign(checkpoint, answer []byte, w WitnessKey) ([]byte, error) {
	c, have, err := k.OpenCosigned(checkpoint, nil)
	if err != nil {
		return nil, err
	}
	base, _ := splitCosigned(checkpoint)
	var newest Cosignature
	for line := range strings.Lines(string(answer)) {
		text, whole := strings.CutSuffix(line, "\n")
		if !whole {
			return nil, refuse("the answer of witness %s is cut", w.Name())
		}
		sig, err := parseCosignature(text)
		if err != nil || !sig.verify(w, c.Text()) || sig.Time.Before(newest.Time) {
			continue
		}
		newest = sig
	}
	if newest.line == "" {
		return nil, refuse("the answer of witness %s holds no valid cosignature of its key", w.Name())
	}
	have = slices.DeleteFunc(have, func(old Cosignature) bool { return sameWitness(old, newest) })
	if have = append(have, newest); len(have) > MaxWitnesses {
		return nil, refuse("a checkpoint carries at most %d cosignatures", MaxWitnesses)
	}
	slices.SortFunc(have, compareCosignatures)
	out := bytes.Clone(base)
	for _, sig := range have {
		out = append(out, sig.line...)
	}
	return out, nil
}

// VerifiedBy says who of the witnesses cosigned and when, and who did not.
func VerifiedBy(sigs []Cosignature, witnesses []WitnessKey) (seen []Cosignature, missing []string) {
	for _, w := range witnesses {
		var best *Cosignature // of several, that of the largest log
		for i, c := range sigs {
			if c.is(w) && c.Verified && (best == nil || c.Size > best.Size) {
				best = &sigs[i]
			}
		}
		if best == nil {
			missing = append(missing, w.Name())
			continue
		}
		seen = append(seen, *best)
	}
	return seen, missing
}
