package envelope

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"

	"github.com/bulla-project/bulla/envelope/proof"
)

// Receipt proves that the holder of the instance key opened an envelope: r was inside it and nowhere else, and the
// signature says who shows it. The signature covers the label "bulla-receipt/v1", session, envelope digest and r, in
// the form of [proof.Statement].
type Receipt struct {
	Session        string
	EnvelopeDigest Digest
	R              [32]byte
	Signature      []byte // r‖s, see proof.SignES256
}

func (r *Receipt) statement() []byte {
	return proof.Statement(LabelReceipt, []byte(r.Session), r.EnvelopeDigest[:], r.R[:])
}

// SignReceipt makes the receipt of an opened envelope. key is the instance key that the context names; another key
// is [ErrMismatch]. An envelope that was wiped gives [ErrInvalid].
func SignReceipt(o *Opened, key crypto.Signer) (Receipt, error) {
	plain := o.plain.Expose()
	if plain == nil {
		return Receipt{}, fmt.Errorf("sign receipt: %w: the envelope has been wiped", ErrInvalid)
	}
	pub, err := proof.InstancePublic(key)
	if err != nil {
		return Receipt{}, fmt.Errorf("sign receipt: %w: %w", ErrInvalid, err)
	}
	if proof.Thumbprint(pub) != o.Context.Instance {
		return Receipt{}, fmt.Errorf("sign receipt: %w: not the instance key of the envelope", ErrMismatch)
	}
	r := Receipt{Session: o.Context.Session, EnvelopeDigest: o.Digest, R: [32]byte(plain[len(labelData):])}
	if r.Signature, err = proof.SignES256(key, r.statement()); err != nil {
		return Receipt{}, fmt.Errorf("sign receipt: %w", err)
	}
	return r, nil
}

// ReceiptExpectation is what the broker recorded when it sealed the envelope.
type ReceiptExpectation struct {
	Session        string
	EnvelopeDigest Digest
	Lock           Digest           // Context.ReceiptLock
	Instance       *ecdsa.PublicKey // the instance key of the session
}

// VerifyReceipt checks a receipt. Every failure is [ErrCrypto]; only an incomplete expectation is [ErrInvalid].
func VerifyReceipt(r Receipt, want ReceiptExpectation) error {
	if want.Session == "" || want.EnvelopeDigest.IsZero() || want.Lock.IsZero() || want.Instance == nil {
		return fmt.Errorf("verify receipt: %w: session, digest, lock and instance key must be known", ErrInvalid)
	}
	lock := sha256.Sum256(r.R[:])
	if r.Session != want.Session ||
		subtle.ConstantTimeCompare(r.EnvelopeDigest[:], want.EnvelopeDigest[:])&subtle.ConstantTimeCompare(lock[:], want.Lock[:]) != 1 {
		return fmt.Errorf("verify receipt: %w", ErrCrypto)
	}
	if err := proof.VerifyES256(want.Instance, r.statement(), r.Signature); err != nil {
		return fmt.Errorf("verify receipt: %w", ErrCrypto)
	}
	return nil
}
