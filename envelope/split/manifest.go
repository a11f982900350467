package split

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/envelope/proof"
	"github.com/bulla-project/bulla/secret"
)

// Salt keeps two hashes apart, and the share behind one out of reach of a table.
type Salt [16]byte

// MarshalText implements encoding.TextMarshaler.
func (s Salt) MarshalText() ([]byte, error) {
	return base64.RawURLEncoding.AppendEncode(nil, s[:]), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Salt) UnmarshalText(text []byte) error {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(string(text))
	if err != nil || len(raw) != len(s) {
		return fmt.Errorf("salt: %w", ErrMalformed)
	}
	*s = Salt(raw)
	return nil
}

// Holder is who has a share.
type Holder struct {
	ID   string          `json:"id"` // SPIFFE ID
	Salt Salt            `json:"salt"`
	Hash envelope.Digest `json:"hash"` // of the share
}

// Manifest says what the shares of one split are. Its JSON form has the fields in this order, all of them, without
// white space; nothing else is accepted.
type Manifest struct {
	Version       string          `json:"v"`  // LabelManifest
	ID            string          `json:"id"` // of the split; at a delivery the session
	Source        bool            `json:"source"`
	Secret        string          `json:"secret"`         // name
	SecretVersion uint32          `json:"secret_version"` // 0 at the source
	Threshold     uint32          `json:"threshold"`
	Holders       []Holder        `json:"holders"`    // by SPIFFE ID, each once
	Ciphertext    envelope.Digest `json:"ciphertext"` // of nonce and ciphertext
	Commitment    envelope.Digest `json:"commitment"` // to the key
}

// IDs lists the holders' SPIFFE IDs, sorted.
func (m *Manifest) IDs() []string {
	out := make([]string, len(m.Holders))
	for i, h := range m.Holders {
		out[i] = h.ID
	}
	return out
}

func sortedHolders(ids []string) []Holder {
	out := make([]Holder, len(ids))
	for i, id := range ids {
		out[i].ID = id
	}
	slices.SortFunc(out, func(a, b Holder) int { return strings.Compare(a.ID, b.ID) })
	return out
}

func (m *Manifest) holder(id string) (Holder, bool) {
	i, ok := slices.BinarySearchFunc(m.Holders, id, func(h Holder, id string) int { return strings.Compare(h.ID, id) })
	if !ok {
		return Holder{}, false
	}
	return m.Holders[i], true
}

// hash is the hash of a share for a holder.
func (m *Manifest) hash(h Holder, share []byte) envelope.Digest {
	return envelope.DigestOf(proof.Statement(labelShare, []byte(m.ID), []byte(h.ID), h.Salt[:], share))
}

// context is what the ciphertext is bound to: all that is known before it is made.
func (m *Manifest) context() []byte {
	version := binary.BigEndian.AppendUint32(nil, m.SecretVersion)
	threshold := binary.BigEndian.AppendUint32(nil, m.Threshold)
	fields := [][]byte{[]byte(m.ID), []byte(m.Secret), version, threshold}
	for _, h := range m.Holders {
		fields = append(fields, []byte(h.ID))
	}
	return proof.Statement(strings.TrimSuffix(labelPackage, "\n"), fields...)
}

// validate says what is wrong with a manifest; whole says that it is a finished one.
func (m *Manifest) validate(whole bool) error {
	if m.Version != LabelManifest || !plain(m.ID, 64) {
		return fmt.Errorf("version or id of the manifest: %w", ErrMalformed)
	}
	if _, err := secret.ParseName(m.Secret); err != nil {
		return fmt.Errorf("name of the secret: %w", ErrMalformed)
	}
	if m.Source != (m.SecretVersion == 0) {
		return fmt.Errorf("version of the secret: %w", ErrMalformed)
	}
	if n := len(m.Holders); m.Threshold < 2 || int(m.Threshold) > n || n > MaxHolders {
		return fmt.Errorf("%d of %d holders: from 2 to all of at most %d", m.Threshold, n, MaxHolders)
	}
	for i, h := range m.Holders {
		if !strings.HasPrefix(h.ID, "spiffe://") || !plain(h.ID, 2048) {
			return fmt.Errorf("holder %d is no SPIFFE ID: %w", i+1, ErrMalformed)
		}
		if i > 0 && m.Holders[i-1].ID >= h.ID {
			return fmt.Errorf("holder %s is there twice, or out of order: %w", h.ID, ErrMalformed)
		}
		if whole && h.Hash.IsZero() {
			return fmt.Errorf("holder %s has no hash: %w", h.ID, ErrMalformed)
		}
	}
	if whole && (m.Ciphertext.IsZero() || m.Commitment.IsZero()) {
		return fmt.Errorf("digest or commitment is missing: %w", ErrMalformed)
	}
	return nil
}

// encode returns the one JSON form.
func (m *Manifest) encode() ([]byte, error) {
	if err := m.validate(true); err != nil {
		return nil, err
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	if len(b) > MaxManifest {
		return nil, fmt.Errorf("encode manifest: %w: %d bytes, at most %d: the holders' names are too long", ErrInvalid, len(b), MaxManifest)
	}
	return b, nil
}

// ParseManifest reads the JSON form of a manifest, and nothing else. It checks no signature.
func ParseManifest(b []byte) (Manifest, error) {
	if len(b) > MaxManifest {
		return Manifest{}, fmt.Errorf("manifest of %d bytes: %w", len(b), ErrMalformed)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var m Manifest
	if err := dec.Decode(&m); err != nil {
		return Manifest{}, fmt.Errorf("manifest: %w: not the JSON of a manifest", ErrMalformed)
	}
	again, err := m.encode()
	if err != nil {
		return Manifest{}, fmt.Errorf("manifest: %w", err)
	}
	if !bytes.Equal(again, b) {
		return Manifest{}, fmt.Errorf("manifest: %w: not in its one encoding", ErrMalformed)
	}
	return m, nil
}

// plain reports whether s has 1 to limit characters that need no escaping in JSON.
func plain(s string, limit int) bool {
	if s == "" || len(s) > limit {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c <= ' ', c >= 0x7f, c == '"', c == '\\', c == '<', c == '>', c == '&':
			return false
		}
	}
	return true
}
