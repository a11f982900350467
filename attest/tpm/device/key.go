package device

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bulla-project/bulla/attest/tpm/evidence"
)

// blob is a key as the TPM gave it out: wrapped, of use to this TPM only.
type blob struct {
	tpm     *TPM
	public  tpm2.TPMTPublic
	private tpm2.TPM2BPrivate
}

// An InstanceKey is a P-256 signing key in the TPM. It implements crypto.Signer and is safe for concurrent use.
type InstanceKey struct {
	blob
	key *ecdsa.PublicKey
}

// A RecipientKey is a P-256 key for ECDH in the TPM. It implements ecdh.KeyExchanger, so that crypto/hpke can
// open with it (hpke.NewDHKEMPrivateKey, hpke.NewHybridPrivateKey), and is safe for concurrent use.
type RecipientKey struct {
	blob
	key *ecdh.PublicKey
}

var (
	_ crypto.Signer     = (*InstanceKey)(nil)
	_ ecdh.KeyExchanger = (*RecipientKey)(nil)
)

// NewInstanceKey makes a signing key. It lives as long as the value.
func (t *TPM) NewInstanceKey(ctx context.Context) (*InstanceKey, error) {
	b, key, err := t.create(ctx, evidence.InstanceTemplate())
	if err != nil {
		return nil, fmt.Errorf("make an instance key in %s: %w", t.Address(), err)
	}
	return &InstanceKey{b, key}, nil
}

// NewRecipientKey makes a key for ECDH. It lives as long as the value.
func (t *TPM) NewRecipientKey(ctx context.Context) (*RecipientKey, error) {
	b, key, err := t.create(ctx, evidence.RecipientTemplate())
	if err != nil {
		return nil, fmt.Errorf("make a recipient key in %s: %w", t.Address(), err)
	}
	point, err := key.ECDH()
	if err != nil {
		return nil, fmt.Errorf("make a recipient key in %s: %w", t.Address(), err)
	}
	return &RecipientKey{b, point}, nil
}

func (t *TPM) create(ctx context.Context, template tpm2.TPMTPublic) (blob, *ecdsa.PublicKey, error) {
	b := blob{tpm: t}
	err := t.do(ctx, func(c transport.TPM) error {
		parent, err := storageKey(c)
		if err != nil {
			return err
		}
		defer flush(c, parent.Handle)
		r, err := tpm2.Create{ParentHandle: parent.auth(), InPublic: tpm2.New2B(template)}.Execute(c)
		if err != nil {
			return err
		}
		public, err := r.OutPublic.Contents()
		if err != nil {
			return err
		}
		b.public, b.private = *public, r.OutPrivate
		return nil
	})
	if err != nil {
		return blob{}, nil, err
	}
	key, err := tpm2.Pub(b.public)
	if err != nil {
		return blob{}, nil, err
	}
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return blob{}, nil, errors.New("the TPM made a key of another type")
	}
	return b, ec, nil
}

// load loads the key below the storage key; the caller flushes it.
func (b blob) load(c transport.TPM) (object, error) {
	parent, err := storageKey(c)
	if err != nil {
		return object{}, err
	}
	defer flush(c, parent.Handle)
	r, err := tpm2.Load{ParentHandle: parent.auth(), InPrivate: b.private, InPublic: tpm2.New2B(b.public)}.Execute(c)
	if err != nil {
		return object{}, fmt.Errorf("load the key: %w", err)
	}
	return object{tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name}, b.public}, nil
}

// Public implements crypto.Signer; it is an *ecdsa.PublicKey.
func (k *InstanceKey) Public() crypto.PublicKey { return k.key }

// SPKI is the public key in PKIX form, as attest.Binding wants it.
func (k *InstanceKey) SPKI() ([]byte, error) { return x509.MarshalPKIXPublicKey(k.key) }

// Sign implements crypto.Signer for SHA-256 digests; the TPM makes its own random numbers.
func (k *InstanceKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts == nil || opts.HashFunc() != crypto.SHA256 || len(digest) != crypto.SHA256.Size() {
		return nil, errors.New("sign with the TPM's instance key: only SHA-256 digests")
	}
	var signature []byte
	err := k.tpm.do(context.Background(), func(c transport.TPM) error {
		key, err := k.load(c)
		if err != nil {
			return err
		}
		defer flush(c, key.Handle)
		r, err := tpm2.Sign{
			KeyHandle: key.auth(), Digest: tpm2.TPM2BDigest{Buffer: digest},
			InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
		}.Execute(c)
		if err != nil {
			return err
		}
		s, err := r.Signature.Signature.ECDSA()
		if err != nil {
			return err
		}
		signature, err = asn1.Marshal(struct{ R, S *big.Int }{
			new(big.Int).SetBytes(s.SignatureR.Buffer), new(big.Int).SetBytes(s.SignatureS.Buffer),
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("sign with the TPM's instance key: %w", err)
	}
	return signature, nil
}

// PublicKey implements ecdh.KeyExchanger.
func (k *RecipientKey) PublicKey() *ecdh.PublicKey { return k.key }

// Curve implements ecdh.KeyExchanger: P-256.
func (k *RecipientKey) Curve() ecdh.Curve { return ecdh.P256() }

// ECDH implements ecdh.KeyExchanger. The result crosses the way to the TPM encrypted.
func (k *RecipientKey) ECDH(peer *ecdh.PublicKey) ([]byte, error) {
	if peer == nil || peer.Curve() != ecdh.P256() {
		return nil, errors.New("ECDH with the TPM's recipient key: the other key is not on P-256")
	}
	const coordinate = 32
	point := peer.Bytes() // 4, x, y
	shared := make([]byte, coordinate)
	err := k.tpm.do(context.Background(), func(c transport.TPM) error {
		key, err := k.load(c)
		if err != nil {
			return err
		}
		defer flush(c, key.Handle)
		salt, err := storageKey(c)
		if err != nil {
			return err
		}
		defer flush(c, salt.Handle)
		session := tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.AESEncryption(128, tpm2.EncryptOut), tpm2.Salted(salt.Handle, salt.public))
		r, err := tpm2.ECDHZGen{
			KeyHandle: tpm2.AuthHandle{Handle: key.Handle, Name: key.Name, Auth: session},
			InPoint: tpm2.New2B(tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: point[1 : 1+coordinate]},
				Y: tpm2.TPM2BECCParameter{Buffer: point[1+coordinate:]},
			}),
		}.Execute(c)
		if err != nil {
			return err
		}
		z, err := r.OutPoint.Contents()
		if err != nil {
			return err
		}
		if len(z.X.Buffer) > coordinate {
			return errors.New("the TPM's result is too long")
		}
		copy(shared[coordinate-len(z.X.Buffer):], z.X.Buffer)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("ECDH with the TPM's recipient key: %w", err)
	}
	return shared, nil
}
