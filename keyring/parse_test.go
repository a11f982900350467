package keyring

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	tinkpb "github.com/tink-crypto/tink-go/v2/proto/tink_go_proto"
)

func content(t testing.TB, rotations int) []byte {
	t.Helper()
	s, err := newSealed(nil, time.Unix(1_700_000_000, 0))
	for range rotations {
		if err == nil {
			s, err = s.withNewPrimary(time.Unix(1_800_000_000, 0))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := encodeContent(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// foreign returns content whose Tink keyset has one key of another template or status.
func foreign(t testing.TB, template *tinkpb.KeyTemplate, change func(m *keyset.Manager, id uint32) error) []byte {
	t.Helper()
	m := keyset.NewManager()
	id, err := m.Add(template)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.SetPrimary(id); err != nil {
		t.Fatal(err)
	}
	if err := change(m, id); err != nil {
		t.Fatal(err)
	}
	h, err := m.Handle()
	if err != nil {
		t.Fatal(err)
	}
	var keys bytes.Buffer
	if err := insecurecleartextkeyset.Write(h, keyset.NewBinaryWriter(&keys)); err != nil {
		t.Fatal(err)
	}
	out := binary.BigEndian.AppendUint32(make([]byte, macSize), uint32(h.Len()))
	for _, k := range h.KeysetInfo().GetKeyInfo() {
		out = binary.BigEndian.AppendUint32(out, k.GetKeyId())
		out = binary.BigEndian.AppendUint64(out, 0)
	}
	return append(out, keys.Bytes()...)
}

func TestParseContent(t *testing.T) {
	for _, rotations := range []int{0, 1, 5} {
		b := content(t, rotations)
		s, err := parseContent(b)
		if err != nil || s.handle.Len() != rotations+1 {
			t.Fatalf("after %d rotations: %v", rotations, err)
		}
		again, err := encodeContent(s)
		if err != nil || !bytes.Equal(b, again) {
			t.Errorf("after %d rotations: encoded differently (%v)", rotations, err)
		}
		clear(b) // the parsed ring must not share memory with what is wiped
		if bytes.Equal(s.mac, make([]byte, macSize)) {
			t.Error("the key for hashes was wiped with its source")
		}
	}
}

func TestParseContentRefusesForeignKeys(t *testing.T) {
	none := func(*keyset.Manager, uint32) error { return nil }
	disabled := func(m *keyset.Manager, _ uint32) error {
		id, err := m.Add(aead.AES256GCMKeyTemplate())
		if err != nil {
			return err
		}
		return m.Disable(id)
	}
	if _, err := parseContent(foreign(t, aead.AES256GCMKeyTemplate(), none)); err != nil {
		t.Fatalf("the right kind of key is refused: %v", err)
	}
	withID := content(t, 0)
	withID[macSize+4] ^= 1
	twice := content(t, 1)
	copy(twice[macSize+4+12:], twice[macSize+4:macSize+8])
	for name, b := range map[string][]byte{
		"AES-128":    foreign(t, aead.AES128GCMKeyTemplate(), none),
		"ChaCha20":   foreign(t, aead.ChaCha20Poly1305KeyTemplate(), none),
		"no prefix":  foreign(t, aead.AES256GCMNoPrefixKeyTemplate(), none),
		"disabled":   foreign(t, aead.AES256GCMKeyTemplate(), disabled),
		"another id": withID,
		"id twice":   twice,
		"empty":      nil,
		"no keys":    make([]byte, macSize+4),
		"many keys":  binary.BigEndian.AppendUint32(make([]byte, macSize), maxKeys+1),
		"cut":        content(t, 0)[:macSize+4+11],
	} {
		if s, err := parseContent(b); !errors.Is(err, ErrCorrupt) || s != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTooManyKeys(t *testing.T) {
	s, err := newSealed(nil, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	m := keyset.NewManagerFromHandle(s.handle)
	for range maxKeys - 1 {
		if _, err := m.Add(aead.AES256GCMKeyTemplate()); err != nil {
			t.Fatal(err)
		}
	}
	if s.handle, err = m.Handle(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.withNewPrimary(time.Unix(0, 0)); err == nil {
		t.Error("one key more than allowed")
	}
	// The largest ring that is allowed fits into its file.
	kek := newFileKEK(bytes.Repeat([]byte{1}, kekSize))
	s.kek = kek
	if _, err := encodeSealed(t.Context(), strings.Repeat("0", 32), s); err != nil {
		t.Errorf("a full ring can't be written: %v", err)
	}
}

func FuzzParseFile(f *testing.F) {
	b, err := os.ReadFile(filepath.Join("testdata", "v1", "keyset"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(bytes.ToUpper(b))
	f.Add(bytes.Replace(b, []byte(`"kek":"`), []byte(`"kek":"\u0066`), 1))
	f.Add([]byte(`{"format":"bulla-keyset/v1"}` + "\n"))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, dataKey, box, err := parseFile(data)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) || got != (keysetFile{}) || dataKey != nil || box != nil {
				t.Fatalf("half a result with %v", err)
			}
			return
		}
		if !bytes.Equal(got.encode(), data) {
			t.Fatalf("%q is not canonical and was accepted", data)
		}
	})
}

func FuzzParseContent(f *testing.F) {
	f.Add(content(f, 0))
	f.Add(content(f, 2))
	f.Add(foreign(f, aead.AES128GCMKeyTemplate(), func(*keyset.Manager, uint32) error { return nil }))
	f.Add(make([]byte, macSize+4+12))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parseContent(data)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		ct, err := s.aead.Encrypt([]byte("x"), nil)
		if err != nil {
			t.Fatalf("accepted a keyset that does not seal: %v", err)
		}
		if _, err := s.aead.Decrypt(ct, nil); err != nil {
			t.Fatalf("accepted a keyset that does not open: %v", err)
		}
	})
}
