package envelope

import (
	"testing"

	"github.com/bulla-project/bulla/envelope/proof"
)

func TestReceipt(t *testing.T) {
	sc := newScene(t, SuiteHybridX25519())
	sealed := sc.seal(t)
	o := must(sc.open(sealed.Bytes))(t)
	r := must(SignReceipt(o, sc.instance))(t)
	want := ReceiptExpectation{
		Session: sealed.Context.Session, EnvelopeDigest: sealed.Digest, Lock: sealed.Context.ReceiptLock, Instance: &sc.instance.PublicKey,
	}
	if err := VerifyReceipt(r, want); err != nil {
		t.Fatal(err)
	}

	otherKey := must(proof.GenerateInstanceKey())(t)
	otherSealed := sc.seal(t)
	otherReceipt := must(SignReceipt(must(sc.open(otherSealed.Bytes))(t), sc.instance))(t)
	for name, change := range map[string]func(r *Receipt, want *ReceiptExpectation){
		"another session":            func(r *Receipt, _ *ReceiptExpectation) { r.Session = "ses_02" },
		"another session everywhere": func(r *Receipt, w *ReceiptExpectation) { r.Session, w.Session = "ses_02", "ses_02" },
		"another digest":             func(r *Receipt, _ *ReceiptExpectation) { r.EnvelopeDigest = otherSealed.Digest },
		"another digest everywhere": func(r *Receipt, w *ReceiptExpectation) {
			r.EnvelopeDigest, w.EnvelopeDigest = otherSealed.Digest, otherSealed.Digest
		},
		"guessed r":                   func(r *Receipt, _ *ReceiptExpectation) { r.R[0] ^= 1 },
		"r of another envelope":       func(r *Receipt, _ *ReceiptExpectation) { r.R = otherReceipt.R },
		"receipt of another envelope": func(r *Receipt, _ *ReceiptExpectation) { *r = otherReceipt },
		"r and lock of another": func(r *Receipt, w *ReceiptExpectation) {
			r.R, w.Lock = otherReceipt.R, otherSealed.Context.ReceiptLock
		},
		"signature of another": func(r *Receipt, _ *ReceiptExpectation) { r.Signature = otherReceipt.Signature },
		"no signature":         func(r *Receipt, _ *ReceiptExpectation) { r.Signature = nil },
		"another instance":     func(_ *Receipt, w *ReceiptExpectation) { w.Instance = &otherKey.PublicKey }, // A06
		"signed by a sibling": func(r *Receipt, _ *ReceiptExpectation) {
			r.Signature = must(proof.SignES256(otherKey, r.statement()))(t)
		},
		"session signed anew": func(r *Receipt, _ *ReceiptExpectation) {
			r.Session = "ses_02"
			r.Signature = must(proof.SignES256(sc.instance, r.statement()))(t)
		},
		"digest signed anew": func(r *Receipt, _ *ReceiptExpectation) {
			r.EnvelopeDigest = otherSealed.Digest
			r.Signature = must(proof.SignES256(sc.instance, r.statement()))(t)
		},
		"guessed r signed anew": func(r *Receipt, _ *ReceiptExpectation) { // never opened, but signed
			r.R[0] ^= 1
			r.Signature = must(proof.SignES256(sc.instance, r.statement()))(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, want := r, want
			change(&r, &want)
			wantErr(t, VerifyReceipt(r, want), ErrCrypto)
		})
	}
	for name, change := range map[string]func(*ReceiptExpectation){
		"no session":  func(w *ReceiptExpectation) { w.Session = "" },
		"no digest":   func(w *ReceiptExpectation) { w.EnvelopeDigest = Digest{} },
		"no lock":     func(w *ReceiptExpectation) { w.Lock = Digest{} },
		"no instance": func(w *ReceiptExpectation) { w.Instance = nil },
	} {
		t.Run(name, func(t *testing.T) {
			want := want
			change(&want)
			wantErr(t, VerifyReceipt(r, want), ErrInvalid)
		})
	}

	_, err := SignReceipt(o, otherKey)
	wantErr(t, err, ErrMismatch)
	o.Wipe()
	_, err = SignReceipt(o, sc.instance)
	wantErr(t, err, ErrInvalid)
}
