package keyring

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"maps"
	"time"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/aesgcm"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
)

const (
	macSize = 32
	maxKeys = 4096
)

// keyParameters are those of every key in a ring: AES-256-GCM whose ciphertexts name their key.
func keyParameters() (*aesgcm.Parameters, error) {
	return aesgcm.NewParameters(aesgcm.ParametersOpts{KeySizeInBytes: 32, IVSizeInBytes: 12, TagSizeInBytes: 16, Variant: aesgcm.VariantTink})
}

// newSealed returns the first content of a ring.
func newSealed(kek KEK, now time.Time) (*sealed, error) {
	s := &sealed{kek: kek, mac: make([]byte, macSize), created: map[uint32]int64{}}
	_, _ = rand.Read(s.mac) // crypto/rand.Read never fails
	return s.addPrimary(keyset.NewManager(), now)
}

// withNewPrimary returns s with one key more. s stays as it is.
func (s *sealed) withNewPrimary(now time.Time) (*sealed, error) {
	if s.handle.Len() >= maxKeys {
		return nil, fmt.Errorf("it holds %d keys already", maxKeys)
	}
	next := &sealed{kek: s.kek, mac: s.mac, created: maps.Clone(s.created)}
	return next.addPrimary(keyset.NewManagerFromHandle(s.handle), now)
}

func (s *sealed) addPrimary(m *keyset.Manager, now time.Time) (*sealed, error) {
	params, err := keyParameters()
	if err != nil {
		return nil, err
	}
	id, err := m.AddNewKeyFromParameters(params)
	if err != nil {
		return nil, err
	}
	if err := m.SetPrimary(id); err != nil {
		return nil, err
	}
	if s.handle, err = m.Handle(); err != nil {
		return nil, err
	}
	s.created[id] = now.Unix()
	s.aead, err = aead.New(s.handle)
	return s, err
}

// encodeContent returns what the data key seals, to be wiped after use: the key for keyed hashes (macSize
// bytes), the number of keys (uint32), for each its id (uint32) and time of creation (int64, seconds), in
// the order of the Tink keyset that follows to the end. Numbers are big endian.
func encodeContent(s *sealed) ([]byte, error) {
	var keys bytes.Buffer
	defer func() { clear(keys.Bytes()) }()
	if err := insecurecleartextkeyset.Write(s.handle, keyset.NewBinaryWriter(&keys)); err != nil {
		return nil, err
	}
	n := s.handle.Len()
	// Of its full size at once: growing would leave copies behind.
	out := make([]byte, 0, macSize+4+12*n+keys.Len())
	out = append(out, s.mac...)
	out = binary.BigEndian.AppendUint32(out, uint32(n))
	for i := range n {
		e, err := s.handle.Entry(i)
		if err != nil {
			return nil, err
		}
		out = binary.BigEndian.AppendUint32(out, e.KeyID())
		out = binary.BigEndian.AppendUint64(out, uint64(s.created[e.KeyID()]))
	}
	return append(out, keys.Bytes()...), nil
}

// parseContent reverses encodeContent and keeps nothing of data. What it reads is authenticated, so whatever
// it refuses was written by another program. The Tink keyset is not compared with its re-encoding: protobuf
// promises no canonical form over versions of its library.
func parseContent(data []byte) (*sealed, error) {
	bad := fmt.Errorf("%w (its keys are not those of this program's version)", ErrCorrupt)
	if len(data) < macSize+4 {
		return nil, bad
	}
	s := &sealed{mac: bytes.Clone(data[:macSize]), created: map[uint32]int64{}}
	n, rest := int(binary.BigEndian.Uint32(data[macSize:])), data[macSize+4:]
	if n < 1 || n > maxKeys || len(rest) < 12*n {
		return nil, bad
	}
	var err error
	if s.handle, err = insecurecleartextkeyset.Read(keyset.NewBinaryReader(bytes.NewReader(rest[12*n:]))); err != nil || s.handle.Len() != n {
		return nil, bad
	}
	params, err := keyParameters()
	if err != nil {
		return nil, err
	}
	for i := range n {
		e, err := s.handle.Entry(i)
		if err != nil {
			return nil, bad
		}
		id := binary.BigEndian.Uint32(rest[12*i:])
		if _, twice := s.created[id]; twice || id != e.KeyID() || e.KeyStatus() != keyset.Enabled || !e.Key().Parameters().Equal(params) {
			return nil, bad
		}
		s.created[id] = int64(binary.BigEndian.Uint64(rest[12*i+4:]))
	}
	if s.aead, err = aead.New(s.handle); err != nil {
		return nil, bad
	}
	return s, nil
}
