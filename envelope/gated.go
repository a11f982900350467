package envelope

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/bulla-project/bulla/secret"
)

const (
	labelGated = "bulla-gated/v1"
	gatedHead  = 4 // the number of uses

	// MaxUses is the largest number of uses of a gated body: each takes ShareSize bytes of the envelope.
	MaxUses = 1000
	// ShareSize is the size of a use share in bytes.
	ShareSize = cekLen

	maxBody = gatedHead + MaxUses*ShareSize + ivLen + tagLen + MaxSecret
)

// Share is what one use of a gated body takes, besides the body: one half of a two-part split of the body's key.
type Share [ShareSize]byte

// Gate seals a secret a second time, inside the envelope: the result is what goes into [SealInput.Secret] at grade
// gated. Its key is random, kept by nobody, and split once for each use: the body carries key XOR share(i) for
// i = 1…uses, and the broker holds the shares. Body and session are bound, so that the shares of one session open
// no body of another.
//
//	uses (4 bytes, big endian) ‖ uses × masked key (32 bytes) ‖ nonce (12) ‖ AES-256-GCM(secret) with its tag
//
// The associated data are "bulla-gated/v1", a zero byte, the session id, and the head with the masked keys.
func Gate(plain secret.Bytes, session string, uses uint32, share func(number uint32) Share) (secret.Bytes, error) {
	data := plain.Expose()
	switch {
	case uses == 0 || uses > MaxUses:
		return secret.Bytes{}, fmt.Errorf("gate: %w: %d uses, want 1 to %d", ErrInvalid, uses, MaxUses)
	case len(data) > MaxSecret:
		return secret.Bytes{}, fmt.Errorf("gate: %w: secret of %d bytes, at most %d", ErrInvalid, len(data), MaxSecret)
	}
	var key [cekLen]byte
	defer clear(key[:])
	if _, err := io.ReadFull(rand.Reader, key[:]); err != nil {
		return secret.Bytes{}, fmt.Errorf("gate: random source: %w", err)
	}
	body := make([]byte, 0, gatedOverhead(uses)+len(data))
	body = binary.BigEndian.AppendUint32(body, uses)
	for number := range uses {
		half := share(number + 1)
		for i := range half {
			half[i] ^= key[i]
		}
		body = append(body, half[:]...)
	}
	aead, err := contentAEAD(key[:])
	if err != nil {
		return secret.Bytes{}, err
	}
	return secret.NewBytes(aead.Seal(body, nil, data, gatedAAD(session, body))), nil
}

// gatedOverhead is how many bytes a gated body is longer than its secret.
func gatedOverhead(uses uint32) int { return gatedHead + int(uses)*ShareSize + ivLen + tagLen }

func gatedAAD(session string, head []byte) []byte {
	return append([]byte(labelGated+"\x00"+session+"\x00"), head...)
}

// Gated is the body of an envelope of grade gated: without a share it says nothing.
type Gated struct {
	session string
	head    []byte // uses and masked keys
	sealed  []byte
}

// Gated returns the body of an opened envelope of grade gated. It shares the memory of o, and ends with it.
func (o *Opened) Gated() (*Gated, error) {
	if o.Context.Grade != GradeGated {
		return nil, fmt.Errorf("gated body: %w: the envelope is of grade %s", ErrInvalid, o.Context.Grade)
	}
	return parseGated(o.Secret().Expose(), o.Context.Session, uint32(min(o.Context.Uses, MaxUses+1)))
}

func parseGated(b []byte, session string, uses uint32) (*Gated, error) {
	if uses == 0 || uses > MaxUses || len(b) < gatedOverhead(uses) || len(b) > gatedOverhead(uses)+MaxSecret || binary.BigEndian.Uint32(b) != uses {
		return nil, fmt.Errorf("gated body: %w: it does not hold the keys of %d uses", ErrMalformed, uses)
	}
	cut := gatedHead + int(uses)*ShareSize
	return &Gated{session: session, head: b[:cut], sealed: b[cut:]}, nil
}

// Open joins a share with its half and opens the body. A share of another use, or of another session, is [ErrCrypto].
func (g *Gated) Open(number uint32, share Share) (secret.Bytes, error) {
	if at := gatedHead + int(number)*ShareSize; number == 0 || at > len(g.head) {
		return secret.Bytes{}, fmt.Errorf("gated body: %w: there is no use %d", ErrInvalid, number)
	}
	key := share
	defer clear(key[:])
	for i, half := range g.head[gatedHead+int(number-1)*ShareSize:][:ShareSize] {
		key[i] ^= half
	}
	aead, err := contentAEAD(key[:])
	if err != nil {
		return secret.Bytes{}, err
	}
	plain, err := aead.Open(nil, nil, g.sealed, gatedAAD(g.session, g.head))
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("gated body: %w", ErrCrypto)
	}
	return secret.NewBytes(plain), nil
}
