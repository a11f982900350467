package client

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	bullav1 "github.com/bulla-project/bulla/api/bulla/v1"
	"github.com/bulla-project/bulla/envelope"
	"github.com/bulla-project/bulla/secret"
	"github.com/bulla-project/bulla/secret/keys"
)

// maxUndone is how many operations without an answer a Secret remembers.
const maxUndone = 64

// workAsk is a request for one operation. The same one may be sent again: the broker counts it once.
type workAsk struct {
	req   *sent
	shown *shown
	salt  []byte
	again bool // it was sent before, and the answer did not come
}

// KeyType is the type of a proxied key, such as "ecdsa-p256"; "" at other grades.
func (s *Secret) KeyType() secret.Type { return s.public.Type }

// PublicKey is the public half of a proxied signature key, an *ecdsa.PublicKey or an ed25519.PublicKey, as the signed
// envelope brought it; nil for other secrets. What verifies against it needs no use: see crypto/ecdsa and
// crypto/ed25519.
func (s *Secret) PublicKey() crypto.PublicKey { return s.public.Key }

// PublicJWK is PublicKey as a JWK (RFC 7517).
func (s *Secret) PublicJWK() ([]byte, error) { return s.public.JWK() }

// Sign has the broker sign a message of at most 64 KiB, and counts as a use, as all of these do. An ecdsa-p256 key gives
// r‖s over the SHA-256 of the message, as ES256 of JOSE has it; an ed25519 key signs the message itself.
//
// A call whose answer got lost may be made again: the same input is then not counted twice, for some minutes.
func (s *Secret) Sign(ctx context.Context, message []byte) ([]byte, error) {
	return s.operate(ctx, keys.Input{Operation: keys.Sign, Data: message})
}

// Verify has the broker check a signature. It is nil for one of this very key, and ErrNotAuthentic for any other.
func (s *Secret) Verify(ctx context.Context, message, signature []byte) error {
	_, err := s.operate(ctx, keys.Input{Operation: keys.Verify, Data: message, Signature: signature})
	return err
}

// MAC has the broker compute HMAC-SHA-256 of a message of at most 64 KiB.
func (s *Secret) MAC(ctx context.Context, message []byte) ([]byte, error) {
	return s.operate(ctx, keys.Input{Operation: keys.MAC, Data: message})
}

// VerifyMAC has the broker check a MAC, in constant time. It is nil or ErrNotAuthentic.
func (s *Secret) VerifyMAC(ctx context.Context, message, mac []byte) error {
	_, err := s.operate(ctx, keys.Input{Operation: keys.VerifyMAC, Data: message, Signature: mac})
	return err
}

// Encrypt has the broker encrypt at most 64 KiB. The ciphertext opens with the same associated data only (at most
// 4 KiB, may be nil), and says which version of the key it needs: see CiphertextVersion.
func (s *Secret) Encrypt(ctx context.Context, plaintext, associated []byte) ([]byte, error) {
	return s.operate(ctx, keys.Input{Operation: keys.Encrypt, Data: plaintext, AssociatedData: associated})
}

// Decrypt reverses Encrypt. What does not open is ErrNotAuthentic.
func (s *Secret) Decrypt(ctx context.Context, ciphertext, associated []byte) ([]byte, error) {
	return s.operate(ctx, keys.Input{Operation: keys.Decrypt, Data: ciphertext, AssociatedData: associated})
}

// CiphertextVersion says which version of its key a ciphertext needs, for WithVersion.
func CiphertextVersion(ciphertext []byte) (secret.Version, error) {
	return keys.CiphertextVersion(ciphertext)
}

// operate asks for one operation, and says which key it was about where that fails.
func (s *Secret) operate(ctx context.Context, in keys.Input) ([]byte, error) {
	out, err := s.work(ctx, in)
	if err != nil {
		return nil, fmt.Errorf("%s with %s: %w", in.Operation, s.Name, err)
	}
	return out, nil
}

func (s *Secret) work(ctx context.Context, in keys.Input) ([]byte, error) {
	if s.Grade != string(envelope.GradeProxied) {
		return nil, fmt.Errorf("%w: the session is of grade %s: see Use", ErrInvalid, s.Grade)
	}
	if err := in.Validate(s.public.Type); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	for {
		ask, err := s.takeWork(in)
		if err != nil {
			return nil, err
		}
		reply, err := s.getWork(ctx, ask, in)
		switch {
		case err == nil:
			return s.outcome(in, reply)
		case !errors.Is(err, ErrEnded):
			s.keepWork(ask, in, errors.Is(err, ErrUnavailable))
			return nil, err
		case !ask.again:
			return nil, err
		}
		// The broker keeps an answer for some minutes only: that one is gone. A new request will say how the session stands.
	}
}

// takeWork gives the request that was made for the same input before and got no answer, or a new one.
func (s *Secret) takeWork(in keys.Input) (workAsk, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return workAsk{}, err
	}
	if s.counted {
		s.left--
	}
	id := workID(in)
	if ask, ok := s.undone[id]; ok {
		delete(s.undone, id)
		return ask, nil
	}
	ask := workAsk{req: &sent{id: newRequestID(s.client)}, shown: new(shown), salt: make([]byte, 32)}
	_, _ = rand.Read(ask.salt) // crypto/rand.Read never fails
	return ask, nil
}

// keepWork keeps a request that may have taken effect for the same call made again, and takes back the count of this one.
func (s *Secret) keepWork(ask workAsk, in keys.Input, unanswered bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.counted {
		s.left++
	}
	if !unanswered || len(s.undone) == maxUndone {
		return
	}
	if s.undone == nil {
		s.undone = map[[32]byte]workAsk{}
	}
	ask.again = true
	s.undone[workID(in)] = ask
}

// workID stands for an operation with its input, of which nothing else is kept.
func workID(in keys.Input) [32]byte {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(in.Operation), in.Data, in.AssociatedData, in.Signature} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		h.Write(part)
	}
	return [32]byte(h.Sum(nil))
}

// getWork asks the broker, and once more with what the policy wants besides.
func (s *Secret) getWork(ctx context.Context, ask workAsk, in keys.Input) (*bullav1.OperateReply, error) {
	return persuade(ctx, s, ask.req, ask.shown, ask.again, func() (*bullav1.OperateReply, error) {
		payload := fixed(&bullav1.OperateRequest{
			SessionId: s.SessionID, Operation: string(in.Operation), Input: in.Data, AssociatedData: in.AssociatedData, Signature: in.Signature,
			Salt: ask.salt, Factors: ask.shown.factors,
		})
		return call(ctx, s.client, bullav1.Broker_Operate_FullMethodName, ask.req, payload, s.client.broker.Operate)
	})
}

// outcome checks what can be checked of a reply. A signature has to verify against the key of the envelope.
func (s *Secret) outcome(in keys.Input, reply *bullav1.OperateReply) ([]byte, error) {
	out := reply.GetOutput()
	if !reply.GetAuthentic() {
		return nil, ErrNotAuthentic
	}
	switch in.Operation {
	case keys.Sign:
		if s.public.Verify(in.Data, out) != nil {
			return nil, fmt.Errorf("%w: the broker's signature is not of the key that the envelope names", ErrVerification)
		}
	case keys.Verify:
		if s.public.Verify(in.Data, in.Signature) != nil {
			return nil, fmt.Errorf("%w: the broker calls a signature good that is not of the key that the envelope names", ErrVerification)
		}
	case keys.MAC:
		if len(out) != keys.MACSize {
			return nil, fmt.Errorf("%w: the broker's MAC has %d bytes", ErrVerification, len(out))
		}
	}
	return out, nil
}
